"""Overhearing a line: every frame with its time, who answers whom and how fast, and what goes wrong. Never sends.

The core is pure: it is fed (milliseconds, bytes) and knows no port, so a recorded stream gives what the live one gave.

    master   >> request ........ >> request            a station is whoever was asked: a Modbus unit, a CJ/T 188
    meter          << answer            (silence)      number, an M-Bus address
                 |latency|
"""

import statistics
from typing import Final, Literal

import msgspec

from agent.technician import modbus_wire
from agent.technician.cutting import Cutter, Piece, Protocol, Source
from agent.technician.fits import Fit, Guesser, built_in
from agent.technician.words import Words
from protocols import cjt188, mbus, modbus

Kind = Literal["request", "answer", "refusal", "acknowledgement", "damaged", "noise"]
# A line that is overheard for days must not fill the memory; the latest are kept.
LATENCIES_MAX: Final = 10_000
STATIONS_MAX: Final = 500
REQUESTS_TIMED: Final = 100
UNKNOWN_BYTES_DAMAGED: Final = 4  # fewer than the shortest answer has are noise and not a damaged answer

LATE: Final = Words("迟到的应答：主机已在问别的", "a late answer: the master asked on")
WRITES: Final = Words("有人在写表！", "somebody WRITES to a meter!")
NOBODY_ASKED: Final = Words("没有听到它的请求", "its request was not heard")


class Heard(msgspec.Struct, kw_only=True):
    """One thing that was heard: a frame with who it is about, or bytes that are none.

    `latency_ms` runs from the request's last byte to the answer's first, as far as the adapter lets us see.
    """

    at_ms: float
    until_ms: float
    protocol: Protocol
    kind: Kind
    data: bytes
    framing: modbus_wire.Framing | None = None  # of Modbus
    plain: bytes = b""  # what the protocol's own module understands: Modbus as an RTU frame, else the bytes
    lead: bytes = b""  # the preamble in front of it
    station: str = ""
    latency_ms: float | None = None
    fits: tuple[Fit, ...] = ()
    note: Words | None = None

    @property
    def mark(self) -> str:
        """`>>` from the master, `<<` from anybody else."""
        return ">>" if self.kind == "request" else "<<"


class Station(msgspec.Struct, kw_only=True):
    """What was overheard of one meter. `silent` requests got no answer before the next one."""

    protocol: Protocol
    address: str
    requests: int = 0
    answers: int = 0
    refusals: int = 0
    damaged: int = 0
    late: int = 0
    silent: int = 0
    latencies_ms: list[float] = []
    asked_ms: list[float] = []
    fits: tuple[Fit, ...] = ()

    @property
    def answer_rate(self) -> float | None:
        """The share of requests that got a sound answer in time; None where none was heard."""
        return (self.answers + self.refusals) / self.requests if self.requests else None

    @property
    def latency_ms(self) -> tuple[float, float, float] | None:
        """Least, median and greatest; None where no answer came."""
        if not self.latencies_ms:
            return None
        return min(self.latencies_ms), statistics.median(self.latencies_ms), max(self.latencies_ms)

    @property
    def period_s(self) -> float | None:
        """How often the master asks: the median of the time between two requests."""
        pauses = [later - earlier for earlier, later in zip(self.asked_ms, self.asked_ms[1:], strict=False)]
        return statistics.median(pauses) / 1000 if pauses else None


class Totals(msgspec.Struct, kw_only=True):
    """What was overheard of the line as a whole."""

    bytes: int = 0
    unknown_bytes: int = 0
    frames: int = 0
    damaged: int = 0
    writes: int = 0
    stations_forgotten: int = 0


class _Asked(msgspec.Struct, frozen=True):
    heard: Heard
    station: Station
    wants_data: bool = True


