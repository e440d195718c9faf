"""What the duty officer is told: one event a line, either drawn by `county.display` or as JSON."""

import msgspec

from protocols.contract import AbsenceNotice, AlertBody, Stream


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that people at the county want to know, at the instant the county learned it."""

    county: str
    gateway: str
    received_at: str


class AlertStep(Event, frozen=True, kw_only=True, tag="alert"):
    """A step of an episode. `standing`: it was open already when the receiver started.

    `historical`: a later step is known, to the gateway or to this county, so nobody needs to be sent because of it.
    """

    alert: AlertBody
    historical: bool
    standing: bool = False


class GatewayChange(Event, frozen=True, kw_only=True, tag="gateway"):
    """A gateway came or went. `new_store`: it has a new epoch, so what its old store had not sent is lost."""

    online: bool
    new_store: bool = False
    reason: str | None = None
    agent: str | None = None
    meters: int | None = None


class AbsenceChange(Event, frozen=True, kw_only=True, tag="absence"):
    """Somebody is away, has quiet hours, or is back: as the gateway says now."""

    absence: AbsenceNotice


class CommandAnswered(Event, frozen=True, kw_only=True, tag="reply"):
    """A gateway has answered a command. `do` and what it was about are None where only the reply was heard."""

    id: str
    done: bool
    do: str | None = None
    meter: str | None = None
    alert: str | None = None
    result: str | None = None
    reason: str | None = None
    text: dict[str, str] | None = None


class ReadingsDropped(Event, frozen=True, kw_only=True, tag="dropped"):
    """A tombstone: the gateway had to drop these readings for want of space."""

    readings: int
    start: str
    end: str


class MessagesSkipped(Event, frozen=True, kw_only=True, tag="skipped"):
    """The gateway no longer has these messages: another database acknowledged them, not this one."""

    stream: Stream
    first: int
    last: int


class MessageSetAside(Event, frozen=True, kw_only=True, tag="set_aside"):
    """Messages that could not be understood (`count` alike ones of one batch); stored as they came.

    `county` and `gateway` are empty where not even the topic could be read.
    """

    topic: str
    reason: str
    count: int
