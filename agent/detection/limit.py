"""The home's own limit: how long this home may stay without real use before somebody should look.

Two small learners for one meter, integers only, bounded, without a clock.

* `RealUse` says which readings prove that a person drew water, above the leak that the home may have.
* `HomeLimit` counts how long the home's silences last, by the hour at which they begin, and from that sets the limit of
  each hour: the point from which waiting one hour more is worth less than the false alarm that it would avoid.

In one sentence: "after a last use at about this hour, this home has nearly always drawn water again within N hours;
none has come". The method, its figures, and what lost against it: docs/decisions/0004-the-homes-own-limit.md.

Portable: also runs on MicroPython.

The caller brings `at_min`, the minutes of a clock that never goes back, the local hour of day, and the usage since the
reading before in millilitres. But for bursts, all values stay below 2^30, so that a 32-bit board keeps them unboxed.
"""

import struct
from array import array

NEVER = -1
ML_MAX = (1 << 30) - 1
DAY_MIN = 24 * 60

# ---- RealUse ----
LEAST_ML = 1_000  # the least draw that counts: rinsing one's hands
SLOT_MIN = 55  # flow is judged in slots of about an hour; polls may come a few minutes early
SLOTS = 24
LEAK_RANK = 5  # a leak is the sixth lowest of 24 slots: below it lie the hours in which the pressure sags
LEAK_SWING = 8  # what lies within an eighth above it is doubtful
QUIET_DAYS = 3  # today and the two days before show how slow a drip could be
SLOWEST_DRIP_MIN = 60  # a faster one leaves no slot dry, and is then subtracted as a floor

# ---- HomeLimit ----
HOURS = 24
LONGEST_H = 36  # a longer silence was an absence or a fall: it is never learned as usual
LENGTHS = LONGEST_H + 1
EARLY_MIN = 10  # a reading may come this early and still count for its hour
LEARN_MIN = 14 * DAY_MIN  # until then the fixed limit stands
WEEK_MIN = 7 * DAY_MIN
UNIT = 64  # one silence
COUNT_MAX = 0xFFFF
FADE_SHIFT = 3  # an eighth fades each week: half is gone after five weeks
NEAR = (1, 2, 3, 2, 1)  # a silence also speaks for the hours around its start, two each way
NEAR_SUM = 9
NEAR_SHIFT = 3  # about 9: a shift, to stay below 2^30
# Silences that any home must be expected to have, from 4 h on: a quarter of one for each start hour, each hour longer
# 30 % rarer. They keep a limit from clinging to the longest silence seen; no habits of other people are in them.
EXPECTED_FROM_H = 4
EXPECTED = (16, 11, 8, 5, 4, 3, 2, 1, 1)
# How likely, in 64ths, a silence like one of g hours is to last d hours, for d - g = -2..3: a logistic of 0.6 h.
REACH_FROM_H = -2
REACH = (63, 59, 45, 19, 5, 1)
REACH_ONE = 64
LIMIT_MIN_H = 6
LIMIT_MAX_H = 24  # no use for 24 h is red in any home
COLD_H = 16  # on homes never seen: one false alarm a month (research of the fixed rule)
COST_H = 1_500  # the default price: one false alarm a month on real homes, for a delay of half a day
COST_MIN_H, COST_MAX_H = 50, 8_000

_USE_STATE = "<B12i24i3i"
_LIMIT_STATE = "<B7i"
_USE_VERSION, _LIMIT_VERSION = 1, 1


