"""Advice: what each rule would have done last month, with its figures, and honest where they are few."""

import json

import pytest
import typer.testing

from agent.backtest import cli
from agent.backtest.advice import LEAST_DAYS, STOPS, advise
from agent.backtest.advice_words import detection_table, sentences
from agent.backtest.rules import RuleSet
from agent.exit_codes import ExitCode
from gateway.store import Store
from protocols.reading import ClockTrust, Measurement, Moment, reading_of

HOUR = 3_600_000
ORDERED = RuleSet(name="ordered")
CONFIG = """
[gateway]
id = "g-1"
county = "shenxian"
data_dir = "data"
timezone = "Asia/Shanghai"

[broker]
url = "mqtt://127.0.0.1:1"

[[bus]]
name = "rs485-1"
port = "/dev/null"

[[meter]]
id = "m-001"
bus = "rs485-1"
profile = "usw-dn15-40"
address = "1"

[[meter]]
id = "m-002"
bus = "rs485-1"
profile = "usw-dn15-40"
address = "2"
[meter.detection]
red_cost_h = 4000
"""


def said(advice, ordered=ORDERED):
    words = sentences(advice, ordered=ordered)
    assert all(set(sentence) == {"zh", "en"} and all(sentence.values()) for sentence in words)
    return " ".join(sentence["en"] for sentence in words)


def rule(advice, name):
    return next(found for found in advice.rules if found.name == name)


@pytest.fixture(scope="module")
def usual(life, shanghai):
    return advise(life(days=100), clock=shanghai, ordered=ORDERED)


def test_every_rule_has_its_figures(usual):
    assert [found.name for found in usual.rules] == [
        "0.1 m³ / 12 h",
        "0.01 m³ / 12 h",
        "0.01 m³ / 24 h",
        "no use 12 h",
        "no use 16 h",
        "no use 24 h",
        "own limit, red_cost_h 400",
        "own limit, red_cost_h 1500",
        "own limit, red_cost_h 4000",
    ]
    assert [found.as_ordered for found in usual.rules] == [True] + [False] * 8
    assert rule(usual, "no use 16 h").p90_h <= 16 < rule(usual, "no use 24 h").p90_h <= 24
    assert rule(usual, "0.1 m³ / 12 h").standing > 0.9
    assert rule(usual, "no use 24 h").alerts == 0
    own = [rule(usual, f"own limit, red_cost_h {cost}").median_h for cost in (400, 1500, 4000)]
    assert own == sorted(own)
    assert (usual.month_days, usual.step_ml, usual.leak_ml_h, usual.learned) == (30, 1000, 0, True)


def test_a_rule_that_holds_most_of_the_time_is_said_to_say_little(usual):
    assert usual.window_median_ml < 100_000
    assert "yellow says little here; go by red" in said(usual)


def test_fewer_litres_are_recommended_where_red_is_no_later(usual):
    finer = usual.recommended.finer
    assert (finer.window_h, finer.threshold_m3) == (12, "0.01")
    assert finer.standing < finer.ordered_standing / 2
    assert finer.red_median_h <= finer.ordered_median_h + 1
    assert not finer.delays_red
    assert "if the county agrees: yellow below 0.01 m³ in 12 h" in said(usual)
    assert 'threshold_m3 = "0.01"' in detection_table(usual, ordered=ORDERED)


def test_fewer_litres_are_not_recommended_where_red_would_come_late(life, shanghai):
    """A home of strict limits, at a low price of false alarms: red would wait for the finer rule."""
    ordered = RuleSet(name="ordered", cost_h=50)
    advice = advise(life(days=100, still=0.1), clock=shanghai, ordered=ordered)
    finer = advice.recommended.finer
    assert finer.delays_red
    assert finer.red_median_h > finer.ordered_median_h
    assert "keep the litres as ordered" in said(advice, ordered)
    assert not any("threshold" in line for line in detection_table(advice, ordered=ordered))


