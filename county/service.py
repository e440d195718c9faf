"""The receiver as a service: broker to queue to database to acknowledgement, until it is told to stop.

    broker -> Connection.next_batch -> Receiver.receive (its own thread; returns after the commit) -> acks -> broker

The broker gets its PUBACK when the message arrives, which promises nothing: the gateway waits for our `ack`, and that
exists only after the commit. So whatever breaks in between costs a repetition, never a message.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from county.display import Display
from county.errors import BrokerError, StoreFailed
from county.link import Connection, Link, LinkLost
from county.receiver import Incoming, Outcome, Receiver
from county.store import Store
from protocols import contract
from protocols.contract import Leaf

log = logging.getLogger(__name__)

T = TypeVar("T")
HEARD_LEAVES: Final = (Leaf.STATE, Leaf.TELEMETRY, Leaf.ALERT, Leaf.REPLY)
# Of use to the report alone: a broker whose access rules are older than commands may refuse it.
ALSO_HEARD_LEAVES: Final = (Leaf.COMMAND,)
# Full jitter (a random time up to a doubling limit): many receivers and gateways come back after the same power cut.
BACKOFF_S_FIRST: Final = 1.0
BACKOFF_S_MAX: Final = 60.0
# A full disk wants a look every half minute, not sooner.
STORE_RETRY_S_MAX: Final = 30.0
_CANCEL_AGAIN_S: Final = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the service is told. `county` may be `+`: all. `idle_s`: end after so much silence."""

    database: Path
    county: str
    idle_s: float | None = None


class Backoff:
    """How long to wait after the n-th failure in a row."""

    def __init__(self, *, limit_s: float, choose: Callable[[float, float], float] = random.uniform) -> None:
        self._limit_s = limit_s
        self._choose = choose
        self._failures = 0

    def next_s(self) -> float:
        """Return the seconds to wait now."""
        ceiling_s = min(self._limit_s, BACKOFF_S_FIRST * 2 ** min(self._failures, 30))
        self._failures += 1
        return self._choose(0.0, ceiling_s)

    def reset(self) -> None:
        """Begin again: it worked."""
        self._failures = 0


async def serve(settings: Settings, *, link: Link, display: Display) -> None:
    """Receive until SIGTERM, SIGINT or, where `idle_s` is set, so much silence.

    Raises DatabaseError where the database cannot be opened, BrokerError where the silence was for want of a broker.
    """
    async with _open_receiver(settings.database) as database:
        service = _Service(settings, link=link, display=display, database=database)
        receiving = asyncio.create_task(service.run(), name="receive")
        stopping = asyncio.create_task(_stop_signal(), name="stop signal")
        try:
            await asyncio.wait({receiving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(stopping)
            was_stopped = not receiving.done()
            await _cancel(receiving)
        if was_stopped:
            log.info("receiver_stopped")
        if not receiving.cancelled():
            receiving.result()


async def _stop_signal() -> None:
    """Return when SIGTERM or SIGINT comes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended.

    Once is not always enough: before Python 3.12 `asyncio.wait_for`, which aiomqtt uses, loses a cancellation that
    comes together with the result it waits for.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)


class _DatabaseThread:
    """The one thread that the store belongs to."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._store: Store | None = None
        self._receiver: Receiver | None = None

    async def open(self) -> None:
        """Open the database. Raises DatabaseError."""

        def work() -> None:
            self._store = Store(self._file)
            self._receiver = Receiver(self._store)

        await self._run(work)

    async def run(self, work: Callable[[Receiver], T]) -> T:
        """Return what `work` returns. A cancelled caller does not stop work that has begun: a commit stays whole."""
        receiver = self._receiver
        assert receiver is not None
        return await self._run(lambda: work(receiver))

    async def close(self) -> None:
        """Finish the work under way and close the database."""
        if self._store is not None:
            await self._run(self._store.close)
        self._executor.shutdown(wait=True)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


@contextlib.asynccontextmanager
async def _open_receiver(file: Path) -> AsyncIterator[_DatabaseThread]:
    database = _DatabaseThread(file)
    try:
        await database.open()
        yield database
    finally:
        await database.close()


class _Service:
    def __init__(self, settings: Settings, *, link: Link, display: Display, database: _DatabaseThread) -> None:
        self._settings = settings
        self._link = link
        self._display = display
        self._database = database
        self._connected_once = False

    async def run(self) -> None:
        """Stay connected, for ever or until `idle_s` of silence. Raises BrokerError, see `serve`."""
        for event in await self._database.run(lambda receiver: receiver.standing(_now())):
            self._display.show(event)
        try:
            async with asyncio.timeout(self._settings.idle_s) as self._silence:
                await self._stay_connected()
        except TimeoutError:
            if not self._connected_once:
                raise BrokerError(f"no broker within {self._settings.idle_s:g} s; the lines above say why") from None
            log.info(f"receiver_idle: nothing came for {self._settings.idle_s:g} s")

    async def _stay_connected(self) -> None:
        backoff = Backoff(limit_s=BACKOFF_S_MAX)
        while True:
            try:
                async with self._link.connect() as connection:
                    await self._subscribe(connection)
                    log.info(f"broker_connected protocol={connection.version.name}")
                    self._connected_once = True
                    backoff.reset()
                    await self._receive(connection)
            except LinkLost as error:
                wait_s = backoff.next_s()
                log.warning(f"broker_lost: {error}. Next attempt in {wait_s:.1f} s")
                await asyncio.sleep(wait_s)

    async def _subscribe(self, connection: Connection) -> None:
        await connection.subscribe([contract.topic(self._settings.county, "+", leaf) for leaf in HEARD_LEAVES])
        await connection.subscribe(
            [contract.topic(self._settings.county, "+", leaf) for leaf in ALSO_HEARD_LEAVES], required=False
        )

    async def _receive(self, connection: Connection) -> None:
        """Batch after batch: store, tell, acknowledge. Raises LinkLost."""
        while True:
            received = await connection.next_batch()
            self._break_silence()
            now = _now()
            batch = [
                Incoming(topic=one.topic, payload=one.payload, received_at=now, retained=one.retained)
                for one in received
            ]
            outcome, failures = await self._store(batch)
            for event in outcome.events:
                self._display.show(event)
            await connection.publish([(ack.topic, ack.payload) for ack in outcome.acks])
            if failures:
                # Meanwhile the queue may have overflowed and lost a will; the broker sends every state again.
                await self._subscribe(connection)

    async def _store(self, batch: Sequence[Incoming]) -> tuple[Outcome, int]:
        """Store a batch, however often it takes, and say how often it failed. Nothing is acknowledged before."""
        backoff = Backoff(limit_s=STORE_RETRY_S_MAX)
        failures = 0
        while True:
            try:
                outcome = await self._database.run(lambda receiver: receiver.receive(batch))
            except StoreFailed as error:
                failures += 1
                self._break_silence()
                if failures == 1:
                    log.error(  # the text says it all; a traceback would bury it
                        f"store_failed file={self._settings.database}: {error}. Nothing is acknowledged until it works "
                        "again, so nothing is lost: free space or repair the disk"
                    )
                await asyncio.sleep(backoff.next_s())
            else:
                if failures:
                    log.info(f"store_works_again after {failures} attempts that failed")
                return outcome, failures

    def _break_silence(self) -> None:
        if self._settings.idle_s is not None:
            self._silence.reschedule(asyncio.get_running_loop().time() + self._settings.idle_s)


def _now() -> str:
    return contract.instant(time.time_ns() // 1_000_000)