class Sniffer:
    """Makes sense of what is heard on one line. `byte_ms` is the time of one byte on the wire."""

    def __init__(self, *, byte_ms: float, source: Source = "line", guesser: Guesser | None = None) -> None:
        self.stations: dict[tuple[str, str], Station] = {}
        self.totals = Totals()
        self.byte_ms = byte_ms
        self.parity = ""  # E or O where Modbus ASCII was heard with its parity in bit 7
        self._cutter = Cutter(byte_ms=byte_ms, source=source)
        self._guesser = guesser or Guesser(built_in())
        self._asked: _Asked | None = None
        self._selected = str(mbus.SELECTED)  # the M-Bus meter that FD means at present

    def feed(self, at_ms: float, data: bytes) -> list[Heard]:
        """Take bytes that were there at an instant; return what has become clear."""
        self.totals.bytes += len(data)
        return [self._make_sense(piece) for piece in self._cutter.feed(at_ms, data)]

    def tick(self, now_ms: float) -> list[Heard]:
        """Say what time it is while nothing comes."""
        return [self._make_sense(piece) for piece in self._cutter.tick(now_ms)]

    def finish(self) -> list[Heard]:
        """Return what is left: nothing more comes."""
        heard = [self._make_sense(piece) for piece in self._cutter.finish()]
        self._give_up_waiting()
        return heard

    def load(self, elapsed_ms: float) -> float:
        """Return the share of the time in which somebody talked, 0 to 1."""
        return min(1.0, self.totals.bytes * self.byte_ms / elapsed_ms) if elapsed_ms > 0 else 0.0

    def _make_sense(self, piece: Piece) -> Heard:
        if not piece.protocol:
            return self._no_frame(piece)
        self.totals.frames += 1
        if piece.framing == "ascii":
            self.parity = modbus_wire.parity_in(piece.data) or self.parity
        kind, address, note = _role(piece, self._asked)
        if piece.protocol == "mbus" and kind == "request":
            address = self._name_of_selected(piece.data, address)
        heard = Heard(
            at_ms=piece.at_ms,
            until_ms=piece.until_ms,
            protocol=piece.protocol,
            kind=kind,
            data=piece.data,
            framing=piece.framing,
            plain=piece.plain,
            lead=piece.lead,
            station=address,
            note=note,
        )
        self.totals.writes += note is WRITES and kind == "request"
        if kind == "request":
            self._request(heard)
        else:
            self._answer(heard)
        return heard

    def _name_of_selected(self, data: bytes, address: str) -> str:
        """Return whom an M-Bus request means: behind FD it is whoever was selected last."""
        frame = mbus.parse_frame(data)
        assert frame is not None
        if frame.ci == mbus.SELECT:
            self._selected = address
        return self._selected if frame.address == mbus.SELECTED else address

    def _request(self, heard: Heard) -> None:
        self._give_up_waiting()
        station = self._station(heard.protocol, heard.station)
        station.requests += 1
        station.asked_ms.append(heard.at_ms)
        del station.asked_ms[:-REQUESTS_TIMED]
        self._asked = _Asked(heard, station, _wants_data(heard))

    def _answer(self, heard: Heard) -> None:
        asked = self._asked
        if asked is None or not _answers(asked.heard, heard):
            known = self.stations.get((heard.protocol, heard.station))
            heard.note = LATE if known is not None and known.silent else NOBODY_ASKED
            self._station(heard.protocol, heard.station).late += heard.note is LATE
            return
        self._asked = None
        station = asked.station
        if _means_anybody(asked.heard) and heard.station != station.address:  # now it has a name
            station.requests -= 1
            station = self._station(heard.protocol, heard.station)
            station.requests += 1
        heard.station = station.address
        heard.latency_ms = max(0.0, heard.at_ms - asked.heard.until_ms)
        station.latencies_ms.append(heard.latency_ms)
        del station.latencies_ms[:-LATENCIES_MAX]
        if heard.kind == "refusal":
            station.refusals += 1
            return
        station.answers += 1
        if heard.kind == "answer":
            heard.fits = self._guesser.fits(heard.protocol, asked.heard.plain, heard.plain)
            station.fits = heard.fits or station.fits

    def _no_frame(self, piece: Piece) -> Heard:
        heard = Heard(at_ms=piece.at_ms, until_ms=piece.until_ms, protocol="", kind="noise", data=piece.data)
        asked = self._asked
        if asked and asked.heard.protocol == "mbus" and piece.data == bytes((mbus.ACKNOWLEDGEMENT,)):
            heard.kind, heard.protocol, heard.station = "acknowledgement", "mbus", asked.heard.station
            self.totals.frames += 1
            if asked.wants_data:
                heard.note = LATE
            else:
                self._answer(heard)
            return heard
        self.totals.unknown_bytes += len(piece.data)
        if asked and len(piece.data) >= UNKNOWN_BYTES_DAMAGED:
            # Whoever was asked answered, and it was damaged on its way (or two answered at once).
            heard.kind, heard.protocol, heard.station = "damaged", asked.heard.protocol, asked.station.address
            heard.latency_ms = max(0.0, heard.at_ms - asked.heard.until_ms)
            asked.station.damaged += 1
            self.totals.damaged += 1
            self._asked = None
        return heard

    def _give_up_waiting(self) -> None:
        if self._asked and not _is_broadcast(self._asked.heard):
            self._asked.station.silent += 1
        self._asked = None

    def _station(self, protocol: Protocol, address: str) -> Station:
        key = (str(protocol), address)
        if key not in self.stations:
            if len(self.stations) >= STATIONS_MAX:  # a noisy line invents them: the one that said least goes
                least = min(self.stations, key=lambda known: self.stations[known].requests)
                del self.stations[least]
                self.totals.stations_forgotten += 1
            self.stations[key] = Station(protocol=protocol, address=address)
        return self.stations[key]


