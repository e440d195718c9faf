"""Readings and the alerts that they cause go into a real store together, or wait; nothing is judged twice."""

import asyncio

import msgspec
import pytest
from readings import at, shows, silent
from stores import EPOCH

from agent import pipeline as pipeline_module
from agent.judge import Judge, Rule
from agent.past import VILLAGE
from agent.pipeline import Pipeline
from agent.timeline import anchors_of
from gateway.store import StoreDamaged, StoreError
from protocols.absence import Absence
from protocols.contract import Ending, Stream
from protocols.reading import ClockTrust
from protocols.ulid import ulid

RULE = Rule(window_ms=12 * 3_600_000, threshold_ml=100_000)
HOUR_MS = 3_600_000
FULL = StoreError("database or disk is full")


@pytest.fixture
def commits():
    return []


@pytest.fixture
async def pipeline(store, commits, new_id):
    judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
    line = Pipeline(store=store, judge=judge, committed=lambda: commits.append(1))
    task = asyncio.create_task(line.run())
    yield line
    await line.stop()
    await task


async def handed(pipeline, *batch):
    """Let a pipeline that is not running take one batch."""
    await pipeline.accept(batch)
    await pipeline.stop()
    await pipeline.run()


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_alert_is_committed_with_the_reading_that_caused_it(pipeline, store, commits):
    await pipeline.accept([shows("m-1", hour, 500) for hour in range(14)])
    await settle()
    assert len(commits) == 1
    (alert,) = store.store.outgoing(Stream.ALERT, 0, 10)
    (telemetry,) = store.store.outgoing(Stream.TELEMETRY, 0, 10)
    assert alert.alert.meter == "m-1"
    assert [reading.at.boottime_ms for reading in telemetry.readings][-1] == 13 * 3_600_000


async def test_batches_that_gather_while_the_disk_is_busy_share_a_commit(pipeline, store, commits):
    for hour in range(4):
        await pipeline.accept([shows("m-1", hour, 500)])
    await settle()
    assert len(commits) == 1
    assert len(list(store.store.history())) == 4


