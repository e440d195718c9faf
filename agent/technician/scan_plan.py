"""In which order a line is searched, and how long that takes. Pure.

First a quick look everywhere: what answers anybody at all, the usual settings first. Then every address, at the
settings where something answered, or at all of them where nothing did. Some meters keep silent to whatever is not
exactly theirs, or sleep through the first request; these few questions more for each address are the closer look.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from agent.technician import scan_questions
from agent.technician.lines import FRAMINGS, USUAL, Usual, Wire, is_network
from gateway.line import LineSettings
from protocols import cjt188, mbus, modbus, modbus_tcp
from protocols.errors import ShuiwangError

PROTOCOLS: Final = ("cjt188", "modbus", "mbus")
# Installers count from 1; these cost seconds at each setting.
FIRST_UNITS: Final = range(1, 11)
ALL_UNITS: Final = range(modbus.UNIT_MIN, modbus.UNIT_MAX + 1)
# What means the device at the other end of a Modbus TCP connection itself, and nobody on a serial line.
TCP_UNITS: Final = (modbus.TCP_DEVICE, modbus.ANY_UNIT)
# From the request's last bit to the answer's first. CJ/T 188 meters wake up first; drivers wait 0.5 to 2 s. Behind
# Modbus TCP there often is a line of its own.
TIMEOUT_MS: Final[dict[Wire, int]] = {"rtu": 250, "ascii": 250, "tcp": 500, "cjt188": 1000}
SEARCH: Final = "search"  # in place of an address: all M-Bus meters, by their identities
# A meter answers within 330 bit times and 50 ms (EN 13757-2); the rest is the adapter's and the scheduler's.
MBUS_BITS: Final = 330
MBUS_MARGIN_MS: Final = 110
# What we wait before the next request when nothing was heard.
GAP_S: Final = 0.005
_REQUEST_BYTES: Final[dict[Wire, int]] = {
    "rtu": modbus.REQUEST_BYTES,
    "ascii": 3 + 2 * (modbus.REQUEST_BYTES - 1),
    "tcp": modbus_tcp.HEADER_BYTES + modbus.REQUEST_BYTES - 2,
    "cjt188": 4 + 16,
    "mbus": mbus.SHORT_BYTES,
}
SELECT_BYTES: Final = mbus.LONG_OVERHEAD_BYTES + mbus.LENGTH_MIN + mbus.IDENTITY_BYTES
# What a serial server that passes bytes on is most often set to, by what is behind it; we cannot change it.
_BEHIND_SERVER: Final[dict[Wire, Usual]] = {
    wire: next(usual for usual in USUAL if wire in usual.wires) for wire in ("rtu", "ascii", "cjt188", "mbus")
}
# A closer look takes one question for each register map that we know: seconds for each unit, so not for all of them.
CLOSER_UNITS_MAX: Final = 16
SEARCH_QUERIES_EXPECTED: Final = 36  # two meters whose numbers differ early; more is planned as it shows


class ScanError(ShuiwangError):
    """The command line asks for what cannot be searched; the text says what would be right."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to look for. Empty means: whatever is usual."""

    protocols: tuple[str, ...] = ()
    baudrates: tuple[int, ...] = ()
    parities: tuple[str, ...] = ()
    stop_bits: int | None = None
    data_bits: int | None = None
    framings: tuple[str, ...] = ()  # of Modbus; given without protocols they mean Modbus alone
    units: tuple[int, ...] = ()  # Modbus units and M-Bus primary addresses
    numbers: tuple[str, ...] = ()  # CJ/T 188 numbers that are printed on the meters
    timeout_ms: int | None = None
    everywhere: bool = False  # go on after something was found


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Some addresses of one protocol at one setting; `is_closer` for what only answers to its very own question."""

    line: LineSettings
    protocol: str
    addresses: tuple[str, ...]
    timeout_ms: int
    is_closer: bool = False

    @property
    def wire(self) -> Wire:
        """The protocol, Modbus by its framing."""
        return wire_of(self.line, self.protocol)

    @property
    def address_s(self) -> float:
        """How long one address takes that nobody has."""
        return self._questions * self.question_s

    @property
    def question_s(self) -> float:
        """How long one question takes that nobody answers."""
        size = SELECT_BYTES if SEARCH in self.addresses else _REQUEST_BYTES[self.wire]
        return size * self.line.byte_s + self.timeout_ms / 1000 + GAP_S

    @property
    def _questions(self) -> int:
        if SEARCH in self.addresses:
            return SEARCH_QUERIES_EXPECTED
        if self.protocol == "cjt188":
            return len(scan_questions.cjt188_questions(is_any=self._is_any, is_closer=self.is_closer))
        return len(scan_questions.modbus_questions(is_closer=self.is_closer)) if self.protocol == "modbus" else 1

    @property
    def _is_any(self) -> bool:
        return cjt188.BROADCAST in self.addresses

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
        if not 0 <= first <= last <= mbus.PRIMARY_MAX and not first == last == modbus.TCP_DEVICE:
            raise ScanError(
                f"{part[:40]!r} is no address 地址无效: give 1-247 (Modbus), 255 or 0 (a Modbus TCP device itself"
                " 设备本身), 0-250 (M-Bus), or 14 digits (CJ/T 188), such as 1-20,30,00000805000001"
            )
        units += range(first, last + 1)
    if not units and not numbers:
        raise ScanError("no address given 没有地址: give, for example, 1-247")
    return tuple(dict.fromkeys(units)), tuple(dict.fromkeys(numbers))


def quick(port: str, wanted: Wanted) -> list[Step]:
    """Return the first look: likely addresses at every setting; all addresses that the user names."""
    steps = []
    for line, protocol in _settings(port, wanted):
        addresses = _quick_addresses(line, protocol, wanted)
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
        rest = [unit for unit in ALL_UNITS if unit not in FIRST_UNITS]
        return [_step(line, protocol, tuple(map(str, rest)), wanted)]
    if protocol == "mbus":
        # Where 254 brings one clean answer the line has one meter; the search sees whether another one hid behind it.
        searched = [_step(line, protocol, (SEARCH,), wanted)] if answer != "none" else []
        every = [_step(line, protocol, tuple(map(str, range(1, mbus.PRIMARY_MAX + 1))), wanted)]
        return searched + (every if answer != "clean" else [])
    return []


def closer(line: LineSettings, protocol: str, wanted: Wanted) -> list[Step]:
    """Return the closer look at one setting: the likely addresses of one protocol, or the first that the user names.

    There is none for M-Bus, where a meter has nothing but its telegram to give, nor in ASCII: no map of ours is of an
    ASCII meter.
    """
    addresses = _quick_addresses(line, protocol, wanted)[:CLOSER_UNITS_MAX]
    if protocol == "mbus" or line.framing == "ascii" or not addresses:
        return []
    return [msgspec.structs.replace(_step(line, protocol, addresses, wanted), is_closer=True)]


def beside(line: LineSettings, wanted: Wanted) -> list[Step]:
    """Return the first look of every protocol at a setting where something answered: meters may share a line."""
    if line.framing != "rtu":
        return []
    if is_network(line.port):
        lines = {protocol: other for other, protocol in _settings(line.port, wanted) if other.framing == "rtu"}
    else:
        kinds = ["modbus" if wire == "rtu" else wire for wire in _wires(line.port, wanted) if wire != "ascii"]
        lines = dict.fromkeys(kinds, line)
    looks = [(other, protocol, _quick_addresses(other, protocol, wanted)) for protocol, other in lines.items()]
    return [_step(other, protocol, addresses, wanted) for other, protocol, addresses in looks if addresses]


def is_one_line(line: LineSettings, other: LineSettings) -> bool:
    """Tell whether meters at two settings can share a line; behind a serial server the speed is the server's."""
    return line == other or (line.port == other.port and is_network(line.port) and line.framing == other.framing)


