"""CJ/T 188 data: what a profile says of a water meter, and what the meter's answers mean.

A total is a whole number of BCD digits, low byte first, and a unit code; how many of the digits are decimals the
profile says for each unit code, because meters differ and nothing on the wire tells. All volumes are exact integers.

The layout of an answer is a list of fields in the order of the wire, each `kind:bytes`, with `+unit` where a unit code
follows. Neither identifier nor length tell one layout from another, so the profile names it:

    total fraction   the register; `fraction` holds further decimals of the total
    settled          the register at the last settlement day
    flow temperature pressure     as in the freeze records of 2018 (4, 2 and 2 decimals)
    clock status     the meter's clock (7 bytes, or 6 without century) and ST0 ST1
    other            bytes that we neither check nor use

What a field holds: `cjt188_fields`. Questions and answers: `cjt188_dialogue`. Frames: `cjt188`.
"""

import datetime
import enum
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Final

import msgspec

from protocols import cjt188
from protocols.cjt188_fields import (
    FREEZE_LAYOUT,
    LAYOUTS,
    SETTLED_LAYOUT,
    STATUS_LAYOUT,
    ClockState,
    Field,
    content_bytes,
    decode_bcd,
    decode_clock,
    encode_bcd,
    is_empty,
    parse_layout,
)
from protocols.errors import MeterFault, UsageError
from protocols.flags import USUAL_EFFECT, Effect, check_name
from protocols.registers import VOLUME_ML_MAX

__all__ = [
    "ADDRESS",
    "CURRENT",
    "FLOW_UNIT_L_H",
    "FREEZES",
    "FREEZE_LAYOUT",
    "HISTORY",
    "LAYOUTS",
    "LEAD_BYTES_MAX",
    "PREAMBLE_BYTES_MAX",
    "SETTLED_LAYOUT",
    "SETTLED_MONTHS",
    "STATUS_LAYOUT",
    "UNIT_ML",
    "VALVE",
    "VOLUME_ML_MAX",
    "Cjt188Spec",
    "ClockState",
    "DiOrder",
    "Field",
    "Record",
    "Valve",
    "check_lead",
    "content_bytes",
    "decode",
    "decode_bcd",
    "decode_clock",
    "encode",
    "encode_bcd",
    "is_empty",
    "knows_past",
    "layout_of",
    "parse_layout",
    "status_of",
]

UNIT_ML: Final = {"29": 10**3, "2A": 10**4, "2B": 10**5, "2C": 10**6, "2D": 10**7, "2E": 10**8}  # L to m3 x 100
FLOW_UNIT_L_H: Final = {"32": 1, "33": 10, "34": 100, "35": 10**3, "36": 10**4, "37": 10**5}  # L/h to m3/h x 100

CURRENT: Final = 0x901F
ADDRESS: Final = 0x810A
VALVE: Final = 0xA017
SETTLED_MONTHS: Final = range(0xD120, 0xD12C)  # total on the settlement day 1 to 12 months ago
HISTORY: Final = range(0xD200, 0xD300)  # 2018: settled totals, 1 to 256 settlements ago
FREEZES: Final = range(0xD300, 0xD500)  # 2018: D3xx frozen by schedule, D4xx on command

_FLOW_UNIT: Final = "35"
_DECIMALS: Final = {"flow": 4, "temperature": 2, "pressure": 2}

# Some sleeping meters want a longer preamble than the four of the standard; 32 are 0.15 s at 2400 bit/s.
PREAMBLE_BYTES_MAX: Final = 32
# A radio modem's header and destination; two or three are usual, and the shortest Modbus frame that writes has eight.
LEAD_BYTES_MAX: Final = 7


class DiOrder(enum.StrEnum):
    """In which order the bytes of the data identifier 901F travel to the meter; answers may have either."""

    HIGH_FIRST = "901F"
    LOW_FIRST = "1F90"
    PROBE = "probe"


