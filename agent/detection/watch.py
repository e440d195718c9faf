"""Everything that is judged of one meter, side by side: what its readings mean, and which rules they fulfil.

    register value ─▶ Register ─▶ count of use ┬▶ LowUsage    the county's rule, exactly as ordered
                                               ├▶ RealUse ──▶ HomeLimit    no real use for longer than this home's limit
                                               └▶ Flow        leak, burst

The rules:

1. A reading that is held or set aside (`Register`) decides nothing. A rise of more than 30 L within the hour may be a
   torn or a false value; it waits for the next reading, and is judged then, at its own time, unless the register is
   back where it was. So no single reading ends a silence by such a leap.
2. Red is "limit": the home's own limit is reached, and what ran in the window above the leak is below the county's
   threshold; so a leak hides no fall. Red is "day": no real use for 24 hours, whatever else there is.
3. While nobody is expected (an absence), no silence counts. It ends with its time or with real use, whichever is first;
   the silence then begins there, and the county's rule holds once its whole window lies after it.
4. A threshold finer than the register's steps cannot be judged (`is_refused`): the county's rule is UNSURE, and red
   needs the home's limit alone. A register that counts in steps above 20 L may stand still for a day in a home where
   all is well, so it never turns red (`is_blind`).

Portable: also runs on MicroPython, from the same folders. Times are milliseconds on an axis that never goes back.
"""

import struct

from agent.detection.limit import COLD_H, COST_H, DAY_MIN, EARLY_MIN, ML_MAX, NEVER, HomeLimit, RealUse
from agent.detection.register import METER_SWAP, REGISTER_RESET, RETURNED, ROLLOVER, SET_BACK, WAVER_ML, Register
from agent.detection.window import LOW, RUNS_MAX, UNSURE, LowUsage

# The step above which a register does not show a person's day: lone elders use 30 to 90 L a day (research/domain.md).
COARSE_ML = 20_000

JOINTS = (METER_SWAP, REGISTER_RESET, ROLLOVER, SET_BACK, RETURNED)

STANDS, ENDS = "stands", "ends"
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

LEAP_ML = 30_000  # more than a tap gives in three minutes; a torn 16-bit register leaps by 65 L or more
LEAP_MS = 65 * MINUTE_MS  # after a longer gap it is nothing unusual
LEAP_PARTS = 8  # nor after an eighth of a window shorter than half a day

# ---- Flow ----
STILL_MS = 55 * MINUTE_MS  # an hour without flow; polls may come a few minutes early
BLIND_MS = 2 * HOUR_MS  # a longer gap between two readings may have hidden a still hour
LEAK_ENDS_MS = 3 * HOUR_MS  # a leak is over after so long without flow
# A household's leak rule is "no zero-flow interval in a day" (Shenzhen Longgang, GST4Water); research/domain.md.
LEAK_AFTER_MS = DAY_MS
# A pipe that has burst gives 1.5 to 3 m3/h at 3 bar through DN15, a garden hose 0.6 to 0.9; 2 m3 a day is the limit of
# the services in Shanghai Jing'an and Xiaoyuan. research/domain.md, section 1.
BURST_ML_H = 1_000_000
BURST_ML_DAY = 2_000_000

_STATE = "<B2qi"
_VERSION = 1


class Flow:
    """Leak and burst: water that never stops, and too much of it."""

    def __init__(self) -> None:
        self.leak = UNSURE
        self.burst = UNSURE
        self.flowing_since = NEVER  # the end of the last still hour, or the first reading
        self._still_since = self._read_at = NEVER

    def feed(self, time_ms: int, used_ml: int, real_use: RealUse) -> None:
        """Take a reading. `real_use` has been fed with it: its slots know the flow of the last hours."""
        if self._read_at == NEVER or time_ms - self._read_at > BLIND_MS:
            self.flowing_since = self._still_since = time_ms
        elif used_ml > 0:
            self._still_since = time_ms
        elif time_ms - self._still_since >= STILL_MS:
            self.flowing_since = time_ms
        self._read_at = time_ms
        self.leak = UNSURE
        if time_ms - self.flowing_since >= LEAK_AFTER_MS and real_use.leak_ml_h > 0:
            self.leak = STANDS
        elif time_ms - self._still_since >= LEAK_ENDS_MS:
            self.leak = ENDS
        hour_ml, day_ml = real_use.hour_ml, real_use.day_ml
        self.burst = UNSURE
        if hour_ml >= BURST_ML_H or day_ml >= BURST_ML_DAY:
            self.burst = STANDS
        elif hour_ml < BURST_ML_H // 2:
            self.burst = ENDS


