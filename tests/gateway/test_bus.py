"""A bus: callers queue up for one line, and one thread touches it."""

import asyncio
import threading
import time

import pytest
from partners.dialogue import make_reader

from gateway.bus import FIRST_SILENCE_S, Bus
from gateway.line import Line, LineSettings
from protocols import modbus
from protocols.errors import NoResponse, PortLost

SETTINGS = LineSettings(name="rs485-1", port="scripted")


class Port:
    """A port in real time whose meter answers at once; it notes the threads that touch it."""

    def __init__(self, *, silent=False):
        self.threads = set()
        self.closed = 0
        self.units = []
        self._silent = silent
        self._buffer = b""
        self._reader = modbus.RequestReader()

    def open(self, _):
        self.threads.add(threading.current_thread().name)
        return self

    def write(self, data):
        self.threads.add(threading.current_thread().name)
        request = self._reader.feed(data)
        self.units.append(request.unit)
        if not self._silent:
            self._buffer += modbus.encode_response(request, [0, request.unit])

    @property
    def in_waiting(self):
        return len(self._buffer)

    def read(self, size):
        if not self._buffer:
            time.sleep(0.002)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def close(self):
        self.closed += 1


async def test_callers_are_served_in_their_order_by_one_thread():
    port = Port()
    bus = Bus(SETTINGS, opener=port.open)
    readers = [make_reader("counter", str(unit), timeout_ms=50) for unit in range(1, 9)]
    volumes = await asyncio.gather(*(bus.read(reader) for reader in readers))
    assert [measurement.volume_ml for measurement in volumes] == list(range(1, 9)) == port.units
    assert len(port.threads) == 1
    assert port.threads.pop().startswith("bus-rs485-1")
    bus.close()
    assert port.closed == 1


async def test_errors_reach_the_caller_and_the_next_one_is_served():
    def refuse(_):
        raise OSError("no such port")

    bus = Bus(SETTINGS, opener=refuse)
    for _ in range(2):
        with pytest.raises(PortLost):
            await bus.read(make_reader("counter", "1"))
    bus.close()


async def test_a_cancelled_caller_leaves_the_line_in_order():
    port = Port(silent=True)
    bus = Bus(SETTINGS, opener=port.open)
    impatient = asyncio.create_task(bus.read(make_reader("counter", "1", timeout_ms=50)))
    await asyncio.sleep(0.01)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    port._silent = False
    assert (await bus.read(make_reader("counter", "2", timeout_ms=50))).volume_ml == 2
    bus.close()


async def test_close_waits_for_the_exchange_under_way_and_refuses_the_rest():
    port = Port(silent=True)
    bus = Bus(SETTINGS, opener=port.open)
    running = asyncio.create_task(bus.read(make_reader("counter", "1", timeout_ms=50)))
    waiting = asyncio.create_task(bus.read(make_reader("counter", "2", timeout_ms=50)))
    await asyncio.sleep(0.02)
    began_s = time.monotonic()
    await asyncio.to_thread(bus.close)
    assert time.monotonic() - began_s < FIRST_SILENCE_S + 1
    assert port.closed == 1
    with pytest.raises(NoResponse):
        await running
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert port.units == [1]


def test_what_the_predecessor_asked_last_is_not_our_answer():
    """A meter that is constantly 1.3 s late, and a service that restarts: its late reply meets our first request."""
    assert FIRST_SILENCE_S > 1.3
    clock = VirtualClock()
    port = LatePort(clock, reply=bytes.fromhex("11 03 08 00 00 00 00 00 01 F0 89 15 71"), at_s=1.3)
    line = Line(
        LineSettings(name="b", port="x"),
        opener=lambda _: port,
        monotonic=clock.now,
        pause=clock.pause,
        first_silence_s=FIRST_SILENCE_S,
    )
    request = modbus.ReadRequest(unit=17, function=3, address=0x204, count=4)
    with pytest.raises(NoResponse):
        line.exchange(request, timeout_ms=100)
    assert line.bytes_discarded == len(port.reply)


class VirtualClock:
    def __init__(self):
        self.time_s = 0.0

    def now(self):
        return self.time_s

    def pause(self, seconds):
        self.time_s += seconds


class LatePort:
    """Hears nothing that we send; a reply to somebody else's request comes at its time."""

    def __init__(self, clock, *, reply, at_s):
        self.reply, self._clock, self._at_s, self._left = reply, clock, at_s, reply

    @property
    def in_waiting(self):
        return len(self._left) if self._clock.now() >= self._at_s else 0

    def read(self, size):
        if not self.in_waiting:
            self._clock.pause(0.02)
            return b""
        data, self._left = self._left[:size], self._left[size:]
        return data

    def write(self, data):
        return len(data)

    def close(self): ...
