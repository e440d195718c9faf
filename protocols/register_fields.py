"""Numbers in Modbus registers: how they are typed, ordered and scaled, decoded and encoded exactly.

An order is written by the bytes as they travel, first byte first, A being the most significant of the number:

    ABCD   big-endian                     ABCDEFGH   the same for 64 bits
    BADC   bytes of each register swapped BADCFEHG
    CDAB   low register first             GHEFCDAB   CDABGHEF with pairs kept, EFGHABCD with halves swapped
    DCBA   fully reversed                 HGFEDCBA   DCBAHGFE with pairs kept, FEHGBADC with halves swapped

The four-letter names hold for numbers of every size: `CDAB` of 64 bits is GHEFCDAB, `DCBA` is HGFEDCBA.
"""

import re
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Final

import msgspec

from protocols.errors import MeterFault, UsageError
from protocols.flags import Effect, check_name

# Millilitres in a unit of volume (exact, by definition of the US and imperial gallon and the cubic foot).
UNIT_ML: Final = {
    "mL": Decimal(1),
    "L": Decimal(1000),
    "m3": Decimal(1_000_000),
    "US gal": Decimal("3785.411784"),
    "imp gal": Decimal("4546.09"),
    "ft3": Decimal("28316.846592"),
}
# struct code and number of registers; numbers travel big-endian once their bytes are in ABCD order.
TYPES: Final = {
    "uint16": ("H", 1),
    "int16": ("h", 1),
    "uint32": ("I", 2),
    "int32": ("i", 2),
    "uint64": ("Q", 4),
    "int64": ("q", 4),
    "float32": ("f", 2),
    "float64": ("d", 4),
}
# Every order is an exclusive or of the byte's index, hence its own inverse: bit 0 swaps the bytes of a register,
# bit 1 the registers of a pair, bit 2 the pairs. Of a shorter number only the lower bits count.
ORDERS: Final = {
    "ABCD": 0,
    "CDAB": 6,
    "BADC": 1,
    "DCBA": 7,
    "ABCDEFGH": 0,
    "GHEFCDAB": 6,
    "BADCFEHG": 1,
    "HGFEDCBA": 7,
    "CDABGHEF": 2,
    "DCBAHGFE": 3,
    "EFGHABCD": 4,
    "FEHGBADC": 5,
}


def _one_of(words: list[str]) -> msgspec.Meta:
    return msgspec.Meta(pattern=rf"^({'|'.join(words)})\Z")  # `\Z`, because `$` would let a line break pass


NumberType = Annotated[str, _one_of(list(TYPES))]
IntegerType = Annotated[str, _one_of([name for name in TYPES if "int" in name])]
ByteOrder = Annotated[str, _one_of(list(ORDERS))]
DecimalText = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{1,12}(\.[0-9]{1,12})?\Z", description="an exact decimal, in quotes")
]
# 10^18 times the smallest unit is far more than any meter counts; beyond it the arithmetic would no longer be exact.
Exponent = Annotated[int, msgspec.Meta(ge=-18, le=18)]
RegisterAddress = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF, description="0-based, as on the wire")]

Registers = Mapping[int, int]


