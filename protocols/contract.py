"""The county contract, version 1: what gateway and county say to each other over MQTT.

The rules, which both ends keep:

1. Topics are `shuiwang/v1/<county>/<gateway>/<leaf>`, always QoS 1; only `state` is retained.
2. `seq` counts per (epoch, stream) from 1 without holes; the streams are `telemetry` and `alert`. An epoch is a
   ULID that is made together with the gateway's store; a new epoch begins again at 1.
3. The county stores a message, then acknowledges cumulatively. The gateway keeps a message until then.
4. A `seq` that the county already has is dropped. Exactly once in effect, over a network that delivers at least once.
5. A message that had to be dropped for want of space keeps its `seq`; `dropped` stands in place of `readings`.
6. Whoever does not know a key ignores it, so keys can be added within version 1; a change of meaning is version 2.
7. A command is idempotent by its `id` and void after its deadline. The county repeats it until a reply comes.

`docs/contract.md` explains it for people, `docs/asyncapi.json` is generated from these types.
"""

import enum
import re
from typing import Annotated, Any, Final, Literal

import msgspec

from protocols.contract_commands import (
    ABSENCE_DAYS_MAX,
    ABSENCE_MS_MAX,
    COMMAND_SCHEMA,
    WHY_CHARACTERS_MAX,
    AbsenceCommand,
    AbsenceNotice,
    AcknowledgeCommand,
    Command,
    CommandId,
    Daily,
    Ending,
    PresentCommand,
    ReadNowCommand,
    Refusal,
    ResolveCommand,
    Result,
    Role,
)
from protocols.contract_types import (
    INTEGER_MAX,
    NAME_PATTERN,
    Count,
    Epoch,
    Instant,
    Name,
    Seq,
    UpTo,
    Volume,
    instant,
    require_dates,
    wall_ms,
)
from protocols.errors import ContractError

# Whoever speaks the contract imports it from here, whole.
__all__ = ["COMMAND_SCHEMA", "INTEGER_MAX", "NAME_PATTERN", "WHY_CHARACTERS_MAX", "AbsenceCommand", "AbsenceNotice"]
__all__ += ["AcknowledgeCommand", "Command", "CommandId", "Count", "Daily", "Ending", "Epoch", "Instant", "Name"]
__all__ += ["PresentCommand", "ReadNowCommand", "Refusal", "ResolveCommand", "Result", "Role", "Seq", "UpTo", "Volume"]
__all__ += ["ABSENCE_DAYS_MAX", "ABSENCE_MS_MAX", "instant", "wall_ms"]

ROOT: Final = "shuiwang/v1"
StateSchema = Literal["shuiwang/state/1"]
TelemetrySchema = Literal["shuiwang/telemetry/1"]
AlertSchema = Literal["shuiwang/alert/1"]
AckSchema = Literal["shuiwang/ack/1"]
ReplySchema = Literal["shuiwang/reply/1"]
STATE_SCHEMA: Final[StateSchema] = "shuiwang/state/1"
TELEMETRY_SCHEMA: Final[TelemetrySchema] = "shuiwang/telemetry/1"
ALERT_SCHEMA: Final[AlertSchema] = "shuiwang/alert/1"
ACK_SCHEMA: Final[AckSchema] = "shuiwang/ack/1"
REPLY_SCHEMA: Final[ReplySchema] = "shuiwang/reply/1"

# mosquitto accepts 256 MiB, most platforms a few hundred KiB; 500 readings are about 60 KiB.
PAYLOAD_BYTES_MAX: Final = 256 * 1024
READINGS_PER_MESSAGE_MAX: Final = 500
# A birth names them all; a thousand are about 150 KiB. A gateway has at most 400: 200 meters, two declarations each.
ABSENCES_MAX: Final = 1000

# The same sentence in several languages: `zh` and `en` are always there, for a village assistant.
Texts = dict[str, str]


class Leaf(enum.StrEnum):
    """The last part of a topic: which kind of message travels there."""

    STATE = "state"
    TELEMETRY = "telemetry"
    ALERT = "alert"
    ACK = "ack"
    COMMAND = "command"
    REPLY = "reply"


class Stream(enum.StrEnum):
    """A numbered sequence of messages from gateway to county."""

    ALERT = "alert"
    TELEMETRY = "telemetry"


