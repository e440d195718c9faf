"""The low-usage rule on one meter: less than a threshold within a window, with a gap in polling taken seriously.

    time    ──r0────r1──────────(gap)──────────r2────r3──▶ now = r3
    window            [◀──────────── W ─────────────▶]

A reading says what the register shows at one moment; between two readings nobody knows *when* the water ran, only *how
much*. So the usage in the window is an interval:

    max = register now - register at the last reading at or before the window's start   (unknown without one)
    min = register now - register at the first reading at or after the window's start

1. LOW: max < threshold. However the water was spread, there was too little. A gap cannot hide it.
2. ENOUGH: min >= threshold.
3. UNSURE: anything else waits for the next reading.

All numbers are integers, time and volume in whichever unit the caller keeps to. State is bounded.

Portable: also runs on MicroPython.
"""

LOW, ENOUGH, UNSURE = "low", "enough", "unsure"

# Runs of equal values that are kept: 1.5 KB on a 32-bit board. A lone person makes 20 to 60 in 12 h; beyond the limit
# they are thinned out to one in about 11 min of 12 h, which widens the interval by the use of so many minutes.
RUNS_MAX = 128


class Window:
    """The recent past of a count, as runs of equal values: when each value was first and last seen."""

    def __init__(self, length: int) -> None:
        """Watch a window of `length`, in the unit of time that `add` is called with."""
        self.length = length
        self._first: list[int] = []
        self._last: list[int] = []
        self._value: list[int] = []

    def add(self, time: int, value: int) -> None:
        """Note that the count stood at `value` at `time`. Neither ever decreases between resets."""
        if self._value and value == self._value[-1]:
            self._last[-1] = time
        else:
            self._first.append(time)
            self._last.append(time)
            self._value.append(value)
        self._forget(time - self.length)
        if len(self._value) > RUNS_MAX:
            self._thin()

    def reset(self) -> None:
        """Forget everything: the register was replaced, and what ran in between is unknown."""
        del self._first[:], self._last[:], self._value[:]

    def start(self) -> "tuple[int, int] | None":
        """Return time and register of the last reading at or before the window's start, None where there is none.

        Of a run of equal readings it is the latest that lies at or before the start.
        """
        begin = self._last[-1] - self.length if self._value else 0
        if not self._value or self._first[0] > begin:
            return None
        index = self._covering(begin)
        return min(self._last[index], begin), self._value[index]

    def usage(self) -> "tuple[int, int | None]":
        """Return the least and the most that can have run within the window; None means unbounded."""
        if not self._value:
            return 0, None
        now = self._value[-1]
        begin = self._last[-1] - self.length
        index = 0
        while self._last[index] < begin:
            index += 1
        start = self.start()
        return now - self._value[index], None if start is None else now - start[1]

    def last_use(self) -> "tuple[int, int] | None":
        """Return between which readings water last ran: the last one before it and the first one after it.

        None where the register was never seen to change.
        """
        return (self._last[-2], self._first[-1]) if len(self._value) > 1 else None

    def _covering(self, begin: int) -> int:
        index = 0
        while index + 1 < len(self._first) and self._first[index + 1] <= begin:
            index += 1
        return index

    def _forget(self, begin: int) -> None:
        """Drop runs that end before another one that still starts at or before the window."""
        index = self._covering(begin)
        if index and self._first[0] <= begin:
            # One more stays, so that `last_use` knows that the register has changed at all.
            index -= 1
            del self._first[:index], self._last[:index], self._value[:index]

    def _thin(self) -> None:
        """Keep at most one run in each 64th part of the window, and the newest two."""
        least = self.length // (RUNS_MAX // 2)
        kept = [0]
        for index in range(1, len(self._first) - 2):
            if self._first[index] - self._first[kept[-1]] > least:
                kept.append(index)
        kept += [len(self._first) - 2, len(self._first) - 1]
        self._first = [self._first[index] for index in kept]
        self._last = [self._last[index] for index in kept]
        self._value = [self._value[index] for index in kept]


class LowUsage:
    """The rule itself: feed it the count of a home's use, it says LOW, ENOUGH or UNSURE."""

    def __init__(self, window: int, threshold: int) -> None:
        """Judge usage below `threshold` in `window`."""
        self.window = Window(window)
        self.threshold = threshold

    def feed(self, time: int, total: int) -> str:
        """Take the count at a time; it never decreases (`detection.register` sees to that)."""
        self.window.add(time, total)
        least, most = self.window.usage()
        if most is not None and most < self.threshold:
            return LOW
        return ENOUGH if least >= self.threshold else UNSURE
