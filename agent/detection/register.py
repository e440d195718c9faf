"""Readings made sense of: one continuous count of a home's use out of what its meter's register shows.

`top` is the highest value believed; `reach` is what can have run since the last reading that counted: flow_max x time
+ step + waver (10 L, or one step where that is more). It is at most 1073 m3. `PAST` is what `top` was 12 to 24 h ago.

    the register shows                                    code            the reading counts, and its use
    ----------------------------------------------------  --------------  ------------------------------------------
    top .. top + reach                                    ""              yes; all that was added
    the same, after a reading that was held               returned        yes; all that was added
    below top by at most the waver                        jitter          yes; none: the highest stands
    below, but not below PAST                             stale_copy      no
    below by what may have run back (reach, 1 m3)         held            no
      either of them three times in a row, or falling     jitter          yes; none: the highest stands. But not while
      step by step (`reverse`)                                            it rises: that refills the pipes, or is lost
      an hour on, after it rose and stood still           set_back        yes; none: goes on from there
    anything else: too far up or down                     held            no
      again, after `top` was seen in between              second_counter  no
      three in a row that make one register, or           meter_swap      yes; what those three added
      six in a row that make none; begins below 1 m3      register_reset  yes; what those three added
      passes 10^n m3 or 2^16, 2^32 steps by 1 m3 or less  rollover        yes; all across
      is the register from before the swap, an hour ago   returned        yes; all that it added meanwhile

A wrong use would hide a fall; so nothing counts before it is possible. A wrong silence calls for help in vain; so
nothing is concluded from what is not clear. Neither lasts: of three doubtful readings in a row the third counts, of six
that contradict each other the sixth; only those that rise below the top may count for nothing for an hour.

What cannot be known: a swap to a register within reach counts as use, and a long gap makes the reach long; what ran
back and what was only read late look alike, so the first run after a fall counts as nothing, up to the old top; more
than two stale copies in a row, a day old, look like a swap, and what ran until `top` is back is lost after an hour.

Portable: also runs on MicroPython. Volumes in millilitres, times in milliseconds; a time before the last one counts as
the same moment.
"""

import struct

JITTER, STALE_COPY, HELD, RETURNED = "jitter", "stale_copy", "held", "returned"
SECOND_COUNTER, METER_SWAP, REGISTER_RESET = "second_counter", "meter_swap", "register_reset"
ROLLOVER, SET_BACK = "rollover", "set_back"
MEANING = {
    JITTER: ("读数略有回退，以最高读数为准", "the register went back a little; its highest value stands"),
    STALE_COPY: ("收到旧读数，不予采用", "an older value came again; it is set aside"),
    HELD: ("读数突变，等待确认", "the value cannot follow from the one before; it waits for confirmation"),
    RETURNED: ("读数恢复正常，此前的异常读数作废", "the register is back; what was held was an outlier"),
    SECOND_COUNTER: ("出现另一只表的读数，不予采用", "a second register answers in between; it is set aside"),
    METER_SWAP: ("已换表或读数被改写，从新读数继续计量", "another register: meter swapped or value set anew"),
    REGISTER_RESET: ("新表或读数归零，从新读数继续计量", "the register begins near zero: new meter or reset"),
    ROLLOVER: ("读数满量程后归零，用水量连续计算", "the register passed its highest number; use counts across"),
    SET_BACK: (
        "读数持续偏低（倒流或校正），从该读数继续计量",
        "the register stays lower: water ran back, or it was set",
    ),
}
CODES = "", JITTER, STALE_COPY, HELD, RETURNED, SECOND_COUNTER, METER_SWAP, REGISTER_RESET, ROLLOVER, SET_BACK

