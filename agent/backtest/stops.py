"""Simulated stops: from a random reading on nobody draws water; how long until somebody would be told?

    register   ___/‾‾‾|‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾ flat, or rising with the leak that the watch knew of at that time
                     stop      yellow   red
                      ├──────────┤       │
                      ├──────────────────┤   delays, to the reading that raises the alarm

A stop follows a reading at once, so a delay contains the whole interval to the next one. Readings then come at the
home's usual interval. Where an alarm stands already at the stop, it has no delay: such stops are counted apart.
"""

import copy
import random
from collections import Counter
from typing import Final

import msgspec

from agent.backtest.homes import Home
from agent.backtest.moments import LocalClock
from agent.backtest.replay import Replay
from agent.detection.watch import HOUR_MS
from protocols.contract import Level

NEVER_MS: Final = 72 * HOUR_MS  # what has not been noticed by then is missed
MINUTE_MS: Final = 60_000
POLLS_MAX: Final = 4_320  # a stop is followed at most so often: once a minute


class Delays(msgspec.Struct):
    """What became of the stops of one home, for one level: minutes to the alarm; stops at which it stood; missed."""

    minutes: Counter[int] = msgspec.field(default_factory=Counter)
    standing: int = 0
    missed: int = 0


def choose(home: Home, *, since_ms: int, stops: int, seed: int) -> list[int]:
    """Return the readings after which the home stops: so many of each hour's last ones, all where there are fewer.

    The choice depends on the seed and the meter alone.
    """
    last_of_hour = {time_ms // HOUR_MS: i for i, time_ms in enumerate(home.times) if time_ms >= since_ms}
    candidates = list(last_of_hour.values())
    chance = random.Random(f"{seed}:{home.meter}")  # a text, as what a hash gives changes from run to run
    return sorted(chance.sample(candidates, min(stops, len(candidates))))


def simulate(replay: Replay, *, time_ms: int, interval_ms: int, clock: LocalClock, yellow: Delays, red: Delays) -> None:
    """Stop the home at its last reading and note the delays; the replay itself stays as it is."""
    level = replay.alarm.level
    waiting = {}
    if level is None:
        waiting[Level.YELLOW] = yellow
    else:
        yellow.standing += 1
    if level is Level.RED:
        red.standing += 1
    elif replay.rule.red:
        waiting[Level.RED] = red
    if not waiting:
        return
    alarm = copy.deepcopy(replay.alarm)
    step_ml = max(alarm.watch.register.step, 1)
    leak_ml_h = alarm.watch.real_use.leak_ml_h
    interval_ms = max(interval_ms, NEVER_MS // POLLS_MAX)
    for elapsed_ms in range(interval_ms, NEVER_MS + 1, interval_ms):
        leaked_ml = leak_ml_h * elapsed_ms // HOUR_MS // step_ml * step_ml
        at_ms = time_ms + elapsed_ms
        alarm.feed(at_ms, clock.hour(at_ms), replay.plain_ml + leaked_ml)
        for reached in [wanted for wanted in waiting if alarm.level is Level.RED or alarm.level is wanted]:
            waiting.pop(reached).minutes[elapsed_ms // MINUTE_MS] += 1
        if not waiting:
            return
    for delays in waiting.values():
        delays.missed += 1
