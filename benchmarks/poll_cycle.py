"""How long it takes to read 60 meters on one line, against what the line itself needs at least.

    limit = per meter: request on the wire + the meter's own delay + answer on the wire + 3.5 characters of silence

`shuiwang simulate` serves the line from a process of its own: a pty on which bytes travel at the pace of the baud
rate. Everybody who is measured reads the same meters over the same port, in turns, and what he reads is compared with
what the meters show. A ratio is limit / time of a cycle: 1 is a line that is never idle.
"""

import asyncio
import contextlib
import ctypes
import ctypes.util
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import minimalmodbus
import msgspec
import serial

sys.path.insert(0, str(Path(__file__).parents[1]))

from measuring import Report, arguments, fail, run, simulated_line

from agent.judge import Judge, Rule
from agent.pipeline import Pipeline
from agent.poller import SKIP_CYCLES_MAX, BusPoller, PolledMeter
from agent.service import StoreThread
from gateway.bus import Bus
from gateway.clock import SystemClock
from gateway.line import LineSettings
from gateway.meters import MeterReader
from gateway.owner import OwnerThread
from gateway.store import Store
from gateway.ulid import new_ulid
from protocols import modbus, profile
from protocols.errors import MeterError
from protocols.reading import Moment, Reading

TARGET = 0.95
BAUDRATE = 9600
BYTE_S = 10 / BAUDRATE  # 8N1
SILENCE_S = 3.5 * BYTE_S
# `usw-dn15-40`: the forward total, 64 bits in millilitres.
ADDRESS, COUNT = 0x204, 4
ANSWER_BYTES = 5 + 2 * COUNT
DELAY_MS = 5
TIMEOUT_MS = 500  # of the profile
METER = """
[[meter]]
profile = "usw-dn15-40"
address = "{unit}"
start_m3 = "{unit}.123456"
usage = []
answer_delay_ms = {delay_ms}
"""


class Taken(NamedTuple):
    """What one cycle took; CPU time of the whole process."""

    seconds: float
    cpu_s: float


class Stopwatch:
    """Takes the time from its making on."""

    def __init__(self) -> None:
        self._began_s, self._began_cpu_s = time.perf_counter(), time.process_time()

    def taken(self) -> Taken:
        return Taken(time.perf_counter() - self._began_s, time.process_time() - self._began_cpu_s)


class Size(NamedTuple):
    """How much is measured."""

    meters: int
    dead: int
    rounds: int  # everybody's turn comes so often …
    cycles: int  # … and lasts so many cycles

    def limit_s(self, meters: int) -> float:
        """Return the least time in which the line can carry one cycle."""
        bytes_each = modbus.REQUEST_BYTES + ANSWER_BYTES
        return meters * (bytes_each * BYTE_S + DELAY_MS / 1000 + SILENCE_S)


def shown_ml(unit: int) -> int:
    """Return what a meter of the village shows."""
    return unit * 1_000_000 + 123_456


def volume_of(registers: Sequence[int]) -> int:
    return int.from_bytes(b"".join(register.to_bytes(2, "big") for register in registers), "big")


# -- peers: each opens the port, and gives a function that reads one unit or raises ----------------------------------

ReadUnit = Callable[[int], int]


@contextlib.contextmanager
def bare(port: str) -> Iterator[ReadUnit]:
    """No checks, no library but pyserial: what this set-up (pty, simulator, scheduler) can reach at all."""
    with serial.Serial(port, BAUDRATE, timeout=TIMEOUT_MS / 1000, exclusive=True) as line:

        def read(unit: int) -> int:
            line.write(modbus.ReadRequest(unit=unit, function=3, address=ADDRESS, count=COUNT).encode())
            answer = line.read(ANSWER_BYTES)
            time.sleep(SILENCE_S)
            return int.from_bytes(answer[3:-2], "big")

        yield read


