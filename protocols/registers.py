"""Modbus register maps: how a profile says where a meter keeps its total, and exact arithmetic on it.

    total = (sum of terms) x 10^exponent x unit

where each term is one number in one or more registers. Word orders are written by the bytes as they travel:
`ABCD` is big-endian, `CDAB` low word first, `BADC` and `DCBA` the same with the bytes of each register swapped;
the same four letters name the corresponding order of 64-bit numbers.
"""

import re
import struct
from collections.abc import Generator, Iterable, Mapping
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import Annotated, Final

import msgspec

from protocols import modbus
from protocols.errors import MeterFault, ProfileError, UsageError
from protocols.reading import Measurement

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
_TYPES: Final = {
    "uint16": ("H", 1),
    "int16": ("h", 1),
    "uint32": ("I", 2),
    "int32": ("i", 2),
    "uint64": ("Q", 4),
    "int64": ("q", 4),
    "float32": ("f", 2),
    "float64": ("d", 4),
}
_ORDERS: Final = ("ABCD", "CDAB", "BADC", "DCBA")
# More than any meter can show in a lifetime (10^9 m3), and far below what SQLite's 64-bit integers hold.
VOLUME_ML_MAX: Final = 10**15
_EXACT: Final = Context(prec=60)


# `\Z`, because `$` would let a line break pass.
NumberType = Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(_TYPES)})\Z")]
IntegerType = Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(t for t in _TYPES if 'int' in t)})\Z")]
ByteOrder = Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(_ORDERS)})\Z")]
DecimalText = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{1,12}(\.[0-9]{1,12})?\Z", description="an exact decimal, in quotes")
]
# 10^18 times the smallest unit is far more than any meter counts; beyond it the arithmetic would no longer be exact.
Exponent = Annotated[int, msgspec.Meta(ge=-18, le=18)]
RegisterAddress = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF, description="0-based, as on the wire")]


