"""How much memory `shuiwang run` takes with 200 meters, a week of backlog in its store and a broker that is away.

The agent is a process of its own, on a fast clock, and reads meters that `shuiwang simulate` serves on four ptys. What
counts is RSS, the stricter figure: shared libraries count in full. PSS shares them out among the processes that use
them; "own" is what nobody else has (Private_Dirty). At the end the broker comes back and the backlog goes out.
"""

import argparse
import contextlib
import json
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import households
from measuring import ROOT, Report, arguments, fail, memory_kib, run, running, simulated_line

from agent.service import STORE_NAME
from gateway.clock import FastClock
from gateway.store import Store
from gateway.ulid import new_ulid
from protocols.contract import Stream

AIM_MIB, LIMIT_MIB = 40, 60  # design.md
LINES = 4
BAUDRATE = 115_200  # so that the lines keep up with the fast clock
FAST_MINUTES = 10
START_S_MAX = 120.0

GATEWAY = """
[gateway]
id = "g-0371522"
county = "shenxian"
data_dir = "{folder}"
timezone = "Asia/Shanghai"
[broker]
url = "mqtt://127.0.0.1:{broker_port}"
acknowledgement = "broker"
"""
BUS = """
[[bus]]
name = "rs485-{number}"
port = "{port}"
baudrate = {baudrate}
"""
METER = """
[[meter]]
id = "{id}"
bus = "rs485-{bus}"
profile = "usw-dn15-40"
address = "{address}"
"""
SIMULATED = """
[[meter]]
profile = "usw-dn15-40"
address = "{address}"
start_m3 = "1000000"
usage = ["06:30 8 L in 10 min", "11:20 12 L in 30 min", "17:40 14 L in 40 min", "21:10 6 L"]
"""


class Size(NamedTuple):
    """How much is measured."""

    meters: int
    backlog_days: float
    rate: int  # of the fast clock
    run_s: float  # with the broker away, then again so long with the broker back


# -- what the agent runs on ------------------------------------------------------------------------------------------


def on_lines(meters: int) -> list[range]:
    """Return the numbers of the meters on each line; a meter's address is its place on the line, from 1."""
    each = math.ceil(meters / LINES)
    return [range(first, min(first + each, meters + 1)) for first in range(1, meters + 1, each)]


@contextlib.contextmanager
def lines(folder: Path, size: Size, *, fast_clock: str) -> Iterator[list[str]]:
    """Serve the meters; yields the ports."""
    with contextlib.ExitStack() as stack:
        ports = []
        for number, meters in enumerate(on_lines(size.meters), 1):
            own = folder / f"line-{number}"
            own.mkdir()
            village = f"[line]\nbaudrate = {BAUDRATE}\n"
            village += "".join(SIMULATED.format(address=address) for address in range(1, len(meters) + 1))
            ports.append(stack.enter_context(simulated_line(village, own, fast_clock=fast_clock)))
        yield ports


def write_configuration(path: Path, *, data: Path, ports: list[str], size: Size, broker_port: int) -> None:
    text = GATEWAY.format(folder=data, broker_port=broker_port)
    for number, (port, meters) in enumerate(zip(ports, on_lines(size.meters), strict=True), 1):
        text += BUS.format(number=number, port=port, baudrate=BAUDRATE)
        for address, meter in enumerate(meters, 1):
            text += METER.format(id=households.meter_id(meter), bus=number, address=address)
    path.write_text(text, encoding="utf-8")


def fill(path: Path, *, meters: int, days: float) -> int:
    """Put a backlog that nobody has acknowledged into a store; return how many messages that is."""
    store = Store(path, new_epoch=new_ulid(households.START_MS))
    for batch in households.cycles(meters=meters, count=round(days * 86_400_000 / households.PERIOD_MS)):
        store.commit(batch, ())
    waiting = store.status(Stream.TELEMETRY).last_seq
    store.close()
    return waiting


