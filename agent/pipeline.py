"""The one way of a reading: judged, then committed together with the alerts that it caused, then forwarded.

When the store cannot commit (disk full, I/O error), polling goes on: readings and alert steps wait in memory, bounded,
and go in with the next commit that succeeds. Steps are never dropped, the oldest readings are, counted and said.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from agent.judge import Judge, Verdict
from agent.past import VILLAGE
from agent.timeline import Anchor, Timeline, anchors_of
from gateway.store import HourlyValue, Learned, Store, StoreDamaged, StoreError
from protocols.absence import Absence
from protocols.contract import AlertBody, Ending
from protocols.reading import ClockTrust, Moment, Reading

log = logging.getLogger(__name__)
T = TypeVar("T")

# 200 meters every 5 min for 8 h; about 10 MiB of memory.
PENDING_READINGS_MAX: Final = 20_000
# What was learned of a home is kept this often, a few homes with each commit: 200 homes are 400 KB.
KEEP_LEARNED_S: Final = 6 * 3600.0
LEARNED_PER_COMMIT: Final = 8
# A store that hangs makes the buses wait after so many passes: then the watchdog is fed no more, and it is noticed.
INBOX_BATCHES_MAX: Final = 4


class StoreCalls(Protocol):
    """The store's owner thread."""

    async def __call__(self, work: Callable[[Store], T]) -> T:
        """Return what `work` returns for the store; it runs on the owner thread. Raises StoreError."""
        ...


