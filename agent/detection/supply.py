"""The supply is off: what many homes that fall still together say. Part of `agent.detection.village`; see there.

Every home draws water at some rate, which depends on the hour of day and on how long the home has been still (asleep,
out, away). That rate is learned over all homes together. Two accounts of the village run against each other: "all is
usual" (each home draws at its rate) and "the supply went off" (each draws at a twentieth of it). Each stretch in which
a home was read and had not drawn speaks for the second account by rate x time x 19/20; a home that draws speaks against
it by ln 20, once: where the rest stays still all the same, it has another source. A leak that stops together with the
draws speaks for it by ln 20. The sum, the *surprise*, is the log of a likelihood ratio; when it comes down to zero, the
stillness begins anew (Page's CUSUM).

While all is usual, a stillness leads to a surprise of L with a chance of e^-L at most (Ville's inequality): a month has
at most (stillnesses begun) x e^-L false suspicions where homes go their ways independently. They do not quite: a market
day empties a village. So the limit also stays above what this village showed of late, the third highest daily peak of
four weeks. Two real outages in that time do not move it. What came of it: benchmarks/supply_outage.py.

Only what was read is stillness: a stretch longer than three polls says nothing, and where no meter at all was read for
so long, the stillness begins anew. A register that a fault keeps from moving looks like a home that is still.
"""

import math
import struct
from typing import Final, NamedTuple

NEVER: Final = -1
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

# ---- supply outage ----
LIMIT: Final = 8.0  # the least surprise that is a suspicion: one in 3,000 stillnesses at most
OFF_SHARE: Final = 0.05  # the share of its usual draws that a home may still make while the supply is off
DRAW_COST: Final = -math.log(OFF_SHARE)
LEAK_STOPS: Final = DRAW_COST  # taken: one leak in twenty ends by itself just then
DRIP_KEEPS: Final = 99  # per cent of the longest pause of a leak, with each of its drops: half a day at one in 5 min
DRIP_MS_MAX: Final = 2 * HOUR_MS
HOMES_MIN: Final = 5
OTHER_ONE_IN: Final = 5  # so many of the homes that take part, and at least one, may have another source
STILL_MS_MIN: Final = 45 * MINUTE_MS
AWAY_MS: Final = DAY_MS  # who had not drawn for so long when the stillness began takes no part
GAP_POLLS: Final = 3
GAP_MS_MIN: Final = 15 * MINUTE_MS
# Water is back when two homes, and one in twenty of those that were still, have drawn it within two hours: a lone one
# may be emptying its pipe, or have another source.
BACK_HOMES: Final = 2
BACK_ONE_IN: Final = 20
BACK_MS: Final = 2 * HOUR_MS

# ---- what is learned of the village ----
HOURS: Final = 24
# How long a home has been still: draws come in bunches, and who sleeps or is out goes on doing so.
STILL_EDGES_MS: Final = (4 * MINUTE_MS, 15 * MINUTE_MS, HOUR_MS, 3 * HOUR_MS, 8 * HOUR_MS)
CLASSES: Final = len(STILL_EDGES_MS) + 1
CELLS: Final = HOURS * CLASSES
KNOWN_DAYS: Final = 7  # a week has its market days and its Sunday
FADE_DAYS: Final = 28
DOUBT_HOME_H: Final = 6.0  # hours without a draw, added to each cell: where little was seen, little is expected
# The limit lies this much above the third highest daily peak of four weeks, and never higher than this.
PEAK_RANK: Final = 3
PEAK_MARGIN: Final = 2.0
LIMIT_MAX: Final = 20.0
VALUE_MAX: Final = 1e9  # in a state: far above the home-hours that a thousand homes leave behind
_VERSION: Final = 1
_LAYOUT: Final = f"<BQ{2 * CELLS + FADE_DAYS}f"  # version, ms learned from; draws, home-hours of each cell, peaks

Figures = dict[str, int | float]


class Outage(NamedTuple):
    """A suspicion that begins to stand, or ends; `agent.detection.village.Change` says what the figures are."""

    stands: bool
    since_ms: int
    meters: tuple[str, ...]
    figures: Figures


class Home:
    """What is remembered of one home's draws."""

    __slots__ = ("drawn_ms", "drew_in", "drip_ms", "gap_ms", "leaks", "name", "read_ms", "still_in")

    def __init__(self, name: str, *, poll_every_ms: int) -> None:
        self.name = name
        self.gap_ms = max(GAP_POLLS * poll_every_ms, GAP_MS_MIN)
        self.read_ms = self.drawn_ms = NEVER  # the last value, the last draw; NEVER: not known
        self.still_in = self.drew_in = 0  # the stillness in which it last took part, drew all the same
        self.leaks = False
        self.drip_ms = 0  # the longest pause of its leak of late

    def note_draw(self, time_ms: int, leak_ml_h: int) -> None:
        """Note a draw, or a drop of the leak that is known to run."""
        if leak_ml_h > 0:
            pause_ms = time_ms - (self.drawn_ms if self.leaks else self.read_ms)
            kept_ms = self.drip_ms * DRIP_KEEPS // 100 if self.leaks else 0
            self.drip_ms = min(max(pause_ms, kept_ms), DRIP_MS_MAX)
        self.leaks = leak_ml_h > 0
        self.drawn_ms = time_ms