@contextlib.contextmanager
def plain_minimalmodbus(port: str) -> Iterator[ReadUnit]:
    """The library that we use, without our guard."""
    with serial.Serial(port, BAUDRATE, timeout=TIMEOUT_MS / 1000, exclusive=True) as line:
        yield lambda unit: volume_of(minimalmodbus.Instrument(line, unit).read_registers(ADDRESS, COUNT))


@contextlib.contextmanager
def pymodbus_client(port: str) -> Iterator[ReadUnit]:
    """Its synchronous serial client, one attempt, our timeout."""
    from pymodbus.client import ModbusSerialClient

    client = ModbusSerialClient(port, baudrate=BAUDRATE, parity="N", timeout=TIMEOUT_MS / 1000, retries=0)
    if not client.connect():
        fail(f"pymodbus cannot open {port}")
    try:
        yield lambda unit: volume_of(client.read_holding_registers(ADDRESS, count=COUNT, device_id=unit).registers)
    finally:
        client.close()


@contextlib.contextmanager
def libmodbus(port: str) -> Iterator[ReadUnit]:
    """The C library behind mbpoll, called through ctypes: in a loop of its own mbpoll would sleep between meters."""
    library = ctypes.CDLL(ctypes.util.find_library("modbus"))
    library.modbus_new_rtu.restype = ctypes.c_void_p
    library.modbus_new_rtu.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char, ctypes.c_int, ctypes.c_int]
    context = ctypes.c_void_p(library.modbus_new_rtu(port.encode(), BAUDRATE, b"N", 8, 1))
    if library.modbus_connect(context) != 0:
        fail(f"libmodbus cannot open {port}")
    registers = (ctypes.c_uint16 * COUNT)()

    def read(unit: int) -> int:
        library.modbus_set_slave(context, unit)
        if library.modbus_read_registers(context, ADDRESS, COUNT, registers) != COUNT:
            raise OSError(f"unit {unit} does not answer")
        return volume_of(registers)

    try:
        yield read
    finally:
        library.modbus_close(context)
        library.modbus_free(context)


Peer = Callable[[str], contextlib.AbstractContextManager[ReadUnit]]


def time_peer(peer: Peer, port: str, units: Sequence[int], cycles: int) -> list[Taken]:
    """Return how long each cycle took."""
    times = []
    with peer(port) as read:
        read(units[0])  # warm
        time.sleep(SILENCE_S)
        for _ in range(cycles):
            watch = Stopwatch()
            for unit in units:
                if read(unit) != shown_ml(unit):
                    fail(f"{peer.__name__} reads a wrong value of unit {unit}")
            times.append(watch.taken())
    return times


def time_peer_with_dead(peer: Peer, port: str, units: Sequence[int], dead: Sequence[int], cycles: int) -> list[Taken]:
    """Return how long each cycle took where some units never answer."""
    times = []
    with peer(port) as read:
        for _ in range(cycles):
            watch = Stopwatch()
            for unit in (*units, *dead):
                with contextlib.suppress(Exception):  # whatever a library calls silence
                    read(unit)
            times.append(watch.taken())
    return times


# -- our own path ----------------------------------------------------------------------------------------------------


def settings_of(port: str) -> LineSettings:
    return LineSettings(name="rs485-1", port=port, baudrate=BAUDRATE)


def reader_of(unit: int) -> MeterReader:
    usw = profile.load("usw-dn15-40")
    return MeterReader(profile=usw, address=unit, timeout_ms=TIMEOUT_MS, retries=usw.timing.retries)


async def time_bus(port: str, units: Sequence[int], cycles: int) -> list[Taken]:
    """Return the times of cycles over gateway.bus and gateway.meters, awaited one by one."""
    bus = Bus(settings_of(port))
    readers = {unit: reader_of(unit) for unit in units}
    times = []
    try:
        await bus.read(readers[units[0]])  # opens the port
        for _ in range(cycles):
            watch = Stopwatch()
            for unit, reader in readers.items():
                if (await bus.read(reader)).volume_ml != shown_ml(unit):
                    fail(f"our bus reads a wrong value of unit {unit}")
            times.append(watch.taken())
    finally:
        bus.close()
    return times


