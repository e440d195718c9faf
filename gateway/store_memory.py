"""What the store remembers besides readings and messages.

* What was learned of each home, as the detector dumps it. It goes in with the readings that taught it.
* The register at the end of every hour of which the readings are gone, for as long as a home's habits are learned from.
* Who is away, and what ended an absence.
* Which commands were answered and how, so that a repeated one is not done twice.

All of it is bounded, and none of it is worth refusing a reading or an alert for: what a failing card has spoilt is left
out and said.
"""

import contextlib
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec
import sqlite_utils

from gateway.store_base import StoreBase
from gateway.store_file import translated
from protocols.absence import Absence
from protocols.contract import Reply

log = logging.getLogger(__name__)
T = TypeVar("T")

MS_PER_HOUR: Final = 3_600_000
# A home's habits are learned from 60 days; two more, so that a day on either side is whole in any time zone.
HOURS_KEPT: Final = 62 * 24
# A reply is kept so that the repetition of its command finds it. A county repeats what it has not heard of for minutes,
# and a thousand are more than one gateway is told in a month; 1,000 of the longest are under 4 MiB.
COMMANDS_MAX: Final = 1_000
# For whoever asks why nobody was told last week. At most two a meter stand at once, and those are never forgotten.
ENDED_ABSENCES_MAX: Final = 500

_LEARNED_SQL: Final = "insert or replace into learned values (?, ?, ?, ?, ?, ?)"
_HOURLY_SQL: Final = "insert or replace into hourly values (?, ?, ?)"
# Each hour's last value of every meter: what it shows beyond doubt at a time beyond doubt. SQLite takes the columns
# beside max() from its row.
_HOURS_OF_READINGS_SQL: Final = (
    f"select wall_ms / {MS_PER_HOUR} as hour, meter, volume_ml, max(id) from reading"
    " where quality = 'ok' and trust = 'synced' and {} group by hour, meter"
)
_ABSENCE_SQL: Final = "insert or replace into absence values (?, ?, ?)"
_COMMAND_SQL: Final = "insert or replace into command (id, wall_ms, body, reply) values (?, ?, ?, ?)"


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of one meter's home (of the whole village, where `meter` is empty), and when.

    `state` is the detector's own; it was dumped at boot time `boottime_ms` of the boot `boot_id`, which lay at
    `position_ms` on the time axis then.
    """

    meter: str
    boot_id: str
    boottime_ms: int
    position_ms: int
    state: bytes


class HourlyValue(msgspec.Struct, frozen=True, kw_only=True):
    """The last register value of one hour that is beyond doubt; `hour` counts from 1970 in UTC."""

    hour: int
    meter: str
    volume_ml: int


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A command as it came, when it was answered (wall clock, ms), and what the answer was."""

    reply: Reply
    body: bytes
    wall_ms: int


