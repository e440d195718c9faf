"""Who is away, and in which hours of the day nobody is expected to use water.

The rules:

1. A meter has at most one absence and one set of quiet hours; a newer one takes the place of the earlier.
2. Each has an end. It stands from `start_ms` on, until its time is over, water is used (absences alone), or somebody
   says that it is over, whichever is first.
3. What has ended is remembered for a while: a rebuild from stored readings must see the past as it was.
4. What happens while the clock is not synced lies after all that a synced one has dated, and more is not known of it:
   an absence that ends then ends at the newest such time. A rebuild finds everything before it as it was, nobody away
   after it, and the silence begins in between. Use that only a later reading dates ends what had begun by then, then.

All times are wall clock (UTC, ms). Ask only with the time of a synced clock: an absence must not outlast its end
because a clock runs behind, so with an unsynced one nobody is excused.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Final

from protocols.absence import Absence
from protocols.contract import ABSENCES_MAX, AbsenceNotice, Daily, Ending

# What ended is told to the county for so long: a week later it is history.
TOLD_MS: Final = 7 * 86_400_000
# What ended is remembered by count, as in the store: a clock that leaps ahead must not make all of it old. Within the
# three days that a rebuild reads again a meter has a handful.
ENDED_PER_METER_MAX: Final = 16


class Absences:
    """The absences and quiet hours of all meters."""

    def __init__(self, absences: Iterable[Absence] = ()) -> None:
        """`absences` in the order in which they were declared, those that ended as well."""
        self._of_meter: dict[str, list[Absence]] = {}
        self._synced_ms = 0  # the newest time that a synced clock gave
        for absence in sorted(absences, key=lambda one: one.declared_ms):
            self._of_meter.setdefault(absence.meter, []).append(absence)

    # -- what a judge asks ------------------------------------------------------------------------------------------

    def excuse(self, meter: str, wall_ms: int) -> int | None:
        """Return until when nobody is expected at the home, as it was known at `wall_ms`; None where somebody is."""
        return max(
            (one.until_ms for one in self._of_meter.get(meter, ()) if one.daily is None and _stands(one, wall_ms)),
            default=None,
        )

    def quiet(self, meter: str, wall_ms: int, minute: int) -> bool:
        """Tell whether a minute of the local day (0 to 1439) lies in quiet hours of the meter that stand."""
        return any(
            _stands(one, wall_ms) and is_within(one.daily, minute)
            for one in self._of_meter.get(meter, ())
            if one.daily is not None
        )

    # -- what changes them ------------------------------------------------------------------------------------------

    def heed(self, wall_ms: int) -> None:
        """Take note of what a synced clock says. The newest word counts, not the highest: a clock may be set right."""
        self._synced_ms = wall_ms

    def declare(self, absence: Absence) -> tuple[Absence, list[Absence]]:
        """Take up an absence; return it as it is kept, and all that changed, to be stored.

        One of that id that is known already stays as it is: its command is repeated, and it may have ended since.
        """
        for known in self._of_meter.get(absence.meter, ()):
            if known.id == absence.id:
                return known, []
        ended = [
            self._put(_over(one, absence.declared_ms) or one.ended(Ending.REPLACED, at_ms=absence.declared_ms))
            for one in self._open(absence.meter)
            if (one.daily is None) == (absence.daily is None)
        ]
        return self._put(absence), [*ended, absence]

    def end(self, meter: str, wall_ms: int, *, by: Ending, is_dated: bool = True) -> Absence | None:
        """End what stands because somebody says so, and return it to be stored; None where nothing does.

        It is the absence, one that is to come too; where there is none, the quiet hours. `is_dated`: whether the clock
        is synced that says `wall_ms`.
        """
        for one in sorted(self._open(meter), key=lambda one: one.daily is not None):
            at_ms = self._certain_ms(one, wall_ms, is_dated=is_dated)
            if _over(one, at_ms) is None:
                return self._put(one.ended(by, at_ms=at_ms))
        return None

    def end_by_use(self, meter: str, wall_ms: int, *, after_ms: int, is_dated: bool) -> Absence | None:
        """End the absence in which a person used water, and return it to be stored; None where there is none.

        The water ran between `after_ms` and `wall_ms`: it must have run after the absence began. Where the clock is not
        synced it is enough that the absence may have begun: one that is ended in error costs a call, one that stands in
        error a life.
        """
        for one in self._open(meter):
            at_ms = self._certain_ms(one, wall_ms, is_dated=is_dated)
            began_ms = after_ms if is_dated else max(wall_ms, at_ms)
            if one.daily is None and one.start_ms <= began_ms and _over(one, at_ms) is None:
                return self._put(one.ended(Ending.USE, at_ms=at_ms))
        return None

    def expire(self, wall_ms: int) -> list[Absence]:
        """End those whose time is over; return them to be stored."""
        every = [one for meter in self._of_meter for one in self._open(meter)]
        return [self._put(over) for one in every if (over := _over(one, wall_ms))]

    @contextlib.contextmanager
    def unless_failing(self, meter: str) -> Iterator[None]:
        """Take back what is changed within, for one meter, where storing it raises: nobody may be away unrecorded."""
        before = self._of_meter.get(meter, [])
        try:
            yield
        except BaseException:
            self._of_meter[meter] = before
            raise

    # -- what people ask --------------------------------------------------------------------------------------------

    def notices(self, wall_ms: int) -> tuple[AbsenceNotice, ...]:
        """Return what the county is told: all that stand or are to come, and those that ended lately.

        Where these are more than a birth may name, the newest of those that ended.
        """
        every = [_over(one, wall_ms) or one for absences in self._of_meter.values() for one in absences]
        told = [one for one in every if one.ended_ms is None or one.ended_ms > wall_ms - TOLD_MS]
        told.sort(key=lambda one: (one.ended_ms is not None, -(one.ended_ms or 0)))
        named = sorted(told[:ABSENCES_MAX], key=lambda one: (one.meter, one.start_ms))
        return tuple(one.notice() for one in named)

    def _certain_ms(self, absence: Absence, wall_ms: int, *, is_dated: bool) -> int:
        """Return what time it is, or was at least: an absence is declared by a synced clock only."""
        return wall_ms if is_dated else max(self._synced_ms, absence.declared_ms)

    def _open(self, meter: str) -> list[Absence]:
        return [one for one in self._of_meter.get(meter, ()) if one.is_open]

    def _put(self, absence: Absence) -> Absence:
        """Keep an absence in place of the one with its id, and the newest of those that ended."""
        others = [one for one in self._of_meter.get(absence.meter, ()) if one.id != absence.id]
        ended = [one for one in others if not one.is_open][-ENDED_PER_METER_MAX:]
        kept = [*ended, *(one for one in others if one.is_open), absence]
        self._of_meter[absence.meter] = sorted(kept, key=lambda one: one.declared_ms)
        return absence


def is_within(daily: Daily, minute: int) -> bool:
    """Tell whether a minute of the day lies in daily hours; the first minute does, that of their end does not."""
    start, end = minute_of_day(daily.start), minute_of_day(daily.end)
    return start <= minute < end if start < end else minute >= start or minute < end


def minute_of_day(time: str) -> int:
    """Return the minute of the day of `HH:MM`."""
    return int(time[:2]) * 60 + int(time[3:])


def _stands(absence: Absence, wall_ms: int) -> bool:
    """Tell whether an absence stood at a time; the reading that ended it still found it standing."""
    last_ms = absence.until_ms - 1 if absence.ended_ms is None else min(absence.ended_ms, absence.until_ms - 1)
    return absence.start_ms <= wall_ms <= last_ms


def _over(absence: Absence, wall_ms: int) -> Absence | None:
    """Return an open absence whose time is over as an ended one, None for any other."""
    if absence.is_open and absence.until_ms <= wall_ms:
        return absence.ended(Ending.TIME, at_ms=absence.until_ms)
    return None
