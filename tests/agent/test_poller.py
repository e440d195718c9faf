"""The schedule on a clock that the test owns: aligned, fair to the living, patient with the dead."""

import asyncio
import collections
import contextlib
import itertools

from agent.poller import SKIP_CYCLES_MAX, BusPoller, PolledMeter
from gateway.line import LineSettings
from protocols.errors import NoResponse, PortLost
from protocols.reading import ClockTrust, Measurement, Moment

MINUTE_S = 60


class HandClock:
    """Moves only when somebody sleeps on it, or when the test sets it."""

    def __init__(self, wall_s=1_790_000_000):
        self.wall_s = float(wall_s)
        self.boot_s = 0.0

    def now(self):
        return Moment(
            wall_ms=round(self.wall_s * 1000),
            trust=ClockTrust.SYNCED,
            uncertainty_ms=0,
            boot_id="boot-1",
            boottime_ms=round(self.boot_s * 1000),
        )

    def pass_time(self, seconds):
        self.wall_s += seconds
        self.boot_s += seconds

    async def sleep(self, seconds):
        for _ in range(2):  # whoever is woken already cancels this before any time passes
            await asyncio.sleep(0)
        self.pass_time(seconds)


class FakeBus:
    """Meters by name; a dead one takes its timeout, and the next one waits as long again; the others a moment."""

    def __init__(self, clock, dead=()):
        self.settings = LineSettings(name="rs485-1", port="/dev/null")
        self.dead = set(dead)
        self.lost = False
        self.broken = set()
        self.timeout_s, self.answer_s = 0.5, 0.05
        self.asked = []
        self._clock = clock
        self._hold_off_s = 0.0

    async def read(self, meter):
        self.asked.append((round(self._clock.boot_s, 3), meter))
        if self.lost:
            raise PortLost("gone")
        if meter in self.broken:
            raise ZeroDivisionError("a bug")
        self._clock.pass_time(self._hold_off_s + (self.timeout_s if meter in self.dead else self.answer_s))
        self._hold_off_s = min(1.0, self.timeout_s) if meter in self.dead else 0.0
        if meter in self.dead:
            raise NoResponse("no answer")
        return Measurement(volume_ml=1000)


class Rig:
    def __init__(self, meters, *, dead=(), poll_every_s=5 * MINUTE_S, jitter=0.0):
        self.clock = HandClock()
        self.bus = FakeBus(self.clock, dead)
        self.readings = []
        self.polled = [PolledMeter(meter=name, reader=name, poll_every_s=poll_every_s) for name in meters]
        self.poller = BusPoller(
            bus=self.bus, meters=self.polled, clock=self.clock, accept=self._accept, jitter=lambda: jitter
        )

    async def _accept(self, batch):
        self.readings += batch

    async def run_until(self, boot_s):
        task = asyncio.create_task(self.poller.run())
        while self.clock.boot_s < boot_s and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_polls_lie_on_the_grid_of_the_wall_clock():
    rig = Rig(["m-1"])
    await rig.run_until(3600)
    walls = [reading.at.wall_ms / 1000 % 300 for reading in rig.readings[1:]]  # the first poll comes with the start
    assert len(walls) == 12
    assert all(wall < 0.1 for wall in walls)


async def test_the_offset_of_a_bus_shifts_its_grid():
    rig = Rig(["m-1"], jitter=0.5)
    await rig.run_until(3600)
    assert all(5.0 <= reading.at.wall_ms / 1000 % 300 < 5.1 for reading in rig.readings[1:])


async def test_every_poll_becomes_a_reading_and_a_dead_meter_never_a_value():
    rig = Rig(["m-1", "m-2"], dead=["m-2"])
    await rig.run_until(6 * 3600)
    assert len(rig.readings) == len(rig.bus.asked)
    dead = [reading for reading in rig.readings if reading.meter == "m-2"]
    assert dead
    assert all(reading.volume_ml is None and reading.reason == "no_response" for reading in dead)


async def test_a_dead_meter_is_asked_after_the_living_and_ever_less_often():
    rig = Rig(["m-1", "m-2", "m-3"], dead=["m-1"])
    await rig.run_until(24 * 3600)
    count = collections.Counter(meter for _, meter in rig.bus.asked)
    assert count["m-2"] == count["m-3"] >= 288
    assert 288 / SKIP_CYCLES_MAX <= count["m-1"] <= 288 / 5
    second_pass = [meter for when, meter in rig.bus.asked if 90 < when < 110]
    assert second_pass == ["m-2", "m-3", "m-1"]


