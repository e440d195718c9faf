"""What the service does around its parts."""

import asyncio
import contextlib
import sqlite3

import pytest
from partners.memories import absence
from readings import at, shows

from agent import config
from agent import service as service_module
from agent.absences import Absences
from agent.service import STORE_NAME, Heartbeat, Service, history_readings
from gateway.clock import SystemClock
from gateway.store import HourlyValue, Store, StoreDamaged, StoreError
from protocols.contract import Ending
from protocols.reading import ClockTrust

TEXT = """
[gateway]
id = "g-1"
county = "shenxian"
data_dir = "data"

[broker]
url = "mqtt://127.0.0.1:1"

[[bus]]
name = "b"
port = "/dev/null"

[[meter]]
id = "m-1"
bus = "b"
profile = "usw-dn15-40"
address = "1"

[[meter]]
id = "m-2"
bus = "b"
profile = "usw-dn15-40"
address = "2"
poll_every_s = 60
[meter.detection]
window_h = 48
"""


class Notifications:
    def __init__(self):
        self.said = []

    def alive(self):
        self.said.append("alive")

    def ready(self, _):
        self.said.append("ready")

    def stopping(self):
        self.said.append("stopping")


def settings(folder):
    path = folder / "shuiwang.toml"
    path.write_text(TEXT, encoding="utf-8")
    return config.load(path)


def test_the_watchdog_is_fed_only_when_every_bus_has_passed():
    notifications = Notifications()
    heartbeat = Heartbeat({"a", "b"}, notifications)
    for _ in range(5):
        heartbeat.passed("a")
    assert notifications.said == []
    heartbeat.passed("b")
    heartbeat.passed("b")
    assert notifications.said == ["alive"]


def test_the_history_covers_twice_the_longest_window_at_the_pace_of_the_meters(tmp_path):
    four_days_s = 2 * 48 * 3600
    assert history_readings(settings(tmp_path)) == four_days_s // 300 + four_days_s // 60


async def test_a_store_that_is_damaged_while_in_use_is_opened_again(tmp_path, monkeypatch, caplog):
    service = Service(settings(tmp_path), clock=SystemClock(), notifier=Notifications())
    epochs = []

    async def work(store):
        epochs.append(await store(lambda store: store.epoch))
        if len(epochs) == 1:
            raise ExceptionGroup("tasks", [StoreDamaged("database disk image is malformed")])

    monkeypatch.setattr(service, "_work", work)
    await service.run()
    assert len(epochs) == 2
    assert "store_damaged" in caplog.text
    assert "store_reopened" in caplog.text
    assert epochs[0] != epochs[1], "what was damaged in use is saved from, however sound it looks"