class Watch:
    """Feed it the readings of one meter; its attributes say what they amount to.

    code     reason code of the last reading, "" for a plain one (detection.register)
    counts   whether the last reading was judged, and not held or set aside
    low      LOW, ENOUGH or UNSURE: the county's rule
    used     ml that ran by what was judged with the last reading; read_at when that was, NEVER for not yet
    use      whether it proved real use
    red      "limit" or "day" while red stands, else ""
    back     whether the last reading ended an absence by use; excused_until is NEVER or when one ends
    joined_at  when the count last went over to another register, or to another place on it; NEVER
    reverse  STANDS, ENDS or UNSURE; likewise flow.leak and flow.burst
    """

    def __init__(
        self,
        *,
        window_ms: int,
        threshold_ml: int,
        step_ml: int = 1_000,
        cost_h: int = COST_H,
        cold_h: int = COLD_H,
        runs_max: int = RUNS_MAX,
    ) -> None:
        """Watch a meter that counts in steps of `step_ml`, as far as is known before it has shown its own.

        A board has room for `window.RUNS_MAX_BOARD` runs. Raises ValueError on settings that the parts refuse.
        """
        self.register = Register()
        self.low_usage = LowUsage(window_ms, threshold_ml, runs_max=runs_max)
        self.real_use = RealUse(step_ml=step_ml)
        self.limit = HomeLimit(cold_h=cold_h, cost_h=cost_h)
        self.flow = Flow()
        self.code = self.red = ""
        self.low = self.reverse = UNSURE
        self.counts = self.use = self.back = False
        self.used = self._leapt_to = self._leapt_hour = 0
        self.excused_until = self._blank_until = self.read_at = self.joined_at = self._leapt_at = NEVER

    @property
    def is_refused(self) -> bool:
        """Whether the county's threshold is finer than the steps in which this register counts."""
        return self.low_usage.threshold < self.register.step

    @property
    def is_blind(self) -> bool:
        """Whether the register's steps are too coarse to show that somebody lives here."""
        return self.real_use.step_ml > COARSE_ML or self.register.finest > COARSE_ML

    def feed(self, time_ms: int, hour: int, value_ml: int) -> None:
        """Take what the register showed at a time, which was `hour` (0 to 23) on the clocks of the home.

        A time before the last one counts as the same moment.
        """
        time_ms = max(time_ms, self._leapt_at, self.read_at)
        self.counts = self.use = self.back = False
        self.used = 0
        taken_back = False
        if self._leapt_at != NEVER:
            leapt_at, self._leapt_at = self._leapt_at, NEVER
            taken_back = value_ml < self._leapt_to - WAVER_ML
            if not taken_back:
                self._judge(leapt_at, self._leapt_hour, self._leapt_to)
        if (
            time_ms - self.read_at <= min(LEAP_MS, self.low_usage.window.length // LEAP_PARTS)
            and value_ml - self.register.top > LEAP_ML
            and self.register.reaches(time_ms, value_ml)
        ):
            self._leapt_at, self._leapt_hour, self._leapt_to = time_ms, hour, value_ml
            self.code = ""
            if not self.counts:
                self._doubt()
            elif self.low == LOW:
                self.low = UNSURE  # water seems to run just now
        else:
            self._judge(time_ms, hour, value_ml)
        if taken_back and self.code == "":
            self.code = RETURNED

    def _judge(self, time_ms: int, hour: int, value_ml: int) -> None:
        register = self.register
        counts = register.feed(time_ms, value_ml)
        self.code = register.code
        self.reverse = STANDS if register.reverse else ENDS if counts and register.used > 0 else UNSURE
        if not counts:
            self._doubt()
            return
        self.counts = True
        self.used += register.used
        if self.code in JOINTS:
            self.joined_at = time_ms
        self.read_at = time_ms
        at_min = time_ms // MINUTE_MS
        if register.anew:
            self.low_usage.window.reset()
            self.limit.restart(at_min, hour=hour)
        if register.step > 0:
            self.real_use.step_ml = register.step
        use = self.real_use.feed(at_min, used_ml=min(register.used, ML_MAX))
        self.use = self.use or use
        self.flow.feed(time_ms, register.used, self.real_use)
        self._heed_absence(time_ms, hour, use=use)
        limit_reached = self.limit.feed(at_min, hour=hour, use=use)
        self.low = self.low_usage.feed(time_ms, register.total)
        if self.is_refused or (self.low == LOW and (self.excused_until != NEVER or time_ms < self._blank_until)):
            self.low = UNSURE
        self.red = "" if self.excused_until != NEVER else self._red(limit_reached=limit_reached)

    def _doubt(self) -> None:
        """Conclude nothing from this reading; red stays as it was."""
        self.low = self.flow.leak = self.flow.burst = UNSURE

    def excuse(self, until_ms: int) -> None:
        """Expect nobody before that time; a time that has passed ends an absence with the next reading."""
        self.excused_until = until_ms
        self.limit.skip()

    def begin_anew(self, time_ms: int, hour: int) -> None:
        """Let the present silence begin here: nobody knows what was before."""
        self.limit.restart(time_ms // MINUTE_MS, hour=hour)

    def _heed_absence(self, time_ms: int, hour: int, *, use: bool) -> None:
        if self.excused_until == NEVER:
            return
        if use:
            self.excused_until = NEVER
            self._blank_until = time_ms + self.low_usage.window.length
            self.back = True
        elif time_ms >= self.excused_until:
            self.limit.restart(self.excused_until // MINUTE_MS, hour=hour)
            self._blank_until = self.excused_until + self.low_usage.window.length
            self.excused_until = NEVER

    def _red(self, *, limit_reached: bool) -> str:
        if self.is_blind:
            return ""
        if self.limit.silent_min >= DAY_MIN - EARLY_MIN:
            return "day"
        return "limit" if limit_reached and (self.is_refused or self.is_low_above_leak) else ""

    @property
    def is_low_above_leak(self) -> bool:
        """Whether the county's rule would hold without the leak."""
        _, most = self.low_usage.window.usage()
        leaked = self.real_use.leak_ml_h * (self.low_usage.window.length // MINUTE_MS) // 60
        return most is not None and most - leaked < self.low_usage.threshold

    def dump(self) -> bytes:
        """Return what took days to learn; `adopt` gives it to a watch whose window was rebuilt from stored readings."""
        head = struct.pack(_STATE, _VERSION, self.read_at, self.flow.flowing_since, self.register.step)
        return head + self.real_use.dump() + self.limit.dump()

    def adopt(self, state: bytes, at_ms: int) -> None:
        """Go on with what another watch had learned when it took a reading that lies at `at_ms` here.

        This watch has taken the same reading last. Raise ValueError on any other state: nothing is adopted then, and
        this watch goes on with what it has learned itself.
        """
        size = struct.calcsize(_STATE)
        if len(state) < size or state[0] != _VERSION:
            raise ValueError("not a state of this version")
        _, read_at, flowing_since, step = struct.unpack(_STATE, state[:size])
        real_use_size = len(self.real_use.dump())
        real_use = RealUse.load(state[size : size + real_use_size])
        limit = HomeLimit.load(state[size + real_use_size :])
        moved_ms = at_ms - read_at
        minutes = at_ms // MINUTE_MS - read_at // MINUTE_MS
        real_use.move(minutes)
        limit.move(minutes)
        limit.settle(cost_h=self.limit.cost_h, cold_h=self.limit.cold_h)
        self.real_use, self.limit = real_use, limit
        self.flow.flowing_since = flowing_since if flowing_since == NEVER else flowing_since + moved_ms
        self.register.step = step
