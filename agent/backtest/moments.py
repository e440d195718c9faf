"""Timestamps of files: local clocks with their missing and doubled hours, or instants with an offset."""

import datetime
import functools
import zoneinfo
from typing import Final

from agent.backtest.problems import InputProblem, brief

QUARTER_MS: Final = 900_000  # no zone's offset changes within a quarter of an hour
HOURS_KEPT: Final = 50_000  # six years of hours whose offset is remembered
UNPLAIN: Final = -1 << 62  # an hour within which the offset changes, or no hour at all
SHORTEST: Final = len("2016-03-01T00:53")
LONGEST_OFFSET: Final = len("+08:00:00")
# No register was read by machines before, and a clock that was never set says 1970. The calendar's first and last days
# cannot even be converted to another zone.
FIRST_YEAR, LAST_YEAR = 1980, 2199


class BadTime(ValueError):
    """A text that is no time, or no time in this zone."""


class LocalClock:
    """The clocks of the homes, in one time zone. Times are milliseconds since 1970 in UTC."""

    def __init__(self, timezone: str) -> None:
        """Raises InputProblem for a zone that this machine does not know."""
        try:
            self._zone = zoneinfo.ZoneInfo(timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise InputProblem(f"--timezone {timezone!r} is not known; it should read like Asia/Shanghai") from None
        self._timezone = timezone
        self._hour_starts: dict[str, int] = {}
        self._hour_of_quarter = functools.lru_cache(maxsize=HOURS_KEPT)(self._hour)

    def hour(self, time_ms: int) -> int:
        """Return the hour of day, 0 to 23, that the clocks show."""
        return self._hour_of_quarter(time_ms // QUARTER_MS)

    def local(self, time_ms: int) -> datetime.datetime:
        """Return what the clocks show, without a zone, for people."""
        return datetime.datetime.fromtimestamp(time_ms / 1000, self._zone).replace(tzinfo=None)

    def instant(self, time_ms: int) -> str:
        """Return a time as the clocks show it, with their offset, to the second."""
        return datetime.datetime.fromtimestamp(time_ms // 1000, self._zone).isoformat()

    def read(self, text: str, *, after_ms: int) -> int:
        """Return the time that a text names; `after_ms` is when the same meter was read before.

        A naive time is local: of the doubled hour in autumn it is the first pass unless that is not after `after_ms`.
        Raises BadTime for what is no time, and for a time that the zone leaves out in spring.
        """
        # An hour's start is worked out once; within the hour it is minutes and seconds that differ.
        hour, minutes, offset = text[:13], text[13:19], text[19:]
        start_ms = self._hour_starts.get(hour + offset)
        if start_ms is None:
            start_ms = self._remember(hour, offset)
        if start_ms != UNPLAIN and len(minutes) == 6 and minutes[0] == minutes[3] == ":":
            minute, second = minutes[1:3], minutes[4:]
            if minute.isdecimal() and second.isdecimal() and minute < "60" and second < "60":
                return start_ms + 60_000 * int(minute) + 1_000 * int(second)
        return self._read_slowly(text, after_ms)

    def _hour(self, quarter: int) -> int:
        return datetime.datetime.fromtimestamp(quarter * QUARTER_MS // 1000, self._zone).hour

    def _remember(self, hour: str, offset: str) -> int:
        """Note when an hour, `2016-03-01T00` and perhaps `Z`, starts; UNPLAIN where that does not settle it."""
        if len(offset) > LONGEST_OFFSET:
            return UNPLAIN  # not noted: what is long is wrong, and every row may have another
        try:
            start = datetime.datetime.fromisoformat(f"{hour}:00:00{offset}")
        except ValueError:
            start_ms = UNPLAIN
        else:
            if not FIRST_YEAR <= start.year <= LAST_YEAR:
                return self._note(hour + offset, UNPLAIN)
            if start.tzinfo is not None:
                return self._note(hour + offset, _ms(start))
            quarters = [start + datetime.timedelta(minutes=minutes) for minutes in (0, 15, 30, 45)]
            offsets = {moment.replace(tzinfo=self._zone, fold=f).utcoffset() for moment in quarters for f in (0, 1)}
            start_ms = _ms(start.replace(tzinfo=self._zone)) if len(offsets) == 1 else UNPLAIN
        return self._note(hour + offset, start_ms)

    def _note(self, key: str, start_ms: int) -> int:
        if len(self._hour_starts) >= HOURS_KEPT:
            self._hour_starts.clear()
        self._hour_starts[key] = start_ms
        return start_ms

    def _read_slowly(self, text: str, after_ms: int) -> int:
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise BadTime(
                f"{brief(text)!r} is no time; it should read like 2016-03-01T00:53:08 or end in an offset"
            ) from None
        if len(text) < SHORTEST:
            raise BadTime(f"{text!r} has no time of day; it should read like 2016-03-01T00:53:08")
        if not FIRST_YEAR <= moment.year <= LAST_YEAR:
            raise BadTime(f"{brief(text)!r}: the year should be {FIRST_YEAR} to {LAST_YEAR}")
        if moment.tzinfo is not None:
            return _ms(moment)
        local = moment.replace(tzinfo=self._zone)
        time_ms = _ms(local)
        if self.local(time_ms) != moment:
            raise BadTime(
                f"{brief(text)} does not exist in {self._timezone}: the clocks skip it. Times without summer time need"
                " a zone without it, such as Etc/GMT-1"
            )
        return _ms(local.replace(fold=1)) if time_ms <= after_ms else time_ms


def _ms(moment: datetime.datetime) -> int:
    return round(moment.timestamp() * 1000)
