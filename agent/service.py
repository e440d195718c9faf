"""The service: every part put together, started, supervised and stopped."""

import asyncio
import contextlib
import importlib.metadata
import itertools
import logging
import math
import signal
import zoneinfo
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, NoReturn, TypeVar

from agent.absences import Absences
from agent.command_folder import CommandFolder
from agent.commands import Commands
from agent.forwarder import Forwarder, Sender
from agent.judge import Judge
from agent.past import rules_of
from agent.pipeline import Pipeline
from agent.poller import BusPoller, PolledMeter
from agent.settings import Config
from gateway.broker import Broker, BrokerSettings, Message
from gateway.bus import Bus
from gateway.clock import Clock
from gateway.meters import MeterReader
from gateway.owner import OwnerThread
from gateway.store import Store, StoreDamaged, StoreError
from gateway.store_recovery import open_store
from gateway.systemd import Notifier
from gateway.ulid import new_ulid
from protocols import contract
from protocols.contract import Leaf, State, Stream
from protocols.reading import ClockTrust

log = logging.getLogger(__name__)
T = TypeVar("T")

STORE_NAME: Final = "shuiwang.db"
# Each salvage sets a file aside; a card that fails all the time must not fill itself, nor the processor be kept busy.
REOPEN_PAUSES_S: Final = (0.1, 5.0, 60.0, 600.0)
# A store of 200 meters grows by about 6 MB a day; what waits for the county beyond this is dropped, alerts never.
STORE_BYTES_MAX: Final = 512 * 1024 * 1024
# Readings stay at least so long, and at least twice the longest window: the rules are rebuilt from them.
HISTORY_MS_MIN: Final = 3 * 86_400_000
HOUSEKEEPING_S: Final = 600.0


def history_readings(config: Config) -> int:
    """Return how many readings cover the time that the rules look back, at the pace of this configuration."""
    keep_ms = max([HISTORY_MS_MIN, *(2 * meter.detection.window_ms for meter in config.meters)])
    return math.ceil(sum(keep_ms / (1000 * meter.poll_every_s) for meter in config.meters))


class StoreThread:
    """The store and the thread that owns it."""

    def __init__(self, owner: OwnerThread, store: Store) -> None:
        self._owner = owner
        self._store = store
        self.path = store.path

    async def __call__(self, work: Callable[[Store], T]) -> T:
        """Return what `work` returns for the store. Raises StoreError."""
        return await self._owner.run(lambda: work(self._store))

    async def close(self) -> None:
        """Finish what was asked for, then close the file."""
        await self._owner.run(self._store.close)
        self._owner.stop()


class Heartbeat:
    """Feeds the watchdog when every bus has finished another pass; one bus that hangs starves it."""

    def __init__(self, buses: set[str], notifier: Notifier) -> None:
        self._buses = frozenset(buses)
        self._waiting_for = set(buses)
        self._notifier = notifier

    def passed(self, bus: str) -> None:
        """Note that a bus has finished a pass."""
        self._waiting_for.discard(bus)
        if not self._waiting_for:
            self._notifier.alive()
            self._waiting_for = set(self._buses)


