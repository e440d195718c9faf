"""A whole backtest: the parts, the work, the sums."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.backtest.engines import run_here, run_on_cluster
from agent.backtest.problems import BadRows, InputProblem
from agent.backtest.progress import Progress
from agent.backtest.replay import Episode
from agent.backtest.score import Figures, Sum, figures_of
from agent.backtest.splitting import Part, parts
from agent.backtest.work import HomeResult, Job, PartResult


class HomeReport(msgspec.Struct, frozen=True, kw_only=True):
    """One home: how much there was to judge, and its figures by rule set."""

    meter: str
    readings: int
    missing: int
    days: float
    rules: dict[str, Figures]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A backtest; `--json` prints it."""

    source: str
    timezone: str
    learn_days: int
    stops: int
    seed: int
    readings: int
    missing: int
    bad_rows: int
    bad_first: tuple[str, ...]
    too_short: int
    rules: dict[str, str]
    total: dict[str, Figures]
    homes: tuple[HomeReport, ...]


class Keeper:
    """Adds up results as they come."""

    def __init__(self, job: Job, *, note: Callable[[str, str, Episode], None]) -> None:
        self._job = job
        self._note = note
        self._sums = [Sum() for _ in job.rules]
        self._file_of: dict[str, str] = {}
        self._homes: list[HomeReport] = []
        self.bad = BadRows(skip=job.skip_bad)

    @property
    def readings(self) -> int:
        """How many readings were judged so far."""
        return sum(home.readings for home in self._homes)

    def add(self, result: PartResult) -> None:
        """Take the homes of one part. Raises InputProblem for a meter that another file has too."""
        self.bad.count += result.bad_count
        self.bad.first = [*self.bad.first, *result.bad_first][:5]
        for home in result.homes:
            before = self._file_of.setdefault(home.meter, home.source)
            if before != home.source:
                raise InputProblem(
                    f"meter {home.meter} is in {before} and in {home.source}: in a folder each file holds whole homes;"
                    " give all files of such homes as one"
                )
            self._add_home(home)

    def _add_home(self, home: HomeResult) -> None:
        for total, score in zip(self._sums, home.scores, strict=True):
            total.add(score)
        rules = {rule.name: figures_of(score) for rule, score in zip(self._job.rules, home.scores, strict=True)}
        self._homes.append(
            HomeReport(meter=home.meter, readings=home.readings, missing=home.missing, days=home.days, rules=rules)
        )
        for rule, episodes in zip(self._job.rules, home.episodes, strict=False):
            for episode in episodes:
                self._note(home.meter, rule.name, episode)

    def report(self, source: Path) -> Report:
        """Return what has come together. Raises InputProblem where there was no reading at all."""
        if not self.readings:
            raise InputProblem(f"{source}: holds no reading" + (" of these meters" if self._job.meters else ""))
        homes = sorted(self._homes, key=lambda home: home.meter)
        job = self._job
        absent = (job.meters or frozenset()) - self._file_of.keys()
        if absent:
            raise InputProblem(f"{source}: holds no meter {', '.join(sorted(absent))}")
        return Report(
            source=str(source),
            timezone=job.timezone,
            learn_days=job.learn_days,
            stops=job.stops,
            seed=job.seed,
            readings=self.readings,
            missing=sum(home.missing for home in homes),
            bad_rows=self.bad.count,
            bad_first=tuple(self.bad.first),
            too_short=sum(home.days <= job.learn_days for home in homes),
            rules={rule.name: rule.in_words for rule in job.rules},
            total={rule.name: total.figures() for rule, total in zip(job.rules, self._sums, strict=True)},
            homes=tuple(homes),
        )


def backtest(
    source: Path, job: Job, *, jobs: int, cluster: str | None, spill: Path | None, episodes: Path | None
) -> Report:
    """Judge the past of every home in a file or folder. Raises InputProblem."""
    progress = Progress()
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shuiwang-backtest-", dir=spill)))
            note = stack.enter_context(_noting(episodes, job.timezone))
            if job.plot is not None:
                job.plot.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputProblem(f"cannot write: {error}") from error
        keeper = Keeper(job, note=note)
        work = parts(
            source,
            spill=folder,
            columns=job.columns,
            values=job.values,
            bad=keeper.bad,
            progress=lambda rows: progress.say(f"dividing {source.name} by meter: {rows:,} rows"),
        )
        for done, result in enumerate(_results(work, job, jobs=jobs, cluster=cluster), 1):
            keeper.add(result)
            progress.say(
                f"{done:,} of {len(work):,} parts, {keeper.readings:,} readings under {len(job.rules)} rule sets"
            )
        return keeper.report(source)


def _results(work: Sequence[Part], job: Job, *, jobs: int, cluster: str | None) -> Iterator[PartResult]:
    return run_here(work, job, jobs=jobs) if cluster is None else run_on_cluster(work, job, address=cluster, jobs=jobs)


@contextlib.contextmanager
def _noting(path: Path | None, timezone: str) -> Iterator[Callable[[str, str, Episode], None]]:
    """Give a function that writes an episode as one JSON line, with times of the homes' clocks."""
    if path is None:
        yield lambda _meter, _rules, _episode: None
        return
    from agent.backtest.moments import LocalClock

    clock = LocalClock(timezone)
    encode = msgspec.json.Encoder().encode
    with path.open("wb") as lines:

        def note(meter: str, rules: str, episode: Episode) -> None:
            entry: dict[str, Any] = {"meter": meter, "rules": rules, **msgspec.structs.asdict(episode)}
            for key in ("opened", "red", "cleared"):
                time_ms = entry.pop(f"{key}_ms")
                entry[f"{key}_at"] = None if time_ms is None else clock.instant(time_ms)
            lines.write(encode(entry) + b"\n")

        yield note
