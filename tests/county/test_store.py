"""The database file: durable settings, read back, and errors that say what to do."""

import sqlite3

import pytest
from samples import alert, incoming, telemetry

from county.errors import DatabaseError, StoreFailed
from county.receiver import Receiver
from county.schema import MIGRATIONS
from county.store import Store


def test_the_database_is_durable_and_says_so(store):
    with store.transaction():
        assert store.row("PRAGMA journal_mode") == {"journal_mode": "wal"}
        assert store.row("PRAGMA synchronous") == {"synchronous": 2}


def test_a_setting_that_sqlite_refuses_is_an_error(tmp_path, monkeypatch):
    genuine = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda file, **options: genuine(":memory:", **options))
    with pytest.raises(DatabaseError, match=r"journal_mode=wal and says memory.*local disk"):
        Store(tmp_path / "county.db")


def test_opening_again_keeps_everything_and_migrates_nothing_twice(tmp_path):
    for _ in range(3):
        store = Store(tmp_path / "county.db")
        Receiver(store).receive([incoming(alert(1)), incoming(telemetry(1))])
        assert MIGRATIONS.pending(store._database) == []
        with store.transaction():
            assert store.row("SELECT count(*) AS n FROM messages") == {"n": 2}
        store.close()


def test_a_file_that_is_no_database_is_left_alone_and_told(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to be read as the header of one " * 20)
    before = file.read_bytes()
    with pytest.raises(DatabaseError, match=r"notes\.txt.*not a database.*move a damaged file aside"):
        Store(file)
    assert file.read_bytes() == before


def test_a_folder_that_is_missing_is_told(tmp_path):
    with pytest.raises(DatabaseError, match="folder must exist"):
        Store(tmp_path / "missing" / "county.db")


def test_a_transaction_is_all_or_nothing(store):
    with pytest.raises(StoreFailed, match="NOT NULL"), store.transaction():
        store.insert("counters", {"name": "kept?", "value": 1})
        store.replace("alerts", {"county": "c", "gateway": "g", "id": None})
    with store.transaction():
        assert store.rows("SELECT * FROM counters") == []


def test_a_value_of_the_wrong_type_is_refused_not_converted(store):
    with pytest.raises(StoreFailed, match="cannot store TEXT"), store.transaction():
        store.insert("counters", {"name": "n", "value": "many"})
