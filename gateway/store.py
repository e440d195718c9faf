"""The gateway's store: readings, episodes and the outbox, in one SQLite file that survives a power cut at any moment.

The rules:

1. What `commit` returned from is on the disk (WAL, synchronous=FULL, both read back): readings, alert steps and their
   places in the outbox, all or nothing.
2. `seq` counts per stream from 1 without holes: it is given inside the transaction that commits its message.
3. A message leaves the outbox only by `acknowledge`, or, telemetry alone, by `make_room`, which leaves a tombstone.
4. Readings stay after their message has left, as the history that the detectors are rebuilt from.

One thread owns a Store (`gateway.owner`); another process may open one with `read_only=True`.
"""

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlite_utils

from gateway import store_schema
from gateway.store_rows import reading_of_row, row_of
from protocols.contract import READINGS_PER_MESSAGE_MAX, AlertBody, AlertState, Dropped, NotUnderstood, Stream, instant
from protocols.errors import ShuiwangError
from protocols.reading import Reading

log = logging.getLogger(__name__)

# A transaction may wait so long for another process (a backup, `shuiwang status`) before it fails.
BUSY_MS: Final = 5000
# The WAL is copied back at this size: rarely, because a power cut during a checkpoint is WAL's only weak moment.
CHECKPOINT_PAGES: Final = 1000
WAL_BYTES_MAX: Final = 8 * 1024 * 1024


_READING_SQL: Final = (
    "select meter, wall_ms, trust, uncertainty_ms, boot.boot_id as boot_id, boottime_ms,"
    " volume_ml, quality, reason, flags from reading join boot on boot.id = reading.boot"
)
_NEWEST_SQL: Final = f"{_READING_SQL} where reading.id in (select max(id) from reading group by meter)"
_NEWEST_VALUE_SQL: Final = (
    f"{_READING_SQL} where reading.id in (select max(id) from reading where volume_ml is not null group by meter)"
)
_INSERT_READING_SQL: Final = "insert into reading values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE_SQL: Final = {stream: f"delete from {stream} where seq <= ?" for stream in Stream}


class StoreError(ShuiwangError):
    """The store could not do it (disk full, I/O error); nothing of the transaction happened."""


class StoreDamaged(StoreError):
    """The file is not a sound database of ours."""


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the outbox, without the envelope that is put on when it is sent."""

    stream: Stream
    seq: int
    readings: tuple[Reading, ...] | None = None
    dropped: Dropped | None = None
    alert: AlertBody | None = None


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream has come; `last_seq - acked_seq` messages wait."""

    last_seq: int
    acked_seq: int
    acked_wall_ms: int | None


