"""From readings to alert steps: one episode, its evidence, and what must not raise anything."""

import itertools
import random

import msgspec
import pytest
from partners.episodes import episode_id
from readings import at, shows, silent

from agent.absences import Absences
from agent.alerts import is_made_before_red
from agent.judge import Judge, Rule
from agent.past import VILLAGE
from agent.timeline import anchors_of
from protocols.absence import Absence
from protocols.contract import AlertBody, AlertState, Daily, Ending, Kind, Level, instant, wall_ms
from protocols.reading import ClockTrust, Quality
from protocols.ulid import ulid

SYNCED, UNSYNCED = ClockTrust.SYNCED, ClockTrust.UNSYNCED
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


def rebooted(reading, *, at_h, trust=UNSYNCED, lag_h=0.0, boot="boot-2"):
    """The same reading in a boot that began at hour `at_h`, by a clock that lags."""
    before = reading.at
    moment = msgspec.structs.replace(
        before,
        wall_ms=before.wall_ms - round(lag_h * 3_600_000),
        trust=trust,
        boot_id=boot,
        boottime_ms=before.boottime_ms - round(at_h * 3_600_000) + 60_000,
    )
    return msgspec.structs.replace(reading, at=moment)


def synced_at_last(judge, history, reading):
    """Feed a reading that dates its boot, as the pipeline does: everything is judged anew first."""
    assert judge.wants_replay(reading.at)
    judge.replay(history, anchors_of(one.at for one in (*history, reading)))
    return judge.feed(reading)


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
    def declared(self, judge, first_h, last_h, *, daily=None, declared_h=None):
        absence = Absence(
            id=f"01ARZ3NDEKTSV4RRFFQ69{'Q' if daily else 'G'}{round(first_h):04d}",
            meter="m-1",
            start_ms=at(first_h).wall_ms,
            until_ms=at(last_h).wall_ms,
            declared_ms=at(first_h if declared_h is None else declared_h).wall_ms,
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

    @pytest.mark.parametrize("every_h", [1 / 12, 1])
    def test_use_before_the_declaration_does_not_end_it(self, judge, every_h):
        """Who is about to leave washes up, then tells somebody: the next reading shows the water."""
        steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 5)])
        self.declared(judge, 5.04, 80)
        assert judge.feed(shows("m-1", 5 + every_h, 512)).ended == ()
        assert steps(judge, still("m-1", 7, 60, 512)) == []
        (ended,) = judge.feed(shows("m-1", 61, 520)).ended
        assert (ended.ended_by, ended.ended_ms) == (Ending.USE, at(61).wall_ms)

    def test_use_that_a_long_gap_hid_ends_it_although_the_gap_began_before(self, judge):
        """Three days without a value: the water may have run on any of them, and somebody may be back."""
        steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 5)])
        self.declared(judge, 5.04, 800)
        (ended,) = judge.feed(shows("m-1", 77, 512)).ended
        assert ended.ended_by is Ending.USE

    @pytest.mark.parametrize("lag_h", [0.2, 29.5, 400_000.0], ids=["a little", "to before it began", "1981"])
    @pytest.mark.parametrize("first_use", [0, 3])
    def test_use_while_the_clock_is_not_synced_ends_it_for_good(self, judge, lag_h, first_use):
        """A reboot without the time, somebody comes home, the clock is synced, and then that person falls."""
        history = [shows("m-1", 0, 480), shows("m-1", 1, 500)]
        for reading in history:
            judge.feed(reading)
        absence = self.declared(judge, 2, 24 * 60)
        history += still("m-1", 3, 29)
        assert steps(judge, history[2:]) == []
        used = [500 + 30 * max(0, i - first_use + 1) for i in range(10)]
        blind = [rebooted(shows("m-1", 30 + i, used[i]), at_h=30, lag_h=lag_h) for i in range(10)]
        ended = [one for reading in blind for one in judge.feed(reading).ended]
        assert [(one.id, one.ended_by, one.ended_ms) for one in ended] == [
            (absence.id, Ending.USE, at(29).wall_ms)  # the last time that is known for certain
        ]
        after = [rebooted(reading, at_h=30, trust=SYNCED) for reading in still("m-1", 40, 70, used[-1])]
        found = [*synced_at_last(judge, history + blind, after[0]).steps, *steps(judge, after[1:])]
        assert (ESCALATED, "red", "escalated") in told(found)

    def test_use_while_the_clock_is_not_synced_ends_nothing_that_is_to_come(self, judge):
        steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 20)])
        self.declared(judge, 100, 200, declared_h=20)
        blind = [rebooted(shows("m-1", 21 + i, 530 + 30 * i), at_h=21, lag_h=0.2) for i in range(5)]
        assert [judge.feed(reading).ended for reading in blind] == [()] * 5
        set_by_hand = rebooted(shows("m-1", 26, 650), at_h=21, lag_h=-84)
        assert judge.feed(set_by_hand).ended == (), "its clock dates no use"

    @pytest.mark.parametrize("is_restarted", [False, True])
    @pytest.mark.parametrize(
        ("start_h", "synced_boot", "ends"),
        [(40, "boot-2", True), (46, "boot-2", True), (46.5, "boot-2", False), (46.5, "boot-3", True)],
        ids=["before all use", "before the last use", "after all use", "nobody knows"],
    )
    def test_use_that_is_dated_later_ends_what_had_begun(self, new_id, is_restarted, start_h, synced_boot, ends):
        """Somebody is at home from hour 42 to 47; the clock lags 12 h until 50. After 47 that person has fallen.

        Where the clock of that boot never was synced, the water may have run at any time before the next one began.
        """
        judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
        history = [shows("m-1", 0, 480), *still("m-1", 1, 29)]
        steps(judge, history[:3])
        absence = self.declared(judge, start_h, 24 * 60, declared_h=2)
        found = steps(judge, history[3:])
        blind = [rebooted(shows("m-1", h, 500 + 30 * (min(h, 47) - 41)), at_h=41, lag_h=12) for h in range(42, 50)]
        verdicts = [judge.feed(reading) for reading in blind]
        assert [verdict.ended for verdict in verdicts] == [()] * len(blind)
        found += [step for verdict in verdicts for step in verdict.steps]
        began_h = 41 if synced_boot == "boot-2" else 49.9
        after = [rebooted(one, at_h=began_h, trust=SYNCED, boot=synced_boot) for one in still("m-1", 50, 72, 680)]
        history += blind
        if is_restarted:
            open_steps = list(judge._episodes.values())
            judge = Judge({"m-1": RULE}, episodes=open_steps, new_id=new_id, absences=judge.absences)
            judge.replay(history, anchors_of(one.at for one in history))
        if judge.wants_replay(after[0].at):
            judge.replay(history, anchors_of(one.at for one in (*history, after[0])))
        verdicts = [judge.feed(reading) for reading in after]
        found += [step for verdict in verdicts for step in verdict.steps]
        ended = [(one.id, one.ended_by) for verdict in verdicts for one in verdict.ended]
        assert ended == ([(absence.id, Ending.USE)] if ends else [])
        assert [one.ended for one in verdicts[1:]] == [()] * (len(after) - 1)
        is_red = any(step.level is Level.RED and wall_ms(step.at) > at(50).wall_ms for step in found)
        assert is_red is ends

    def test_use_that_is_dated_later_is_told_though_the_meter_has_no_value_then(self, judge):
        steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 20)])
        absence = self.declared(judge, 30, 24 * 60, declared_h=20)
        blind = [rebooted(shows("m-1", hour, 500 + hour), at_h=31, lag_h=20) for hour in (32, 33)]
        assert [judge.feed(reading).ended for reading in blind] == [(), ()]
        (ended,) = judge.feed(rebooted(silent("m-1", 34), at_h=31, trust=SYNCED)).ended
        assert (ended.id, ended.ended_ms) == (absence.id, at(33).wall_ms)

    @pytest.mark.parametrize(("is_dated", "ahead_h"), [(False, 0), (False, 3), (True, 3)])
    def test_use_that_is_dated_ends_nothing_that_is_declared_after_it(self, judge, is_dated, ahead_h):
        """Nor when the synced clock is set right a little later."""
        steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 20)])
        blind = [rebooted(shows("m-1", hour, 500 + hour), at_h=21, lag_h=0.2) for hour in (22, 23)]
        blind.append(rebooted(shows("m-1", 24, 550 if is_dated else 523), at_h=21, trust=SYNCED))
        steps(judge, blind)
        self.declared(judge, 24.5, 24 * 60)
        after = still("m-1", 25, 60, 550 if is_dated else 523)
        after = [rebooted(one, at_h=21, trust=SYNCED, lag_h=-ahead_h) for one in after]
        assert [judge.feed(reading).ended for reading in after] == [()] * len(after)

    @pytest.mark.parametrize("lag_h", [0.2, -9000.0, 400_000.0], ids=["a little", "a year ahead", "1981"])
    def test_who_says_without_a_synced_clock_that_somebody_is_back_unsays_no_absence(self, judge, lag_h):
        history = [shows("m-1", 0, 480), shows("m-1", 1, 500)]
        for reading in history:
            judge.feed(reading)
        self.declared(judge, 2, 24 * 60)
        history += still("m-1", 3, 29)
        steps(judge, history[2:])
        blind = [rebooted(reading, at_h=30, lag_h=lag_h) for reading in still("m-1", 30, 31)]
        assert steps(judge, blind) == []
        asked = rebooted(shows("m-1", 31.2, 500), at_h=30, lag_h=lag_h).at
        ended = judge.absences.end("m-1", asked.wall_ms, by=Ending.COMMAND, is_dated=False)
        assert (ended.ended_by, ended.ended_ms) == (Ending.COMMAND, at(29).wall_ms)
        after = [rebooted(reading, at_h=30, trust=SYNCED) for reading in still("m-1", 32, 60)]
        found = [*synced_at_last(judge, history + blind, after[0]).steps, *steps(judge, after[1:])]
        assert told(found)[:2] == [(OPENED, "yellow", "open"), (ESCALATED, "red", "escalated")]
        assert found[0].at == instant(at(42).wall_ms)  # 12 h after the first reading at which nobody was away
        assert found[1].evidence["silent_since"] == instant(at(30).wall_ms)

    def test_who_says_that_somebody_is_back_begins_the_silence_there(self, judge):
        steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 5)])
        self.declared(judge, 5, 800)
        assert steps(judge, still("m-1", 6, 60)) == []
        assert judge.absences.end("m-1", at(60.5).wall_ms, by=Ending.COMMAND) is not None
        found = steps(judge, still("m-1", 61, 80))
        assert told(found) == [(OPENED, "yellow", "open"), (ESCALATED, "red", "escalated")]
        assert [step.at for step in found] == [instant(at(61 + hours).wall_ms) for hours in (12, 16)]

    def test_a_leak_in_an_empty_home_is_told_and_ends_no_absence_but_a_person_does(self, judge):
        """30 hours of a known leak of 4 L/h, then nobody is at home: only the leak goes on."""
        litres = [500 + 4 * hour for hour in range(200)]
        steps(judge, [shows("m-1", hour, litres[hour]) for hour in range(20)])
        verdicts = [judge.feed(shows("m-1", hour, litres[hour])) for hour in range(20, 40)]
        absence = self.declared(judge, 39, 300)
        verdicts += [judge.feed(shows("m-1", hour, litres[hour])) for hour in range(40, 120)]
        kinds = [(step.kind, str(step.transition)) for verdict in verdicts for step in verdict.steps]
        assert (Kind.LEAK, OPENED) in kinds
        assert all(verdict.ended == () for verdict in verdicts)
        assert [step for verdict in verdicts[20:] for step in verdict.steps if step.transition == OPENED] == []
        (ended,) = judge.feed(shows("m-1", 120, litres[120] + 25)).ended
        assert (ended.id, ended.ended_by) == (absence.id, Ending.USE)
        later = steps(judge, [shows("m-1", hour, litres[hour] + 25) for hour in range(121, 140)])
        assert (ESCALATED, "red", "escalated") in told(later), "the leak does not hide a fall after the return"

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

    def test_what_quiet_hours_held_back_is_told_when_they_are_over(self, judge):
        """Hour 0 is 22:13 in Shanghai: the limit is reached at 15:13, within them, and they end at 18:00."""
        self.declared(judge, 0, 24 * 30, daily=Daily(start="10:00", end="18:00"))
        found = steps(judge, [shows("m-1", 0, 480), shows("m-1", 1, 500), *still("m-1", 2, 30)])
        assert told(found)[0] == (OPENED, "red", "open")
        assert found[0].at == instant(at(20).wall_ms)
        assert REMINDED in [step.transition for step in found]

    def test_without_a_synced_clock_quiet_hours_hold_nothing_back(self, judge):
        """Nobody knows what hour of day it is; a fall must not wait for the 24 h because of that."""
        self.declared(judge, -24, 24 * 30, daily=Daily(start="00:00", end="23:59"))
        blind = [rebooted(one, at_h=0) for one in [shows("m-1", 0, 480), shows("m-1", 1, 500), *still("m-1", 2, 20)]]
        found = steps(judge, blind)
        assert told(found) == [(OPENED, "yellow", "open"), (ESCALATED, "red", "escalated")]
        assert found[-1].evidence["reason"] == "limit"

    def test_quiet_hours_outlast_an_absence_and_its_end(self, judge):
        self.declared(judge, 0, 24 * 30, daily=Daily(start="00:00", end="23:59"))
        steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 5)])
        self.declared(judge, 5, 800)
        assert steps(judge, still("m-1", 6, 60)) == []
        (ended,) = judge.feed(shows("m-1", 61, 530)).ended
        assert ended.daily is None
        found = steps(judge, still("m-1", 62, 90, 530))
        assert [step.evidence["reason"] for step in found][:1] == ["day"]


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

    @pytest.mark.parametrize("said", [{"acknowledged_at": instant(0)}, {"visited_at": instant(0), "result": "fine"}])
    def test_what_was_said_of_a_yellow_alert_is_not_said_of_the_red_one(self, judge, said):
        """All was well with somebody who had used little; that this person has now used nothing is news."""
        (opened,) = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 13)])
        judge.note(judge.noted(opened.id, said))
        found = steps(judge, still("m-1", 14, 30))
        assert told(found)[:3] == [(ESCALATED, "red", "escalated"), *[(REMINDED, "red", "escalated")] * 2]
        assert [step.at for step in found[:3]] == [instant(at(17 + hours).wall_ms) for hours in (0, 6, 12)]
        for step in found:
            assert "visited" not in step.text["en"]
            assert "county" not in step.evidence
            assert step.evidence["county_before"] == said
        judge.note(judge.noted(opened.id, {"result": "helped"}))
        cleared = steps(judge, [shows("m-1", 31, 528)])[0]
        assert cleared.evidence["county"] == {"result": "helped"}
        assert cleared.evidence["county_before"] == said
        assert "visited, helped" in cleared.text["en"]

    def test_a_silence_in_which_somebody_was_helped_is_not_learned_where_what_was_learned_is_lost(self, judge, new_id):
        history = [shows("m-1", 0, 480), *still("m-1", 1, 18)]
        (*_, red) = steps(judge, history)
        for said, is_learned in (({"result": "fine"}, True), ({"result": "helped"}, False)):
            again = Judge({"m-1": RULE}, episodes=[judge.noted(red.id, said)], new_id=new_id)
            again.replay(history, anchors_of(reading.at for reading in history))
            before = sum(again._past.watches["m-1"].limit._counts)
            again.feed(shows("m-1", 19, 520))
            assert (sum(again._past.watches["m-1"].limit._counts) > before) is is_learned

    @pytest.mark.parametrize("helped_h", [13, 18], ids=["in yellow", "in red"])
    @pytest.mark.parametrize("is_used_since", [False, True])
    def test_a_restart_forgets_neither_the_silence_in_which_somebody_was_helped_nor_the_next_one(
        self, judge, new_id, helped_h, is_used_since
    ):
        """A little water ends the silence, and no yellow alert: what comes after it is learned as ever."""
        history = [shows("m-1", 0, 480), *still("m-1", 1, helped_h)]
        (*_, newest) = steps(judge, history)
        judge.note(judge.noted(newest.id, {"result": "helped"}))
        kept = {one.meter: one for one in judge.learned(["m-1"])}
        more = still("m-1", helped_h + 1, helped_h + 3, 506 if is_used_since else 500)
        history += more
        steps(judge, more)
        again = Judge({"m-1": RULE}, episodes=judge._episodes.values(), new_id=new_id)
        again.replay(history, anchors_of(reading.at for reading in history), kept)
        before = [sum(one._past.watches["m-1"].limit._counts) for one in (judge, again)]
        for one in (judge, again):
            one.feed(shows("m-1", helped_h + 8, 530))
        after = [sum(one._past.watches["m-1"].limit._counts) for one in (judge, again)]
        assert [later > sooner for sooner, later in zip(before, after, strict=True)] == [is_used_since] * 2

    @pytest.mark.parametrize("is_late", [False, True], ids=["in time", "after the escalation"])
    @pytest.mark.parametrize("restart_h", [13.9, 14, 20], ids=["at once", "in yellow", "in red"])
    @pytest.mark.parametrize("used_h", [None, 13.5, 15], ids=["still", "used before", "used since"])
    def test_a_silence_in_which_somebody_was_helped_in_yellow_is_known_without_what_was_learned(
        self, judge, new_id, restart_h, used_h, is_late
    ):
        """The stored readings tell which silence that was: not the one before, and not one that began since."""
        said_h = min(19, restart_h) - 0.5 if is_late else 13.8
        hours = sorted({*range(1, round(restart_h) + 15), *([used_h] if used_h else [])})
        history, lived = [shows("m-1", -1, 470), shows("m-1", 0, 480)], [judge]
        steps(judge, history)
        for hour in hours:
            if hour > said_h and len(lived) == 1 and hour - 1 <= said_h:
                alert = judge._episodes[Kind.LOW_USAGE, "m-1"]
                said = {"visited_at": instant(at(said_h).wall_ms), "result": "helped"}
                judge.note(judge.noted(alert.id, said, command_id=ulid(at(13.8).wall_ms, random=1)))
            if hour > restart_h and len(lived) == 1:
                again = Judge({"m-1": RULE, "m-2": RULE}, episodes=judge._episodes.values(), new_id=new_id)
                again.replay(history, anchors_of(reading.at for reading in history))
                lived.append(again)
            reading = shows("m-1", hour, 506 if used_h and hour >= used_h else 500)
            history.append(reading)
            for one in lived:
                one.feed(reading)
        learns = [one._past.watches["m-1"].limit._learns for one in lived]
        since = used_h is not None and used_h > said_h
        assert learns == [since] * 2

    def test_what_is_said_later_of_the_alert_marks_no_later_silence(self, judge):
        (opened,) = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 13)])
        said = {"visited_at": instant(at(13).wall_ms), "result": "helped"}
        judge.note(judge.noted(opened.id, said))
        steps(judge, [shows("m-1", 14, 506), shows("m-1", 15, 506)])
        judge.note(judge.noted(opened.id, {"acknowledged_at": instant(at(15).wall_ms)}))
        assert judge._past.watches["m-1"].limit._learns

    @pytest.mark.parametrize(("made_h", "reminders"), [(16.9, [23, 29, 35, 41]), (17, [41]), (17.1, [41])])
    @pytest.mark.parametrize("is_restarted", [False, True])
    def test_what_was_said_before_it_turned_red_is_no_answer_however_late_it_comes(
        self, judge, new_id, made_h, reminders, is_restarted
    ):
        found = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 18)])
        assert found[-1].evidence["escalated_at"] == instant(at(17).wall_ms)
        if is_restarted:
            history = [shows("m-1", 0, 480), *still("m-1", 1, 18)]
            judge = Judge({"m-1": RULE}, episodes=[found[-1]], new_id=new_id)
            judge.replay(history, anchors_of(reading.at for reading in history))
        said = {"acknowledged_at": instant(at(18.5).wall_ms)}
        alert = judge.noted(found[-1].id, said, command_id=ulid(at(made_h).wall_ms, random=1))
        judge.note(alert)
        is_early = made_h < 17
        assert is_made_before_red(alert, ulid(at(made_h).wall_ms, random=1)) is is_early
        later = steps(judge, still("m-1", 19, 41))
        assert [step.at for step in later] == [instant(at(hour).wall_ms) for hour in reminders]
        for step in later:
            assert step.evidence["county_before" if is_early else "county"] == said
            assert ("county" in step.evidence) is not is_early
            assert step.evidence["escalated_at"] == instant(at(17).wall_ms)

    def test_where_no_synced_clock_dates_the_escalation_what_is_said_counts(self, judge):
        blind = [rebooted(one, at_h=0, lag_h=-9000) for one in [shows("m-1", 0, 480), *still("m-1", 1, 18)]]
        found = steps(judge, blind)
        assert told(found)[-1] == (ESCALATED, "red", "escalated")
        assert "escalated_at" not in found[-1].evidence
        said = judge.noted(found[-1].id, {"result": "fine"}, command_id=ulid(at(18).wall_ms, random=1))
        assert said.evidence["county"] == {"result": "fine"}

    def test_a_replay_on_another_axis_does_not_stop_the_reminders(self, judge):
        ahead = [shows("m-1", 9000, 480), *still("m-1", 9001, 9018)]
        steps(judge, ahead)
        history = [shows("m-1", 0, 480), *still("m-1", 1, 18)]
        judge.replay(history, anchors_of(reading.at for reading in history))
        assert REMINDED in [step.transition for step in steps(judge, still("m-1", 19, 26))]


