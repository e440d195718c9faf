"""In which order a line is searched, and how long that takes. Pure.

First a quick look everywhere: what answers anybody at all, the usual settings first. Then every address, at the
settings where something answered, or at all of them where nothing did.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from gateway.line import LineSettings
from protocols import cjt188, mbus, modbus
from protocols.errors import ShuiwangError

PROTOCOLS: Final = ("cjt188", "modbus", "mbus")
# Baud rate, parity, stop bits, and what is met with them, by how common they are at village meters (CJ/T 188 and M-Bus
# leave the factory with 2400 8E1, nearly all Modbus meters with 9600 8N1).
USUAL: Final[tuple[tuple[int, str, int, tuple[str, ...]], ...]] = (
    (2400, "E", 1, ("cjt188", "mbus")),
    (9600, "N", 1, ("modbus", "cjt188")),
    (9600, "E", 1, ("modbus", "cjt188", "mbus")),
    (4800, "N", 1, ("modbus",)),
    (2400, "N", 1, ("cjt188", "modbus")),
    (1200, "E", 1, ("cjt188",)),
    (4800, "E", 1, ("cjt188", "modbus")),
    (19200, "N", 1, ("modbus",)),
    (19200, "E", 1, ("modbus",)),
    (9600, "O", 1, ("modbus",)),
    (38400, "N", 1, ("modbus",)),
    (115200, "N", 1, ("modbus",)),
    (300, "E", 1, ("mbus",)),
)
# Installers count from 1; these cost seconds at each setting.
FIRST_UNITS: Final = range(1, 11)
# From the request's last bit to the answer's first. CJ/T 188 meters wake up first; drivers wait 0.5 to 2 s.
TIMEOUT_MS: Final = {"modbus": 250, "cjt188": 1000}
SEARCH: Final = "search"  # in place of an address: all M-Bus meters, by their identities
# A meter answers within 330 bit times and 50 ms (EN 13757-2); the rest is the adapter's and the scheduler's.
MBUS_BITS: Final = 330
MBUS_MARGIN_MS: Final = 110
# What we wait before the next request when nothing was heard.
GAP_S: Final = 0.005
_REQUEST_BYTES: Final = {"modbus": modbus.REQUEST_BYTES, "cjt188": 4 + 16, "mbus": mbus.SHORT_BYTES}
# Any meter is asked for its address and for its total, each in both orders of the identifier (`scan_probe`).
CJT188_QUESTIONS: Final = 4
SEARCH_QUERIES_EXPECTED: Final = 25  # two meters whose numbers differ early; every further one costs as much again


class ScanError(ShuiwangError):
    """The command line asks for what cannot be searched; the text says what would be right."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to look for. Empty means: whatever is usual."""

    protocols: tuple[str, ...] = ()
    baudrates: tuple[int, ...] = ()
    parities: tuple[str, ...] = ()
    stop_bits: int | None = None
    units: tuple[int, ...] = ()  # Modbus units and M-Bus primary addresses
    numbers: tuple[str, ...] = ()  # CJ/T 188 numbers that are printed on the meters
    timeout_ms: int | None = None
    everywhere: bool = False  # go on after something was found


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Some addresses of one protocol at one setting."""

    line: LineSettings
    protocol: str
    addresses: tuple[str, ...]
    timeout_ms: int

    @property
    def address_s(self) -> float:
        """How long one address takes that nobody has."""
        asks = CJT188_QUESTIONS if self.protocol == "cjt188" and cjt188.BROADCAST in self.addresses else 1
        asks = SEARCH_QUERIES_EXPECTED if SEARCH in self.addresses else asks
        return asks * (_REQUEST_BYTES[self.protocol] * self.line.byte_s + self.timeout_ms / 1000 + GAP_S)

    @property
    def cost_s(self) -> float:
        """How long it takes when nobody answers."""
        return self.address_s * len(self.addresses)


def parse_addresses(text: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the units and the CJ/T 188 numbers in `1-20,30,00000805000001`. Raises ScanError."""
    units: list[int] = []
    numbers: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if re.fullmatch("[0-9]{14}", part):
            numbers.append(part)
            continue
        match = re.fullmatch("([0-9]{1,3})(?:-([0-9]{1,3}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= first <= last <= mbus.PRIMARY_MAX:
            raise ScanError(
                f"{part[:40]!r} is no address 地址无效: give 1-247 (Modbus), 0-250 (M-Bus), or 14 digits (CJ/T 188),"
                " such as 1-20,30,00000805000001"
            )
        units += range(first, last + 1)
    if not units and not numbers:
        raise ScanError("no address given 没有地址: give, for example, 1-247")
    return tuple(dict.fromkeys(units)), tuple(dict.fromkeys(numbers))


def quick(port: str, wanted: Wanted) -> list[Step]:
    """Return the first look: likely addresses at every setting; all addresses that the user names."""
    steps = []
    for line, protocols in _settings(port, wanted):
        for protocol in protocols:
            addresses = _quick_addresses(protocol, wanted)
            if addresses:
                steps.append(_step(line, protocol, addresses, wanted))
    return steps


def deep(
    line: LineSettings, protocol: str, wanted: Wanted, *, answer: Literal["none", "clean", "collision"]
) -> list[Step]:
    """Return the rest of one protocol's addresses at one setting; `answer` is what the first look brought there."""
    if wanted.units or wanted.numbers:
        return []  # the user said which
    if protocol == "modbus":
        rest = [unit for unit in range(modbus.UNIT_MIN, modbus.UNIT_MAX + 1) if unit not in FIRST_UNITS]
        return [_step(line, protocol, tuple(map(str, rest)), wanted)]
    if protocol == "mbus":
        # Where 254 brings one clean answer the line has one meter; the search sees whether another one hid behind it.
        searched = [_step(line, protocol, (SEARCH,), wanted)] if answer != "none" else []
        every = [_step(line, protocol, tuple(map(str, range(1, mbus.PRIMARY_MAX + 1))), wanted)]
        return searched + (every if answer != "clean" else [])
    return []


def second(port: str, wanted: Wanted) -> list[Step]:
    """Return what is left to try where the first look found nothing."""
    return [
        step
        for line, protocols in _settings(port, wanted)
        for protocol in protocols
        for step in deep(line, protocol, wanted, answer="none")
    ]


def total_s(steps: Sequence[Step]) -> float:
    """Return how long steps take when nobody answers."""
    return sum(step.cost_s for step in steps)


def _settings(port: str, wanted: Wanted) -> Iterator[tuple[LineSettings, tuple[str, ...]]]:
    """Yield the line settings to try, each with its protocols; what the user names replaces what is usual."""
    protocols = wanted.protocols or PROTOCOLS
    usual = [
        (baudrate, parity, stop_bits, tuple(name for name in met if name in protocols))
        for baudrate, parity, stop_bits, met in USUAL
        if wanted.baudrates in ((), (baudrate,)) or baudrate in wanted.baudrates
        if not wanted.parities or parity in wanted.parities
    ]
    if wanted.baudrates:  # also what nobody would guess
        known = {(baudrate, parity) for baudrate, parity, *_ in usual}
        parities = wanted.parities or (() if usual else ("N", "E"))
        extra = [(rate, parity) for rate in wanted.baudrates for parity in parities if (rate, parity) not in known]
        # The user has narrowed it down: then every protocol is worth its time.
        usual = [(baudrate, parity, stop_bits, protocols) for baudrate, parity, stop_bits, _ in usual]
        usual += [(baudrate, parity, 1, protocols) for baudrate, parity in extra]
    for baudrate, parity, stop_bits, met in usual:
        if met:
            bits = wanted.stop_bits or stop_bits
            yield LineSettings(name="scan", port=port, baudrate=baudrate, parity=parity, stop_bits=bits), met


def _quick_addresses(protocol: str, wanted: Wanted) -> tuple[str, ...]:
    if protocol == "cjt188":
        return wanted.numbers or (() if wanted.units else (cjt188.BROADCAST,))
    if protocol == "modbus":
        units = wanted.units or (() if wanted.numbers else tuple(FIRST_UNITS))
        return tuple(str(unit) for unit in units if modbus.UNIT_MIN <= unit <= modbus.UNIT_MAX)
    return tuple(map(str, wanted.units)) or (() if wanted.numbers else (str(mbus.ANY_METER), "0"))


def _step(line: LineSettings, protocol: str, addresses: tuple[str, ...], wanted: Wanted) -> Step:
    timeout_ms = wanted.timeout_ms or TIMEOUT_MS.get(protocol)
    if timeout_ms is None:
        timeout_ms = round(1000 * MBUS_BITS / line.baudrate) + MBUS_MARGIN_MS
    return Step(line=line, protocol=protocol, addresses=addresses, timeout_ms=timeout_ms)
