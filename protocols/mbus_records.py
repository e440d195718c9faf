"""M-Bus records (EN 13757-3): where each begins and ends, what it is, and the number that it holds.

    DIF DIFE...   coding and length of the value; function (instantaneous, maximum...), storage, tariff, sub-unit
    VIF VIFE...   quantity and unit; a VIFE can turn a total into something else (a pulse weight, a back flow)
    value         low byte first; in telegrams of mode 2 high byte first

Each record says by itself how long it is. One byte misread shifts all that follow, so whatever is cut, reserved or
disputed between the editions of the standard makes the whole chain a MeterFault.
"""

import math
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from protocols import registers
from protocols.errors import MeterFault, UsageError

EXTENSION_BIT: Final = 0x80
EXTENSIONS_MAX: Final = 10  # DIFE, and VIFE, in one record
INSTANTANEOUS: Final = 0
FUNCTION_NAMES: Final = ("instantaneous", "maximum", "minimum", "during error")
REAL: Final = 0x5
VARIABLE_LENGTH: Final = 0xD
INTEGER_BYTES: Final = {0x1: 1, 0x2: 2, 0x3: 3, 0x4: 4, 0x6: 6, 0x7: 8}
BCD_BYTES: Final = {0x9: 1, 0xA: 2, 0xB: 3, 0xC: 4, 0xE: 6}
VALUE_BYTES: Final = {0x0: 0, REAL: 4, 0x8: 0} | INTEGER_BYTES | BCD_BYTES  # 8: "selection", a record without value
FILLER, MAKER_DATA, MAKER_DATA_AND_MORE = 0x2F, 0x0F, 0x1F
PLAIN_TEXT_VIF: Final = 0x7C


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One value of a telegram. `vib` is the VIF and its VIFEs, `value` has its low byte first."""

    function: int
    storage: int
    tariff: int
    subunit: int
    coding: int
    vib: bytes
    value: bytes
    text: str = ""  # the unit in words, of a VIF that says no more than that

    @property
    def volume_vib(self) -> tuple[str, str] | None:
        """The VIF of a volume and the VIFEs behind it, None for other quantities."""
        if self.vib[0] & ~EXTENSION_BIT in range(0x10, 0x18):
            return f"{self.vib[0] & ~EXTENSION_BIT:02X}", self.vib[1:].hex().upper()
        if len(self.vib) > 1 and self.vib[0] == 0xFB and self.vib[1] & ~EXTENSION_BIT in (0x10, 0x11):
            return f"FB{self.vib[1] & ~EXTENSION_BIT:02X}", self.vib[2:].hex().upper()
        return None

    @property
    def step_ml(self) -> int:
        """The volume of one count of a volume record."""
        assert self.volume_vib
        return step_ml_of(self.volume_vib[0])

    @property
    def resolution_ml(self) -> Fraction:
        """The least change of a volume that such a value can show: one count, of a float32 what its last bit is worth.

        0 where a float32 is no number.
        """
        if self.coding != REAL:
            return Fraction(self.step_ml)
        exponent = int.from_bytes(self.value, "little") >> 23 & 0xFF
        return self.step_ml * Fraction(2) ** (max(exponent, 1) - 150) if exponent != 0xFF else Fraction(0)

    def __str__(self) -> str:
        """What it is, as a technician compares it with the manual."""
        words = [f"VIF {self.vib.hex(' ').upper()}", FUNCTION_NAMES[self.function]]
        parts = {"storage": self.storage, "tariff": self.tariff, "sub-unit": self.subunit}
        return ", ".join(words + [f"{name} {number}" for name, number in parts.items() if number])


def step_ml_of(vif: str) -> int:
    """Return the volume of one count with the VIF of a volume, as `Record.volume_vib` names it."""
    step_ml: int = 10 ** (int(vif[-1]) + (8 if vif.startswith("FB") else 0))
    return step_ml


def parse_records(data: bytes, *, high_byte_first: bool) -> tuple[tuple[Record, ...], bool]:
    """Return the records up to the maker's own data, and whether the meter has more of them for the next telegram.

    Raises MeterFault where they are not whole and sound to the last byte.
    """
    rest, records = _Bytes(data), list[Record]()
    while rest.at < len(data):
        dif = rest.take(1)[0]
        if dif == FILLER:
            continue
        if dif in (MAKER_DATA, MAKER_DATA_AND_MORE):
            return tuple(records), dif == MAKER_DATA_AND_MORE
        if dif & 0xF == 0xF:
            raise MeterFault(f"DIF {dif:02X} is reserved; nobody knows where its record ends")
        records.append(_record(rest, dif, high_byte_first=high_byte_first))
    return tuple(records), False


def decode_number(record: Record) -> Decimal:
    """Return the value of a record, exactly. Raises MeterFault where it is no number.

    BCD with F in its first digit is negative (EN 13757-3, type A). A float32 is the shortest decimal that denotes it.
    """
    value, dump = record.value, record.value[::-1].hex().upper()
    if record.coding in INTEGER_BYTES:
        return Decimal(int.from_bytes(value, "little", signed=True))
    if record.coding in BCD_BYTES:
        digits = "-" + dump[1:] if dump.startswith("F") else dump
        if not digits.removeprefix("-").isdecimal():
            raise MeterFault(f"the record ({record}) holds {dump}, which are no digits: the meter has no value")
        return Decimal(digits)
    if record.coding == REAL and math.isfinite(struct.unpack("<f", value)[0]):
        words = {0: int.from_bytes(value[2:], "little"), 1: int.from_bytes(value[:2], "little")}
        return registers.decode_number(registers.Field(address=0, type="float32"), words)
    raise MeterFault(f"the record ({record}) holds {dump or 'nothing'}, which is no number")


def encode_bcd(number: int, size: int) -> bytes:
    """Return a number as BCD, low byte first, F in front of a negative one. Raises UsageError where it does not fit."""
    digits = f"{number:0{2 * size}d}" if number >= 0 else "F" + f"{-number:0{2 * size - 1}d}"
    if len(digits) > 2 * size:
        raise UsageError(f"{number} does not fit {2 * size} digits")
    return bytes.fromhex(digits)[::-1]


def encode_record(record: Record, *, high_byte_first: bool = False) -> bytes:
    """Return the bytes of a record with a value of fixed length: the inverse of `parse_records`."""
    storage, tariff, subunit = record.storage >> 1, record.tariff, record.subunit
    chain = [record.coding | record.function << 4 | (record.storage & 1) << 6]
    while storage or tariff or subunit:
        chain[-1] |= EXTENSION_BIT
        chain.append(storage & 0xF | (tariff & 3) << 4 | (subunit & 1) << 6)
        storage, tariff, subunit = storage >> 4, tariff >> 2, subunit >> 1
    assert len(record.value) == VALUE_BYTES[record.coding]
    return bytes(chain) + record.vib + (record.value[::-1] if high_byte_first else record.value)


class _Bytes:
    """The rest of a telegram; taking more than there is says that it is cut."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise MeterFault("the telegram ends within a record")
        self.at += count
        return self.data[self.at - count : self.at]

    def take_chain(self, first: int, what: str) -> bytes:
        """Take what follows a byte with the extension bit, up to the first byte without."""
        chain = b""
        last = first
        while last & EXTENSION_BIT:
            if len(chain) == EXTENSIONS_MAX:
                raise MeterFault(f"a record has more than {EXTENSIONS_MAX} {what}")
            last = self.take(1)[0]
            chain += bytes((last,))
        return chain


