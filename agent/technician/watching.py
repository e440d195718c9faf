"""Reading one meter again and again: what changed since the last value, since the first, and how fast."""

import time
from collections.abc import Callable, Iterator

from agent.technician.reading import Change, Report, Station, change


class Watch:
    """Counts readings and keeps the first and the last value. Times of values are those of the line's own clock."""

    def __init__(
        self,
        station: Station,
        *,
        every_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.readings = 0
        self.missed = 0
        self._station = station
        self._every_s = every_s
        self._monotonic = monotonic
        self._pause = pause
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    @property
    def total(self) -> Change | None:
        """What changed between the first value and the last."""
        return self._between(self._first, self._last)

    def reports(self) -> Iterator[tuple[Report, Change | None, Change | None]]:
        """Yield readings for ever, each with the change since the last value and since the first."""
        while True:
            began_s = self._monotonic()
            report = self._station.read()
            if report.measurement is None:
                self.missed += 1
                yield report, None, None
            else:
                self.readings += 1
                value = (self._monotonic(), report.measurement.volume_ml)
                since_last, since_first = self._between(self._last, value), self._between(self._first, value)
                self._last, self._first = value, self._first or value
                yield report, since_last, since_first
            self._pause(max(0.0, began_s + self._every_s - self._monotonic()))

    def _between(self, earlier: tuple[float, int] | None, later: tuple[float, int] | None) -> Change | None:
        if earlier is None or later is None:
            return None
        return change(earlier, later, step_ml=self._station.plan.profile.head.step_ml)
