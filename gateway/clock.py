"""Time on the gateway: a wall clock that may be wrong, a boot clock that cannot step, and how far to trust them.

Durations come from CLOCK_BOOTTIME, which counts through suspend and which nobody can set; the wall clock only dates
what others read. `adjtimex` says whether a time source disciplines the wall clock (research: a Pi without RTC boots in
the past, and the service runs before NTP answers).
"""

import asyncio
import ctypes
import ctypes.util
import time
from pathlib import Path
from typing import Protocol

from protocols.reading import ClockTrust, Moment

_STA_UNSYNC = 0x0040  # <sys/timex.h>
_TIME_ERROR = 5
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """What the agent needs of time."""

    def now(self) -> Moment:
        """Return this instant."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds of this clock."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        self._boot_id = _BOOT_ID_FILE.read_text(encoding="ascii").strip()

    def now(self) -> Moment:
        """Return this instant."""
        trust, uncertainty_ms = _discipline()
        return Moment(
            wall_ms=time.time_ns() // 1_000_000,
            trust=trust,
            uncertainty_ms=uncertainty_ms,
            boot_id=self._boot_id,
            boottime_ms=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
        )

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)


class FastClock:
    """A clock that runs `rate` times as fast, for demonstrations: several processes share one origin.

    At the real instant `real_origin_ms` (UTC) it shows `shown_origin_ms`.
    """

    def __init__(self, *, rate: float, real_origin_ms: int, shown_origin_ms: int) -> None:
        self._rate = rate
        self._real_origin_ms = real_origin_ms
        self._shown_origin_ms = shown_origin_ms

    def now(self) -> Moment:
        """Return this instant as the fast clock shows it."""
        elapsed_ms = int((time.time_ns() / 1e6 - self._real_origin_ms) * self._rate)
        return Moment(
            wall_ms=self._shown_origin_ms + elapsed_ms,
            trust=ClockTrust.SYNCED,
            uncertainty_ms=0,
            boot_id="00000000-0000-0000-0000-00000000fa57",
            boottime_ms=elapsed_ms,
        )

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many of its own seconds."""
        await asyncio.sleep(seconds / self._rate)

    def __str__(self) -> str:
        """The form that `parse_fast_clock` reads."""
        return f"{self._rate!r}@{self._real_origin_ms}:{self._shown_origin_ms}"


def parse_fast_clock(text: str) -> FastClock:
    """Return the clock that a RATE@REAL_MS:SHOWN_MS text describes. Raises ValueError."""
    rate, _, origins = text.partition("@")
    real, _, shown = origins.partition(":")
    clock = FastClock(rate=float(rate), real_origin_ms=int(real), shown_origin_ms=int(shown))
    if not 0 < float(rate) <= 100_000:
        raise ValueError("the rate lies between 0 and 100000")
    return clock


class _Timex(ctypes.Structure):
    """`struct timex` of <sys/timex.h>; the tail is padding that we never read."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("tail", ctypes.c_byte * 256),
    )


_LIBC = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


def _discipline() -> tuple[ClockTrust, int | None]:
    """Ask the kernel whether a time source disciplines the wall clock, and how far off it may be at most."""
    timex = _Timex(modes=0)
    state = _LIBC.adjtimex(ctypes.byref(timex))
    if state < 0 or state == _TIME_ERROR or timex.status & _STA_UNSYNC:
        return ClockTrust.UNSYNCED, None
    return ClockTrust.SYNCED, timex.maxerror // 1000