async def test_a_meter_that_answers_again_is_back_in_every_cycle(caplog):
    rig = Rig(["m-1"], dead=["m-1"])
    await rig.run_until(6 * 3600)
    rig.bus.dead.clear()
    before = len(rig.readings)
    await rig.run_until(12 * 3600)
    values = [reading for reading in rig.readings[before:] if reading.volume_ml is not None]
    assert len(values) >= 72 - SKIP_CYCLES_MAX
    events = [record.message.split()[0] for record in caplog.records]
    assert events == ["meter_failing", "meter_back"], "a change is logged once"


async def test_a_lost_port_is_logged_once_and_blames_no_meter(caplog):
    rig = Rig(["m-1", "m-2"])
    rig.bus.lost = True
    await rig.run_until(3600)
    assert {reading.reason for reading in rig.readings} == {"port_lost"}
    rig.bus.lost = False
    await rig.run_until(7200)
    assert [record.message.split()[0] for record in caplog.records] == ["bus_lost", "bus_back"]
    assert len([reading for reading in rig.readings if reading.volume_ml is not None]) >= 24


async def test_a_clock_set_back_by_hours_delays_the_next_poll_by_one_cycle_at_most():
    rig = Rig(["m-1"])
    await rig.run_until(1800)
    rig.clock.wall_s -= 5 * 3600
    before = len(rig.readings)
    await rig.run_until(1800 + 3600)
    assert 12 <= len(rig.readings) - before <= 14


async def test_a_clock_set_forward_by_days_polls_once():
    rig = Rig(["m-1"])
    await rig.run_until(1800)
    rig.clock.wall_s += 5 * 86_400
    before = len(rig.readings)
    await rig.run_until(1800 + 3600)
    assert 12 <= len(rig.readings) - before <= 14


async def test_a_long_pass_is_handed_in_in_parts():
    batches = []
    rig = Rig([f"m-{number}" for number in range(300)])

    async def accept(batch):
        batches.append(len(batch))

    rig.poller._accept = accept
    await rig.run_until(20)
    assert sum(batches) == 300
    assert max(batches) <= 5 / 0.05 + 2


async def test_on_a_line_that_is_never_idle_the_dead_get_a_share_and_the_living_are_hardly_delayed():
    names = [f"m-{number}" for number in range(60)]
    # 57 living take 2.85 s, so a cycle of 2.5 s leaves no pause; three dead would take 1.5 s more.
    rig = Rig(names, dead=names[:3], poll_every_s=2.5)
    await rig.run_until(3600)
    count = collections.Counter(meter for _, meter in rig.bus.asked)
    living_s = sum(count[name] for name in names[3:]) * 0.05
    dead_s = 3600 - living_s  # what the dead cost: their timeouts, and the silence after each
    assert dead_s / 3600 < 0.02 + 3 / 3600, "the share, and the first questions, of which nobody knew the cost"
    assert min(count[name] for name in names[:3]) >= 3600 * 0.02 / 1.5 / 3, "each gets its part of the share"


async def test_when_nobody_answers_all_are_asked():
    rig = Rig(["m-1", "m-2"], dead=["m-1", "m-2"])
    await rig.run_until(24 * 3600)
    count = collections.Counter(meter for _, meter in rig.bus.asked)
    assert min(count.values()) >= 288 / SKIP_CYCLES_MAX


async def test_a_port_that_is_back_in_a_moment_costs_nobody_a_poll():
    rig = Rig([f"m-{number}" for number in range(20)])
    rig.bus.lost = True
    task = asyncio.create_task(rig.run_until(60))
    while rig.clock.boot_s < 2:
        await asyncio.sleep(0)
    rig.bus.lost = False
    await task
    first = rig.readings[:20]
    assert [reading.volume_ml for reading in first] == [1000] * 20
    assert first[-1].at.boottime_ms < 5000


async def test_a_bug_in_one_meters_codec_stops_nobody(caplog):
    rig = Rig(["m-1", "m-2"])
    rig.bus.broken.add("m-1")
    await rig.run_until(3600)
    assert {reading.reason for reading in rig.readings if reading.meter == "m-1"} == {"bug"}
    assert len([reading for reading in rig.readings if reading.volume_ml is not None]) >= 12
    (record,) = caplog.records
    assert record.exc_info, "the traceback of our own bug is in the log, once"