class Service:
    """The agent for one configuration."""

    def __init__(self, config: Config, *, clock: Clock, notifier: Notifier) -> None:
        self._config = config
        self._clock = clock
        self._notifier = notifier
        self._zone = zoneinfo.ZoneInfo(config.gateway.timezone)
        self._version = _version()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT, then stop cleanly.

        Raises StoreError where no store can be opened. Anything else that ends it is a bug of ours.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        damage: str | None = None
        for pause_s in itertools.chain(REOPEN_PAUSES_S, itertools.repeat(REOPEN_PAUSES_S[-1])):
            damage = await self._run_on(await self._open_store(damage))
            if damage is None or await self._is_stopped_within(pause_s):
                break
            log.error("store_reopened: the file was found damaged while in use; what can be read of it is saved")
        log.info("agent_stopped")

    async def _run_on(self, store: StoreThread) -> str | None:
        """Work on a store; return None when asked to stop, what is wrong with the store when it turns out damaged."""
        found: str | None = None
        try:
            await self._work(store)
        except* StoreDamaged as damage:
            found = str(damage.exceptions[0])
            log.error("store_damaged: %s", found)
        finally:
            await store.close()
        return found

    async def _is_stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return self._stop.is_set()

    async def _work(self, store: StoreThread) -> None:
        config = self._config
        sender = Sender(county=config.gateway.county, gateway=config.gateway.id)
        forwarder = Forwarder(
            store=store,
            clock=self._clock,
            sender=sender,
            birth=lambda epoch, oldest: self._birth(epoch, oldest, judge.absences),
            county_acknowledges=config.broker.acknowledgement == "county",
        )
        farewell = _state_message(sender, "stopped")
        judge = Judge(
            rules_of(config),
            episodes=await store(Store.open_episodes),
            new_id=self._new_id,
            absences=Absences(await store(Store.absences)),
            zone=self._zone,
        )
        await self._end_orphans(judge, store)
        pipeline = Pipeline(store=store, judge=judge, committed=forwarder.wake, absences_changed=forwarder.announce)
        await pipeline.rebuild()
        folder = CommandFolder(config.gateway.data_dir, clock=self._clock)
        commands = Commands(
            store=store,
            clock=self._clock,
            actions=pipeline,
            meters=[meter.id for meter in config.meters],
            zone=self._zone,
            withdraw=folder.withdraw,
        )
        forwarder.handle = commands.handle
        buses = [Bus(settings) for settings in config.buses]
        pollers = [poller for bus in buses if (poller := self._poller(bus, pipeline))]
        heartbeat = Heartbeat({poller.bus for poller in pollers}, self._notifier)
        for poller in pollers:
            poller.passed = heartbeat.passed

        def hasten(meter: str) -> None:
            for poller in pollers:
                poller.hasten(meter)

        pipeline.hasten = hasten
        jobs: dict[str, Coroutine[Any, Any, Any]] = {
            "housekeeping": self._housekeeping(store, judge.absences, forwarder.announce),
            "broker": self._broker(sender).run(forwarder.serve, farewell=farewell),
            "command-folder": folder.run(commands.handle),
            **{f"poller-{poller.bus}": poller.run() for poller in pollers},
        }
        try:
            async with asyncio.TaskGroup() as committing:
                committing.create_task(pipeline.run(), name="pipeline")
                await self._until_stopped(jobs)
                await pipeline.stop()
        finally:
            await commands.close()
            for bus in buses:
                await asyncio.to_thread(bus.close)

    async def _until_stopped(self, jobs: Mapping[str, Coroutine[Any, Any, Any]]) -> None:
        """Run everything that hands readings in and messages out, until somebody asks to stop."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._wait_for_stop(), name="stop")
                for name, job in jobs.items():
                    tasks.create_task(job, name=name)
                self._announce()
        except* _Stop:
            self._notifier.stopping()

    async def _wait_for_stop(self) -> NoReturn:
        await self._stop.wait()
        raise _Stop

    async def _open_store(self, damage: str | None) -> StoreThread:
        self._config.gateway.data_dir.mkdir(parents=True, exist_ok=True)
        owner = OwnerThread("store")
        path = self._config.gateway.data_dir / STORE_NAME
        store, _ = await owner.run(lambda: open_store(path, new_id=self._new_id, damage=damage))
        return StoreThread(owner, store)

    def _poller(self, bus: Bus, pipeline: Pipeline) -> BusPoller | None:
        meters = [
            PolledMeter(
                meter=meter.id,
                poll_every_s=meter.poll_every_s,
                reader=MeterReader(
                    profile=meter.profile,
                    address=meter.address,
                    timeout_ms=meter.timeout_ms,
                    retries=meter.retries,
                ),
            )
            for meter in self._config.meters
            if meter.bus == bus.settings.name
        ]
        if not meters:
            return None
        return BusPoller(bus=bus, meters=meters, clock=self._clock, accept=pipeline.accept)

    async def _end_orphans(self, judge: Judge, store: StoreThread) -> None:
        """End the episodes of meters that the configuration no longer has."""
        orphans = judge.orphans(self._clock.now())
        if orphans:
            try:
                await store(lambda store: store.commit([], orphans))
            except StoreDamaged:
                raise
            except StoreError as error:
                log.error("orphans_not_cleared: %s; the next start tries again", error)
            else:
                log.warning("alerts_cleared meters=%s: no longer configured", ",".join(str(o.meter) for o in orphans))

    def _broker(self, sender: Sender) -> Broker:
        broker = self._config.broker
        settings = BrokerSettings(
            host=broker.host,
            port=broker.port,
            client_id=sender.gateway,
            tls=broker.tls,
            ca_file=broker.ca_file,
            cert_file=broker.cert_file,
            key_file=broker.key_file,
            username=broker.username,
            password_file=broker.password_file,
        )
        will = _state_message(sender, "connection lost")
        return Broker(settings, will=will, subscriptions=(sender.topic(Leaf.ACK), sender.topic(Leaf.COMMAND)))

    def _birth(self, epoch: str, oldest: dict[Stream, int], absences: Absences) -> State:
        now = self._clock.now()
        return State(
            schema=contract.STATE_SCHEMA,
            online=True,
            epoch=epoch,
            agent=f"shuiwang {self._version}",
            boot_id=now.boot_id,
            meters=len(self._config.meters),
            oldest_alert=oldest[Stream.ALERT],
            oldest_telemetry=oldest[Stream.TELEMETRY],
            absences=absences.notices(now.wall_ms),
        )

    def _announce(self) -> None:
        meters, buses = len(self._config.meters), len(self._config.buses)
        log.info("agent_started gateway=%s meters=%d buses=%d", self._config.gateway.id, meters, buses)
        self._notifier.ready(f"watching {meters} meters on {buses} buses")

    async def _housekeeping(
        self, store: StoreThread, absences: Absences, absences_changed: Callable[[], None]
    ) -> NoReturn:
        """End absences whose time is over, forget readings that no rule needs, and keep the store within its quota.

        Raises StoreDamaged, also when the file is gone: an open file without a name takes everything and keeps nothing.
        """
        keep = history_readings(self._config)
        while True:
            if not store.path.exists():
                raise StoreDamaged(f"{store.path} is gone: somebody deleted it, or its disk was unmounted")
            try:
                await self._end_absences(store, absences, absences_changed)
                await store(lambda store: store.forget(keep_newest=keep))
                dropped = await store(lambda store: store.make_room(bytes_max=STORE_BYTES_MAX))
                if dropped:
                    log.error(
                        "telemetry_dropped readings=%d: the store is full, the county has not acknowledged", dropped
                    )
            except StoreDamaged:
                raise
            except StoreError as error:
                log.error("housekeeping_failed: %s; tried again in %.0f s", error, HOUSEKEEPING_S)
            await self._clock.sleep(HOUSEKEEPING_S)

    async def _end_absences(self, store: StoreThread, absences: Absences, absences_changed: Callable[[], None]) -> None:
        now = self._clock.now()
        over = absences.expire(now.wall_ms) if now.trust is ClockTrust.SYNCED else []
        if over:
            await store(lambda store: store.put_absence(*over))
            absences_changed()

    def _new_id(self) -> str:
        return new_ulid(self._clock.now().wall_ms)


def _version() -> str:
    try:
        return importlib.metadata.version("shuiwang")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a source tree


class _Stop(Exception):
    """Somebody asked the service to stop."""


def _state_message(sender: Sender, reason: str) -> Message:
    state = State(schema=contract.STATE_SCHEMA, online=False, reason=reason)
    return Message(topic=sender.topic(Leaf.STATE), payload=contract.encode(state), retain=True)
