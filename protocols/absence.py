"""An absence as the gateway keeps it: who is not expected to use water, from when to when, and what ended it."""

import datetime
import re
from typing import Final

import msgspec

from protocols.contract import AbsenceNotice, Daily, Ending, instant, wall_ms

_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2})?", re.ASCII)
# The first and the last instant that `instant` writes with four digits of a year.
_FIRST_MS: Final = wall_ms("1000-01-01T00:00:00.000Z")
_LAST_MS: Final = wall_ms("9999-12-31T23:59:59.999Z")
_HOURS: Final = re.compile(r"(\d{2}:\d{2})-(\d{2}:\d{2})", re.ASCII)


class Absence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Nobody is expected at the home of `meter` from `start_ms` on and before `until_ms` (wall clock, UTC).

    With `daily` it is no absence but quiet hours: between these two dates nobody is expected to use water in these
    hours of the day. `id` is that of the command which declared it at `declared_ms`, `declared_by` a role. `ended_ms`
    and `ended_by` come together, and once. Raises ValueError for what contradicts itself.
    """

    id: str
    meter: str
    start_ms: int
    until_ms: int
    declared_by: str
    declared_ms: int
    daily: Daily | None = None
    ended_ms: int | None = None
    ended_by: Ending | None = None

    def __post_init__(self) -> None:
        if self.start_ms >= self.until_ms or (self.ended_ms is None) != (self.ended_by is None):
            raise ValueError("an absence ends after it begins, and for one reason")

    @property
    def is_open(self) -> bool:
        """Whether nothing has ended it; its time may be over nevertheless, until somebody says so."""
        return self.ended_by is None

    def ended(self, ended_by: Ending, *, at_ms: int) -> "Absence":
        """Return this absence, ended."""
        return msgspec.structs.replace(self, ended_ms=at_ms, ended_by=ended_by)

    def notice(self) -> AbsenceNotice:
        """Return it as the county is told."""
        return AbsenceNotice(
            meter=self.meter,
            start=instant(self.start_ms),
            until=instant(self.until_ms),
            daily=self.daily,
            ended_at=None if self.ended_ms is None else instant(self.ended_ms),
            ended_by=self.ended_by,
        )


def local_time(text: str, *, zone: datetime.tzinfo | None, is_end: bool) -> int:
    """Return the wall clock (UTC, ms) of `2026-12-01 18:30`, or of `2026-12-01`: its beginning, or its end.

    `zone` None is that of the machine. What lies beyond the calendar's last instant is that instant: too far ahead for
    whoever asks, and no other mistake. Raises ValueError, which says in two languages what is right.
    """
    shape = _TIME.fullmatch(text)
    if shape is None:
        raise ValueError(
            f"{text!r}: write 2026-12-01 or '2026-12-01 18:30' 时间格式应为 2026-12-01 或 '2026-12-01 18:30'"
        )
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error} 没有这个日期") from error
    try:
        if is_end and shape[1] is None:
            moment += datetime.timedelta(days=1)
        time_ms = round(moment.replace(tzinfo=zone).timestamp() * 1000)
    except (ValueError, OverflowError):
        time_ms = _LAST_MS if moment.year == datetime.MAXYEAR else _FIRST_MS - 1
    if time_ms < _FIRST_MS:
        raise ValueError(f"{text!r}: lies before every calendar 日期过早")
    return min(time_ms, _LAST_MS)


def daily_hours(text: str) -> Daily:
    """Return the hours of `22:00-06:00`. Raises ValueError, which says in two languages what is right."""
    match = _HOURS.fullmatch(text)
    try:
        return msgspec.convert({"from": match[1], "to": match[2]} if match else {}, Daily)
    except msgspec.ValidationError:
        raise ValueError(
            f"{text!r}: write two different times of day as 22:00-06:00 时段格式应为 22:00-06:00"
        ) from None
