"""The store's tables, as numbered migrations; each runs once, in one transaction with the record that it ran.

Tables are strict and say in CHECKs what a row must be, because `pragma quick_check` reads those: a row that a failing
card has changed is found when the file is opened, not when a detector stumbles over it.
"""

import functools
import re
from typing import Any, Final

import msgspec
import sqlite_utils
from sqlite_utils.migrations import Migrations

from gateway.store_file import StoreDamaged, StoreError
from protocols.contract import AlertBody, Dropped

migrations = Migrations("shuiwang")
_VERSIONS: Final = ["v1_readings_episodes_outbox", "v2_set_aside_by_epoch", "v3_memory"]

# `reading.id` is given by us, in commit order; a telemetry message is the range of readings of one commit, so its text
# is written once, not twice. Boot ids are 36 characters and stand in their own table.
# `claim` is empty but for a moment (see `store_space.claim`).
_V1: Final = """
create table meta (key text primary key, value text not null) strict, without rowid;
create table stream (
    name text primary key check (name in ('telemetry', 'alert')),
    last_seq integer not null default 0,
    acked_seq integer not null default 0 check (acked_seq between 0 and last_seq),
    acked_wall_ms integer
) strict, without rowid;
insert into stream (name) values ('telemetry'), ('alert');
create table boot (id integer primary key, boot_id text not null unique) strict;
create table reading (
    id integer primary key,
    meter text not null check (meter glob '[a-z0-9]*' and meter not glob '*[^-a-z0-9]*'),
    wall_ms integer not null check (wall_ms between 0 and 253402300799999),
    trust text not null check (trust in ('synced', 'unsynced')),
    uncertainty_ms integer check (uncertainty_ms >= 0),
    boot integer not null references boot (id),
    boottime_ms integer not null,
    volume_ml integer check (volume_ml between 0 and 9007199254740991),
    quality text not null check (quality in ('ok', 'suspect', 'missing')),
    reason text,
    flags text,
    check ((volume_ml is null) = (quality = 'missing') and (reason is not null) = (quality = 'missing'))
) strict;
create table telemetry (
    seq integer primary key,
    first_id integer not null,
    last_id integer not null check (last_id >= first_id),
    dropped text
) strict;
create table episode (
    id text primary key,
    meter text,
    kind text not null,
    is_open integer not null check (is_open in (0, 1)),
    body text not null
) strict, without rowid;
create table alert (
    seq integer primary key,
    episode text not null references episode (id),
    body text not null
) strict;
create index alert_episode on alert (episode, seq);
create table claim (body blob) strict;
create table set_aside (
    stream text not null,
    seq integer not null,
    body text not null,
    reason text not null,
    wall_ms integer not null,
    primary key (stream, seq)
) strict, without rowid;
"""
# An epoch can change under a store, and the oldest copy must be known when there are too many.
_V2: Final = """
alter table set_aside rename to set_aside_v1;
create table set_aside (
    id integer primary key,
    epoch text not null,
    stream text not null,
    seq integer not null,
    body text not null,
    reason text not null,
    wall_ms integer not null,
    unique (epoch, stream, seq)
) strict;
insert into set_aside (epoch, stream, seq, body, reason, wall_ms)
    select coalesce((select value from meta where key = 'epoch'), ''), stream, seq, body, reason, wall_ms
    from set_aside_v1 order by wall_ms, stream, seq;
drop table set_aside_v1;
"""
# Written tightly: all definitions together must fit the first page, which a rescue can replace (a test sees to it).
# SQLite has no checksums, so a state of `learned` brings its own; one that does not fit is left out when read.
# Rows of one hour lie together in `hourly`: forgetting some hours of readings writes a few pages of it.
_V3: Final = """
create table learned (meter text primary key, boot_id text not null, boottime_ms integer not null,
position_ms integer not null, state blob not null, crc integer not null) strict;
create table hourly (hour integer check (hour >= 0), meter text, volume_ml integer not null check (volume_ml >= 0),
primary key (hour, meter)) strict, without rowid;
insert or replace into hourly (hour, meter, volume_ml)
    select wall_ms / 3600000, meter, volume_ml from reading where quality = 'ok' and trust = 'synced' order by id;
create table command (number integer primary key, id text not null unique, wall_ms integer not null,
body blob not null, reply text not null) strict;
create table absence (id text primary key, ended_ms integer, body text not null) strict, without rowid;
"""

_EPOCH: Final = re.compile("[0-9A-HJKMNP-TV-Z]{26}")
# Each of these finds rows only in a damaged file. The seq of what waits has no hole and fits the stream's counters;
# every message still has its readings.
_CONTRADICTIONS: Final = {
    f"the outbox of {stream} does not fit its counters": f"""
        select 1 from stream left join (select count(*) as waiting, min(seq) as first, max(seq) as last from {stream})
        where name = '{stream}' and (waiting <> last_seq - acked_seq or first <> acked_seq + 1 or last <> last_seq)"""
    for stream in ("telemetry", "alert")
} | {
    "a stream is missing": "select 1 where (select count(*) from stream) <> 2",
    "a message has lost readings": """
        select 1 from telemetry where dropped is null and last_id - first_id + 1
        <> (select count(*) from reading where id between first_id and last_id)""",
}


