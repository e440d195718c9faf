"""`shuiwang status`: how each home stands, worked out beside the service, and what people see of it."""

import io

import msgspec
import pytest
from readings import at, shows, silent
from rich.console import Console

from agent import config as configuration
from agent import views
from agent.absences import Absences
from agent.judge import Judge
from agent.standing import rules_of, standings
from agent.status import SET_ASIDE_SHOWN, status
from gateway.store import Store
from gateway.store_view import StoreView
from protocols.absence import Absence
from protocols.contract import Daily, Ending, NotUnderstood, Stream, instant

HEAD = '[gateway]\nid = "g-1"\ncounty = "c"\ndata_dir = "data"\n[broker]\nurl = "mqtt://localhost"\n'
BUS = '[[bus]]\nname = "b"\nport = "/dev/ttyS1"\n'
METER = '[[meter]]\nid = "{id}"\nbus = "b"\nprofile = "{profile}"\naddress = "{address}"\npoll_every_s = 3600\n'
PROFILES = {"m-001": "xintai", "m-002": "xintai", "m-003": "xintai", "m-004": "mbus-water-100l", "m-005": "xintai"}
HOURS = 24 * 20 + 20
KEPT_H = 72


class Clock:
    """Stands still at an hour."""

    def __init__(self, hour):
        self._hour = hour

    def now(self):
        return at(self._hour)


@pytest.fixture
def config(tmp_path):
    meters = "".join(
        METER.format(id=meter, profile=profile, address=number)
        for number, (meter, profile) in enumerate(PROFILES.items(), 1)
    )
    (tmp_path / "data").mkdir()
    path = tmp_path / "shuiwang.toml"
    path.write_text(HEAD + BUS + meters, encoding="utf-8")
    return configuration.load(path)


class Village:
    """A judge whose work is committed, as the pipeline does it; the store has lost what is older than three days."""

    def __init__(self, config, new_id):
        self.judge = Judge(rules_of(config), episodes=[], new_id=new_id, absences=Absences())
        self.store = Store(config.gateway.data_dir / "shuiwang.db", new_epoch="01ARZ3NDEKTSV4RRFFQ69G5FAV")

    def live(self, *, from_h=0, to_h=HOURS, keep_every_h=6):
        steps = []
        for hour in range(from_h, to_h):
            verdicts = [self.judge.feed(reading) for reading in readings_at(hour)]
            steps += [step for verdict in verdicts for step in verdict.steps]
            kept = list(self.judge.learned(PROFILES)) if hour % keep_every_h == 0 else []
            if hour >= HOURS - KEPT_H:
                self.store.commit([verdict.reading for verdict in verdicts], steps, kept)
                steps = []
            elif hour == HOURS - KEPT_H - 1 and keep_every_h < HOURS:
                self.store.commit([], steps, self.judge.learned(PROFILES))
                steps = []

    def learned_at(self, meter):
        return self.judge._past.watches[meter]


