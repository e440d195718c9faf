"""Finding the meters on a line: listens first, then asks, the likeliest first. Only requests to read are ever sent.

    listen ──> traffic? say whose, and stop (a second master on a live line garbles its readings)
       └─────> quick look at every setting ──> something answers: all its addresses there ──> which profiles read it
                       │                            └─ and every other protocol there: meters may share a line
                       └─ nothing: every address at every setting

What comes out is told as it comes (`Scan.run` yields), so that an interruption loses nothing.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from agent.technician import scan_plan, scan_probe
from agent.technician.fits import Fit, built_in, ranked
from agent.technician.lines import USUAL, is_network, line_text
from agent.technician.listening import Ear
from agent.technician.scan_plan import SEARCH, Step, Wanted
from agent.technician.scan_probe import AnotherMaster, Probe
from agent.technician.sniffing import Heard, Sniffer
from agent.technician.words import Words
from gateway.line import Line, LineSettings, open_port
from gateway.meters import MeterReader
from protocols import cjt188, mbus
from protocols.errors import MeterError, PortLost, ProfileError
from protocols.profile import Profile

# A master that reads every meter once in so long is heard; one that comes every quarter of an hour is not.
LISTEN_S: Final = 2.0
LISTEN_SETTINGS: Final = 6  # at which nearly every master talks
FRAMES_SHOWN: Final = 3
_PROBES: Final = "probe"  # the order of an identifier that a profile finds out by trying; it fits whatever fits


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One meter. `fits` are the profiles that read it, the likelier first; empty where none of ours does."""

    line: LineSettings
    protocol: str
    address: str
    fits: tuple[Fit, ...] = ()
    reason: str | None = None  # why no profile reads it, from the last one tried


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Something to know that is no meter: another master, a collision, a lost port. `is_gap`: it may hide meters."""

    port: str
    words: Words
    is_grave: bool = False
    is_gap: bool = False
    heard: tuple[Heard, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the scan is: seconds done and to do, as planned now, and what is asked."""

    done_s: float
    total_s: float
    step: Step | None


Event = Found | Told | Progress


