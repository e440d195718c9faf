"""M-Bus data (EN 13757-3): what a profile says of a water meter, and what the meter's telegrams mean.

A telegram of variable structure is a header and a chain of records (`mbus_records`); it counts as a whole or not at
all. One of fixed structure, from the 1990s, is a header and two counters.

The total is the one record that is a volume, instantaneous, of storage 0, tariff 0, sub-unit 0, and that has just the
VIFEs that the profile names (none). All volumes are exact integers. Why this is not left to a library:
docs/decisions/0003-mbus-application-layer.md.
"""

import re
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN
from fractions import Fraction
from typing import Annotated, Final, Literal

import msgspec

from protocols import mbus
from protocols.errors import MeterFault, MeterRefused
from protocols.flags import USUAL_EFFECT, Effect, check_name, measurement
from protocols.mbus import Frame, Identity
from protocols.mbus_records import (
    EXTENSION_BIT,
    INSTANTANEOUS,
    MAKER_DATA_AND_MORE,
    REAL,
    Record,
    decode_number,
    encode_bcd,
    parse_records,
    step_ml_of,
)
from protocols.reading import Measurement
from protocols.registers import VOLUME_ML_MAX

LONG_HEADER: Final = mbus.VARIABLE  # CI of identity, access number, status, configuration word
SHORT_HEADER: Final = 0x7A  # access number, status, configuration word
NO_HEADER: Final = 0x78
ERROR_REPORT: Final = 0x70
ALARM_REPORT: Final = 0x71
ERRORS: Final = {
    0: "unspecified error",
    1: "unknown CI",
    2: "buffer too long",
    3: "too many records",
    4: "premature end of a record",
    5: "more than 10 DIFE",
    6: "more than 10 VIFE",
    8: "busy",
    9: "read out too often",
}
MEDIA: Final = {
    0x00: "other",
    0x01: "oil",
    0x02: "electricity",
    0x03: "gas",
    0x04: "heat",
    0x05: "steam",
    0x06: "warm water",
    0x07: "water",
    0x08: "heat cost",
    0x0A: "cooling (outlet)",
    0x0B: "cooling (inlet)",
    0x0C: "heat (inlet)",
    0x0D: "heat and cooling",
    0x0E: "bus",
    0x15: "hot water",
    0x16: "cold water",
    0x17: "hot and cold water",
    0x28: "waste water",
}
# Status byte, bits 0 and 1 as one number, then bits 2 to 4; bits 5 to 7 are the maker's. 3 was reserved before the
# standard called it an abnormal condition.
APPLICATION_FLAGS: Final = ("", "application_busy", "application_error", "alarm")
STATUS_FLAGS: Final = {2: "battery_low", 3: "permanent_error", 4: "temporary_error"}
MAKER_BITS: Final = (5, 6, 7)

# The configuration word, filled with ones. Before it said how a telegram is encrypted it was a reserved "signature" of
# 0000. FFFF would be mode 31, which nobody has defined; the captured telegram with it is plain to its last record.
UNUSED_WORD: Final = b"\xff\xff"
# What two floats may differ by that are the same total: meters that send floats count litres.
FLOATS_AGREE_ML: Final = 1000

# The unit codes of the fixed structure that are volumes, as the VIF of the same unit: 26 is 1 mL, 2E is 100 m3.
FIXED_VIB: Final = {0x26 + power: bytes((0x10 + power,)) for power in range(8)} | {0x2E: b"\xfb\x10"}
FIXED_HISTORIC: Final = 0x3E  # the second counter has the unit of the first, and its value is an old one
FIXED_BYTES: Final = 16
# From this mode of encryption on the standard names none. Programs differ in what they take behind it.
MAKERS_MODES: Final = 16

UNSAID: Final = "unsaid"

VolumeVif = Annotated[str, msgspec.Meta(pattern=r"^(10|11|12|13|14|15|16|17|FB10|FB11)\Z")]


class MbusSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[mbus]` table of a profile."""

    # 10 is 1 mL ... 13 is 1 L ... 17 is 10 m3, FB10 is 100 m3. Steps of another size belong into another profile,
    # because detection goes by the profile's `step_ml`. The unit of a float32 says nothing of its steps: it is read in
    # any unit, as long as its last bit is worth no more than the coarsest step that is named here.
    vif: tuple[VolumeVif, ...] = ("10", "11", "12", "13")
    vife: str = ""  # hexadecimal, as on the wire
    storage: Annotated[int, msgspec.Meta(ge=0, le=2**41 - 1)] = 0
    tariff: Annotated[int, msgspec.Meta(ge=0, le=2**20 - 1)] = 0
    subunit: Annotated[int, msgspec.Meta(ge=0, le=2**10 - 1)] = 0
    # Empty: any. "unsaid": a telegram without the long header, which does not say.
    media: tuple[Annotated[int, msgspec.Meta(ge=0, le=0xFF)] | Literal["unsaid"], ...] = (0x06, 0x07, 0x15, 0x16)
    status: dict[str, Annotated[int, msgspec.Meta(ge=5, le=7)]] = {}

    def __post_init__(self) -> None:
        if not self.vif:
            raise ValueError("`vif` names no volume")
        if not re.fullmatch("(([89A-F][0-9A-F])*[0-7][0-9A-F])?", self.vife):
            raise ValueError(f"vife {self.vife!r} is not a chain of VIFE in hexadecimal: all but the last are 80 to FF")
        for name in self.status:
            check_name(name)

    @property
    def says_medium(self) -> bool:
        """Whether the profile is of meters whose telegrams say what they measure."""
        return self.media != (UNSAID,)

    @property
    def step_ml_max(self) -> int:
        """The coarsest step that `vif` names."""
        return max(map(step_ml_of, self.vif))


class Telegram(msgspec.Struct, frozen=True, kw_only=True):
    """What a meter sent. None: the telegram does not say. `is_followed` tells that the meter has more records."""

    medium: int | None
    identity: Identity | None
    access: int | None
    status: int
    flags: tuple[str, ...]
    records: tuple[Record, ...]
    is_followed: bool = False


def decode(spec: MbusSpec, frame: Frame) -> Telegram:
    """Return what a meter's frame says.

    Raises MeterRefused for a report of an error, and MeterFault for an alarm, for encrypted data, and for every
    telegram that is not whole and sound to its last byte.
    """
    data = frame.data
    if frame.ci == ERROR_REPORT:
        code = data[0] if data else 0
        raise MeterRefused(f"the meter reports error {code}: {ERRORS.get(code, 'reserved')}")
    if frame.ci == ALARM_REPORT:
        raise MeterFault(f"the meter sent an alarm in place of data: {data.hex(' ').upper()}")
    if frame.ci in mbus.FIXED:
        return _fixed(spec, frame)
    if frame.ci not in (*LONG_HEADER, SHORT_HEADER, NO_HEADER):
        raise MeterFault(f"telegrams of the kind CI {frame.ci or 0:02X} are not understood")
    header_bytes = {SHORT_HEADER: 4, NO_HEADER: 0}.get(frame.ci, 12)
    if len(data) < header_bytes:
        raise MeterFault(f"the telegram's header is cut: {data.hex(' ').upper()}")
    high_byte_first = frame.ci in mbus.HIGH_BYTE_FIRST
    header, medium = data[:header_bytes], frame.identity.medium if frame.identity else None
    access, status, word = None, 0, b"\0\0"
    if header:
        access, status, word = header[-4], header[-3], header[-2:]
    # Bits 8 to 12 of the configuration word are the mode of encryption; meters older than it send 0000.
    mode = word[0 if high_byte_first else 1] & 0x1F
    if mode and word != UNUSED_WORD:
        kind = "is" if mode < MAKERS_MODES else "may be"
        raise MeterFault(
            f"the telegram {kind} encrypted (mode {mode}), which is not spoken: have the meter send plain data"
        )
    records, is_followed = parse_records(data[header_bytes:], high_byte_first=high_byte_first)
    return Telegram(
        medium=medium,
        identity=frame.identity,
        access=access,
        status=status,
        flags=_flags(spec, status, APPLICATION_FLAGS[status & 3]),
        records=records,
        is_followed=is_followed,
    )


def has_total(spec: MbusSpec, telegram: Telegram) -> bool:
    """Tell whether a telegram holds the record that the profile means."""
    return bool(_totals(spec, telegram.records))


def measurement_of(spec: MbusSpec, telegrams: Sequence[Telegram]) -> Measurement:
    """Return the total and the faults in the telegrams of one reading.

    Raises MeterFault where they are not of a water meter, where no record is the total or several disagree, and where
    it is no number, below zero or beyond 10^15 mL.
    """
    for telegram in telegrams:
        _check_medium(spec, telegram)
    records = [record for telegram in telegrams for record in telegram.records]
    totals = [(_agreement_ml(record), _volume_ml(record)) for record in _totals(spec, records)]
    if not totals:
        raise MeterFault(_no_total(spec, records))
    # A meter may show the same total twice, in litres and finer; they agree when the coarser shows no less and no more.
    _, volume_ml = min(totals)
    if any(abs(other_ml - volume_ml) >= step_ml for step_ml, other_ml in totals):
        raise MeterFault(f"several records are the total and disagree: {', '.join(f'{ml} mL' for _, ml in totals)}")
    if not 0 <= volume_ml <= VOLUME_ML_MAX:
        raise MeterFault(f"the total is {volume_ml} mL, which is no meter reading")
    # What EN 13757-3 calls an error or an alarm does not say of what: the volume is doubtful.
    flags = {flag for telegram in telegrams for flag in telegram.flags}
    return measurement(volume_ml, {flag: USUAL_EFFECT.get(flag, Effect.DOUBTFUL) for flag in flags})


def encode_telegram(
    identity: Identity, records: bytes, *, access: int = 0, status: int = 0, is_followed: bool = False, ci: int = 0x72
) -> bytes:
    """Return CI and data of a telegram with a long header (72, or 76 with the high byte first) or a short one (7A)."""
    assert ci in (*LONG_HEADER, SHORT_HEADER)
    head = identity.encode() if ci in LONG_HEADER else b""
    if ci in mbus.HIGH_BYTE_FIRST:
        head = head[3::-1] + head[5:3:-1] + head[6:]
    more = bytes((MAKER_DATA_AND_MORE,)) if is_followed else b""
    return bytes((ci,)) + head + bytes((access & 0xFF, status, 0, 0)) + records + more


def total_record(spec: MbusSpec, volume_ml: int) -> Record:
    """Return the record in which a meter with this profile shows a total: eight digits of its coarsest VIF."""
    vif = max(spec.vif, key=lambda code: (len(code), code))
    vib = bytearray.fromhex(vif + spec.vife)
    if spec.vife:
        vib[len(vif) // 2 - 1] |= EXTENSION_BIT
    record = Record(
        function=INSTANTANEOUS,
        storage=spec.storage,
        tariff=spec.tariff,
        subunit=spec.subunit,
        coding=0xC,
        vib=bytes(vib),
        value=b"",
    )
    return msgspec.structs.replace(record, value=encode_bcd(volume_ml // record.step_ml, 4))


def _fixed(spec: MbusSpec, frame: Frame) -> Telegram:
    """Return a telegram of fixed structure: identity, access number, status, units, two counters."""
    data = frame.data
    if len(data) != FIXED_BYTES:
        raise MeterFault(f"a telegram of fixed structure has {FIXED_BYTES} bytes, not {len(data)}")
    status, units = data[5], data[6:8][::-1] if frame.ci in mbus.HIGH_BYTE_FIRST else data[6:8]
    coding = 0x4 if status & 1 else 0xC  # binary or BCD
    is_stored = bool(status & 2)  # both counters are of a date in the past
    records = []
    for at, unit in ((8, units[0] & 0x3F), (12, units[1] & 0x3F)):
        is_historic = unit == FIXED_HISTORIC
        vib = FIXED_VIB.get(units[0] & 0x3F if is_historic else unit)
        if vib:
            value = data[at : at + 4][::-1] if frame.ci in mbus.HIGH_BYTE_FIRST else data[at : at + 4]
            storage = int(is_stored or is_historic)
            records.append(
                Record(function=0, storage=storage, tariff=0, subunit=0, coding=coding, vib=vib, value=value)
            )
    return Telegram(
        medium=units[0] >> 6 | units[1] >> 6 << 2,
        identity=frame.identity,
        access=data[4],
        status=status,
        flags=_flags(spec, status, ""),
        records=tuple(records),
    )


def _flags(spec: MbusSpec, status: int, application: str) -> tuple[str, ...]:
    bits = {name: bit for bit, name in STATUS_FLAGS.items()} | spec.status
    names = {name for name, bit in bits.items() if status >> bit & 1}
    return tuple(sorted(names | {application} - {""}))


def _check_medium(spec: MbusSpec, telegram: Telegram) -> None:
    if not spec.media or (UNSAID if telegram.medium is None else telegram.medium) in spec.media:
        return
    wanted = ", ".join(medium if isinstance(medium, str) else f"{medium:02X}" for medium in spec.media)
    if telegram.medium is None:
        raise MeterFault(
            f"the telegram does not say what it measures, the profile wants {wanted} (`media`); where it is surely a"
            " water meter, mbus-water-no-header takes it"
        )
    name = MEDIA.get(telegram.medium, "unknown")
    raise MeterFault(f"the meter measures {telegram.medium:02X} ({name}), the profile wants {wanted} (`media`)")


def _totals(spec: MbusSpec, records: Iterable[Record]) -> list[Record]:
    """Return the records that are the total: in a unit that the profile names, or else floats that are fine enough.

    What stands beside a total in a named unit may be rounded, or left empty, and says nothing against it.
    """
    there = [record for record in records if _is_place_of_total(spec, record)]
    named = [record for record in there if record.volume_vib and record.volume_vib[0] in spec.vif]
    return named or [record for record in there if record.coding == REAL and record.resolution_ml <= spec.step_ml_max]


def _is_place_of_total(spec: MbusSpec, record: Record) -> bool:
    """Tell whether a record is a volume where the total stands, whatever its unit."""
    place = (record.function, record.storage, record.tariff, record.subunit)
    is_there = place == (INSTANTANEOUS, spec.storage, spec.tariff, spec.subunit)
    return is_there and record.volume_vib is not None and record.volume_vib[1] == spec.vife


def _agreement_ml(record: Record) -> Fraction:
    """Return by how much less another total may differ from this one and still be the same."""
    if record.coding != REAL:
        return record.resolution_ml
    return max(record.resolution_ml, Fraction(min(record.step_ml, FLOATS_AGREE_ML)))


def _volume_ml(record: Record) -> int:
    return int((decode_number(record) * record.step_ml).to_integral_value(ROUND_HALF_EVEN))


def _no_total(spec: MbusSpec, records: Iterable[Record]) -> str:
    volumes = [record for record in records if record.volume_vib]
    for record in volumes:
        if not _is_place_of_total(spec, record):
            continue
        vif, wanted = record.volume_vib[0] if record.volume_vib else "", ", ".join(spec.vif)
        if record.coding == REAL:
            return (
                f"the total comes with VIF {vif} as a float, whose last bit is worth {float(record.resolution_ml):g} mL"
                f" at this size; the profile reads steps of at most {spec.step_ml_max} mL"
            )
        return f"the total comes with VIF {vif}, in steps of {record.step_ml} mL; the profile reads VIF {wanted}"
    found = "; ".join(map(str, volumes)) or "none"
    return f"no record is the total that the profile describes; volumes in the telegram: {found}"
