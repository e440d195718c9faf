"""How long it takes to read 60 meters on one line, against what the line itself needs at least.

    limit = per meter: request on the wire + the meter's own delay + answer on the wire + 3.5 characters of silence

`shuiwang simulate` serves each line from a process of its own: a pty on which bytes travel at the pace of the baud
rate. Everybody who is measured reads the same meters over the same port, in turns, and what he reads is compared with
what the meters show. A ratio is limit / time of a cycle: 1 is a line that is never idle.
"""

import asyncio
import contextlib
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import line_peers
from line_peers import CJT188, MODBUS, MOVING_L_H, Peer, Setup, Stopwatch, Taken, time_peer, time_peer_with_dead
from measuring import Report, arguments, fail, run, simulated_line

from agent.judge import Judge, Rule
from agent.pipeline import Pipeline
from agent.poller import BusPoller, PolledMeter
from agent.service import StoreThread
from gateway.bus import Bus
from gateway.clock import SystemClock
from gateway.line import LineSettings
from gateway.meters import MeterReader
from gateway.owner import OwnerThread
from gateway.store import Store
from gateway.ulid import new_ulid
from protocols import profile
from protocols.errors import MeterError
from protocols.reading import Reading

TARGET = 0.95
TARGET_WITH_DEAD = 1.03
# Less than a cycle takes: the next one is due before this one ends, and the line is never idle.
POLL_EVERY_S = 0.1
DEAD_FROM = 201  # nobody answers to the numbers from here on


class Size(NamedTuple):
    """How much is measured."""

    meters: int
    dead: int
    rounds: int  # everybody's turn comes so often …
    cycles: int  # … and lasts so many cycles
    probes: int  # with dead meters: until one of them was asked so often again …
    cycles_with_dead: int  # … and so many cycles at least
    moving: int = 0  # where an 8-bit checksum has a total that moved asked for again: so many move from cycle to cycle


FULL = {
    MODBUS: Size(meters=60, dead=3, rounds=3, cycles=3, probes=2, cycles_with_dead=8),
    CJT188: Size(meters=60, dead=3, rounds=2, cycles=1, probes=1, cycles_with_dead=4, moving=6),
}
QUICK = {
    MODBUS: Size(meters=6, dead=1, rounds=1, cycles=1, probes=0, cycles_with_dead=4),
    CJT188: Size(meters=3, dead=1, rounds=1, cycles=1, probes=0, cycles_with_dead=3, moving=1),
}
PEERS: dict[Setup, dict[str, Peer]] = {
    MODBUS: {
        "bare pyserial, no checks": line_peers.bare_modbus,
        "minimalmodbus alone": line_peers.plain_minimalmodbus,
        "pymodbus client": line_peers.pymodbus_client,
    },
    CJT188: {"bare pyserial, no checks": line_peers.bare_cjt188},
}
# Who is measured with dead meters, as somebody who asks them every time.
STUBBORN = {MODBUS: "pymodbus client", CJT188: "bare pyserial, no checks"}


# -- our own path ----------------------------------------------------------------------------------------------------


def settings_of(setup: Setup, port: str) -> LineSettings:
    return LineSettings(name="rs485-1", port=port, baudrate=setup.baudrate, parity=setup.parity)


def reader_of(setup: Setup, number: int) -> MeterReader:
    meter = profile.load(setup.profile)
    address = meter.parse_address(setup.address.format(number))
    return MeterReader(profile=meter, address=address, timeout_ms=meter.timing.timeout_ms, retries=meter.timing.retries)


async def time_bus(setup: Setup, port: str, numbers: Sequence[int], cycles: int) -> list[Taken]:
    """Return the times of cycles over gateway.bus and gateway.meters, awaited one by one."""
    bus = Bus(settings_of(setup, port))
    readers = {number: reader_of(setup, number) for number in numbers}
    times = []
    try:
        for reader in readers.values():  # opens the port; a total under an 8-bit checksum is asked for twice at first
            await bus.read(reader)
        for _ in range(cycles):
            watch = Stopwatch()
            for number, reader in readers.items():
                if (await bus.read(reader)).volume_ml != setup.shown_ml(number):
                    fail(f"our bus reads a wrong value of meter {number}")
            times.append(watch.taken())
    finally:
        bus.close()
    return times


class Moving(NamedTuple):
    """Meters that count, since an instant of `time.monotonic`."""

    numbers: Sequence[int]
    since_s: float

    def most_ml(self) -> int:
        """Return how far each has counted by now."""
        return round(MOVING_L_H * (time.monotonic() - self.since_s) / 3.6)


class Cycle(NamedTuple):
    """One pass of the agent's poller, from the end of the one before to its own."""

    taken: Taken
    dead_asked: int


class _Enough(Exception):
    pass


