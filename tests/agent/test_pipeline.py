"""Readings and the alerts that they cause go into a real store together, or wait; nothing is judged twice."""

import asyncio

import pytest
from readings import shows

from agent import pipeline as pipeline_module
from agent.judge import Judge, Rule
from agent.pipeline import Pipeline
from gateway.store import Store, StoreDamaged, StoreError
from protocols.contract import Stream
from protocols.reading import ClockTrust

EPOCH = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
RULE = Rule(window_ms=12 * 3_600_000, threshold_ml=100_000)


class StoreHere:
    """The store on the loop's own thread, with a disk that can be filled."""

    def __init__(self, path):
        self.store = Store(path, new_epoch=EPOCH)
        self.full = False

    async def __call__(self, work):
        await asyncio.sleep(0)
        if self.full:
            raise StoreError("database or disk is full")
        return work(self.store)


@pytest.fixture
def store(tmp_path):
    here = StoreHere(tmp_path / "store.db")
    yield here
    here.store.close()


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
    store.full = True
    for hour in range(14):
        await pipeline.accept([shows("m-1", hour, 500)])
        await settle()
    assert not commits
    assert [record.message.split(":")[0] for record in caplog.records if "store" in record.message] == ["store_failing"]
    store.full = False
    await pipeline.accept([shows("m-1", 14, 500)])
    await settle()
    assert [reading.at.boottime_ms // 3_600_000 for reading in store.store.history()] == list(range(15))
    assert [message.alert.state for message in store.store.outgoing(Stream.ALERT, 0, 10)] == ["open"]
    assert any("store_recovered" in record.message for record in caplog.records)


async def test_memory_is_bounded_while_the_disk_is_full_and_alerts_survive(pipeline, store, monkeypatch):
    monkeypatch.setattr(pipeline_module, "PENDING_READINGS_MAX", 10)
    store.full = True
    await pipeline.accept([shows("m-1", hour, 500) for hour in range(14)])
    await settle()
    assert pipeline.readings_dropped == 4
    store.full = False
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
    store.full = True
    await handed(line, *[shows("m-1", hour, 500) for hour in range(14)])
    await handed(line, shows("m-1", 14, 700))
    store.full = False
    await handed(line, shows("m-1", 15, 700))
    assert [message.alert.state for message in store.store.outgoing(Stream.ALERT, 0, 9)] == ["open", "cleared"]


async def test_a_damaged_store_ends_the_pipeline_so_that_it_is_opened_anew(store, new_id):
    line = Pipeline(store=store, judge=Judge({}, episodes=[], new_id=new_id), committed=lambda: None)

    async def damaged(_work):
        raise StoreDamaged("malformed")

    line._store = damaged
    with pytest.raises(StoreDamaged):
        await handed(line, shows("m-1", 1, 500))
