"""The file under the store: how it is opened, what its errors mean, and the space that is kept for a full disk.

On a full disk SQLite cannot even delete: it writes the pages that it deletes from to the write-ahead log first. So a
file of RESERVE_BYTES lies beside the store. When the disk is full it is given up, and `gateway.store_space` claims the
space for the store before somebody else takes it.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlite_utils

from protocols.errors import ShuiwangError

log = logging.getLogger(__name__)

# A transaction may wait so long for another process (a backup, `shuiwang status`) before it fails.
BUSY_MS: Final = 5000
# The WAL is copied back at this size: rarely, because a power cut during a checkpoint is WAL's only weak moment.
CHECKPOINT_PAGES: Final = 1000
WAL_BYTES_MAX: Final = 8 * 1024 * 1024
# A whole WAL (4 MB at CHECKPOINT_PAGES) may have to be copied into the file before a quarter of this is claimed, once
# in the WAL and once in the file.
RESERVE_BYTES: Final = 8 * 1024 * 1024

_PRAGMAS: Final = (
    ("journal_mode", "wal"),
    ("synchronous", 2),  # FULL: a commit that returned survives a power cut
    ("foreign_keys", 1),
    ("wal_autocheckpoint", CHECKPOINT_PAGES),
    ("journal_size_limit", WAL_BYTES_MAX),
    ("temp_store", 2),  # memory: no temporary files on the card
    ("mmap_size", 0),
    ("trusted_schema", 0),
    ("cell_size_check", 1),  # a damaged page is an error, not a guess
)
_FULL: Final = {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE"}
# Without space not even the shared memory file beside the store can be made.
_FULL_WHEN_OPENING: Final = _FULL | {"SQLITE_CANTOPEN", "SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMMAP"}
_DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
# What the surroundings do to a sound file; whatever else goes wrong when a file is opened is wrong with the file.
_SURROUNDINGS: Final = (
    *("SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_PERM"),
    *("SQLITE_AUTH", "SQLITE_NOMEM", "SQLITE_INTERRUPT", "SQLITE_PROTOCOL", "SQLITE_MISUSE", "SQLITE_IOERR"),
)
# A sector of the card that cannot be read any more.
_UNREADABLE: Final = ("SQLITE_IOERR_READ", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS", "SQLITE_IOERR_DATA")


class StoreError(ShuiwangError):
    """The store could not do it (disk full, I/O error); nothing of the transaction happened."""


class StoreRolledBack(StoreError):
    """The county proved the store to be older than itself; it has a new epoch now, and what waits has new numbers."""


class StoreDamaged(StoreError):
    """The file is not a sound database of ours."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn SQLite's errors, and rows that make no sense, into ours."""
    try:
        yield
    except (sqlite3.Error, UnicodeError) as error:
        # Without a name the error is of Python's sqlite3 itself: text that is not UTF-8.
        damaged = _name(error).startswith(_DAMAGED) or not hasattr(error, "sqlite_errorname")
        damaged = damaged and not isinstance(error, sqlite3.ProgrammingError)
        raise (StoreDamaged if damaged else StoreError)(f"{what}: {error}") from error


@contextmanager
def translated_when_opening(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours where each of them, but for those of the surroundings, means a damaged file."""
    try:
        yield
    except (sqlite3.Error, UnicodeError) as error:
        name = _name(error)
        sound = name.startswith(_SURROUNDINGS) and not name.startswith(_UNREADABLE)
        raise (StoreError if sound else StoreDamaged)(f"{path} cannot be opened: {error}") from error


def is_full(error: BaseException | None, *, opening: bool = False) -> bool:
    """Tell whether an error of SQLite may come from a full disk."""
    return isinstance(error, sqlite3.Error) and _name(error) in (_FULL_WHEN_OPENING if opening else _FULL)


def connect(path: Path, *, read_only: bool) -> sqlite_utils.Database:
    """Open the file. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=BUSY_MS / 1000)
    connection.isolation_level = None
    return sqlite_utils.Database(connection)


def configure(db: sqlite_utils.Database, path: Path) -> None:
    """Set what the promises stand on, and read it back. Raises StoreError where the disk cannot give it."""
    for pragma, wanted in _PRAGMAS:
        db.execute(f"pragma {pragma} = {wanted}")
        got = db.execute(f"pragma {pragma}").fetchone()[0]
        if got != wanted:
            raise StoreError(f"{path}: {pragma} is {got!r}, not {wanted!r}: the disk cannot keep our promises")


class Reserve:
    """Space on the disk that only a full disk makes us give up."""

    def __init__(self, store: Path, *, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.path = store.with_name(f"{store.name}-reserve")

    @property
    def is_held(self) -> bool:
        """Tell whether the space is there to be given up."""
        try:
            return self.path.stat().st_size >= self.size_bytes > 0
        except OSError:
            return False

    def hold(self) -> bool:
        """Take the space, where the disk has as much again left over; tell whether it is held."""
        if self.is_held or not self.size_bytes:
            return True
        try:
            if shutil.disk_usage(self.path.parent).free < 2 * self.size_bytes:
                return False
            with self.path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.size_bytes)
        except OSError:
            self.give_up()
            return False
        return True

    def give_up(self) -> bool:
        """Give the space back to the disk; tell whether there was any."""
        was_held = self.is_held
        with contextlib.suppress(OSError):
            os.truncate(self.path, 0)
        return was_held


def _name(error: Exception) -> str:
    name: Any = getattr(error, "sqlite_errorname", "")
    return str(name or "")
