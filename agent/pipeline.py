"""The one way of a reading: judged, then committed together with the alerts that it caused, then forwarded.

When the store cannot commit (disk full, I/O error), polling goes on: readings and alert steps wait in memory, bounded,
and go in with the next commit that succeeds. Steps are never dropped, the oldest readings are, counted and said.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from agent.judge import Judge
from agent.timeline import anchors_of
from gateway.store import Store, StoreDamaged, StoreError
from protocols.contract import AlertBody
from protocols.reading import Reading

log = logging.getLogger(__name__)
T = TypeVar("T")

# 200 meters every 5 min for 8 h; about 10 MiB of memory.
PENDING_READINGS_MAX: Final = 20_000
# A store that hangs makes the buses wait after so many passes: then the watchdog is fed no more, and it is noticed.
INBOX_BATCHES_MAX: Final = 4


class StoreCalls(Protocol):
    """The store's owner thread."""

    async def __call__(self, work: Callable[[Store], T]) -> T:
        """Return what `work` returns for the store; it runs on the owner thread. Raises StoreError."""
        ...


class Pipeline:
    """Accepts batches of readings from all buses and brings them into the store, one commit for what has gathered."""

    def __init__(self, *, store: StoreCalls, judge: Judge, committed: Callable[[], None]) -> None:
        """`committed` is called after every commit, to wake the forwarder."""
        self._store = store
        self._judge = judge
        self._committed = committed
        self._inbox: asyncio.Queue[Sequence[Reading] | None] = asyncio.Queue(maxsize=INBOX_BATCHES_MAX)
        self._readings: list[Reading] = []
        self._steps: list[AlertBody] = []
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
                stopping = stopping or batch is None
                if batch is not None:
                    await self._take(batch)
            if self._readings or self._steps:
                await self._commit()

    async def rebuild(self, news: Sequence[Reading] = ()) -> None:
        """Rebuild the judge from the history, dated with what `news` tell about the clock. Raises StoreError."""
        pending = tuple(self._readings)
        await self._store(lambda store: _replay(self._judge, store, pending=pending, news=news))

    async def _take(self, batch: Sequence[Reading]) -> None:
        if any(self._judge.wants_replay(reading.at) for reading in batch):
            await self._date_anew(batch)
        for reading in batch:
            self._readings.append(reading)
            for step in self._judge.feed(reading):
                log.warning(
                    "alert_%s meter=%s kind=%s level=%s since=%s",
                    step.state,
                    step.meter,
                    step.kind,
                    step.level,
                    step.since,
                )
                self._steps.append(step)

    async def _date_anew(self, batch: Sequence[Reading]) -> None:
        try:
            await self.rebuild(batch)
        except StoreError as error:
            log.error("timeline_not_rebuilt: %s; the next readings try again", error)
        else:
            log.info("timeline_rebuilt: the clock is synced now, earlier readings are dated by it")

    async def _commit(self) -> None:
        readings, self._readings = self._readings, []
        steps, self._steps = self._steps, []
        try:
            await self._store(lambda store: store.commit(readings, steps))
        except StoreDamaged:
            raise  # the service opens it anew; what was not committed was not accepted
        except StoreError as error:
            self._keep(readings, steps, error)
            return
        if self._failing:
            self._failing = False
            log.warning(
                "store_recovered: %d readings committed, %d dropped meanwhile", len(readings), self.readings_dropped
            )
        self._committed()

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


def _replay(judge: Judge, store: Store, *, pending: Sequence[Reading], news: Sequence[Reading]) -> None:
    known = itertools.chain(store.history(), pending, news)
    anchors = anchors_of(reading.at for reading in known)
    judge.replay(itertools.chain(store.history(), pending), anchors)
