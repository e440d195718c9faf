"""Feeds a watch a made-up home's readings, a million or more, and prints every transition's digest.

Runs on CPython and on MicroPython: `judging_stream.py REPOSITORY READINGS SEED`. Both must print the same.
"""

import sys

sys.path.insert(0, sys.argv[1])
from agent.detection.watch import Watch

MINUTE_MS = 60_000


class Chance:
    """A small generator whose numbers fit 31 bits."""

    def __init__(self, seed):
        self.state = seed

    def below(self, limit):
        self.state = (self.state * 1103 + 12345) % 1048573
        return self.state % limit


class Home:
    """Draws by day, sleep by night, leaks, absences, falls, a wavering register, stale copies, swaps and gaps."""

    def __init__(self, seed):
        self.chance = Chance(seed)
        self.time_ms = 1_790_000_000_000
        self.register = 480_000_000
        self.leak_ml_min = 0
        self.still_until = 0
        self.stale = self.register

    def read(self):
        chance = self.chance
        minutes = 5 if chance.below(60) else 5 + chance.below(2_000)
        if chance.below(20_000) == 0:
            minutes += 10_000
        self.time_ms += minutes * MINUTE_MS
        hour = self.time_ms // 3_600_000 % 24
        if chance.below(3_000) == 0:
            self.leak_ml_min = (0, 0, 5, 17, 60, 170, 20_000)[chance.below(7)]
        if chance.below(2_000) == 0:
            self.still_until = self.time_ms + (8 + chance.below(60)) * 3_600_000
        used = self.leak_ml_min * min(minutes, 600)
        if self.time_ms >= self.still_until and 6 <= hour < 22 and chance.below(9) == 0:
            used += 300 + chance.below(20_000)
        if chance.below(500) == 0:
            self.stale = self.register // 1000 * 1000
        self.register += used
        shown = self.register // 1000 * 1000
        odd = chance.below(4_000)
        if odd < 8:
            shown -= 1000
        elif odd < 12:
            shown = self.stale
        elif odd == 12:
            shown += 90_000_000
        elif odd == 13:
            self.register = shown = chance.below(3) * 70_000_000
        return self.time_ms, hour, shown


def main():
    readings, seed = int(sys.argv[2]), int(sys.argv[3])
    home = Home(seed)
    watch = Watch(window_ms=12 * 3_600_000, threshold_ml=100_000)
    digest, transitions, before = 0, 0, ""
    seen = {}
    for number in range(readings):
        time_ms, hour, value = home.read()
        if home.chance.below(30_000) == 0:
            watch.excuse(time_ms + 3 * 86_400_000)
        watch.feed(time_ms, hour, value)
        now = f"{watch.code} {watch.low} {watch.red} {watch.flow.leak} {watch.flow.burst} {watch.reverse}"
        if now != before or watch.use or watch.back:
            transitions += 1
            for letter in now:
                digest = (digest * 31 + ord(letter)) % 1000003
            digest = (digest * 31 + number % 1000 + watch.use * 2 + watch.back + watch.limit.limit_h * 4) % 1000003
            for word in (
                watch.code or "plain",
                watch.low,
                "red-" + watch.red,
                "leak-" + watch.flow.leak,
                "burst-" + watch.flow.burst,
            ):
                seen[word] = seen.get(word, 0) + 1
        before = now
        if number % 99_991 == 99_990:
            other = Watch(window_ms=12 * 3_600_000, threshold_ml=100_000)
            other.feed(time_ms, hour, value)
            other.adopt(watch.dump(), time_ms)
            digest = (digest + sum(other.dump()) + other.real_use.leak_ml_h) % 1000003
    print(readings, "readings", transitions, "transitions", "digest", digest, sum(watch.dump()))
    for word in sorted(seen):
        print(word, seen[word])


main()