async def test_a_full_disk_stops_nothing_and_loses_nothing(pipeline, store, commits, caplog):
    store.error = FULL
    for hour in range(14):
        await pipeline.accept([shows("m-1", hour, 500)])
        await settle()
    assert not commits
    assert [record.message.split(":")[0] for record in caplog.records if "store" in record.message] == ["store_failing"]
    store.error = None
    await pipeline.accept([shows("m-1", 14, 500)])
    await settle()
    assert [reading.at.boottime_ms // 3_600_000 for reading in store.store.history()] == list(range(15))
    assert [message.alert.state for message in store.store.outgoing(Stream.ALERT, 0, 10)] == ["open"]
    assert any("store_recovered" in record.message for record in caplog.records)


async def test_memory_is_bounded_while_the_disk_is_full_and_alerts_survive(pipeline, store, monkeypatch):
    monkeypatch.setattr(pipeline_module, "PENDING_READINGS_MAX", 10)
    store.error = FULL
    await pipeline.accept([shows("m-1", hour, 500) for hour in range(14)])
    await settle()
    assert pipeline.readings_dropped == 4
    store.error = None
    await pipeline.accept([shows("m-1", 14, 500)])
    await settle()
    assert [reading.at.boottime_ms // 3_600_000 for reading in store.store.history()] == list(range(4, 15))
    assert len(store.store.outgoing(Stream.ALERT, 0, 10)) == 1


async def test_what_was_handed_in_before_the_end_is_committed(store, new_id):
    line = Pipeline(store=store, judge=Judge({}, episodes=[], new_id=new_id), committed=lambda: None)
    await line.accept([shows("m-1", 1, 500)])
    await line.stop()
    await line.run()
    assert len(list(store.store.history())) == 1


async def test_when_the_clock_is_synced_after_a_reboot_the_gap_is_judged_anew(store, new_id):
    first = Pipeline(store=store, judge=Judge({"m-1": RULE}, episodes=[], new_id=new_id), committed=lambda: None)
    await handed(first, shows("m-1", 5, 500))
    # Power is back 14 hours later; the box believes it is 1970, polls, then NTP answers.
    second = Pipeline(store=store, judge=Judge({"m-1": RULE}, episodes=[], new_id=new_id), committed=lambda: None)
    await second.rebuild()
    unsynced = shows("m-1", 0.1, 500, boot="boot-2", trust=ClockTrust.UNSYNCED)
    await handed(second, unsynced)
    assert store.store.outgoing(Stream.ALERT, 0, 10) == []
    synced = shows("m-1", 0.2, 500, boot="boot-2")
    wall_ms = shows("m-1", 19.2, 500).at.wall_ms
    await handed(second, _at_wall(synced, wall_ms))
    assert [message.alert.state for message in store.store.outgoing(Stream.ALERT, 0, 10)] == ["open"]


def _at_wall(reading, wall_ms):
    import msgspec

    return msgspec.structs.replace(reading, at=msgspec.structs.replace(reading.at, wall_ms=wall_ms))


async def test_steps_that_wait_for_the_disk_keep_their_order(store, new_id):
    line = Pipeline(store=store, judge=Judge({"m-1": RULE}, episodes=[], new_id=new_id), committed=lambda: None)
    store.error = FULL
    await handed(line, *[shows("m-1", hour, 500) for hour in range(14)])
    await handed(line, shows("m-1", 14, 700))
    store.error = None
    await handed(line, shows("m-1", 15, 700))
    assert [message.alert.state for message in store.store.outgoing(Stream.ALERT, 0, 9)] == ["open", "cleared"]


async def test_a_damaged_store_ends_the_pipeline_so_that_it_is_opened_anew(store, new_id):
    line = Pipeline(store=store, judge=Judge({}, episodes=[], new_id=new_id), committed=lambda: None)

    async def damaged(_work):
        raise StoreDamaged("malformed")

    line._store = damaged
    with pytest.raises(StoreDamaged):
        await handed(line, shows("m-1", 1, 500))


# -- what is kept, and what is asked for -----------------------------------------------------------------------------


def an_absence(meter="m-1", start_h=0, until_h=90):
    return Absence(
        id="01ARZ3NDEKTSV4RRFFQ69G5FAW",
        meter=meter,
        start_ms=at(start_h).wall_ms,
        until_ms=at(until_h).wall_ms,
        declared_ms=at(start_h).wall_ms,
        declared_by="village-assistant",
    )


async def test_what_was_learned_is_kept_with_the_first_commit_then_every_six_hours_and_at_the_end(store, new_id):
    judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
    line = Pipeline(store=store, judge=judge, committed=lambda: None)
    running = asyncio.create_task(line.run())
    kept_at = []
    for hour in range(15):
        await line.accept([shows("m-1", hour, 500 + hour)])
        await settle()
        kept_at.append(store.store.learned()["m-1"].boottime_ms // 3_600_000)
    await line.stop()
    await running
    assert kept_at == [0] * 6 + [6] * 6 + [12] * 3
    assert store.store.learned()["m-1"].boottime_ms == 14 * 3_600_000
    assert set(store.store.learned()) == {"m-1", VILLAGE}


async def test_meters_that_fell_silent_keep_nobody_else_from_being_kept(store, new_id, monkeypatch):
    monkeypatch.setattr(pipeline_module, "LEARNED_PER_COMMIT", 2)
    dead = [f"dead-{number}" for number in range(3)]
    judge = Judge(dict.fromkeys([*dead, "m-1"], RULE), episodes=[], new_id=new_id)
    line = Pipeline(store=store, judge=judge, committed=lambda: None)
    running = asyncio.create_task(line.run())
    await line.accept([*(silent(meter, 0) for meter in dead), shows("m-1", 0, 500)])
    await settle()
    assert set(store.store.learned()) == {"m-1", VILLAGE}
    await line.stop()
    await running


@pytest.fixture
async def lived_in(store, new_id):
    """A judge that has seen thirty days; the store keeps three of them, and what the others taught."""
    judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
    line = Pipeline(store=store, judge=judge, committed=lambda: None)
    litres = 500
    for day in range(30):
        batch = []
        for hour in range(24):
            litres += 15 if hour in {0, 4, 10, 13} else 0
            batch.append(shows("m-1", day * 24 + hour, litres))
        await handed(line, *batch)
        store.store.acknowledge({Stream.TELEMETRY: store.store.status(Stream.TELEMETRY).last_seq}, wall_ms=1)
        store.store.forget(keep_newest=72)
    assert sum(1 for _ in store.store.history()) == 72
    return judge


async def test_after_a_restart_a_home_is_known_as_it_was(store, new_id, lived_in):
    again = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
    await Pipeline(store=store, judge=again, committed=lambda: None).rebuild()
    assert next(again.learned(["m-1"])).state == next(lived_in.learned(["m-1"])).state
    assert again._past.watches["m-1"].limit.learned


@pytest.mark.parametrize("state", [None, b"\xff" * 40], ids=["empty", "of another version"])
async def test_a_home_whose_learned_state_cannot_be_read_is_learned_from_its_hourly_values(
    store, new_id, lived_in, caplog, state
):
    (kept,) = lived_in.learned(["m-1"])
    store.store.commit([], [], [msgspec.structs.replace(kept, state=state or b"")])
    again = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
    await Pipeline(store=store, judge=again, committed=lambda: None).rebuild()
    assert "learned_not_read meter=m-1" in caplog.text
    ours, theirs = again._past.watches["m-1"].limit, lived_in._past.watches["m-1"].limit
    assert ours.learned
    assert (ours.limit_h, ours.silent_min) == (theirs.limit_h, theirs.silent_min)


async def test_an_absence_is_declared_stored_told_and_ended_by_use(store, new_id):
    told = []
    judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
    line = Pipeline(store=store, judge=judge, committed=lambda: None, absences_changed=lambda: told.append(len(told)))
    running = asyncio.create_task(line.run())
    await line.accept([shows("m-1", 0, 480), shows("m-1", 1, 500)])
    await line.declare_absence(an_absence(start_h=1))
    await line.accept([shows("m-1", hour, 500) for hour in range(2, 60)])
    await settle()
    assert store.store.status(Stream.ALERT).last_seq == 0
    await line.accept([shows("m-1", 60, 530)])
    await settle()
    await line.stop()
    await running
    (absence,) = store.store.absences()
    assert (absence.ended_by, absence.ended_ms) == (Ending.USE, at(60).wall_ms)
    assert told == [0, 1]


async def test_an_absence_that_use_ended_on_a_full_disk_is_stored_as_ended_when_there_is_room(store, new_id):
    """Else it would stand again after a restart, and the home be watched by nobody."""
    told = []
    judge = Judge({"m-1": RULE}, episodes=[], new_id=new_id)
    line = Pipeline(store=store, judge=judge, committed=lambda: None, absences_changed=lambda: told.append(1))
    running = asyncio.create_task(line.run())
    await line.accept([shows("m-1", 0, 480), shows("m-1", 1, 500)])
    await line.declare_absence(an_absence(start_h=1))
    store.error = FULL
    await line.accept([shows("m-1", 2, 530)])
    await settle()
    assert store.store.absences()[0].is_open
    assert len(told) == 1
    store.error = None
    await line.accept([shows("m-1", 3, 530)])
    await settle()
    (absence,) = store.store.absences()
    assert (absence.ended_by, absence.ended_ms) == (Ending.USE, at(2).wall_ms)
    assert len(told) == 2
    await line.stop()
    await running


async def test_an_absence_that_ended_is_not_declared_again_by_its_repetition(pipeline, store):
    """The power failed before it was remembered that the command was done, and the county repeats it."""
    assert await pipeline.declare_absence(an_absence()) == an_absence()
    ended = await pipeline.end_absence("m-1", by=Ending.COMMAND, at=at(6))
    later = msgspec.structs.replace(an_absence(), start_ms=at(7).wall_ms, declared_ms=at(7).wall_ms)
    assert await pipeline.declare_absence(later) == ended
    assert store.store.absences() == [ended]
    assert await pipeline.end_absence("m-1", by=Ending.COMMAND, at=at(8)) is None


async def test_an_absence_that_was_ended_cannot_be_ended_again(pipeline, store):
    await pipeline.declare_absence(an_absence())
    ended = await pipeline.end_absence("m-1", by=Ending.COMMAND, at=at(6))
    assert store.store.absences() == [ended]
    assert await pipeline.end_absence("m-1", by=Ending.COMMAND, at=at(7)) is None


async def test_what_the_county_says_of_an_alert_is_in_the_store_and_in_its_end(pipeline, store):
    await pipeline.accept([shows("m-1", hour, 500) for hour in range(14)])
    await settle()
    (opened,) = store.store.open_episodes()
    assert await pipeline.note(opened.id, {"acknowledged_at": "2026-09-22T05:13:20.000Z"})
    assert store.store.open_episodes()[0].evidence["county"] == {"acknowledged_at": "2026-09-22T05:13:20.000Z"}
    assert not await pipeline.note(EPOCH, {"result": "fine"})


async def test_that_somebody_was_helped_is_in_what_is_kept_of_a_home_before_it_is_answered(pipeline, store):
    """Else a power cut within the next six hours would have that silence learned."""
    await pipeline.accept([shows("m-1", hour, 500 if hour < 2 else 530) for hour in range(16)])
    await settle()
    (opened,) = store.store.open_episodes()
    before = store.store.learned()["m-1"]
    assert await pipeline.note(opened.id, {"visited_at": "2026-09-22T05:13:20.000Z", "result": "helped"})
    (now,) = pipeline._judge.learned(["m-1"])
    assert now.state != before.state
    assert store.store.learned()["m-1"].state == now.state


async def test_what_was_said_before_an_alert_turned_red_is_set_aside_in_the_store_too(pipeline, store):
    await pipeline.accept([shows("m-1", 0, 480), *[shows("m-1", hour, 500) for hour in range(1, 19)]])
    await settle()
    (red,) = store.store.open_episodes()
    said = {"result": "fine"}
    alert = await pipeline.note(red.id, said, command_id=ulid(at(13).wall_ms, random=1))
    assert store.store.open_episodes() == [alert]
    assert alert.evidence == red.evidence | {"county_before": said}
    alert = await pipeline.note(red.id, said, command_id=ulid(at(18).wall_ms, random=1))
    assert alert.evidence == red.evidence | {"county_before": said, "county": said}


async def test_a_disk_that_is_full_is_told_to_whoever_asks_and_ends_nothing(pipeline, store):
    store.error = FULL
    with pytest.raises(StoreError):
        await pipeline.declare_absence(an_absence())
    store.error = None
    await pipeline.accept([shows("m-1", 0, 480), *[shows("m-1", hour, 500) for hour in range(1, 15)]])
    await settle()
    assert store.store.status(Stream.TELEMETRY).last_seq == 1
    assert store.store.status(Stream.ALERT).last_seq == 1  # nobody is away who was not recorded as such


async def test_a_bug_in_what_somebody_asks_for_ends_no_readings(pipeline, store):
    async def ask():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await pipeline._errand(ask)
    await pipeline.accept([shows("m-1", 0, 500)])
    await settle()
    assert store.store.status(Stream.TELEMETRY).last_seq == 1


async def test_a_reading_that_is_wanted_hastens_its_meter_and_comes(pipeline):
    hastened = []
    pipeline.hasten = hastened.append
    asked = asyncio.create_task(pipeline.next_reading("m-1", since_boottime_ms=HOUR_MS))
    await settle()
    assert hastened == ["m-1"]
    await pipeline.accept([shows("m-2", 3, 400), shows("m-1", 3, 500)])
    assert (await asked).volume_ml == 500_000


async def test_a_reading_from_before_it_was_asked_for_is_no_answer(pipeline):
    """A pass over a long bus hands in its readings seconds after they were taken."""
    asked = asyncio.create_task(pipeline.next_reading("m-1", since_boottime_ms=3 * HOUR_MS))
    await pipeline.accept([shows("m-1", 2.999, 500), shows("m-2", 3.5, 400)])
    await settle()
    assert not asked.done()
    await pipeline.accept([shows("m-1", 3, 600)])
    assert (await asked).volume_ml == 600_000


async def test_a_reading_is_told_once_it_is_committed(pipeline, store):
    store.error = FULL
    asked = asyncio.create_task(pipeline.next_reading("m-1", since_boottime_ms=0))
    await settle()
    await pipeline.accept([shows("m-1", 3, 500)])
    await settle()
    assert not asked.done()
    store.error = None
    await pipeline.accept([shows("m-2", 4, 400)])
    assert (await asked).volume_ml == 500_000
    assert len(list(store.store.history())) == 2


async def test_whoever_waits_for_a_reading_no_longer_is_forgotten(pipeline):
    asked = asyncio.create_task(pipeline.next_reading("m-1", since_boottime_ms=0))
    await settle()
    asked.cancel()
    await settle()
    assert not pipeline._awaited
    await pipeline.accept([shows("m-1", 3, 500)])
    await settle()


def test_the_moments_that_date_the_boots_are_as_good_as_all(store):
    """First unsynced, then synced, then lost again; a boot that was never synced; one that always was."""
    synced, unsynced = ClockTrust.SYNCED, ClockTrust.UNSYNCED
    trusts = {"a": [unsynced, unsynced, synced, synced, unsynced], "b": [unsynced] * 4, "c": [synced] * 3}
    trusts |= {"d": [synced]}
    readings = [
        shows("m-1", hour, 500 + hour, boot=boot, trust=trust)
        for boot, boot_trusts in trusts.items()
        for hour, trust in enumerate(boot_trusts)
    ]
    store.store.commit(readings, [])
    moments = store.store.moments()
    assert len(moments) == 3 + 2 + 2 + 1
    assert moments == [reading.at for reading in readings if reading.at in moments]
    assert anchors_of(moments) == anchors_of(reading.at for reading in readings)
