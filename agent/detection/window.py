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

# Runs of equal values that are kept. A lone person makes 20 to 60 in 12 h, a leak many more; beyond the limit they are
# thinned out to one in each part of the window, which widens the interval by the use of so long: 11 min of 12 h on a
# gateway. A 32-bit board keeps fewer, so that a whole `Watch` takes 4 KiB at most, and widens it by 20: docs/board.md.
RUNS_MAX = 128
RUNS_MAX_BOARD = 44
PARTS_MAX = 64
ROOM = 8  # thinning leaves a run for each part, two before the window and two at its ends, and must not be due at once
SMALL_MAX = 1 << 29  # a 32-bit board keeps an integer below 2^30 in its list, a larger one takes 32 bytes more


class Window:
    """The recent past of a count, as runs of equal values: when each value was first and last seen."""

    def __init__(self, length: int, *, runs_max: int = RUNS_MAX) -> None:
        """Watch a window of `length`, in the unit of time that `add` is called with. Raise ValueError below 16 runs."""
        if runs_max < 2 * ROOM:
            raise ValueError("runs_max must be 16 or more")
        self.length = length
        self._runs_max = runs_max
        self._time_base = self._value_base = 0  # what is kept counts from here
        # A list on a board keeps the room that it once had, and then it never has to find more on a heap in pieces.
        self._first, self._last, self._value = [0] * runs_max, [0] * runs_max, [0] * runs_max
        self.reset()

    def add(self, time: int, value: int) -> None:
        """Note that the count stood at `value` at `time`. Neither ever decreases between resets."""
        if not self._value:
            self._time_base, self._value_base = time, value
        at, amount = time - self._time_base, value - self._value_base
        if at > SMALL_MAX or amount > SMALL_MAX:
            at, amount = self._rebase(at, amount)
        self._forget(at - self.length)
        if self._value and amount == self._value[-1]:
            self._last[-1] = at
            return
        if len(self._value) == self._runs_max:
            self._thin()
        self._first.append(at)
        self._last.append(at)
        self._value.append(amount)

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
        return min(self._last[index], begin) + self._time_base, self._value[index] + self._value_base

    def usage(self) -> "tuple[int, int | None]":
        """Return the least and the most that can have run within the window; None means unbounded."""
        if not self._value:
            return 0, None
        now = self._value[-1]
        begin = self._last[-1] - self.length
        index = 0
        while self._last[index] < begin:
            index += 1
        most = None if self._first[0] > begin else now - self._value[self._covering(begin)]
        return now - self._value[index], most

    def last_use(self) -> "tuple[int, int] | None":
        """Return between which readings water last ran: the last one before it and the first one after it.

        None where the register was never seen to change.
        """
        if len(self._value) < 2:
            return None
        return self._last[-2] + self._time_base, self._first[-1] + self._time_base

    def _covering(self, begin: int) -> int:
        index = 0
        while index + 1 < len(self._first) and self._first[index + 1] <= begin:
            index += 1
        return index

    def _forget(self, begin: int) -> None:
        """Drop runs that end before another one that still starts at or before the window."""
        index = self._covering(begin)
        if index > 1:
            # One more stays, so that `last_use` knows that the register has changed at all.
            index -= 1
            del self._first[:index], self._last[:index], self._value[:index]

    def _thin(self) -> None:
        """Keep at most one run in each part of the window, and the newest one: the next will be added."""
        first, last, value = self._first, self._last, self._value
        least = self.length // min(self._runs_max - ROOM, PARTS_MAX)
        kept, newest = 0, len(first) - 1
        for index in range(1, newest + 1):
            if index == newest or first[index] - first[kept] > least:
                kept += 1
                first[kept], last[kept], value[kept] = first[index], last[index], value[index]
        kept += 1
        del first[kept:], last[kept:], value[kept:]

    def _rebase(self, at: int, amount: int) -> "tuple[int, int]":
        """Count from the newest run that is kept; return the new reading's place from there."""
        time_moved, value_moved = self._last[-1], self._value[-1]
        self._time_base += time_moved
        self._value_base += value_moved
        for index in range(len(self._value)):
            self._first[index] -= time_moved
            self._last[index] -= time_moved
            self._value[index] -= value_moved
        return at - time_moved, amount - value_moved


class LowUsage:
    """The rule itself: feed it the count of a home's use, it says LOW, ENOUGH or UNSURE."""

    def __init__(self, window: int, threshold: int, *, runs_max: int = RUNS_MAX) -> None:
        """Judge usage below `threshold` in `window`. Raise ValueError on what `Window` refuses."""
        self.window = Window(window, runs_max=runs_max)
        self.threshold = threshold

    def feed(self, time: int, total: int) -> str:
        """Take the count at a time; it never decreases (`detection.register` sees to that)."""
        self.window.add(time, total)
        least, most = self.window.usage()
        if most is not None and most < self.threshold:
            return LOW
        return ENOUGH if least >= self.threshold else UNSURE
