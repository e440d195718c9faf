"""Cuts a stream of bytes from a line into the frames of all protocols, and what is none. Pure: it is told the time.

    bytes with their times ──> Cutter ──> Piece: a sound frame of one protocol, or a run of bytes that are none

A frame is reported as soon as it is whole. Bytes that could still become one wait for more; a pause ends the wait.
"""

from typing import Final, Literal

import msgspec

from agent.technician import explain_cjt188, explain_mbus, explain_modbus
from protocols import cjt188, modbus

Wire = Literal["modbus", "cjt188", "mbus", ""]
# USB adapters deliver in bursts (FTDI: 16 ms) and the scheduler of a busy box adds to that; no frame stalls longer.
PAUSE_MS: Final = 100.0
# The longest frame of all protocols has 263 bytes. What waits longer to become a frame will not.
WAITING_BYTES_MAX: Final = 1024


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that belong together. `at_ms` and `until_ms` are when the first of `data` began and the last ended."""

    protocol: Wire  # empty for bytes that are no frame
    at_ms: float
    until_ms: float
    data: bytes
    lead: bytes = b""  # the preamble in front of the frame


class Cutter:
    """One line. `byte_ms` is the time of a byte on the wire, from which the beginning of a burst is reckoned back."""

    def __init__(self, *, byte_ms: float) -> None:
        self._byte_ms = byte_ms
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
        pieces: list[Piece] = []
        data = bytes(self._data)
        rest_at = at = 0
        while at < len(data):
            protocol, length = _sound(data, at)
            if length:
                lead_at = at
                while protocol == "cjt188" and lead_at > rest_at and data[lead_at - 1] == cjt188.PREAMBLE:
                    lead_at -= 1
                pieces += self._stray(rest_at, lead_at)
                pieces.append(self._piece(protocol, at, at + length, lead=data[lead_at:at]))
                rest_at = at = at + length
            elif not is_final and _may_grow(data, at):
                break
            else:
                at += 1
        if is_final:
            pieces += self._stray(rest_at, len(data))
            rest_at = len(data)
        del self._data[:rest_at], self._times_ms[:rest_at]
        return pieces

    def _stray(self, start: int, end: int) -> list[Piece]:
        """Return the bytes that are no frame as a piece, where there are any."""
        return [self._piece("", start, end)] if end > start else []

    def _piece(self, protocol: Wire, start: int, end: int, *, lead: bytes = b"") -> Piece:
        return Piece(
            protocol=protocol,
            at_ms=self._times_ms[start] - self._byte_ms,
            until_ms=self._times_ms[end - 1],
            data=bytes(self._data[start:end]),
            lead=lead,
        )


def _sound(data: bytes, at: int) -> tuple[Wire, int]:
    """Return protocol and length of the sound frame that begins there. Sixteen bits of checksum come before eight."""
    if length := explain_modbus.match(data, at):
        return "modbus", length
    if length := explain_mbus.match(data, at):
        return "mbus", length
    if length := explain_cjt188.match(data, at):
        return "cjt188", length
    return "", 0


def _may_grow(data: bytes, at: int) -> bool:
    """Tell whether what stands there can be the beginning of a frame of which bytes are still to come."""
    size = len(data) - at
    if data[at] == 0x10 and size < 5:
        return True
    if data[at] == cjt188.START and (size < 4 or explain_mbus.missing_bytes(data, at)):
        return True
    if data[at] == cjt188.START and (size < cjt188.HEADER_BYTES or explain_cjt188.missing_bytes(data, at)):
        return True
    if size < 3:
        return data[at] <= modbus.UNIT_MAX
    if size < 7 and data[at + 1] in {15, 16} and data[at] <= modbus.UNIT_MAX:
        return True
    return any(length > size for length in explain_modbus.lengths(data, at))