class TestRemindersAfterARestart:
    """The stored reading with which it was told says when that was, on any clock."""

    def lived(self, new_id, *, restart_h, says=None, reboots=False, last_h=140):
        """Hours at which a silence is told of, where the gateway starts again every so many hours."""
        judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
        history, found, episode = [], [], {}
        for hour in range(last_h):
            boot = hour // restart_h if reboots else 0
            # Every boot begins where the one before did, and is synced an hour later.
            lag_h, trust = (400_000 + restart_h * boot, UNSYNCED) if boot and hour % restart_h == 0 else (0, SYNCED)
            reading = shows("m-1", hour, 480) if hour == 0 else shows("m-1", hour, 500)
            if hour % 7 == 3:
                reading = silent("m-1", hour)
            reading = rebooted(reading, at_h=restart_h * boot, trust=trust, lag_h=lag_h, boot=f"boot-{boot}")
            starts = hour > 0 and hour % restart_h == 0
            if starts or judge.wants_replay(reading.at):
                if starts:
                    judge = Judge({"m-1": RULE}, episodes=list(episode.values()), new_id=new_id)
                news = [] if starts else [reading]
                judge.replay(history[-72:], anchors_of(one.at for one in (*history[-72:], *news)))
            history.append(reading)
            for step in judge.feed(reading).steps:
                if step.kind is Kind.LOW_USAGE:
                    found.append((hour, step.transition))
                    episode["m-1"] = step
                if step.transition == ESCALATED and says:
                    episode["m-1"] = judge.noted(step.id, says)
                    judge.note(episode["m-1"])
        return found

    @pytest.mark.parametrize("restart_h", [1, 4, 6, 24])
    @pytest.mark.parametrize("says", [None, {"acknowledged_at": instant(0)}], ids=["unseen", "acknowledged"])
    def test_they_come_as_if_nothing_had_happened(self, new_id, restart_h, says):
        expected = self.lived(new_id, restart_h=1000, says=says)
        assert [step for _, step in expected].count(REMINDED) == (5 if says else 20)
        assert self.lived(new_id, restart_h=restart_h, says=says) == expected

    @pytest.mark.parametrize("says", [None, {"acknowledged_at": instant(0)}], ids=["unseen", "acknowledged"])
    def test_power_cuts_after_which_the_clock_begins_anew_neither_repeat_nor_lose_them(self, new_id, says):
        """Nobody knows for how long the power was off, so they may come late; never sooner, and never not at all."""
        hours = [hour for hour, step in self.lived(new_id, restart_h=5, says=says, reboots=True) if step == REMINDED]
        period_h = 24 if says else 6
        assert all(period_h <= later - sooner <= period_h + 7 for sooner, later in itertools.pairwise(hours))
        assert len(hours) >= (4 if says else 12)

    def test_one_that_was_told_before_all_readings_that_are_left_is_due(self, new_id):
        judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
        (*_, red) = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 18)])
        again = Judge({"m-1": RULE}, episodes=[red], new_id=new_id)
        left = still("m-1", 30, 40)
        again.replay(left, anchors_of(one.at for one in left))
        assert told(steps(again, still("m-1", 41, 46))) == [(REMINDED, "red", "escalated")]

    def test_where_no_reading_is_left_the_hours_begin_anew(self, new_id):
        judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
        (*_, red) = steps(judge, [shows("m-1", 0, 480), *still("m-1", 1, 18)])
        again = Judge({"m-1": RULE}, episodes=[red], new_id=new_id)
        again.replay([], {})
        assert [step.at for step in steps(again, still("m-1", 40, 47))] == [instant(at(46).wall_ms)]


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


