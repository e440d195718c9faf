"""What a restart brings back from a real store, whatever the clock says then."""

import asyncio

import msgspec
import pytest
from readings import at, shows, silent

from agent.absences import Absences
from agent.judge import Judge, Rule
from agent.pipeline import Pipeline
from protocols.absence import Absence
from protocols.contract import Ending, Kind, Stream, instant
from protocols.reading import ClockTrust

RULE = Rule(window_ms=12 * 3_600_000, threshold_ml=100_000)


async def start(store, new_id):
    """A pipeline as the service makes one at its start."""
    episodes, absences = store.store.open_episodes(), Absences(store.store.absences())
    judge = Judge({"m-1": RULE}, episodes=episodes, new_id=new_id, absences=absences)
    line = Pipeline(store=store, judge=judge, committed=lambda: None)
    await line.rebuild()
    return line, asyncio.create_task(line.run())


async def stop(line, running):
    await line.stop()
    await running


async def lived(store, new_id, readings):
    """Start, take some readings, stop."""
    line, running = await start(store, new_id)
    for reading in readings:
        await line.accept([reading])
    await stop(line, running)


def told(store, kind=Kind.LOW_USAGE):
    messages = store.store.outgoing(Stream.ALERT, 0, 100)
    return [(str(one.alert.transition), one.alert.at) for one in messages if one.alert.kind is kind]


def second_boot(reading, *, trust, lag_h=0.0):
    """The same reading after a power cut at hour 30, by a clock that lags."""
    moment = msgspec.structs.replace(
        reading.at,
        wall_ms=reading.at.wall_ms - round(lag_h * 3_600_000),
        trust=trust,
        boot_id="boot-2",
        boottime_ms=reading.at.boottime_ms - 30 * 3_600_000 + 60_000,
    )
    return msgspec.structs.replace(reading, at=moment)


def declared(first_h, last_h):
    return Absence(
        id="01ARZ3NDEKTSV4RRFFQ69G5FAW",
        meter="m-1",
        start_ms=at(first_h).wall_ms,
        until_ms=at(last_h).wall_ms,
        declared_ms=at(first_h).wall_ms,
        declared_by="village-assistant",
    )


@pytest.mark.parametrize("every_h", [100, 5, 1])
async def test_reminders_come_on_time_however_often_the_service_starts(store, new_id, every_h):
    """Told by a reading that brought no value, too; and after an acknowledgement once a day."""
    readings = [shows("m-1", 0, 480), shows("m-1", 1, 500), *[shows("m-1", hour, 500) for hour in range(2, 21)]]
    readings += [silent("m-1", hour) for hour in range(21, 31)]
    for first in range(0, len(readings), every_h):
        await lived(store, new_id, readings[first : first + every_h])
    assert told(store) == [
        (step, instant(at(hour).wall_ms))
        for step, hour in [("opened", 12), ("escalated", 17), ("reminded", 23), ("reminded", 29)]
    ]
    line, running = await start(store, new_id)
    (red,) = [one for one in store.store.open_episodes() if one.kind is Kind.LOW_USAGE]
    assert await line.note(red.id, {"acknowledged_at": instant(at(30).wall_ms)})
    await stop(line, running)
    later = [shows("m-1", hour, 500) for hour in range(31, 80)]
    for first in range(0, len(later), every_h):
        await lived(store, new_id, later[first : first + every_h])
    assert told(store)[4:] == [("reminded", instant(at(hour).wall_ms)) for hour in (53, 77)]


@pytest.mark.parametrize("restarts", [False, True])
async def test_who_comes_home_before_the_clock_is_synced_is_watched_from_then_on(store, new_id, restarts):
    line, running = await start(store, new_id)
    await line.accept([shows("m-1", 0, 480), shows("m-1", 1, 500)])
    await line.declare_absence(declared(2, 24 * 60))
    await line.accept([shows("m-1", hour, 500) for hour in range(3, 30)])
    blind = [
        second_boot(shows("m-1", hour, litres), trust=ClockTrust.UNSYNCED, lag_h=0.2)
        for hour, litres in ((30, 500), (31, 530), (32, 560))
    ]
    await stop(line, running)
    await lived(store, new_id, blind)
    (absence,) = store.store.absences()
    assert (absence.ended_by, absence.ended_ms) == (Ending.USE, at(29).wall_ms)
    synced = [second_boot(shows("m-1", hour, 560), trust=ClockTrust.SYNCED) for hour in range(33, 60)]
    for part in ([one] for one in synced) if restarts else [synced]:
        await lived(store, new_id, part)
    assert [step for step, _ in told(store)][:2] == ["opened", "escalated"]


async def test_who_is_said_to_be_back_before_the_clock_is_synced_was_away_until_then(store, new_id):
    line, running = await start(store, new_id)
    await line.accept([shows("m-1", 0, 480), shows("m-1", 1, 500)])
    await line.declare_absence(declared(2, 24 * 60))
    await line.accept([shows("m-1", hour, 500) for hour in range(3, 30)])
    await stop(line, running)
    line, running = await start(store, new_id)
    await line.accept([second_boot(shows("m-1", 30, 500), trust=ClockTrust.UNSYNCED, lag_h=0.2)])
    moment = second_boot(shows("m-1", 30.5, 500), trust=ClockTrust.UNSYNCED, lag_h=0.2).at
    assert await line.end_absence("m-1", by=Ending.COMMAND, at=moment) is not None
    await stop(line, running)
    await lived(
        store, new_id, [second_boot(shows("m-1", hour, 500), trust=ClockTrust.SYNCED) for hour in range(31, 60)]
    )
    steps = told(store)
    assert [step for step, _ in steps[:2]] == ["opened", "escalated"]
    assert [time for _, time in steps[:2]] == [instant(at(hour).wall_ms) for hour in (42, 46)]


@pytest.mark.parametrize("restarts", [False, True])
async def test_who_was_at_home_when_an_absence_began_is_watched_once_the_clock_is_synced(store, new_id, restarts):
    """The absence was declared for later, and began while the clock was 12 h behind."""
    line, running = await start(store, new_id)
    for reading in [shows("m-1", 0, 480), shows("m-1", 1, 500)]:
        await line.accept([reading])
    await line.declare_absence(msgspec.structs.replace(declared(36, 24 * 60), declared_ms=at(2).wall_ms))
    await line.accept([shows("m-1", hour, 500) for hour in range(2, 30)])
    await stop(line, running)
    blind = [
        second_boot(shows("m-1", h, 510 + 30 * min(h, 40)), trust=ClockTrust.UNSYNCED, lag_h=12) for h in range(31, 44)
    ]
    after = [second_boot(shows("m-1", hour, 1710), trust=ClockTrust.SYNCED) for hour in range(44, 70)]
    if restarts:
        await lived(store, new_id, blind)
        assert store.store.absences()[0].is_open
        await lived(store, new_id, after[:1])
    else:
        await lived(store, new_id, [*blind, after[0]])
    (absence,) = store.store.absences()
    assert (absence.ended_by, absence.ended_ms) == (Ending.USE, at(40).wall_ms)
    await lived(store, new_id, after[1:])
    assert ("escalated", instant(at(56).wall_ms)) in told(store)
