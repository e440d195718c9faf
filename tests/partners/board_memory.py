"""Feeds watches with a board's settings the hardest homes that there are; prints what they said and what they took.

Runs on CPython and on MicroPython: `board_memory.py REPOSITORY READINGS`. What is said must be the same on both; the
bytes of heap are printed by MicroPython only, as lines that begin with "bytes".

A home has a leak, so that every poll ends a run; every fault of a register; absences; a silence of 40 days, in which
times that are kept fall out of the range of a small integer; and a register beyond 2^30 ml. Times are milliseconds
since 1970, which a 32-bit board keeps boxed.
"""

import gc
import sys
from array import array

sys.path.insert(0, sys.argv[1])
from agent.detection.watch import DAY_MS, HOUR_MS, MINUTE_MS, Watch
from agent.detection.window import RUNS_MAX_BOARD

ON_A_BOARD = hasattr(gc, "mem_alloc")
START_MS = 1_790_000_000_000
STEADY = 10_000
# What happens to a home, one after another, with 300 readings of its daily life before each.
ODD = ("back", "stale", "outlier", "swap", "absence", "reverse", "gap", "silence")


def taken():
    gc.collect()
    return gc.mem_alloc() if ON_A_BOARD else 0


class Home:
    """Its own numbers lie in an array: what is taken beyond `before` is the watch's."""

    def __init__(self, *, register_ml):
        self.at = array("q", [START_MS, register_ml])
        self.digest = self.most = self.runs = 0
        self.watch = None
        self.before = taken()
        self.watch = Watch(window_ms=12 * HOUR_MS, threshold_ml=100_000, runs_max=RUNS_MAX_BOARD)

    def read(self, *, minutes=5, used_ml=1000, shown_ml=0):
        """Read once; `shown_ml` is by how much the register shows something else."""
        watch, at = self.watch, self.at
        at[0] += minutes * MINUTE_MS
        at[1] += used_ml
        watch.feed(at[0], at[0] // HOUR_MS % 24, at[1] + shown_ml)
        for word in (watch.code, watch.low, watch.red, watch.flow.leak, watch.flow.burst, watch.reverse):
            self.digest = (self.digest * 31 + len(word) + ord((word or "-")[0])) % 1000003
        self.runs = max(self.runs, len(watch.low_usage.window._value))

    def live(self, readings):
        """Every poll sees water; every hour's last one sees none."""
        for number in range(readings):
            self.read(used_ml=(number % 7 + 1) * 1000 if number % 12 else 0)
            if number % 25 == 0:
                self.weigh()

    def weigh(self):
        self.most = max(self.most, taken() - self.before)

    def suffer(self, odd):
        """Let something odd happen."""
        if odd == "back":
            self.read(used_ml=0, shown_ml=-1000)
        elif odd == "stale":
            self.read(used_ml=0, shown_ml=-40_000)
        elif odd == "outlier":
            self.read(used_ml=0, shown_ml=90_000_000)
        elif odd == "swap":
            self.at[1] += 150_000_000
            for _ in range(4):
                self.read()
        elif odd == "absence":
            self.watch.excuse(self.at[0] + 10 * HOUR_MS)
            for _ in range(130):
                self.read(used_ml=0)
            self.watch.excuse(self.at[0] + DAY_MS)
        elif odd == "reverse":
            for _ in range(5):
                self.read(used_ml=-12_000)
        elif odd == "gap":
            self.read(minutes=3000, used_ml=60_000)
        elif odd == "silence":
            for _ in range(40 * 48):
                self.read(minutes=30, used_ml=0)
        self.weigh()


def hardest(readings, *, register_ml):
    home = Home(register_ml=register_ml)
    for _ in range(max(readings // len(ODD) // 300, 1)):
        for odd in ODD:
            home.live(300)
            home.suffer(odd)
    print("register", register_ml, "digest", home.digest, "runs", home.runs, sum(home.watch.dump()))
    if ON_A_BOARD:
        print("bytes at most", home.most)


def steady(readings):
    """A watch takes no more `STEADY` readings further on."""
    home = Home(register_ml=480_000_000)
    home.live(readings)
    home.weigh()
    first = taken()
    home.live(STEADY)
    last = taken()
    print("steady", home.digest)
    if ON_A_BOARD:
        print("bytes taken", first - home.before)
        print("bytes grown", last - first)


def main():
    readings = int(sys.argv[2])
    steady(readings)
    for register_ml in (480_000_000, 20_000_000_000):
        hardest(readings // 3, register_ml=register_ml)


main()