def second(port: str, wanted: Wanted) -> list[Step]:
    """Return what is left to try where the first look found nothing."""
    steps = []
    for line, protocol in _settings(port, wanted):
        steps += [*deep(line, protocol, wanted, answer="none"), *closer(line, protocol, wanted)]
    return steps


def total_s(steps: Sequence[Step]) -> float:
    """Return how long steps take when nobody answers."""
    return sum(step.cost_s for step in steps)


def wire_of(line: LineSettings, protocol: str) -> Wire:
    """Return what a protocol is on a line: Modbus has three framings."""
    wires: dict[tuple[str, str], Wire] = {("modbus", "ascii"): "ascii", ("modbus", "tcp"): "tcp"}
    others: dict[str, Wire] = {"modbus": "rtu", "cjt188": "cjt188", "mbus": "mbus"}
    return wires.get((protocol, line.framing), others[protocol])


def _settings(port: str, wanted: Wanted) -> Iterator[tuple[LineSettings, str]]:
    """Yield the line settings to try, each with a protocol; what the user names replaces what is usual."""
    wires = _wires(port, wanted)
    for usual in _behind_network(wires) if is_network(port) else _on_serial(wires, wanted):
        for wire in usual.wires:
            line = LineSettings(
                name="scan",
                port=port,
                baudrate=usual.baudrate,
                parity=usual.parity,
                stop_bits=wanted.stop_bits or usual.stop_bits,
                data_bits=usual.data_bits,
                framing=wire if wire in FRAMINGS else "rtu",
            )
            yield line, "modbus" if wire in FRAMINGS else wire