async def test_a_dead_meter_that_costs_more_than_can_be_saved_up_is_still_asked():
    rig = Rig(["m-1", "m-2"], dead=["m-1"], poll_every_s=1)
    rig.bus.timeout_s = 36  # six attempts at five seconds and their hold-offs
    rig.bus.answer_s = 1  # the other one keeps the line busy
    await rig.run_until(24 * 3600)
    asked = [when for when, meter in rig.bus.asked if meter == "m-1"]
    assert len(asked) > 10
    assert max(later - earlier for earlier, later in itertools.pairwise(asked)) < 2 * 36 / 0.02


async def test_a_meter_that_is_read_hourly_is_not_left_for_longer_than_half_an_hour_more():
    rig = Rig(["m-1"], dead=["m-1"], poll_every_s=3600)
    await rig.run_until(48 * 3600)
    asked = [when for when, _ in rig.bus.asked]
    assert max(later - earlier for earlier, later in itertools.pairwise(asked)) <= 3600 + 1


async def test_a_meter_that_is_wanted_is_read_at_once_out_of_its_turn_though_it_fails():
    rig = Rig(["m-1", "m-2"], dead=["m-2"])
    await rig.run_until(4 * 3600)
    asked = len(rig.bus.asked)
    task = asyncio.create_task(rig.poller.run())
    await asyncio.sleep(0)
    for meter in ("m-1", "m-2", "m-9"):
        rig.poller.hasten(meter)
    while len(rig.bus.asked) < asked + 2:
        await asyncio.sleep(0)
    task.cancel()
    began_s = rig.bus.asked[asked][0]
    assert [meter for _, meter in rig.bus.asked[asked : asked + 2]] == ["m-1", "m-2"]
    assert rig.bus.asked[asked + 1][0] - began_s < 1


class Stuck(Exception):
    """The poller goes round and round without ever letting anybody else work."""


def stuck_after(passes):
    """Return what a poller calls after each pass; it fails after so many of them."""
    left = itertools.count(passes - 1, -1)

    def passed(_):
        if next(left) < 0:
            raise Stuck

    return passed


async def test_a_dead_meter_that_is_wanted_waits_for_no_other_dead_one_and_nobody_for_it():
    rig = Rig(["living", "dead-1", "dead-2"], dead=["dead-1", "dead-2"], poll_every_s=4)
    rig.bus.answer_s = 3.5  # no pause is long enough for a dead one, and its share is soon used up
    task = asyncio.create_task(rig.run_until(600))
    while rig.clock.boot_s < 300:
        await asyncio.sleep(0)
    asked = len(rig.bus.asked)
    wanted = max(rig.polled[1:], key=lambda meter: meter.failed_ms)
    rig.poller.passed = stuck_after(200)
    rig.poller.hasten(wanted.meter)
    await task
    assert wanted.meter in [meter for _, meter in rig.bus.asked[asked : asked + 2]]
    assert len([meter for _, meter in rig.bus.asked[asked:] if meter == "living"]) >= 300 / 4 - 3


async def test_while_the_port_is_away_a_meter_that_is_wanted_is_tried_at_the_ports_pace():
    rig = Rig(["m-1", "m-2"])
    rig.bus.lost = True
    rig.poller.passed = stuck_after(100)
    task = asyncio.create_task(rig.run_until(4))
    await asyncio.sleep(0)
    rig.poller.hasten("m-2")
    await task
    assert len(rig.bus.asked) <= 4 / 0.5 + 3


async def test_a_meter_that_is_wanted_while_others_are_asked_is_read_in_the_next_pass_though_it_fails():
    rig = Rig([f"m-{number}" for number in range(80)], dead=["m-0"])
    task = asyncio.create_task(rig.run_until(60))

    async def accept(batch):
        if not rig.readings:
            rig.poller.hasten("m-0")  # in the middle of the first pass, after its own turn
        rig.readings += batch
        await asyncio.sleep(0)

    rig.poller._accept = accept
    await task
    assert [meter for _, meter in rig.bus.asked] == [*(f"m-{number}" for number in range(80)), "m-0"]