def test_a_quiet_month_lets_red_come_earlier(life, shanghai):
    regular = advise(life(days=100, still=0.1), clock=shanghai, ordered=ORDERED)
    assert rule(regular, "own limit, red_cost_h 400").alerts == 0
    assert regular.recommended.red_cost_h == 400
    assert detection_table(regular, ordered=ORDERED)[-1] == "red_cost_h = 400"
    assert "red_cost_h = 400 (now 1500): even so about 0.9 red alerts a month, less than one," in said(regular)
    assert "(0 red alerts in 86 days at home" in said(regular)
    assert "acts from the next start of the service" in said(regular)


def test_two_quiet_months_are_no_promise(life, shanghai):
    """What a gateway remembers. On real homes such a month was followed by 1.9 red alerts a month at a price of 400."""
    regular = advise(life(days=60, still=0.1), clock=shanghai, ordered=ORDERED)
    cheap = rule(regular, "own limit, red_cost_h 400")
    assert (cheap.alerts, cheap.past_reds) == (0, 0)
    assert cheap.expected_reds > 1
    assert regular.recommended.red_cost_h == 1500
    assert "red_cost_h = 1500, as it is set now: about 0.7 red alerts a month" in said(regular)
    assert detection_table(regular, ordered=ORDERED) == [] or "red_cost_h" not in str(
        detection_table(regular, ordered=ORDERED)
    )


@pytest.mark.parametrize("leak_l_h", [0, 3])
def test_nothing_is_recommended_for_a_home_in_which_nobody_is(life, shanghai, leak_l_h):
    empty = advise(life(days=80, away=((0, 80),), leak_l_h=leak_l_h), clock=shanghai, ordered=ORDERED)
    assert empty.recommended is None
    assert detection_table(empty, ordered=ORDERED) == []
    assert said(empty).startswith("No real use of water was seen in the last 30 days, so nothing is recommended.")
    assert "declare an absence" in said(empty)
    assert ("leak now" in said(empty)) == bool(leak_l_h)
    assert "red_cost_h" not in said(empty)
    assert "somebody was at home" not in said(empty)


def test_a_home_that_was_empty_for_most_of_the_time_changes_nothing(life, shanghai):
    seldom = advise(life(days=60, away=((14, 45),)), clock=shanghai, ordered=RuleSet(name="ordered", cost_h=4000))
    assert seldom.past_months < 0.6
    assert seldom.recommended.red_cost_h == 4000


def test_a_month_of_false_alarms_makes_red_dearer(life, shanghai):
    outings = tuple((day + 0.5, day + 1.2) for day in (70, 74, 78, 82, 86, 90, 94))  # noon to the next morning
    advice = advise(life(days=100, away=outings), clock=shanghai, ordered=RuleSet(name="ordered", cost_h=400))
    assert rule(advice, "own limit, red_cost_h 400").alerts > 1
    assert advice.recommended.red_cost_h > 400


def test_a_leak_is_said_with_its_size(life, shanghai):
    advice = advise(life(days=60, leak_l_h=4), clock=shanghai, ordered=ORDERED)
    assert advice.leak_ml_h == pytest.approx(4000, rel=0.15)
    assert "leak now" in said(advice)


def test_a_register_too_coarse_for_the_rule_is_said(life, shanghai):
    advice = advise(life(days=100, step_l=200), clock=shanghai, ordered=ORDERED)
    assert advice.step_ml == 200_000
    assert [found.judged for found in advice.rules] == [False] * 3 + [True] * 6
    assert advice.recommended.finer is None
    assert "steps of 200 L, coarser than the rule's 100 L" in said(advice)


def test_a_coarse_register_is_said(life, shanghai):
    assert "steps of 10 L: washing hands" in said(advise(life(days=100, step_l=10), clock=shanghai, ordered=ORDERED))


def test_absences_are_told_apart(life, shanghai):
    advice = advise(life(days=60, away=((45, 48),)), clock=shanghai, ordered=ORDERED)
    assert advice.absences == 1
    assert rule(advice, "no use 24 h").absence_alerts == 1
    assert rule(advice, "no use 24 h").alerts == 0
    assert "1 silence of more than 36 h" in said(advice)


