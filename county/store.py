"""The county's database: one SQLite file through sqlite-utils, with one connection that writes.

A batch is one transaction with `synchronous=FULL`; what `Store.transaction` has left without an error survives a power
cut. Tables of the streams are keyed by county and gateway, because a receiver may serve several counties.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlite_utils

from county.errors import DatabaseError, StoreFailed
from county.schema import MIGRATIONS
from protocols.contract import Stream

# A duty officer's own sqlite3 shell may hold a lock for a moment; longer is an error that is told and retried.
_BUSY_TIMEOUT_S: Final = 10.0


class Store:
    """The tables, as verbs. Belongs to the thread that made it. Every verb must run within `transaction`."""

    def __init__(self, file: Path) -> None:
        """Open or make the database and bring it up to date.

        Raises DatabaseError, which says what to do, where the file cannot be used.
        """
        self._database = _open(file)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what happens within, wholly and durably, or nothing of it.

        Raises StoreFailed where it is not committed.
        """
        try:
            with self._database.atomic():
                yield
        except sqlite3.Error as error:
            raise StoreFailed(f"{type(error).__name__}: {error}") from error

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        return list(self._database.query(sql, parameters))

    def row(self, sql: str, *parameters: Any) -> dict[str, Any] | None:
        """Return the first row of a query, or None."""
        return next(iter(self._database.query(sql, parameters)), None)

    def insert(self, table: str, row: dict[str, Any]) -> bool:
        """Insert a row; return False, and change nothing, where its key is taken."""
        return self._insert("INSERT OR IGNORE", table, row)

    def replace(self, table: str, row: dict[str, Any]) -> None:
        """Insert a row in place of the one with its key, if any."""
        self._insert("INSERT OR REPLACE", table, row)

    def change(self, sql: str, *parameters: Any) -> int:
        """Run an UPDATE or DELETE; return how many rows it changed."""
        return self._database.execute(sql, parameters).rowcount

    def know(self, key: tuple[str, str, str, Stream]) -> None:
        """Note a stream, whose key is county, gateway, epoch and stream; rows of streams lie in the order of this."""
        self.insert("streams", dict(zip(("county", "gateway", "epoch", "stream"), key, strict=True)) | {"up_to": 0})

    def is_earlier_epoch(self, county: str, gateway: str, epoch: str, *, than: str) -> bool:
        """Tell whether an epoch of a gateway was first heard of before another, whatever the clocks said then."""
        sql = "SELECT epoch FROM streams WHERE county=? AND gateway=? AND epoch IN (?, ?) ORDER BY rowid LIMIT 1"
        first = self.row(sql, county, gateway, epoch, than)
        return epoch != than and first is not None and first["epoch"] == epoch

    def advance(self, key: tuple[str, str, str, Stream], *, at_least: int = 0) -> int:
        """Move a stream's `up_to` to the end of the messages stored without a hole, and return it.

        `key` is county, gateway, epoch and stream. `at_least`: everything up to here counts as held.
        """
        self.know(key)
        before = self.up_to(key)
        up_to = max(before, at_least)
        held = "SELECT 1 FROM messages WHERE county=? AND gateway=? AND epoch=? AND stream=? AND seq=?"
        while self._database.execute(held, (*key, up_to + 1)).fetchone():
            up_to += 1
        if up_to > before:
            self.change("UPDATE streams SET up_to=? WHERE county=? AND gateway=? AND epoch=? AND stream=?", up_to, *key)
        return up_to

    def up_to(self, key: tuple[str, str, str, Stream]) -> int:
        """Return the last `seq` that is stored without a hole before it; 0 where there is none."""
        row = self.row("SELECT up_to FROM streams WHERE county=? AND gateway=? AND epoch=? AND stream=?", *key)
        return int(row["up_to"]) if row else 0

    def count(self, counter: str, *, add: int = 0) -> int:
        """Add to a counter that outlives restarts, and return it."""
        if add:
            self.insert("counters", {"name": counter, "value": 0})
            self.change("UPDATE counters SET value=value+? WHERE name=?", add, counter)
        row = self.row("SELECT value FROM counters WHERE name=?", counter)
        return int(row["value"]) if row else 0

    def _insert(self, verb: str, table: str, row: dict[str, Any]) -> bool:
        columns = ", ".join(f'"{column}"' for column in row)
        marks = ", ".join("?" * len(row))
        sql = f'{verb} INTO "{table}" ({columns}) VALUES ({marks})'  # the names are ours
        return self._database.execute(sql, list(row.values())).rowcount == 1


def _open(file: Path) -> sqlite_utils.Database:
    try:
        database = sqlite_utils.Database(sqlite3.connect(file, timeout=_BUSY_TIMEOUT_S), execute_plugins=False)
        database.enable_wal()
        database.execute("PRAGMA synchronous=FULL")
        for pragma, wanted in (("journal_mode", "wal"), ("synchronous", 2)):
            found = database.execute(f"PRAGMA {pragma}").fetchone()[0]
            if found != wanted:
                raise DatabaseError(
                    f"{file}: SQLite refuses {pragma}={wanted} and says {found}. "
                    "Put the database on a local disk, not on a network file system."
                )
        MIGRATIONS.apply(database)
    except sqlite3.DatabaseError as error:
        raise DatabaseError(
            f"{file}: {error}. The folder must exist and be writable, and the file must be the receiver's own; "
            "move a damaged file aside: the receiver makes a new one, and gateways resend what is not acknowledged."
        ) from error
    return database