class Valve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this meter's valve is moved. 55 and 99 are common; other codes mean one thing here and another there.

    `di_order` is how A017 travels, where that is not the order in which the meter is read.
    """

    open: Annotated[int, msgspec.Meta(ge=0x55, le=0x55)]
    close: Annotated[int, msgspec.Meta(ge=0x99, le=0x99)]
    control: int = cjt188.WRITE_DATA
    di_order: Annotated[str, msgspec.Meta(pattern=r"^(A017|17A0)\Z")] | None = None

    def __post_init__(self) -> None:
        if self.control not in (cjt188.WRITE_DATA, cjt188.VENDOR_VALVE):
            raise ValueError("valve.control is 0x04, or 0x2A for the meters that want it")


class Cjt188Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[cjt188]` table of a profile."""

    layout: str | tuple[str, ...] = "standard"
    # How many digits of a total are decimals, by unit code. A code that is not here makes the reading a fault.
    decimals: dict[str, Annotated[int, msgspec.Meta(ge=0, le=8)]] = msgspec.field(default_factory=lambda: {"2C": 2})
    # The unit code of totals without one in their layout.
    unit: str | None = None
    di_order: DiOrder = DiOrder.HIGH_FIRST
    meter_type: Annotated[int, msgspec.Meta(ge=0x10, le=0xFF)] = (
        cjt188.COLD_WATER
    )  # less could be the length of an M-Bus frame
    preamble_bytes: Annotated[int, msgspec.Meta(ge=0, le=PREAMBLE_BYTES_MAX)] = 4
    tx_prefix: str = ""  # hexadecimal, before the preamble: a radio modem's header
    # Flags and their bits, such as battery_low = "ST0.2"; with "ST0.2 doubtful" or "ST0.2 stands" where the flag means
    # something else for the volume than is usual. What is not named is published raw and decides nothing.
    status: dict[str, str] = {}
    valve: Valve | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layout, str) and self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is neither a list of fields nor one of {', '.join(LAYOUTS)}")
        fields = {field.kind: field for field in parse_layout(self.fields)}
        if "total" not in fields:
            raise ValueError("the layout has no total")
        if not self.decimals:
            raise ValueError("`decimals` names no unit")
        for unit in (*self.decimals, *filter(None, [self.unit])):
            if unit not in UNIT_ML:
                raise ValueError(f"unit {unit!r} is not one of {', '.join(UNIT_ML)}")
            if UNIT_ML[unit] % 10 ** self.decimals.get(unit, 0):
                raise ValueError(f"{self.decimals[unit]} decimals of unit {unit} are less than a millilitre")
        if self.unit not in {None, *self.decimals}:
            raise ValueError(f"`decimals` says nothing of unit {self.unit!r}")
        totals = [fields.get("fraction", fields["total"]), *filter(None, [fields.get("settled")])]
        if self.unit is None and not all(field.has_unit for field in totals):
            raise ValueError("a total without a unit code on the wire needs `unit`")
        if not re.fullmatch(r"(\s*[0-9A-Fa-f]{2})*\s*", self.tx_prefix):
            raise ValueError(f"tx_prefix {self.tx_prefix!r} is not hexadecimal")
        check_lead(bytes.fromhex(self.tx_prefix), what=f"tx_prefix {self.tx_prefix!r}")
        for flag, bit in self.status.items():
            check_name(flag)
            if not re.fullmatch(f"ST[01][.][0-7]( ({'|'.join(Effect)}))?", bit):
                raise ValueError(
                    f"status bit {bit!r} is not of the form ST0.2, or ST0.2 with one of {', '.join(Effect)}"
                )

    @property
    def fields(self) -> tuple[str, ...]:
        """The layout of the current reading."""
        return LAYOUTS[self.layout] if isinstance(self.layout, str) else self.layout


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer says. None: the answer has no such field, or the meter left it empty (FF or 99)."""

    total_ml: int | None = None
    settled_ml: int | None = None
    settled_fault: str | None = None  # why nobody can tell what the settled total is, though the meter sent something
    flow_l_h: Decimal | None = None
    temperature_c: Decimal | None = None
    pressure: Decimal | None = None
    clock: datetime.datetime | None = None  # the meter's own local time
    clock_state: ClockState | None = None
    status: bytes | None = None
    effects: Mapping[str, Effect] = {}  # the flags in the status, and what they mean for the total

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that the status raises."""
        return tuple(sorted(self.effects))


def check_lead(lead: bytes, *, what: str) -> None:
    """Raise ValueError where the bytes before a preamble could be, or begin, a frame that writes.

    CJ/T 188 frames and M-Bus frames that write begin with 68; Modbus frames that write are longer.
    """
    if len(lead) > LEAD_BYTES_MAX:
        raise ValueError(f"{what} has {len(lead)} bytes; at most {LEAD_BYTES_MAX} may stand before the preamble")
    if cjt188.START in lead:
        raise ValueError(f"{what} holds a 68, with which a frame begins: set the modem to another address")


