"""The gateway's store: readings, episodes and the outbox, in one SQLite file that survives a power cut at any moment.

The rules:

1. What `commit` returned from is on the disk (WAL, synchronous=FULL, both read back): readings, alert steps and their
   places in the outbox, all or nothing.
2. `seq` counts per stream from 1 without holes: it is given inside the transaction that commits its message.
3. A message leaves the outbox only by `acknowledge`, or, telemetry alone, by `make_room`, which leaves a tombstone.
4. Readings stay after their message has left, as the history that the detectors are rebuilt from.
5. What was learned of a home is committed together with the readings that taught it: see `gateway.store_memory`.

One thread owns a Store (`gateway.owner`); another process may open one with `read_only=True`.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

import msgspec

from gateway import store_memory, store_outbox, store_space
from gateway.store_file import CHECKPOINT_PAGES, StoreDamaged, StoreError, StoreRolledBack, translated
from gateway.store_memory import HourlyValue, Learned, Memory
from gateway.store_outbox import Outgoing, StreamStatus
from gateway.store_rows import READING_SQL, decode_alert, decode_reading, row_of
from protocols.absence import Absence
from protocols.contract import READINGS_PER_MESSAGE_MAX, AlertBody, AlertState, NotUnderstood, Stream
from protocols.reading import Moment, Reading

__all__ = ["CHECKPOINT_PAGES", "HourlyValue", "Learned", "Outgoing", "Store", "StoreDamaged", "StoreError"]
__all__ += ["StoreRolledBack", "StreamStatus"]

log = logging.getLogger(__name__)

_NEWEST_SQL: Final = f"{READING_SQL} where reading.id in (select max(id) from reading group by meter)"
_NEWEST_VALUE_SQL: Final = (
    f"{READING_SQL} where reading.id in (select max(id) from reading where volume_ml is not null group by meter)"
)
# Neighbours are compared, because grouping by boot would sort all readings in memory: 20 MiB for a week of 200 meters.
_BOOT_ENDS_SQL: Final = f"""{READING_SQL} where
    (select boot from reading as before where before.id = reading.id - 1) is not reading.boot
    or (select boot from reading as after where after.id = reading.id + 1) is not reading.boot
    or (trust = 'synced' and (select trust from reading as after where after.id = reading.id + 1) is not 'synced')
    order by reading.id"""
_INSERT_READING_SQL: Final = "insert into reading values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE_SQL: Final = {stream: f"delete from {stream} where seq <= ?" for stream in Stream}


class Store(Memory):
    """An open store."""

    def _opened(self, *, read_only: bool) -> None:
        self._renewed = False
        # The county cannot have more of ours than was committed before, and what was handed out since.
        self._offered = {} if read_only else {stream: self.status(stream).last_seq for stream in Stream}

    # -- what the pipeline does -------------------------------------------------------------------------------------

    def commit(
        self,
        readings: Sequence[Reading],
        alerts: Sequence[AlertBody],
        learned: Sequence[Learned] = (),
        absences: Sequence[Absence] = (),
    ) -> None:
        """Accept readings, the alert steps that they caused, what was learned from them, and absences that they ended.

        Raises StoreError; then nothing was accepted.
        """

        def accept() -> None:
            boots = {boot_id: self._boot(boot_id) for boot_id in {reading.at.boot_id for reading in readings}}
            for start in range(0, len(readings), READINGS_PER_MESSAGE_MAX):
                self._append_telemetry(readings[start : start + READINGS_PER_MESSAGE_MAX], boots)
            self._put_learned(learned)
            self._put_absences(absences)
            for alert in alerts:
                self._append_alert(alert)

        self._write("readings cannot be committed", accept)

    def adopt(
        self,
        history: Sequence[Reading],
        episodes: Sequence[AlertBody],
        *,
        learned: Sequence[Learned] = (),
        hourly: Sequence[HourlyValue] = (),
        absences: Sequence[Absence] = (),
    ) -> None:
        """Take over what another store had already delivered, without messages, and what it remembered.

        Raises StoreError; then nothing was taken over.
        """

        def take_over() -> None:
            boots = {boot_id: self._boot(boot_id) for boot_id in {reading.at.boot_id for reading in history}}
            self._insert(history, boots)
            self._put_hourly(hourly)
            self._put_learned(learned)
            self._put_absences(absences)
            for episode in episodes:
                self._put_episode(episode, msgspec.json.encode(episode).decode())

        self._write("a salvaged history cannot be stored", take_over)

    def _insert(self, readings: Sequence[Reading], boots: dict[str, int]) -> int:
        """Store readings under the next ids; return the first of them."""
        first_id = 1 + int(self._scalar("select coalesce(max(id), 0) from reading"))
        # An empty table must not use an id again that a message in the outbox still points to.
        first_id = max(first_id, 1 + int(self._scalar("select coalesce(max(last_id), 0) from telemetry")))
        self._db.conn.executemany(
            _INSERT_READING_SQL,
            [row_of(id_, reading, boots[reading.at.boot_id]) for id_, reading in enumerate(readings, first_id)],
        )
        return first_id

    def _append_telemetry(self, readings: Sequence[Reading], boots: dict[str, int]) -> None:
        first_id = self._insert(readings, boots)
        self._db.execute(
            "insert into telemetry values (?, ?, ?, null)",
            [self._next_seq(Stream.TELEMETRY), first_id, first_id + len(readings) - 1],
        )

    def _append_alert(self, alert: AlertBody) -> None:
        body = msgspec.json.encode(alert).decode()
        msgspec.json.decode(body, type=AlertBody)  # what cannot be read again must not be accepted
        self._put_episode(alert, body)
        self._db.execute("insert into alert values (?, ?, ?)", [self._next_seq(Stream.ALERT), alert.id, body])

    def _put_episode(self, alert: AlertBody, body: str) -> None:
        is_open = alert.state is not AlertState.CLEARED
        self._db.execute(
            "insert into episode values (?, ?, ?, ?, ?) on conflict (id) do update set is_open = ?4, body = ?5",
            [alert.id, alert.meter, alert.kind, is_open, body],
        )

    def note_episode(self, body: AlertBody) -> bool:
        """Replace what an open episode says of itself, without a message; tell whether there is such an episode.

        Raises StoreError.
        """
        assert body.state is not AlertState.CLEARED, body
        text = msgspec.json.encode(body).decode()
        msgspec.json.decode(text, type=AlertBody)
        sql = "update episode set body = ? where id = ? and is_open"
        return self._write("a note cannot be stored", lambda: self._db.execute(sql, [text, body.id]).rowcount == 1)

    def _next_seq(self, stream: Stream) -> int:
        self._db.execute("update stream set last_seq = last_seq + 1 where name = ?", [stream])
        return int(self._scalar("select last_seq from stream where name = ?", stream))

    def _boot(self, boot_id: str) -> int:
        self._db.execute("insert or ignore into boot (boot_id) values (?)", [boot_id])
        return int(self._scalar("select id from boot where boot_id = ?", boot_id))

    def history(self) -> Iterator[Reading]:
        """Yield the readings that the store still has, oldest first. Raises StoreError."""
        with translated("the history cannot be read"):
            for row in self._db.query(f"{READING_SQL} order by reading.id"):
                yield decode_reading(row)

    def moments(self) -> list[Moment]:
        """Return what dates the boots of the history: of each the first moment, the last synced and the last one.

        Where the clock was lost meanwhile there may be more. Oldest first. Raises StoreError.
        """
        with translated("the history cannot be read"):
            return [decode_reading(row).at for row in self._db.query(_BOOT_ENDS_SQL)]

    def open_episodes(self) -> list[AlertBody]:
        """Return the newest step of every episode that is not cleared, oldest first. Raises StoreError."""
        with translated("the open episodes cannot be read"):
            rows = self._db.query("select body from episode where is_open order by id")
            return [decode_alert(row["body"]) for row in rows]

    # -- what the forwarder does ------------------------------------------------------------------------------------

    def status(self, stream: Stream) -> StreamStatus:
        """Return how far a stream has come. Raises StoreError."""
        with translated("the state of the outbox cannot be read"):
            sql = "select last_seq, acked_seq, acked_wall_ms from stream where name = ?"
            row = self._db.execute(sql, [stream]).fetchone()
        if row is None:
            raise StoreDamaged(f"the stream {stream} is gone")
        return StreamStatus(last_seq=row[0], acked_seq=row[1], acked_wall_ms=row[2])

    def outgoing(self, stream: Stream, after_seq: int, limit: int) -> list[Outgoing]:
        """Return up to `limit` messages that wait, in the order of their seq, from the one after `after_seq`.

        Raises StoreError.
        """
        with translated("the outbox cannot be read"):
            read = store_outbox.alerts if stream is Stream.ALERT else store_outbox.telemetry
            messages = read(self._db, epoch=self.epoch, after_seq=after_seq, limit=limit)
        if messages:
            self._offered[stream] = max(self._offered.get(stream, 0), messages[-1].seq)
        return messages

    def acknowledge(
        self,
        up_to: dict[Stream, int],
        *,
        wall_ms: int,
        not_understood: Sequence[NotUnderstood] = (),
        epoch: str | None = None,
        new_epoch: str = "",
    ) -> dict[Stream, int]:
        """Take messages out of the outbox that the county has stored; return the new end of each stream that moved.

        What the county stored without understanding it is kept aside here as well. Where it speaks of another `epoch`
        than ours nothing happens. A number that was never sent by us, or under which the county holds something else,
        proves that the store was rolled back: then nothing is taken out, what waits is numbered anew under `new_epoch`,
        and StoreRolledBack is raised. That happens once at most while a store is open, so that no county can make us
        send for ever; afterwards such a number is ignored. Without a `new_epoch` all that is committed counts as sent,
        and what lies beyond is ignored. Raises StoreError.
        """
        if epoch not in {None, self.epoch}:
            return {}
        if new_epoch and not self._renewed and (proof := self._proof_of_rollback(up_to, not_understood)):
            self._renew(new_epoch, proof)

        def take_out() -> dict[Stream, int]:
            for item in not_understood:
                self._set_aside(item, wall_ms)
            sent = self._offered if new_epoch else {stream: self.status(stream).last_seq for stream in up_to}
            return {stream: seq for stream, seq in up_to.items() if self._advance(stream, seq, sent[stream], wall_ms)}

        return self._write("an acknowledgement cannot be stored", take_out)

    def _proof_of_rollback(self, up_to: dict[Stream, int], not_understood: Sequence[NotUnderstood]) -> str | None:
        for stream, seq in up_to.items():
            if seq > self._offered[stream]:
                return f"the county has {stream} {seq}, we have sent {self._offered[stream]} at most"
        for item in not_understood:
            if item.held_otherwise and item.seq > self.status(item.stream).acked_seq:
                return f"the county holds something else as {item.stream} {item.seq}"
        return None

    def _renew(self, epoch: str, proof: str) -> NoReturn:
        self._write("what waits cannot be numbered anew", lambda: store_outbox.renumber(self._db, epoch))
        before, self.epoch, self._renewed = self.epoch, epoch, True
        self._offered = {stream: self.status(stream).last_seq for stream in Stream}
        log.error(
            "store_rolled_back epoch=%s new_epoch=%s: %s. An older copy of the store was put back, the card lost what"
            " it had confirmed, or two gateways use one store; what waits is sent again under the new epoch",
            before,
            epoch,
            proof,
        )
        raise StoreRolledBack(proof)

    def _advance(self, stream: Stream, seq: int, sent_seq: int, wall_ms: int) -> bool:
        if seq > sent_seq:
            log.error("ack_beyond_sent stream=%s up_to=%d last_seq=%d: ignored", stream, seq, sent_seq)
            return False
        if seq <= self.status(stream).acked_seq:
            return False
        self._db.execute(_DELETE_SQL[stream], [seq])
        self._db.execute("update stream set acked_seq = ?, acked_wall_ms = ? where name = ?", [seq, wall_ms, stream])
        return True

    def _set_aside(self, item: NotUnderstood, wall_ms: int) -> None:
        messages = self.outgoing(item.stream, item.seq - 1, 1)
        if messages and messages[0].seq == item.seq:
            store_outbox.set_aside(self._db, messages[0], item, epoch=self.epoch, wall_ms=wall_ms)

    # -- space ------------------------------------------------------------------------------------------------------

    def forget(self, *, keep_newest: int) -> int:
        """Delete acknowledged readings that are not among the newest so many; return how many. Raises StoreError.

        With them go ended episodes that were told, and what is too old of the hours, absences and commands.

        They are counted, not dated: a wall clock that leaps ahead must not make the whole history old.
        """

        def forget_some() -> int:
            last_id = store_space.last_to_forget(self._db, keep_newest)
            with self._keeping_hours(last_id):
                return store_space.forget(self._db, last_id)

        forgotten = 0
        while step := self._write("old readings cannot be deleted", forget_some):
            forgotten += step
        sql = "delete from episode where not is_open and id not in (select episode from alert)"
        self._write("old episodes cannot be deleted", lambda: self._db.execute(sql))
        self._write("old memories cannot be deleted", lambda: store_memory.forget(self._db))
        return forgotten

    def bytes_used(self) -> int:
        """Return the bytes of pages that hold data; free pages inside the file do not count. Raises StoreError."""
        with translated("the size of the store cannot be read"):
            return store_space.bytes_used(self._db)

    def make_room(self, *, bytes_max: int) -> int:
        """Drop the oldest history, then the oldest telemetry, until the store fits; return the readings dropped unsent.

        Where no reading is left the oldest hourly values go. Dropped telemetry leaves a tombstone with its seq; alerts
        are never dropped. Where the disk is so full that the reserve is gone, the store lives in the space that it has:
        there, room means free pages inside the file. Raises StoreError.
        """
        dropped = 0
        while self.bytes_used() > bytes_max or self._is_cramped():
            bounds = self._read("select min(id), max(id) from reading")
            if bounds[0] is None:
                if self._write("no room can be made", lambda: store_memory.drop_oldest_hours(self._db)):
                    continue
                break
            step = max(1, (bounds[1] - bounds[0]) // 20)  # a twentieth at a time
            last_id = bounds[0] + min(step, store_space.READINGS_PER_DELETE_MAX)
            dropped += self._write("no room can be made", functools.partial(self._drop_oldest, last_id))
        return dropped

    def _drop_oldest(self, last_id: int) -> int:
        last_id = store_space.last_of_message(self._db, last_id)
        with self._keeping_hours(last_id):
            return store_space.drop_oldest(self._db, last_id)

    def _is_cramped(self) -> bool:
        """Tell whether neither the disk nor the file has room for what comes next."""
        with translated("the size of the store cannot be read"):
            if self._reserve.hold():
                store_space.release(self._db)
                return False
            # At most a quarter of a small store: the disk may be full of other people's files.
            return (
                store_space.room_bytes(self._db) < min(self._reserve.size_bytes, store_space.bytes_used(self._db)) // 4
            )

    # -- what people ask --------------------------------------------------------------------------------------------

    def last_readings(self) -> dict[str, Reading]:
        """Return the newest reading of every meter. Raises StoreError."""
        return self._by_meter(_NEWEST_SQL)

    def last_values(self) -> dict[str, Reading]:
        """Return the newest reading that has a value, of every meter. Raises StoreError."""
        return self._by_meter(_NEWEST_VALUE_SQL)

    def set_aside_count(self) -> int:
        """Return how many messages the county stored without understanding them. Raises StoreError."""
        return int(self._read("select count(*) from set_aside")[0])

    def _by_meter(self, sql: str) -> dict[str, Reading]:
        with translated("the readings cannot be read"):
            return {reading.meter: reading for reading in map(decode_reading, self._db.query(sql))}
