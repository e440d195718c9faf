"""Opening the store whatever state its file is in: a damaged one is set aside, and what can be read of it is saved.

The new store has a new epoch: numbers whose messages may be lost cannot be continued without a hole. What the county
had acknowledged comes along as history, what it had not is put into the outbox again. Where nobody can tell any more,
it is sent again: the newest step of every episode whose own message is not found, and, where the telemetry of the
outbox cannot be read whole, every reading. What the store remembers (see `gateway.store_memory`) comes along as far as
it can be read; what cannot is learned anew, and an absence that is lost costs an alarm, not a life.

    shuiwang.db          damaged
    shuiwang.db.new      what could be read of it, complete and closed
    then                 shuiwang.db -> shuiwang.db.damaged-ULID (-wal and -shm with it), shuiwang.db.new -> shuiwang.db

The power may fail anywhere in between. While `shuiwang.db` is there, a `.new` is unfinished work and made again; once
it is gone, `.new` is complete and takes its place.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from gateway.store import Store, StoreDamaged, StoreError
from gateway.store_memory import Answered, HourlyValue, Learned, learned_of_row
from gateway.store_rows import reading_of_row
from protocols.absence import Absence
from protocols.contract import AlertBody, AlertState, Name, Reply, Stream, Volume
from protocols.reading import Reading

log = logging.getLogger(__name__)
T = TypeVar("T")

_SIDE_FILES: Final = ("-wal", "-shm")
_PAGE_BYTES: Final = 4096  # SQLite's own choice for new files, and so ours
_REPLACED: Final = "\ufffd"  # stands where bytes were no UTF-8


class Salvage(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a damaged store."""

    set_aside: Path
    cause: str
    readings: int
    alerts: int


def open_store(path: Path, *, new_id: Callable[[], str], damage: str | None = None) -> tuple[Store, Salvage | None]:
    """Open the store, or a new one that holds what could be read of the damaged one.

    `damage` is what was found wrong with the file while it was in use: it is not asked again whether it is sound.
    `new_id` gives ULIDs. Raises StoreError where no store can be made at all (disk full, no permission).
    """
    new = path.with_name(f"{path.name}.new")
    try:
        if new.exists() and not path.exists():
            _put_in_place(new, path)
        try:
            if damage is None or not path.exists():
                return Store(path, new_epoch=new_id()), None
            cause = damage
        except StoreDamaged as error:
            cause = str(error)
        readings, alerts = _salvage(path, new, new_id())
        _sync(path.parent)
        aside = path.with_name(f"{path.name}.damaged-{new_id()}")
        _move(path, aside)
        _put_in_place(new, path)
    except OSError as error:
        raise StoreError(f"a damaged store cannot be set aside: {error}") from error
    log.error(
        "store_damaged: %s; set aside as %s, saved from it: %d readings, %d alert steps. Send the file to support and"
        " check the card (dmesg)",
        cause,
        aside,
        readings,
        alerts,
    )
    store = Store(path, new_epoch=new_id())
    return store, Salvage(set_aside=aside, cause=cause, readings=readings, alerts=alerts)


