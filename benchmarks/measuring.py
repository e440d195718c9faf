"""What the benchmarks share: command line, conditions, the table, and programs that they run beside themselves."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]


class Row(NamedTuple):
    """One figure, and what it is held against: a limit or a peer measured in the same run."""

    what: str
    figure: float
    unit: str
    against: str = ""
    reference: float | None = None
    ratio: float | None = None  # by default figure / reference
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "ratio": self.the_ratio}

    @property
    def the_ratio(self) -> float | None:
        if self.ratio is not None or not self.reference:
            return self.ratio
        return self.figure / self.reference


class Report:
    """What a benchmark found; printed once, at the end."""

    def __init__(self, title: str, *, conditions: dict[str, object]) -> None:
        self.title = title
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._conditions = {**conditions, **machine()}

    def add(self, *row: Any, **columns: Any) -> None:
        self.rows.append(Row(*row, **columns))

    def show(self, *, as_json: bool) -> None:
        if as_json:
            rows = [row.as_json() for row in self.rows]
            print(json.dumps({"title": self.title, "conditions": self._conditions, "rows": rows, "notes": self.notes}))
            return
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
        table = Table("what", title=self.title, title_justify="left", title_style="bold")
        for column in ("figure", "limit or peer", "ratio"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("against, and how")
        for row in self.rows:
            reference = "" if row.reference is None else f"{_figure(row.reference)} {row.unit}"
            ratio = "" if row.the_ratio is None else f"{row.the_ratio:.3f}"
            how = "; ".join(filter(None, (row.against, row.note)))
            table.add_row(row.what, f"{_figure(row.figure)} {row.unit}", reference, ratio, how)
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}")
        console.print("; ".join(f"{name}: {value}" for name, value in self._conditions.items()), style="dim")


def arguments(description: str | None, *extra: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Return the command line of a benchmark: --quick, --json, and what it adds."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="a small run: shows that it works, its figures mean little"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    for name, options in extra:
        parser.add_argument(name, **options)
    return parser.parse_args()


def machine() -> dict[str, object]:
    """Return where and when this is measured."""
    names = ("minimalmodbus", "pyserial", "sqlite-utils", "msgspec", "typer", "pymodbus")
    versions = ", ".join(f"{name} {_version(name)}" for name in names)
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _commit(),
        "machine": f"{_cpu()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()}"
        f" {platform.release()} {platform.machine()}",
        "versions": f"Python {platform.python_version()}, {versions}",
    }


class DoesNotWork(Exception):
    """There is nothing to measure."""


def fail(message: str) -> NoReturn:
    """Give up: something does not work."""
    raise DoesNotWork(message)


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; exit code 1 and one line where something does not work."""
    try:
        main()
    except* DoesNotWork as group:
        print(f"does not work: {_first(group)}", file=sys.stderr)
        raise SystemExit(1) from None


@contextlib.contextmanager
def running(*command: object, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program of ours beside this one; its standard output is a pipe, its talk goes to `log`."""
    with log.open("ab") as talk:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=talk, text=True, cwd=ROOT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextlib.contextmanager
def simulated_line(village: str, folder: Path, *, fast_clock: str | None = None) -> Iterator[str]:
    """Run `shuiwang simulate` on a village file, as a process of its own; yields the port."""
    file = folder / "village.toml"
    file.write_text(village, encoding="utf-8")
    options = ["--fast-clock", fast_clock] if fast_clock else []
    with running("-m", "agent.cli", "simulate", file, *options, log=folder / "simulate.log") as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            fail(f"shuiwang simulate: {(folder / 'simulate.log').read_text(encoding='utf-8')}")
        yield port


def memory_kib(pid: int | str = "self") -> dict[str, int]:
    """Return Rss, Pss and Private_Dirty of a process, and its Peak (VmHWM), in KiB."""
    wanted = {"Rss:": "rss", "Pss:": "pss", "Private_Dirty:": "dirty", "VmHWM:": "peak"}
    found = {}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if words and words[0] in wanted:
                found[wanted[words[0]]] = int(words[1])
    return found


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _commit() -> str:
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + (" and uncommitted changes" if changed.stdout.strip() else "")
