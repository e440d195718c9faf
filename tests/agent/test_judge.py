"""From readings to alert steps: one episode, its evidence, and what must not raise anything."""

import random

import msgspec
import pytest
from readings import at, shows, silent

from agent.judge import Judge, Rule
from agent.past import VILLAGE
from agent.timeline import anchors_of
from protocols.absence import Absence
from protocols.contract import AlertBody, AlertState, Daily, Ending, Kind, Level, instant
from protocols.reading import ClockTrust, Quality

RULE = Rule(window_ms=12 * 3_600_000, threshold_ml=100_000)


@pytest.fixture
def judge(new_id):
    return Judge({"m-1": RULE, "m-2": RULE}, episodes=[], new_id=new_id)


def steps(judge, readings, kind=Kind.LOW_USAGE):
    return [step for reading in readings for step in judge.feed(reading).steps if step.kind is kind]


def test_one_alert_per_episode_and_the_same_id_when_it_ends(judge):
    still = [shows("m-1", hour, 500) for hour in range(15)]
    running = [shows("m-1", 15 + hour, 500 + 60 * hour) for hour in range(1, 6)]
    opened, cleared = steps(judge, still + running)
    assert (opened.state, cleared.state) == (AlertState.OPEN, AlertState.CLEARED)
    assert opened.id == cleared.id
    assert opened.since == cleared.since
    assert opened.kind is Kind.LOW_USAGE
    assert opened.level is Level.YELLOW


def test_the_evidence_lets_the_county_check_the_decision(judge):
    (opened,) = steps(judge, [shows("m-1", 0, 480), shows("m-1", 2, 500), shows("m-1", 15, 560)])
    assert opened.evidence == {
        "window_h": 12,
        "threshold_ml": 100_000,
        "usage_min_ml": 0,
        "usage_max_ml": 60_000,
        "from": instant(shows("m-1", 2, 0).at.wall_ms),
        "to": opened.at,
        "register_from_ml": 500_000,
        "register_to_ml": 560_000,
        "last_use_after": instant(shows("m-1", 2, 0).at.wall_ms),
        "last_use_before": opened.at,
        "reason": "low",
        "silent_since": opened.at,
        "silent_h": 0,
        "limit_h": 16,
        "limit_learned": False,
    }
    assert opened.since == opened.evidence["from"]


def test_a_second_episode_has_a_new_id(judge):
    quiet = [shows("m-1", hour, 500) for hour in (0, 13)]
    busy = [shows("m-1", hour, 500 + 200 * hour) for hour in (14, 15)]
    quiet_again = [shows("m-1", hour, 3500) for hour in (16, 40)]
    ids = [(step.state.value, step.id) for step in steps(judge, quiet + busy + quiet_again)]
    assert [state for state, _ in ids] == ["open", "cleared", "open"]
    assert ids[0][1] == ids[1][1] != ids[2][1]


def test_missing_readings_neither_raise_nor_clear(judge):
    assert steps(judge, [silent("m-1", hour) for hour in range(48)]) == []
    assert len(steps(judge, [shows("m-1", 50, 500), shows("m-1", 63, 500)])) == 1
    assert steps(judge, [silent("m-1", hour) for hour in range(64, 90)]) == []


def test_an_outage_cannot_hide_a_fall(judge):
    readings = [shows("m-1", 0, 500), *[silent("m-1", hour) for hour in range(1, 20)], shows("m-1", 20, 500)]
    assert [step.state for step in steps(judge, readings)] == [AlertState.OPEN]


def test_a_value_that_the_meter_calls_faulty_proves_nothing(judge):
    assert steps(judge, [shows("m-1", hour, 500, flags=("empty_pipe",)) for hour in range(48)]) == []


def test_meters_are_judged_apart(judge):
    readings = [
        reading for hour in range(14) for reading in (shows("m-1", hour, 500), shows("m-2", hour, 500 + 20 * hour))
    ]
    assert [step.meter for step in steps(judge, readings)] == ["m-1"]