def _wires(port: str, wanted: Wanted) -> tuple[Wire, ...]:
    """Return what to look for on a port."""
    protocols = wanted.protocols or (("modbus",) if wanted.framings else PROTOCOLS)
    possible: tuple[Wire, ...] = ("tcp", "rtu", "ascii") if is_network(port) else ("rtu", "ascii")
    framings = [wire for wire in possible if not wanted.framings or wire in wanted.framings]
    others: tuple[Wire, ...] = ("cjt188", "mbus")
    return (*(framings if "modbus" in protocols else ()), *(wire for wire in others if wire in protocols))


def _behind_network(wires: Sequence[Wire]) -> Iterator[Usual]:
    """Yield one setting each: the speed behind a server is the server's. Modbus TCP comes first."""
    for wire in wires:
        setting = _BEHIND_SERVER.get(wire, Usual(9600, 8, "N", 1, ()))
        yield setting._replace(wires=(wire,))


def _on_serial(wires: Sequence[Wire], wanted: Wanted) -> Iterator[Usual]:
    usual = [row for row in USUAL if row.baudrate in wanted.baudrates or not wanted.baudrates]
    if wanted.baudrates:
        usual = _narrowed(usual, wires, wanted)
    for row in usual:
        met = tuple(wire for wire in row.wires if wire in wires)
        is_wanted = row.parity in (wanted.parities or (row.parity,)) and wanted.data_bits in (None, row.data_bits)
        if met and is_wanted:
            yield row._replace(wires=met)


def _narrowed(usual: Sequence[Usual], wires: Sequence[Wire], wanted: Wanted) -> list[Usual]:
    """Return the settings at the speeds that the user names: also what nobody would guess, and every protocol there."""
    in_8_bits = tuple(wire for wire in wires if wire != "tcp")
    rows = [row._replace(wires=in_8_bits) if row.data_bits == 8 else row for row in usual]
    for rate in wanted.baudrates:
        known = {(row.data_bits, row.parity) for row in usual if row.baudrate == rate}
        parities = wanted.parities or (() if known else ("N", "E"))
        rows += [Usual(rate, 8, parity, 1, in_8_bits) for parity in parities if (8, parity) not in known]
        in_7_bits = wanted.parities if wanted.data_bits == 7 else ()
        rows += [Usual(rate, 7, parity, 1, ("ascii",)) for parity in in_7_bits or ("E",) if (7, parity) not in known]
    return rows


def _quick_addresses(line: LineSettings, protocol: str, wanted: Wanted) -> tuple[str, ...]:
    if protocol == "cjt188":
        return wanted.numbers or (() if wanted.units else (cjt188.BROADCAST,))
    if protocol == "modbus":
        itself = TCP_UNITS if line.framing == "tcp" else ()
        units = wanted.units or (() if wanted.numbers else (*itself[:1], *FIRST_UNITS))
        return tuple(str(unit) for unit in units if modbus.UNIT_MIN <= unit <= modbus.UNIT_MAX or unit in itself)
    if wanted.units:  # to 255 all meters would listen, and none answer
        return tuple(str(unit) for unit in wanted.units if unit <= mbus.PRIMARY_MAX)
    return () if wanted.numbers else (str(mbus.ANY_METER), "0")


def _step(line: LineSettings, protocol: str, addresses: tuple[str, ...], wanted: Wanted) -> Step:
    timeout_ms = wanted.timeout_ms or TIMEOUT_MS.get(wire_of(line, protocol))
    if timeout_ms is None:
        timeout_ms = round(1000 * MBUS_BITS / line.baudrate) + MBUS_MARGIN_MS
    return Step(line=line, protocol=protocol, addresses=addresses, timeout_ms=timeout_ms)