class Pipeline:
    """Accepts batches of readings from all buses and brings them into the store, one commit for what has gathered."""

    def __init__(
        self,
        *,
        store: StoreCalls,
        judge: Judge,
        committed: Callable[[], None],
        absences_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`committed` is called after every commit, to wake the forwarder; `absences_changed` to tell the county.

        `hasten`, where set, is called with a meter that somebody wants to be read now.
        """
        self._store = store
        self._judge = judge
        self._committed = committed
        self._absences_changed = absences_changed
        self.hasten: Callable[[str], None] = lambda _: None
        self._inbox: asyncio.Queue[Sequence[Reading] | _Errand | None] = asyncio.Queue(maxsize=INBOX_BATCHES_MAX)
        self._readings: list[Reading] = []
        self._steps: list[AlertBody] = []
        self._ended: list[Absence] = []
        self._learned_at_ms: dict[str, int] = {}  # boot time at which what was learned was last kept
        self._awaited: list[_Wanted] = []
        self._failing = False
        self.readings_dropped = 0

    async def accept(self, batch: Sequence[Reading]) -> None:
        """Hand in the readings of one pass over a bus."""
        await self._inbox.put(batch)

    async def stop(self) -> None:
        """Let `run` commit what was handed in so far, and return."""
        await self._inbox.put(None)

    async def run(self) -> None:
        """Judge and commit what is handed in, until `stop`. Not to be cancelled: readings would be lost.

        Raises StoreDamaged when the store turns out to be no sound database any more.
        """
        stopping = False
        while not stopping:
            batches = [await self._inbox.get()]
            while not self._inbox.empty():
                batches.append(self._inbox.get_nowait())
            for batch in batches:
                if batch is None:
                    stopping = True
                elif isinstance(batch, _Errand):
                    if self._readings or self._steps:
                        await self._commit(stopping=False)  # what is said of an episode must not be older than its note
                    await batch.run()
                else:
                    await self._take(batch)
            if self._readings or self._steps or stopping:
                await self._commit(stopping=stopping)

    async def rebuild(self, news: Sequence[Reading] = ()) -> None:
        """Rebuild the judge from the history, dated with what `news` tell about the clock. Raises StoreError."""
        pending = tuple(self._readings)
        await self._store(lambda store: _replay(self._judge, store, pending=pending, news=news))

    # -- what the county and the village ask for ---------------------------------------------------------------------

    async def declare_absence(self, absence: Absence) -> Absence:
        """Expect nobody at a home, in place of the home's earlier absence; return the absence as it is kept.

        One of that id that is known already stays as it is, and as it ended. Raises StoreError.
        """

        async def declare() -> Absence:
            with self._judge.absences.unless_failing(absence.meter):
                kept, changed = self._judge.absences.declare(absence)
                if changed:
                    await self._store(lambda store: store.put_absence(*changed))
            if changed:
                self._absences_changed()
            return kept

        return await self._errand(declare)

    async def end_absence(self, meter: str, *, by: Ending, at: Moment) -> Absence | None:
        """Expect somebody again; return the absence that ended, None where there was none. Raises StoreError."""

        async def end() -> Absence | None:
            with self._judge.absences.unless_failing(meter):
                is_dated = at.trust is ClockTrust.SYNCED
                ended = self._judge.absences.end(meter, at.wall_ms, by=by, is_dated=is_dated)
                if ended is not None:
                    await self._store(lambda store: store.put_absence(ended))
            if ended is not None:
                self._absences_changed()
            return ended

        return await self._errand(end)

    async def note(self, alert: str, county: Mapping[str, Any], *, command_id: str | None = None) -> AlertBody | None:
        """Keep what the county says of an open alert; return it with that, None where none has that id.

        `command_id` tells when the county said so. Raises StoreError.
        """

        async def keep() -> AlertBody | None:
            episode = self._judge.noted(alert, county, command_id=command_id)
            if episode is None or not await self._store(lambda store: store.note_episode(episode)):
                return None
            self._judge.note(episode)
            if episode.meter is not None:
                # A silence in which somebody was helped is not to be learned, not even after a power cut.
                learned = tuple(self._judge.learned([episode.meter]))
                await self._store(lambda store: store.commit([], [], learned))
            return episode

        return await self._errand(keep)

    async def next_reading(self, meter: str, *, since_boottime_ms: int) -> Reading:
        """Have a meter read now; return the first reading of that time or later, a missing one too, once it is kept.

        Waits for it as long as the caller does.
        """
        wanted = _Wanted(meter, since_boottime_ms)
        self._awaited.append(wanted)
        self.hasten(meter)
        try:
            return await wanted.reading
        finally:
            self._awaited.remove(wanted)

    async def _errand(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something between two batches, when nobody else changes the judge; return what it returns."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await self._inbox.put(_Errand(work, future))
        result: T = await future
        return result

    # -- readings ---------------------------------------------------------------------------------------------------

    async def _take(self, batch: Sequence[Reading]) -> None:
        if any(self._judge.wants_replay(reading.at) for reading in batch):
            await self._date_anew(batch)
        for reading in batch:
            verdict = self._verdict(reading)
            self._readings.append(verdict.reading)
            self._steps += verdict.steps
            self._ended += verdict.ended
            for step in verdict.steps:
                _log_step(step)
            for absence in verdict.ended:
                log.warning("absence_ended meter=%s: water is used", absence.meter)

    def _verdict(self, reading: Reading) -> Verdict:
        try:
            return self._judge.feed(reading)
        except Exception:
            log.exception("judging_failed meter=%s: the reading is kept; please report it", reading.meter)
            return Verdict(reading=reading)

    async def _date_anew(self, batch: Sequence[Reading]) -> None:
        try:
            await self.rebuild(batch)
        except StoreError as error:
            log.error("timeline_not_rebuilt: %s; the next readings try again", error)
        else:
            log.info("timeline_rebuilt: the clock is synced now, earlier readings are dated by it")

    async def _commit(self, *, stopping: bool) -> None:
        readings, self._readings = self._readings, []
        steps, self._steps = self._steps, []
        ended, self._ended = self._ended, []
        learned = self._due_to_be_kept(readings, stopping=stopping)
        try:
            await self._store(lambda store: store.commit(readings, steps, learned, ended))
        except StoreDamaged:
            raise  # the service opens it anew; what was not committed was not accepted
        except StoreError as error:
            self._ended = ended + self._ended
            self._keep(readings, steps, error)
            return
        if readings:
            self._learned_at_ms |= {one.meter: readings[-1].at.boottime_ms for one in learned}
        if self._failing:
            self._failing = False
            log.warning(
                "store_recovered: %d readings committed, %d dropped meanwhile", len(readings), self.readings_dropped
            )
        if ended:
            self._absences_changed()
        for wanted in self._awaited:
            wanted.look_at(readings)
        self._committed()

    def _due_to_be_kept(self, readings: Sequence[Reading], *, stopping: bool) -> list[Learned]:
        """Return what was learned of the homes for which it is time; of all of them at the end."""
        if stopping:
            return list(self._judge.learned([*self._judge.meters, VILLAGE]))
        if not readings:
            return []
        now_ms = readings[-1].at.boottime_ms
        meters = dict.fromkeys([*(reading.meter for reading in readings), VILLAGE])
        # After a start all are due: a gateway that never runs for so long would else keep nothing.
        since_ms = now_ms - round(KEEP_LEARNED_S * 1000)
        due = (meter for meter in meters if self._learned_at_ms.get(meter, since_ms) <= since_ms)
        return list(itertools.islice(self._judge.learned(due), LEARNED_PER_COMMIT))

    def _keep(self, readings: list[Reading], steps: list[AlertBody], error: StoreError) -> None:
        if not self._failing:
            self._failing = True
            log.error("store_failing: %s; polling goes on, readings wait in memory. Check the disk: df, dmesg", error)
        self._steps = steps + self._steps
        self._readings = readings + self._readings
        excess = len(self._readings) - PENDING_READINGS_MAX
        if excess > 0:
            del self._readings[:excess]
            self.readings_dropped += excess


class _Wanted:
    """A reading that somebody waits for."""

    def __init__(self, meter: str, since_boottime_ms: int) -> None:
        self.reading: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
        self._meter = meter
        self._since_boottime_ms = since_boottime_ms

    def look_at(self, readings: Sequence[Reading]) -> None:
        """Take the first of some readings that is late enough; a long pass hands in what is older than the wish."""
        for reading in readings:
            is_it = reading.meter == self._meter and reading.at.boottime_ms >= self._since_boottime_ms
            if is_it and not self.reading.done():
                self.reading.set_result(reading)


class _Errand:
    """Something to be done between two batches."""

    def __init__(self, work: Callable[[], Awaitable[Any]], future: "asyncio.Future[Any]") -> None:
        self._work = work
        self._future = future

    async def run(self) -> None:
        try:
            result = await self._work()
        except StoreDamaged as error:
            self._fail(error)
            raise
        except Exception as error:  # noqa: BLE001 - whoever asked is told; readings go on
            self._fail(error)
        else:
            if not self._future.done():
                self._future.set_result(result)

    def _fail(self, error: Exception) -> None:
        if not self._future.done():
            self._future.set_exception(error)


def _log_step(step: AlertBody) -> None:
    log.warning(
        "alert_%s meter=%s kind=%s level=%s since=%s: %s",
        step.transition,
        step.meter,
        step.kind,
        step.level,
        step.since,
        (step.text or {}).get("en", ""),
    )


def _replay(judge: Judge, store: Store, *, pending: Sequence[Reading], news: Sequence[Reading]) -> None:
    anchors = anchors_of(itertools.chain(store.moments(), (reading.at for reading in (*pending, *news))))
    judge.replay(itertools.chain(store.history(), pending), anchors, store.learned(), _hourly_before(store, anchors))


def _hourly_before(store: Store, anchors: dict[str, Anchor]) -> Iterator[HourlyValue]:
    """Yield the hourly values that lie before the history on its axis, where the clock says so."""
    first = next(store.history(), None)
    if first is not None and first.at.trust is ClockTrust.SYNCED:
        # An hour is left out: the clock may have been corrected a little since.
        last_hour = Timeline(dict(anchors)).place(first.at) // 3_600_000 - 2
        yield from itertools.takewhile(lambda value: value.hour <= last_hour, store.hourly())
