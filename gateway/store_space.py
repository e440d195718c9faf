"""How much the store holds, dropping the oldest of it, and living on a disk that is full.

On a full disk two things must be had already: pages for what is committed next, and a WAL that is long enough to write
them to. `claim` takes both at once: it writes so many bytes through the WAL into the file and deletes them again. From
then on the file does not grow, its free pages take what comes, and the WAL is copied back before it outgrows itself.
"""

from typing import Final

import msgspec
import sqlite_utils

from gateway.store_file import CHECKPOINT_PAGES
from protocols.contract import Dropped, instant

_PAGES_MAX: Final = 1_073_741_823  # SQLite's own limit
# So many readings are deleted in one transaction at most: all their pages, about 150, go through the WAL.
READINGS_PER_DELETE_MAX: Final = 10_000


def claim(db: sqlite_utils.Database, size_bytes: int) -> None:
    """Take the space for so many bytes, and let the file grow no further. Raises sqlite3.Error."""
    db.execute("pragma wal_checkpoint(passive)")
    with db.atomic():
        db.execute("insert into claim values (zeroblob(?))", [size_bytes])
    db.execute("pragma wal_checkpoint(passive)")
    pages, page_bytes = (_pragma(db, name) for name in ("page_count", "page_size"))
    db.execute(f"pragma max_page_count = {pages}")
    db.execute(f"pragma wal_autocheckpoint = {max(1, size_bytes // page_bytes // 2)}")
    db.execute("delete from claim")


def release(db: sqlite_utils.Database) -> None:
    """Let the file grow again. Raises sqlite3.Error."""
    db.execute(f"pragma max_page_count = {_PAGES_MAX}")
    db.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")


def room_bytes(db: sqlite_utils.Database) -> int:
    """Return how much can be written before the file must grow further than it may. Raises sqlite3.Error."""
    pages = _pragma(db, "freelist_count") + _pragma(db, "max_page_count") - _pragma(db, "page_count")
    return pages * _pragma(db, "page_size")


def bytes_used(db: sqlite_utils.Database) -> int:
    """Return the bytes of pages that hold data. Raises sqlite3.Error."""
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def last_to_forget(db: sqlite_utils.Database, keep_newest: int) -> int:
    """Return up to which id readings may be deleted now: acknowledged and not among the newest; 0 where none may."""
    return int(
        db.execute(
            "select coalesce(max(id), 0) from (select id from reading where id <= (select max(id) from reading) - ?"
            " and id < coalesce((select min(first_id) from telemetry where dropped is null), 9e18)"
            " order by id limit ?)",
            [keep_newest, READINGS_PER_DELETE_MAX],
        ).fetchone()[0]
    )


def forget(db: sqlite_utils.Database, last_id: int) -> int:
    """Delete the readings up to `last_id`; return how many."""
    return int(db.execute("delete from reading where id <= ?", [last_id]).rowcount)


def last_of_message(db: sqlite_utils.Database, last_id: int) -> int:
    """Return the id of the last reading that leaves with the one of this id, in the same message."""
    sql = "select max(last_id) from telemetry where dropped is null and first_id <= ?"
    return max(last_id, db.execute(sql, [last_id]).fetchone()[0] or 0)


def drop_oldest(db: sqlite_utils.Database, last_id: int) -> int:
    """Delete the readings up to `last_id`, of whole messages; return how many of them the county has not acknowledged.

    Each message that they were to leave with becomes a tombstone that keeps its seq.
    """
    sql = "select seq, first_id, last_id from telemetry where dropped is null and last_id <= ?"
    tombstones = {seq: _tombstone(db, *range_) for seq, *range_ in db.execute(sql, [last_id]).fetchall()}
    forget(db, last_id)  # first: the tombstones may need the pages
    for seq, tombstone in tombstones.items():
        body = msgspec.json.encode(tombstone).decode()
        db.execute("update telemetry set dropped = ? where seq = ?", [body, seq])
    return sum(tombstone.readings for tombstone in tombstones.values())


def _tombstone(db: sqlite_utils.Database, first_id: int, last_id: int) -> Dropped:
    sql = "select count(*), min(wall_ms), max(wall_ms) from reading where id between ? and ?"
    count, start_ms, end_ms = db.execute(sql, [first_id, last_id]).fetchone()
    return Dropped(readings=count, start=instant(start_ms), end=instant(end_ms))


def _pragma(db: sqlite_utils.Database, name: str) -> int:
    return int(db.execute(f"pragma {name}").fetchone()[0])
