"""Asking into a line whose meters are unknown: who speaks when an address is asked? Sends requests to read, no others.

An answer names its meter in all three protocols, so a late one is no trap here: it is found all the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

import msgspec

from agent.technician import modbus_wire, scan_questions
from agent.technician.cutting import cut
from agent.technician.scan_plan import GAP_S
from gateway.line import LineSettings, open_port
from protocols import cjt188, mbus, mbus_search, modbus
from protocols.errors import Garbled, PortLost, ShuiwangError

# Answers come in one go; an adapter stalls for 16 ms (FTDI), a busy box for a little longer.
ANSWER_ENDS_S: Final = 0.05
# More than any answer; a line that babbles must not hold us.
HEARD_BYTES_MAX: Final = 1024
# Two meters with one number collide at eight digits, medium, version and both bytes of the maker: 13 times. Where so
# many collisions in a row bring no meter the line is noisy.
SEARCH_COLLISIONS_MAX: Final = 60
# A gateway says with these that nobody has the unit (Application Protocol, section 7).
_NOBODY_THERE: Final = frozenset({10, 11})
# Reserved by the standard (Serial Line 2.2): no meter has it.
_NOBODYS_UNIT: Final = 248


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """Who answered, and what was heard that named nobody."""

    speakers: tuple[str, ...] = ()
    garbled: bytes = b""
    identities: tuple[str, ...] = ()  # of M-Bus meters among the speakers, also where they spoke by primary address
    types: dict[str, int] = {}  # of CJ/T 188 meters among the speakers: T


class AnotherMaster(ShuiwangError):
    """A request was heard that we did not send; nothing more is sent."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request.hex(" ").upper())
        self.request = request