def knows_past(spec: Cjt188Spec) -> bool:
    """Tell whether the profile says what the digits of a settled or frozen total mean.

    Those have four bytes, and `decimals` counts from the right end of today's total: of one of another size, or with
    its decimals in a field of their own, it says nothing about them.
    """
    fields = {field.kind: field for field in parse_layout(spec.fields)}
    return fields["total"].bytes == parse_layout(SETTLED_LAYOUT)[0].bytes and "fraction" not in fields


def layout_of(spec: Cjt188Spec, identifier: int) -> tuple[str, ...]:
    """Return the layout of the answer to a data identifier.

    Raises UsageError for one that holds no total, and for past totals of meters of which the profile says only how
    today's total is read.
    """
    if identifier == CURRENT:
        return spec.fields
    if identifier not in SETTLED_MONTHS and identifier not in HISTORY and identifier not in FREEZES:
        raise UsageError(f"data identifier {identifier:04X} holds no total")
    layout = FREEZE_LAYOUT if identifier in FREEZES else SETTLED_LAYOUT
    _check_past(spec, layout)
    return layout


def decode(spec: Cjt188Spec, layout: tuple[str, ...], content: bytes) -> Record:
    """Return what the bytes after SER say; their number must be that of the layout.

    Raises MeterFault where a field that is not empty holds something else than BCD digits, or a unit code that the
    profile does not name; and UsageError for past totals that the profile does not explain (`knows_past`).

    Two fields never fail a record, because no rule rests on them. The clock is nobody's witness. The total of the
    settlement day beside today's is unknown where it cannot be read, and `settled_fault` says why: a meter that never
    settled may send 00 for its unit, and to refuse what it says of today would leave a home unwatched for ever. That
    field was also evidence against damage that the sum does not see. It was weak evidence, since digits in place of
    digits pass it as well; what rules damage out is that no single answer counts (`gateway.meters`): damage does not
    come twice alike, but what a meter always sends does.
    """
    _check_past(spec, layout)
    parts = _split(parse_layout(layout), content)
    is_past = layout in (SETTLED_LAYOUT, FREEZE_LAYOUT) and layout != spec.fields
    settled_ml, settled_fault = _settled(spec, parts)
    clock, clock_state = decode_clock(parts["clock"][0]) if "clock" in parts else (None, None)
    status = parts["status"][0] if "status" in parts else None
    return Record(
        total_ml=_volume_ml(spec, "past total", parts["total"]) if is_past else _total_ml(spec, parts),
        settled_ml=settled_ml,
        settled_fault=settled_fault,
        flow_l_h=_flow_l_h(parts.get("flow")),
        temperature_c=_number("temperature", parts.get("temperature")),
        pressure=_number("pressure", parts.get("pressure")),
        clock=clock,
        clock_state=clock_state,
        status=status,
        effects={} if status is None or is_empty(status) else _effects(spec, status),
    )