class Field(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number in the meter's registers."""

    address: RegisterAddress
    type: NumberType = "uint16"
    order: ByteOrder = "ABCD"

    def __post_init__(self) -> None:
        if len(self.order) == 8 and len(self.addresses) != 4:
            raise ValueError(f"`order` {self.order!r} has eight bytes, a {self.type} has {2 * len(self.addresses)}")

    @property
    def addresses(self) -> range:
        """The registers that hold it."""
        return range(self.address, self.address + TYPES[self.type][1])


class Term(Field, frozen=True, kw_only=True):
    """One addend of the total, in units of `scale`.

    `absent` lists what the registers hold, as hexadecimal of the number in ABCD order, where the meter has no value;
    `max` is the greatest number that they can hold by the meter's map.
    """

    scale: DecimalText = "1"
    absent: tuple[str, ...] = ()
    max: DecimalText | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Decimal(self.scale):
            raise ValueError("`scale` 0 would make nothing of the register")
        digits = 4 * len(self.addresses)
        for mark in self.absent:
            if not re.fullmatch(f"[0-9A-F]{{{digits}}}", mark):
                raise ValueError(f"`absent` has {mark!r}; a {self.type} has {digits} hexadecimal digits, A to F large")


class IntegerField(Field, frozen=True, kw_only=True):
    """A whole number."""

    type: IntegerType = "uint16"

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest value that it can hold."""
        bits = 16 * len(self.addresses)
        return (0, 2**bits - 1) if self.type.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def check_values(self, values: Mapping[str, str]) -> None:
        """Raise ValueError for a table of codes that the field can never hold, or an empty one."""
        if not values:
            raise ValueError("`values` needs at least one value with its meaning")
        low, high = self.limits
        for value in values:
            # The value is looked up as it is printed, so "01" or "0x1" would never be found.
            if not re.fullmatch("0|-?[1-9][0-9]{0,19}", value) or not low <= int(value) <= high:
                raise ValueError(f"`values` has {value!r}, which a {self.type} cannot hold; write decimal numbers")


class UnitRegister(IntegerField, frozen=True, kw_only=True):
    """A register whose value names the unit of the total."""

    values: dict[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_values(self.values)
        for unit in self.values.values():
            unit_ml(unit)


class MultiplierRegister(IntegerField, frozen=True, kw_only=True):
    """A register whose value is the code of a number that the total is multiplied with."""

    values: dict[str, DecimalText]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_values(self.values)
        if any(not Decimal(factor) for factor in self.values.values()):
            raise ValueError("`values` has a multiplier 0, which would make nothing of the total")


class ExponentRegister(IntegerField, frozen=True, kw_only=True):
    """A register whose value plus `offset` is the power of ten that the total is multiplied with."""

    offset: Exponent = 0
    min: Exponent = -9
    max: Exponent = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.possible
        if low > high:
            raise ValueError(f"no value of a {self.type} with offset {self.offset} lies in {self.min} to {self.max}")

    @property
    def possible(self) -> tuple[int, int]:
        """The least and the greatest exponent that the register can mean."""
        low, high = self.limits
        return max(self.min, low + self.offset), min(self.max, high + self.offset)


class StatusFlag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A flag, what it means for the volume, and the bit or the value of the register that raises it."""

    flag: str
    volume: Effect
    bit: Annotated[int, msgspec.Meta(ge=0, le=63)] | None = None
    when: Annotated[int, msgspec.Meta(ge=0, le=1)] = 1
    value: int | None = None

    def __post_init__(self) -> None:
        check_name(self.flag)
        if (self.bit is None) == (self.value is None):
            raise ValueError(f"flag {self.flag!r}: give either `bit` or `value`")

    def is_raised(self, status: int) -> bool:
        """Tell whether a status raises it."""
        if self.bit is None:
            return status == self.value
        return status >> self.bit & 1 == self.when


class StatusRegister(IntegerField, frozen=True, kw_only=True):
    """A register that says how the meter fares."""

    flags: tuple[StatusFlag, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.limits
        for flag in self.flags:
            if flag.bit is not None and flag.bit >= 16 * len(self.addresses):
                raise ValueError(f"flag {flag.flag!r}: a {self.type} has no bit {flag.bit}")
            if flag.value is not None and not low <= flag.value <= high:
                raise ValueError(f"flag {flag.flag!r}: a {self.type} cannot hold {flag.value}")

    def effects(self, status: int) -> dict[str, Effect]:
        """Return the flags that a status raises."""
        raised: dict[str, Effect] = {}
        for flag in self.flags:
            # Where two bits raise one flag, the worse of them decides.
            if flag.is_raised(status) and raised.get(flag.flag) is not Effect.DOUBTFUL:
                raised[flag.flag] = flag.volume
        return raised

    def healthy(self) -> int:
        """Return a status that raises no flag, for simulated meters. Raises UsageError where there is none."""
        at_rest = sum(1 << flag.bit for flag in self.flags if flag.bit is not None and not flag.when)
        for status in (at_rest ^ other for other in range(0x10000)):
            if not self.effects(status):
                return status
        raise UsageError(f"every value of the status register {self.address} raises a flag")


def unit_ml(text: str) -> Decimal:
    """Return the millilitres in a unit: `L`, or with a number before it `1000 US gal`. Raises ValueError."""
    if text in UNIT_ML:
        return UNIT_ML[text]
    number, _, name = text.partition(" ")
    if name in UNIT_ML and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", number) and Decimal(number):
        return Decimal(number) * UNIT_ML[name]
    raise ValueError(f'unit {text!r} is not one of {", ".join(UNIT_ML)}, or one with a number before it, "1000 US gal"')


def decode_number(field: Field, registers: Registers) -> Decimal:
    """Return the number in a field, exactly. Raises MeterFault for NaN and infinities."""
    code, _ = TYPES[field.type]
    number = struct.unpack(">" + code, _in_order(field.order, _bytes_of(field, registers)))[0]
    if code == "f":
        # The shortest decimal that denotes this float32: 0.545 as printed on the dial, not 0.54500001668930054.
        number = _shortest_float32(number)
    value = Decimal(repr(number) if isinstance(number, float) else number)
    if not value.is_finite():
        raise MeterFault(f"register {field.address} holds {number}, not a number")
    return value


def decode_term(term: Term, registers: Registers) -> Decimal:
    """Return what a term adds to the total. Raises MeterFault where the meter has no value, or an impossible one."""
    raw = _in_order(term.order, _bytes_of(term, registers)).hex().upper()
    if raw in term.absent:
        raise MeterFault(f"register {term.address} holds {raw}, by which the meter says that it has no value")
    number = decode_number(term, registers)
    if term.max is not None and number > Decimal(term.max):
        raise MeterFault(f"register {term.address} holds {number}, at most {term.max} is possible: is the order right?")
    return number * Decimal(term.scale)


def encode_number(field: Field, value: Decimal) -> dict[int, int]:
    """Return the registers that hold a value, as a meter would. Raises UsageError where it does not fit."""
    code, _ = TYPES[field.type]
    try:
        number: float = float(value) if code in "fd" else int(value)
        data = struct.pack(">" + code, number)
    except (struct.error, OverflowError, ValueError) as error:
        raise UsageError(f"{value} does not fit a {field.type}") from error
    data = _in_order(field.order, data)
    return {address: int.from_bytes(data[2 * i : 2 * i + 2], "big") for i, address in enumerate(field.addresses)}


def _bytes_of(field: Field, registers: Registers) -> bytes:
    return b"".join(registers[address].to_bytes(2, "big") for address in field.addresses)


def _in_order(order: str, data: bytes) -> bytes:
    """Bring bytes from an order to big-endian or back; each order is its own inverse."""
    mask = ORDERS[order] & (len(data) - 1)
    return bytes(data[index ^ mask] for index in range(len(data)))


def _shortest_float32(number: float) -> float:
    packed = struct.pack(">f", number)
    for digits in range(6, 10):  # 6 digits always survive a float32, 9 always denote it
        candidate = float(f"{number:.{digits}g}")
        if struct.pack(">f", candidate) == packed:
            return candidate
    return number  # NaN, whose payload the text does not carry
