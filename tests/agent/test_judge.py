"""From readings to alert steps: one episode, its evidence, and what must not raise anything."""

import msgspec
import pytest
from readings import at, shows, silent

from agent.detection.window import LOW, LowUsage
from agent.judge import JITTER_ML, Judge, Rule
from agent.timeline import anchors_of
from protocols.contract import AlertState, Kind, Level, instant
from protocols.reading import ClockTrust

RULE = Rule(window_ms=12 * 3_600_000, threshold_ml=100_000)


@pytest.fixture
def judge(new_id):
    return Judge({"m-1": RULE, "m-2": RULE}, episodes=[], new_id=new_id)


def steps(judge, readings):
    return [step for reading in readings for step in judge.feed(reading)]


def test_one_alert_per_episode_and_the_same_id_when_it_ends(judge):
    still = [shows("m-1", hour, 500) for hour in range(30)]
    running = [shows("m-1", 30 + hour, 500 + 60 * hour) for hour in range(1, 5)]
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
    (cleared,) = steps(restarted, [shows("m-1", 15, 700)])
    assert (cleared.state, cleared.id) == (AlertState.CLEARED, opened[0].id)


def test_off_for_14_hours_the_first_reading_after_the_start_decides(judge, new_id):
    before = [shows("m-1", hour, 500 + hour) for hour in range(3)]
    judge.replay(before, anchors_of(reading.at for reading in before))
    after = shows("m-1", 16, 503)
    assert [step.state for step in judge.feed(after)] == [AlertState.OPEN]


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
    assert judge._past.low_usage["m-1"].window.__dict__ == fresh._past.low_usage["m-1"].window.__dict__


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
    assert [step.state for step in judge.feed(after)] == [AlertState.OPEN]


def test_a_step_back_of_just_the_jitter_wavers_and_one_more_is_another_register():
    for back_ml, verdict_low in ((JITTER_ML, True), (JITTER_ML + 1, False)):
        rule = LowUsage(RULE.window_ms, RULE.threshold_ml, JITTER_ML)
        rule.feed(0, 500_000)
        assert (rule.feed(13 * 3_600_000, 500_000 - back_ml) == LOW) is verdict_low


def test_the_episode_of_a_meter_that_is_no_longer_configured_ends(judge, new_id):
    (opened,) = steps(judge, [shows("m-1", hour, 500) for hour in range(14)])
    smaller = Judge({"m-2": RULE}, episodes=[opened], new_id=new_id)
    (cleared,) = smaller.orphans(at(15))
    assert (cleared.id, cleared.state, cleared.at) == (opened.id, AlertState.CLEARED, instant(at(15).wall_ms))
    assert "no longer" in cleared.evidence["reason"]
    assert smaller.orphans(at(15)) == []