class RealUse:
    """Tells a person's use from a leak.

    A leak that never stops for 24 slots is measured and subtracted; what comes little above it is doubtful. A slow drip
    moves the register by a lone step now and then, so a lone step is doubtful too, unless the steps come faster than a
    drip could: how fast that is, the longest still run of the last days tells (a drip of a step every five hours leaves
    no run of six). A doubtful draw ends a silence once; after it only a sure one does, so that no leak can hide a fall
    for ever.
    """

    def __init__(self, *, step_ml: int) -> None:
        """Watch a register that moves in steps of `step_ml`. Raise ValueError on a step below 1 ml."""
        if step_ml < 1:
            raise ValueError("step_ml must be 1 or more")
        self.step_ml = step_ml
        self.leak_ml_h = 0  # the leak that never stops; 0 is none
        self._slots = array("i", [0] * SLOTS)
        self._slots_seen = 0
        self._slot_at = self._window_at = self._read_at = self._moved_at = self._doubted_at = NEVER
        self._slot_ml = self._window_ml = 0
        self._believed = False
        self._still = array("i", [0] * QUIET_DAYS)
        self._day = 0

    def feed(self, at_min: int, *, used_ml: int) -> bool:
        """Say whether `used_ml`, drawn since the reading before, proves a person's use. The first reading never does.

        Raise ValueError on time or usage that goes backwards, and on usage of 2^30 ml or more: the caller has settled
        such readings.
        """
        if not 0 <= used_ml <= ML_MAX or at_min < self._read_at:
            raise ValueError("time or usage that cannot be")
        if self._read_at == NEVER:
            self._slot_at = self._window_at = self._read_at = self._moved_at = at_min
            self._day = at_min // DAY_MIN
            return False
        self._note_still_run(at_min, used_ml)
        self._slot_ml = min(self._slot_ml + used_ml, ML_MAX)
        self._window_ml = min(self._window_ml + used_ml, ML_MAX)
        use = used_ml > 0 and self._proves(at_min)
        if use or at_min - self._window_at >= SLOT_MIN:
            self._window_at = at_min
            self._window_ml = 0
        if at_min - self._slot_at >= SLOT_MIN:
            self._close_slot(at_min)
        self._read_at = at_min
        return use

    @property
    def hour_ml(self) -> int:
        """What ran in the last full hour, per hour."""
        return self._slots[(self._slots_seen - 1) % SLOTS]

    @property
    def day_ml(self) -> int:
        """What ran in the last 24 slots of an hour."""
        return sum(self._slots)

    def _proves(self, at_min: int) -> bool:
        """Judge the window that ends now: sure use, or a doubtful one, which is believed once and then no more."""
        minutes, used_ml = at_min - self._window_at, self._window_ml
        if self.leak_ml_h > 0:
            used_ml -= self.leak_ml_h * minutes // 60
            doubtful = used_ml >= LEAST_ML + self.step_ml
            sure = used_ml >= LEAST_ML + self.step_ml + self.leak_ml_h * max(minutes, 60) // (60 * LEAK_SWING)
        else:
            drip_min = max(SLOWEST_DRIP_MIN, max(self._still) * 3 // 4)  # a quarter for the pressure's swing
            doubtful = used_ml >= LEAST_ML
            sure = used_ml >= LEAST_ML + self.step_ml * (1 + minutes // drip_min)
            if doubtful and not sure and self._doubted_at != NEVER:
                # The step before may have come at any time since the reading before it, so that the two may really
                # lie one poll further apart than they look.
                sure = at_min - self._doubted_at + at_min - self._read_at < drip_min
        if sure:
            self._doubted_at, self._believed = NEVER, False
        elif doubtful:
            self._doubted_at = at_min
            doubtful, self._believed = not self._believed, True
        return sure or doubtful

    def _note_still_run(self, at_min: int, used_ml: int) -> None:
        day = at_min // DAY_MIN
        for past in range(max(self._day + 1, day - QUIET_DAYS + 1), day + 1):
            self._still[past % QUIET_DAYS] = 0
        self._day = day
        if used_ml > 0:
            self._still[day % QUIET_DAYS] = max(self._still[day % QUIET_DAYS], self._read_at - self._moved_at)
            self._moved_at = at_min

    def _close_slot(self, at_min: int) -> None:
        self._slots[self._slots_seen % SLOTS] = self._slot_ml * 60 // (at_min - self._slot_at)
        self._slots_seen += 1
        if self._slots_seen == 2 * SLOTS:
            self._slots_seen = SLOTS
        self._slot_at, self._slot_ml = at_min, 0
        leaks = self._slots_seen >= SLOTS and min(self._slots) > 0
        self.leak_ml_h = sorted(self._slots)[LEAK_RANK] if leaks else 0

    def dump(self) -> bytes:
        """Return the whole state; `load` gives back a watcher that goes on as this one would."""
        now = (
            self.step_ml,
            self.leak_ml_h,
            self._slots_seen,
            self._slot_at,
            self._slot_ml,
            self._window_at,
        )
        past = (self._window_ml, self._doubted_at, self._believed, self._read_at, self._moved_at, self._day)
        return struct.pack(_USE_STATE, _USE_VERSION, *now, *past, *self._slots, *self._still)

    @classmethod
    def load(cls, state: bytes) -> "RealUse":
        """Rebuild from `dump`. Raise ValueError on any other state: it is to be rebuilt from stored readings."""
        values = _unpack(_USE_STATE, _USE_VERSION, state)
        self = cls(step_ml=values[0])
        self.leak_ml_h, self._slots_seen, self._slot_at, self._slot_ml, self._window_at = values[1:6]
        self._window_ml, self._doubted_at, believed, self._read_at, self._moved_at, self._day = values[6:12]
        self._believed = bool(believed)
        for i in range(SLOTS):
            self._slots[i] = values[12 + i]
        for i in range(QUIET_DAYS):
            self._still[i] = values[12 + SLOTS + i]
        return self

    def move(self, minutes: int) -> None:
        """Go on `minutes` later on the clock of `feed`: that clock was set anew."""
        self._slot_at, self._window_at = _moved(self._slot_at, minutes), _moved(self._window_at, minutes)
        self._read_at, self._moved_at = _moved(self._read_at, minutes), _moved(self._moved_at, minutes)
        self._doubted_at = _moved(self._doubted_at, minutes)
        still = [self._still[(self._day - i) % QUIET_DAYS] for i in range(QUIET_DAYS)]
        self._day = max(self._read_at, 0) // DAY_MIN
        for i in range(QUIET_DAYS):
            self._still[(self._day - i) % QUIET_DAYS] = still[i]


class HomeLimit:
    """Learns the lengths of the home's silences, and sets the limit in hours for the silence that runs now."""

    def __init__(self, *, cold_h: int = COLD_H, cost_h: int = COST_H) -> None:
        """Start with the fixed limit `cold_h` for two weeks.

        `cost_h` is the price of one false alarm, in hours by which help for a fall would come sooner, summed over all
        the hours at which that fall could have happened. Dearer alarms make longer limits: 400, 1500 and 4000 gave
        about 2.5, 1 and 0.6 false alarms a month on real homes. Raise ValueError outside 50 to 8000, and on a fixed
        limit outside 6 to 24.
        """
        if not LIMIT_MIN_H <= cold_h <= LIMIT_MAX_H:
            raise ValueError("cold_h must be 6 to 24")
        if not COST_MIN_H <= cost_h <= COST_MAX_H:
            raise ValueError("cost_h must be 50 to 8000")
        self.cost_h, self.cold_h = cost_h, cold_h
        self._counts = array("H", [0] * (HOURS * LENGTHS))
        self._limits = bytearray([cold_h] * HOURS)
        self._relearn_at = self._began_at = self._read_at = NEVER
        self._began_hour = 0
        self._learns = True
        self.learned = False  # whether the limits are the home's own yet

    @property
    def limit_h(self) -> int:
        """The limit of the present silence, in hours."""
        return self._limits[self._began_hour]

    @property
    def began_hour(self) -> int:
        """The local hour at which the present silence began."""
        return self._began_hour

    @property
    def silent_min(self) -> int:
        """How long the home had been without real use at the last reading."""
        return self._read_at - self._began_at

    def feed(self, at_min: int, *, hour: int, use: bool) -> bool:
        """Take one reading, at local `hour`, that proved real use or not; say whether the limit has been reached.

        Raise ValueError on time that goes backwards.
        """
        if at_min < self._read_at:
            raise ValueError("time never goes backwards here")
        if self._began_at == NEVER:
            self._began_at, self._began_hour = at_min, hour
            self._relearn_at = at_min + LEARN_MIN
            self._learns = False  # nobody knows when this silence began
        elif use:
            # As long as the home was seen to be still: what a gap in polling hides is not learned.
            self._learn((self._read_at - self._began_at + EARLY_MIN) // 60, span_min=at_min - self._began_at)
            self._began_at, self._began_hour = at_min, hour
        self._read_at = at_min
        if at_min >= self._relearn_at:
            self._relearn()
            self._relearn_at = at_min + WEEK_MIN
        return self.silent_min + EARLY_MIN >= self.limit_h * 60

    def skip(self) -> None:
        """Never learn the present silence: it is a declared absence, or the fall that was found."""
        self._learns = False

    def restart(self, at_min: int, *, hour: int) -> None:
        """Begin the present silence at `at_min`, local `hour`, and never learn it: nobody knows what was before."""
        if self._began_at != NEVER:
            self._began_at, self._began_hour = at_min, hour
            self._learns = False

    def move(self, minutes: int) -> None:
        """Go on `minutes` later on the clock of `feed`: that clock was set anew."""
        self._relearn_at, self._began_at = _moved(self._relearn_at, minutes), _moved(self._began_at, minutes)
        self._read_at = _moved(self._read_at, minutes)

    def usual_h(self, hour: int) -> int:
        """Hours within which 19 of 20 silences of 2 h or more, begun around `hour`, ended; 0 where none is known."""
        lengths = [self._around(hour, length) for length in range(2, LENGTHS)]
        left = total = sum(lengths)
        for i, count in enumerate(lengths):
            if left * 20 <= total:
                return i + 2 if total else 0
            left -= count
        return LENGTHS

    def _learn(self, length_h: int, *, span_min: int) -> None:
        if self._learns and length_h <= LONGEST_H:
            i = self._began_hour * LENGTHS + length_h
            # The shortest silences count by their share of an hour, else polling more often would make them weigh more.
            share = UNIT if length_h > 0 else UNIT * min(span_min, 60) // 60
            self._counts[i] = min(self._counts[i] + share, COUNT_MAX)
        self._learns = True

    def settle(self, *, cost_h: int, cold_h: int) -> None:
        """Go on under another price and another fixed limit, from now on and with all that is known."""
        repriced = cost_h != self.cost_h
        self.cost_h, self.cold_h = cost_h, cold_h
        for hour in range(HOURS):
            if not self.learned:
                self._limits[hour] = cold_h
            elif repriced:
                self._limits[hour] = self._cheapest_h(hour)

    def _relearn(self) -> None:
        for hour in range(HOURS):
            self._limits[hour] = self._cheapest_h(hour)
        for i in range(HOURS * LENGTHS):
            count = self._counts[i]
            self._counts[i] = count - ((count + (1 << FADE_SHIFT) - 1) >> FADE_SHIFT)
        self.learned = True

    def _around(self, hour: int, length_h: int) -> int:
        weighted = 0
        for i in range(len(NEAR)):
            near = (hour + i - len(NEAR) // 2) % HOURS
            weighted += NEAR[i] * self._counts[near * LENGTHS + length_h]
        return weighted >> NEAR_SHIFT

    def _cheapest_h(self, hour: int) -> int:
        """Return the limit that costs least: `cost_h` for each silence that reaches it, and for each hour u at which
        a fall could have fallen into one of these silences, the hours from there to the limit.

            silence   |u=0  u=1  u=2 …|  water again
            limit     |--------------------------d     a fall at u waits d - u
        """
        counts = [self._around(hour, length) for length in range(LENGTHS)]
        for i in range(len(EXPECTED)):
            counts[EXPECTED_FROM_H + i] += EXPECTED[i] * NEAR_SUM >> NEAR_SHIFT
        lasting = [0] * (LENGTHS + 1)  # the silences that were still on after so many hours
        for length in range(LENGTHS - 1, -1, -1):
            lasting[length] = lasting[length + 1] + counts[length]
        best, least = LIMIT_MIN_H, NEVER
        falls = waiting = 0
        for limit in range(1, LIMIT_MAX_H + 1):
            falls += lasting[limit - 1]
            waiting += falls
            if limit < LIMIT_MIN_H:
                continue
            sure = limit - REACH_FROM_H + 1
            reached = REACH_ONE * lasting[sure]
            for i in range(len(REACH)):
                length = sure - 1 - i
                if length >= EXPECTED_FROM_H:
                    reached += REACH[i] * counts[length]
            cost = self.cost_h * (reached >> 3) + waiting * (REACH_ONE >> 3)
            if least == NEVER or cost < least:
                best, least = limit, cost
        return best

    def dump(self) -> bytes:
        """Return the whole state; `load` gives back a learner that goes on as this one would."""
        now = (self.cost_h, self._relearn_at, self._began_at, self._read_at, self._began_hour)
        flags = (self._learns, self.learned)
        counts = bytearray(2 * HOURS * LENGTHS)
        for i in range(HOURS * LENGTHS):
            struct.pack_into("<H", counts, 2 * i, self._counts[i])
        return struct.pack(_LIMIT_STATE, _LIMIT_VERSION, *now, *flags) + bytes(self._limits) + bytes(counts)

    @classmethod
    def load(cls, state: bytes) -> "HomeLimit":
        """Rebuild from `dump`. Raise ValueError on any other state: it is to be rebuilt from stored readings."""
        values = _unpack(_LIMIT_STATE, _LIMIT_VERSION, state, tail=HOURS + 2 * HOURS * LENGTHS)
        self = cls(cost_h=values[0])
        self._relearn_at, self._began_at, self._read_at, self._began_hour = values[1:5]
        self._learns, self.learned = bool(values[5]), bool(values[6])
        limits_at = struct.calcsize(_LIMIT_STATE)
        self._limits = bytearray(state[limits_at : limits_at + HOURS])
        for i in range(HOURS * LENGTHS):
            self._counts[i] = struct.unpack_from("<H", state, limits_at + HOURS + 2 * i)[0]
        return self


def _moved(at_min: int, minutes: int) -> int:
    return at_min if at_min == NEVER else at_min + minutes


def _unpack(layout: str, version: int, state: bytes, *, tail: int = 0) -> tuple[int, ...]:
    size = struct.calcsize(layout)
    if len(state) != size + tail or state[0] != version:
        raise ValueError("not a state of this version")
    return struct.unpack(layout, state[:size])[1:]