def _move(path: Path, aside: Path) -> None:
    """Rename the store; the file itself first, because a store without its log is an older store, and may be sound."""
    for suffix in ("", *_SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    _sync(path.parent)


def _put_in_place(new: Path, path: Path) -> None:
    for suffix in _SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    new.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Found(msgspec.Struct):
    """What can be read of a damaged store; `None` for the first reading that waits: nobody can tell which."""

    episodes: list[AlertBody]
    steps: list[AlertBody]
    first_id_waiting: int | None
    readings: dict[Any, Reading]
    learned: list[Learned]
    hourly: list[HourlyValue]
    absences: list[Absence]
    commands: list[Answered]


def _salvage(damaged: Path, new: Path, epoch: str) -> tuple[int, int]:
    """Make a new store of what can be read; return how many readings and alert steps that was."""
    found = _read(damaged)
    if not (found.readings or found.steps or found.episodes):
        found = _read_with_new_head(damaged, new, epoch)
    first_waiting = found.first_id_waiting
    history = [reading for id_, reading in found.readings.items() if first_waiting is not None and id_ < first_waiting]
    waiting = list(found.readings.values())[len(history) :]
    steps = _to_send(found.episodes, found.steps)
    _unlink(new)
    store = Store(new, new_epoch=epoch, reserve_bytes=0)
    try:
        store.adopt(history, (), learned=found.learned, hourly=found.hourly, absences=found.absences)
        store.remember_commands(found.commands)
        store.commit(waiting, steps)
    finally:
        store.close()
    return len(found.readings), len(steps)


def _to_send(episodes: list[AlertBody], steps: list[AlertBody]) -> list[AlertBody]:
    """Return the steps that were found, and the newest step of each episode where it is not among them.

    Its message may have been lost with a page. Had the county acknowledged it, it comes to the county once more.
    """
    newest = {step.id: step for step in steps}
    unsent = [body for body in episodes if body.id not in newest]
    later = [body for body in episodes if newest.get(body.id, body) != body and _is_open(newest[body.id])]
    return [*unsent, *steps, *later]


def _is_open(step: AlertBody) -> bool:
    return step.state is not AlertState.CLEARED


def _read_with_new_head(damaged: Path, new: Path, epoch: str) -> _Found:
    """Read a store whose first page, which says where every table begins, is lost: a new store's says the same.

    Raises OSError, where there is no space for a copy.
    """
    _unlink(new)
    Store(new, new_epoch=epoch, reserve_bytes=0).close()
    head = bytearray(new.read_bytes()[:_PAGE_BYTES])
    size_pages = damaged.stat().st_size // _PAGE_BYTES
    head[28:40] = size_pages.to_bytes(4, "big") + bytes(8)  # pages in the file; no list of free ones
    copy = damaged.with_name(f"{new.name}-copy")
    try:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{damaged}{suffix}", f"{copy}{suffix}")
        with copy.open("r+b") as file:
            file.write(head)
        return _read(copy)
    finally:
        _unlink(copy)


def _unlink(path: Path) -> None:
    for suffix in ("", *_SIDE_FILES):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _read(path: Path) -> _Found:
    connection = sqlite3.connect(path)
    with contextlib.closing(connection):
        connection.row_factory = sqlite3.Row
        # A letter that is none costs its row, not the table.
        connection.text_factory = lambda text: text.decode(errors="replace")
        boots, _ = _rows(connection, "boot", "id", lambda row: str(row["boot_id"]))
        episodes, _ = _rows(connection, "episode", "id", _step)
        steps, _ = _rows(connection, "alert", "seq", _step)
        readings, _ = _rows(connection, "reading", "id", lambda row: _reading(row, boots))
        return _Found(
            episodes=list(episodes.values()),
            steps=list(steps.values()),
            first_id_waiting=_first_id_waiting(connection),
            readings=readings,
            learned=list(_rows(connection, "learned", "meter", _learned)[0].values()),
            hourly=list(_rows(connection, "hourly", ("hour", "meter"), _hourly)[0].values()),
            absences=list(_rows(connection, "absence", "id", _absence)[0].values()),
            commands=list(_rows(connection, "command", "number", _command)[0].values()),
        )


def _first_id_waiting(connection: sqlite3.Connection) -> int | None:
    """Return the first reading that waits, beyond all where none does; None where the outbox is not there whole."""
    first_ids, is_whole = _rows(connection, "telemetry", "seq", _first_id)
    counters, _ = _rows(connection, "stream", "name", lambda row: (int(row["acked_seq"]), int(row["last_seq"])))
    acked_seq, last_seq = counters.get(Stream.TELEMETRY.value, (0, -1))
    if not is_whole or list(first_ids) != list(range(acked_seq + 1, last_seq + 1)) or last_seq < acked_seq:
        return None
    return min(first_ids.values(), default=sys.maxsize)


def _first_id(row: sqlite3.Row) -> int:
    return int(row["first_id"]) if row["dropped"] is None else sys.maxsize


def _rows(
    connection: sqlite3.Connection,
    table: str,
    key: str | tuple[str, ...],
    decode: Callable[[sqlite3.Row], T | None],
) -> tuple[dict[Any, T], bool]:
    """Return what can be read of a table, by its key and in its order, and whether that is all of it.

    It is read from both ends, so a damaged page costs its own rows; a row that makes no sense costs itself.
    """
    rows: dict[Any, T | None] = {}
    is_whole = False
    columns = (key,) if isinstance(key, str) else key
    for direction in ("asc", "desc"):
        order = ", ".join(f"{column} {direction}" for column in columns)
        try:
            for row in connection.execute(f"select * from {table} order by {order}"):
                place = row[key] if isinstance(key, str) else tuple(row[column] for column in columns)
                if place in rows:
                    break
                rows[place] = _decoded(row, decode)
            else:
                is_whole = direction == "asc" and None not in rows.values()
                break
        except (sqlite3.DatabaseError, UnicodeError) as error:
            log.warning("store_damaged_table table=%s: %s", table, error)
    in_order = sorted(rows, key=_sortable)
    return {number: value for number in in_order if (value := rows[number]) is not None}, is_whole


def _sortable(place: Any) -> list[tuple[str, Any]]:
    """Return what rows are put in order by: a damaged key may be anything."""
    return [(type(part).__name__, part) for part in (place if isinstance(place, tuple) else (place,))]


def _decoded(row: sqlite3.Row, decode: Callable[[sqlite3.Row], T | None]) -> T | None:
    try:
        return decode(row)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, msgspec.MsgspecError):
        return None


