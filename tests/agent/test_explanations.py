"""Every step in words, in both languages, with the clock of the village."""

import datetime
import re
import zoneinfo

import pytest
from partners.alert_stories import STORIES

from agent.alerts import LOW_USAGE_STEPS, OTHER_STEPS, next_step, take
from agent.explanations import Explainer
from protocols.contract import Kind, Level, Result, Transition, instant

SHANGHAI = zoneinfo.ZoneInfo("Asia/Shanghai")
HAN = re.compile(r"[\u4e00-\u9fff]")
RAISED = sorted(set(Kind) - {Kind.STORAGE_DEGRADED, Kind.CLOCK_UNTRUSTED})


@pytest.fixture(scope="module")
def told():
    return [step for story in STORIES.values() for step in story().steps]


def wall_ms(text):
    """The instant at which clocks in Shanghai show `2026-09-22 10:00`."""
    return round(datetime.datetime.fromisoformat(text).replace(tzinfo=SHANGHAI).timestamp() * 1000)


def words_of(kind, level, signal, *, evidence, now="2026-09-22 10:00", zone=SHANGHAI):
    step = next_step(kind, "m-1", level, signal)
    return take(
        step,
        None,
        since=instant(wall_ms(now)),
        wall_ms=wall_ms(now),
        evidence=evidence,
        new_id=lambda: "01ARZ3NDEKTSV4RRFFQ69G0001",
        words=Explainer(zone),
    ).text


def red(silent_since, *, now="2026-09-22 10:00", zone=SHANGHAI, **more):
    evidence = {"silent_since": instant(wall_ms(silent_since)), "silent_h": 16, "limit_h": 12, **more}
    return words_of(Kind.LOW_USAGE, None, "red", evidence=evidence, now=now, zone=zone)


def test_every_step_that_the_tables_allow_is_told_in_words(told):
    in_words = {(step.kind, step.transition, step.level) for step in told}
    allowed = {(Kind.LOW_USAGE, *step) for step in LOW_USAGE_STEPS.values()}
    allowed |= {(kind, *step) for kind in RAISED if kind is not Kind.LOW_USAGE for step in OTHER_STEPS.values()}
    assert in_words == allowed


def test_no_sentence_has_a_gap_or_a_brace_left_and_each_is_in_its_language(told):
    assert len(told) > 150
    for step in told:
        assert set(step.text) == {"zh", "en"}
        for sentence in step.text.values():
            assert not set("{}?") & set(sentence), sentence
            assert "None" not in sentence.replace("None has been seen", ""), sentence
            assert "  " not in sentence
            assert sentence == sentence.strip()
        assert HAN.search(step.text["zh"])
        assert not HAN.search(step.text["en"])
        assert step.text["zh"][-1] in "。）"
        assert step.text["en"][-1] in ".)"


def test_the_two_languages_give_the_same_figures(told):
    """Apart from dates, whose order differs."""
    for step in told:
        figures = [sorted(re.findall(r"\d+(?:\.\d+)?(?::\d\d)?", step.text[language])) for language in ("zh", "en")]
        if not re.search(r"\d月\d+日", step.text["zh"]):
            assert figures[0] == figures[1], step.text


def test_red_says_what_to_do_yellow_does_not(told):
    for step in told:
        if step.kind is Kind.LOW_USAGE:
            is_call = "Call now" in step.text["en"] and "请立即联系" in step.text["zh"]
            assert is_call == (step.level is Level.RED and step.transition is not Transition.CLEARED)


def test_a_reminder_says_that_it_is_one(told):
    for step in told:
        assert step.text["en"].startswith("Reminder: ") == (step.transition is Transition.REMINDED)
        assert step.text["zh"].startswith("再次提醒：") == (step.transition is Transition.REMINDED)