class Kind(enum.StrEnum):
    """What an alert is about."""

    LOW_USAGE = "low_usage"
    METER_SILENT = "meter_silent"
    LEAK = "leak"
    BURST = "burst"
    REVERSE_FLOW = "reverse_flow"
    BUS_FAULT = "bus_fault"
    SUPPLY_OUTAGE = "supply_outage"
    STORAGE_DEGRADED = "storage_degraded"
    CLOCK_UNTRUSTED = "clock_untrusted"


class Level(enum.StrEnum):
    """How urgent an alert is: red sends someone to the door."""

    YELLOW = "yellow"
    RED = "red"


class AlertState(enum.StrEnum):
    """Where an episode stands."""

    OPEN = "open"
    ESCALATED = "escalated"
    CLEARED = "cleared"


class Transition(enum.StrEnum):
    """What a step does to its episode. A reminder says again what stands already: `state` is what it was before."""

    OPENED = "opened"
    ESCALATED = "escalated"
    REMINDED = "reminded"
    CLEARED = "cleared"


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Birth, and (as the broker's will or on a clean stop) the end of a gateway's connection. Retained.

    `oldest_alert` and `oldest_telemetry` belong to a birth: the lowest `seq` of each stream that the gateway still
    holds or will give next. What lies below has been acknowledged to it, so a county whose database is younger than
    that (a new platform, a backup put back) need not wait for it.

    `absences` says who is away: all that stand, and those that ended lately with what ended them. A gateway publishes
    its birth anew when they change.
    """

    schema: StateSchema = msgspec.field()
    online: bool = msgspec.field()
    epoch: Epoch | None = None
    agent: str | None = None
    boot_id: str | None = None
    meters: Count | None = None
    reason: str | None = None
    oldest_alert: Seq | None = None
    oldest_telemetry: Seq | None = None
    absences: Annotated[tuple[AbsenceNotice, ...], msgspec.Meta(max_length=ABSENCES_MAX)] = ()


class TelemetryReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reading. `volume_ml` is null exactly when `quality` is `missing`, and exactly then `reason` says why.

    `quality` is `ok`, `suspect` (a value, and the meter reports a fault of its own) or `missing`. `clock` says
    whether the gateway's clock was disciplined; `uncertainty_ms` how far `at` may be off, where known.
    """

    meter: Name
    at: Instant
    volume_ml: Volume | None
    quality: str
    clock: str
    reason: str | None = None
    flags: tuple[str, ...] = ()
    uncertainty_ms: Count | None = None

    def __post_init__(self) -> None:
        require_dates(self.at)
        missing = self.volume_ml is None
        if missing != (self.quality == "missing") or missing != (self.reason is not None):
            raise ValueError(
                "`volume_ml` must be null exactly when `quality` is `missing`, `reason` present exactly then"
            )


class Dropped(msgspec.Struct, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """A tombstone: how many readings of which time were dropped for want of space."""

    readings: Count
    start: Instant
    end: Instant

    def __post_init__(self) -> None:
        require_dates(self.start, self.end)


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Readings of one poll cycle, or the tombstone in their place. Exactly one of the two is present."""

    schema: TelemetrySchema = msgspec.field()
    gateway: Name
    epoch: Epoch
    seq: Seq
    sent_at: Instant
    readings: tuple[TelemetryReading, ...] | None = None
    dropped: Dropped | None = None

    def __post_init__(self) -> None:
        require_dates(self.sent_at)
        if (self.readings is None) == (self.dropped is None):
            raise ValueError("exactly one of `readings` and `dropped` must be present")


class AlertBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of one episode; `id` stays the same from open to cleared.

    `since` is when the condition began, `at` when this step was decided. `historical` is true when a later step of
    the same episode exists already: nobody needs to be sent because of this message. `meter` is absent only in
    alerts about the gateway itself. `evidence` holds the figures that led to the decision; its keys depend on `kind`.
    `text` says it in words that a village assistant understands, by language: `zh` and `en`.
    """

    id: Epoch
    meter: Name | None = None
    kind: Kind
    state: AlertState
    level: Level
    since: Instant
    at: Instant
    historical: bool = msgspec.field()
    evidence: dict[str, Any] = msgspec.field()
    transition: Transition | None = None
    text: Texts | None = None

    def __post_init__(self) -> None:
        require_dates(self.since, self.at)


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert message."""

    schema: AlertSchema = msgspec.field()
    gateway: Name
    epoch: Epoch
    seq: Seq
    sent_at: Instant
    alert: AlertBody

    def __post_init__(self) -> None:
        require_dates(self.sent_at)


class NotUnderstood(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that the county has stored as it came, but could not read. The gateway keeps its copy aside.

    `held_otherwise`: the county could read it, but holds other content under its number; the gateway counts twice.
    """

    stream: Stream
    seq: Seq
    reason: str
    held_otherwise: bool = False


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """What the county has stored, cumulatively, and which of it it could not understand."""

    schema: AckSchema = msgspec.field()
    epoch: Epoch
    alert_up_to: UpTo = 0
    telemetry_up_to: UpTo = 0
    not_understood: tuple[NotUnderstood, ...] = ()


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of the command with this `id`. `reason` says why it was not done, exactly when it was not."""

    schema: ReplySchema = msgspec.field()
    id: CommandId
    at: Instant
    done: bool = msgspec.field()
    reason: str | None = None
    text: Texts | None = None
    reading: TelemetryReading | None = None

    def __post_init__(self) -> None:
        require_dates(self.at)
        if self.done == (self.reason is not None):
            raise ValueError("`reason` must be present exactly when `done` is false")


Message = State | Telemetry | Alert | Ack | Command | Reply
MESSAGE_OF_LEAF: Final[dict[Leaf, Any]] = {
    Leaf.STATE: State,
    Leaf.TELEMETRY: Telemetry,
    Leaf.ALERT: Alert,
    Leaf.ACK: Ack,
    Leaf.COMMAND: Command,
    Leaf.REPLY: Reply,
}
_ENCODER: Final = msgspec.json.Encoder()
_DECODERS: Final = {leaf: msgspec.json.Decoder(message) for leaf, message in MESSAGE_OF_LEAF.items()}


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """Whose message it is, and which kind."""

    county: str
    gateway: str
    leaf: Leaf


def topic(county: str, gateway: str, leaf: Leaf) -> str:
    """Return the topic of one gateway's messages of one kind; `+` is allowed where a subscriber means all."""
    return f"{ROOT}/{county}/{gateway}/{leaf}"


def parse_topic(text: str) -> Topic:
    """Take a topic apart.

    Raises ContractError for a topic that is not of this contract.
    """
    match = re.fullmatch(re.escape(ROOT) + r"/([^/]+)/([^/]+)/([^/]+)", text)
    if not match or match[3] not in set(Leaf):
        raise ContractError(f"topic {text!r} is not {ROOT}/<county>/<gateway>/<{'|'.join(Leaf)}>")
    for name in match.group(1, 2):
        if not re.fullmatch(NAME_PATTERN, name):
            raise ContractError(f"topic {text!r}: {name!r} may only hold a-z, 0-9 and -")
    return Topic(county=match[1], gateway=match[2], leaf=Leaf(match[3]))


def encode(message: Message) -> bytes:
    """Return the JSON payload of a message."""
    return _ENCODER.encode(message)


def decode(leaf: Leaf, payload: bytes) -> Message:
    """Return the message in a payload.

    Raises ContractError, which says where and why, for anything that is not a valid message of that kind.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ContractError(f"{leaf}: {len(payload)} bytes; the contract allows {PAYLOAD_BYTES_MAX}")
    try:
        message: Message = _DECODERS[leaf].decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"{leaf}: {error}") from error
    return message


class Numbered(msgspec.Struct, frozen=True, kw_only=True):
    """The least that a message must say about itself so that it can be set aside in its place in the stream."""

    epoch: Epoch
    seq: Seq


def decode_number(payload: bytes) -> Numbered | None:
    """Return epoch and seq of a message that is otherwise not understood, or None where even those are unreadable."""
    try:
        return msgspec.json.decode(payload, type=Numbered)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Identified(msgspec.Struct, frozen=True, kw_only=True):
    """The least that a command must say about itself so that it can be refused."""

    id: CommandId


def decode_command_id(payload: bytes) -> str | None:
    """Return the id of a command that is otherwise not understood, or None where even that is unreadable."""
    try:
        return msgspec.json.decode(payload, type=Identified).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
