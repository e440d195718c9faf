"""The content of understood messages as rows: readings that can be queried, episodes with their newest step."""

from typing import Any

import msgspec

from county.events import AlertStep
from county.store import Store
from protocols.contract import Alert, AlertBody, AlertState, Kind, Leaf, Level, Telemetry, Topic, decode
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
    )
    return AlertStep(
        county=row["county"],
        gateway=row["gateway"],
        received_at=received_at,
        alert=body,
        historical=body.historical,
        standing=standing,
    )


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