def test_a_meter_that_is_no_longer_configured_is_not_judged(judge):
    assert steps(judge, [shows("m-9", hour, 500) for hour in (0, 20)]) == []


def test_after_a_restart_the_history_counts_and_an_open_episode_is_not_raised_again(judge, new_id):
    history = [shows("m-1", hour, 500) for hour in range(14)] + [
        shows("m-2", hour, 500 + 9 * hour) for hour in range(14)
    ]
    opened = steps(judge, history)
    restarted = Judge({"m-1": RULE, "m-2": RULE}, episodes=opened, new_id=new_id)
    restarted.replay(history, anchors_of(reading.at for reading in history))
    assert steps(restarted, [shows("m-1", 14, 500)]) == []
    (cleared,) = steps(restarted, [shows("m-1", 15, 700), shows("m-1", 15.1, 700)])
    assert (cleared.state, cleared.id) == (AlertState.CLEARED, opened[0].id)


def test_off_for_14_hours_the_first_reading_after_the_start_decides(judge, new_id):
    before = [shows("m-1", hour, 500 + hour) for hour in range(3)]
    judge.replay(before, anchors_of(reading.at for reading in before))
    after = shows("m-1", 16, 503)
    assert [step.state for step in judge.feed(after).steps] == [AlertState.OPEN]


def test_a_synced_clock_after_a_reboot_asks_for_a_replay(judge):
    judge.feed(shows("m-1", 5, 500))
    blind = shows("m-1", 0.1, 500, boot="boot-2", trust=ClockTrust.UNSYNCED)
    judge.feed(blind)
    assert not judge.wants_replay(blind.at)
    assert judge.wants_replay(shows("m-1", 0.2, 500, boot="boot-2").at)


def test_a_replay_begins_anew_whatever_was_seen_before(judge, new_id):
    history = [shows("m-1", hour, 500 + hour) for hour in range(20)]
    for reading in history[:7]:
        judge.feed(reading)
    fresh = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
    for each in (judge, fresh):
        each.replay(history, anchors_of(reading.at for reading in history))
    assert judge._past.watches["m-1"].dump() == fresh._past.watches["m-1"].dump()


def test_a_replay_that_fails_half_way_changes_nothing(judge):
    judge.feed(shows("m-1", 0, 500))

    def torn():
        yield shows("m-1", 0, 500)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        judge.replay(torn(), {})
    assert len(steps(judge, [shows("m-1", 13, 500)])) == 1


def test_a_missing_reading_after_a_reboot_still_counts_as_time(judge):
    judge.feed(shows("m-1", 5, 500))
    first = msgspec.structs.replace(silent("m-1", 0.1), at=at(0.1, boot="boot-2"))
    wall_ms = at(19).wall_ms
    judge.feed(msgspec.structs.replace(first, at=msgspec.structs.replace(first.at, wall_ms=wall_ms)))
    after = shows("m-1", 0.2, 500, boot="boot-2")
    after = msgspec.structs.replace(after, at=msgspec.structs.replace(after.at, wall_ms=wall_ms + 360_000))
    assert [step.state for step in judge.feed(after).steps] == [AlertState.OPEN]


def test_the_episode_of_a_meter_that_is_no_longer_configured_ends(judge, new_id):
    (opened,) = steps(judge, [shows("m-1", hour, 500) for hour in range(14)])
    smaller = Judge({"m-2": RULE}, episodes=[opened], new_id=new_id)
    (cleared,) = smaller.orphans(at(15))
    assert (cleared.id, cleared.state, cleared.at) == (opened.id, AlertState.CLEARED, instant(at(15).wall_ms))
    assert "no longer" in cleared.evidence["reason"]
    assert smaller.orphans(at(15)) == []


# -- levels, reminders, absences, the village ------------------------------------------------------------------------


