"""What registers may mean where no profile says so: every type, order and unit that gives a volume, likeliest first.

With the dial's value the question turns round: which readings of these registers show it? That is how a profile for an
unknown meter is found.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from protocols.errors import MeterFault
from protocols.registers import UNIT_ML, Term, decode_number

# Volumes that a village water meter can show: one litre to five digits of cubic metres.
VOLUME_ML_MIN: Final = 1_000
VOLUME_ML_MAX: Final = 99_999_999_999
_TYPES: Final = {"uint16": 1, "uint32": 2, "float32": 2, "uint64": 4, "float64": 4}
_ORDERS: Final = ("ABCD", "CDAB", "BADC", "DCBA")
# How counts are scaled in the register maps that we know: unit, scale, and how people say it.
SCALES: Final = (
    ("m3", "1"),
    ("m3", "0.1"),
    ("m3", "0.01"),
    ("L", "1"),
    ("L", "0.1"),
    ("L", "0.01"),
    ("mL", "1"),
)
_FLOAT_SCALES: Final = (("m3", "1"), ("L", "1"))
_FOREIGN_SCALES: Final = (("US gal", "1"), ("imp gal", "1"), ("ft3", "1"))
# A float32 holds 6 to 9 decimal digits; a number that needs all of them is rarely what somebody metered.
_FLOAT_DIGITS_PLAUSIBLE: Final = 8


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to read a total: its terms in the words of a profile, their unit, and the volume that comes out."""

    terms: tuple[Term, ...]
    unit: str
    volume_ml: int
    rank: tuple[int, ...]

    @property
    def how(self) -> str:
        """`uint32 CDAB at 4, L x 0.1`."""
        return " + ".join(_term_text(term) for term in self.terms) + f", {self.unit}"


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One number that registers hold, the places and types that give it, and the volumes it may be by unit."""

    number: Decimal
    places: tuple[str, ...]
    volumes: tuple[tuple[str, int], ...]


def numbers(registers: Mapping[int, int], *, at_most: int) -> list[Shown]:
    """Return the numbers in the registers that can be a volume, the likeliest first; each number once."""
    found: dict[Decimal, tuple[int, list[Term]]] = {}
    for term in _shapes(registers):
        number = _number(term, registers)
        if number is None or not _volumes(term, number):
            continue
        unlikely = _unlikely(term, number, registers)
        rank, terms = found.setdefault(number, (unlikely, []))
        terms.append(term)
        found[number] = min(rank, unlikely), terms
    ranked = sorted(found.items(), key=lambda item: (item[1][0], item[0]))
    return [
        Shown(
            number=number,
            places=tuple(_term_text(term) for term in terms[:3]),
            volumes=tuple(_volumes(terms[0], number)),
        )
        for number, (_, terms) in ranked[:at_most]
    ]


def fitting(
    readings: Sequence[tuple[Mapping[int, int], int]],
    *,
    tolerance_ml: int,
    address: int | None = None,
    number_type: str | None = None,
    order: str | None = None,
    unit: str | None = None,
    scale: str | None = None,
) -> list[Candidate]:
    """Return the ways to read that show, for each (registers, dial in millilitres), the dial; the likeliest first.

    The other arguments narrow the search where something is known.
    """
    first, dial_ml = readings[0]
    metric = list(_candidates(first, _units(unit, scale, SCALES), _units(unit, scale, _FLOAT_SCALES)))
    pairs = list(_pairs(first)) if number_type is None and scale is None else []
    foreign = _units(unit, scale, _FOREIGN_SCALES)
    found: list[Candidate] = []
    for pool in (metric + pairs, list(_candidates(first, foreign, foreign))):
        for candidate in pool:
            term = candidate.terms[0]
            if not _agrees(term, address=address, number_type=number_type, order=order):
                continue
            if unit is not None and candidate.unit != unit:
                continue
            error_ml = max(abs((_volume(candidate, registers) or 10**18) - dial) for registers, dial in readings)
            if error_ml <= tolerance_ml:
                found.append(msgspec.structs.replace(candidate, rank=(error_ml > 0, *candidate.rank, error_ml)))
        if found:
            break  # gallons only where nothing metric fits
    assert dial_ml >= 0
    return sorted(_distinct(found), key=lambda candidate: candidate.rank)


def _agrees(term: Term, *, address: int | None, number_type: str | None, order: str | None) -> bool:
    return (
        (address is None or term.address == address)
        and (number_type is None or term.type == number_type)
        and (order is None or term.order == order)
    )


def _units(unit: str | None, scale: str | None, known: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the units and scales to try; what the caller gives is tried even where it is not usual."""
    if unit is not None and scale is not None:
        return [(unit, scale)]
    if scale is not None:
        return [(name, scale) for name in UNIT_ML]
    return [pair for pair in known if unit in (None, pair[0])]