class Probe:
    """An open port. Not `gateway.line.Line`: that waits for one meter's answer, this one listens for anybody's."""

    def __init__(
        self,
        line: LineSettings,
        *,
        is_forced: bool = False,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open the port. With `is_forced`, other masters are not minded. Raises PortLost."""
        self.line = line
        self.requests = 0
        self.nobody = _NOBODY_THERE  # the exception codes with which a gateway says that nobody has a unit
        self._is_forced = is_forced
        self._monotonic = monotonic
        self._pause = pause
        self._serial = 0
        try:
            self._port = opener(line)
        except (OSError, ValueError) as error:
            raise PortLost(f"{line.port}: {error}") from error

    def next_serial(self) -> int:
        """Return a new number for a request that its answer repeats: SER of CJ/T 188, transaction of Modbus TCP."""
        self._serial = (self._serial + 1) & 0xFF
        return self._serial

    def ask(self, request: bytes, *, timeout_ms: int) -> bytes:
        """Send a request; return what comes until the line is silent again, our own echo left out.

        Raises PortLost, and AnotherMaster before or after sending.
        """
        try:
            self._mind_masters(self._read_waiting(), request)
            self._pause(max(self.line.silence_s, GAP_S))
            self._port.write(request)
            self.requests += 1
            heard = self._listen(request, len(request) * self.line.byte_s + timeout_ms / 1000)
        except OSError as error:
            raise PortLost(f"{self.line.port}: {error}") from error
        heard = heard.removeprefix(request)
        self._mind_masters(heard, request)
        return heard

    def close(self) -> None:
        """Let go of the port."""
        try:
            self._port.close()
        except OSError:
            pass  # it is gone already

    def _listen(self, request: bytes, silent_s: float) -> bytes:
        heard = bytearray()
        silent_at = self._monotonic() + silent_s
        while len(heard) < HEARD_BYTES_MAX:
            data = self._port.read(max(1, self._port.in_waiting))
            now_s = self._monotonic()
            if data:
                heard += data
                if not request.startswith(heard) and heard != request:
                    silent_at = now_s + ANSWER_ENDS_S
            elif now_s >= silent_at:
                break
        return bytes(heard)

    def _read_waiting(self) -> bytes:
        waiting = self._port.in_waiting
        return self._port.read(waiting) if waiting else b""

    def _mind_masters(self, heard: bytes, request: bytes) -> None:
        for frame in requests_in(heard, self.line):
            if frame not in request and not self._is_forced:
                raise AnotherMaster(frame)


def requests_in(heard: bytes, line: LineSettings) -> list[bytes]:
    """Return the sound frames in some bytes that only a master sends, as they stand there."""
    return [
        heard[one.start : one.end]
        for one in cut(heard, source=_source(line))
        if one.protocol and _is_request(one.protocol, one.plain)
    ]


def ask(probe: Probe, protocol: str, address: str, *, timeout_ms: int, is_closer: bool = False) -> Heard:
    """Ask one address of a protocol, in all the ways that are needed. Raises PortLost, AnotherMaster."""
    if protocol == "modbus":
        return _ask_modbus(probe, int(address), timeout_ms, is_closer=is_closer)
    if protocol == "cjt188":
        return _ask_cjt188(probe, address, timeout_ms, is_closer=is_closer)
    frame = mbus.Frame(control=mbus.REQUEST_DATA | mbus.FRAME_COUNT_BIT, address=int(address))
    return heard_mbus(probe.ask(frame.encode(), timeout_ms=timeout_ms), address, probe.line)


def search(probe: Probe, *, timeout_ms: int) -> Iterator[mbus_search.Search]:
    """Find all M-Bus meters by their identities; yield the search after each query. Raises PortLost, AnotherMaster.

    Where it ends with masks `waiting` it was given up: the line is noisy.
    """
    running = mbus_search.Search()
    queries = running.queries()
    query = next(queries)
    while running.collisions <= SEARCH_COLLISIONS_MAX:
        heard = _answer_to(probe, query, timeout_ms=timeout_ms)
        if heard is mbus_search.Heard.SILENCE:  # a disturbed selection would hide a meter: ask again
            heard = _answer_to(probe, query, timeout_ms=timeout_ms)
        try:
            query = queries.send(heard)
        except StopIteration:
            break
        yield running
    yield running


def answers_every_unit(probe: Probe, *, timeout_ms: int, is_closer: bool = False) -> bool:
    """Tell whether a device answers whatever unit is asked, as many do that speak Modbus TCP themselves.

    A gateway refuses a unit that nobody has. With what code it does so is kept: nobody who is refused like that is a
    meter. Raises PortLost.
    """
    codes: set[int] = set()
    for question in scan_questions.modbus_questions(is_closer=is_closer):
        answers = _modbus(probe.ask(_framed(probe, question, _NOBODYS_UNIT), timeout_ms=timeout_ms), probe.line)
        codes |= {frame[2] if frame[1] & 0x80 else 0 for frame in answers}
    # A device that refuses because of the registers has taken the unit for its own.
    is_every = bool(codes & {0, modbus.ILLEGAL_FUNCTION, modbus.ILLEGAL_DATA_ADDRESS, modbus.ILLEGAL_DATA_VALUE})
    probe.nobody = _NOBODY_THERE | codes if not is_every else _NOBODY_THERE
    return is_every


def heard_modbus(heard: bytes, line: LineSettings, *, nobody: frozenset[int] = _NOBODY_THERE) -> Heard:
    """Return the units whose answers are among some bytes; `nobody` are the codes that say that nobody is there."""
    answers = _modbus(heard, line)
    units = [str(frame[0]) for frame in answers if not (frame[1] & 0x80 and frame[2] in nobody)]
    return Heard(speakers=_once(units), garbled=b"" if answers else heard)


def heard_cjt188(heard: bytes) -> Heard:
    """Return the numbers of the meters whose answers are among some bytes."""
    numbers: list[str] = []
    types: dict[str, int] = {}
    for _, frame in cjt188.find_frames(heard):
        if not frame.is_reply:
            continue
        told = frame.content[::-1].hex() if frame.request_control == cjt188.READ_ADDRESS else ""
        names = [number for number in (frame.address, told) if number.isdecimal() and len(number) == 14][:1]
        numbers += names
        types |= dict.fromkeys(names, frame.meter_type)
    return Heard(speakers=_once(numbers), garbled=b"" if numbers else heard, types=types)


def heard_mbus(heard: bytes, asked: str, line: LineSettings) -> Heard:
    """Return the addresses of the meters whose telegrams are among some bytes: primary, or the number where unset."""
    names, identities = [], []
    for one in cut(heard, source=_source(line)):
        frame = mbus.parse_frame(one.plain) if one.protocol == "mbus" else None
        if frame is None or frame.is_request:
            continue
        unset = frame.address not in range(1, mbus.PRIMARY_MAX + 1)
        identities += [str(frame.identity)] if frame.identity else []
        names.append(str(frame.identity) if unset and frame.identity else str(frame.address))
    if not names and heard == bytes((mbus.ACKNOWLEDGEMENT,)) and int(asked) <= mbus.PRIMARY_MAX:
        names.append(asked)  # it has nothing to say, but it is there
    return Heard(speakers=_once(names), garbled=b"" if names else heard, identities=_once(identities))


def _ask_modbus(probe: Probe, unit: int, timeout_ms: int, *, is_closer: bool) -> Heard:
    speakers: list[str] = []
    garbled = b""
    for question in scan_questions.modbus_questions(is_closer=is_closer):
        heard = _hear_modbus(probe, question, unit, timeout_ms)
        if heard.garbled:  # a late answer of a neighbour may have run into this one
            heard = _hear_modbus(probe, question, unit, 2 * timeout_ms)
        speakers += heard.speakers
        garbled += heard.garbled
        if str(unit) in speakers:
            break
    return Heard(speakers=_once(speakers), garbled=b"" if speakers else garbled)


def _hear_modbus(probe: Probe, question: modbus.ReadRequest, unit: int, timeout_ms: int) -> Heard:
    answer = probe.ask(_framed(probe, question, unit), timeout_ms=timeout_ms)
    return heard_modbus(answer, probe.line, nobody=probe.nobody)


def _framed(probe: Probe, question: modbus.ReadRequest, unit: int) -> bytes:
    """Return the question to a unit as it travels on the line."""
    rtu = modbus.add_crc(bytes((unit,)) + question.pdu())
    return modbus_wire.encode(rtu, probe.line.framing, transaction=probe.next_serial())


def _ask_cjt188(probe: Probe, number: str, timeout_ms: int, *, is_closer: bool) -> Heard:
    garbled = b""
    for question in scan_questions.cjt188_questions(is_any=number == cjt188.BROADCAST, is_closer=is_closer):
        control, serial = question.control, bytes((probe.next_serial(),))
        frame = cjt188.Frame(
            meter_type=question.meter_type, address=number, control=control, data=question.wire + serial
        )
        sent = bytes([cjt188.PREAMBLE] * 4) + frame.encode()
        heard = heard_cjt188(probe.ask(sent, timeout_ms=timeout_ms))
        if heard.speakers:
            return heard
        garbled += heard.garbled
    return Heard(garbled=garbled)


def _answer_to(probe: Probe, query: mbus.Request, *, timeout_ms: int) -> bytes | mbus_search.Heard:
    heard = probe.ask(query.encode(), timeout_ms=timeout_ms)
    if not heard:
        return mbus_search.Heard.SILENCE
    try:
        return query.reader().feed(heard) or mbus_search.Heard.COLLISION
    except Garbled:
        return mbus_search.Heard.COLLISION


def _source(line: LineSettings) -> Literal["line", "tcp"]:
    return "tcp" if line.framing == "tcp" else "line"


def _modbus(heard: bytes, line: LineSettings) -> list[bytes]:
    """Return the Modbus answers in some bytes, as RTU frames."""
    cuts = cut(heard, source=_source(line))
    return [one.plain for one in cuts if one.protocol == "modbus" and not modbus_wire.is_request(one.plain)]


def _is_request(protocol: str, data: bytes) -> bool:
    if protocol == "modbus":
        return modbus_wire.is_request(data)
    if protocol == "cjt188":
        frame = cjt188.parse_frame(data)
        return frame is not None and not frame.is_reply
    telegram = mbus.parse_frame(data)
    return telegram is not None and telegram.is_request


def _once(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
