"""What the county asks of a gateway: who is away, what a visit found, a reading now.

Part of `protocols.contract`, which hands these types on: import them from there. A command is idempotent by `id`: the
same id again brings the same reply and nothing else. After its `deadline` nobody acts on it any more.
"""

import enum
from typing import Annotated, Final, Literal

import msgspec

from protocols.contract_types import Epoch, Instant, Name, require_dates

CommandSchema = Literal["shuiwang/command/1"]
COMMAND_SCHEMA: Final[CommandSchema] = "shuiwang/command/1"

# Two sentences of whoever stood at the door; more belongs into the county's own case file.
WHY_CHARACTERS_MAX: Final = 500
# Longer than any stay away that somebody plans in one go; an absence that is forgotten ends by itself.
ABSENCE_DAYS_MAX: Final = 90
ABSENCE_MS_MAX: Final = ABSENCE_DAYS_MAX * 86_400_000

CommandId = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-HJKMNP-TV-Z]{26}$(?!\n)", description="a ULID made for it")]
Role = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z][a-z0-9-]{0,62}$(?!\n)",
        description="a role such as village-assistant or duty-officer; never the name of a person",
    ),
]
Why = Annotated[
    str,
    msgspec.Meta(max_length=WHY_CHARACTERS_MAX, description="what was found, in words; no name of a person"),
]
TimeOfDay = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$(?!\n)",
        description="local time of the gateway, 00:00 to 23:59",
        examples=["22:00"],
    ),
]


class Result(enum.StrEnum):
    """What was found at the door."""

    FINE = "fine"
    HELPED = "helped"
    FALSE = "false"


class Ending(enum.StrEnum):
    """What ended an absence: water was used, somebody said so, its time was over, or a newer one took its place."""

    USE = "use"
    COMMAND = "command"
    TIME = "time"
    REPLACED = "replaced"


class Daily(msgspec.Struct, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """Hours that come back every day, in the gateway's local time; `to` before `from` reaches over midnight."""

    start: TimeOfDay
    end: TimeOfDay

    def __post_init__(self) -> None:
        if self.start == self.end:
            raise ValueError("`from` and `to` of `daily` are the same time: quiet hours have a length")

    def __str__(self) -> str:
        """`22:00-06:00`."""
        return f"{self.start}-{self.end}"


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="do"):
    """What every command says of itself."""

    schema: CommandSchema = msgspec.field()
    id: CommandId = msgspec.field()
    deadline: Instant = msgspec.field()


class AbsenceCommand(_Command, frozen=True, kw_only=True, tag="absence", rename={"start": "from"}):
    """Nobody is expected at home (or, with `daily`, to use water in these hours) until `until`.

    `from` is now where it is missing. A gateway takes an `until` of at most 90 days ahead. A newer absence takes the
    place of the meter's earlier one, newer quiet hours that of the earlier ones.
    """

    meter: Name
    until: Instant
    declared_by: Role
    start: Instant | None = None
    daily: Daily | None = None

    def __post_init__(self) -> None:
        require_dates(self.deadline, self.until, *([] if self.start is None else [self.start]))
        if self.start is not None and self.start >= self.until:  # both are of one form: they sort as they follow
            raise ValueError("`until` must be later than `from`")


class PresentCommand(_Command, frozen=True, kw_only=True, tag="present"):
    """Somebody is at home again: ends the meter's absence; where there is none, its quiet hours."""

    meter: Name

    def __post_init__(self) -> None:
        require_dates(self.deadline)


class AcknowledgeCommand(_Command, frozen=True, kw_only=True, tag="acknowledge"):
    """Somebody at the county has seen an alert and takes care of it."""

    alert: Epoch

    def __post_init__(self) -> None:
        require_dates(self.deadline)


class ResolveCommand(_Command, frozen=True, kw_only=True, tag="resolve"):
    """Somebody was at the door. `why` is required where the alert was false: only that can be learned from."""

    alert: Epoch
    result: Result
    why: Why | None = None

    def __post_init__(self) -> None:
        require_dates(self.deadline)
        if self.result is Result.FALSE and not (self.why and self.why.strip()):
            raise ValueError("`why` must say what made the alert a false one")


class ReadNowCommand(_Command, frozen=True, kw_only=True, tag="read_now"):
    """Read a meter now, out of its turn."""

    meter: Name

    def __post_init__(self) -> None:
        require_dates(self.deadline)


Command = AbsenceCommand | PresentCommand | AcknowledgeCommand | ResolveCommand | ReadNowCommand


class Refusal(enum.StrEnum):
    """Why a command was not done; `text` of the reply says it in words. More may come: a text for people is with it."""

    INVALID = "invalid"  # not a command of this contract, or one that makes no sense
    LATE = "late"  # the deadline was over
    UNKNOWN_METER = "unknown_meter"
    UNKNOWN_ALERT = "unknown_alert"  # no open alert has this id
    CLOCK_UNSYNCED = "clock_unsynced"  # the gateway does not know the time that the command speaks of
    NO_READING = "no_reading"  # the meter gave none; `reading` says why
    BUSY = "busy"  # the gateway came to no end before the deadline
    FAILED = "failed"  # the gateway could not do it or keep it: disk, or a bug; the same id may be sent again


class AbsenceNotice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"start": "from"}):
    """An absence or, with `daily`, quiet hours, as a gateway keeps them. `ended_at` and `ended_by` come together."""

    meter: Name
    start: Instant
    until: Instant
    daily: Daily | None = None
    ended_at: Instant | None = None
    ended_by: Ending | None = None

    def __post_init__(self) -> None:
        require_dates(self.start, self.until, *([] if self.ended_at is None else [self.ended_at]))
        if (self.ended_at is None) != (self.ended_by is None):
            raise ValueError("`ended_at` and `ended_by` must be present together")
