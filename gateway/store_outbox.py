"""The outbox: what waits in it, copies of what the county could not read, and new numbers after a rollback.

A store that was rolled back (an old image of the card put back, a card that lied about having synced) gives numbers of
its epoch a second time. The county has other messages under them: it would acknowledge ours without ever storing them.
So what waits gets a new epoch and new numbers from 1, before the county's acknowledgement has deleted anything.
"""

import json
import logging
from typing import Any, Final

import msgspec
import sqlite_utils

from gateway.store_rows import READING_SQL, decode_alert, decode_reading
from protocols.contract import AlertBody, Dropped, NotUnderstood, Stream
from protocols.reading import Reading

log = logging.getLogger(__name__)

# Copies for a technician, who looks at the newest: a county that understands nothing any more must not fill the card.
# 4 MiB are under a hundredth of the store's quota and hold some 60 of the largest messages (500 readings, 60 KiB).
SET_ASIDE_ROWS_MAX: Final = 1000
SET_ASIDE_BYTES_MAX: Final = 4 * 1024 * 1024


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the outbox, without the envelope that is put on when it is sent; `seq` counts in `epoch`."""

    stream: Stream
    epoch: str
    seq: int
    readings: tuple[Reading, ...] | None = None
    dropped: Dropped | None = None
    alert: AlertBody | None = None


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream has come; `last_seq - acked_seq` messages wait."""

    last_seq: int
    acked_seq: int
    acked_wall_ms: int | None


def alerts(db: sqlite_utils.Database, *, epoch: str, after_seq: int, limit: int) -> list[Outgoing]:
    """Return alert steps that wait. Raises sqlite3.Error or StoreDamaged."""
    # Historical: a later step of the same episode exists already.
    rows = db.query(
        "select alert.seq, alert.body, exists (select 1 from alert as later where later.episode = alert.episode"
        " and later.seq > alert.seq) as historical from alert where seq > ? order by seq limit ?",
        [after_seq, limit],
    )
    return [
        Outgoing(
            stream=Stream.ALERT,
            epoch=epoch,
            seq=row["seq"],
            alert=msgspec.structs.replace(decode_alert(row["body"]), historical=bool(row["historical"])),
        )
        for row in rows
    ]


def telemetry(db: sqlite_utils.Database, *, epoch: str, after_seq: int, limit: int) -> list[Outgoing]:
    """Return telemetry that waits, readings or tombstones. Raises sqlite3.Error or StoreDamaged."""
    rows = db.query("select * from telemetry where seq > ? order by seq limit ?", [after_seq, limit])
    return [_telemetry(db, row, epoch) for row in list(rows)]


def _telemetry(db: sqlite_utils.Database, row: dict[str, Any], epoch: str) -> Outgoing:
    if row["dropped"] is not None:
        dropped = msgspec.json.decode(row["dropped"], type=Dropped)
        return Outgoing(stream=Stream.TELEMETRY, epoch=epoch, seq=row["seq"], dropped=dropped)
    rows = db.query(
        f"{READING_SQL} where reading.id between ? and ? order by reading.id", [row["first_id"], row["last_id"]]
    )
    readings = tuple(decode_reading(reading) for reading in rows)
    return Outgoing(stream=Stream.TELEMETRY, epoch=epoch, seq=row["seq"], readings=readings)


def set_aside(db: sqlite_utils.Database, message: Outgoing, item: NotUnderstood, *, epoch: str, wall_ms: int) -> None:
    """Keep a copy of a message that the county has not understood; the oldest copies go where there are too many.

    Raises sqlite3.Error.
    """
    body = json.dumps(msgspec.to_builtins(message), ensure_ascii=False)
    db.execute(
        "insert or ignore into set_aside (epoch, stream, seq, body, reason, wall_ms) values (?, ?, ?, ?, ?, ?)",
        [epoch, item.stream, item.seq, body, item.reason, wall_ms],
    )
    # From the newest to the oldest, until rows or bytes are spent; everything from there on goes.
    evicted = db.execute(
        "delete from set_aside where id <= coalesce((select max(id) from (select id, row_number() over newest as row,"
        " sum(length(cast(body as blob)) + length(cast(reason as blob))) over newest as bytes from set_aside"
        " window newest as (order by id desc)) where row > ? or bytes > ?), 0)",
        [SET_ASIDE_ROWS_MAX, SET_ASIDE_BYTES_MAX],
    ).rowcount
    if evicted:
        log.warning("set_aside_evicted messages=%d: the oldest copies of what the county did not understand", evicted)


def renumber(db: sqlite_utils.Database, epoch: str) -> None:
    """Give the store a new epoch and what waits in both streams the numbers from 1. Raises sqlite3.Error."""
    db.execute("update meta set value = ? where key = 'epoch'", [epoch])
    for stream in Stream:
        acked = "(select acked_seq from stream where name = ?)"
        # Over negative numbers, so that no new number meets one that is not yet moved.
        db.execute(f"update {stream} set seq = {acked} - seq", [stream])
        db.execute(f"update {stream} set seq = -seq")
        db.execute(
            "update stream set last_seq = last_seq - acked_seq, acked_seq = 0, acked_wall_ms = null where name = ?",
            [stream],
        )
