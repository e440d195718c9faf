"""What a reading costs from the meter's answer to the broker: judging, committing, forwarding; and what a start costs.

The parts are the agent's own (pipeline, judge, store, forwarder) on a real file. Beside them, in the same run and in
turns, the least that keeps the same promise: plain `sqlite3`, one `executemany` into the same table, one commit with
WAL and synchronous=FULL.
"""

import asyncio
import json
import logging
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import households
from measuring import ROOT, Report, arguments, fail, memory_kib, run

from agent.detection.watch import Watch
from agent.forwarder import Forwarder, Sender
from agent.judge import Judge, Rule
from agent.pipeline import Pipeline
from gateway.broker import Message, Received, Session
from gateway.clock import SystemClock
from gateway.store import CHECKPOINT_PAGES, Store
from gateway.store_rows import row_of
from gateway.ulid import new_ulid
from protocols import contract
from protocols.contract import Ack, Leaf, State, Stream
from protocols.reading import Reading

T = TypeVar("T")
EPOCH = new_ulid(households.START_MS)
RULE = Rule(window_ms=12 * 3_600_000, threshold_ml=100_000)
# Until the window is full and the first alerts have been raised.
WARM_CYCLES = RULE.window_ms // households.PERIOD_MS + 12
RSS_MIB_MAX = 60  # design.md
RULES_US_MAX = 20  # what one reading may cost on CPython


class Size(NamedTuple):
    """How much is measured."""

    meters: int
    cycles: int
    history_cycles: int


class Cost(NamedTuple):
    """What one commit took."""

    wall_s: float
    cpu_s: float
    bytes_handed_over: int  # in write calls
    bytes_to_disk: int  # pages that the kernel has to write


class DirectStore:
    """The store without a thread of its own, so that nothing but its work is measured."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def __call__(self, work: Callable[[Store], T]) -> T:
        return work(self.store)


def new_judge(meters: int) -> Judge:
    rules = {households.meter_id(number): RULE for number in range(1, meters + 1)}
    return Judge(rules, episodes=(), new_id=lambda: new_ulid(households.START_MS))


def new_pipeline(store: Store, judge: Judge, committed: Callable[[], None] = lambda: None) -> Pipeline:
    return Pipeline(store=DirectStore(store), judge=judge, committed=committed)


async def measured(work: Callable[[], Any]) -> Cost:
    """Return what a piece of work took."""
    wall_s, cpu_s, (handed, written) = time.perf_counter(), time.process_time(), _written()
    result = work()
    if asyncio.iscoroutine(result):
        await result
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    handed_after, written_after = _written()
    return Cost(wall_s, cpu_s, handed_after - handed, written_after - written)


def _written() -> tuple[int, int]:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(fields["wchar"]), int(fields["write_bytes"])


# -- judge and commit ------------------------------------------------------------------------------------------------


async def commit_costs(folder: Path, size: Size) -> tuple[list[Cost], list[Cost]]:
    """Return the costs of our commits and of the floor's, taken in turns."""
    store = Store(folder / "ours.db", new_epoch=EPOCH)
    floor = _floor(folder / "floor.db", store)
    judge = new_judge(size.meters)
    for batch in households.cycles(meters=size.meters, count=WARM_CYCLES):
        for reading in batch:
            judge.feed(reading)
    committed = asyncio.Event()
    pipeline = new_pipeline(store, judge, committed.set)
    running = asyncio.create_task(pipeline.run())

    async def judge_and_commit(batch: Sequence[Reading]) -> None:
        committed.clear()
        await pipeline.accept(batch)
        await committed.wait()

    ours, floors = [], []
    batches = households.cycles(meters=size.meters, first=WARM_CYCLES, count=size.cycles)
    for number, batch in enumerate(batches):
        rows = [row_of(id_, reading, 1) for id_, reading in enumerate(batch, 1 + number * size.meters)]
        ours.append(await measured(lambda batch=batch: judge_and_commit(batch)))
        floors.append(await measured(lambda rows=rows: _insert(floor, rows)))
    await pipeline.stop()
    await running
    stored = sum(1 for _ in store.history())
    if stored != size.cycles * size.meters:
        fail(f"{stored} readings are in the store, {size.cycles * size.meters} were committed")
    store.close()
    floor.close()
    return ours, floors