class Store:
    """An open store."""

    def __init__(self, path: Path, *, new_epoch: str = "", read_only: bool = False) -> None:
        """Open the file, or make it, with `new_epoch` as its epoch.

        Raises StoreDamaged for a file that is not a sound store, StoreError where it cannot be opened at all.
        """
        self.path = path
        with _translated(f"{path} cannot be opened"):
            uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=BUSY_MS / 1000)
            connection.isolation_level = None
            self._db = sqlite_utils.Database(connection)
            try:
                if not read_only:
                    self._configure()
                    self._check()
                    store_schema.migrations.apply(self._db)
                    self._db.execute("insert or ignore into meta values ('epoch', ?)", [new_epoch])
                self.epoch: str = self._scalar("select value from meta where key = 'epoch'")
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the file; SQLite copies the WAL back."""
        self._db.close()

    # -- what the pipeline does -------------------------------------------------------------------------------------

    def commit(self, readings: Sequence[Reading], alerts: Sequence[AlertBody]) -> None:
        """Accept readings and the alert steps that they caused. Raises StoreError; then nothing was accepted."""
        with _translated("readings cannot be committed"), self._db.atomic():
            boots = {moment.boot_id: self._boot(moment.boot_id) for moment in (reading.at for reading in readings)}
            for start in range(0, len(readings), READINGS_PER_MESSAGE_MAX):
                self._append_telemetry(readings[start : start + READINGS_PER_MESSAGE_MAX], boots)
            for alert in alerts:
                self._append_alert(alert)

    def adopt(self, history: Iterable[Reading], episodes: Iterable[AlertBody]) -> None:
        """Take over what another store had already delivered: readings and open episodes, without messages."""
        with _translated("a salvaged history cannot be stored"), self._db.atomic():
            boots: dict[str, int] = {}
            for id_, reading in enumerate(history, 1 + int(self._scalar("select coalesce(max(id), 0) from reading"))):
                if reading.at.boot_id not in boots:
                    boots[reading.at.boot_id] = self._boot(reading.at.boot_id)
                self._db.execute(_INSERT_READING_SQL, row_of(id_, reading, boots[reading.at.boot_id]))
            for episode in episodes:
                self._put_episode(episode, msgspec.json.encode(episode).decode())

    def _append_telemetry(self, readings: Sequence[Reading], boots: dict[str, int]) -> None:
        first_id = 1 + int(self._scalar("select coalesce(max(id), 0) from reading"))
        # An empty table must not use an id again that a message in the outbox still points to.
        first_id = max(first_id, 1 + int(self._scalar("select coalesce(max(last_id), 0) from telemetry")))
        self._db.conn.executemany(
            _INSERT_READING_SQL,
            [row_of(id_, reading, boots[reading.at.boot_id]) for id_, reading in enumerate(readings, first_id)],
        )
        self._db.execute(
            "insert into telemetry values (?, ?, ?, null)",
            [self._next_seq(Stream.TELEMETRY), first_id, first_id + len(readings) - 1],
        )

    def _append_alert(self, alert: AlertBody) -> None:
        body = msgspec.json.encode(alert).decode()
        self._put_episode(alert, body)
        self._db.execute(
            "insert into alert values (?, ?, ?)",
            [self._next_seq(Stream.ALERT), alert.id, body],
        )

    def _put_episode(self, alert: AlertBody, body: str) -> None:
        is_open = alert.state is not AlertState.CLEARED
        self._db.execute(
            "insert into episode values (?, ?, ?, ?, ?) on conflict (id) do update set is_open = ?4, body = ?5",
            [alert.id, alert.meter, alert.kind, is_open, body],
        )

    def _next_seq(self, stream: Stream) -> int:
        self._db.execute("update stream set last_seq = last_seq + 1 where name = ?", [stream])
        return int(self._scalar("select last_seq from stream where name = ?", stream))

    def _boot(self, boot_id: str) -> int:
        self._db.execute("insert or ignore into boot (boot_id) values (?)", [boot_id])
        return int(self._scalar("select id from boot where boot_id = ?", boot_id))

    def history(self) -> Iterator[Reading]:
        """Yield the readings that the store still has, oldest first."""
        for row in self._db.query(f"{_READING_SQL} order by reading.id"):
            yield reading_of_row(row)

    def open_episodes(self) -> list[AlertBody]:
        """Return the newest step of every episode that is not cleared, oldest first."""
        rows = self._db.query("select body from episode where is_open order by id")
        return [msgspec.json.decode(row["body"], type=AlertBody) for row in rows]

    # -- what the forwarder does ------------------------------------------------------------------------------------

    def status(self, stream: Stream) -> StreamStatus:
        """Return how far a stream has come."""
        row = next(self._db.query("select last_seq, acked_seq, acked_wall_ms from stream where name = ?", [stream]))
        return StreamStatus(**row)

    def outgoing(self, stream: Stream, after_seq: int, limit: int) -> list[Outgoing]:
        """Return up to `limit` messages that wait, in the order of their seq, from the one after `after_seq`."""
        with _translated("the outbox cannot be read"):
            if stream is Stream.ALERT:
                return self._outgoing_alerts(after_seq, limit)
            rows = self._db.query("select * from telemetry where seq > ? order by seq limit ?", [after_seq, limit])
            return [self._outgoing_telemetry(row) for row in list(rows)]

    def _outgoing_alerts(self, after_seq: int, limit: int) -> list[Outgoing]:
        # Historical: a later step of the same episode exists already.
        rows = self._db.query(
            "select alert.seq, alert.body, exists (select 1 from alert as later where later.episode = alert.episode"
            " and later.seq > alert.seq) as historical from alert where seq > ? order by seq limit ?",
            [after_seq, limit],
        )
        return [
            Outgoing(
                stream=Stream.ALERT,
                seq=row["seq"],
                alert=msgspec.structs.replace(
                    msgspec.json.decode(row["body"], type=AlertBody), historical=bool(row["historical"])
                ),
            )
            for row in rows
        ]

    def _outgoing_telemetry(self, row: dict[str, Any]) -> Outgoing:
        if row["dropped"] is not None:
            dropped = msgspec.json.decode(row["dropped"], type=Dropped)
            return Outgoing(stream=Stream.TELEMETRY, seq=row["seq"], dropped=dropped)
        rows = self._db.query(
            f"{_READING_SQL} where reading.id between ? and ? order by reading.id", [row["first_id"], row["last_id"]]
        )
        readings = tuple(reading_of_row(reading) for reading in rows)
        return Outgoing(stream=Stream.TELEMETRY, seq=row["seq"], readings=readings)

    def acknowledge(
        self, up_to: dict[Stream, int], *, wall_ms: int, not_understood: Iterable[NotUnderstood] = ()
    ) -> dict[Stream, int]:
        """Take messages out of the outbox that the county has stored; return the new end of each stream that moved.

        What the county stored without understanding it is kept aside here as well. A number beyond the last message
        was never sent by us: that part of the acknowledgement is ignored. Raises StoreError.
        """
        moved = {}
        with _translated("an acknowledgement cannot be stored"), self._db.atomic():
            for item in not_understood:
                self._set_aside(item, wall_ms)
            for stream, seq in up_to.items():
                status = self.status(stream)
                if seq > status.last_seq:
                    log.error("ack_beyond_sent stream=%s up_to=%d last_seq=%d: ignored", stream, seq, status.last_seq)
                    continue
                if seq <= status.acked_seq:
                    continue
                self._db.execute(_DELETE_SQL[stream], [seq])
                self._db.execute(
                    "update stream set acked_seq = ?, acked_wall_ms = ? where name = ?", [seq, wall_ms, stream]
                )
                moved[stream] = seq
        return moved

    def _set_aside(self, item: NotUnderstood, wall_ms: int) -> None:
        messages = self.outgoing(item.stream, item.seq - 1, 1)
        if not messages or messages[0].seq != item.seq:
            return
        body = json.dumps(msgspec.to_builtins(messages[0]), ensure_ascii=False)
        self._db.execute(
            "insert or ignore into set_aside values (?, ?, ?, ?, ?)",
            [item.stream, item.seq, body, item.reason, wall_ms],
        )

    # -- space ------------------------------------------------------------------------------------------------------

    def forget(self, *, before_wall_ms: int) -> int:
        """Delete readings that were taken before an instant and are acknowledged; return how many."""
        with _translated("old readings cannot be deleted"), self._db.atomic():
            waiting_id = self._scalar("select min(first_id) from telemetry where dropped is null")
            cursor = self._db.execute(
                "delete from reading where wall_ms < ? and id < coalesce(?, 9e18)", [before_wall_ms, waiting_id]
            )
            self._db.execute("delete from episode where not is_open and id not in (select episode from alert)")
            return int(cursor.rowcount)

    def bytes_used(self) -> int:
        """Return the bytes of pages that hold data; free pages inside the file do not count."""
        pages = self._scalar("pragma page_count") - self._scalar("pragma freelist_count")
        return int(pages * self._scalar("pragma page_size"))

    def make_room(self, *, bytes_max: int) -> int:
        """Drop the oldest history, then the oldest telemetry, until the store fits; return the readings dropped unsent.

        Dropped telemetry leaves a tombstone with its seq; alerts are never dropped.
        """
        dropped = 0
        while self.bytes_used() > bytes_max:
            with _translated("no room can be made"), self._db.atomic():
                ids = self._scalar("select min(id) from reading"), self._scalar("select max(id) from reading")
                if ids[0] is None:
                    break
                last_id = ids[0] + max(1, (ids[1] - ids[0]) // 20)  # a twentieth at a time
                dropped += self._bury(last_id)
                self._db.execute("delete from reading where id <= ?", [last_id])
        return dropped

    def _bury(self, last_id: int) -> int:
        """Replace waiting messages that hold readings up to `last_id` by tombstones."""
        messages = list(
            self._db.query(
                "select seq, first_id, last_id from telemetry where dropped is null and first_id <= ?", [last_id]
            )
        )
        dropped = 0
        for message in messages:
            span = next(
                self._db.query(
                    "select count(*) as count, min(wall_ms) as start, max(wall_ms) as end from reading"
                    " where id between ? and ?",
                    [message["first_id"], message["last_id"]],
                )
            )
            tombstone = Dropped(readings=span["count"], start=instant(span["start"]), end=instant(span["end"]))
            self._db.execute(
                "update telemetry set dropped = ? where seq = ?",
                [msgspec.json.encode(tombstone).decode(), message["seq"]],
            )
            self._db.execute("delete from reading where id between ? and ?", [message["first_id"], message["last_id"]])
            dropped += span["count"]
        return dropped

    # -- what people ask --------------------------------------------------------------------------------------------

    def last_readings(self) -> dict[str, Reading]:
        """Return the newest reading of every meter."""
        return {reading.meter: reading for reading in map(reading_of_row, self._db.query(_NEWEST_SQL))}

    def last_values(self) -> dict[str, Reading]:
        """Return the newest reading that has a value, of every meter."""
        return {reading.meter: reading for reading in map(reading_of_row, self._db.query(_NEWEST_VALUE_SQL))}

    def set_aside_count(self) -> int:
        """Return how many messages the county stored without understanding them."""
        return int(self._scalar("select count(*) from set_aside"))

    # -- the file ---------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        for pragma, wanted in (
            ("journal_mode", "wal"),
            ("synchronous", 2),  # FULL: a commit that returned survives a power cut
            ("foreign_keys", 1),
            ("wal_autocheckpoint", CHECKPOINT_PAGES),
            ("journal_size_limit", WAL_BYTES_MAX),
            ("temp_store", 2),  # memory: no temporary files on the card
            ("mmap_size", 0),
        ):
            self._db.execute(f"pragma {pragma} = {wanted}")
            if (got := self._scalar(f"pragma {pragma}")) != wanted:
                raise StoreError(f"{self.path}: {pragma} is {got!r}, not {wanted!r}: the disk cannot keep our promises")

    def _check(self) -> None:
        verdict = self._scalar("pragma quick_check(1)")
        if verdict != "ok":
            raise StoreDamaged(f"{self.path}: {verdict}")

    def _scalar(self, sql: str, *parameters: Any) -> Any:
        return self._db.execute(sql, parameters).fetchone()[0]


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorname", "")
        kind = StoreDamaged if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) else StoreError
        raise kind(f"{what}: {error}") from error