def still(meter, first, last, litres=500, every_h=1):
    """Readings of a register that stands still."""
    return [shows(meter, first + i * every_h, litres) for i in range(round((last - first) / every_h) + 1)]


def told(steps):
    return [(str(step.transition), str(step.level), str(step.state)) for step in steps]


OPENED, ESCALATED, REMINDED, CLEARED = "opened", "escalated", "reminded", "cleared"


def test_a_silence_is_yellow_then_red_and_is_repeated_until_somebody_takes_it_in_hand(judge):
    began = [shows("m-1", 0, 480), shows("m-1", 1, 500)]
    found = steps(judge, [*began, *still("m-1", 2, 30)])
    assert told(found) == [
        (OPENED, "yellow", "open"),
        (ESCALATED, "red", "escalated"),
        (REMINDED, "red", "escalated"),
        (REMINDED, "red", "escalated"),
    ]
    assert len({step.id for step in found}) == 1
    assert found[1].evidence["reason"] == "limit"
    assert found[1].evidence["silent_h"] == 16
    assert found[3].evidence["reason"] == "day"
    judge.note(judge.noted(found[0].id, {"acknowledged_at": instant(at(30).wall_ms)}))
    later = steps(judge, still("m-1", 31, 60))
    assert told(later) == [(REMINDED, "red", "escalated")]  # a day after it was last told
    assert later[0].at == instant(at(29 + 24).wall_ms)


def test_red_is_repeated_although_the_meter_has_fallen_silent_too(judge):
    found = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 18), *[silent("m-1", hour) for hour in range(19, 26)]])
    assert [step.transition for step in found] == [OPENED, ESCALATED, REMINDED]


def test_real_use_ends_red_and_the_countys_rule_begins_a_yellow_of_its_own(judge):
    found = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 20), shows("m-1", 21, 506)])
    assert told(found)[2:] == [(CLEARED, "red", "cleared"), (OPENED, "yellow", "open")]
    assert found[2].id == found[0].id != found[3].id
    (ended,) = steps(judge, [shows("m-1", 22, 700), shows("m-1", 22.1, 701)])
    assert (ended.transition, ended.id) == (CLEARED, found[3].id)


def test_what_the_county_says_stays_with_the_alert_to_its_end(judge):
    found = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 18)])
    judge.note(judge.noted(found[0].id, {"acknowledged_at": "2026-09-22T05:13:20.000Z"}))
    judge.note(judge.noted(found[0].id, {"result": "fine", "why": "was asleep"}))
    ended = steps(judge, [shows("m-1", 19, 530)])[0]
    assert ended.evidence["county"] == {
        "acknowledged_at": "2026-09-22T05:13:20.000Z",
        "result": "fine",
        "why": "was asleep",
    }
    assert "visited, all well" in ended.text["en"]
    assert judge.noted(found[0].id, {"result": "fine"}) is None


def test_a_silence_in_which_somebody_was_helped_is_never_learned(judge):
    found = steps(judge, [shows("m-1", 0, 480), shows("m-1", 1, 500), *still("m-1", 2, 20)])
    before = bytes(judge._past.watches["m-1"].limit._counts)
    judge.note(judge.noted(found[0].id, {"result": "helped"}))
    judge.feed(shows("m-1", 21, 540))
    assert bytes(judge._past.watches["m-1"].limit._counts) == before


def test_red_is_explained_in_a_sentence_in_both_languages(judge):
    red = steps(judge, [shows("m-1", 0, 480), shows("m-1", 1, 500), *still("m-1", 2, 18)])[1]
    assert red.text["en"] == (
        "No real use for 16 h, since 23:13 yesterday (21 Sep). Call now; go to the door if nobody answers."
    )
    assert red.text["zh"] == "自昨天（9月21日） 23:13 起 16 小时没有正常用水。请立即联系，联系不上请上门查看。"