class Field(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number in the meter's registers."""

    address: RegisterAddress
    type: NumberType = "uint16"
    order: ByteOrder = "ABCD"

    @property
    def addresses(self) -> range:
        """The registers that hold it."""
        return range(self.address, self.address + _TYPES[self.type][1])


class Term(Field, frozen=True, kw_only=True):
    """One addend of the total, in units of `scale`."""

    scale: DecimalText = "1"

    def __post_init__(self) -> None:
        if not Decimal(self.scale):
            raise ValueError("`scale` 0 would make nothing of the register")


class IntegerField(Field, frozen=True, kw_only=True):
    """A whole number."""

    type: IntegerType = "uint16"

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest value that it can hold."""
        bits = 16 * len(self.addresses)
        return (0, 2**bits - 1) if self.type.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class UnitRegister(IntegerField, frozen=True, kw_only=True):
    """A register whose value names the unit of the total."""

    values: dict[str, str]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("`values` needs at least one value with its unit")
        low, high = self.limits
        for value in self.values:
            # The value is looked up as it is printed, so "01" or "0x1" would never be found.
            if not re.fullmatch("0|-?[1-9][0-9]{0,19}", value) or not low <= int(value) <= high:
                raise ValueError(f"`values` has {value!r}, which a {self.type} cannot hold; write decimal numbers")


class ExponentRegister(IntegerField, frozen=True, kw_only=True):
    """A register whose value plus `offset` is the power of ten that the total is multiplied with."""

    offset: Exponent = 0
    min: Exponent = -9
    max: Exponent = 9

    def __post_init__(self) -> None:
        low, high = self.possible
        if low > high:
            raise ValueError(f"no value of a {self.type} with offset {self.offset} lies in {self.min} to {self.max}")

    @property
    def possible(self) -> tuple[int, int]:
        """The least and the greatest exponent that the register can mean."""
        low, high = self.limits
        return max(self.min, low + self.offset), min(self.max, high + self.offset)


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Registers that are read in one request, so that what belongs together is of one moment."""

    address: RegisterAddress
    count: Annotated[int, msgspec.Meta(ge=1, le=modbus.REGISTERS_MAX)]

    def __post_init__(self) -> None:
        if self.address + self.count > 0x10000:
            raise ValueError(f"{self.count} registers from {self.address} go beyond the last register, 65535")

    @property
    def addresses(self) -> set[int]:
        """The registers that it reads."""
        return set(range(self.address, self.address + self.count))


class ModbusSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[modbus]` table of a profile."""

    read: tuple[Block, ...]
    total: tuple[Term, ...]
    function: int = modbus.READ_HOLDING_REGISTERS
    unit: str | None = None
    unit_register: UnitRegister | None = None
    exponent_register: ExponentRegister | None = None

    def __post_init__(self) -> None:
        if self.function not in modbus.READ_FUNCTIONS:
            raise ValueError(f"function {self.function} does not read registers; 3 and 4 do")
        self._check_units()
        self._check_registers()

    def _check_units(self) -> None:
        if (self.unit is None) == (self.unit_register is None):
            raise ValueError("give either `unit` or `unit_register`")
        for unit in self.unit_register.values.values() if self.unit_register else (self.unit,):
            if unit not in UNIT_ML:
                raise ValueError(f"unit {unit!r} is not one of {', '.join(UNIT_ML)}")

    def _check_registers(self) -> None:
        if not self.total:
            raise ValueError("`total` needs at least one term")
        extra = [field for field in (self.unit_register, self.exponent_register) if field is not None]
        for field in (*self.total, *extra):
            if not any(set(field.addresses) <= block.addresses for block in self.read):
                raise ValueError(f"no `read` block holds the whole number at register {field.address}")
        if _repeated(block.addresses for block in self.read):
            raise ValueError("`read` blocks overlap: the second answer would overwrite a part of the first")
        twice = _repeated(term.addresses for term in self.total)
        if twice:
            raise ValueError(f"`total` counts register {min(twice)} twice")
        together = {address for term in self.total for address in term.addresses}
        if not any(together <= block.addresses for block in self.read):
            raise ValueError("all terms of `total` must sit in one `read` block: two requests are two moments")


def _repeated(groups: Iterable[Iterable[int]]) -> set[int]:
    """Return the addresses that occur in more than one group."""
    seen: set[int] = set()
    repeated: set[int] = set()
    for group in map(set, groups):
        repeated |= seen & group
        seen |= group
    return repeated


Registers = Mapping[int, int]


def parse_unit(text: str) -> int:
    """Return the Modbus unit in a configured address. Raises ProfileError where it is none."""
    if not re.fullmatch("[0-9]{1,3}", text) or not modbus.UNIT_MIN <= int(text) <= modbus.UNIT_MAX:
        raise ProfileError(f'a Modbus address is a number from "{modbus.UNIT_MIN}" to "{modbus.UNIT_MAX}"')
    return int(text)


def dialogue(spec: ModbusSpec, unit: int) -> Generator[modbus.ReadRequest, bytes, Measurement]:
    """Read the meter at `unit` once: yields the requests, is sent the answering frames, returns the measurement.

    Raises MeterRefused where the meter refuses a request and MeterFault where the registers hold no volume.
    """
    registers: dict[int, int] = {}
    for block in spec.read:
        request = modbus.ReadRequest(unit=unit, function=spec.function, address=block.address, count=block.count)
        frame = yield request
        registers |= registers_of(request, modbus.decode_response(frame))
    return measure(spec, registers)


def measure(spec: ModbusSpec, registers: Registers) -> Measurement:
    """Return the total that the registers hold, rounded half-even to the millilitre.

    Raises MeterFault where they hold no volume: not a number, negative, unknown unit, beyond 10^15 mL.
    """
    with localcontext(_EXACT):
        total = sum((Decimal(term.scale) * decode_number(term, registers) for term in spec.total), Decimal(0))
        volume = total * _exponent(spec, registers) * _unit_ml(spec, registers)
        if not 0 <= volume <= VOLUME_ML_MAX:
            raise MeterFault(f"the total registers hold {volume} mL, which is no meter reading")
        return Measurement(volume_ml=int(volume.to_integral_value(ROUND_HALF_EVEN)))


def decode_case(spec: ModbusSpec, frames: list[tuple[bytes, bytes]]) -> Measurement:
    """Return what captured (request, response) frames mean: they take the way of frames from the line.

    Raises MeterError or ProfileError for frames that do not belong together.
    """
    registers: dict[int, int] = {}
    for request_frame, response_frame in frames:
        request = _request_of_case(spec, request_frame, response_frame)
        reader = request.reader()
        answer = reader.feed(response_frame)
        if answer is None:
            reader.close()
            raise AssertionError  # close() always raises
        if answer != response_frame:
            raise ProfileError(f"response {modbus.hex_dump(response_frame)} holds more than one frame")
        registers |= registers_of(request, modbus.decode_response(answer))
    try:
        return measure(spec, registers)
    except KeyError as error:
        raise ProfileError(f"no exchange reads register {error}") from error


def _request_of_case(spec: ModbusSpec, frame: bytes, response: bytes) -> modbus.ReadRequest:
    dump = modbus.hex_dump(frame)
    if len(frame) != modbus.REQUEST_BYTES:
        raise ProfileError(f"request {dump} has {len(frame)} bytes; a Modbus read has {modbus.REQUEST_BYTES}")
    if not modbus.has_crc(frame):
        raise ProfileError(
            f"request {dump} has a wrong checksum; {modbus.hex_dump(modbus.add_crc(frame[:-2]))} is right"
        )
    if frame[1] != spec.function:
        raise ProfileError(f"request {dump} has function {frame[1]}; the profile reads with function {spec.function}")
    # Unit 0 is broadcast, but some makers print it as "any meter"; the answer names the unit then.
    unit = frame[0] or (response[0] if response else 0)
    try:
        return modbus.decode_request(bytes([unit]) + frame[1:])
    except UsageError as error:
        raise ProfileError(f"request {dump}: {error}") from error


def decode_number(field: Field, registers: Registers) -> Decimal:
    """Return the number in a field, exactly. Raises MeterFault for NaN and infinities."""
    code, _ = _TYPES[field.type]
    data = _in_order(field.order, b"".join(registers[address].to_bytes(2, "big") for address in field.addresses))
    number = struct.unpack(">" + code, data)[0]
    if code == "f":
        # The shortest decimal that denotes this float32: 0.545 as printed on the dial, not 0.54500001668930054.
        number = _shortest_float32(number)
    value = Decimal(repr(number) if isinstance(number, float) else number)
    if not value.is_finite():
        raise MeterFault(f"register {field.address} holds {number}, not a number")
    return value


def encode_number(field: Field, value: Decimal) -> dict[int, int]:
    """Return the registers that hold a value, as a meter would. Raises UsageError where it does not fit."""
    code, _ = _TYPES[field.type]
    try:
        number: float = float(value) if code in "fd" else int(value)
        data = struct.pack(">" + code, number)
    except (struct.error, OverflowError, ValueError) as error:
        raise UsageError(f"{value} does not fit a {field.type}") from error
    data = _in_order(field.order, data)
    return {address: int.from_bytes(data[2 * i : 2 * i + 2], "big") for i, address in enumerate(field.addresses)}


def simulate(spec: ModbusSpec, volume_ml: int) -> dict[int, int]:
    """Return the registers of a meter that shows `volume_ml`; the inverse of `measure` up to the meter's step.

    The unit is the first that the profile names, the exponent the one next to zero. Raises UsageError for a volume
    that the meter cannot show.
    """
    registers: dict[int, int] = {address: 0 for b in spec.read for address in range(b.address, b.address + b.count)}
    unit, exponent = spec.unit, 0
    if spec.unit_register:
        value, unit = next(iter(spec.unit_register.values.items()))
        registers |= encode_number(spec.unit_register, Decimal(value))
    if spec.exponent_register:
        low, high = spec.exponent_register.possible
        exponent = min(max(0, low), high)
        registers |= encode_number(spec.exponent_register, Decimal(exponent - spec.exponent_register.offset))
    assert unit is not None
    with localcontext(_EXACT):
        rest = Decimal(volume_ml) / UNIT_ML[unit] / Decimal(10) ** exponent
        for term in spec.total:
            count = rest / Decimal(term.scale)
            is_last_float = term is spec.total[-1] and term.type.startswith("float")
            count = count if is_last_float else count.to_integral_value(ROUND_FLOOR)
            registers |= encode_number(term, count)
            rest -= count * Decimal(term.scale)
    return registers


def registers_of(request: modbus.ReadRequest, values: list[int]) -> dict[int, int]:
    """Return the registers that answered a request, by wire address."""
    return dict(enumerate(values, request.address))


def _unit_ml(spec: ModbusSpec, registers: Registers) -> Decimal:
    if spec.unit is not None:
        return UNIT_ML[spec.unit]
    assert spec.unit_register is not None
    value = str(decode_number(spec.unit_register, registers))
    if value not in spec.unit_register.values:
        raise MeterFault(f"the unit register holds {value}, a unit that the profile does not know")
    return UNIT_ML[spec.unit_register.values[value]]


def _exponent(spec: ModbusSpec, registers: Registers) -> Decimal:
    field = spec.exponent_register
    if field is None:
        return Decimal(1)
    exponent = int(decode_number(field, registers)) + field.offset
    if not field.min <= exponent <= field.max:
        raise MeterFault(f"the exponent register says 10^{exponent}; {field.min} to {field.max} are possible")
    return Decimal(10) ** exponent


def _in_order(order: str, data: bytes) -> bytes:
    """Bring bytes from an order to big-endian or back; each of the four orders is its own inverse."""
    if order in {"BADC", "DCBA"}:
        data = b"".join(data[i : i + 2][::-1] for i in range(0, len(data), 2))
    if order in {"CDAB", "DCBA"}:
        words = [data[i : i + 2] for i in range(0, len(data), 2)]
        data = b"".join(reversed(words))
    return data


def _shortest_float32(number: float) -> float:
    packed = struct.pack(">f", number)
    for digits in range(6, 10):  # 6 digits always survive a float32, 9 always denote it
        candidate = float(f"{number:.{digits}g}")
        if struct.pack(">f", candidate) == packed:
            return candidate
    return number  # NaN, whose payload the text does not carry