class Lived:
    """A judge and what a store would keep for it: open episodes, absences, the newest readings, what was learned."""

    def __init__(self):
        self.numbers = itertools.count()
        self.judge = self.fresh()
        self.steps, self.ended, self.history = [], [], []
        self.episodes, self.absences, self.learned = {}, {}, {}

    def fresh(self, episodes=(), absences=()):
        rules = {"m-1": RULE, "m-2": RULE}
        absences = Absences(absences)
        return Judge(rules, episodes=episodes, new_id=lambda: episode_id(next(self.numbers)), absences=absences)

    def restart(self):
        self.judge = self.fresh(self.episodes.values(), self.absences.values())
        self.judge.replay(self.history, anchors_of(one.at for one in self.history), self.learned)
        self.keep()

    def keep(self):
        self.learned |= {one.meter: one for one in self.judge.learned(["m-1", "m-2", VILLAGE])}

    def feed(self, reading):
        verdict = self.judge.feed(reading)
        self.history = [*self.history, verdict.reading][-3 * 96 :]
        self.steps += verdict.steps
        self.ended += verdict.ended
        self.absences |= {one.id: one for one in verdict.ended}
        for step in verdict.steps:
            self.episodes[step.kind, step.meter] = step
            if step.state is AlertState.CLEARED:
                del self.episodes[step.kind, step.meter]

    def hear(self, said):
        """Somebody declares an absence or quiet hours, says that somebody is back, or sees to an alert."""
        if isinstance(said, Absence):
            _, changed = self.judge.absences.declare(said)
        elif isinstance(said, dict):
            changed = []
            for key, standing in list(self.episodes.items()):
                episode = self.judge.noted(standing.id, said)
                self.judge.note(episode)
                self.episodes[key] = episode
            self.keep()
        else:
            back = self.judge.absences.end(
                said, at(self.history[-1].at.boottime_ms / 3_600_000).wall_ms, by=Ending.COMMAND
            )
            changed = [back] if back else []
        self.absences |= {one.id: one for one in changed}