async def run_agent(
    setup: Setup,
    port: str,
    folder: Path,
    *,
    living: Sequence[int],
    dead: Sequence[int] = (),
    moving: Moving | None = None,
    enough: Callable[[list[Cycle]], bool],
) -> list[Cycle]:
    """Return the cycles of the agent's poller, with judge and store behind it, on a line that is never idle."""
    clock = SystemClock()
    bus = Bus(settings_of(setup, port))
    owner = OwnerThread("store")
    meters = {
        number: PolledMeter(meter=f"m-{number:03}", reader=reader_of(setup, number), poll_every_s=POLL_EVERY_S)
        for number in (*living, *dead)
    }
    for number in dead:
        with contextlib.suppress(MeterError):
            await bus.read(meters[number].reader)  # from now on it is asked once, not twice
        meters[number].failures = 10
    shown_ml = {meters[number].meter: setup.shown_ml(number) for number in living}
    store = StoreThread(owner, await owner.run(lambda: Store(folder / "store.db", new_epoch=new_ulid(1))))
    rules = {meter.meter: Rule(window_ms=12 * 3_600_000, threshold_ml=100_000) for meter in meters.values()}
    judge = Judge(rules, episodes=(), new_id=lambda: new_ulid(clock.now().wall_ms))
    pipeline = Pipeline(store=store, judge=judge, committed=lambda: None)
    cycles: list[Cycle] = []
    of_this_pass: list[Reading] = []

    async def accept(readings: Sequence[Reading]) -> None:
        of_this_pass.extend(readings)
        await pipeline.accept(readings)

    def passed(_: str) -> None:
        nonlocal watch
        taken, watch = watch.taken(), Stopwatch()
        read_ml = {reading.meter: reading.volume_ml for reading in of_this_pass if reading.volume_ml is not None}
        if moving is not None:
            for meter in (meters[number].meter for number in moving.numbers):
                moved_ml = read_ml.get(meter, 0) - shown_ml[meter]
                if not 0 <= moved_ml <= moving.most_ml():
                    fail(f"the agent read {moved_ml} mL too much of {meter}, of which {moving.most_ml()} flowed")
                shown_ml[meter] += moved_ml
        if read_ml != shown_ml:
            fail(f"the agent read {len(read_ml)} of {len(living)} meters, or wrong values: {of_this_pass}")
        cycles.append(Cycle(taken, len(of_this_pass) - len(living)))
        of_this_pass.clear()
        if enough(cycles):
            raise _Enough

    poller = BusPoller(bus=bus, meters=list(meters.values()), clock=clock, accept=accept, jitter=lambda: 0.0)
    poller.passed = passed
    for number in living:  # opens the port; a total under an 8-bit checksum is asked for twice at first
        await bus.read(meters[number].reader)
    watch = Stopwatch()
    async with asyncio.TaskGroup() as committing:
        committing.create_task(pipeline.run())
        with contextlib.suppress(_Enough):
            await poller.run()
        await pipeline.stop()
    bus.close()
    await store.close()
    return cycles


async def run_agent_with_dead(
    setup: Setup, port: str, folder: Path, size: Size, *, living: Sequence[int], dead: Sequence[int]
) -> list[Cycle]:
    """Return the cycles of the steady state: whole periods, each from after a dead meter was asked until it was again.

    The poller, which does not know yet what they cost, asks all the dead in the first cycle; there the count begins.
    """

    def enough(cycles: list[Cycle]) -> bool:
        probed = sum(cycle.dead_asked > 0 for cycle in cycles[1:])
        ends_period = cycles[-1].dead_asked > 0 or size.probes == 0
        return len(cycles) > size.cycles_with_dead and probed >= size.probes and ends_period

    cycles = await run_agent(setup, port, folder, living=living, dead=dead, enough=enough)
    if cycles[0].dead_asked != len(dead):
        fail(f"the agent asked {cycles[0].dead_asked} of {len(dead)} dead meters in its first cycle")
    return cycles[1:]


# -- the comparison --------------------------------------------------------------------------------------------------


def measure(setup: Setup, size: Size, report: Report) -> None:
    numbers = range(1, size.meters + 1)
    peers = dict(PEERS[setup])
    if setup is MODBUS and line_peers.has_libmodbus():
        peers["libmodbus (C)"] = line_peers.libmodbus
    elif setup is MODBUS:
        report.notes.append("libmodbus is not installed (make test installs mbpoll, which brings it)")
    times: dict[str, list[Taken]] = {}
    with tempfile.TemporaryDirectory() as name, simulated_line(setup.village(numbers), Path(name)) as port:
        folder = Path(name)
        for _ in range(size.rounds):
            cycles = asyncio.run(
                run_agent(setup, port, folder, living=numbers, enough=lambda found: len(found) == size.cycles)
            )
            times.setdefault("our agent: poll, judge, commit", []).extend(cycle.taken for cycle in cycles)
            taken = asyncio.run(time_bus(setup, port, numbers, size.cycles))
            times.setdefault("our bus and meter reader", []).extend(taken)
            for who, peer in peers.items():
                times.setdefault(who, []).extend(time_peer(setup, peer, port, numbers, size.cycles))
        for who, taken in times.items():
            _report_alive(setup, size, report, who, taken)
        living, dead = numbers[: size.meters - size.dead], range(DEAD_FROM, DEAD_FROM + size.dead)
        cycles = asyncio.run(run_agent_with_dead(setup, port, folder, size, living=living, dead=dead))
        _report_dead(setup, size, report, cycles)
        stubborn = STUBBORN[setup]
        taken = time_peer_with_dead(peers[stubborn], port, living, dead, size.cycles)
        note = f"{len(living)} meters that answer, {len(dead)} dead asked every time"
        _add(report, f"{setup.title}: {stubborn}, no back-off", taken, setup.limit_s(len(living)), note)


