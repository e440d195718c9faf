"""Overhearing a line: every frame with its time, who answers whom and how fast, and what goes wrong. Never sends.

The core is pure: it is fed (milliseconds, bytes) and knows no port, so a recorded stream gives what the live one gave.

    master   >> request ........ >> request            a station is whoever was asked: a Modbus unit, a CJ/T 188
    meter          << answer            (silence)      number, an M-Bus address
                 |latency|
"""

import statistics
from collections import deque
from typing import Final, Literal

import msgspec

from agent.technician import modbus_wire, pairing
from agent.technician.cutting import Cutter, Piece, Protocol, Source
from agent.technician.fits import Fit, Guesser, built_in
from agent.technician.words import Words
from protocols import cjt188, mbus, modbus

Kind = Literal["request", "answer", "refusal", "acknowledgement", "damaged", "noise"]
# A line that is overheard for days must not fill the memory; the latest are kept.
LATENCIES_MAX: Final = 10_000
STATIONS_MAX: Final = 500
REQUESTS_TIMED: Final = 100
UNANSWERED_MAX: Final = 32
# An answer that is later than this is nobody's. No master waits as long, and no option of ours lets one.
LATE_MS_MAX: Final = 10_000.0
UNKNOWN_BYTES_DAMAGED: Final = 4  # fewer than the shortest answer has are noise and not a damaged answer

LATE: Final = Words("迟到的应答：主机已在问别的", "a late answer: the master asked on")
WRITES: Final = Words("有人在写表！", "somebody WRITES to a meter!")
UNCLEAR: Final = Words("不明，或为迟到", "unclear, maybe late")  # of an answer that fits an earlier request as well
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
    """What was overheard of one meter. `silent` requests got no answer before the next one.

    `unclear` answers may be to an earlier request; `unselected` ones came when another M-Bus meter was selected.
    """

    protocol: Protocol
    address: str
    requests: int = 0
    answers: int = 0
    refusals: int = 0
    damaged: int = 0
    late: int = 0
    silent: int = 0
    unclear: int = 0
    unselected: int = 0
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
        self._unanswered: deque[_Asked] = deque(maxlen=UNANSWERED_MAX)  # the latest; their answers may come late
        self._selection = pairing.Selection()

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
            frame = mbus.parse_frame(piece.data)
            assert frame is not None
            address = self._selection.station_of(frame)
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

    def _request(self, heard: Heard) -> None:
        self._give_up_waiting()
        station = self._station(heard.protocol, heard.station)
        station.requests += 1
        station.asked_ms.append(heard.at_ms)
        del station.asked_ms[:-REQUESTS_TIMED]
        self._asked = _Asked(heard, station)
        self._guesser.asked(heard.protocol, heard.plain, at_ms=heard.at_ms)

    def _answer(self, heard: Heard) -> None:
        asked = self._asked
        if asked is None or not _may_answer(asked, heard):
            self._unpaired(heard)
            return
        self._asked = None
        heard.station, note = self._who_answers(asked.heard, heard)
        heard.note = note or heard.note
        station = self._credited(asked, heard)
        station.unselected += note not in (None, pairing.NOBODY_SELECTED)
        if heard.kind == "answer" and self._is_unclear(asked, heard.at_ms):
            heard.note = UNCLEAR
            station.answers += 1
            station.unclear += 1
            return
        heard.latency_ms = max(0.0, heard.at_ms - asked.heard.until_ms)
        station.latencies_ms.append(heard.latency_ms)
        del station.latencies_ms[:-LATENCIES_MAX]
        if heard.kind == "refusal":
            station.refusals += 1
            if not pairing.is_final(heard.protocol, heard.plain):
                self._unanswered.append(asked)
            return
        station.answers += 1
        if heard.kind == "answer" and not _is_nobody(heard):
            heard.fits = self._guesser.fits(heard.protocol, asked.heard.plain, heard.plain)
            station.fits = heard.fits or station.fits

    def _unpaired(self, heard: Heard) -> None:
        """Note an answer that is not to the request that waits: a late one to an earlier request, or nobody's."""
        late = next((one for one in self._still_possible(heard.at_ms) if _may_answer(one, heard)), None)
        heard.note = NOBODY_ASKED if late is None else LATE
        if late is not None:
            self._unanswered.remove(late)
            heard.station, _ = self._who_answers(late.heard, heard)
        self._station(heard.protocol, heard.station).late += late is not None

    def _still_possible(self, at_ms: float) -> list[_Asked]:
        """Return the requests whose answers may still come, the oldest first."""
        return [one for one in self._unanswered if at_ms - one.heard.until_ms <= LATE_MS_MAX]

    def _is_unclear(self, asked: _Asked, at_ms: float) -> bool:
        """Tell whether an answer that fits a request would fit an earlier one, for something else, just as well."""
        return any(
            one.heard.protocol == asked.heard.protocol
            and pairing.differ_unseen(asked.heard.protocol, one.heard.plain, asked.heard.plain)
            for one in self._still_possible(at_ms)
        )

    def _who_answers(self, request: Heard, heard: Heard) -> tuple[str, Words | None]:
        """Return whose the answer to a request is, and what is wrong with that."""
        if heard.kind == "acknowledgement":
            frame = mbus.parse_frame(request.data)
            if frame is not None and frame.ci == mbus.SELECT:
                self._selection.acknowledge(frame)
            return request.station, None
        if request.protocol == "mbus":
            asked, told = mbus.parse_frame(request.data), mbus.parse_frame(heard.data)
            assert asked is not None
            assert told is not None
            return self._selection.owner_of(told) if asked.address == mbus.SELECTED else (heard.station, None)
        return heard.station, None

    def _credited(self, asked: _Asked, heard: Heard) -> Station:
        """Return the station that answered. It may be another than was asked: a request to any meter has a name now."""
        if heard.station == asked.station.address:
            return asked.station
        asked.station.requests -= 1
        del asked.station.asked_ms[-1:]
        if not (asked.station.requests or asked.station.answers or asked.station.late or asked.station.damaged):
            self.stations.pop((asked.heard.protocol, asked.station.address), None)
        station = self._station(heard.protocol, heard.station)
        station.requests += 1
        station.asked_ms.append(asked.heard.at_ms)
        return station

    def _no_frame(self, piece: Piece) -> Heard:
        heard = Heard(at_ms=piece.at_ms, until_ms=piece.until_ms, protocol="", kind="noise", data=piece.data)
        asked = self._asked
        if asked and asked.heard.protocol == "mbus" and piece.data == bytes((mbus.ACKNOWLEDGEMENT,)):
            heard.kind, heard.protocol, heard.station = "acknowledgement", "mbus", asked.heard.station
            self.totals.frames += 1
            self._answer(heard)
            return heard
        self.totals.unknown_bytes += len(piece.data)
        if asked and len(piece.data) >= UNKNOWN_BYTES_DAMAGED:
            # Whoever was asked answered, and it was damaged on its way (or two answered at once).
            heard.kind, heard.protocol, heard.station = "damaged", asked.heard.protocol, asked.station.address
            heard.latency_ms = max(0.0, heard.at_ms - asked.heard.until_ms)
            asked.station.damaged += 1
            self.totals.damaged += 1
            self._unanswered.append(asked)  # what was noise may be followed by the answer
            self._asked = None
        return heard

    def _give_up_waiting(self) -> None:
        if self._asked:
            self._asked.station.silent += not _is_broadcast(self._asked.heard)
            self._unanswered.append(self._asked)
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
    if telegram.is_request:  # a selection writes nothing
        is_write = telegram.function == mbus.SEND_DATA and telegram.ci != mbus.SELECT
        return "request", str(telegram.address), WRITES if is_write else None
    return "refusal" if telegram.ci == 0x70 else "answer", str(telegram.address), None