class Scan:
    """One scan over some ports. `found` and `told` grow while `run` is consumed."""

    def __init__(
        self,
        ports: list[str],
        wanted: Wanted,
        *,
        is_forced: bool = False,
        listen_s: float = LISTEN_S,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.found: list[Found] = []
        self.told: list[Told] = []
        self.lost: dict[str, PortLost] = {}  # by port
        self.requests = 0
        self.ports = list(dict.fromkeys(ports))
        self._wanted = wanted
        self._is_forced = is_forced
        self._listen_s = listen_s
        self._opener = opener
        self._monotonic = monotonic
        self._pause = pause
        self._profiles = built_in()
        self._done_s = 0.0
        self._todo: list[Step] = []
        self._asked: set[Step] = set()
        self._modbus_left: set[LineSettings] = set()  # where something answered, and only the first units were asked
        self._is_stopped = False
        self._is_alone = False  # a device answers whatever unit is asked
        self._identities: set[tuple[str, str]] = set()  # (port, M-Bus identity) of those that are known by an address
        self._reserved_s = self._ahead_s(self.ports)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is known to be left: no port or line was given up, and whoever answered was told apart."""
        return not any(told.is_gap for told in self.told)

    def estimate_s(self) -> float:
        """Return how long the first look takes, all ports together, when nobody answers."""
        return self._ahead_s(self.ports)

    def run(self) -> Iterator[Event]:
        """Look at each port; yield what comes out as it comes. A port that cannot be used is told, not raised."""
        for number, port in enumerate(self.ports):
            self._reserved_s = self._ahead_s(self.ports[number + 1 :])
            try:
                yield from self._port(port)
            except PortLost as error:
                self.lost[port] = error
                words = Words(f"串口不可用：{error}", f"the port cannot be used: {error}")
                yield self._tell(port, words, is_grave=True, is_gap=True)

    def _ahead_s(self, ports: list[str]) -> float:
        return sum(self._listen_s + scan_plan.total_s(scan_plan.quick(port, self._wanted)) for port in ports)

    def _port(self, port: str) -> Iterator[Event]:
        self._todo = first_look = scan_plan.quick(port, self._wanted)
        yield self._progress(None)
        if first_look:
            traffic = self._listen(first_look[0].line)
            if traffic is not None:
                yield traffic
                if not self._is_forced:
                    return
        before = len(self.found)
        yield from self._work(list(first_look))
        if len(self.found) == before and not self._is_stopped:
            yield from self._work(scan_plan.second(port, self._wanted))
        for line in sorted(self._modbus_left, key=line_text):
            yield self._tell(port, _modbus_left(line), is_gap=True)
        self._modbus_left.clear()

    def _work(self, steps: list[Step]) -> Iterator[Event]:
        """Do steps. Where something answers, all addresses there come next, and other settings not at all."""
        self._todo, self._is_stopped, self._is_alone = steps, False, False
        usual = {step.line for step in steps if step.protocol == "modbus"}
        while self._todo and not self._is_stopped:
            step = self._todo.pop(0)
            self._asked.add(step)
            speakers: list[str] = []
            is_answered = False
            for event in self._step(step, speakers):
                is_answered |= isinstance(event, Told)
                yield event
            for address in speakers:
                yield self._identify(step, address)
            if not speakers and not is_answered:
                continue
            if not self._is_alone:
                deeper = self._deeper(step, is_clean=not is_answered, usual=usual)
                self._todo = [*deeper, *(other for other in self._todo if other not in deeper)]
            if speakers and (not self._wanted.everywhere or step.wire == "tcp"):  # Modbus TCP leaves no room for more
                self._todo = [other for other in self._todo if scan_plan.is_one_line(other.line, step.line)]

    def _deeper(self, step: Step, *, is_clean: bool, usual: set[LineSettings]) -> list[Step]:
        """Return what to ask next at a setting where something answered, and was not asked yet.

        `usual` has the settings at which Modbus is usual: there, and with `everywhere`, all its units are asked.
        """
        steps = scan_plan.deep(step.line, step.protocol, self._wanted, answer="clean" if is_clean else "collision")
        for other in scan_plan.beside(step.line, self._wanted):
            steps.append(other)
            if other.protocol != "modbus":
                continue
            rest = scan_plan.deep(other.line, "modbus", self._wanted, answer="none")
            if other.line in usual or step.protocol == "modbus" or self._wanted.everywhere:
                steps += rest
                self._modbus_left.discard(other.line)
            elif rest:
                self._modbus_left.add(other.line)
        return [new for new in dict.fromkeys(steps) if new not in self._asked]

    def _step(self, step: Step, speakers: list[str]) -> Iterator[Event]:
        """Ask the addresses of a step; `speakers` collects who answered and was not known."""
        probe = Probe(
            step.line, is_forced=self._is_forced, opener=self._opener, monotonic=self._monotonic, pause=self._pause
        )
        try:
            addresses = step.addresses
            if step.wire == "tcp" and step.addresses and self._answers_every_unit(probe, step):
                addresses = step.addresses[:1]
                yield self._tell(step.line.port, _every_unit(addresses[0]))
            for index, address in enumerate(addresses):
                yield self._progress(step, left=len(step.addresses) - index)
                if address == SEARCH:
                    heard = scan_probe.search(probe, timeout_ms=step.timeout_ms, tell=lambda _: None)
                else:
                    heard = scan_probe.ask(
                        probe, step.protocol, address, timeout_ms=step.timeout_ms, profiles=self._profiles
                    )
                self._done_s += step.address_s
                if heard.garbled:
                    is_gap = step.protocol != "mbus" or address != str(mbus.ANY_METER)  # those are searched for
                    yield self._tell(step.line.port, _garbled(step, address, heard.garbled), is_gap=is_gap)
                speakers += self._new(step, heard, speakers)
        except AnotherMaster as other:
            self._is_stopped = True
            yield self._tell(step.line.port, _another_master(other.request), is_grave=True, is_gap=True)
        finally:
            self.requests += probe.requests
            probe.close()

    def _answers_every_unit(self, probe: Probe, step: Step) -> bool:
        self._is_alone = scan_probe.answers_every_unit(probe, timeout_ms=step.timeout_ms, profiles=self._profiles)
        return self._is_alone

    def _listen(self, line: LineSettings) -> Told | None:
        """Listen at the usual settings; return what was heard, None for silence. Raises PortLost."""
        if self._listen_s <= 0:
            return None
        heard: list[Heard] = []
        sniffer = Sniffer(byte_ms=line.byte_s * 1000)
        for settings in _to_listen(line):
            ear = Ear(settings, opener=self._opener, monotonic=self._monotonic)
            try:
                sniffer = Sniffer(byte_ms=settings.byte_s * 1000)
                for at_ms, data in ear.listen(self._listen_s * 1000):
                    heard += sniffer.feed(at_ms, data) if data else sniffer.tick(at_ms)
                heard += sniffer.finish()
            finally:
                ear.close()
            self._done_s += self._listen_s
            if not sniffer.totals.bytes and not heard:
                return None  # silence is the same at every speed
            if sniffer.totals.frames:
                return self._traffic(settings, sniffer, heard)
        return self._noise(line, sniffer)

    def _traffic(self, line: LineSettings, sniffer: Sniffer, heard: list[Heard]) -> Told:
        names = ", ".join(f"{station.protocol} {station.address}" for station in list(sniffer.stations.values())[:5])
        text = line_text(line)
        frames = tuple(one for one in heard if one.kind != "noise")[-FRAMES_SHOWN:]
        return self._tell(
            line.port,
            Words(
                f"线上已有主机在抄表（{text}：{names}）；不打扰它。停掉它再查，或用 `shuiwang sniff` 旁听，或 --force",
                f"another master reads this line ({text}: {names}); it is left alone. Stop it, or listen with"
                " `shuiwang sniff`, or give --force",
            ),
            is_grave=True,
            is_gap=True,
            heard=frames,
        )

    def _noise(self, line: LineSettings, sniffer: Sniffer) -> Told | None:
        count = sniffer.totals.bytes
        if not count:
            return None
        return self._tell(
            line.port,
            Words(
                f"没人问时听到 {count} 字节：别的波特率上有主机，或空闲线无偏置（`shuiwang doctor`）；--force 强查",
                f"{count} bytes came unasked: a master at another speed, or an idle line without bias"
                " (`shuiwang doctor`); --force searches all the same",
            ),
            is_grave=True,
            is_gap=True,
        )

    def _identify(self, step: Step, address: str) -> Found:
        """Read a meter with every profile of its protocol; return those that make a volume of it. Raises PortLost."""
        fits: list[tuple[int, Fit]] = []
        reason = None
        line = Line(step.line, opener=self._opener, monotonic=self._monotonic, pause=self._pause)
        try:
            for preference, profile in enumerate(_in_order(self._profiles, step.protocol)):
                reader = _reader(profile, address)
                if reader is None:
                    continue
                self.requests += 1
                try:
                    measurement = reader.read(line)
                except PortLost:
                    raise
                except MeterError as error:
                    reason = f"{profile.name}: {error}"
                    continue
                fit = Fit(profile=profile.name, volume_ml=measurement.volume_ml, flags=measurement.flags)
                fits.append((preference, fit))
        finally:
            line.close()
        likely = ranked(fit for _, fit in sorted(fits, key=lambda one: one[0]))
        found = Found(
            line=step.line, protocol=step.protocol, address=address, fits=likely, reason=None if likely else reason
        )
        self.found.append(found)
        return found

    def _new(self, step: Step, heard: scan_probe.Heard, speakers: list[str]) -> list[str]:
        """Return who of those that spoke was not known yet; an M-Bus meter speaks under an address and a number."""
        known = {(one.line, one.protocol, one.address) for one in self.found}
        port = step.line.port
        numbers = self._identities | {(one.line.port, one.address) for one in self.found if one.protocol == "mbus"}
        is_old = len(heard.speakers) == 1 and any((port, identity) in numbers for identity in heard.identities)
        self._identities |= {(port, identity) for identity in heard.identities}
        if is_old:
            return []
        names = [name for name in heard.speakers if name not in speakers and (port, name) not in numbers]
        return [name for name in names if (step.line, step.protocol, name) not in known]

    def _tell(
        self, port: str, words: Words, *, is_grave: bool = False, is_gap: bool = False, heard: tuple[Heard, ...] = ()
    ) -> Told:
        told = Told(port=port, words=words, is_grave=is_grave, is_gap=is_gap, heard=heard)
        self.told.append(told)
        return told

    def _progress(self, step: Step | None, *, left: int = 0) -> Progress:
        ahead_s = (step.address_s * left if step else 0.0) + scan_plan.total_s(self._todo) + self._reserved_s
        return Progress(done_s=self._done_s, total_s=self._done_s + ahead_s, step=step)


def _to_listen(line: LineSettings) -> list[LineSettings]:
    """Return the settings at which traffic would be understood: the first one asked, then the other usual ones."""
    if is_network(line.port):
        return [line]  # the speed is the serial server's
    others = [
        msgspec.structs.replace(
            line, baudrate=usual.baudrate, data_bits=usual.data_bits, parity=usual.parity, stop_bits=usual.stop_bits
        )
        for usual in USUAL[:LISTEN_SETTINGS]
    ]
    return [line, *(other for other in others if other != line)]


def _in_order(profiles: list[Profile], protocol: str) -> list[Profile]:
    """Return a protocol's profiles, the best proven first, those that find things out by trying last."""

    def key(profile: Profile) -> tuple[bool, int, str]:
        captures = sum(case.evidence in {"capture", "field"} for case in profile.cases)
        return getattr(profile.spec, "di_order", None) == _PROBES, -captures, profile.name

    return sorted((profile for profile in profiles if profile.head.protocol == protocol), key=key)


def _reader(profile: Profile, address: str) -> MeterReader | None:
    try:
        parsed = profile.protocol.parse_address(address)
    except ProfileError:
        return None
    return MeterReader(profile=profile, address=parsed, timeout_ms=profile.timing.timeout_ms, retries=0)


def _another_master(request: bytes) -> Words:
    frame = request.hex(" ").upper()
    return Words(
        f"查找时听到别的主机的请求（{frame}）：已停止，不与它争线。停掉它再查，或 --force",
        f"another master asked while we searched ({frame}): stopped, two masters garble each other. Stop it, or"
        " --force",
    )


def _every_unit(address: str) -> Words:
    return Words(
        f"此设备对任何地址都应答（Modbus TCP 表自身常如此）：只列出地址 {address}，其余地址不再查找",
        f"this device answers whatever unit is asked, as many do that speak Modbus TCP: listed once, as unit {address}",
    )


def _modbus_left(line: LineSettings) -> Words:
    how = f"--protocol modbus --baudrate {line.baudrate} --parity {line.parity}"
    text, first, last = line_text(line), scan_plan.FIRST_UNITS[-1] + 1, scan_plan.ALL_UNITS[-1]
    return Words(
        f"{text}：Modbus 地址只查了 1-{first - 1}；同一条线上可能还有 {first}-{last}：{how}，或 --all",
        f"{text}: of Modbus only the units 1 to {first - 1} were asked; for {first} to {last} on the same line: {how},"
        " or --all",
    )


def _garbled(step: Step, address: str, heard: bytes) -> Words:
    line = line_text(step.line)
    dump = heard[:12].hex(" ").upper() + (" …" if len(heard) > 12 else "")
    if step.protocol == "cjt188" and address == cjt188.BROADCAST:
        return Words(
            f"{line}：多块 CJ/T 188 表同时应答（{dump}）。通用地址只适合单表：请用 --addresses 给 14 位表号，或逐块接",
            f"{line}: several CJ/T 188 meters answer at once ({dump}). The general address is for one meter alone:"
            " give the 14 digits on the meters with --addresses, or connect one at a time",
        )
    if step.protocol == "mbus" and address in {str(mbus.ANY_METER), SEARCH}:
        return Words(
            f"{line}：多块 M-Bus 表同时应答（{dump}），逐块查找",
            f"{line}: several M-Bus meters answer at once ({dump}); they are looked for one by one",
        )
    return Words(
        f"{line}：地址 {address} 有应答但是乱码（{dump}）：两块表同一地址，或线路有干扰",
        f"{line}: address {address} answers, but garbled ({dump}): two meters with this address, or a disturbed line",
    )