def test_a_home_that_is_known_is_told_by_when_it_usually_uses_water(judge):
    litres, history = 500, []
    for hour in range(24 * 20):
        litres += 20 if hour % 24 in {0, 4, 10, 14} else 0
        history.append(shows("m-1", hour, litres))
    steps(judge, history)
    red = next(step for step in steps(judge, still("m-1", 480, 500, litres)) if step.level is Level.RED)
    assert "has usually used water again by" in red.text["en"]
    assert red.evidence["limit_learned"]


class TestAbsences:
    def declared(self, judge, first_h, last_h, *, daily=None):
        absence = Absence(
            id=f"01ARZ3NDEKTSV4RRFFQ69G{first_h:04d}",
            meter="m-1",
            start_ms=at(first_h).wall_ms,
            until_ms=at(last_h).wall_ms,
            declared_ms=at(first_h).wall_ms,
            declared_by="village-assistant",
            daily=daily,
        )
        judge.absences.declare(absence)
        return absence

    def test_it_ends_what_stands_and_holds_back_what_would_come(self, judge):
        first = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 14)])
        self.declared(judge, 14, 80)
        found = steps(judge, still("m-1", 15, 79))
        assert told(first + found) == [(OPENED, "yellow", "open"), (CLEARED, "yellow", "cleared")]
        assert found[0].evidence["reason"] == "away"
        later = steps(judge, still("m-1", 80, 100))
        assert told(later) == [(OPENED, "yellow", "open"), (ESCALATED, "red", "escalated")]
        assert later[0].at == instant(at(92).wall_ms)

    def test_use_ends_it_and_the_verdict_says_so(self, judge):
        steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 5)])
        absence = self.declared(judge, 5, 80)
        verdicts = [judge.feed(reading) for reading in [*still("m-1", 6, 20), shows("m-1", 21, 530)]]
        (ended,) = [one for verdict in verdicts for one in verdict.ended]
        assert (ended.id, ended.ended_by, ended.ended_ms) == (absence.id, Ending.USE, at(21).wall_ms)
        later = steps(judge, still("m-1", 22, 34, 530))
        assert told(later) == [(OPENED, "yellow", "open")]
        assert later[0].at == instant(at(21 + 12).wall_ms)  # what lies before the return is no usage of theirs

    def test_a_restart_within_an_absence_changes_nothing(self, judge, new_id):
        history = [shows("m-1", 0, 480), *still("m-1", 1, 40)]
        steps(judge, history[:10])
        self.declared(judge, 9, 80)
        again = Judge({"m-1": RULE}, episodes=[], new_id=new_id, absences=judge.absences)
        again.replay(history, anchors_of(reading.at for reading in history))
        assert steps(again, still("m-1", 41, 79)) == []

    def test_quiet_hours_hold_back_all_but_a_day_without_use(self, judge):
        self.declared(judge, 0, 24 * 30, daily=Daily(start="00:00", end="23:59"))
        found = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 30)])
        assert told(found)[0] == (OPENED, "red", "open")
        assert found[0].evidence["reason"] == "day"