class Memory(StoreBase):
    """The part of a store that remembers."""

    def learned(self) -> dict[str, Learned]:
        """Return what was learned, by meter; a state that is not what was stored is left out. Raises StoreError."""
        with translated("what was learned cannot be read"):
            found = {row["meter"]: learned_of_row(row) for row in self._db.query("select * from learned")}
        for meter in [meter for meter, learned in found.items() if learned is None]:
            log.error("learned_damaged meter=%s: left out; the home is learned anew from its readings", meter)
        return {meter: learned for meter, learned in found.items() if learned is not None}

    def hourly(self) -> Iterator[HourlyValue]:
        """Yield the values of the hours of which readings are gone, oldest first. Raises StoreError."""
        with translated("the hourly values cannot be read"):
            for row in self._db.query("select hour, meter, volume_ml from hourly order by hour, meter"):
                yield HourlyValue(**row)

    def hours_of(self, meter: str) -> list[HourlyValue]:
        """Return the values of all hours of one meter, of the readings that are still there as well, oldest first.

        Raises StoreError.
        """
        sql = "select hour, meter, volume_ml from hourly where meter = ?"
        with translated("the hourly values cannot be read"):
            rows = [*self._db.execute(sql, [meter]), *self._hours_of_readings("meter = ?", meter)]
        values = {hour: HourlyValue(hour=hour, meter=meter, volume_ml=volume_ml) for hour, meter, volume_ml in rows}
        return [values[hour] for hour in sorted(values)]

    def absences(self) -> list[Absence]:
        """Return all that stand and those that ended lately, in the order of their ids; what is none is left out.

        Raises StoreError.
        """
        with translated("the absences cannot be read"):
            rows = self._db.execute("select cast(id as blob), cast(body as blob) from absence order by id").fetchall()
        found = [_decoded("absence", id_, body, Absence) for id_, body in rows]
        return [absence for absence in found if absence is not None]

    def put_absence(self, absence: Absence, *others: Absence) -> None:
        """Keep an absence, in place of the one with its id; several in one transaction. Raises StoreError."""

        def keep() -> None:
            self._put_absences((absence, *others))

        self._write("an absence cannot be stored", keep)

    def command_reply(self, command_id: str) -> Reply | None:
        """Return what was answered to a command, None where it never came, is forgotten, or cannot be read.

        Raises StoreError.
        """
        with translated("the replies cannot be read"):
            row = self._db.execute("select cast(reply as blob) from command where id = ?", [command_id]).fetchone()
        return None if row is None else _decoded("reply", command_id.encode(), row[0], Reply)

    def remember_command(self, reply: Reply, *, body: bytes, wall_ms: int) -> None:
        """Keep a command as it came and what was answered. Raises StoreError."""
        self.remember_commands([Answered(reply=reply, body=body, wall_ms=wall_ms)])

    def remember_commands(self, commands: Iterable[Answered]) -> None:
        """Keep commands and what was answered to them, the newest COMMANDS_MAX in all. Raises StoreError."""
        rows = [(one.reply.id, one.wall_ms, one.body, msgspec.json.encode(one.reply).decode()) for one in commands]

        def remember() -> None:
            self._db.conn.executemany(_COMMAND_SQL, rows)
            self._db.execute(
                "delete from command where number <= (select max(number) from command) - ?", [COMMANDS_MAX]
            )

        self._write("a reply cannot be stored", remember)

    # -- within a transaction ---------------------------------------------------------------------------------------

    def _put_absences(self, absences: Iterable[Absence]) -> None:
        rows = [(one.id, one.ended_ms, msgspec.json.encode(one).decode()) for one in absences]
        self._db.conn.executemany(_ABSENCE_SQL, rows)

    def _put_learned(self, learned: Iterable[Learned]) -> None:
        rows = [(one.meter, one.boot_id, one.boottime_ms, one.position_ms, one.state, _crc(one)) for one in learned]
        self._db.conn.executemany(_LEARNED_SQL, rows)

    def _put_hourly(self, values: Iterable[HourlyValue]) -> None:
        self._db.conn.executemany(_HOURLY_SQL, [(one.hour, one.meter, one.volume_ml) for one in values])

    @contextlib.contextmanager
    def _keeping_hours(self, last_id: int) -> Iterator[None]:
        """Keep the hours of the readings up to `last_id`, which are deleted within: they may leave no page before."""
        rows = self._hours_of_readings("id <= ?", last_id)
        yield
        self._put_hourly(HourlyValue(hour=hour, meter=meter, volume_ml=volume_ml) for hour, meter, volume_ml in rows)

    def _hours_of_readings(self, condition: str, value: str | int) -> list[tuple[int, str, int]]:
        return [row[:3] for row in self._db.execute(_HOURS_OF_READINGS_SQL.format(condition), [value]).fetchall()]


def forget(db: sqlite_utils.Database) -> None:
    """Delete what is too old: hours counted for each meter, ended absences counted. Raises sqlite3.Error.

    They are counted, not dated: a wall clock that leaps ahead must not make all of it old.
    """
    # The distinct hours, found by leaping along the primary key; only what lies below the oldest to be kept is read.
    oldest = db.execute(
        "with recursive hours (hour, number) as (select max(hour), 1 from hourly union all"
        " select (select max(hour) from hourly where hour < hours.hour), number + 1 from hours"
        " where hours.hour is not null and number <= ?) select min(hour) from hours where number = ? + 1",
        [HOURS_KEPT, HOURS_KEPT],
    ).fetchone()[0]
    if oldest is not None:
        db.execute("delete from hourly where hour <= ?", [oldest])
    db.execute(
        "delete from absence where id in (select id from absence where ended_ms is not null"
        " order by ended_ms desc, id desc limit -1 offset ?)",
        [ENDED_ABSENCES_MAX],
    )


def drop_oldest_hours(db: sqlite_utils.Database) -> int:
    """Delete the oldest twentieth of the hours; return how many values that was. Raises sqlite3.Error."""
    first, last = db.execute("select min(hour), max(hour) from hourly").fetchone()
    if first is None:
        return 0
    return int(db.execute("delete from hourly where hour <= ?", [first + (last - first) // 20]).rowcount)


def learned_of_row(row: Mapping[str, Any]) -> Learned | None:
    """Return what was learned, or None where the row is not what was stored.

    Raises TypeError or LookupError for what is no row of `learned`.
    """
    learned = Learned(
        meter=row["meter"],
        boot_id=row["boot_id"],
        boottime_ms=row["boottime_ms"],
        position_ms=row["position_ms"],
        state=bytes(row["state"]),
    )
    return learned if row["crc"] == _crc(learned) else None


def _decoded(what: str, id_: bytes, text: bytes, kind: type[T]) -> T | None:
    """Return what a text of the store holds, None where it holds none: that is said, and costs nothing else."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("%s_damaged id=%s: left out: %s", what, id_.decode(errors="replace"), error)
        return None


def _crc(learned: Learned) -> int:
    """Return a checksum over all of it: a state under another meter's name or time is as wrong as a flipped bit."""
    place = f"{learned.meter} {learned.boot_id} {learned.boottime_ms} {learned.position_ms} "
    return zlib.crc32(learned.state, zlib.crc32(place.encode()))
