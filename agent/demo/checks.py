"""What the demo claims, and how each claim is proved from the county's database and the agent's store.

A claim that cannot be proved fails the demo: there is no check here that a run without its fact would pass.
"""

import bisect
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from agent.demo import scene
from agent.demo.observer import Step, View
from agent.demo.visit import RESULT
from gateway.responder import SimulatedMeter
from gateway.village_file import VillagePlan
from protocols.contract import Kind, Level, Transition
from protocols.reading import Reading

# A value was on the meter's display before the agent dated it, by so much at most: two slow exchanges in real time, and
# less than a poll, so that a repetition of the last value is found out.
EXCHANGE_MS_MAX: Final = 500 * scene.RATE
# With fewer readings something is wrong that the other checks would not notice: half of what is planned.
VALUES_MIN: Final = 40
Shape = tuple[tuple[str, str | None], ...]  # of an alert: level and transition, step by step
FALL: Final[Shape] = (
    (Level.YELLOW, Transition.OPENED),
    (Level.RED, Transition.ESCALATED),
    (Level.RED, Transition.CLEARED),
)
YELLOW_AGAIN: Final[Shape] = ((Level.YELLOW, Transition.OPENED), (Level.YELLOW, Transition.CLEARED))
UNWATCHED: Final[Shape] = ((Level.YELLOW, Transition.OPENED),)
_NO_CHANCE: Final = random.Random(0)  # faults do not strike what a register shows


class Check(NamedTuple):
    """One claim in two languages, whether it holds, and the figures that say so."""

    chinese: str
    english: str
    holds: bool
    figures: str


def check_all(view: View, plan: VillagePlan) -> list[Check]:
    """Judge a finished play by its last view; `plan` is what the simulated meters were told."""
    return [
        _everything_arrived(view),
        _values_are_true(view, plan),
        _outage_lost_nothing(view),
        _dead_meter_is_told(view),
        _silent_home(view),
        _visit_is_noted(view),
        _no_other_alert(view),
    ]


def _everything_arrived(view: View) -> Check:
    taken = Counter(map(_key, view.taken))
    # What the county received after the moment at which the gateway's numbers were read does not count.
    stored = [row for row in view.stored if row.seq <= view.telemetry.last_seq]
    arrived = Counter((row.meter, row.at_ms, row.volume_ml, row.quality, row.reason) for row in stored)
    seqs = {row.seq for row in stored}
    holes = view.telemetry.last_seq - len(seqs)
    values = Counter(reading.meter for reading in view.taken if reading.volume_ml is not None)
    fewest = min(values[home.meter] for home in scene.HOMES if home.meter != scene.DEAD)
    return Check(
        "网关的读数一条不少地到了县里",
        "Every reading of the gateway arrived, once",
        holds=view.is_settled and taken == arrived and holes == 0 and fewest >= VALUES_MIN,
        figures=f"{len(view.taken):,} = {len(stored):,}; seq 1–{view.telemetry.last_seq}, {holes} holes;"
        f" {view.waiting} waiting",
    )


def _values_are_true(view: View, plan: VillagePlan) -> Check:
    """A register never falls: the first instant at which it showed a value or more decides whether it showed it."""
    wrong, values = [], 0
    meters = {meter.id: SimulatedMeter(meter, chance=_NO_CHANCE) for meter in plan.meters}
    for row in view.stored:
        if row.volume_ml is None:
            continue
        values += 1
        if row.meter not in meters or not _was_shown(meters[row.meter].shown_ml, row.volume_ml, row.at_ms):
            wrong.append(row)
    return Check(
        "县里的每个读数都是表上显示过的数",
        "Every value stored is one that the meter showed then",
        holds=values > 0 and not wrong,
        figures=f"{values - len(wrong):,} of {values:,}"
        + "".join(f"; {row.meter} {row.volume_ml} mL at {stamp(row.at_ms)}" for row in wrong[:3]),
    )


def _outage_lost_nothing(view: View) -> Check:
    chinese, english = (
        "断网期间的读数和黄警，后来全到了",
        "What was read and raised while the network was away came after",
    )
    away_ms, back_ms = view.link.away_ms, view.link.back_ms
    if away_ms is None or back_ms is None:
        return Check(chinese, english, holds=False, figures="never away")
    during = {_key(reading) for reading in view.taken if away_ms < reading.at.wall_ms < back_ms}
    late = {
        (row.meter, row.at_ms, row.volume_ml, row.quality, row.reason)
        for row in view.stored
        if away_ms < row.at_ms < back_ms and row.received_ms >= back_ms
    }
    raised = [step for step in view.steps if away_ms < step.at_ms < back_ms <= step.received_ms]
    return Check(
        chinese,
        english,
        holds=len(during) > 0 and during == late and len(raised) > 0,
        figures=f"{stamp(away_ms)} – {stamp(back_ms)}: {len(late)} of {len(during)}; {_story(raised) or 'no alert'}",
    )