class TestOtherKinds:
    def test_a_leak_is_told_with_its_size_and_ends(self, judge):
        leaking = [shows("m-1", hour, 500 + 4 * hour) for hour in range(30)]
        dry = still("m-1", 30, 36, 616)
        opened, cleared = steps(judge, leaking + dry, Kind.LEAK)
        assert (opened.level, opened.evidence["leak_ml_h"]) == (Level.YELLOW, 4000)
        assert "about 4 L an hour" in opened.text["en"]
        assert cleared.id == opened.id

    def test_a_meter_that_gives_no_value_is_told_and_told_back(self, judge):
        readings = [shows("m-1", 0, 500), *[silent("m-1", i / 4) for i in range(1, 20)], shows("m-1", 6, 510)]
        opened, cleared = steps(judge, readings, Kind.METER_SILENT)
        assert opened.since == instant(at(0.25).wall_ms)
        assert opened.evidence["silent_h"] >= 3
        assert (cleared.id, cleared.transition) == (opened.id, CLEARED)

    def test_a_bus_that_fails_is_one_alert_that_names_its_meters_and_the_single_ones_still_come(self, new_id):
        meters = [f"m-{i}" for i in range(1, 6)]
        judge = Judge(dict.fromkeys(meters, RULE), episodes=[], new_id=new_id)
        readings = [shows(meter, i / 12, 500) for i in range(13) for meter in meters]
        readings += [silent(meter, i / 12) for i in range(13, 80) for meter in meters]
        found = [step for reading in readings for step in judge.feed(reading).steps]
        (bus,) = [step for step in found if step.kind is Kind.BUS_FAULT]
        assert (bus.meter, bus.evidence["bus"], bus.evidence["meters"]) == (None, "bus", meters)
        singles = [step for step in found if step.kind is Kind.METER_SILENT]
        assert {step.meter for step in singles} == set(meters)
        assert all(step.evidence["suspicion"]["kind"] == "bus_fault" for step in singles)
        back = [step for meter in meters for step in judge.feed(shows(meter, 7, 500)).steps]
        assert {step.kind for step in back if step.transition == CLEARED} == {Kind.BUS_FAULT, Kind.METER_SILENT}
        assert judge.orphans(at(8)) == []

    def test_a_standing_bus_fault_survives_a_restart_and_ends_with_its_bus(self, new_id):
        fault = AlertBody(
            id=new_id(),
            kind=Kind.BUS_FAULT,
            state=AlertState.OPEN,
            level=Level.YELLOW,
            since=instant(0),
            at=instant(0),
            historical=False,
            evidence={"bus": "bus", "meters": ["m-1"]},
        )
        assert Judge({"m-1": RULE}, episodes=[fault], new_id=new_id).orphans(at(1)) == []
        elsewhere = {"m-1": msgspec.structs.replace(RULE, bus="other")}
        assert len(Judge(elsewhere, episodes=[fault], new_id=new_id).orphans(at(1))) == 1

    def test_a_meter_that_says_that_water_flows_back_is_told_of(self, judge):
        flagged = [shows("m-1", hour, 500 - hour, flags=("reverse_flow",)) for hour in range(1, 3)]
        opened, cleared = steps(
            judge, [shows("m-1", 0, 500), *flagged, shows("m-1", 3, 498), shows("m-1", 4, 520)], Kind.REVERSE_FLOW
        )
        assert (opened.evidence["flags"], opened.evidence["register_to_ml"]) == (["reverse_flow"], 499_000)
        assert cleared.id == opened.id


class TestWhatTheCountySays:
    def test_a_visit_that_found_all_well_does_not_mute_the_next_day(self, judge):
        found = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 20)])
        judge.note(judge.noted(found[0].id, {"result": "fine"}))
        later = steps(judge, still("m-1", 21, 100))
        assert [step.transition for step in later] == [REMINDED] * 3
        assert "visited, all well" in later[0].text["en"]

    def test_a_replay_on_another_axis_does_not_stop_the_reminders(self, judge):
        ahead = [shows("m-1", 9000, 480), *still("m-1", 9001, 9018)]
        steps(judge, ahead)
        history = [shows("m-1", 0, 480), *still("m-1", 1, 18)]
        judge.replay(history, anchors_of(reading.at for reading in history))
        assert REMINDED in [step.transition for step in steps(judge, still("m-1", 19, 26))]


