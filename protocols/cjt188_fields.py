"""The fields of CJ/T 188 data: which follow each other in an answer, and what a single one holds.

A layout names the fields in the order of the wire (`cjt188_data` says what they mean). A field is BCD digits with its
low byte first, the meter's clock, the status, or filled with FF or 99 where the meter does not have it.
"""

import datetime
import enum
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from protocols import cjt188
from protocols.errors import MeterFault, UsageError

LAYOUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "standard": ("total:4+unit", "settled:4+unit", "clock:7", "status:2"),
    # Reported of a DN15 meter read with python_cjt188 (aixiwang); what the byte behind the unit means is not.
    "short": ("total:4+unit", "other:1"),
    # Protocol RD-W10-00101 version 01 of an ultrasonic meter (gongkong forum, 2013). `other` are flow and temperature,
    # whose scale it does not give.
    "rd-w10": ("total:4", "fraction:3", "other:3", "other:1", "clock:6", "status:2"),
}
SETTLED_LAYOUT: Final = ("total:4+unit",)
FREEZE_LAYOUT: Final = ("clock:7", "total:4+unit", "flow:4+unit", "temperature:3", "pressure:3")
STATUS_LAYOUT: Final = ("status:2",)
_FIELD: Final = re.compile("(total|fraction|settled|flow|temperature|pressure|clock|status|other):([1-9])([+]unit)?")


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a layout; `bytes` without the unit code."""

    kind: str
    bytes: int
    has_unit: bool


class ClockState(enum.StrEnum):
    """What the clock field holds."""

    SET = "set"
    ABSENT = "absent"  # filled with 00, FF or 99
    INVALID = "invalid"  # no date
    AMBIGUOUS = "ambiguous"  # two different dates, read from either end


@functools.cache
def parse_layout(layout: tuple[str, ...]) -> tuple[Field, ...]:
    """Return the fields that the texts of a layout describe. Raises ValueError which says what would be right."""
    fields = []
    for text in layout:
        match = _FIELD.fullmatch(text)
        if not match:
            raise ValueError(f"field {text!r} is not of the form kind:bytes or kind:bytes+unit")
        field = Field(kind=match[1], bytes=int(match[2]), has_unit=bool(match[3]))
        allowed = {"clock": (6, 7), "status": (2,)}.get(field.kind, range(1, 10))
        if field.bytes not in allowed:
            raise ValueError(f"field {text!r}: a {field.kind} has {' or '.join(map(str, allowed))} bytes")
        if field.has_unit and field.kind not in {"total", "fraction", "settled", "flow"}:
            raise ValueError(f"field {text!r}: no unit code belongs to it")
        fields.append(field)
    kinds = [field.kind for field in fields if field.kind != "other"]
    if len(kinds) != len(set(kinds)):
        raise ValueError("a layout has each field once, `other` aside")
    if "fraction" in kinds and "total" not in kinds:
        raise ValueError("`fraction` belongs to a `total`")
    if content_bytes(fields) > cjt188.DATA_BYTES_MAX - 3:
        raise ValueError(f"a layout has at most {cjt188.DATA_BYTES_MAX - 3} bytes")
    return tuple(fields)


def content_bytes(fields: Iterable[Field]) -> int:
    """Return how many bytes follow SER in an answer with these fields."""
    return sum(field.bytes + field.has_unit for field in fields)


def decode_bcd(data: bytes) -> int:
    """Return the number in BCD digits, low byte first. Raises MeterFault where a half byte is no digit."""
    digits = data[::-1].hex()
    if not digits.isdecimal():
        raise MeterFault(f"{data.hex(' ').upper()} are no BCD digits")
    return int(digits)


def encode_bcd(number: int, size: int) -> bytes:
    """Return a number as so many bytes of BCD digits, low byte first. Raises UsageError where it does not fit."""
    if not 0 <= number < 100**size:
        raise UsageError(f"{number} does not fit {size} bytes of BCD")
    return bytes.fromhex(f"{number:0{2 * size}d}")[::-1]


def is_empty(data: bytes) -> bool:
    """Tell whether a meter marks a field as one that it does not have: all FF, or all 99."""
    return set(data) in ({0xFF}, {0x99})


def decode_clock(data: bytes) -> tuple[datetime.datetime | None, ClockState]:
    """Return the meter's own local time, in 7 bytes from either end or in 6 bytes ss mm hh DD MM YY."""
    if set(data) == {0} or is_empty(data):
        return None, ClockState.ABSENT
    both = [_moment(data), _moment(data[::-1])] if len(data) == 7 else [_moment(data + b"\x20")]
    moments = {moment for moment in both if moment is not None}
    if len(moments) == 1:
        return moments.pop(), ClockState.SET
    return None, ClockState.AMBIGUOUS if moments else ClockState.INVALID


def _moment(data: bytes) -> datetime.datetime | None:
    """Return the moment in ss mm hh DD MM YY CC, or None where there is none such in this century."""
    digits = data[::-1].hex()
    if not digits.isdecimal() or not digits.startswith("20"):
        return None
    month, day, hour, minute, second = (int(digits[i : i + 2]) for i in range(4, 14, 2))
    try:
        return datetime.datetime(int(digits[:4]), month, day, hour, minute, second)  # noqa: DTZ001 - meters know no zone
    except ValueError:
        return None
