"""The content of understood messages as rows: readings, episodes with their newest step, absences, commands."""

from typing import Any

import msgspec

from county.events import AbsenceChange, AlertStep, CommandAnswered
from county.store import Store
from protocols.contract import (
    AbsenceNotice,
    Alert,
    AlertBody,
    AlertState,
    Command,
    Kind,
    Leaf,
    Level,
    Reply,
    Telemetry,
    Topic,
    Transition,
    decode,
    encode,
)
from protocols.errors import ContractError


def store_telemetry(store: Store, topic: Topic, message: Telemetry) -> None:
    """Store the readings of a message, or its tombstone."""
    place = {"county": topic.county, "gateway": topic.gateway, "epoch": message.epoch, "seq": message.seq}
    for position, reading in enumerate(message.readings or ()):
        row = {
            "meter": reading.meter,
            "at": reading.at,
            "volume_ml": reading.volume_ml,
            "quality": reading.quality,
            "clock": reading.clock,
            "reason": reading.reason,
            "flags": _json(reading.flags),
            "uncertainty_ms": reading.uncertainty_ms,
            "position": position,
        }
        store.insert("readings", place | row)
    if message.dropped:
        dropped = message.dropped
        store.insert("dropped", place | {"readings": dropped.readings, "start": dropped.start, "end": dropped.end})


def store_alert(store: Store, topic: Topic, message: Alert, *, received_at: str) -> AlertStep:
    """Store a step of an episode and return what people are told of it.

    The episode shows its newest step, whichever way the messages came: the highest `seq` of the epoch that was heard of
    last. The epochs themselves say nothing of their order: a box without a clock makes its ULIDs in 1970.
    """
    body = message.alert
    row: dict[str, Any] = {
        "county": topic.county,
        "gateway": topic.gateway,
        "id": body.id,
        "meter": body.meter,
        "kind": body.kind,
        "state": body.state,
        "level": body.level,
        "since": body.since,
        "at": body.at,
        "historical": int(body.historical),
        "evidence": _json(body.evidence),
        "transition": body.transition,
        "text": None if body.text is None else _json(body.text),
        "epoch": message.epoch,
        "seq": message.seq,
        "received_at": received_at,
    }
    store.insert("alert_steps", row)
    newest = store.row(
        "SELECT epoch, seq FROM alerts WHERE county=? AND gateway=? AND id=?", topic.county, topic.gateway, body.id
    )
    superseded = newest is not None and (
        newest["seq"] > message.seq
        if newest["epoch"] == message.epoch
        else store.is_earlier_epoch(topic.county, topic.gateway, message.epoch, than=newest["epoch"])
    )
    if not superseded:
        store.replace("alerts", row)
    return AlertStep(
        county=topic.county,
        gateway=topic.gateway,
        received_at=received_at,
        alert=body,
        historical=body.historical or superseded,
    )


def alert_event(row: dict[str, Any], *, received_at: str, standing: bool) -> AlertStep:
    """Return the event of an episode as the database holds it."""
    body = AlertBody(
        id=row["id"],
        meter=row["meter"],
        kind=Kind(row["kind"]),
        state=AlertState(row["state"]),
        level=Level(row["level"]),
        since=row["since"],
        at=row["at"],
        historical=bool(row["historical"]),
        evidence=msgspec.json.decode(row["evidence"]),
        transition=None if row["transition"] is None else Transition(row["transition"]),
        text=None if row["text"] is None else msgspec.json.decode(row["text"], type=dict[str, str]),
    )
    return AlertStep(
        county=row["county"],
        gateway=row["gateway"],
        received_at=received_at,
        alert=body,
        historical=body.historical,
        standing=standing,
    )


def store_absences(
    store: Store, topic: Topic, absences: tuple[AbsenceNotice, ...], *, received_at: str
) -> list[AbsenceChange]:
    """Store who is away behind a gateway, in place of what it said before; return what is new."""
    absences = _one_of_each(absences)
    place = {"county": topic.county, "gateway": topic.gateway}
    sql = "SELECT * FROM absences WHERE county=? AND gateway=?"
    before = {absence_of(row) for row in store.rows(sql, *place.values())}
    if before == set(absences):
        return []
    store.change("DELETE FROM absences WHERE county=? AND gateway=?", *place.values())
    for absence in absences:
        row = {
            "meter": absence.meter,
            "start": absence.start,
            "until": absence.until,
            "daily": "" if absence.daily is None else str(absence.daily),
            "ended_at": absence.ended_at,
            "ended_by": absence.ended_by,
            "received_at": received_at,
        }
        store.insert("absences", place | row)
    changed = [absence for absence in absences if absence not in before]
    return [AbsenceChange(**place, received_at=received_at, absence=absence) for absence in changed]


