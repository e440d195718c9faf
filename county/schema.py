"""The tables of the county's database, as numbered migrations. A migration that was shipped is never changed."""

import sqlite_utils
from sqlite_utils.migrations import Migrations

MIGRATIONS = Migrations("shuiwang-county")

_PLACE = {"county": str, "gateway": str, "epoch": str, "stream": str, "seq": int}


@MIGRATIONS()
def m0001_first_tables(database: sqlite_utils.Database) -> None:
    """Make streams, messages and what is read from them. Instants are texts as the contract writes them."""
    _create(
        database,
        "gateways",
        {
            "county": str,
            "gateway": str,
            "online": int,  # NULL until a state message came
            "epoch": str,
            "agent": str,
            "boot_id": str,
            "meters": int,
            "reason": str,
            "state_at": str,
            "last_seen_at": str,
        },
        pk=("county", "gateway"),
        required={"county", "gateway"},
    )
    _create(
        database,
        "streams",
        {"county": str, "gateway": str, "epoch": str, "stream": str, "up_to": int},
        pk=("county", "gateway", "epoch", "stream"),
    )
    _create(
        database,
        "messages",
        _PLACE | {"received_at": str, "payload": bytes, "not_understood": str},  # the reason, or NULL
        pk=tuple(_PLACE),
        required={*_PLACE, "received_at", "payload"},
    )
    # Every acknowledgement asks for these few among all messages.
    database.execute(
        "CREATE INDEX messages_not_understood ON messages (county, gateway, epoch) WHERE not_understood IS NOT NULL"
    )
    _create(
        database,
        "readings",
        {
            "county": str,
            "gateway": str,
            "meter": str,
            "at": str,
            "volume_ml": int,  # NULL exactly when there was no reading; `reason` says why
            "quality": str,
            "clock": str,
            "reason": str,
            "flags": str,  # a JSON list
            "uncertainty_ms": int,
            "epoch": str,
            "seq": int,
            "position": int,  # within its message
        },
        pk=("county", "gateway", "epoch", "seq", "position"),
        required={"county", "gateway", "meter", "at", "quality", "clock", "epoch", "seq", "position"},
    )
    database.table("readings").create_index(["county", "gateway", "meter", "at"])
    _create(
        database,
        "dropped",
        {"county": str, "gateway": str, "epoch": str, "seq": int, "readings": int, "start": str, "end": str},
        pk=("county", "gateway", "epoch", "seq"),
    )
    step = {"kind": str, "meter": str, "state": str, "level": str, "since": str, "at": str, "evidence": str}
    steps_and_place = step | {"historical": int, "epoch": str, "seq": int, "received_at": str}
    for table, pk in (("alerts", ("county", "gateway", "id")), ("alert_steps", ("county", "gateway", "epoch", "seq"))):
        columns = {"county": str, "gateway": str, "id": str} | steps_and_place
        _create(database, table, columns, pk=pk, required=set(columns) - {"meter"})
    database.table("alerts").create_index(["state"])
    database.table("alert_steps").create_index(["county", "gateway", "id"])
    _create(
        database,
        "skipped",
        {"county": str, "gateway": str, "epoch": str, "stream": str, "first": int, "last": int, "received_at": str},
        pk=("county", "gateway", "epoch", "stream", "first"),
    )
    _create(
        database,
        "set_aside",
        {"id": int, "topic": str, "payload": bytes, "bytes": int, "reason": str, "received_at": str},
        pk="id",
    )
    _create(database, "counters", {"name": str, "value": int}, pk="name")


@MIGRATIONS()
def m0002_held_otherwise(database: sqlite_utils.Database) -> None:
    """Make a table of the numbers that came a second time with other content, so that each receipt can name them."""
    columns = {**_PLACE, "reason": str}
    _create(database, "held_otherwise", columns, pk=tuple(_PLACE))


@MIGRATIONS()
def m0003_commands_and_absences(database: sqlite_utils.Database) -> None:
    """Keep what a step says in words, who is away, and what gateways were asked and answered."""
    for table in ("alerts", "alert_steps"):
        for column in ("transition", "text"):  # `text` is a JSON object by language
            database.execute(f"ALTER TABLE {table} ADD COLUMN {column} TEXT")
    _create(
        database,
        "absences",
        {
            "county": str,
            "gateway": str,
            "meter": str,
            "start": str,
            "until": str,
            "daily": str,  # HH:MM-HH:MM, or '' for an absence
            "ended_at": str,
            "ended_by": str,
            "received_at": str,
        },
        pk=("county", "gateway", "meter", "start", "until", "daily"),
        required={"county", "gateway", "meter", "start", "until", "daily", "received_at"},
    )
    # A reply may be heard before its command: then `do` is NULL until that is heard too.
    _create(
        database,
        "commands",
        {
            "county": str,
            "gateway": str,
            "id": str,
            "do": str,
            "meter": str,
            "alert": str,
            "result": str,
            "why": str,
            "body": str,
            "heard_at": str,
            "done": int,
            "reason": str,
            "replied_at": str,
            "reply": str,
        },
        pk=("county", "gateway", "id"),
        required={"county", "gateway", "id"},
    )
    database.table("commands").create_index(["county", "gateway", "alert"])


def _create(
    database: sqlite_utils.Database,
    name: str,
    columns: dict[str, type],
    *,
    pk: str | tuple[str, ...],
    required: set[str] | None = None,
) -> None:
    """Make a STRICT table: a value of the wrong type is an error, never a silent conversion."""
    not_null = set(columns) if required is None else required
    database.table(name).create(columns, pk=pk, not_null=not_null, strict=True)