# ISO 4064-1:2014 (GB/T 778.1-2018) 4.1.5: Q4 = 1.25 Q3. Q3 of DN15 is 2.5 m3/h, of DN20 4 m3/h: Q4 is 3.1 and 5 m3/h.
FLOW_MAX_ML_H = 5_000_000
HOUR_MS = 3_600_000
HALF_DAY_MS = 12 * HOUR_MS
WAVER_ML = 10_000  # a wheel between two digits wavers by one step, at most 10 L on village meters
M3_ML = 1_000_000  # the coarsest step, the largest tank that runs back, the most that a new meter has seen on test
USED_MAX_ML = (1 << 30) - 1  # what the rules take in one reading; nine days at DN20's overload
VALUE_MAX_ML = 1 << 50  # a thousand million m3: no register
ALIKE = 3  # readings in a row that make a register: two may be one fault that lasted
HELD_MAX = 6
FALLS = 3  # in a row make a reverse flow
# Movements until the step is believed; it is learned on. Of all starts in 13 real homes of 1 L steps, 4 movements gave
# another step in up to 25 %, 8 in 6 %, 16 in 0.4 %; a home that uses 30 L a day shows 16 movements of 10 L in 6 days.
MOVES_ENOUGH = 16
NOISE_SHIFT = 4  # a float's rounding moves a movement by less than a 16th of the step
NEVER = -1

_STATE = "<BBq15q8i"
_VERSION = 1