def encode(
    spec: Cjt188Spec, layout: tuple[str, ...], *, total_ml: int, settled_ml: int = 0, status: bytes = b"\0\0"
) -> bytes:
    """Return the bytes after SER of a meter that shows a total: the inverse of `decode` up to the meter's step.

    The meter has no clock (zeros); flow, temperature and pressure are zero. Raises UsageError where a volume does not
    fit.
    """
    fields = parse_layout(layout)
    unit = spec.unit or next(iter(spec.decimals))
    step_ml = _step_ml(spec, unit)
    fraction_bytes = sum(field.bytes for field in fields if field.kind == "fraction")
    total, fraction = divmod(total_ml // step_ml, 100**fraction_bytes)
    counts = {"total": total, "fraction": fraction, "settled": settled_ml // step_ml}
    content = b""
    for field in fields:
        content += status if field.kind == "status" else encode_bcd(counts.get(field.kind, 0), field.bytes)
        if field.has_unit:
            content += bytes.fromhex(_FLOW_UNIT if field.kind == "flow" else unit)
    return content


def status_of(spec: Cjt188Spec, flags: Iterable[str]) -> bytes:
    """Return ST0 and ST1 with the bits that raise these flags; a flag that the profile does not name has none."""
    status = bytearray(2)
    for flag in flags:
        if flag in spec.status:
            bit = spec.status[flag]
            status[int(bit[2])] |= 1 << int(bit[4])
    return bytes(status)


# The bytes of a field and its unit code, by kind.
_Parts = dict[str, tuple[bytes, int | None]]


def _split(fields: tuple[Field, ...], content: bytes) -> _Parts:
    assert len(content) == content_bytes(fields), "a reader lets no other length pass"
    parts: _Parts = {}
    at = 0
    for field in fields:
        end = at + field.bytes
        parts[field.kind] = content[at:end], content[end] if field.has_unit else None
        at = end + field.has_unit
    return parts


def _total_ml(spec: Cjt188Spec, parts: _Parts) -> int | None:
    if "fraction" not in parts:
        return _volume_ml(spec, "total", parts.get("total"))
    (total, total_unit), (fraction, fraction_unit) = parts["total"], parts["fraction"]
    if is_empty(total):
        return None
    if is_empty(fraction):  # 99 99 99 may be digits, once in a million readings: that one is given up
        raise MeterFault(f"the decimals of the total are empty ({fraction.hex(' ').upper()})")
    unit = fraction_unit if fraction_unit is not None else total_unit
    return _volume_ml(spec, "total", (fraction + total, unit))


def _settled(spec: Cjt188Spec, parts: _Parts) -> tuple[int | None, str | None]:
    """Return the settled total, and why there is none where something else than a total stands in its place."""
    try:
        return _volume_ml(spec, "settled total", parts.get("settled")), None
    except MeterFault as fault:
        return None, str(fault)


def _check_past(spec: Cjt188Spec, layout: tuple[str, ...]) -> None:
    if layout in (SETTLED_LAYOUT, FREEZE_LAYOUT) and not knows_past(spec):
        raise UsageError(
            "the profile's total has a form of its own: how many decimals its past totals have is not known"
        )


def _volume_ml(spec: Cjt188Spec, what: str, part: tuple[bytes, int | None] | None) -> int | None:
    if part is None or is_empty(part[0]):
        return None
    data, unit = part
    code = spec.unit if unit is None else f"{unit:02X}"
    count = decode_bcd(data)
    if code not in spec.decimals:
        raise MeterFault(
            f"the unit code of the {what} is {code}; the profile's `decimals` names only {', '.join(spec.decimals)}. "
            + _remedy(what, code, count)
        )
    volume_ml = count * _step_ml(spec, code)
    if volume_ml > VOLUME_ML_MAX:
        raise MeterFault(f"the {what} is {volume_ml} mL, which is no meter reading")
    return volume_ml


def _remedy(what: str, code: str | None, count: int) -> str:
    if code in UNIT_ML:
        showed = "with the dial" if what == "total" else "with what the dial showed on that day"
        return f"Compare {count} {showed} before you add it"
    if what == "total":
        passed = 'pass over it ("total:4", "other:1" for "total:4+unit")'
        return f"Compare {count} with the dial before you give `unit`: it is no unit of volume, so {passed}"
    return "It is no unit of volume: a meter that never settled has none there. Leave `layout` as it is"


def _step_ml(spec: Cjt188Spec, unit: str) -> int:
    """Return the volume of the last digit of a total; a whole number by the check of the spec."""
    step_ml: int = UNIT_ML[unit] // 10 ** spec.decimals[unit]
    return step_ml


def _flow_l_h(part: tuple[bytes, int | None] | None) -> Decimal | None:
    number = _number("flow", part)
    if part is None or number is None:
        return None
    code = f"{part[1]:02X}"
    if code not in FLOW_UNIT_L_H:
        raise MeterFault(f"{code} is no unit code of a flow")
    return number * FLOW_UNIT_L_H[code]


def _number(kind: str, part: tuple[bytes, int | None] | None) -> Decimal | None:
    if part is None or is_empty(part[0]):
        return None
    return Decimal(decode_bcd(part[0])).scaleb(-_DECIMALS[kind])


def _effects(spec: Cjt188Spec, status: bytes) -> dict[str, Effect]:
    """Return the flags whose bits are set; a valve that does not obey is neither open nor closed."""
    effects = {}
    for flag, text in spec.status.items():
        bit, _, effect = text.partition(" ")
        if status[int(bit[2])] >> int(bit[4]) & 1:
            effects[flag] = Effect(effect) if effect else USUAL_EFFECT[flag]
    if "valve_fault" in effects:
        effects.pop("valve_closed", None)
    return effects
