"""Modbus register maps: how a profile says where a meter keeps its total, and exact arithmetic on it.

    total = (sum of terms) x multiplier x 10^exponent x unit

where each term is one number in one or more registers (`register_fields`). What belongs together is read in one
request, because two requests are two moments.
"""

import re
from collections.abc import Generator, Iterable
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import Annotated, Final

import msgspec

from protocols import flags, modbus
from protocols.errors import MeterFault, ProfileError, UsageError
from protocols.reading import Measurement
from protocols.register_fields import (
    UNIT_ML,
    ExponentRegister,
    Field,
    MultiplierRegister,
    RegisterAddress,
    Registers,
    StatusRegister,
    Term,
    UnitRegister,
    decode_number,
    decode_term,
    encode_number,
    unit_ml,
)

__all__ = [
    "UNIT_ML",
    "VOLUME_ML_MAX",
    "Block",
    "ExponentRegister",
    "Field",
    "ModbusSpec",
    "MultiplierRegister",
    "StatusRegister",
    "Term",
    "UnitRegister",
    "decode_case",
    "decode_number",
    "dialogue",
    "encode_number",
    "measure",
    "parse_tcp_unit",
    "parse_unit",
    "parse_unit_of",
    "registers_of",
    "simulate",
]

# More than any meter can show in a lifetime (10^9 m3), and far below what SQLite's 64-bit integers hold.
VOLUME_ML_MAX: Final = 10**15
_EXACT: Final = Context(prec=60)


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Registers that are read in one request, or in as few as `max_registers` allows."""

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
    multiplier_register: MultiplierRegister | None = None
    exponent_register: ExponentRegister | None = None
    status: tuple[StatusRegister, ...] = ()
    max_registers: Annotated[int, msgspec.Meta(ge=1, le=modbus.REGISTERS_MAX)] = modbus.REGISTERS_MAX
    # Whether the meter, alone on its line, answers requests to unit 0.
    any_unit: bool = False

    def __post_init__(self) -> None:
        if self.function not in modbus.READ_FUNCTIONS:
            raise ValueError(f"function {self.function} does not read registers; 3 and 4 do")
        if (self.unit is None) == (self.unit_register is None):
            raise ValueError("give either `unit` or `unit_register`")
        if self.unit is not None:
            unit_ml(self.unit)
        self._check_registers()
        list(self.requests())

    @property
    def fields(self) -> list[Field]:
        """Every number that is read."""
        extra = (self.unit_register, self.multiplier_register, self.exponent_register)
        return [*self.total, *(field for field in extra if field is not None), *self.status]

    def requests(self) -> Generator[tuple[int, int]]:
        """Yield the first register and the number of registers of each request.

        Raises ValueError where what belongs together is more than `max_registers`.
        """
        together = [list(field.addresses) for field in self.fields]
        together.append(sorted(address for term in self.total for address in term.addresses))
        for block in self.read:
            yield from _split(block, limit=self.max_registers, together=together)

    def _check_registers(self) -> None:
        if not self.total:
            raise ValueError("`total` needs at least one term")
        for field in self.fields:
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


def _split(block: Block, *, limit: int, together: list[list[int]]) -> Generator[tuple[int, int]]:
    """Yield requests of at most `limit` registers that cover a block, none of them cutting what belongs together."""
    start, block_end = block.address, block.address + block.count
    while start < block_end:
        end = min(start + limit, block_end)
        # Moving the cut before one number may put it into another, so until nothing moves it any more.
        while cut := [group for group in together if group[0] < end <= group[-1]]:
            end = min(group[0] for group in cut)
            if end <= start:
                span = max(group[-1] for group in cut) - start + 1
                raise ValueError(
                    f"registers {start} to {start + span - 1} belong together, but `max_registers` is {limit}: "
                    "two requests are two moments"
                )
        yield start, end - start
        start = end


def _repeated(groups: Iterable[Iterable[int]]) -> set[int]:
    """Return the addresses that occur in more than one group."""
    seen: set[int] = set()
    repeated: set[int] = set()
    for group in map(set, groups):
        repeated |= seen & group
        seen |= group
    return repeated


def parse_unit(text: str) -> int:
    """Return the Modbus unit in a configured address. Raises ProfileError where it is none."""
    if not re.fullmatch("[0-9]{1,3}", text) or not modbus.UNIT_MIN <= int(text) <= modbus.UNIT_MAX:
        hint = ""
        if text == str(modbus.TCP_DEVICE):
            hint = '; "255" is the device itself and exists where the framing is "tcp" only'
        raise ProfileError(f'a Modbus address is a number from "{modbus.UNIT_MIN}" to "{modbus.UNIT_MAX}"{hint}')
    return int(text)


def parse_tcp_unit(text: str) -> int:
    """Return the unit in an address configured on a line whose framing is Modbus TCP. Raises ProfileError for others.

    "255" is the device at the other end itself, "0" too; other numbers are meters behind it.
    """
    if text in (str(modbus.ANY_UNIT), str(modbus.TCP_DEVICE)):
        return int(text)
    try:
        return parse_unit(text)
    except ProfileError as error:
        raise ProfileError(f'{error}, or over Modbus TCP "{modbus.TCP_DEVICE}" for the device itself') from None


def parse_unit_of(spec: ModbusSpec, text: str) -> int:
    """Return the Modbus unit in a configured address; "0" is one for a meter that answers to any unit.

    Raises ProfileError where it is none.
    """
    return modbus.ANY_UNIT if spec.any_unit and text == str(modbus.ANY_UNIT) else parse_unit(text)


def dialogue(spec: ModbusSpec, unit: int) -> Generator[modbus.ReadRequest, bytes, Measurement]:
    """Read the meter at `unit` once: yields the requests, is sent the answering frames, returns the measurement.

    Raises MeterRefused where the meter refuses a request and MeterFault where the registers hold no volume.
    """
    registers: dict[int, int] = {}
    for address, count in spec.requests():
        request = modbus.ReadRequest(unit=unit, function=spec.function, address=address, count=count)
        frame = yield request
        registers |= registers_of(request, modbus.decode_response(frame))
    return measure(spec, registers)


def measure(spec: ModbusSpec, registers: Registers) -> Measurement:
    """Return the total that the registers hold, rounded half-even to the millilitre, and the flags of the status.

    Raises MeterFault where they hold no volume: not a number, no value, impossible, negative, unknown unit, beyond
    10^15 mL.
    """
    with localcontext(_EXACT):
        total = sum((decode_term(term, registers) for term in spec.total), Decimal(0))
        volume = total * _multiplier(spec, registers) * _exponent(spec, registers) * _unit_ml(spec, registers)
        if not 0 <= volume <= VOLUME_ML_MAX:
            raise MeterFault(f"the total registers hold {volume} mL, which is no meter reading")
        volume_ml = int(volume.to_integral_value(ROUND_HALF_EVEN))
    effects: dict[str, flags.Effect] = {}
    for register in spec.status:
        raised = register.effects(int(decode_number(register, registers)))
        doubtful = {flag: effect for flag, effect in effects.items() if effect is flags.Effect.DOUBTFUL}
        effects = effects | raised | doubtful
    return flags.measurement(volume_ml, effects)


def decode_case(spec: ModbusSpec, frames: list[tuple[bytes, bytes]]) -> Measurement:
    """Return what captured (request, response) frames mean: they take the way of frames from the line.

    Raises MeterError or ProfileError for frames that do not belong together.
    """
    registers: dict[int, int] = {}
    for request_frame, response_frame in frames:
        request = _request_of_case(spec, request_frame)
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


def _request_of_case(spec: ModbusSpec, frame: bytes) -> modbus.ReadRequest:
    dump = modbus.hex_dump(frame)
    if len(frame) != modbus.REQUEST_BYTES:
        raise ProfileError(f"request {dump} has {len(frame)} bytes; a Modbus read has {modbus.REQUEST_BYTES}")
    if not modbus.has_crc(frame):
        raise ProfileError(
            f"request {dump} has a wrong checksum; {modbus.hex_dump(modbus.add_crc(frame[:-2]))} is right"
        )
    if frame[1] != spec.function:
        raise ProfileError(f"request {dump} has function {frame[1]}; the profile reads with function {spec.function}")
    try:
        return modbus.decode_request(frame)
    except UsageError as error:
        raise ProfileError(f"request {dump}: {error}") from error


def simulate(spec: ModbusSpec, volume_ml: int) -> dict[int, int]:
    """Return the registers of a healthy meter that shows `volume_ml`; `measure`'s inverse up to the meter's step.

    Unit and multiplier are the first that the profile names, the exponent the one next to zero. Raises UsageError for
    a volume that the meter cannot show.
    """
    registers: dict[int, int] = {address: 0 for b in spec.read for address in range(b.address, b.address + b.count)}
    for field in (spec.unit_register, spec.multiplier_register):
        if field is not None:
            registers |= encode_number(field, Decimal(next(iter(field.values))))
    if spec.exponent_register:
        low, high = spec.exponent_register.possible
        exponent = min(max(0, low), high)
        registers |= encode_number(spec.exponent_register, Decimal(exponent - spec.exponent_register.offset))
    for register in spec.status:
        registers |= encode_number(register, Decimal(register.healthy()))
    with localcontext(_EXACT):
        count_ml = _unit_ml(spec, registers) * _multiplier(spec, registers) * _exponent(spec, registers)
        rest = Decimal(volume_ml) / count_ml
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
    if spec.unit_register is None:
        assert spec.unit is not None
        return unit_ml(spec.unit)
    return unit_ml(_meaning(spec.unit_register, registers, "unit"))


def _multiplier(spec: ModbusSpec, registers: Registers) -> Decimal:
    field = spec.multiplier_register
    return Decimal(1) if field is None else Decimal(_meaning(field, registers, "multiplier"))


def _meaning(field: UnitRegister | MultiplierRegister, registers: Registers, what: str) -> str:
    value = str(decode_number(field, registers))
    if value not in field.values:
        raise MeterFault(f"the {what} register holds {value}, a {what} that the profile does not know")
    return field.values[value]


def _exponent(spec: ModbusSpec, registers: Registers) -> Decimal:
    field = spec.exponent_register
    if field is None:
        return Decimal(1)
    exponent = int(decode_number(field, registers)) + field.offset
    if not field.min <= exponent <= field.max:
        raise MeterFault(f"the exponent register says 10^{exponent}; {field.min} to {field.max} are possible")
    return Decimal(10) ** exponent