def _role_of_modbus(data: bytes, asked: _Asked | None) -> tuple[Kind, str, Words | None]:
    unit, function = str(data[0]), data[1] & 0x7F
    note = WRITES if function in modbus_wire.WRITES else None
    if data[1] & 0x80:
        return "refusal", unit, note
    may_answer = asked is not None and asked.heard.protocol == "modbus"
    may_answer = may_answer and asked is not None and pairing.answers("modbus", asked.heard.plain, data)
    if function in modbus_wire.WRITES:  # these are answered by what looks like a request
        return "answer" if may_answer else "request", unit, note
    if modbus_wire.is_request(data) or (len(data) == modbus.REQUEST_BYTES and not may_answer):
        return "request", unit, note
    return "answer", unit, note


def _may_answer(asked: _Asked, heard: Heard) -> bool:
    """Tell whether what a meter sent can be the answer to a request."""
    protocol = asked.heard.protocol
    return protocol == heard.protocol and pairing.answers(protocol, asked.heard.plain, heard.plain or heard.data)


def _is_nobody(heard: Heard) -> bool:
    """Tell whether an M-Bus telegram does not say whose it is, and nobody was selected."""
    return heard.protocol == "mbus" and heard.station == str(mbus.SELECTED)


def _is_broadcast(request: Heard) -> bool:
    """Tell whether nobody needs to answer."""
    return request.station == ("0" if request.protocol == "modbus" else str(mbus.BROADCAST))
