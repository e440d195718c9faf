"""What somebody sees of a store beside its owner."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
from readings import shows, silent

from gateway.store import Learned, Store
from gateway.store_file import StoreDamaged, StoreError
from gateway.store_view import SetAside, StoreView
from protocols.contract import NotUnderstood, Stream

EPOCH = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "shuiwang.db", new_epoch=EPOCH)
    yield store
    store.close()


@pytest.fixture
def view(store):
    view = StoreView(store.path)
    yield view
    view.close()


def kept(reading):
    at = reading.at
    return Learned(
        meter=reading.meter, boot_id=at.boot_id, boottime_ms=at.boottime_ms, position_ms=at.wall_ms, state=b"habits"
    )


def test_each_meter_is_read_from_where_something_was_kept_of_it(store, view):
    readings = [reading for hour in range(5) for reading in (shows("m-1", hour, hour), silent("m-2", hour))]
    store.commit(readings, [], [kept(readings[6])])
    assert list(view.since_learned()) == [
        one for one in readings if one.meter == "m-2" or one.at.boottime_ms >= 3 * 3.6e6
    ]


def test_without_anything_kept_or_with_its_reading_gone_all_is_read(store, view):
    readings = [shows("m-1", hour, hour) for hour in range(3)]
    store.commit(readings, [], [kept(shows("m-1", 99, 0))])
    assert list(view.since_learned()) == readings


def test_the_same_boot_time_of_another_boot_is_another_reading(store, view):
    readings = [shows("m-1", 1, 5), shows("m-1", 1, 9, boot="boot-2"), shows("m-1", 2, 9, boot="boot-2")]
    store.commit(readings, [], [kept(readings[1])])
    assert list(view.since_learned()) == readings[1:]


def test_what_was_not_understood_is_named_newest_first(store, view):
    for hour in range(4):
        store.commit([shows("m-1", hour, hour)], [])
    store.outgoing(Stream.TELEMETRY, 0, 10)
    odd = [NotUnderstood(stream=Stream.TELEMETRY, seq=seq, reason=f"odd {seq}") for seq in (1, 2, 4)]
    store.acknowledge({Stream.TELEMETRY: 4}, wall_ms=0, not_understood=odd)
    assert view.set_aside(newest=2) == [
        SetAside(epoch=EPOCH, stream=Stream.TELEMETRY, seq=seq, reason=f"odd {seq}") for seq in (4, 2)
    ]


def test_a_store_of_an_older_version_is_upgraded_by_its_owner_alone(tmp_path):
    """The package is upgraded, the service not yet restarted."""
    path = tmp_path / "older.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "schemas" / "v2.sql").read_text(encoding="utf-8"))
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"older shuiwang.*restart the service") as caught:
        StoreView(path)
    assert not isinstance(caught.value, StoreDamaged)
    assert path.read_bytes() == before
    Store(path).close()
    StoreView(path).close()


def test_a_store_of_a_newer_version_is_not_guessed_at(store):
    store._db.execute(
        "insert into _sqlite_migrations select null, migration_set, 'v99', applied_at from _sqlite_migrations limit 1"
    )
    with pytest.raises(StoreError, match="newer shuiwang"):
        StoreView(store.path)


def test_nothing_can_be_changed(view):
    with pytest.raises(StoreError):
        view.commit([shows("m-1", 1, 1)], [])