def test_a_suspicion_is_told_with_every_step_but_the_last(told):
    suspected = [step for step in told if "suspicion" in step.evidence]
    assert {step.evidence["suspicion"]["kind"] for step in suspected} == {"bus_fault", "supply_outage"}
    for step in told:
        has_note = "Please check all the same" in step.text["en"] and "仍请核实" in step.text["zh"]
        assert has_note == ("suspicion" in step.evidence and step.transition is not Transition.CLEARED)


@pytest.mark.parametrize("result", Result)
def test_what_a_visit_found_is_told_when_the_alert_ends(result):
    evidence = {"to": instant(wall_ms("2026-09-22 10:00"))}
    plain = words_of(Kind.LOW_USAGE, Level.RED, "used", evidence=evidence)
    said = words_of(Kind.LOW_USAGE, Level.RED, "used", evidence=evidence | {"county": {"result": str(result)}})
    for language in ("zh", "en"):
        assert said[language].startswith(plain[language])
        assert len(said[language]) > len(plain[language])


@pytest.mark.parametrize(
    ("since", "zh", "en"),
    [
        ("2026-09-22 00:00", "今天（9月22日） 00:00", "00:00 today (22 Sep)"),
        ("2026-09-22 09:59", "今天（9月22日） 09:59", "09:59 today (22 Sep)"),
        ("2026-09-21 23:59", "昨天（9月21日） 23:59", "23:59 yesterday (21 Sep)"),
        ("2026-09-20 23:59", "9月20日 23:59", "23:59 on 20 Sep"),
        ("2025-12-31 07:05", "12月31日 07:05", "07:05 on 31 Dec"),
    ],
)
def test_a_time_is_told_as_people_say_it(since, zh, en):
    words = red(since)
    assert f"自{zh} 起" in words["zh"]
    assert f"since {en}." in words["en"]


def test_what_is_still_to_come_is_told_as_tomorrow():
    words = red("2026-09-21 23:00", now="2026-09-22 22:00", usual_by=instant(wall_ms("2026-09-23 00:30")))
    assert "平时最晚明天（9月23日） 00:30 就会用水" in words["zh"]
    assert "has usually used water again by 00:30 tomorrow (23 Sep)" in words["en"]


def test_it_is_the_clock_of_the_village_that_counts():
    """When it is the morning of the 22nd in Shanghai it is still the night of the 21st in Lisbon."""
    words = red("2026-09-22 01:30", now="2026-09-22 06:00", zone=zoneinfo.ZoneInfo("Europe/Lisbon"))
    assert "since 18:30 today" in words["en"]


def test_a_leak_that_is_not_counted_is_named_with_its_size():
    assert "a leak of about 4 L/h is not counted" in red("2026-09-21 20:00", leak_ml_h=4000)["en"]
    assert "已扣除约 0.4 升/小时的漏水" in red("2026-09-21 20:00", leak_ml_h=420)["zh"]
    assert "leak" not in red("2026-09-21 20:00")["en"]


def test_a_home_that_is_not_known_yet_is_not_said_to_have_habits():
    assert "usually" not in red("2026-09-21 20:00")["en"]


def test_a_bus_is_told_with_its_name_and_how_many_meters():
    words = words_of(
        Kind.BUS_FAULT, None, "stands", evidence={"bus": "rs485-1", "meters": ["m-1", "m-2", "m-3"], "of": 5}
    )
    assert words["en"].startswith("3 meters on line rs485-1 ")
    assert "线路 rs485-1 上 3 块水表" in words["zh"]


def test_what_is_not_known_is_a_question_mark_and_no_crash():
    """A step must be told whatever an episode of an earlier version carries."""
    assert "about ? L an hour" in words_of(Kind.LEAK, None, "stands", evidence={})["en"]


def test_a_reminder_without_a_value_says_what_was_known_then():
    story = STORIES["a_meter_that_falls_silent_in_red"]()
    escalated, reminded = [step for step in story.steps if step.level is Level.RED]
    assert reminded.text["en"] == f"Reminder: {escalated.text['en']}"
    assert reminded.evidence == escalated.evidence