def readings_at(hour):
    """One home falls silent at the end, one is silent in an absence, one loses its meter, one has a coarse register."""
    used_h = [h for h in range(min(hour, HOURS - 18) + 1) if h % 24 in {0, 4, 10, 14}]
    litres = 500 + 20 * len(used_h)
    yield shows("m-001", hour, litres)
    yield shows("m-002", hour, litres)
    yield silent("m-003", hour) if hour > HOURS - 6 else shows("m-003", hour, 300 + 13 * (hour // 3) // 2)
    yield shows("m-004", hour, 100 * (litres // 100))


@pytest.fixture
def village(config, new_id):
    village = Village(config, new_id)
    yield village
    village.store.close()


def absence(meter, from_h, until_h, *, daily=None, number=1):
    return Absence(
        id=f"01ARZ3NDEKTSV4RRFFQ69HA{number:03d}",
        meter=meter,
        start_ms=at(from_h).wall_ms,
        until_ms=at(until_h).wall_ms,
        declared_by="technician",
        declared_ms=at(min(from_h, HOURS - 1)).wall_ms,
        daily=daily,
    )


def homes_of(config):
    store = StoreView(config.gateway.data_dir / "shuiwang.db")
    try:
        return standings(config, store)
    finally:
        store.close()


class TestStanding:
    @pytest.mark.parametrize("keep_every_h", [1, 6, 24])
    def test_it_is_that_of_the_service_however_long_ago_something_was_kept(self, config, village, keep_every_h):
        village.live(keep_every_h=keep_every_h)
        homes = homes_of(config)
        assert set(homes) == {"m-001", "m-002", "m-003", "m-004"}
        for meter, home in homes.items():
            watch = village.learned_at(meter)
            assert home.silent_min == (None if meter == "m-004" else watch.limit.silent_min)
            assert (home.limit_h, home.limit_learned) == (watch.limit.limit_h, True)
            assert home.step_ml == watch.real_use.step_ml
        assert (homes["m-001"].silent_min, homes["m-003"].silent_min) == (19 * 60, 2 * 60)

    def test_nothing_kept_yet_is_judged_from_the_first_reading_on(self, config, village):
        village.live(from_h=HOURS - 40, keep_every_h=1000)
        homes = homes_of(config)
        assert homes["m-001"].silent_min == village.learned_at("m-001").limit.silent_min
        assert not homes["m-001"].limit_learned

    def test_a_home_whose_kept_reading_is_gone_is_not_guessed_at(self, config, village):
        village.live(to_h=HOURS - KEPT_H, keep_every_h=6)
        village.live(from_h=HOURS - KEPT_H, keep_every_h=1000)
        assert homes_of(config) == {}

    def test_a_state_of_another_version_is_not_guessed_at(self, config, village):
        village.live()
        (kept,) = village.judge.learned(["m-001"])
        village.store.commit([], [], [msgspec.structs.replace(kept, state=b"\x00" + kept.state[1:])])
        assert set(homes_of(config)) == {"m-002", "m-003", "m-004"}

    def test_an_absence_is_heeded_where_it_ended_the_silence_begins(self, config, village):
        away = absence("m-002", HOURS - 17, HOURS - 2)
        village.judge.absences.declare(away)
        village.store.put_absence(away)
        village.live()
        homes = homes_of(config)
        assert (homes["m-001"].silent_min, homes["m-002"].silent_min) == (19 * 60, 60)
        assert homes["m-002"].silent_min == village.learned_at("m-002").limit.silent_min

    def test_a_coarse_register_is_named(self, config, village):
        village.live()
        homes = homes_of(config)
        assert {meter: home.unjudged for meter, home in homes.items() if home.unjudged} == {"m-004": ("red",)}
        assert homes["m-004"].step_ml == 100_000


class TestPicture:
    @pytest.fixture
    def report(self, config, village):
        away = absence("m-002", HOURS - 17, HOURS + 100)
        quiet = absence("m-003", HOURS - 50, HOURS + 500, daily=Daily(start="22:00", end="06:00"), number=2)
        coming = absence("m-001", HOURS + 20, HOURS + 40, number=3)
        over = absence("m-004", HOURS - 40, HOURS + 100, number=4).ended(Ending.USE, at_ms=at(HOURS - 39).wall_ms)
        village.judge.absences.declare(away)
        village.store.put_absence(away, quiet, coming, over)
        village.live()
        episodes = {one.meter: one for one in village.store.open_episodes()}
        noted = village.judge.noted(episodes["m-004"].id, {"acknowledged_at": instant(at(HOURS).wall_ms)})
        assert village.store.note_episode(noted)
        village.store.outgoing(Stream.ALERT, 0, 50)
        items = [NotUnderstood(stream=Stream.ALERT, seq=n, reason=f"alert: odd key {n}") for n in range(1, 8)]
        village.store.acknowledge({Stream.ALERT: 7}, wall_ms=at(HOURS).wall_ms, not_understood=items)
        return status(config, Clock(HOURS - 0.5))

    def text(self, report, monkeypatch, width=80):
        console = Console(width=width, record=True, color_system=None, file=io.StringIO())
        monkeypatch.setattr(views, "Console", lambda: console)
        views.print_status(report)
        return console.export_text()

    def test_what_it_holds(self, report):
        assert [one.meter for one in report.absences] == ["m-003", "m-002", "m-001"]
        assert report.not_understood == 7
        assert [one.seq for one in report.not_understood_newest] == [7, 6, 5, 4, 3]
        assert len(report.not_understood_newest) == SET_ASIDE_SHOWN
        homes = {meter.meter: meter.home for meter in report.meters}
        assert homes["m-005"] is None
        assert msgspec.to_builtins(homes["m-001"])["silent_min"] == 19 * 60

    def test_red_comes_first_and_every_alert_has_its_sentence_in_both_languages(self, report, monkeypatch):
        text = self.text(report, monkeypatch, width=300)
        levels = [line.split()[0] for line in text.splitlines() if line.startswith(("red ", "yellow "))]
        assert levels[0] == "red"
        assert levels == sorted(levels)
        assert len(levels) == len(report.open_alerts) > 2
        for alert in report.open_alerts:
            assert alert.text["zh"] in text
            assert alert.text["en"] in text
        assert text.count("in hand") == 1

    def test_who_is_away_and_what_was_not_understood_is_named(self, report, monkeypatch):
        text = self.text(report, monkeypatch, width=300)
        assert "m-002 away 外出 until 至 2026-10-" in text
        assert "m-003 quiet hours 安静时段 22:00-06:00 until 至" in text
        assert "m-001 away 外出 from 自" in text
        assert "alert 7: alert: odd key 7" in text
        assert "m-004 counts in steps of 0.1 m³: red cannot be judged" in text

    def test_eighty_columns_are_enough(self, report, monkeypatch):
        text = self.text(report, monkeypatch)
        row = next(line for line in text.splitlines() if "m-001   ok" in line)
        for piece in ("m-001", "ok 正常", "2.120", "30 min 分", "19 h", "12 h"):
            assert piece in row, text
        assert "…" not in text