def _floor(path: Path, store: Store) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = wal", "synchronous = full", f"wal_autocheckpoint = {CHECKPOINT_PAGES}"):
        connection.execute(f"pragma {pragma}")
    with sqlite3.connect(f"file:{store.path}?mode=ro", uri=True) as ours:
        (schema,) = ours.execute("select sql from sqlite_schema where name = 'reading'").fetchone()
    connection.execute(schema)
    return connection


def _insert(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    connection.execute("begin immediate")
    connection.executemany("insert into reading values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.execute("commit")


def syncs_per_commit(folder: Path) -> float | None:
    """Return how often the disk is told to keep what it has, counted by strace; None where it cannot trace."""
    if shutil.which("strace") is None:
        return None
    counts = []
    for commits in (20, 60):
        command = ["strace", "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", str(folder / "strace")]
        child = [sys.executable, __file__, "--only-commits", str(commits)]
        if subprocess.run([*command, *child], cwd=ROOT, capture_output=True, check=False).returncode != 0:
            return None
        # % time, seconds, usecs/call, calls, perhaps errors, syscall
        lines = map(str.split, (folder / "strace").read_text(encoding="ascii").splitlines())
        counts.append(sum(int(words[3]) for words in lines if words and words[-1] in {"fsync", "fdatasync"}))
    per_commit = (counts[1] - counts[0]) / 40
    if per_commit < 1:
        fail(f"{per_commit} syncs per commit: a commit that returned is not on the disk")
    return per_commit


# -- detection, forwarding -------------------------------------------------------------------------------------------


def detection_cost_s(size: Size) -> tuple[float, float]:
    """Return the CPU time per reading of the detector core alone, and of the whole judge, in the steady state."""
    judge = new_judge(size.meters)
    rule = {
        households.meter_id(n): Watch(window_ms=RULE.window_ms, threshold_ml=RULE.threshold_ml)
        for n in range(1, 1 + size.meters)
    }
    taken = {"rule": 0.0, "judge": 0.0}
    for number, batch in enumerate(households.cycles(meters=size.meters, count=WARM_CYCLES + size.cycles)):
        plain = [(reading.meter, reading.at.wall_ms, cast("int", reading.volume_ml)) for reading in batch]
        began_s = time.process_time()
        for meter, wall_ms, volume_ml in plain:
            rule[meter].feed(wall_ms, wall_ms // 3_600_000 % 24, volume_ml)
        between_s = time.process_time()
        for reading in batch:
            judge.feed(reading)
        if number >= WARM_CYCLES:
            taken["rule"] += between_s - began_s
            taken["judge"] += time.process_time() - between_s
    readings = size.cycles * size.meters
    return taken["rule"] / readings, taken["judge"] / readings


class FakeBroker:
    """A session that takes messages and has each acknowledged by the county at once."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.expected = 0
        self.done = asyncio.Event()
        self._acks: asyncio.Queue[bytes] = asyncio.Queue()

    async def publish(self, message: Message) -> None:
        if not message.topic.endswith(Leaf.TELEMETRY):
            return
        self.payloads.append(message.payload)
        ack = Ack(schema=contract.ACK_SCHEMA, epoch=EPOCH, telemetry_up_to=len(self.payloads))
        await self._acks.put(contract.encode(ack))

    async def messages(self) -> AsyncIterator[Received]:
        for _ in range(self.expected):
            yield Received(topic=Leaf.ACK, payload=await self._acks.get())
        self.done.set()
        await asyncio.Event().wait()


async def forward_cost(folder: Path) -> tuple[float, list[bytes]]:
    """Return the CPU time of forwarding everything in the store, acknowledgements included, and the messages."""
    store = Store(folder / "ours.db", new_epoch=EPOCH)
    session = FakeBroker()
    session.expected = store.status(Stream.TELEMETRY).last_seq
    forwarder = Forwarder(
        store=DirectStore(store),
        clock=SystemClock(),
        sender=Sender(county="shenxian", gateway="g-0371522"),
        birth=lambda *_: State(schema=contract.STATE_SCHEMA, online=True),
        county_acknowledges=True,
    )
    began_s = time.process_time()
    serving = asyncio.create_task(forwarder.serve(cast("Session", session)))
    done = asyncio.create_task(session.done.wait())
    await asyncio.wait({serving, done}, return_when=asyncio.FIRST_COMPLETED)
    cpu_s = time.process_time() - began_s
    if serving.done():
        await serving  # raises what ended it
    serving.cancel()
    await asyncio.wait({serving})
    if store.status(Stream.TELEMETRY).acked_seq != session.expected:
        fail("the forwarder did not bring everything to the county")
    store.close()
    return cpu_s, session.payloads


def encode_costs_s(payloads: list[bytes], readings: int) -> tuple[float, float]:
    """Return the CPU time per reading of encoding messages that exist: by us, and by the standard library's json."""
    messages = [contract.decode(Leaf.TELEMETRY, payload) for payload in payloads]
    plain = [json.loads(payload) for payload in payloads]
    began_s = time.process_time()
    for message in messages:
        contract.encode(message)
    between_s = time.process_time()
    for builtin in plain:
        json.dumps(builtin)
    return (between_s - began_s) / readings, (time.process_time() - between_s) / readings


# -- a start ---------------------------------------------------------------------------------------------------------


def measure_start(path: Path, meters: int, *, plainly: bool) -> dict[str, float]:
    """Run in a process of its own: rebuild the judge from a store, or only step through the rows of its readings."""
    before = memory_kib()["rss"]
    began_s = time.perf_counter()
    rows = 0
    if plainly:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            for _ in connection.execute(
                "select * from reading join boot on boot.id = reading.boot order by reading.id"
            ):
                rows += 1
    else:
        store = Store(path)
        asyncio.run(new_pipeline(store, new_judge(meters)).rebuild())
        store.close()
    seconds = time.perf_counter() - began_s
    return {"seconds": seconds, "rows": rows, "before_kib": before, "peak_kib": memory_kib()["peak"]}


def in_its_own_process(*options: object) -> dict[str, float]:
    command = [sys.executable, __file__, *map(str, options)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        fail(result.stderr)
    return cast("dict[str, float]", json.loads(result.stdout))


# -- the report ------------------------------------------------------------------------------------------------------


def measure(folder: Path, size: Size, report: Report) -> None:
    ours, floors = asyncio.run(commit_costs(folder, size))
    report_commits(report, ours, floors, size)
    syncs = syncs_per_commit(folder)
    if syncs is None:
        report.notes.append("syncs were not counted: strace is not installed or may not trace here")
    else:
        report.add("syncs per commit", syncs, "", "the least that WAL with synchronous=FULL takes", 1.0)
    rule_s, judge_s = detection_cost_s(size)
    report.add("all rules of one meter", rule_s * 1e6, "µs/reading", "the limit", RULES_US_MAX, None, "CPU time")
    report.add("judge: time axis, rules, village, episodes", judge_s * 1e6, "µs/reading", "CPU time")
    cpu_s, payloads = asyncio.run(forward_cost(folder))
    readings = size.cycles * size.meters
    encode_s, json_s = encode_costs_s(payloads, readings)
    bytes_each = sum(map(len, payloads)) / readings
    report.add(
        "forward: store, encode, receipt",
        cpu_s / readings * 1e6,
        "µs/reading",
        f"CPU time; {bytes_each:.0f} bytes of JSON each",
    )
    report.add("encode alone", encode_s * 1e6, "µs/reading", "json.dumps of the same", json_s * 1e6, None, "CPU time")
    report_start(folder, report, size)


def report_commits(report: Report, ours: list[Cost], floors: list[Cost], size: Size) -> None:
    plain = "plain sqlite3, one executemany"
    for what, field, unit, scale in (
        ("judge and commit, CPU", "cpu_s", "µs/reading", 1e6),
        ("judge and commit, time", "wall_s", "µs/reading", 1e6),
    ):
        figure, reference = (statistics.median(getattr(c, field) for c in costs) for costs in (ours, floors))
        note = f"median of {len(ours)} commits of {size.meters} readings"
        report.add(what, figure / size.meters * scale, unit, plain, reference / size.meters * scale, None, note)
    for what, field in (
        ("bytes handed to the kernel", "bytes_handed_over"),
        ("bytes that reach the disk", "bytes_to_disk"),
    ):
        figure, reference = (statistics.fmean(getattr(c, field) for c in costs) for costs in (ours, floors))
        note = "mean, checkpoints included"
        report.add(what, figure / size.meters, "B/reading", plain, reference / size.meters, None, note)
    slowest_ms = max(cost.wall_s for cost in ours) * 1000
    report.add("slowest commit", slowest_ms, "ms", plain, max(cost.wall_s for cost in floors) * 1000, None)


def report_start(folder: Path, report: Report, size: Size) -> None:
    path = folder / "history.db"
    store = Store(path, new_epoch=EPOCH)
    for batch in households.cycles(meters=size.meters, count=size.history_cycles):
        store.adopt(batch, ())
    store.close()
    readings = size.meters * size.history_cycles
    ours = in_its_own_process("--start-from", path, "--meters", size.meters)
    plain = in_its_own_process("--start-from", path, "--meters", size.meters, "--plainly")
    if plain["rows"] != readings:
        fail(f"the history holds {plain['rows']:.0f} of {readings} readings")
    note = f"{readings:,} readings, {ours['seconds'] / readings * 1e6:.1f} µs each"
    report.add(
        "start: the judge rebuilt", ours["seconds"], "s", "stepping through the rows", plain["seconds"], None, note
    )
    mib = f"{ours['before_kib'] / 1024:.1f} MiB before it, store and judge included"
    report.add("start: peak memory", ours["peak_kib"] / 1024, "MiB", "RSS, the design's limit", RSS_MIB_MAX, None, mib)


def main() -> None:
    """Measure and print."""
    logging.disable(logging.WARNING)  # the homes' alerts
    options = arguments(
        __doc__,
        ("--folder", {"type": Path, "help": "where the files go: the disk that is measured (default: temporary)"}),
        ("--only-commits", {"type": int, "metavar": "N"}),
        ("--start-from", {"type": Path, "metavar": "STORE"}),
        ("--meters", {"type": int, "default": 200}),
        ("--plainly", {"action": "store_true"}),
    )
    if options.start_from:
        print(json.dumps(measure_start(options.start_from, options.meters, plainly=options.plainly)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if options.only_commits:
            only_commits(Path(name), options.only_commits)
            return
        days = 0.25 if options.quick else 3
        size = Size(
            meters=options.meters,
            cycles=10 if options.quick else 100,
            history_cycles=round(days * 86_400_000 / households.PERIOD_MS),
        )
        report = Report(
            f"Cost of a reading: {size.meters} meters in a cycle",
            conditions={"disk": _disk(Path(name)), "history": f"{days:g} days, one reading in 5 min of every meter"},
        )
        measure(Path(name), size, report)
    report.show(as_json=options.json)


def only_commits(folder: Path, commits: int) -> None:
    """Commit cycles of ten readings, for strace to count; few enough that no checkpoint comes between."""
    store = Store(folder / "counted.db", new_epoch=EPOCH)
    for batch in households.cycles(meters=10, count=commits):
        store.commit(batch, ())


def _disk(folder: Path) -> str:
    """Name the file system of a folder."""
    found = subprocess.run(["df", "--output=fstype,source", folder], capture_output=True, text=True, check=False)
    kind = " on ".join(found.stdout.splitlines()[-1].split()) if found.returncode == 0 else "unknown"
    return f"{kind}{' (memory: syncs cost nothing here)' if kind.startswith('tmpfs') else ''}"


if __name__ == "__main__":
    run(main)
