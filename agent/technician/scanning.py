"""Finding the meters on a line: listens first, then asks, the likeliest first. Only requests to read are ever sent.

    listen ──> traffic? say whose, and stop (a second master on a live line garbles its readings)
       └─────> quick look at every setting ──> something answers: all its addresses there ──> which profiles read it
                       │                            └─ and every other protocol there: meters may share a line
                       └─ nothing: every address at every setting

What comes out is told as it comes (`Scan.run` yields), so that an interruption loses nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from agent.technician import scan_plan, scan_probe, scan_words
from agent.technician.fits import built_in
from agent.technician.lines import USUAL, is_network, line_text
from agent.technician.listening import Ear
from agent.technician.scan_found import LATE_TIMEOUT_MS, Found, Identifier
from agent.technician.scan_plan import SEARCH, Step, Wanted
from agent.technician.scan_probe import AnotherMaster, Probe
from agent.technician.sniffing import Heard, Sniffer
from agent.technician.words import Words
from gateway.line import LineSettings, open_port
from protocols import mbus, mbus_search, modbus
from protocols.errors import PortLost

# A master that reads every meter once in so long is heard; one that comes every quarter of an hour is not.
LISTEN_S: Final = 2.0
LISTEN_SETTINGS: Final = 6  # at which nearly every master talks
FRAMES_SHOWN: Final = 3
QUERIES_A_MASK: Final = 2  # of the search by identity: nobody answers twice, or somebody is selected and asked


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


class _Speaker(NamedTuple):
    """Who answered: its address, whether only when the next one was asked, and T of CJ/T 188."""

    name: str
    is_late: bool
    meter_type: int | None


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
        self._garbled: set[tuple[LineSettings, str, str]] = set()  # who answered in no clear words
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
                yield self._tell(port, scan_words.port_lost(error), is_grave=True, is_gap=True)

    def _ahead_s(self, ports: list[str]) -> float:
        return sum(self._listen_s + scan_plan.total_s(scan_plan.quick(port, self._wanted)) for port in ports)

    def _port(self, port: str) -> Iterator[Event]:
        self._todo = first_look = scan_plan.quick(port, self._wanted)
        yield self._progress(None)
        if modbus.TCP_DEVICE in self._wanted.units and not any(step.wire == "tcp" for step in first_look):
            yield self._tell(port, scan_words.tcp_alone())
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
            yield self._tell(port, scan_words.modbus_left(line), is_gap=True)
        self._modbus_left.clear()

    def _work(self, steps: list[Step]) -> Iterator[Event]:
        """Do steps. Where something answers, all addresses there come next, and other settings not at all."""
        self._todo, self._is_stopped, self._is_alone = steps, False, False
        usual = {step.line for step in steps if step.protocol == "modbus"}
        while self._todo and not self._is_stopped:
            step = self._todo.pop(0)
            self._asked.add(step)
            speakers: list[_Speaker] = []
            is_answered = False
            for event in self._step(step, speakers):
                is_answered |= isinstance(event, Told)
                yield event
            for speaker in speakers:
                yield self._identify(step, speaker.name, is_late=speaker.is_late, meter_type=speaker.meter_type)
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
        closer = scan_plan.closer(step.line, step.protocol, self._wanted)
        for other in scan_plan.beside(step.line, self._wanted):
            steps.append(other)
            closer += scan_plan.closer(other.line, other.protocol, self._wanted)
            if other.protocol != "modbus":
                continue
            rest = scan_plan.deep(other.line, "modbus", self._wanted, answer="none")
            if other.line in usual or step.protocol == "modbus" or self._wanted.everywhere:
                steps += rest
                self._modbus_left.discard(other.line)
            elif rest:
                self._modbus_left.add(other.line)
        return [new for new in dict.fromkeys(steps + closer) if new not in self._asked]

    def _step(self, step: Step, speakers: list[_Speaker]) -> Iterator[Event]:
        """Ask the addresses of a step; `speakers` collects who answered and was not known."""
        probe = Probe(
            step.line, is_forced=self._is_forced, opener=self._opener, monotonic=self._monotonic, pause=self._pause
        )
        try:
            addresses = step.addresses
            if step.wire == "tcp" and step.addresses and self._answers_every_unit(probe, step):
                others = [one for one in step.addresses if one != str(modbus.TCP_DEVICE)]
                addresses = (*others, *step.addresses)[:1]
                yield self._tell(step.line.port, scan_words.every_unit(addresses[0]))
            if step.is_closer:
                heard_of = self._garbled | {(one.line, one.protocol, one.address) for one in self.found}
                addresses = tuple(one for one in addresses if (step.line, step.protocol, one) not in heard_of)
            for index, address in enumerate(addresses):
                yield self._progress(step, left_s=step.address_s * (len(step.addresses) - index))
                if address == SEARCH:
                    yield from self._search(probe, step, speakers)
                    continue
                heard = scan_probe.ask(
                    probe, step.protocol, address, timeout_ms=step.timeout_ms, is_closer=step.is_closer
                )
                self._done_s += step.address_s
                if heard.garbled:
                    self._garbled.add((step.line, step.protocol, address))
                    is_gap = step.protocol != "mbus" or address != str(mbus.ANY_METER)  # those are searched for
                    yield self._tell(step.line.port, scan_words.garbled(step, address, heard.garbled), is_gap=is_gap)
                speakers += self._new(step, address, heard, speakers)
        except AnotherMaster as other:
            self._is_stopped = True
            yield self._tell(step.line.port, scan_words.another_master(other.request), is_grave=True, is_gap=True)
        finally:
            self.requests += probe.requests
            probe.close()

    def _search(self, probe: Probe, step: Step, speakers: list[_Speaker]) -> Iterator[Event]:
        """Look for all M-Bus meters by their identities."""
        began, search = probe.requests, mbus_search.Search()
        for search in scan_probe.search(probe, timeout_ms=step.timeout_ms):
            new, began = probe.requests - began, probe.requests
            self._done_s += new * step.question_s
            yield self._progress(step, left_s=QUERIES_A_MASK * search.waiting * step.question_s)
        names = tuple(str(identity) for identity in search.found)
        speakers += self._new(step, SEARCH, scan_probe.Heard(speakers=names, identities=names), speakers)
        if search.unresolved:
            masks = [str(mask) for mask in search.unresolved]
            yield self._tell(step.line.port, scan_words.unresolved(step.line, masks), is_gap=True)
        if search.waiting:
            yield self._tell(step.line.port, scan_words.given_up(step.line), is_gap=True)

    def _answers_every_unit(self, probe: Probe, step: Step) -> bool:
        self._is_alone = scan_probe.answers_every_unit(probe, timeout_ms=step.timeout_ms, is_closer=step.is_closer)
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
        frames = tuple(one for one in heard if one.kind != "noise")[-FRAMES_SHOWN:]
        return self._tell(line.port, scan_words.traffic(line, sniffer), is_grave=True, is_gap=True, heard=frames)

    def _noise(self, line: LineSettings, sniffer: Sniffer) -> Told | None:
        count = sniffer.totals.bytes
        return self._tell(line.port, scan_words.noise(count), is_grave=True, is_gap=True) if count else None

    def _identify(self, step: Step, address: str, *, is_late: bool, meter_type: int | None) -> Found:
        """Read a meter with every profile of its protocol, and list it. Raises PortLost."""
        identifier = Identifier(self._profiles, opener=self._opener, monotonic=self._monotonic, pause=self._pause)
        patient_ms = LATE_TIMEOUT_MS if is_late else 0
        try:
            found = identifier.identify(
                step.line, step.protocol, address,
                timeout_ms=max(self._wanted.timeout_ms or 0, patient_ms), meter_type=meter_type,
            )  # fmt: skip
        finally:
            self.requests += identifier.requests
        self.found.append(found)
        return found

    def _new(self, step: Step, asked: str, heard: scan_probe.Heard, speakers: Sequence[_Speaker]) -> list[_Speaker]:
        """Return who of those that spoke was not known yet; an M-Bus meter speaks under an address and a number."""
        known = {(one.line, one.protocol, one.address) for one in self.found}
        port = step.line.port
        numbers = self._identities | {(one.line.port, one.address) for one in self.found if one.protocol == "mbus"}
        is_old = len(heard.speakers) == 1 and any((port, identity) in numbers for identity in heard.identities)
        self._identities |= {(port, identity) for identity in heard.identities}
        if is_old:
            return []
        before = {speaker.name for speaker in speakers}
        return [
            _Speaker(name, step.protocol == "modbus" and name != asked, heard.types.get(name))
            for name in heard.speakers
            if name not in before and (port, name) not in numbers and (step.line, step.protocol, name) not in known
        ]

    def _tell(
        self, port: str, words: Words, *, is_grave: bool = False, is_gap: bool = False, heard: tuple[Heard, ...] = ()
    ) -> Told:
        told = Told(port=port, words=words, is_grave=is_grave, is_gap=is_gap, heard=heard)
        self.told.append(told)
        return told

    def _progress(self, step: Step | None, *, left_s: float = 0.0) -> Progress:
        ahead_s = left_s + scan_plan.total_s(self._todo) + self._reserved_s
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
