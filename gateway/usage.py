"""What a simulated register shows: a pure function of time, in exact millilitres, that never falls.

Because nothing is remembered, a simulator that is stopped and started again continues where it would be, and two
runs can be compared reading by reading. Day-to-day variation comes from a hash of (seed, day, draw), not from a
random number generator: any day can be computed without those before it, on every version of Python alike.
"""

import bisect
import csv
import datetime
import hashlib
import re
import zoneinfo
from array import array
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from protocols.errors import ShuiwangError

# A draw may begin up to VARY_MIN_MAX away from its time and last up to DURATION_S_MAX; together less than a day, so
# whatever began two days ago has ended, and only three days have to be looked at for any instant.
DURATION_S_MAX: Final = 6 * 3600
VARY_MIN_MAX: Final = 180
VARY_PERCENT_MAX: Final = 90
HOUR_MS: Final = 3_600_000
_UNIX_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600}
_DRAW: Final = re.compile(
    r"(?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d)(:(?P<second>[0-5]\d))? +"
    r"(?P<litres>\d{1,6}(\.\d{1,3})?) ?L( +in +(?P<duration>\d{1,6}) ?(?P<unit>s|min|h))?"
)


class VillageError(ShuiwangError):
    """A village file, or a file that it names, is wrong; the text says where, and what would be right."""


class Register(Protocol):
    """What a meter has counted."""

    def volume_ml(self, wall_ms: int) -> int:
        """Return what it shows at an instant (UTC, ms since 1970)."""
        ...


class Interval(NamedTuple):
    """A stretch of time from `start_ms` on and before `end_ms`; None is open."""

    start_ms: int | None = None
    end_ms: int | None = None

    def holds(self, wall_ms: int) -> bool:
        """Tell whether an instant lies in it."""
        return (self.start_ms is None or self.start_ms <= wall_ms) and (self.end_ms is None or wall_ms < self.end_ms)

    def elapsed_ms(self, wall_ms: int, *, since_ms: int) -> int:
        """Return how much of it lies between `since_ms` and an instant."""
        start_ms = since_ms if self.start_ms is None else max(since_ms, self.start_ms)
        end_ms = wall_ms if self.end_ms is None else min(wall_ms, self.end_ms)
        return max(0, end_ms - start_ms)


class Draw(NamedTuple):
    """One use of water in a daily routine: when (local time), how much, and over how long (0: all at once)."""

    at: datetime.time
    volume_ml: int
    duration_ms: int


class Variation(NamedTuple):
    """How far a day may differ from the routine: each draw's amount and time, evenly spread within these bounds."""

    percent: int = 0
    minutes: int = 0
    seed: str = ""


class _Flow(NamedTuple):
    """A draw on a certain day. `cut_ms` is when its resident fell silent, if that was while it ran."""

    begin_ms: int
    duration_ms: int
    volume_ml: int
    cut_ms: int | None

    def flowed_ml(self, wall_ms: int) -> int:
        if self.cut_ms is not None:
            wall_ms = min(wall_ms, self.cut_ms)
        if wall_ms < self.begin_ms:
            return 0
        if wall_ms >= self.begin_ms + self.duration_ms:
            return self.volume_ml
        return self.volume_ml * (wall_ms - self.begin_ms) // self.duration_ms

    def total_ml(self) -> int:
        return self.flowed_ml(self.begin_ms + self.duration_ms)


