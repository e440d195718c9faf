"""Messages as a gateway would send them, for tests."""

import msgspec

from county.receiver import Incoming
from protocols import contract
from protocols.contract import (
    AbsenceNotice,
    Alert,
    AlertBody,
    AlertState,
    Dropped,
    Kind,
    Leaf,
    Level,
    Reply,
    ResolveCommand,
    Result,
    State,
    Telemetry,
    TelemetryReading,
)

COUNTY = "shenxian"
GATEWAY = "g-1"
EPOCH = "01KAM3ZJ5V0000000000000000"
LATER_EPOCH = "01KAM4D2Q80000000000000000"
EPISODE = "01KAM4F1110000000000000000"
START_MS = 1_795_293_540_000
NOW = contract.instant(START_MS + 60_000)
EVIDENCE = {
    "window_h": 12.0,
    "threshold_ml": 100_000,
    "usage_min_ml": 0,
    "usage_max_ml": 43_100,
    "last_use_after": "2026-11-21T08:05:00.000Z",
    "last_use_before": "2026-11-21T08:10:00.000Z",
}


def alert(seq, state="open", *, gateway=GATEWAY, epoch=EPOCH, episode=EPISODE, level="yellow", **changes):
    body = AlertBody(
        id=episode,
        meter="m-001",
        kind=Kind.LOW_USAGE,
        state=AlertState(state),
        level=Level(level),
        since=contract.instant(START_MS - 43_200_000),
        at=contract.instant(START_MS + seq),
        historical=False,
        evidence=EVIDENCE,
    )
    return Alert(
        schema=contract.ALERT_SCHEMA,
        gateway=gateway,
        epoch=epoch,
        seq=seq,
        sent_at=contract.instant(START_MS + seq),
        alert=msgspec.structs.replace(body, **changes),
    )


def reading(number, *, volume_ml=None, meter="m-001"):
    missing = volume_ml is None
    return TelemetryReading(
        meter=meter,
        at=contract.instant(START_MS + number),
        volume_ml=volume_ml,
        quality="missing" if missing else "ok",
        clock="synced",
        reason="no_response" if missing else None,
    )


def telemetry(seq, *, gateway=GATEWAY, epoch=EPOCH, readings=None):
    chosen = (reading(seq, volume_ml=1000 * seq), reading(seq, meter="m-002")) if readings is None else readings
    return Telemetry(
        schema=contract.TELEMETRY_SCHEMA,
        gateway=gateway,
        epoch=epoch,
        seq=seq,
        sent_at=contract.instant(START_MS + seq),
        readings=chosen,
    )


def tombstone(seq):
    span = Dropped(readings=60, start=contract.instant(START_MS), end=contract.instant(START_MS + 3_600_000))
    return msgspec.structs.replace(telemetry(seq), readings=None, dropped=span)


def birth(*, epoch=EPOCH, **changes):
    state = State(schema=contract.STATE_SCHEMA, online=True, epoch=epoch, agent="shuiwang 0.1.0", boot_id="b", meters=2)
    return msgspec.structs.replace(state, **changes)


def away(meter="m-001", **changes):
    notice = AbsenceNotice(
        meter=meter, start=contract.instant(START_MS), until=contract.instant(START_MS + 10 * 86_400_000)
    )
    return msgspec.structs.replace(notice, **changes)


def resolve(number=1, *, alert_id=EPISODE, result="fine", why=None):
    return ResolveCommand(
        schema=contract.COMMAND_SCHEMA,
        id=f"01KAM5A00000000000000{number:05d}",
        deadline=NOW,
        alert=alert_id,
        result=Result(result),
        why=why,
    )


def reply(number=1, reason=None, *, text=None):
    return Reply(
        schema=contract.REPLY_SCHEMA,
        id=f"01KAM5A00000000000000{number:05d}",
        at=NOW,
        done=reason is None,
        reason=reason,
        text=text or {"zh": "已记录", "en": "noted"},
    )


def will(reason="connection lost"):
    return State(schema=contract.STATE_SCHEMA, online=False, reason=reason)


def leaf_of(message):
    known = {State: Leaf.STATE, Telemetry: Leaf.TELEMETRY, Alert: Leaf.ALERT, Reply: Leaf.REPLY}
    return known.get(type(message), Leaf.COMMAND)


def incoming(message, *, gateway=GATEWAY, county=COUNTY, received_at=NOW, retained=False):
    """A message as the broker delivers it."""
    return Incoming(
        topic=contract.topic(county, gateway, leaf_of(message)),
        payload=contract.encode(message),
        received_at=received_at,
        retained=retained,
    )


def raw(leaf, payload, *, gateway=GATEWAY, received_at=NOW):
    """Bytes on a topic."""
    return Incoming(topic=contract.topic(COUNTY, gateway, leaf), payload=payload, received_at=received_at)