def _one_of_each(absences: tuple[AbsenceNotice, ...]) -> tuple[AbsenceNotice, ...]:
    """Return of several declarations of the same days the one that stands, else the one that ended last."""
    kept: dict[tuple[object, ...], AbsenceNotice] = {}
    for absence in absences:
        days = absence.meter, absence.start, absence.until, absence.daily
        kept[days] = max(absence, kept.get(days, absence), key=lambda one: (one.ended_at is None, one.ended_at or ""))
    return tuple(kept.values())


def absence_of(row: dict[str, Any]) -> AbsenceNotice:
    """Return an absence as the database holds it. Raises msgspec.ValidationError."""
    start, _, end = row["daily"].partition("-")
    fields = {"meter": row["meter"], "from": row["start"], "until": row["until"]}
    fields |= {"daily": {"from": start, "to": end}} if row["daily"] else {}
    fields |= {"ended_at": row["ended_at"], "ended_by": row["ended_by"]} if row["ended_by"] else {}
    return msgspec.convert(fields, AbsenceNotice)


def store_command(store: Store, topic: Topic, command: Command, *, received_at: str) -> None:
    """Store what somebody asked of a gateway; the repetition of a command changes nothing."""
    asked = msgspec.to_builtins(command)
    fields = {name: asked.get(name) for name in ("do", "meter", "alert", "result", "why")}
    _know_command(store, topic, command.id)
    store.change(
        "UPDATE commands SET do=?, meter=?, alert=?, result=?, why=?, body=?, heard_at=?"
        " WHERE county=? AND gateway=? AND id=? AND do IS NULL",
        *fields.values(),
        encode(command).decode(),
        received_at,
        topic.county,
        topic.gateway,
        command.id,
    )


def store_reply(store: Store, topic: Topic, reply: Reply, *, received_at: str) -> CommandAnswered | None:
    """Store what a gateway answered and return what people are told; None for the repetition of a reply.

    A command that was refused may be done later under the same id; what was done stays done.
    """
    _know_command(store, topic, reply.id)
    place = topic.county, topic.gateway, reply.id
    row = store.row("SELECT * FROM commands WHERE county=? AND gateway=? AND id=?", *place)
    assert row is not None
    if row["done"] == 1 or (row["done"] == 0 and not reply.done and row["reason"] == reply.reason):
        return None
    store.change(
        "UPDATE commands SET done=?, reason=?, replied_at=?, reply=? WHERE county=? AND gateway=? AND id=?",
        int(reply.done),
        reply.reason,
        reply.at,
        encode(reply).decode(),
        *place,
    )
    return CommandAnswered(
        county=topic.county,
        gateway=topic.gateway,
        received_at=received_at,
        id=reply.id,
        done=reply.done,
        do=row["do"],
        meter=row["meter"],
        alert=row["alert"],
        result=row["result"],
        reason=reply.reason,
        text=reply.text,
    )


def _know_command(store: Store, topic: Topic, command_id: str) -> None:
    store.insert("commands", {"county": topic.county, "gateway": topic.gateway, "id": command_id})


def same_content(one: Telemetry | Alert, leaf: Leaf, held: bytes) -> bool:
    """Say whether a message may be the one that is held under its number, sent again.

    A repetition has a new `sent_at`, its alert may have become `historical` meanwhile, and readings may have given
    way to a tombstone. What an older version of the contract accepted and this one does not cannot be compared.
    """
    try:
        other = decode(leaf, held)
    except ContractError:
        return True
    if isinstance(one, Telemetry) and isinstance(other, Telemetry):
        return one.dropped is not None or other.dropped is not None or one.readings == other.readings
    if isinstance(one, Alert) and isinstance(other, Alert):
        return msgspec.structs.replace(one.alert, historical=False) == msgspec.structs.replace(
            other.alert, historical=False
        )
    return False


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
