"""Polls the meters of one bus: on time, one after the other, and a dead one hardly delays the rest.

1. Polls are aligned to the wall clock (00:00, 00:05, …) so that the readings of a county can be compared, plus an
   offset of its own for each bus so that a thousand gateways do not report in the same second.
2. Every poll that is made becomes a reading: a value, or why there is none. A poll that is not made becomes nothing.
3. A meter that fails is asked last, once, and in fewer and fewer cycles; with its first answer it is back in each.
   It is asked while the line is idle; on a line that never is, failing meters get a small share of its time.
4. A meter that somebody wants to be read now comes first, whatever its turn.
5. A change is logged once, not at every poll.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from gateway.bus import Bus
from gateway.clock import Clock
from gateway.line import HOLD_OFF_S_MAX
from gateway.meters import MeterReader
from protocols.errors import MeterError, PortLost
from protocols.reading import Reading, missing_reading, reading_of

log = logging.getLogger(__name__)

# A failing meter is asked every 1, 2, 4, 8 cycles, but at least this often: someone may live behind it.
SKIP_CYCLES_MAX: Final = 8
SKIP_S_MAX: Final = 1800.0
# The share of a busy line's time that failing meters may take together, and how much of it they can save up.
PROBE_SHARE: Final = 0.02
PROBE_CREDIT_S_MAX: Final = 30.0
# Readings of a long pass are committed this often, so that an alert does not wait for the last meter.
BATCH_S: Final = 5.0
# The wall clock may be set while we sleep; after this long the next poll is computed anew.
NAP_S_MAX: Final = 60.0
# A loose plug or a resetting adapter is back within seconds; until then nobody's poll counts as missed.
PORT_PATIENCE_S: Final = 5.0
PORT_RETRY_S: Final = 0.5
# The reason of a reading that is missing because of an error that nobody foresaw; the log has the traceback.
BUG: Final = "bug"
# How far polls of different gateways are spread.
OFFSET_S_MAX: Final = 10.0
OFFSET_SHARE: Final = 0.1


class PolledMeter:
    """One meter with its place in the schedule."""

    def __init__(self, *, meter: str, reader: MeterReader, poll_every_s: float) -> None:
        self.meter = meter
        self.reader = reader
        self.period_ms = max(1, round(poll_every_s * 1000))
        self.failures = 0
        self.failing_since_ms = 0
        self.failed_ms = 0  # boot time of the last failed poll, 0 after an answer
        self.failure_s = 0.0  # how long that poll kept the line, with the hold-off that the next one waits for
        self.is_wanted = False  # somebody waits for a reading now
        self._next_slot: int | None = None
        self._slot: int | None = None

    def want(self) -> None:
        """Make the meter due at once, out of its turn."""
        self.is_wanted = True
        self._next_slot = None

    def is_due(self, wall_ms: int) -> bool:
        """Tell whether the meter's next slot has come, or the clock was set back behind its last one."""
        slot = wall_ms // self.period_ms
        return self._next_slot is None or slot >= self._next_slot or (self._slot is not None and slot < self._slot)

    def due_in_ms(self, wall_ms: int) -> int:
        """Return how long it is until the next slot; 0 when it has come."""
        if self.is_due(wall_ms):
            return 0
        assert self._next_slot is not None
        return self._next_slot * self.period_ms - wall_ms

    def polled(self, wall_ms: int, *, failures: int) -> None:
        """Note a poll, after which the meter has failed so many times in a row, and choose the slot of the next."""
        self.failures = failures
        self.is_wanted = False
        self._slot = wall_ms // self.period_ms
        self._next_slot = self._slot + self._cycles()

    def _cycles(self) -> int:
        if self.failures == 0:
            return 1
        longest = max(1, math.floor(SKIP_S_MAX * 1000 / self.period_ms))
        return min(1 << min(self.failures - 1, 10), SKIP_CYCLES_MAX, longest)