class BackToBack:
    """The machine's clock, but sleeping takes no time: the next poll is due at once."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._skipped_ms = 0
        self.wake()

    def wake(self) -> None:
        """Note that a pass begins now."""
        self.watch = Stopwatch()
        self.woke_ms = self.now().boottime_ms

    def now(self) -> Moment:
        now = self._clock.now()
        return msgspec.structs.replace(
            now, wall_ms=now.wall_ms + self._skipped_ms, boottime_ms=now.boottime_ms + self._skipped_ms
        )

    async def sleep(self, seconds: float) -> None:
        self._skipped_ms += round(seconds * 1000) + 1
        await asyncio.sleep(0)
        self.wake()


class Cycle(NamedTuple):
    """One pass of the agent's poller."""

    taken: Taken
    live_seconds: float  # until the last meter that answers was read
    asked: int


class _Enough(Exception):
    pass


async def run_agent(port: str, folder: Path, units: Sequence[int], dead: Sequence[int], cycles: int) -> list[Cycle]:
    """Return the cycles of the agent's poller, with judge and store behind it, in the steady state."""
    clock = BackToBack()
    bus = Bus(settings_of(port))
    owner = OwnerThread("store")
    meters = [PolledMeter(meter=f"m-{unit:03}", reader=reader_of(unit), poll_every_s=300) for unit in (*units, *dead)]
    for meter in meters[len(units) :]:
        with contextlib.suppress(MeterError):
            await bus.read(meter.reader)  # from now on it is asked once, not twice
        meter.polled(clock.now().wall_ms, failures=10)
    store = StoreThread(owner, await owner.run(lambda: Store(folder / "store.db", new_epoch=new_ulid(1))))
    rules = {meter.meter: Rule(window_ms=12 * 3_600_000, threshold_ml=100_000) for meter in meters}
    judge = Judge(rules, episodes=(), new_id=lambda: new_ulid(clock.now().wall_ms))
    pipeline = Pipeline(store=store, judge=judge, committed=lambda: None)
    found: list[Cycle] = []
    of_this_pass: list[Reading] = []

    async def accept(readings: Sequence[Reading]) -> None:
        of_this_pass.extend(readings)
        await pipeline.accept(readings)

    def passed(_: str) -> None:
        taken = clock.watch.taken()
        if not of_this_pass:
            return  # a nap, after which nobody was due
        live = [reading for reading in of_this_pass if reading.volume_ml is not None]
        if len(live) != len(units):
            fail(f"the agent read {len(live)} of {len(units)} meters: {of_this_pass}")
        found.append(Cycle(taken, (live[-1].at.boottime_ms - clock.woke_ms) / 1000, len(of_this_pass)))
        of_this_pass.clear()
        if len(found) == cycles:
            raise _Enough

    poller = BusPoller(bus=bus, meters=meters, clock=clock, accept=accept, jitter=lambda: 0.0)
    poller.passed = passed
    await bus.read(meters[0].reader)  # opens the port, and waits until the line may be used
    clock.wake()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pipeline.run())
            tasks.create_task(poller.run())
    except* _Enough:
        pass
    bus.close()
    await pipeline.finish()
    await store.close()
    return found


# -- the comparison --------------------------------------------------------------------------------------------------