class TestBugs:
    def test_a_bug_in_judging_one_home_stops_no_other(self, judge, monkeypatch, caplog):
        def fail(*_):
            raise ValueError("time or usage that cannot be")

        steps(judge, [shows("m-1", 0, 480), shows("m-2", 0, 480)])
        monkeypatch.setattr(judge._past.watches["m-1"], "feed", fail)
        verdict = judge.feed(shows("m-1", 1, 480))
        assert verdict.reading == shows("m-1", 1, 480)
        assert "judging_failed meter=m-1" in caplog.text
        found = steps(
            judge,
            [reading for hour in range(2, 16) for reading in (*still("m-1", hour, hour), shows("m-2", hour, 480))],
        )
        assert {step.meter for step in found} == {"m-1", "m-2"}

    def test_a_clock_that_was_hours_ahead_and_was_set_right_ends_no_start(self, new_id):
        """Hourly values that lie after the first reading on the axis are not fed before it."""
        ahead = [
            msgspec.structs.replace(
                shows("m-1", hour, 500), at=msgspec.structs.replace(at(hour), wall_ms=at(hour + 8).wall_ms)
            )
            for hour in range(40)
        ]
        right = still("m-1", 40, 60)
        history = [*ahead, *right]
        judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
        judge.replay(history, anchors_of(reading.at for reading in history))
        assert [step.transition for step in steps(judge, still("m-1", 61, 62))] == [OPENED]


class TestReasonCodes:
    def test_a_value_that_cannot_be_is_held_marked_and_judged_again_after_a_restart(self, judge, new_id):
        readings = [*still("m-1", 0, 11), shows("m-1", 11.1, 90_000), shows("m-1", 11.2, 500)]
        verdicts = [judge.feed(reading) for reading in readings]
        held, back = verdicts[-2].reading, verdicts[-1].reading
        assert (held.quality, held.flags, held.volume_ml) == (Quality.SUSPECT, ("held",), 90_000_000)
        assert (back.quality, back.flags) == (Quality.OK, ("returned",))
        again = Judge({"m-1": RULE, "m-2": RULE}, episodes=[], new_id=new_id)
        history = [verdict.reading for verdict in verdicts]
        again.replay(history, anchors_of(reading.at for reading in history))
        for each in (judge, again):
            assert [step.transition for step in steps(each, still("m-1", 12, 13))] == [OPENED]

    def test_a_meter_whose_steps_are_too_coarse_is_said_once(self, new_id, caplog):
        judge = Judge({"m-1": msgspec.structs.replace(RULE, step_ml=100_000)}, episodes=[], new_id=new_id)
        steps(judge, still("m-1", 0, 5))
        assert [record.message for record in caplog.records if "register_too_coarse" in record.message] != []
        assert len(caplog.records) == 1

    def test_evidence_never_names_a_register_that_no_meter_showed(self, judge):
        before = [shows("m-1", 0, 480), *still("m-1", 1, 6)]
        swapped = [shows("m-1", 6 + i / 12, 90_000) for i in range(1, 4)]
        opened = steps(judge, [*before, *swapped, *still("m-1", 7, 14, 90_000)])[0]
        assert (opened.evidence["register_from_ml"], opened.evidence["register_to_ml"]) == (None, 90_000_000)

    def test_a_reminder_after_a_swap_speaks_of_the_silence_before_it(self, judge):
        before = [shows("m-1", 0, 480), *still("m-1", 1, 17)]
        found = steps(judge, [*before, *still("m-1", 20, 30, 90_000)])
        assert [step.transition for step in found] == [OPENED, ESCALATED, REMINDED, REMINDED]
        assert found[-1].evidence["silent_h"] == found[1].evidence["silent_h"] == 16

    @pytest.mark.parametrize("step", [65.5, 300])
    def test_a_leap_that_the_next_reading_takes_back_ends_no_silence(self, judge, step):
        litres = 500
        found = steps(judge, [shows("m-1", 0, 480), *[shows("m-1", i / 12, litres) for i in range(1, 12 * 18)]])
        assert told(found)[-1] == (ESCALATED, "red", "escalated")
        leap = [shows("m-1", 18, litres + step), shows("m-1", 18.1, litres), shows("m-1", 18.2, litres)]
        verdicts = [judge.feed(reading) for reading in leap]
        assert [verdict.steps for verdict in verdicts] == [(), (), ()]
        assert [verdict.reading.flags for verdict in verdicts] == [(), ("returned",), ()]
        assert judge._past.watches["m-1"].limit.silent_min > 17 * 60

    def test_a_leap_that_the_next_reading_confirms_is_use_at_its_own_time(self, judge):
        steps(judge, [shows("m-1", 0, 480), *[shows("m-1", i / 12, 500) for i in range(1, 12 * 18)]])
        found = steps(judge, [shows("m-1", 18, 560), shows("m-1", 18.1, 561)])
        assert told(found) == [(CLEARED, "red", "cleared"), (OPENED, "yellow", "open")]
        assert judge._past.watches["m-1"].limit.silent_min <= 6