def test_little_history_gives_no_bold_advice(life, shanghai):
    assert advise(life(days=LEAST_DAYS), clock=shanghai, ordered=ORDERED) is None
    week = advise(life(days=8), clock=shanghai, ordered=ORDERED)
    assert "only 8 days" in said(week).replace("7.9", "8").replace("8.0", "8")
    assert week.recommended.red_cost_h == ORDERED.cost_h
    assert week.recommended.finer is None
    month = advise(life(days=30), clock=shanghai, ordered=ORDERED)
    assert "part of what is judged was still learning" in said(month)


def test_a_rule_of_the_county_s_own_stands_first(life, shanghai):
    ordered = RuleSet(name="ordered", window_ms=8 * HOUR, threshold_ml=20_000, cost_h=700)
    advice = advise(life(days=60), clock=shanghai, ordered=ordered)
    assert advice.rules[0].name == "0.02 m³ / 8 h"
    assert [found.red_cost_h for found in advice.rules if found.red_cost_h] == [400, 700, 1500, 4000]
    assert said(advice, ordered)


# ---- the command ----


def call(*arguments):
    return typer.testing.CliRunner().invoke(cli.app, ["advise", *(str(argument) for argument in arguments)])


@pytest.fixture
def gateway(tmp_path, life):
    """A configuration whose store remembers 60 days of one meter, and nothing of the other."""
    path = tmp_path / "shuiwang.toml"
    path.write_text(CONFIG, encoding="utf-8")
    (tmp_path / "data").mkdir()
    home = life("m-001", days=60)
    store = Store(tmp_path / "data" / "shuiwang.db", new_epoch="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    readings = [
        reading_of(
            "m-001",
            Moment(wall_ms=time_ms, trust=ClockTrust.SYNCED, uncertainty_ms=5, boot_id="b", boottime_ms=time_ms),
            Measurement(volume_ml=value),
        )
        for time_ms, value in zip(home.times, home.values, strict=True)
    ]
    store.commit(readings, [])
    store.close()
    return path


def test_advice_from_what_the_gateway_remembers(gateway, life, shanghai):
    done = call("-c", gateway, "--json")
    assert done.exit_code == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["meter"], second["meter"], second["advice"]) == ("m-001", "m-002", None)
    assert "less than 3 days" in second["words"][0]["en"]
    expected = advise(life("m-001", days=60), clock=shanghai, ordered=ORDERED)
    alerts = [found["alerts"] for found in first["advice"]["rules"]]
    assert alerts == [found.alerts for found in expected.rules]
    assert first["advice"]["readings"] == 60 * 24


def test_advice_for_one_meter_in_words(gateway, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    done = call("-c", gateway, "--meter", "m-001")
    assert done.exit_code == 0
    assert "own limit, red_cost_h 1500" in done.stdout
    assert "建议 red_cost_h" in done.stdout
    assert "m-002" not in done.stdout


def test_advice_from_a_file(tmp_path, life, write_csv):
    source = write_csv(tmp_path / "a.csv", [life("m-001", days=60), life("m-002", days=2)])
    done = call(source, "--timezone", "Asia/Shanghai", "--json")
    assert done.exit_code == 0, done.stderr
    assert [one["advice"] is None for one in json.loads(done.stdout)] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--meter", "m-9"], ExitCode.USAGE, "has no such meter; it has m-001, m-002"),
        ([], ExitCode.STORE, "there is no store"),
    ],
)
def test_what_is_wrong_with_a_gateway(tmp_path, arguments, code, message):
    path = tmp_path / "shuiwang.toml"
    path.write_text(CONFIG, encoding="utf-8")
    done = call("-c", path, *arguments)
    assert done.exit_code == code
    assert message in done.stderr


def test_a_wrong_configuration(tmp_path):
    assert call("-c", tmp_path / "none.toml").exit_code == ExitCode.CONFIGURATION


def test_as_many_stops_as_the_figures_promise(usual):
    assert all(found.missed <= STOPS for found in usual.rules)
    assert rule(usual, "no use 12 h").missed == 0
