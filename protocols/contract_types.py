"""The words that every message of the contract is made of: names, numbers, instants.

Part of `protocols.contract`, which hands them on: import them from there.
"""

import datetime
from typing import Annotated, Final

import msgspec

from protocols.errors import ContractError

# RFC 8259 section 6: beyond this, two JSON readers may disagree about the digits. It also fits SQLite's 64 bits.
INTEGER_MAX: Final = 2**53 - 1

# `$(?!\n)`: in Python `$` also matches before a last line feed; in JSON Schema (ECMA 262) the addition changes nothing.
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)"
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description="a-z, 0-9 and -; no name of a person")]
Epoch = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-HJKMNP-TV-Z]{26}$(?!\n)", description="a ULID")]
Seq = Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX, description="counts per (epoch, stream) from 1")]
UpTo = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX, description="every seq up to and including this is stored")]
Count = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
Volume = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX, description="the meter's register in millilitres")]
Instant = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$(?!\n)",
        description="UTC with milliseconds, RFC 3339",
        examples=["2026-11-21T20:39:00.000Z"],
        extra_json_schema={"format": "date-time"},
    ),
]


def instant(wall_ms: int) -> str:
    """Return a wall clock value (UTC, ms since 1970) as the contract writes it."""
    seconds, milliseconds = divmod(wall_ms, 1000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def wall_ms(text: str) -> int:
    """Return the wall clock value (UTC, ms since 1970) of an instant.

    Raises ContractError for a date that does not exist.
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ContractError(f"{text!r} is not a date: {error}") from error
    return round(moment.timestamp() * 1000)


def require_dates(*instants: str) -> None:
    """Raise ValueError for a well-formed instant that no calendar has; msgspec adds the place in the message."""
    for text in instants:
        datetime.datetime.fromisoformat(text)
