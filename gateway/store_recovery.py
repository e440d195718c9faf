"""Opening the store whatever state its file is in: a damaged one is set aside, and what can be read of it is saved.

The new store has a new epoch: numbers whose messages may be lost cannot be continued without a hole. What the county
had acknowledged comes along as history, what it had not is put into the outbox again.
"""

import contextlib
import logging
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gateway.store import Store, StoreDamaged
from gateway.store_rows import reading_of_row
from protocols.contract import AlertBody

log = logging.getLogger(__name__)
T = TypeVar("T")

_SIDE_FILES: Final = ("", "-wal", "-shm")


class Salvage(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a damaged store."""

    set_aside: Path
    cause: str
    readings: int
    alerts: int


def open_store(path: Path, *, new_id: Callable[[], str]) -> tuple[Store, Salvage | None]:
    """Open the store, or a new one that holds what could be read of the damaged one.

    `new_id` gives ULIDs. Raises StoreError where no store can be made at all (disk full, no permission).
    """
    try:
        return Store(path, new_epoch=new_id()), None
    except StoreDamaged as error:
        cause = str(error)
    aside = path.with_name(f"{path.name}.damaged-{new_id()}")
    for suffix in _SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    store = Store(path, new_epoch=new_id())
    readings, alerts = _salvage(aside, store)
    salvage = Salvage(set_aside=aside, cause=cause, readings=readings, alerts=alerts)
    log.error(
        "store_damaged: %s; set aside as %s, saved from it: %d readings, %d alert steps. Send the file to support and"
        " check the card (dmesg)",
        cause,
        aside,
        readings,
        alerts,
    )
    return store, salvage


def _salvage(aside: Path, store: Store) -> tuple[int, int]:
    """Copy what can be read; return how many readings and alert steps that was."""
    connection = sqlite3.connect(aside)
    connection.row_factory = sqlite3.Row
    with contextlib.closing(connection):
        episodes = list(_decoded(connection, "select body from episode where is_open order by id", _step))
        steps = list(_decoded(connection, "select body from alert order by seq", _step))
        first_waiting = min(
            _decoded(connection, "select first_id from telemetry where dropped is null", lambda row: int(row[0])),
            default=sys.maxsize,
        )
        boots = dict(_decoded(connection, "select id, boot_id from boot", lambda row: (row["id"], row["boot_id"])))
        readings = list(
            _decoded(
                connection,
                "select * from reading order by id",
                lambda row: (row["id"], reading_of_row({**row, "boot_id": boots[row["boot"]]})),
            )
        )
    store.adopt((reading for id_, reading in readings if id_ < first_waiting), episodes)
    store.commit([reading for id_, reading in readings if id_ >= first_waiting], steps)
    return len(readings), len(steps)


def _decoded(connection: sqlite3.Connection, sql: str, decode: Callable[[sqlite3.Row], T]) -> Iterator[T]:
    """Yield what can be read and makes sense; a damaged page ends its table, a damaged row is passed over."""
    try:
        rows = connection.execute(sql)
        while (row := rows.fetchone()) is not None:
            try:
                yield decode(row)
            except (ValueError, TypeError, KeyError, AssertionError, msgspec.MsgspecError):
                continue
    except sqlite3.DatabaseError as error:
        log.warning("store_damaged_table: %s: %s", sql, error)


def _step(row: sqlite3.Row) -> AlertBody:
    return msgspec.json.decode(row["body"], type=AlertBody)
