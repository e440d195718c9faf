"""A serial line in virtual time: a clock that only the line itself moves, and a port whose bytes come when told.

It behaves as pyserial does: `read(n)` returns what is there, or blocks until a byte or READ_S.
"""

import heapq
import itertools

import minimalmodbus
import serial

from gateway.line import READ_S, Line, LineSettings


class VirtualClock:
    """Seconds that pass when somebody waits."""

    def __init__(self):
        self.now_s = 0.0

    def monotonic(self):
        return self.now_s

    def pause(self, seconds):
        self.now_s += seconds

    def advance_to(self, now_s):
        self.now_s = max(self.now_s, now_s)


class VirtualPort:
    """One end of a line. Everything that happens is told to `tell`, a function of a mark and bytes or text."""

    def __init__(self, clock, *, tell=lambda mark, what: None):
        self.clock = clock
        self.on_write = lambda data: None
        self.is_open = False
        self._tell = tell
        self._arrivals = []
        self._order = itertools.count()
        self._buffer = bytearray()
        self._outages = []  # (from, to)

    def arrive(self, at_s, data):
        """Let bytes come at an instant."""
        heapq.heappush(self._arrivals, (at_s, next(self._order), bytes(data)))

    def go_away(self, from_s, to_s):
        """Unplug the adapter for a while."""
        self._outages.append((from_s, to_s))

    def open(self, _settings):
        self._deliver()
        self._check("could not open port: [Errno 2] No such file or directory")
        self.is_open = True
        return self

    def close(self):
        self.is_open = False
        self._buffer.clear()  # the driver forgets

    def write(self, data):
        self._deliver()
        self._check("write failed: [Errno 5] Input/output error")
        self._tell(">>", bytes(data))
        self.on_write(bytes(data))

    @property
    def in_waiting(self):
        self._deliver()
        self._check("[Errno 5] Input/output error")
        return len(self._buffer)

    def read(self, size):
        until_s = self.clock.now_s + READ_S
        self._deliver()
        while not self._buffer:
            self._check("device reports readiness to read but returned no data")
            next_s = min(
                [at_s for at_s, _, _ in self._arrivals[:1]]
                + [from_s for from_s, _ in self._outages if from_s > self.clock.now_s],
                default=until_s,
            )
            if next_s >= until_s:
                self.clock.advance_to(until_s)
                break
            self.clock.advance_to(next_s)
            self._deliver()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _deliver(self):
        while self._arrivals and self._arrivals[0][0] <= self.clock.now_s:
            at_s, _, data = heapq.heappop(self._arrivals)
            if self.is_open and not self._is_away(at_s):
                self._buffer += data

    def _is_away(self, at_s):
        return any(from_s <= at_s < to_s for from_s, to_s in self._outages)

    def _check(self, message):
        if self._is_away(self.clock.now_s):
            raise serial.SerialException(message)


def virtual_line(port, *, first_silence_s=0.0, **settings):
    """A Line on a virtual port."""
    settings = LineSettings(**{"name": "rs485-1", "port": "/dev/virtual", **settings})
    return Line(
        settings,
        opener=port.open,
        monotonic=port.clock.monotonic,
        pause=port.clock.pause,
        first_silence_s=first_silence_s,
    )


class NeverRead(dict):
    """What minimalmodbus remembers of earlier reads: nothing."""

    def get(self, *_):
        return float("-inf")


def skip_real_pauses(monkeypatch):
    """Keep minimalmodbus from pausing in real time between frames; the line keeps its own silence in virtual time."""
    monkeypatch.setattr(minimalmodbus, "_latest_read_times", NeverRead())