def measure_moving(setup: Setup, size: Size, report: Report) -> None:
    """Measure the agent where some totals move from cycle to cycle and, their checksum being short, are asked twice."""
    numbers = range(1, size.meters + 1)
    moving = Moving(numbers[: size.moving], time.monotonic())
    village = setup.village(numbers, moving=moving.numbers)
    with tempfile.TemporaryDirectory() as name, simulated_line(village, Path(name)) as port:
        cycles = asyncio.run(
            run_agent(
                setup,
                port,
                Path(name),
                living=numbers,
                moving=moving,
                enough=lambda found: len(found) == 1 + size.rounds,
            )
        )
    note = f"{size.moving} of {size.meters} totals moved since the cycle before: asked twice"
    taken = [cycle.taken for cycle in cycles[1:]]
    _add(report, f"{setup.title}: our agent, some move", taken, setup.limit_s(size.meters), note)


def _report_alive(setup: Setup, size: Size, report: Report, who: str, taken: list[Taken]) -> None:
    limit_s = setup.limit_s(size.meters)
    pause_ms = (statistics.median(each.seconds for each in taken) - limit_s) / size.meters * 1000
    cpu_ms = statistics.median(each.cpu_s for each in taken) / size.meters * 1000
    pause_ms += setup.silence_s * 1000
    note = f"all alive: {pause_ms:.2f} ms from answer to request, {cpu_ms:.2f} ms CPU per meter"
    _add(report, f"{setup.title}: {who}", taken, limit_s, note)


def _report_dead(setup: Setup, size: Size, report: Report, cycles: list[Cycle]) -> None:
    """Report the mean, and the usual cycle: one that asks no dead meter and waits for no hold-off after one."""
    limit_s = setup.limit_s(size.meters - size.dead)
    usual = [cycle.taken for before, cycle in itertools.pairwise(cycles) if not _asked(before, cycle)]
    usual = usual or [cycle.taken for cycle in cycles[1:]]
    dead = f"{size.dead} of {size.meters} dead"
    _add(report, f"{setup.title}: our agent, usual cycle", usual, limit_s, f"{dead}: cycles in which none is asked")
    mean_s = statistics.fmean(cycle.taken.seconds for cycle in cycles)
    usual_s = statistics.median(each.seconds for each in usual)
    asked = sum(cycle.dead_asked for cycle in cycles)
    longest_s = max(cycle.taken.seconds for cycle in cycles)
    window = f"{len(cycles)} cycles on end, {sum(cycle.taken.seconds for cycle in cycles):.0f} s"
    note = f"{window}; dead meters were asked {asked} times, the longest cycle took {longest_s:.2f} s"
    what = f"{setup.title}: our agent, mean cycle"
    report.add(what, mean_s, "s", f"{dead}: {note}", limit_s, limit_s / mean_s)
    report.add(f"{what} / usual", mean_s, "s", f"target {TARGET_WITH_DEAD} at most", usual_s)


def _asked(*cycles: Cycle) -> bool:
    return any(cycle.dead_asked for cycle in cycles)


def _add(report: Report, what: str, taken: list[Taken], limit_s: float, note: str) -> None:
    seconds = [each.seconds for each in taken]
    median_s = statistics.median(seconds)
    spread = f"median of {len(seconds)}, {min(seconds):.3f} to {max(seconds):.3f} s"
    report.add(what, median_s, "s", note, limit_s, limit_s / median_s, spread)


def main() -> None:
    """Measure and print."""
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # it says so for every dead meter
    setups = {"modbus": MODBUS, "cjt188": CJT188}
    only = ("--only", {"choices": list(setups), "help": "measure one line, not both"})
    options = arguments(__doc__, only)
    sizes = QUICK if options.quick else FULL
    chosen = [setups[options.only]] if options.only else list(setups.values())
    report = Report(
        f"Poll cycle: {max(sizes[setup].meters for setup in chosen)} meters on one line",
        conditions={
            "each line": "a pty, simulated in another process",
            **{setup.title: setup.describe() for setup in chosen},
            "target": f"ratio {TARGET}",
        },
    )
    began_s = time.monotonic()
    for setup in chosen:
        measure(setup, sizes[setup], report)
        if sizes[setup].moving:
            measure_moving(setup, sizes[setup], report)
    report.notes.append(f"measured for {time.monotonic() - began_s:.0f} s")
    report.show(as_json=options.json)


if __name__ == "__main__":
    run(main)