def _record(rest: _Bytes, dif: int, *, high_byte_first: bool) -> Record:
    storage, tariff, subunit = dif >> 6 & 1, 0, 0
    for place, dife in enumerate(rest.take_chain(dif, "DIFE")):
        storage |= (dife & 0xF) << 1 + 4 * place
        tariff |= (dife >> 4 & 3) << 2 * place
        subunit |= (dife >> 6 & 1) << place
    vif, text = rest.take(1), ""
    if vif[0] & ~EXTENSION_BIT == PLAIN_TEXT_VIF:
        # The text stands before the VIFEs, low character first: so do all the captures of it that we know.
        text = rest.take(rest.take(1)[0])[::-1].decode("latin-1")
    vib = vif + rest.take_chain(vif[0], "VIFE")
    coding = dif & 0xF
    value = rest.take(_variable_bytes(rest.take(1)[0]) if coding == VARIABLE_LENGTH else VALUE_BYTES[coding])
    return Record(
        function=dif >> 4 & 3,
        storage=storage,
        tariff=tariff,
        subunit=subunit,
        coding=coding,
        vib=vib,
        value=value[::-1] if high_byte_first else value,
        text=text,
    )


def _variable_bytes(length: int) -> int:
    """Return how many bytes follow LVAR: text up to BF, binary numbers E0 to EF.

    Of the others the editions of the standard, and the programs that read them, do not agree how long they are.
    """
    if length <= 0xBF:
        return length
    if 0xE0 <= length <= 0xEF:
        return length - 0xE0
    raise MeterFault(f"a record has the variable length {length:02X}; nobody knows where it ends")
