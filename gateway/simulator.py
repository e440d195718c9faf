"""Simulated meters on a simulated serial port (a pty), for demonstrations, tests and benchmarks.

    client ⇄ pty ⇄ Village's thread: [ wire: pace, echo, collisions ] ⇄ [ responder of each protocol: meters, faults ]

Registers and faults follow the village's clock, which may run fast; bytes travel in real time at the line's pace.
"""

import asyncio
import contextlib
import logging
import os
import random
import select
import signal
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Self

from gateway.clock import Clock
from gateway.responder import RESPONDERS, Counts, SimulatedMeter
from gateway.usage import VillageError
from gateway.village_file import VillagePlan, load
from gateway.wire import Wire

log = logging.getLogger(__name__)

# What a meter showed is kept for comparison; a month of readings every five minutes is 8,640 (about 1 MB a meter).
SHOWN_MAX: Final = 10_000
_READ_BYTES: Final = 4096  # the most that a pty holds


class Shown(NamedTuple):
    """What one answer said: the village's time at which the register was taken, and the volume."""

    wall_ms: int
    volume_ml: int


class Village:
    """Meters on one line, at work on a thread of their own between `start` and `stop` (or within `with`)."""

    def __init__(self, plan: VillagePlan, *, clock: Clock, chance: random.Random | None = None) -> None:
        """Nothing happens yet. `chance` decides when faults strike; by default it comes from the plan's seed.

        Raises VillageError for a meter whose protocol cannot be simulated.
        """
        chance = chance or random.Random(plan.seed)
        self.port = ""
        self.bytes_dropped = 0  # nobody read them and the pty was full
        self.bytes_at_wrong_speed = 0
        self._plan = plan
        self._clock = clock
        self._wire = Wire(byte_s=plan.line.byte_s, echo=plan.line.echo, chance=chance)
        self._meters = {meter.id: SimulatedMeter(meter, chance=chance) for meter in plan.meters}
        self._shown: dict[str, deque[Shown]] = {meter.id: deque(maxlen=SHOWN_MAX) for meter in plan.meters}
        by_protocol: dict[str, list[SimulatedMeter]] = {}
        for meter in self._meters.values():
            by_protocol.setdefault(meter.plan.profile.head.protocol, []).append(meter)
        for protocol in by_protocol.keys() - RESPONDERS.keys():
            raise VillageError(
                f"meter {by_protocol[protocol][0].plan.id}: profile: speaks {protocol}, which cannot be simulated; "
                f"right would be a profile of {' or '.join(RESPONDERS)}"
            )
        self._responders = [RESPONDERS[protocol](meters) for protocol, meters in by_protocol.items()]
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._on_end: Callable[[], object] = lambda: None

    @property
    def meters(self) -> list[str]:
        """The ids of its meters."""
        return list(self._meters)

    @property
    def collisions(self) -> int:
        """How often two senders overlapped."""
        return self._wire.collisions

    def counts(self, meter: str) -> Counts:
        """Return what a meter has done so far."""
        return self._meters[meter].counts

    def showed(self, meter: str) -> list[Shown]:
        """Return what each answer of a meter said that told a volume and left whole; the oldest first.

        An entry is there before the answer's last byte can be read. The last SHOWN_MAX are kept.
        """
        return list(self._shown[meter])

    def start(self, *, on_end: Callable[[], object] = lambda: None) -> str:
        """Begin to answer; return the path of the port. `on_end` is called on the thread when it ends.

        Raises VillageError where the link cannot be made.
        """
        assert self._thread is None, "a village starts once"
        self._on_end = on_end
        # A register adds up its days when it is first asked (some 15 ms a year); no answer shall wait for that.
        wall_ms = self._clock.now().wall_ms
        for meter in self._meters.values():
            meter.shown_ml(wall_ms)
        self._pty = _Pty(baudrate=self._plan.line.baudrate, link=self._plan.link)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self.port = self._pty.port
        self._thread = threading.Thread(target=self._work, name="village", daemon=True)
        self._thread.start()
        return self.port

    def stop(self) -> None:
        """End, remove the link, and raise what ended the thread early, if anything did."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        os.eventfd_write(self._wake, 1)
        thread.join()
        self._pty.close()
        os.close(self._wake)
        if self._error:
            raise self._error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _work(self) -> None:
        master = self._pty.master
        try:
            while True:
                now_s = time.monotonic()
                busy = self._wire.free_s > now_s
                events_s = [event for event in (self._wire.next_s, self._wire.free_s if busy else None) if event]
                wait_s = max(0.0, min(events_s) - now_s) if events_s else None
                # select() waits to the microsecond; poll() and epoll_wait() round up to the next millisecond.
                ready, _, _ = select.select([self._wake] if busy else [self._wake, master], [], [], wait_s)
                self._deliver()
                if self._wake in ready:
                    return
                if master in ready:
                    self._hear(os.read(master, _READ_BYTES))
        except BaseException as error:  # noqa: BLE001 (stop() raises it)
            self._error = error
        finally:
            self._on_end()

    def _hear(self, data: bytes) -> None:
        now_s = time.monotonic()
        speed = self._pty.strange_speed()
        if speed is not None:
            if not self.bytes_at_wrong_speed:
                log.warning("port_speed_wrong port=%s: the line has another speed; no meter understands", self.port)
            self.bytes_at_wrong_speed += len(data)
            return
        paused = self._wire.paused(now_s=now_s)
        heard = self._wire.receive(data, now_s=now_s)
        wall_ms = self._clock.now().wall_ms
        for responder in self._responders:
            if paused or not heard:
                responder.pause()
            if heard:
                for answer in responder.hear(data, wall_ms=wall_ms):
                    self._wire.send(answer)

    def _deliver(self) -> None:
        delivery = self._wire.due(now_s=time.monotonic())
        for answer, whole in delivery.answers:
            counts, shown = self._meters[answer.meter].counts, self._shown[answer.meter]
            counts.answers += 1
            counts.collided += not whole
            if whole and answer.volume_ml is not None:
                counts.forgotten += len(shown) == SHOWN_MAX
                shown.append(Shown(answer.wall_ms, answer.volume_ml))
        if delivery.data:
            self.bytes_dropped += len(delivery.data) - self._pty.write(delivery.data)


async def run(village_file: Path, clock: Clock, *, on_ready: Callable[[str], None]) -> None:
    """Simulate a village until SIGINT, SIGTERM or cancellation; `on_ready` is given the path of the port.

    Raises VillageError for a village file that is wrong or a link that cannot be made.
    """
    plan = load(village_file)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    meters = Village(plan, clock=clock)
    meters.start(on_end=lambda: loop.call_soon_threadsafe(ended.set))
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        on_ready(meters.port)
        await ended.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        meters.stop()


class _Pty:
    """A pty that behaves like a serial port which nobody unplugs, and perhaps a stable name for it."""

    def __init__(self, *, baudrate: int, link: Path | None) -> None:
        self.master, self._slave = os.openpty()
        try:
            # Our own end of the client's side stays open: without one, the master fails (EIO) whenever a client closes.
            tty.setraw(self._slave)
            os.set_blocking(self.master, False)
            # None for a speed that termios has no name for.
            self._speed: int | None = getattr(termios, f"B{baudrate}", None)
            if self._speed is not None:
                attributes = termios.tcgetattr(self._slave)
                attributes[4] = attributes[5] = self._speed
                termios.tcsetattr(self._slave, termios.TCSANOW, attributes)
            self._device = os.ttyname(self._slave)
            self._link = link
            if link is not None:
                _replace_link(link, self._device)
        except BaseException:
            os.close(self.master)
            os.close(self._slave)
            raise

    @property
    def port(self) -> str:
        """The path that clients open."""
        return str(self._link or self._device)

    def strange_speed(self) -> int | None:
        """Return the termios constant of the speed that a client has set, if it is not the line's."""
        speed: int = termios.tcgetattr(self._slave)[5]
        return None if self._speed in {None, speed} else speed

    def write(self, data: bytes) -> int:
        """Hand bytes to the client's side and return how many it took: a full buffer loses bytes, as a UART's does."""
        try:
            return os.write(self.master, data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Remove the link if it still is ours, and the port."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                if str(self._link.readlink()) == self._device:
                    self._link.unlink()
        os.close(self.master)
        os.close(self._slave)


def _replace_link(link: Path, device: str) -> None:
    """Point a symbolic link to a device in one step. Raises VillageError; never replaces anything but a link."""
    if link.exists() and not link.is_symlink():
        raise VillageError(f"{link}: line.link: something else is there; right would be a path that is free")
    new = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        new.unlink(missing_ok=True)
        new.symlink_to(device)
        new.replace(link)
    except OSError as error:
        raise VillageError(
            f"{link}: line.link: cannot be made: {error}; right would be a folder that exists"
        ) from error
