"""Cuts bytes into the frames of all protocols, and what is none: at once, or as they come from a line. Pure.

    bytes ──> cut ──> Cut: a sound frame of one protocol, or a run of bytes that are none
    bytes with their times ──> Cutter ──> Piece: the same with times

A frame is reported as soon as it is whole. Bytes that could still become one wait for more; a pause ends the wait.
"""

from typing import Final, Literal

import msgspec

from agent.technician import explain_cjt188, explain_mbus, modbus_wire
from protocols import cjt188, modbus

Protocol = Literal["modbus", "cjt188", "mbus", ""]
# Where bytes come from. Modbus TCP has no checksum: on a line nothing is taken for it, a TCP connection holds nothing
# else, and what somebody pasted is it where it is from the first byte on.
Source = Literal["line", "tcp", "paste"]
# USB adapters deliver in bursts (FTDI: 16 ms) and the scheduler of a busy box adds to that; no frame stalls longer.
PAUSE_MS: Final = 100.0
# The longest frame of all protocols, Modbus ASCII, has 513 bytes. What waits longer to become a frame will not.
WAITING_BYTES_MAX: Final = 1024


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes `start` to before `end` that are one frame, or none (`protocol` is empty then).

    `plain` is what the protocol's own module understands: Modbus as an RTU frame whatever the framing, else the bytes.
    """

    start: int
    end: int
    protocol: Protocol = ""
    framing: modbus_wire.Framing | None = None  # of Modbus
    plain: bytes = b""
    lead: int = 0  # so many bytes before `start` are the frame's preamble


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A Cut with its bytes. `at_ms` and `until_ms` are when the first of `data` began and the last ended."""

    protocol: Protocol
    framing: modbus_wire.Framing | None
    at_ms: float
    until_ms: float
    data: bytes
    plain: bytes
    lead: bytes = b""


def cut(data: bytes, *, source: Source, is_final: bool = True) -> list[Cut]:
    """Return the frames in some bytes and what stands between them, in order.

    Without `is_final` it ends where bytes that may still become a frame begin.
    """
    cuts: list[Cut] = []
    rest_at = at = 0
    while at < len(data):
        # In a paste, Modbus TCP begins with the first byte or behind a frame of its own.
        may_be_tcp = at == rest_at == (cuts[-1].end if cuts and cuts[-1].framing == "tcp" else 0)
        found = _sound(data, at, source, may_be_tcp=may_be_tcp)
        if found is not None:
            lead = _preamble(data, rest_at, at) if found.protocol == "cjt188" else 0
            cuts += _stray(data, rest_at, at - lead)
            cuts.append(msgspec.structs.replace(found, lead=lead))
            rest_at = at = found.end
        elif not is_final and _may_grow(data, at, source):
            return cuts
        else:
            at += 1
    return cuts + _stray(data, rest_at, len(data)) if is_final else cuts


class Cutter:
    """One line. `byte_ms` is the time of a byte on the wire, from which the beginning of a burst is reckoned back."""

    def __init__(self, *, byte_ms: float, source: Source = "line") -> None:
        self._byte_ms = byte_ms
        self._source = source
        self._data = bytearray()
        self._times_ms: list[float] = []  # when each byte ended
        self._last_ms = float("-inf")

    def feed(self, at_ms: float, data: bytes) -> list[Piece]:
        """Take bytes that were there at an instant; return what has become clear."""
        pieces = self.tick(at_ms - (len(data) - 1) * self._byte_ms)
        first_ms = max(at_ms - (len(data) - 1) * self._byte_ms, self._last_ms)
        step_ms = (at_ms - first_ms) / max(1, len(data) - 1)
        self._times_ms += [first_ms + index * step_ms for index in range(len(data))]
        self._data += data
        if data:
            self._last_ms = at_ms
        return pieces + self._cut(is_final=len(self._data) > WAITING_BYTES_MAX)

    def tick(self, now_ms: float) -> list[Piece]:
        """Say what time it is while nothing comes: after a pause, what is not whole will not become so."""
        return self.finish() if now_ms - self._last_ms > PAUSE_MS else []

    def finish(self) -> list[Piece]:
        """Return what is left: nothing more comes."""
        return self._cut(is_final=True)

    def _cut(self, *, is_final: bool) -> list[Piece]:
        cuts = cut(bytes(self._data), source=self._source, is_final=is_final)
        pieces = [self._piece(one) for one in cuts]
        if cuts:
            del self._data[: cuts[-1].end], self._times_ms[: cuts[-1].end]
        return pieces

    def _piece(self, one: Cut) -> Piece:
        return Piece(
            protocol=one.protocol,
            framing=one.framing,
            at_ms=self._times_ms[one.start] - self._byte_ms,
            until_ms=self._times_ms[one.end - 1],
            data=bytes(self._data[one.start : one.end]),
            plain=one.plain,
            lead=bytes(self._data[one.start - one.lead : one.start]),
        )


def _sound(data: bytes, at: int, source: Source, *, may_be_tcp: bool) -> Cut | None:
    """Return the sound frame that begins there. Sixteen bits of checksum come before eight, and eight before none."""
    if source != "tcp":
        if found := modbus_wire.rtu_at(data, at):
            return _modbus(at, found, "rtu")
        if found := modbus_wire.ascii_at(data, at):
            return _modbus(at, found, "ascii")
        if length := explain_mbus.match(data, at):
            return Cut(start=at, end=at + length, protocol="mbus", plain=data[at : at + length])
        if length := explain_cjt188.match(data, at):
            return Cut(start=at, end=at + length, protocol="cjt188", plain=data[at : at + length])
    if source == "tcp" or (source == "paste" and may_be_tcp):
        found = modbus_wire.tcp_at(data, at)
        return _modbus(at, found, "tcp") if found else None
    return None


def _modbus(at: int, found: modbus_wire.Found, framing: modbus_wire.Framing) -> Cut:
    return Cut(start=at, end=at + found.length, protocol="modbus", framing=framing, plain=found.rtu)


def _preamble(data: bytes, rest_at: int, at: int) -> int:
    """Return how many preamble bytes stand right before a frame."""
    between = data[rest_at:at]
    return len(between) - len(between.rstrip(bytes((cjt188.PREAMBLE,))))


def _stray(data: bytes, start: int, end: int) -> list[Cut]:
    """Return the bytes that are no frame, where there are any."""
    return [Cut(start=start, end=end, plain=data[start:end])] if end > start else []


def _may_grow(data: bytes, at: int, source: Source) -> bool:
    """Tell whether what stands there can be the beginning of a frame of which bytes are still to come."""
    size = len(data) - at
    if source == "tcp":
        return size < 9 or bool(modbus_wire.tcp_missing(data, at))
    if data[at] == 0x10 and size < 5:
        return True
    if data[at] == cjt188.START and (size < 4 or explain_mbus.missing_bytes(data, at)):
        return True
    if data[at] == cjt188.START and (size < cjt188.HEADER_BYTES or explain_cjt188.missing_bytes(data, at)):
        return True
    if size < 3:  # also what keeps Modbus ASCII together: each of its characters may be a unit
        return data[at] <= modbus.UNIT_MAX
    if size < 7 and data[at + 1] in {15, 16} and data[at] <= modbus.UNIT_MAX:
        return True
    return any(length > size for length in modbus_wire.lengths(data, at))