async def test_what_only_shows_itself_in_use_is_saved_from_once_and_the_service_works(tmp_path, monkeypatch, caplog):
    config, ready = settings(tmp_path), asyncio.Event()
    path = config.gateway.data_dir / STORE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    hours = [HourlyValue(hour=at(hour).wall_ms // 3_600_000, meter="m-1", volume_ml=hour) for hour in range(50, 60)]
    store = Store(path, new_epoch="01ARZ3NDEKTSV4RRFFQ69G5FAV", reserve_bytes=0)
    store.adopt([shows("m-1", hour, hour) for hour in range(100, 110)], [], hourly=hours)
    store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("update hourly set meter = cast(x'6dff31' as text) where hour = ?", [hours[0].hour])
    notifications = Notifications()
    monkeypatch.setattr(notifications, "ready", lambda _: ready.set())
    service = Service(config, clock=SystemClock(), notifier=notifications)
    running = asyncio.create_task(service.run())
    await asyncio.wait_for(ready.wait(), 20)
    service._stop.set()
    await running
    assert caplog.text.count("store_reopened") == 1
    with contextlib.closing(Store(path, read_only=True)) as saved:
        assert list(saved.hourly()) == hours[1:]
        assert len(list(saved.history())) == 10


async def test_a_card_that_fails_all_the_time_is_opened_again_ever_more_seldom(tmp_path, monkeypatch):
    service = Service(settings(tmp_path), clock=SystemClock(), notifier=Notifications())
    monkeypatch.setattr(service_module, "REOPEN_PAUSES_S", (0.01, 30.0))
    opened = []

    async def work(store):
        opened.append(store)
        raise StoreDamaged("database disk image is malformed")

    monkeypatch.setattr(service, "_work", work)
    running = asyncio.create_task(service.run())
    while len(opened) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert len(opened) == 2
    service._stop.set()
    await asyncio.wait_for(running, 5)


async def test_housekeeping_outlives_a_store_that_refuses_and_ends_where_it_is_gone(tmp_path, caplog):
    """At whichever step it is refused: it is tried again, and polling never hears of it."""

    class Clock:
        rests = 0

        def now(self):
            return at(1)

        async def sleep(self, _):
            self.rests += 1
            if self.rests == 4:
                file.unlink()

    class Refusing:
        path = tmp_path / "s.db"
        outcomes = iter([0, 0, StoreError("disk full"), 0, StoreError("disk full"), 0, 7])

        async def __call__(self, _):
            outcome = next(self.outcomes)
            if isinstance(outcome, StoreError):
                raise outcome
            return outcome

    file, clock = Refusing.path, Clock()
    file.touch()
    service = Service(settings(tmp_path), clock=clock, notifier=Notifications())
    with pytest.raises(StoreDamaged, match="is gone"):
        await service._housekeeping(Refusing(), Absences([]), lambda: None)
    assert clock.rests == 4
    assert caplog.text.count("housekeeping_failed: disk full") == 2
    assert caplog.text.count("telemetry_dropped readings=7") == 1, "and the round after them works"


async def test_damage_that_only_housekeeping_meets_is_not_lived_with(tmp_path):
    class Damaged:
        path = tmp_path / "s.db"

        async def __call__(self, _):
            raise StoreDamaged("database disk image is malformed")

    Damaged.path.touch()
    service = Service(settings(tmp_path), clock=SystemClock(), notifier=Notifications())
    with pytest.raises(StoreDamaged, match="malformed"):
        await service._housekeeping(Damaged(), Absences([]), lambda: None)


async def test_a_store_that_somebody_deleted_is_a_new_store(tmp_path, monkeypatch):
    config = settings(tmp_path)
    path = config.gateway.data_dir / STORE_NAME
    service = Service(config, clock=SystemClock(), notifier=Notifications())
    seen = []

    async def work(store):
        seen.append(await store(lambda store: list(store.history())))
        if len(seen) == 1:
            for file in path.parent.glob(f"{STORE_NAME}*"):
                file.unlink()
            raise StoreDamaged(f"{path} is gone")

    monkeypatch.setattr(service, "_work", work)
    await service.run()
    assert seen == [[], []]
    assert not list(path.parent.glob("*.damaged-*"))


async def test_absences_whose_time_is_over_are_ended_stored_and_told(tmp_path):
    class Clock:
        trust = ClockTrust.UNSYNCED

        def now(self):
            return at(1000, trust=self.trust)  # more than ten days

    clock = Clock()
    service = Service(settings(tmp_path), clock=clock, notifier=Notifications())
    store = Store(tmp_path / "s.db", new_epoch="0" * 26, reserve_bytes=0)
    store.put_absence(absence(1))
    absences, told = Absences(store.absences()), []

    async def here(work):
        return work(store)

    await service._end_absences(here, absences, lambda: told.append(1))
    assert (told, store.absences()) == ([], [absence(1)]), "with a clock that may be wrong nobody's time is over"
    clock.trust = ClockTrust.SYNCED
    for _ in range(2):
        await service._end_absences(here, absences, lambda: told.append(1))
        assert [one.ended_by for one in store.absences()] == [Ending.TIME]
    assert told == [1]
    store.close()