class Register:
    """Makes the count. After each reading `total`, `used`, `code` and `anew` speak of it."""

    def __init__(self, *, flow_max_ml_h: int = FLOW_MAX_ML_H) -> None:
        """Watch a meter through which at most `flow_max_ml_h` runs. Raise ValueError below 1."""
        if flow_max_ml_h < 1:
            raise ValueError("flow_max_ml_h must be 1 or more")
        self.flow_max_ml_h = flow_max_ml_h
        self.total = self.used = 0  # since the first reading; by the last one
        self.code = ""
        self.anew = False  # a new register, after more than an hour without one: what ran in between is unknown
        self.step = 0  # learned; 0 until then. After a swap the old one stands until the new one is learned
        self._divisor = self._moves = 0
        # The register that counts, and what it was 12 to 24 h ago.
        self._at = self._now = NEVER
        self._top = self._past = self._middle = self._marked_at = 0
        # Another one that was seen; its total where it counted once, and how its present run of readings began.
        self._other = self._first = 0
        self._other_at = self._other_total = self._first_at = self._rose_at = NEVER
        self._run = self._seen = self._held = 0
        # Falls one after another.
        self._shown = self._crest = self._fell_at = self._falls = 0

    @property
    def top(self) -> int:
        """The highest value believed of the present register."""
        return self._top

    @property
    def finest(self) -> int:
        """The step that the movements so far allow; 0 before three of them."""
        return self._divisor if self._moves > 2 else 0

    def reaches(self, time_ms: int, value_ml: int) -> bool:
        """Tell whether so much can have run up to that time."""
        if self._now == NEVER:
            return False
        self._now = max(time_ms, self._now)
        return 0 <= value_ml - self._top <= self._reach(self._at)

    @property
    def reverse(self) -> bool:
        """Whether the register runs backward, step by step."""
        return self._falls >= FALLS and self._crest - self._shown > max(WAVER_ML, self.step)

    def feed(self, time_ms: int, value_ml: int) -> bool:
        """Take a reading; say whether it counts. Nothing may be concluded from one that does not."""
        before = self.code
        self.used, self.code, self.anew = 0, "", False
        if not -VALUE_MAX_ML < value_ml < VALUE_MAX_ML:
            self.code = HELD
            return False
        if self._now == NEVER:
            self._now = max(time_ms, 0)
            self._shown = value_ml
            self._go_on(value_ml)
            return True
        self._now = max(time_ms, self._now)
        if value_ml != self._shown or self._falls:
            self._note_falls(value_ml)
        added = value_ml - self._top
        if 0 <= added <= self._reach(self._at):
            if added:
                self._count(added)
            self._at, self._run, self._held = self._now, 0, 0
            self.code = RETURNED if before == HELD else ""
            return True
        if -max(WAVER_ML, self.step) <= added < 0:
            self._at, self._run, self._held = self._now, 0, 0
            self.code = JITTER
            return True
        return self._weigh(value_ml)

    def _reach(self, since_ms: int) -> int:
        """Return the most that can have run since then. Until the first movement the step may be the coarsest."""
        slack = max(WAVER_ML, self.step) + (self._divisor or M3_ML)
        return min(self.flow_max_ml_h * (self._now - since_ms) // HOUR_MS + slack, USED_MAX_ML)

    def _count(self, added: int) -> None:
        if self._now - self._marked_at >= HALF_DAY_MS:
            self._past, self._middle, self._marked_at = self._middle, self._top, self._now
        self._top += added
        self.used = added
        self.total += added
        self._learn_step(added)

    def _go_on(self, value_ml: int) -> None:
        """Count on from this value, whatever came before."""
        self._top = self._past = self._middle = value_ml
        self._at = self._marked_at = self._now
        self._run = self._held = self._falls = 0

    def _note_falls(self, value_ml: int) -> None:
        fall, self._shown = self._shown - value_ml, value_ml
        if fall < 0 or fall > M3_ML or (fall == 0 and self._now - self._fell_at > HOUR_MS):
            self._falls = 0
        elif fall > 0:
            if self._falls == 0:
                self._crest = value_ml + fall
            self._falls = min(self._falls + 1, FALLS)
            self._fell_at = self._now

    def _learn_step(self, added: int) -> None:
        """Learn the greatest common divisor of the movements, near enough for a float's rounding.

        Of two divisors whose rest is below a 16th the larger is kept; a whole-numbered register soon shows a larger
        rest. Rounding adds up in long movements, so these only confirm.
        """
        if self._divisor == 0:
            self._divisor = added
        if added % self._divisor:
            if added > self._divisor << NOISE_SHIFT:
                return
            noise = self._divisor >> NOISE_SHIFT
            larger, smaller = added, self._divisor
            while smaller > noise:
                larger, smaller = smaller, larger % smaller
                smaller = min(smaller, larger - smaller)
            self._divisor = larger
        self._moves = min(self._moves + 1, MOVES_ENOUGH)
        if self._moves == MOVES_ENOUGH:
            self.step = _usual_step(self._divisor)

    def _weigh(self, value_ml: int) -> bool:
        """Judge a value that the register cannot show now: hold it until it is clear what it is."""
        low = value_ml < self._top and (
            value_ml >= self._past or self._top - value_ml <= min(self._reach(self._at), M3_ML)
        )
        rose = self._note_other(value_ml)
        if low:
            return self._weigh_low(value_ml, rose=rose)
        if self._run >= ALIKE or self._held >= HELD_MAX:
            self._begin()
            return True
        self.code = SECOND_COUNTER if self._seen > self._run else HELD
        return False

    def _note_other(self, value_ml: int) -> bool:
        """Note another register, the known one or a new one; say whether it rose within this run."""
        added = value_ml - self._other
        if not (
            self._other_at != NEVER
            and self._now - self._other_at <= 2 * HALF_DAY_MS
            and -max(WAVER_ML, self.step) <= added <= self._reach(self._other_at)
        ):
            self._run = self._seen = 0
            self._other, self._other_total, added = value_ml, NEVER, 0
        elif self._now - self._other_at > HOUR_MS:
            self._other_total = NEVER
        if self._run == 0:
            self._first, self._first_at, self._rose_at = value_ml, self._now, NEVER
        rose = self._run > 0 and added > 0
        if rose and self._rose_at == NEVER:
            self._rose_at = self._now
        if added > 0:
            self._other += added
            if self._other_total != NEVER:
                self._other_total += added
        self._other_at = self._now
        self._run, self._held = min(self._run + 1, HELD_MAX), min(self._held + 1, HELD_MAX)
        self._seen = min(self._seen + 1, HELD_MAX + 1)
        return rose

    def _weigh_low(self, value_ml: int, *, rose: bool) -> bool:
        """Judge a value somewhat below the top: a stale copy, or water that ran back."""
        alike = self._run >= ALIKE
        ran = self._rose_at != NEVER and (not rose or self._now - self._rose_at >= HOUR_MS)
        if alike and ran and self._now - self._first_at >= HOUR_MS:
            self._go_on(value_ml)
            self._other_at = NEVER
            self.code = SET_BACK
            return True
        if self.reverse or ((alike or self._held >= HELD_MAX) and not rose):
            self.code = JITTER
            return True
        self.code = STALE_COPY if value_ml >= self._past else HELD
        return False

    def _begin(self) -> None:
        """Count on from the other register, which has made itself clear."""
        old, old_at, old_total = self._top, self._at, self.total
        across = self._rollover()
        if self._other_total != NEVER:
            self.code, self.used, old_total = RETURNED, max(self._other_total - self.total, 0), NEVER
        elif across:
            self.code, self.used, old_total = ROLLOVER, across, NEVER
        else:
            begins_low = self._first < old and 0 <= self._first <= M3_ML
            self.code, self.used = REGISTER_RESET if begins_low else METER_SWAP, self._other - self._first
            self.anew = self._first_at - old_at > HOUR_MS
            self._divisor = self._moves = 0
        self.used = min(self.used, USED_MAX_ML)
        self.total += self.used
        self._go_on(self._other)
        self._other, self._other_at, self._other_total, self._seen = old, old_at, old_total, 1

    def _rollover(self) -> int:
        """Return what ran across the register's highest number, 0 where it was not that."""
        if 0 <= self._other < self._top:
            for highest in (10**9, 10**10, 10**11, 10**12, self.step << 16, self.step << 32):
                across = highest - self._top + self._other
                if self._top < highest and across <= min(self._reach(self._at), M3_ML + self.step):
                    return across
        return 0

    def dump(self) -> bytes:
        """Return the whole state; `load` gives back one that goes on as this one would."""
        now = (self._at, self._now, self._top, self._past, self._middle, self._marked_at)
        other = (self._other, self._other_at, self._other_total, self._first, self._first_at, self._rose_at)
        shown = (self._shown, self._crest, self._fell_at)
        counts = (self.step, self._divisor, self._moves, self._run, self._seen, self._held, self._falls)
        code = CODES.index(self.code)
        return struct.pack(_STATE, _VERSION, code, self.total, *now, *other, *shown, *counts, self.flow_max_ml_h)

    @classmethod
    def load(cls, state: bytes) -> "Register":
        """Rebuild from `dump`. Raise ValueError on any other state: it is to be rebuilt from stored readings."""
        if len(state) != struct.calcsize(_STATE) or state[0] != _VERSION or state[1] >= len(CODES):
            raise ValueError("not a state of this version")
        values = struct.unpack(_STATE, state)
        self = cls(flow_max_ml_h=values[-1])
        self.code, self.total = CODES[values[1]], values[2]
        self._at, self._now, self._top, self._past, self._middle, self._marked_at = values[3:9]
        self._other, self._other_at, self._other_total = values[9:12]
        self._first, self._first_at, self._rose_at = values[12:15]
        self._shown, self._crest, self._fell_at = values[15:18]
        self.step, self._divisor, self._moves, self._run, self._seen, self._held, self._falls = values[18:25]
        return self


def _usual_step(divisor: int) -> int:
    """Return the largest step in which meters count that divides all movements, near enough.

    Draws that are all alike (a cistern of 6 L) have a divisor of their own; no meter counts in it.
    """
    power = 1
    while power <= divisor:
        power *= 10
    while power:
        for digits in (50, 25, 20, 10):
            step = power * digits // 10
            if 0 < step <= divisor + (divisor >> NOISE_SHIFT):
                rest = divisor % step
                if min(rest, step - rest) <= step >> (NOISE_SHIFT + 1):
                    return step
        power //= 10
    return 1