def _dead_meter_is_told(view: View) -> Check:
    rows = [row for row in view.stored if row.meter == scene.DEAD]
    told = [row for row in rows if row.volume_ml is None and row.reason == "no_response"]
    steps = [step for step in view.steps if step.meter == scene.DEAD]
    return Check(
        "坏表从不产生数值；县里知道这户没人看护",
        "The dead meter never became a number; the county knows that nobody watches this home",
        holds=len(rows) > 0 and len(told) == len(rows) and _shapes(steps) == [(Kind.METER_SILENT, UNWATCHED)],
        figures=f"{scene.DEAD}: {len(rows) - len(told)} values, {len(told)} × no_response; {_story(steps)}",
    )


def _silent_home(view: View) -> Check:
    """Where all water came between two polls, no second yellow begins; one that does must end."""
    steps = [step for step in view.steps if step.meter == scene.SILENT]
    shapes = _shapes(steps)
    is_right = shapes in ([(Kind.LOW_USAGE, FALL)], [(Kind.LOW_USAGE, FALL), (Kind.LOW_USAGE, YELLOW_AGAIN)])
    is_open = any(body.meter == scene.SILENT for body in view.open_episodes)
    return Check(
        "安静的那户：黄警、升红警、用水后解除，同一条警报",
        "The silent home: yellow, then red, ended by water, all one alert",
        holds=is_right and not is_open and all(step.text.keys() >= {"zh", "en"} for step in steps),
        figures=_story(steps) or "no alert",
    )


def _visit_is_noted(view: View) -> Check:
    ended = next((step for step in view.steps if (step.level, step.transition) == FALL[-1]), None)
    visits = [(visit.alert, visit.result, visit.done) for visit in view.visits]
    return Check(
        "县里的上门结果到了网关，写进了这条警报",
        "The county's word of the visit reached the gateway and stands in the alert",
        holds=ended is not None and ended.visit == RESULT and visits == [(ended.id, RESULT, True)],
        figures="; ".join(f"{visit.result} {stamp(visit.at_ms)} …{visit.alert[-6:]}" for visit in view.visits)
        or "none",
    )


def _no_other_alert(view: View) -> Check:
    others = [step for step in view.steps if step.meter not in {scene.SILENT, scene.DEAD}]
    seqs = sorted(step.seq for step in view.steps)
    is_acknowledged = view.alerts.last_seq == view.alerts.acked_seq and seqs == [*range(1, view.alerts.last_seq + 1)]
    is_left = [body.meter for body in view.open_episodes] == [scene.DEAD]
    return Check(
        "别家没有警报；每一步县里都已收下",
        "No other home was alarmed; the county has confirmed every step",
        holds=not others and is_acknowledged and is_left,
        figures=f"{len(others)} others; {view.alerts.acked_seq} of {view.alerts.last_seq} confirmed"
        + "".join(f"; {_story([step])}" for step in others[:3]),
    )


def _shapes(steps: Sequence[Step]) -> list[tuple[str, Shape]]:
    """Return each alert's kind and the course that it took, in the order in which they began."""
    ids = dict.fromkeys((step.id, step.kind) for step in steps)
    return [(kind, tuple((step.level, step.transition) for step in steps if step.id == id_)) for id_, kind in ids]


def _story(steps: Iterable[Step]) -> str:
    return "; ".join(
        f"{step.meter} {step.level} {step.transition} {stamp(step.at_ms)} …{step.id[-6:]}" for step in steps
    )


def _key(reading: Reading) -> tuple[str, int, int | None, str, str | None]:
    return reading.meter, reading.at.wall_ms, reading.volume_ml, str(reading.quality), reading.reason


def _was_shown(shown_ml: Callable[[int], int], volume_ml: int, at_ms: int) -> bool:
    span = range(at_ms - EXCHANGE_MS_MAX, at_ms + 1)
    index = bisect.bisect_left(span, volume_ml, key=shown_ml)
    return index < len(span) and shown_ml(span[index]) == volume_ml


def stamp(wall_ms: int) -> str:
    """Return a moment of the play as `day 2 07:40`."""
    return f"day {scene.day_of(wall_ms)} {scene.local(wall_ms):%H:%M}"