def measure(size: Size, report: Report) -> None:
    units = range(1, size.meters + 1)
    village = f"[line]\nbaudrate = {BAUDRATE}\n" + "".join(METER.format(unit=u, delay_ms=DELAY_MS) for u in units)
    peers: dict[str, Peer] = {
        "bare pyserial, no checks": bare,
        "minimalmodbus alone": plain_minimalmodbus,
        "pymodbus client": pymodbus_client,
    }
    if ctypes.util.find_library("modbus"):
        peers["libmodbus (C)"] = libmodbus
    else:
        report.notes.append("libmodbus is not installed (make test installs mbpoll, which brings it)")
    times: dict[str, list[Taken]] = {}
    with tempfile.TemporaryDirectory() as name, simulated_line(village, Path(name)) as port:
        folder = Path(name)
        for _ in range(size.rounds):
            times.setdefault("our bus and meter reader", []).extend(asyncio.run(time_bus(port, units, size.cycles)))
            cycles = asyncio.run(run_agent(port, folder, units, (), size.cycles))
            times.setdefault("our agent: poll, judge, commit", []).extend(cycle.taken for cycle in cycles)
            for name_, peer in peers.items():
                times.setdefault(name_, []).extend(time_peer(peer, port, units, size.cycles))
        _report_alive(size, report, times)
        # Nobody answers to the units from 201 on.
        live, dead = units[: size.meters - size.dead], range(201, 201 + size.dead)
        periods = size.rounds if size.rounds == 1 else 2
        cycles = asyncio.run(run_agent(port, folder, live, dead, periods * SKIP_CYCLES_MAX))
        _report_dead(size, report, cycles)
        taken = time_peer_with_dead(pymodbus_client, port, live, dead, size.cycles)
        _add(
            report,
            "pymodbus client, no back-off",
            [each.seconds for each in taken],
            size.limit_s(len(live)),
            f"{len(live)} meters that answer, {len(dead)} dead asked every time",
        )


def _report_alive(size: Size, report: Report, times: dict[str, list[Taken]]) -> None:
    limit_s = size.limit_s(size.meters)
    for what, taken in times.items():
        pause_ms = (statistics.median(each.seconds for each in taken) - limit_s) / size.meters * 1000
        cpu_ms = statistics.median(each.cpu_s for each in taken) / size.meters * 1000
        note = f"{SILENCE_S * 1000 + pause_ms:.2f} ms from answer to request, {cpu_ms:.2f} ms CPU per meter"
        _add(report, what, [each.seconds for each in taken], limit_s, f"all alive: {note}")


def _report_dead(size: Size, report: Report, cycles: list[Cycle]) -> None:
    limit_s = size.limit_s(size.meters - size.dead)
    seconds = [cycle.taken.seconds for cycle in cycles]
    dead = f"{size.dead} of {size.meters} dead, asked in every {SKIP_CYCLES_MAX}th cycle, last"
    _add(report, "our agent, until the living are read", [cycle.live_seconds for cycle in cycles], limit_s, dead)
    _add(report, "our agent, cycle", seconds, limit_s, dead)
    mean_s = statistics.fmean(seconds)
    asking = [cycle.taken.seconds for cycle in cycles if cycle.asked > size.meters - size.dead]
    note = f"{len(asking)} of them asked the dead: {max(asking, default=0):.2f} s"
    report.add("our agent, mean cycle", mean_s, "s", f"the same {len(cycles)} cycles", limit_s, limit_s / mean_s, note)


def _add(report: Report, what: str, seconds: list[float], limit_s: float, note: str) -> None:
    median_s = statistics.median(seconds)
    spread = f"median of {len(seconds)}, {min(seconds):.3f} to {max(seconds):.3f} s"
    report.add(what, median_s, "s", note, limit_s, limit_s / median_s, spread)


def main() -> None:
    """Measure and print."""
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # it says so for every dead meter
    options = arguments(__doc__)
    size = Size(meters=6, dead=1, rounds=1, cycles=1) if options.quick else Size(60, 3, 3, 3)
    report = Report(
        f"Poll cycle: {size.meters} meters on one line",
        conditions={
            "line": f"{BAUDRATE} 8N1 on a pty, simulated in another process; request {modbus.REQUEST_BYTES} bytes,"
            f" answer {ANSWER_BYTES}, the meter's delay {DELAY_MS} ms, 3.5 characters = {SILENCE_S * 1000:.2f} ms",
            "target": f"ratio {TARGET}",
        },
    )
    measure(size, report)
    report.show(as_json=options.json)


if __name__ == "__main__":
    run(main)
