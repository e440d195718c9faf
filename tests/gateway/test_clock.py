"""Time on the gateway: how far it is trusted, and the fast clock of the demonstration."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import clock as clock_module
from gateway.clock import FastClock, SystemClock, parse_fast_clock
from protocols.reading import ClockTrust

STA_UNSYNC, STA_NANO = 0x0040, 0x2000
TIME_OK, TIME_INS, TIME_ERROR = 0, 1, 5


def kernel(monkeypatch, *, state, status=0, maxerror_us=0):
    """A kernel that answers adjtimex so."""

    class Libc:
        @staticmethod
        def adjtimex(reference):
            timex = reference._obj
            assert timex.modes == 0, "only asked, never set"
            timex.status, timex.maxerror = status, maxerror_us
            return state

    monkeypatch.setattr(clock_module, "_LIBC", Libc)


def test_the_real_kernel_answers():
    moment = SystemClock().now()
    assert abs(moment.wall_ms - time.time() * 1000) < 1000
    assert abs(moment.boottime_ms - time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) < 1000
    assert (moment.uncertainty_ms is None) == (moment.trust is ClockTrust.UNSYNCED)
    assert len(moment.boot_id) == 36


def test_durations_come_from_the_clock_that_counts_through_suspend(monkeypatch):
    """On a machine that was never suspended CLOCK_MONOTONIC shows the same, so the clock's name is looked at."""
    shown_ns = {time.CLOCK_BOOTTIME: 7_000_000_000, time.CLOCK_MONOTONIC: 5_000_000_000}
    monkeypatch.setattr(time, "clock_gettime_ns", shown_ns.__getitem__)
    assert SystemClock().now().boottime_ms == 7_000


def test_moments_of_one_boot_follow_each_other():
    clock = SystemClock()
    moments = [clock.now() for _ in range(1000)]
    boottimes = [moment.boottime_ms for moment in moments]
    assert boottimes == sorted(boottimes)
    assert len({moment.boot_id for moment in moments}) == 1
    assert SystemClock().now().boot_id == moments[0].boot_id


@pytest.mark.parametrize("state", [TIME_OK, TIME_INS])
@pytest.mark.parametrize(("maxerror_us", "uncertainty_ms"), [(0, 0), (999, 0), (1000, 1), (16_000_000, 16_000)])
def test_a_disciplined_clock_is_trusted_as_far_as_the_kernel_says(monkeypatch, state, maxerror_us, uncertainty_ms):
    kernel(monkeypatch, state=state, status=STA_NANO, maxerror_us=maxerror_us)
    moment = SystemClock().now()
    assert (moment.trust, moment.uncertainty_ms) == (ClockTrust.SYNCED, uncertainty_ms)


@pytest.mark.parametrize(
    ("state", "status"), [(TIME_ERROR, 0), (TIME_ERROR, STA_UNSYNC), (TIME_OK, STA_UNSYNC | STA_NANO), (-1, 0)]
)
def test_a_clock_that_nobody_disciplines_or_a_kernel_that_will_not_say_is_not_trusted(monkeypatch, state, status):
    kernel(monkeypatch, state=state, status=status, maxerror_us=5)
    moment = SystemClock().now()
    assert (moment.trust, moment.uncertainty_ms) == (ClockTrust.UNSYNCED, None)


def test_a_wall_clock_that_is_set_back_moves_no_boot_time(monkeypatch):
    clock = SystemClock()
    before = clock.now()
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # 1970, as a box without a real-time clock wakes
    after = clock.now()
    assert after.wall_ms == 0
    assert 0 <= after.boottime_ms - before.boottime_ms < 1000


async def test_sleep_lasts_as_long_as_it_says():
    began_s = time.monotonic()
    await SystemClock().sleep(0.05)
    assert 0.04 < time.monotonic() - began_s < 1


# -- the fast clock ---------------------------------------------------------------------------------------------------

RATES = st.floats(min_value=0, max_value=100_000, exclude_min=True)
ORIGINS = st.integers(0, 2**41)


@given(RATES, ORIGINS, ORIGINS, ORIGINS)
def test_two_processes_that_share_the_text_show_the_same_time(rate, real_origin_ms, shown_origin_ms, now_ms):
    """The text once kept six digits of the rate: 100 years of shown time apart after a week."""
    clock = FastClock(rate=rate, real_origin_ms=real_origin_ms, shown_origin_ms=shown_origin_ms)
    other = parse_fast_clock(str(clock))
    assert str(other) == str(clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now_ms * 1_000_000)
        assert other.now() == clock.now()


def test_the_fast_clock_runs_at_its_rate_from_its_origin(monkeypatch):
    clock = FastClock(rate=720, real_origin_ms=1_000_000, shown_origin_ms=5_000_000)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000 * 10**6)
    assert (clock.now().wall_ms, clock.now().boottime_ms) == (5_000_000, 0)
    monkeypatch.setattr(time, "time_ns", lambda: 1_010_000 * 10**6)
    assert (clock.now().wall_ms, clock.now().boottime_ms) == (5_000_000 + 7_200_000, 7_200_000)
    assert clock.now().trust is ClockTrust.SYNCED


async def test_the_fast_clock_sleeps_less(monkeypatch):
    slept = []

    async def note(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    await FastClock(rate=100, real_origin_ms=0, shown_origin_ms=0).sleep(30)
    assert slept == [0.3]


@pytest.mark.parametrize(
    "text",
    ["", "1", "1@", "1@2", "1@2:", "@2:3", "x@2:3", "1@2:3:4", "0@2:3", "-1@2:3", "100001@2:3", "nan@2:3", "inf@2:3"],
)
def test_a_text_that_describes_no_clock_is_refused(text):
    with pytest.raises(ValueError):
        parse_fast_clock(text)