class BusPoller:
    """Polls one bus for ever."""

    def __init__(
        self,
        *,
        bus: Bus,
        meters: Sequence[PolledMeter],
        clock: Clock,
        accept: Callable[[Sequence[Reading]], Awaitable[None]],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`accept` takes the readings; `passed`, where set, is called with the bus's name after every pass."""
        self.bus = bus.settings.name
        self.passed: Callable[[str], None] = lambda _: None
        self._bus = bus
        self._meters = meters
        self._clock = clock
        self._accept = accept
        shortest_s = min(meter.period_ms for meter in meters) / 1000
        self._offset_ms = round(jitter() * min(OFFSET_S_MAX, OFFSET_SHARE * shortest_s) * 1000)
        self._wanted = asyncio.Event()
        self._port_lost = False
        self._port_lost_ms = 0
        self._probe_credit_s = 0.0
        self._credited_ms = clock.now().boottime_ms

    async def run(self) -> None:
        """Poll, hand in, sleep until the next meter is due."""
        while True:
            self._wanted.clear()
            await self._pass()
            self.passed(self.bus)
            wall_ms = self._schedule_ms()
            wait_s = min(meter.due_in_ms(wall_ms) for meter in self._awaited()) / 1000
            wait_s_min = PORT_RETRY_S if self._port_lost else 0.001
            await self._nap(min(max(wait_s, wait_s_min), NAP_S_MAX))

    def hasten(self, meter: str) -> None:
        """Read a meter now, out of its turn; nothing happens where it is on another bus."""
        for polled in self._meters:
            if polled.meter == meter:
                polled.want()
                self._wanted.set()

    async def _nap(self, nap_s: float) -> None:
        """Sleep, or until a meter is wanted; one that was wanted during the pass, perhaps after its turn, counts."""
        sleep = asyncio.ensure_future(self._clock.sleep(nap_s))
        wanted = asyncio.ensure_future(self._wanted.wait())
        try:
            await asyncio.wait((sleep, wanted), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            wanted.cancel()

    def _awaited(self) -> Sequence[PolledMeter]:
        """Return the meters whose slots set the pace: a failing one that is due waits for an idle line."""
        return [meter for meter in self._meters if not meter.failures] or self._meters

    def _schedule_ms(self) -> int:
        return self._clock.now().wall_ms - self._offset_ms

    async def _pass(self) -> None:
        """Poll every meter that is due: the wanted, those that answer, the failing ones, the longest unasked first."""
        wall_ms = self._schedule_ms()
        batch: list[Reading] = []
        for meter in sorted(self._due(wall_ms), key=lambda meter: (not meter.is_wanted, meter.failed_ms)):
            if meter.failures and not meter.is_wanted and not self._may_probe(meter):
                break  # it and those behind it stay due: a cheaper one must not use up what it saves for
            reading = await self._poll(meter, wall_ms)
            if reading is None:
                break  # it and those behind it stay due: the port may be back in a moment
            batch.append(reading)
            if batch[-1].at.boottime_ms - batch[0].at.boottime_ms > BATCH_S * 1000:
                await self._accept(batch)
                batch = []
        if batch:
            await self._accept(batch)

    def _due(self, wall_ms: int) -> list[PolledMeter]:
        return [meter for meter in self._meters if meter.is_due(wall_ms)]

    def _may_probe(self, meter: PolledMeter) -> bool:
        """Tell whether a failing meter can be asked without delaying those that answer, or out of its share."""
        now_ms = self._clock.now().boottime_ms
        earned_s = PROBE_SHARE * (now_ms - self._credited_ms) / 1000
        self._credited_ms = now_ms
        self._probe_credit_s = min(self._probe_credit_s + earned_s, PROBE_CREDIT_S_MAX)
        wall_ms = self._schedule_ms()
        idle_ms = min((other.due_in_ms(wall_ms) for other in self._meters if not other.failures), default=None)
        if idle_ms is None or idle_ms >= meter.failure_s * 1000:
            return True
        cost_s = min(meter.failure_s, PROBE_CREDIT_S_MAX)
        if self._probe_credit_s < cost_s:
            return False
        self._probe_credit_s -= cost_s
        return True

    async def _poll(self, polled: PolledMeter, wall_ms: int) -> Reading | None:
        """Poll a meter; None while the port is away but may be back before it is worth a missing reading."""
        began_ms = self._clock.now().boottime_ms
        try:
            measurement = await self._bus.read(polled.reader)
        except PortLost as error:
            self._note_port(error)
            if began_ms - self._port_lost_ms < PORT_PATIENCE_S * 1000:
                return None
            polled.polled(wall_ms, failures=polled.failures)  # the port's fault, not the meter's
            return missing_reading(polled.meter, self._clock.now(), error.reason)
        except MeterError as error:
            self._note_port(None)
            self._note_failure(polled, error.reason, error)
            return self._failed(polled, error.reason, wall_ms=wall_ms, began_ms=began_ms)
        except Exception as error:  # noqa: BLE001 - a bug in one meter's codec must not stop the others
            self._note_failure(polled, BUG, error)
            return self._failed(polled, BUG, wall_ms=wall_ms, began_ms=began_ms)
        self._note_port(None)
        self._note_answer(polled)
        polled.failed_ms = 0
        polled.polled(wall_ms, failures=0)
        return reading_of(polled.meter, self._clock.now(), measurement)

    def _failed(self, polled: PolledMeter, reason: str, *, wall_ms: int, began_ms: int) -> Reading:
        now = self._clock.now()
        polled.failed_ms = now.boottime_ms
        polled.failure_s = (now.boottime_ms - began_ms) / 1000 + HOLD_OFF_S_MAX
        polled.polled(wall_ms, failures=polled.failures + 1)
        return missing_reading(polled.meter, now, reason)

    def _note_port(self, error: PortLost | None) -> None:
        if error is not None and not self._port_lost:
            self._port_lost_ms = self._clock.now().boottime_ms
            log.error("bus_lost bus=%s: %s; it is opened again by its name when it is back", self.bus, error)
        elif error is None and self._port_lost:
            log.warning("bus_back bus=%s port=%s", self.bus, self._bus.settings.port)
        self._port_lost = error is not None

    def _note_failure(self, polled: PolledMeter, reason: str, error: Exception) -> None:
        if polled.failures == 0:
            polled.failing_since_ms = self._clock.now().boottime_ms
            log.warning(
                "meter_failing meter=%s bus=%s reason=%s: %s",
                polled.meter,
                self.bus,
                reason,
                error,
                exc_info=error if reason == BUG else None,
            )

    def _note_answer(self, polled: PolledMeter) -> None:
        if polled.failures:
            silent_s = (self._clock.now().boottime_ms - polled.failing_since_ms) / 1000
            log.warning("meter_back meter=%s bus=%s after_s=%.0f", polled.meter, self.bus, silent_s)