def _role(piece: Piece, asked: _Asked | None) -> tuple[Kind, str, Words | None]:
    """Return what a sound frame is, whose station it is about, and what is remarkable about it."""
    if piece.protocol == "modbus":
        return _role_of_modbus(piece.plain, asked)
    if piece.protocol == "cjt188":
        frame = cjt188.parse_frame(piece.data)
        assert frame is not None
        writes = frame.request_control not in (cjt188.READ_DATA, cjt188.READ_ADDRESS, cjt188.READ_KEY_VERSION)
        kind: Kind = "refusal" if frame.is_abnormal else "answer" if frame.is_reply else "request"
        return kind, frame.address, WRITES if writes else None
    telegram = mbus.parse_frame(piece.data)
    assert telegram is not None
    if telegram.is_request and telegram.ci == mbus.SELECT:
        return "request", str(mbus.decode_identity((telegram.data + b"\xff" * 8)[:8])), None
    is_write = telegram.is_request and telegram.function == mbus.SEND_DATA
    if telegram.is_request:
        return "request", str(telegram.address), WRITES if is_write else None
    return "refusal" if telegram.ci == 0x70 else "answer", str(telegram.address), None


def _role_of_modbus(data: bytes, asked: _Asked | None) -> tuple[Kind, str, Words | None]:
    unit, function = str(data[0]), data[1] & 0x7F
    note = WRITES if function in modbus_wire.WRITES else None
    if data[1] & 0x80:
        return "refusal", unit, note
    may_answer = asked is not None and asked.heard.protocol == "modbus" and asked.heard.plain[1] == function
    may_answer = may_answer and asked is not None and asked.heard.plain[0] in {data[0], 0}
    if function in modbus_wire.WRITES:  # these are answered by what looks like a request
        return "answer" if may_answer and len(data) == modbus.REQUEST_BYTES else "request", unit, note
    if modbus_wire.is_request(data) or (len(data) == modbus.REQUEST_BYTES and not may_answer):
        return "request", unit, note
    return "answer", unit, note


def _answers(request: Heard, answer: Heard) -> bool:
    """Tell whether a sound frame of a meter answers the request that is waiting."""
    if request.protocol != answer.protocol:
        return False
    if request.protocol == "modbus":
        return request.plain[1] == answer.plain[1] & 0x7F and request.plain[0] in {answer.plain[0], 0}
    if request.protocol == "cjt188":
        asked, told = cjt188.parse_frame(request.data), cjt188.parse_frame(answer.data)
        assert asked is not None
        assert told is not None
        same = asked.address in (cjt188.BROADCAST, told.address)
        return same and asked.request_control == told.request_control and asked.serial == told.serial
    if answer.kind == "acknowledgement":
        return True
    asked_of, told_by = mbus.parse_frame(request.data), mbus.parse_frame(answer.data)
    assert asked_of is not None
    assert told_by is not None
    if asked_of.function != mbus.REQUEST_DATA:
        return False
    return asked_of.address in (mbus.SELECTED, mbus.ANY_METER, told_by.address)


def _wants_data(request: Heard) -> bool:
    frame = mbus.parse_frame(request.data) if request.protocol == "mbus" else None
    return frame is None or frame.function == mbus.REQUEST_DATA


def _means_anybody(request: Heard) -> bool:
    """Tell whether the request is to whatever meter is on the line; its answer then says who that is."""
    return request.station in {"0", cjt188.BROADCAST, str(mbus.ANY_METER)}


def _is_broadcast(request: Heard) -> bool:
    """Tell whether nobody needs to answer."""
    return request.station == ("0" if request.protocol == "modbus" else str(mbus.BROADCAST))