def _shapes(registers: Mapping[int, int]) -> Iterator[Term]:
    for address in sorted(registers):
        for name, width in _TYPES.items():
            if not all(address + i in registers for i in range(width)):
                continue
            for order in _ORDERS if width > 1 else ("ABCD", "BADC"):
                yield Term(address=address, type=name, order=order)


def _number(term: Term, registers: Mapping[int, int]) -> Decimal | None:
    try:
        number = decode_number(term, registers)
    except MeterFault:
        return None
    if number <= 0 or number.adjusted() > 20 or number.adjusted() < -6:
        return None
    if term.type.startswith("float") and len(number.normalize().as_tuple().digits) > 2 * _FLOAT_DIGITS_PLAUSIBLE:
        return None
    return number.normalize()


def _volumes(term: Term, number: Decimal) -> list[tuple[str, int]]:
    if term.type == "float32" and len(number.as_tuple().digits) > _FLOAT_DIGITS_PLAUSIBLE:
        return []
    units = ("m3", "L") if term.type.startswith("float") else ("m3", "L", "mL")
    volumes = [(unit, int((number * UNIT_ML[unit]).to_integral_value())) for unit in units]
    return [(unit, volume) for unit, volume in volumes if VOLUME_ML_MIN <= volume <= VOLUME_ML_MAX]


def _unlikely(term: Term, number: Decimal, registers: Mapping[int, int]) -> int:
    """Return how unlikely it is that a meter counts so: small numbers in wide registers, and round ones, are likely."""
    digits = len(number.as_tuple().digits)
    # A number that ends beside a register that is not 0 is often a part of a longer one.
    cut = 6 * sum(bool(registers.get(address)) for address in (term.address - 1, term.addresses[-1] + 1))
    if term.type.startswith("float"):
        return digits // 2 + cut + (0 if term.order in ("ABCD", "CDAB") else 2)
    used = max(1, (int(number).bit_length() + 7) // 8)
    narrow = 4 if term.type == "uint16" else 0  # it wraps at 65535: the least likely total, the likeliest half of one
    swapped = 0 if term.order in ("ABCD", "CDAB") else 2
    return 2 * used + narrow + swapped + cut


def _candidates(
    registers: Mapping[int, int], scales: Sequence[tuple[str, str]], float_scales: Sequence[tuple[str, str]]
) -> Iterator[Candidate]:
    for shape in _shapes(registers):
        number = _number(shape, registers)
        if number is None:
            continue
        for unit, scale in float_scales if shape.type.startswith("float") else scales:
            volume_ml = int((number * Decimal(scale) * UNIT_ML[unit]).to_integral_value())
            term = msgspec.structs.replace(shape, scale=scale)
            yield Candidate(terms=(term,), unit=unit, volume_ml=volume_ml, rank=(_unlikely(shape, number, registers),))


def _pairs(registers: Mapping[int, int]) -> Iterator[Candidate]:
    """Yield whole cubic metres with a fraction behind them: as a float below 1, or as a count of litres."""
    for whole in _shapes(registers):
        if whole.type not in {"uint16", "uint32"}:
            continue
        width = _TYPES[whole.type]
        kinds = (("float32", "1"), (whole.type, "0.001")) if whole.type == "uint32" else ((whole.type, "0.001"),)
        for kind, scale in kinds:
            rest = Term(address=whole.address + width, type=kind, order=whole.order, scale=scale)
            if not all(address in registers for address in rest.addresses):
                continue
            number, fraction = _number(whole, registers), _number(rest, registers)
            if number is None or fraction is None or fraction * Decimal(scale) >= 1:
                continue
            volume_ml = int((number + fraction * Decimal(scale)) * UNIT_ML["m3"])
            yield Candidate(
                terms=(whole, rest), unit="m3", volume_ml=volume_ml, rank=(_unlikely(whole, number, registers) + 1,)
            )


def _volume(candidate: Candidate, registers: Mapping[int, int]) -> int | None:
    total = Decimal(0)
    for term in candidate.terms:
        if not all(address in registers for address in term.addresses):
            return None
        try:
            total += Decimal(term.scale) * decode_number(term, registers)
        except MeterFault:
            return None
    return int((total * UNIT_ML[candidate.unit]).to_integral_value())


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without those that read the same bytes the same way under another name."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for candidate in candidates:
        key = (candidate.how, candidate.unit)
        if key not in seen:
            seen.add(key)
            kept.append(candidate)
    return kept


def _term_text(term: Term) -> str:
    last = term.addresses[-1]
    place = f"{term.address}" if last == term.address else f"{term.address}-{last}"
    scale = "" if term.scale == "1" else f" × {term.scale}"
    return f"{term.type} {term.order} @{place}{scale}"