def _step(row: sqlite3.Row) -> AlertBody | None:
    return None if _REPLACED in row["body"] else msgspec.json.decode(row["body"], type=AlertBody)


def _reading(row: sqlite3.Row, boots: dict[Any, str]) -> Reading | None:
    msgspec.convert(dict(row), _SoundReading)
    return (
        None
        if _REPLACED in f"{row['reason']}{row['flags']}"
        else reading_of_row({**row, "boot_id": boots[row["boot"]]})
    )


def _learned(row: sqlite3.Row) -> Learned | None:
    return learned_of_row(dict(row))


def _hourly(row: sqlite3.Row) -> HourlyValue:
    sound = msgspec.convert(dict(row), _SoundHourlyValue)
    return HourlyValue(hour=sound.hour, meter=sound.meter, volume_ml=sound.volume_ml)


def _absence(row: sqlite3.Row) -> Absence | None:
    return None if _REPLACED in row["body"] else msgspec.json.decode(row["body"], type=Absence)


def _command(row: sqlite3.Row) -> Answered | None:
    sound = msgspec.convert(dict(row), _SoundCommand)
    if _REPLACED in sound.reply:
        return None
    reply = msgspec.json.decode(sound.reply, type=Reply)
    return Answered(reply=reply, body=sound.body, wall_ms=sound.wall_ms) if reply.id == sound.id else None


class _SoundCommand(msgspec.Struct):
    id: str
    wall_ms: int
    body: bytes
    reply: str


class _SoundHourlyValue(msgspec.Struct):
    hour: Annotated[int, msgspec.Meta(ge=0)]
    meter: Name
    volume_ml: Volume


class _SoundReading(msgspec.Struct):
    """What a row must hold to be taken into another store."""

    meter: Name
    wall_ms: Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800_000)]  # year 10000
    uncertainty_ms: Annotated[int, msgspec.Meta(ge=0)] | None
    boottime_ms: int
    volume_ml: Volume | None
    reason: str | None
    flags: str | None