@contextlib.contextmanager
def broker(port: int, folder: Path) -> Iterator[None]:
    """Run mosquitto."""
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n", encoding="utf-8")
    command = [_mosquitto(), "-c", str(configuration)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def _mosquitto() -> str:
    return shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") or ""


# -- the agent under observation -------------------------------------------------------------------------------------


class Agent:
    """`shuiwang run` as a process, and what it takes."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.began_s = time.monotonic()

    def memory(self) -> dict[str, int]:
        code = self._process.poll()
        if code is not None:
            fail(f"shuiwang run ended with {code} (0: somebody stopped it): {self._text()[-2000:]}")
        return memory_kib(self._process.pid)

    def wait_for(self, event: str, *, timeout_s: float) -> float:
        """Wait until it logs an event; return how long after the start that was."""
        while event not in self._text():
            self.memory()
            if time.monotonic() - self.began_s > timeout_s:
                fail(f"shuiwang run has not logged {event} in {timeout_s:.0f} s: {self._text()[-2000:]}")
            time.sleep(0.02)
        return time.monotonic() - self.began_s

    def _text(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def agent(configuration: Path, *, fast_clock: str, log: Path) -> Iterator[Agent]:
    command = ["-m", "agent.cli", "run", "-c", configuration, "--fast-clock", fast_clock]
    with running(*command, log=log) as process:
        yield Agent(process, log)


def measure(folder: Path, size: Size, report: Report) -> None:
    backlog_ms = round(size.backlog_days * 86_400_000)
    # What the fast clock shows when it starts is what the wall showed at the end of the backlog.
    clock = FastClock(
        rate=size.rate, real_origin_ms=time.time_ns() // 1_000_000, shown_origin_ms=households.START_MS + backlog_ms
    )
    waiting = fill_stores(folder, size)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        broker_port = free.getsockname()[1]
    with lines(folder, size, fast_clock=str(clock)) as ports:
        for name in ("empty", "backlog"):
            path = folder / f"{name}.toml"
            write_configuration(path, data=folder / name, ports=ports, size=size, broker_port=broker_port)
        with agent(folder / "empty.toml", fast_clock=str(clock), log=folder / "empty.log") as empty:
            took_s = empty.wait_for("agent_started", timeout_s=START_S_MAX)
            add_memory(report, "started, empty store", empty.memory(), f"{took_s:.1f} s after exec")
        with agent(folder / "backlog.toml", fast_clock=str(clock), log=folder / "backlog.log") as full:
            observe(report, full, size, waiting)
            if _mosquitto():
                with broker(broker_port, folder):
                    observe_backlog_leaving(report, full, size)
            else:
                report.notes.append("mosquitto is not installed: the way out of the backlog was not measured")
        check_work(folder / "backlog", size, report)


def fill_stores(folder: Path, size: Size) -> int:
    for name in ("empty", "backlog"):
        (folder / name).mkdir()
    return fill(folder / "backlog" / STORE_NAME, meters=size.meters, days=size.backlog_days)


def observe(report: Report, agent_: Agent, size: Size, waiting: int) -> None:
    took_s = agent_.wait_for("agent_started", timeout_s=START_S_MAX)
    started = agent_.memory()
    days = f"{size.backlog_days:g} days of backlog in {waiting:,} messages"
    add_memory(report, "started, history replayed", started, f"{took_s:.1f} s after exec; {days}")
    peak = {**started, "rss": started["peak"]}
    add_memory(report, "highest until then", peak, "")
    time.sleep(FAST_MINUTES * 60 / size.rate)
    add_memory(
        report, f"{FAST_MINUTES} min of fast clock later", agent_.memory(), "broker away, two polls of every meter"
    )
    samples = []
    began_s = time.monotonic()
    while time.monotonic() - began_s < size.run_s:
        time.sleep(1)
        samples.append(agent_.memory())
    fast_h = (time.monotonic() - began_s) * size.rate / 3600
    add_memory(
        report, f"{fast_h:.1f} h of fast clock later", samples[-1], f"broker away; every 5 min all {size.meters}"
    )
    half = samples[len(samples) // 2]["rss"]
    report.notes.append(f"growth in the second half of these {fast_h:.1f} h: {samples[-1]['rss'] - half} KiB of RSS")


def observe_backlog_leaving(report: Report, agent_: Agent, size: Size) -> None:
    agent_.wait_for("broker_connected", timeout_s=START_S_MAX + size.run_s + 180)  # it waits up to two minutes
    time.sleep(size.run_s)
    end = agent_.memory()
    add_memory(report, "the broker is back", end, f"after {size.run_s:.0f} s of sending")
    add_memory(report, "highest ever", {**end, "rss": end["peak"]}, "")


def add_memory(report: Report, what: str, memory: dict[str, int], note: str) -> None:
    rss_mib = memory["rss"] / 1024
    verdict = "within the aim" if rss_mib <= AIM_MIB else f"above the aim of {AIM_MIB} MiB"
    shares = "" if what.startswith("highest") else f"PSS {memory['pss'] / 1024:.1f}, own {memory['dirty'] / 1024:.1f}"
    report.add(what, rss_mib, "MiB", verdict, LIMIT_MIB, None, "; ".join(filter(None, (shares, note))))
    if rss_mib > LIMIT_MIB:
        report.notes.append(f"{what}: {rss_mib:.1f} MiB is more than the {LIMIT_MIB} MiB that the design allows")


def check_work(data: Path, size: Size, report: Report) -> None:
    """Make sure that the agent did its work while it was watched."""
    store = Store(data / STORE_NAME, read_only=True)
    end_ms = households.START_MS + round(size.backlog_days * 86_400_000)
    fresh = [reading for reading in store.last_values().values() if reading.at.wall_ms > end_ms]
    status = store.status(Stream.TELEMETRY)
    store.close()
    if len(fresh) != size.meters:
        fail(f"the agent read {len(fresh)} of {size.meters} meters")
    report.notes.append(f"telemetry: {status.last_seq:,} messages made, {status.acked_seq:,} delivered")


# -- where it goes ---------------------------------------------------------------------------------------------------


def import_costs(report: Report) -> None:
    """Import step by step in a fresh interpreter what `shuiwang run` imports, and run a command."""
    command = [sys.executable, str(Path(__file__).with_name("import_costs.py"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        fail(result.stderr)
    found: dict[str, Any] = json.loads(result.stdout)
    for step in found["steps"]:
        note = f"own +{step['own'] / 1024:.1f} MiB, {step['modules']} modules; {step['total'] / 1024:.1f} MiB in all"
        report.add(f"import: {step['name']}", step["rss"] / 1024, "MiB", note)
    report.notes.append("import: where it goes, step by step in a fresh interpreter")
    report.notes.append(f"imported without need: {', '.join(found['unwanted']) or 'nothing'}")


def main() -> None:
    """Measure and print."""
    options: argparse.Namespace = arguments(__doc__)
    size = Size(20, 0.25, 600, 2) if options.quick else Size(200, 7, 100, 60)
    report = Report(
        f"Memory of the agent: {size.meters} meters, {size.backlog_days:g} days of backlog, the broker away",
        conditions={
            "limits": f"RSS {LIMIT_MIB} MiB, aim {AIM_MIB} MiB",
            "run": f"fast clock x{size.rate}, polls every 300 s, {LINES} lines of {BAUDRATE} 8N1",
        },
    )
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), size, report)
    import_costs(report)
    report.show(as_json=options.json)


if __name__ == "__main__":
    run(main)