# -- a restart anywhere changes nothing ------------------------------------------------------------------------------


def a_month(seed):
    """Readings of two homes over 25 days at half an hour, with silences, leaks, gaps and odd values."""
    chance, readings = random.Random(seed), []
    litres, leak, silent_until = {"m-1": 480.0, "m-2": 90.0}, {"m-1": 0.0, "m-2": 0.0}, {"m-1": 0.0, "m-2": 0.0}
    for i in range(25 * 48):
        hour = i / 2
        for meter in ("m-1", "m-2"):
            if chance.random() < 0.003:
                leak[meter] = chance.choice((0, 0, 2, 5))
            if chance.random() < 0.004:
                silent_until[meter] = hour + chance.choice((14, 20, 30))
            litres[meter] += leak[meter] / 2
            if hour >= silent_until[meter] and hour % 24 > 7 and chance.random() < 0.3:
                litres[meter] += chance.choice((1, 6, 12, 40))
            odd = chance.random()
            if odd < 0.03:
                readings.append(silent(meter, hour))
            elif odd < 0.035:
                readings.append(shows(meter, hour, int(litres[meter]) + 70_000))
            else:
                readings.append(shows(meter, hour, int(litres[meter]) - (odd > 0.98)))
    return readings


@pytest.mark.parametrize("seed", range(4))
def test_a_restart_from_three_days_of_readings_and_what_was_kept_changes_no_step(seed):
    """The store keeps three days of readings; what took weeks to learn was kept some hours before the restart."""
    chance = random.Random(seed)
    readings = a_month(seed)

    def fresh(episodes):
        return Judge({"m-1": RULE, "m-2": RULE}, episodes=episodes, new_id=lambda: "01ARZ3NDEKTSV4RRFFQ69G0000")

    whole = fresh([])
    expected = [step for reading in readings for step in whole.feed(reading).steps]
    cuts = sorted(chance.sample(range(15 * 96, len(readings)), 5))
    judge, found, episodes, kept, fed, last_cut = fresh([]), [], {}, {}, [], 0
    for i, reading in enumerate(readings):
        if i in cuts:
            judge = fresh(list(episodes.values()))
            history = fed[-3 * 96 :]
            judge.replay(history, anchors_of(one.at for one in history), kept)
            last_cut = i
        verdict = judge.feed(reading)
        fed.append(verdict.reading)
        for step in verdict.steps:
            found.append(step)
            key = step.kind, step.meter
            episodes[key] = step
            if step.state is AlertState.CLEARED:
                del episodes[key]
        if i % 40 == 0 or i == last_cut:
            kept = {one.meter: one for one in judge.learned(["m-1", "m-2", VILLAGE])}
    reminders = [step for step in expected if step.transition != REMINDED]
    assert told(step for step in found if step.transition != REMINDED) == told(reminders)
    assert [step.at for step in found if step.transition != REMINDED] == [step.at for step in reminders]
    assert len(reminders) > 20
    assert judge._past.watches["m-1"].dump() == whole._past.watches["m-1"].dump()