class Routine:
    """A register that counts the same draws every day, within its variation, and perhaps a dripping tap.

    Until `since_ms` it shows `start_ml`; a draw that began before does not count. While the resident is silent no
    draw begins, and one that runs is cut off; the drip goes on.
    """

    def __init__(
        self,
        draws: Sequence[Draw],
        *,
        start_ml: int,
        since_ms: int,
        timezone: zoneinfo.ZoneInfo,
        drip_ml_h: int = 0,
        drip: Interval = Interval(),  # noqa: B008 (immutable)
        silent: Interval | None = None,
        variation: Variation = Variation(),  # noqa: B008 (immutable)
    ) -> None:
        self._draws = tuple(draws)
        self._start_ml = start_ml
        self._since_ms = since_ms
        self._timezone = timezone
        self._drip_ml_h = drip_ml_h
        self._drip = drip
        self._silent = silent
        self._variation = variation
        # A draw of the day before may begin late enough to count.
        self._first_day = self._day(since_ms) - 1
        self._total_ml = [0]  # [n]: what the first n days used; caches only what can be computed again
        self._flows_of: dict[int, list[_Flow]] = {}

    def volume_ml(self, wall_ms: int) -> int:
        """Return what it shows at an instant."""
        if wall_ms <= self._since_ms:
            return self._start_ml
        day = self._day(wall_ms)
        near = (flow for d in (day - 1, day, day + 1) for flow in self._flows(d))
        running_ml = sum(flow.flowed_ml(wall_ms) for flow in near)
        dripped_ml = self._drip_ml_h * self._drip.elapsed_ms(wall_ms, since_ms=self._since_ms) // HOUR_MS
        return self._start_ml + self._total_before(day - 1) + running_ml + dripped_ml

    def _day(self, wall_ms: int) -> int:
        return datetime.datetime.fromtimestamp(wall_ms // 1000, self._timezone).toordinal()

    def _total_before(self, day: int) -> int:
        days = max(0, day - self._first_day)
        while len(self._total_ml) <= days:
            flows = self._flows_on(self._first_day + len(self._total_ml) - 1)
            self._total_ml.append(self._total_ml[-1] + sum(flow.total_ml() for flow in flows))
        return self._total_ml[days]

    def _flows(self, day: int) -> list[_Flow]:
        if day not in self._flows_of:
            if len(self._flows_of) > 8:
                self._flows_of.clear()
            self._flows_of[day] = list(self._flows_on(day))
        return self._flows_of[day]

    def _flows_on(self, day: int) -> Iterator[_Flow]:
        date = datetime.date.fromordinal(day)
        for number, draw in enumerate(self._draws):
            shift_ms, volume_ml = self._varied(draw, f"{day}/{number}")
            begin_ms = wall_ms_of(datetime.datetime.combine(date, draw.at), timezone=self._timezone) + shift_ms
            silent = self._silent
            if begin_ms < self._since_ms or (silent and silent.holds(begin_ms)):
                continue
            cut_ms = silent.start_ms if silent and silent.start_ms is not None and silent.start_ms > begin_ms else None
            yield _Flow(begin_ms, draw.duration_ms, volume_ml, cut_ms)

    def _varied(self, draw: Draw, occasion: str) -> tuple[int, int]:
        percent, minutes, seed = self._variation
        if not percent and not minutes:
            return 0, draw.volume_ml
        digest = hashlib.blake2b(f"{seed}/{occasion}".encode(), digest_size=16).digest()
        volume_ml = draw.volume_ml * (100_000 + _within(percent * 1000, digest[:8])) // 100_000
        return _within(minutes * 60_000, digest[8:]), volume_ml


class Replay:
    """A register that repeats readings from a file: each stands until the next; the first also before it."""

    def __init__(self, at_ms: Sequence[int], volume_ml: Sequence[int], *, start_ml: int) -> None:
        assert len(at_ms) == len(volume_ml) > 0
        self._at_ms = at_ms
        self._volume_ml = volume_ml
        self._start_ml = start_ml

    def volume_ml(self, wall_ms: int) -> int:
        """Return what it shows at an instant."""
        row = max(0, bisect.bisect_right(self._at_ms, wall_ms) - 1)
        return self._start_ml + self._volume_ml[row]


def parse_draw(text: str) -> Draw:
    """Return the draw in a text such as `06:30 8 L` or `12:00 15.5 L in 5 min`. Raises VillageError."""
    match = _DRAW.fullmatch(text.strip())
    if not match:
        raise VillageError(f'{text!r} is no draw of water; right would be "06:30 8 L" or "12:00 15 L in 5 min"')
    duration_s = int(match["duration"] or 0) * _SECONDS[match["unit"] or "s"]
    if duration_s > DURATION_S_MAX:
        raise VillageError(f"{text!r} lasts longer than {DURATION_S_MAX // 3600} h; right would be several draws")
    return Draw(
        at=datetime.time(int(match["hour"]), int(match["minute"]), int(match["second"] or 0)),
        volume_ml=int(Decimal(match["litres"]) * 1000),
        duration_ms=duration_s * 1000,
    )


def read_replay(path: Path, *, timezone: zoneinfo.ZoneInfo, start_ml: int) -> Replay:
    """Return the register in a CSV file with the columns `timestamp,litres`, litres counting up.

    A timestamp is ISO 8601; without an offset it is local time in `timezone`. Fractions of a millilitre are dropped.
    Raises VillageError, which names the line.
    """
    at_ms, volume_ml = array("q"), array("q")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != ["timestamp", "litres"]:
                raise VillageError(f"{path}: line 1: right would be the heading timestamp,litres")
            for row in rows:
                if row:
                    where = f"{path}: line {rows.line_num}"
                    moment_ms, counted_ml = _reading_in(row, timezone=timezone, where=where)
                    if at_ms and moment_ms <= at_ms[-1]:
                        raise VillageError(
                            f"{where}: {row[0]} is not after the line before; right would be rising timestamps, "
                            "with an offset such as +08:00 where the local hour occurs twice"
                        )
                    if volume_ml and counted_ml < volume_ml[-1]:
                        raise VillageError(f"{where}: {row[1]} L is less than before; a register never falls")
                    at_ms.append(moment_ms)
                    volume_ml.append(counted_ml)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VillageError(f"{path}: cannot be read: {error}") from error
    if not at_ms:
        raise VillageError(f"{path}: holds no reading; right would be at least one line such as 2026-01-01T06:30,8")
    return Replay(at_ms, volume_ml, start_ml=start_ml)


def wall_ms_of(moment: datetime.datetime, *, timezone: zoneinfo.ZoneInfo) -> int:
    """Return the wall clock value (UTC, ms since 1970) of a moment; without an offset it is local time."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone)
    return (moment - _UNIX_EPOCH) // datetime.timedelta(milliseconds=1)


def _reading_in(row: list[str], *, timezone: zoneinfo.ZoneInfo, where: str) -> tuple[int, int]:
    try:
        timestamp, litres = row
        moment_ms = wall_ms_of(datetime.datetime.fromisoformat(timestamp), timezone=timezone)
        volume_ml = int(Decimal(litres) * 1000)
    except (ValueError, OverflowError, InvalidOperation) as error:
        raise VillageError(f"{where}: {','.join(row)!r}: right would be 2026-01-01T06:30,8.5") from error
    if not 0 <= volume_ml <= 10**15:  # as protocols.registers.VOLUME_ML_MAX; NaN does not get this far
        raise VillageError(f"{where}: {litres} L; right would be 0 to 1000000000000")
    return moment_ms, volume_ml


def _within(bound: int, digest: bytes) -> int:
    """Return a number from -bound to bound, evenly spread to within 2^-30 for every bound used here."""
    return int.from_bytes(digest, "big") % (2 * bound + 1) - bound
