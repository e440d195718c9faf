"""The store's tables, as numbered migrations; each runs once, in one transaction with the record that it ran."""

import sqlite_utils
from sqlite_utils.migrations import Migrations

migrations = Migrations("shuiwang")

# `reading.id` is given by us, in commit order; a telemetry message is the range of readings of one commit, so its text
# is written once, not twice. Boot ids are 36 characters and stand in their own table.
_V1 = """
create table meta (key text primary key, value text not null) without rowid;
create table stream (
    name text primary key,
    last_seq integer not null default 0,
    acked_seq integer not null default 0 check (acked_seq <= last_seq),
    acked_wall_ms integer
) without rowid;
insert into stream (name) values ('telemetry'), ('alert');
create table boot (id integer primary key, boot_id text not null unique);
create table reading (
    id integer primary key,
    meter text not null,
    wall_ms integer not null,
    trust text not null,
    uncertainty_ms integer,
    boot integer not null references boot (id),
    boottime_ms integer not null,
    volume_ml integer,
    quality text not null,
    reason text,
    flags text
);
create table telemetry (
    seq integer primary key,
    first_id integer not null,
    last_id integer not null,
    dropped text
);
create table episode (
    id text primary key,
    meter text,
    kind text not null,
    is_open integer not null,
    body text not null
) without rowid;
create table alert (
    seq integer primary key,
    episode text not null references episode (id),
    body text not null
);
create index alert_episode on alert (episode, seq);
create table set_aside (
    stream text not null,
    seq integer not null,
    body text not null,
    reason text not null,
    wall_ms integer not null,
    primary key (stream, seq)
) without rowid;
"""


@migrations(name="v1_readings_episodes_outbox")
def v1_readings_episodes_outbox(db: sqlite_utils.Database) -> None:
    """Readings, episodes and the outbox with its two streams."""
    for statement in _V1.split(";"):
        if statement.strip():
            db.execute(statement)
