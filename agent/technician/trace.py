"""What really went over the wire, and when: a port that remembers, wrapped around the one that a `Line` opened."""

import time
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from gateway.line import LineSettings, open_port

# Bytes that follow one another within this time are one burst; USB adapters deliver every 16 ms, a line stalls at most
# for `gateway.line.BURST_GRACE_S`.
BURST_S: Final = 0.1
# A line that babbles for minutes must not fill the memory; what is beyond is counted, not kept.
BYTES_MAX: Final = 64 * 1024


class Frame(msgspec.Struct, kw_only=True):
    """Bytes that went one way without a pause; `at_ms` and `until_ms` of the first and the last, since the start."""

    direction: Literal["tx", "rx"]
    at_ms: int
    until_ms: int
    data: bytes

    @property
    def mark(self) -> Literal[">>", "<<"]:
        """`>>` to the meter, `<<` from it."""
        return ">>" if self.direction == "tx" else "<<"


class Trace:
    """Collects frames; hand `opener` to a `Line`. Times count from the last `restart`.

    Bytes that follow one another within `burst_s` are one frame.
    """

    def __init__(
        self,
        *,
        burst_s: float = BURST_S,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.frames: list[Frame] = []
        self.bytes_forgotten = 0
        self._burst_s = burst_s
        self._opener = opener
        self._monotonic = monotonic
        self._began_s = monotonic()
        self._bytes = 0

    def opener(self, settings: LineSettings) -> Any:
        """Open the port and return one that remembers. Raises what the real opener raises."""
        return _Port(self._opener(settings), self)

    def restart(self) -> None:
        """Forget everything; now is 0."""
        self.frames, self.bytes_forgotten, self._bytes = [], 0, 0
        self._began_s = self._monotonic()

    def take(self) -> list[Frame]:
        """Return the frames so far, and forget them."""
        taken, self.frames, self._bytes = self.frames, [], 0
        return taken

    def now_ms(self) -> int:
        """Return the milliseconds since the last restart."""
        return round((self._monotonic() - self._began_s) * 1000)

    def add(self, direction: Literal["tx", "rx"], data: bytes) -> None:
        """Note bytes that went or came just now."""
        if not data:
            return
        if self._bytes + len(data) > BYTES_MAX:
            self.bytes_forgotten += len(data)
            return
        self._bytes += len(data)
        now_ms = self.now_ms()
        last = self.frames[-1] if self.frames else None
        if last and last.direction == direction == "rx" and now_ms - last.until_ms <= self._burst_s * 1000:
            last.data += data
            last.until_ms = now_ms
        else:
            self.frames.append(Frame(direction=direction, at_ms=now_ms, until_ms=now_ms, data=data))


class _Port:
    """A serial port as `Line` sees it; everything but reading and writing is the real one's business."""

    def __init__(self, port: Any, trace: Trace) -> None:
        self._port = port
        self._trace = trace

    def read(self, size: int = 1) -> bytes:
        data: bytes = self._port.read(size)
        self._trace.add("rx", data)
        return data

    def write(self, data: bytes) -> Any:
        self._trace.add("tx", bytes(data))
        return self._port.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)