def what_people_say(chance, readings):
    """What is said after which reading, some of it soon after a restart, some before."""
    said = {}
    for number, i in enumerate(sorted(chance.sample(range(10 * 96, len(readings)), 24))):
        hour = i / 96 * 24
        absence = Absence(
            id=f"01ARZ3NDEKTSV4RRFFQ69H{number:04d}",
            meter=chance.choice(("m-1", "m-2")),
            start_ms=at(hour + chance.choice((0.1, 0.1, 9))).wall_ms,
            until_ms=at(hour + chance.choice((12, 50, 400))).wall_ms,
            declared_ms=at(hour).wall_ms,
            declared_by="village-assistant",
            daily=chance.choice((None, None, Daily(start="22:00", end="09:00"))),
        )
        noted = {"acknowledged_at": instant(0), "result": chance.choice(("fine", "helped"))}
        said[i] = chance.choice((absence, absence, noted, absence.meter))
    return said


@pytest.mark.parametrize("is_talkative", [False, True], ids=["quiet", "talkative"])
@pytest.mark.parametrize("seed", range(4))
def test_a_restart_from_three_days_of_readings_and_what_was_kept_changes_no_step(seed, is_talkative):
    """The store keeps three days of readings; what took weeks to learn was kept some hours before the restart."""
    chance = random.Random(seed)
    readings = a_month(seed)
    cuts = set(chance.sample(range(15 * 96, len(readings)), 5))
    said = what_people_say(chance, readings) if is_talkative else {}
    whole, cut = Lived(), Lived()
    for i, reading in enumerate(readings):
        if i in cuts:
            cut.restart()
        for one in (whole, cut):
            one.feed(reading)
            if i in said:
                one.hear(said[i])
            if i % 40 == 0:
                one.keep()
    assert told(cut.steps) == told(whole.steps)
    assert [step.at for step in cut.steps] == [step.at for step in whole.steps]
    assert [step.evidence.get("county") for step in cut.steps] == [step.evidence.get("county") for step in whole.steps]
    assert (cut.ended, cut.absences) == (whole.ended, whole.absences)
    assert len(whole.steps) > 20
    assert not is_talkative or Ending.USE in {one.ended_by for one in whole.absences.values()}
    assert cut.judge._past.watches["m-1"].dump() == whole.judge._past.watches["m-1"].dump()
