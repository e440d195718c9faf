"""The work on one part of the input: what a process, or a machine of a cluster, does on its own."""

from pathlib import Path

import msgspec

from agent.backtest.columns import Columns
from agent.backtest.homes import Home, gather
from agent.backtest.moments import LocalClock
from agent.backtest.problems import BadRows
from agent.backtest.replay import Episode, Replay, judged_from_ms
from agent.backtest.rules import RuleSet
from agent.backtest.score import HomeScore, score
from agent.backtest.splitting import Part, open_part
from agent.backtest.stops import Delays, choose, simulate


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done with every home."""

    rules: tuple[RuleSet, ...]
    timezone: str
    columns: Columns | None = None
    values: str | None = None
    meters: frozenset[str] | None = None
    skip_bad: bool = False
    learn_days: int = 60
    stops: int = 0
    seed: int = 0
    episodes: bool = False
    plot: Path | None = None


class HomeResult(msgspec.Struct, frozen=True, kw_only=True):
    """One home under every rule set: scores and, where asked for, episodes, in the order of the rule sets."""

    meter: str
    source: str
    readings: int
    missing: int
    days: float
    scores: tuple[HomeScore, ...]
    episodes: tuple[tuple[Episode, ...], ...]


class PartResult(msgspec.Struct, frozen=True, kw_only=True):
    """The homes of one part, and the rows that were bad."""

    homes: tuple[HomeResult, ...]
    bad_count: int
    bad_first: tuple[str, ...]


def work_on(part: Part, job: Job) -> PartResult:
    """Judge every home of a part. The result depends on part and job alone. Raises InputProblem."""
    bad = BadRows(skip=job.skip_bad)
    clock = LocalClock(job.timezone)
    rows, values, place = open_part(part, columns=job.columns, values=job.values, bad=bad)
    if job.meters is not None:
        wanted = job.meters
        rows = (row for row in rows if row[1] in wanted)
    homes = gather(rows, clock=clock, values=values, bad=bad, place=place)
    results = []
    while homes:  # each is let go when it is done
        home = homes.pop(0)
        results.append(_judge(home, job, clock, source=str(part.source)))
    return PartResult(homes=tuple(results), bad_count=bad.count, bad_first=tuple(bad.first))


def _judge(home: Home, job: Job, clock: LocalClock, *, source: str) -> HomeResult:
    since_ms = judged_from_ms(home, job.learn_days) if len(home) else 0
    stops = (
        frozenset(choose(home, since_ms=since_ms, stops=job.stops, seed=job.seed)) if job.stops else frozenset[int]()
    )
    interval_ms = home.interval_ms
    replays, scores = [], []
    for rule in job.rules:
        replay = Replay(home, rule, since_ms=since_ms, interval_ms=interval_ms, traced=job.plot is not None)
        yellow, red = (Delays(), Delays()) if job.stops else (None, None)
        for i, (time_ms, hour, value_ml) in enumerate(zip(home.times, home.hours, home.values, strict=True)):
            replay.feed(time_ms, hour, value_ml)
            if i in stops and yellow is not None and red is not None:
                simulate(replay, time_ms=time_ms, interval_ms=interval_ms, clock=clock, yellow=yellow, red=red)
        replay.close()
        replays.append(replay)
        scores.append(score(replay, since_ms=since_ms, yellow=yellow, red=red))
    if job.plot is not None and len(home):
        from agent.backtest.picture import draw

        draw(home, replays, scores, clock=clock, since_ms=since_ms, folder=job.plot)
    return HomeResult(
        meter=home.meter,
        source=source,
        readings=len(home),
        missing=home.missing,
        days=round((home.times[-1] - home.times[0]) / 86_400_000, 2) if len(home) else 0.0,
        scores=tuple(scores),
        episodes=tuple(tuple(replay.episodes) for replay in replays) if job.episodes else (),
    )