@migrations(name=_VERSIONS[0])
def v1_readings_episodes_outbox(db: sqlite_utils.Database) -> None:
    """Readings, episodes and the outbox with its two streams."""
    _run(db, _V1)


@migrations(name=_VERSIONS[1])
def v2_set_aside_by_epoch(db: sqlite_utils.Database) -> None:
    """What is set aside stands under its epoch and in the order in which it came."""
    _run(db, _V2)


@migrations(name=_VERSIONS[2])
def v3_memory(db: sqlite_utils.Database) -> None:
    """What was learned of each home, a value an hour, who is away, and which commands were answered."""
    _run(db, _V3)


def _run(db: sqlite_utils.Database, script: str) -> None:
    for statement in script.split(";"):
        if statement.strip():
            db.execute(statement)


def upgrade(db: sqlite_utils.Database) -> None:
    """Check the file's pages, then bring its tables to the newest version.

    Raises StoreDamaged for a file that is not ours, StoreError for one that a newer shuiwang has made.
    """
    _require_ok(db, "quick_check(1)")
    if not _applied(db) and set(db.table_names()) - {Migrations.migrations_table}:
        raise StoreDamaged("it is a database of another program")
    migrations.apply(db)


def require_newest(db: sqlite_utils.Database) -> None:
    """Check that a file that is only looked at has the tables that we know. Raises StoreDamaged or StoreError."""
    if len(_applied(db)) < len(_VERSIONS):
        raise StoreError(
            "the store is still as an older shuiwang left it: restart the service, which brings it up to date"
            " (systemctl restart shuiwang) 存储仍为旧版本，请重启服务"
        )


def _applied(db: sqlite_utils.Database) -> list[str]:
    """Return which versions a file has gone through.

    Raises StoreError for one that a newer shuiwang has made, StoreDamaged for one that none has.
    """
    applied = [migration.name for migration in migrations.applied(db)]
    if applied != _VERSIONS[: len(applied)]:
        if applied[: len(_VERSIONS)] == _VERSIONS:
            raise StoreError(f"the store was made by a newer shuiwang (it knows {applied[-1]}): install that version")
        raise StoreDamaged(f"its history of versions is {applied}, which no shuiwang has made")
    return applied


def give_epoch(db: sqlite_utils.Database, epoch: str) -> None:
    """Give a store its epoch, unless it has one or has numbered messages under one that is lost."""
    db.execute("insert or ignore into meta select 'epoch', ? where (select sum(last_seq) from stream) = 0", [epoch])


def check(db: sqlite_utils.Database) -> None:
    """Check that what the tables hold makes sense together. Raises StoreDamaged or sqlite3.Error.

    What is only remembered is not looked at: whoever reads it leaves out what cannot be read (`gateway.store_memory`).
    """
    if _schema_of(db) != _newest_schema():
        raise StoreDamaged("its tables are not those of a store")
    # Those with an index, which quick_check does not compare.
    for table in ("alert", "boot", "set_aside", "learned", "command"):
        _require_ok(db, f"integrity_check({table})")
    if db.execute("pragma foreign_key_check").fetchone():
        raise StoreDamaged("a row points to one that is gone")
    for problem, sql in _CONTRADICTIONS.items():
        if db.execute(sql).fetchone():
            raise StoreDamaged(problem)
    epoch = db.execute("select value from meta where key = 'epoch'").fetchone()
    if not epoch or not _EPOCH.fullmatch(epoch[0]):
        raise StoreDamaged("it has no epoch")
    _require_decodable(db, "select body from alert union all select body from episode", AlertBody)
    _require_decodable(db, "select dropped from telemetry where dropped is not null", Dropped)


@functools.cache
def _newest_schema() -> frozenset[tuple[str, str]]:
    db = sqlite_utils.Database(memory=True)
    try:
        migrations.apply(db)
        return _schema_of(db)
    finally:
        db.close()


def _schema_of(db: sqlite_utils.Database) -> frozenset[tuple[str, str]]:
    return frozenset(db.execute("select name, sql from sqlite_master where sql is not null"))


def _require_ok(db: sqlite_utils.Database, pragma: str) -> None:
    verdict = db.execute(f"pragma {pragma}").fetchone()[0]
    if verdict != "ok":
        raise StoreDamaged(str(verdict))


def _require_decodable(db: sqlite_utils.Database, sql: str, kind: Any) -> None:
    try:
        for (text,) in db.execute(sql):
            msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"a {kind.__name__} is not readable: {error}") from error