class Supply:
    """The two accounts of the village, and the outage that follows from them. Each stillness has a number."""

    def __init__(self, habits: "Habits", *, limit: float) -> None:
        self._habits = habits
        self._limit = limit
        self._newest_ms = NEVER
        self._number = 0
        self._stands = False
        self._back: dict[Home, int] = {}  # who drew again in the outage, and when
        self._begin(NEVER)

    def covers(self, home: Home) -> bool:
        """Tell whether an outage is suspected, and this meter has not drawn in it."""
        return self._stands and home.drew_in != self._number and home not in self._back

    def feed(self, home: Home, time_ms: int, hour: int, *, used_ml: int, leak_ml_h: int, learns: bool) -> Outage | None:
        """Take a value; return how the suspicion changes."""
        if time_ms > self._newest_ms:
            passed_ms = time_ms - self._newest_ms
            self._newest_ms = time_ms
            if passed_ms > home.gap_ms:
                if not self._stands:
                    self._begin(time_ms)  # nobody was read, so nobody knows
            elif learns:
                self._habits.pass_time(passed_ms)
        last_ms = home.read_ms
        read_ms = time_ms - last_ms
        if last_ms == NEVER or read_ms > home.gap_ms:
            return self._resume(home, time_ms) if used_ml > 0 else None
        drawn_ms = home.drawn_ms
        if used_ml > 0:
            if learns and drawn_ms != NEVER and not home.leaks:
                self._habits.note_draw(hour, last_ms - drawn_ms, read_ms)
            home.note_draw(time_ms, leak_ml_h)
            return self._draw(home, time_ms)
        if drawn_ms == NEVER:
            return None
        if home.leaks:
            self._weigh_leak(home, time_ms)
        else:
            cell = cell_of(hour, last_ms - drawn_ms)
            if learns:
                self._habits.hours_ms[cell] += read_ms
            since_ms = self.since_ms
            if self._stands or home.drew_in == self._number or since_ms - drawn_ms > AWAY_MS:
                return None
            # Readings of several buses may come in by seconds out of order.
            usual = self._habits.per_ms[cell] * (read_ms if last_ms >= since_ms else max(0, time_ms - since_ms))
            self._usual += usual
            self._surprise += usual * (1 - OFF_SHARE)
            if home.still_in != self._number:
                home.still_in = self._number
                self._still.append(home)
        if self._stands:
            return None
        if self._surprise > self._habits.peak:  # noqa: PLR1730 - twice as fast as max()
            self._habits.peak = self._surprise
        return self._suspect() if self._surprise >= self._limit and self._surprise >= self._habits.limit else None

    def _begin(self, time_ms: int) -> None:
        """Begin a stillness: somebody drew now."""
        self._number += 1
        self.since_ms = time_ms
        self._surprise = self._usual = 0.0
        self._leaks_stopped = self._other_source = 0
        self._still: list[Home] = []

    def _resume(self, home: Home, time_ms: int) -> Outage | None:
        """A home drew somewhere in a gap: that counts only where the whole gap lies within the stillness."""
        last_ms = home.read_ms
        home.drawn_ms, home.leaks = NEVER, False
        return self._draw(home, time_ms) if last_ms >= self.since_ms and last_ms != NEVER else None

    def _draw(self, home: Home, time_ms: int) -> Outage | None:
        """A home drew water."""
        if self._stands:
            return self._return(home, time_ms)
        if home.drew_in != self._number:
            home.drew_in = self._number
            self._surprise -= DRAW_COST
            self._other_source += 1
            if self._surprise <= 0 or self._other_source > max(1, len(self._still) // OTHER_ONE_IN):
                self._begin(time_ms)
        return None

    def _weigh_leak(self, home: Home, time_ms: int) -> None:
        """Count a leak that stopped with the draws, once: its pause is twice the longest it made of late."""
        began = home.drawn_ms >= self.since_ms - home.drip_ms
        if began and home.still_in != self._number and time_ms - home.drawn_ms > 2 * home.drip_ms:
            home.still_in = self._number
            self._still.append(home)
            self._leaks_stopped += 1
            self._surprise += LEAK_STOPS

    def _suspect(self) -> Outage | None:
        """The surprise is great enough: suspect an outage where enough homes have been still for long enough."""
        still_ms = self._newest_ms - self.since_ms
        self._still = [home for home in self._still if home.drew_in != self._number]
        if still_ms < STILL_MS_MIN or len(self._still) < HOMES_MIN:
            return None
        self._stands = True
        self._back = {}
        figures: Figures = {
            "still_min": still_ms // MINUTE_MS,
            "homes": len(self._still),
            "usual_draws": round(self._usual, 1),
            "leaks_stopped": self._leaks_stopped,
            "other_source": self._other_source,
            "surprise": round(self._surprise, 1),
            "limit": round(max(self._limit, self._habits.limit), 1),
        }
        return self._change(figures)

    def _return(self, home: Home, time_ms: int) -> Outage | None:
        """A home drew water while an outage is suspected."""
        if home.drew_in == self._number:
            return None
        self._back[home] = time_ms
        drew = sum(time_ms - back_ms <= BACK_MS for back_ms in self._back.values())
        if drew < BACK_HOMES or drew * BACK_ONE_IN < len(self._still):
            return None
        self._stands = False
        lasted_min = (time_ms - self.since_ms) // MINUTE_MS
        change = self._change({"lasted_min": lasted_min, "homes": len(self._still), "drew": drew})
        self._begin(time_ms)
        return change

    def _change(self, figures: Figures) -> Outage:
        meters = tuple(home.name for home in self._still)
        return Outage(self._stands, self.since_ms, meters, figures)


class Habits:
    """What the village is used to: how often a home draws, and how still all of it can be.

    The rates go by the hour of day and by how long the home has been still; all homes together. What was seen fades by
    a 28th each day. Neighbouring hours count by half. A reading with a draw stands for half of its interval, as the
    rate is that of the first draw in it.
    """

    def __init__(self) -> None:
        self.draws = [0.0] * CELLS
        self.hours_ms = [0.0] * CELLS  # for how long homes were seen at this rate
        self.per_ms = [0.0] * CELLS  # the rates; 0 until the village is known
        self.peak = 0.0  # the greatest surprise of the day
        self.limit = 0.0  # what the peaks of four weeks ask for
        self._peaks = [0.0] * FADE_DAYS
        self._passed_ms = self._renew_ms = 0
        self._day = 0

    def note_draw(self, hour: int, still_ms: int, read_ms: int) -> None:
        """Note that a home which had been still for so long drew within a reading's interval."""
        cell = cell_of(hour, still_ms)
        self.draws[cell] += 1
        self.hours_ms[cell] += read_ms / 2

    def pass_time(self, passed_ms: int) -> None:
        """Let time pass in which the village was read."""
        self._passed_ms += passed_ms
        if self._passed_ms >= self._renew_ms:
            self._renew()

    def _renew(self) -> None:
        """Fade once a day; work out the rates once an hour."""
        day = self._passed_ms // DAY_MS
        if day > self._day:
            self._day = day
            self._peaks = [*self._peaks[1:], self.peak]
            self.peak = 0.0
            for cell in range(CELLS):
                self.draws[cell] *= 1 - 1 / FADE_DAYS
                self.hours_ms[cell] *= 1 - 1 / FADE_DAYS
        self._renew_ms = self._passed_ms + HOUR_MS
        self.limit = min(sorted(self._peaks)[-PEAK_RANK] + PEAK_MARGIN, LIMIT_MAX)
        if day < KNOWN_DAYS:
            return
        for cell in range(CELLS):
            before, after = cell - CLASSES, (cell + CLASSES) % CELLS
            draws = self.draws[before] + 2 * self.draws[cell] + self.draws[after]
            seen_ms = self.hours_ms[before] + 2 * self.hours_ms[cell] + self.hours_ms[after]
            self.per_ms[cell] = draws / (seen_ms + DOUBT_HOME_H * HOUR_MS)

    def dump(self) -> bytes:
        """Return all of it."""
        values = (*self.draws, *(seen_ms / HOUR_MS for seen_ms in self.hours_ms), *self._peaks)
        return struct.pack(_LAYOUT, _VERSION, self._passed_ms, *values)

    def load(self, state: bytes) -> None:
        """Take over what `dump` returned. Raise ValueError on anything else; nothing is changed then."""
        if len(state) != struct.calcsize(_LAYOUT) or state[0] != _VERSION:
            raise ValueError("not the habits of a village, or of another version")
        _, passed_ms, *values = struct.unpack(_LAYOUT, state)
        if not all(0 <= value < VALUE_MAX for value in values):
            raise ValueError("the habits of a village that cannot be")
        self.draws, self._peaks = values[:CELLS], values[2 * CELLS :]
        self.hours_ms = [hours * HOUR_MS for hours in values[CELLS : 2 * CELLS]]
        self._passed_ms = passed_ms
        self._day = passed_ms // DAY_MS
        self._renew()


def cell_of(hour: int, still_ms: int) -> int:
    """Return the cell of a local hour and of how long a home has been still."""
    if still_ms < STILL_EDGES_MS[0]:
        return hour * CLASSES
    for number in range(1, len(STILL_EDGES_MS)):
        if still_ms < STILL_EDGES_MS[number]:
            return hour * CLASSES + number
    return hour * CLASSES + CLASSES - 1
