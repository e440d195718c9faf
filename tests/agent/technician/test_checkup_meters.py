"""The meters of a check-up: who is one answer behind for ever is named; who answers wrongly or late at times is not."""

import io
import random

import pytest
from partners import faulty_meters, faulty_village
from partners.dialogue import SPECS
from partners.faulty_meters import FaultyMeters
from partners.virtual_line import VirtualClock, VirtualPort, skip_real_pauses
from rich.console import Console

from agent.technician import advice, checkup_meters, views_doctor, views_reading
from agent.technician.reading import Plan, Station
from gateway.clock import SystemClock
from gateway.line import LineSettings
from protocols import mbus, modbus, profile

READS = 5
RTU = ["1", "2", "3", "00000805000001", "00000805000002", "5", "12345678", "8"]
WAYS = [("rtu", address) for address in RTU] + [
    (way, address) for way in ("ascii", "tcp") for address in ("1", "2", "3")
]


class NothingFails(random.Random):
    """A die on which no fault ever comes up."""

    def random(self):
        return 0.5


class Place:
    """One meter of the faulty village, alone on its line."""

    def __init__(self, framing, address, *, dice=None):
        name, self.meter = faulty_village.meters(framing)[address]
        self.port = VirtualPort(VirtualClock())
        self.meters = FaultyMeters(self.port, dice or NothingFails(), [self.meter], framing=framing)
        protocol, spec = SPECS[name]
        head = profile.Head(name=name, title=name, protocol=protocol, source="", step_ml=1)
        loaded = profile.Profile(head=head, line=profile.Line(), timing=profile.Timing(), spec=spec(), cases=())
        self.plan = Plan(
            meter="m-001",
            line=LineSettings(name="line", port="/dev/virtual", framing=framing),
            profile=loaded,
            address=loaded.parse_address(address),
            address_text=address,
            timeout_ms=100,
            retries=2,
        )
        self.time = {"opener": self.port.open, "monotonic": self.port.clock.monotonic, "pause": self.port.clock.pause}

    def hold_back(self, monkeypatch):
        """From now on each answer comes when the next request does, as if a serial server held it; for ever.

        Whoever began it is a process before ours.
        """
        if self.plan.line.framing == "tcp":
            asked = modbus.ReadRequest(unit=self.meter.unit, function=3, address=0, count=2)
            self.meters._gateway.hear(-1.0, self.meter.answer(asked, 0.0))
            monkeypatch.setattr(faulty_meters, "HOLDS_NO_MORE_RATE", 0)
            return
        monkeypatch.setattr(faulty_meters, "HOLDS_BACK_RATE", 1)
        self.measure(reads=1)
        monkeypatch.setattr(faulty_meters, "HOLDS_BACK_RATE", 0)
        monkeypatch.setattr(faulty_meters, "HOLDS_NO_MORE_RATE", 0)

    def measure(self, reads=READS):
        return checkup_meters.measure(self.plan, reads=reads, clock=SystemClock(), **self.time)

    def read(self):
        return Station(self.plan, clock=SystemClock(), **self.time).read()


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch):
    skip_real_pauses(monkeypatch)


def shown(renderable):
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(("framing", "address"), WAYS)
def test_what_is_one_behind_for_ever_is_named_with_what_to_do(framing, address, monkeypatch):
    place = Place(framing, address)
    place.hold_back(monkeypatch)
    health = place.measure()
    assert (health.values, health.is_behind) == (0, True), health
    finding = checkup_meters.finding(place.plan, health)
    assert (finding.level, finding.data["is_behind"]) == ("bad", True)
    assert "always one answer behind" in finding.says.en
    assert "始终慢一拍" in finding.says.zh
    assert list(finding.next) == advice.behind(place.plan)
    text = shown(views_doctor.render(finding))
    for words in (
        "Restart the serial server",
        "重启串口服务器",
        "buffering",
        "缓冲",
        "master",
        "主机",
        "--timeout-ms 300",
    ):
        assert words in text


@pytest.mark.parametrize(("framing", "address"), WAYS)
def test_a_single_reading_says_the_same(framing, address, monkeypatch):
    place = Place(framing, address)
    place.hold_back(monkeypatch)
    for _ in range(3):
        report = place.read()
        assert report.measurement is None
        assert advice.after(report)[:5] == [advice.BEHIND, *advice.behind(place.plan)]
        console = Console(file=io.StringIO(), width=120)
        views_reading.show(report, console)
        for words in (advice.BEHIND, advice.RESTART):
            assert words.zh in console.file.getvalue()
            assert words.en in console.file.getvalue()


@pytest.mark.parametrize("seed", range(10))
def test_one_that_is_behind_on_a_noisy_line_is_named_all_the_same(seed, monkeypatch):
    monkeypatch.setattr(faulty_meters, "RATES", {})
    monkeypatch.setattr(faulty_meters, "CONSTANTLY_LATE_RATE", 0)
    place = Place("rtu", "1", dice=random.Random(seed))
    place.hold_back(monkeypatch)
    monkeypatch.setattr(faulty_meters, "RATES", {"flip": 0.01, "noise before": 0.1})
    assert place.measure().is_behind


@pytest.mark.parametrize(("framing", "address"), WAYS)
def test_what_is_well_is_not_named(framing, address):
    place = Place(framing, address)
    health = place.measure()
    assert (health.values, health.earlier, health.is_behind) == (READS, 0, False)


@pytest.mark.parametrize(("framing", "address"), WAYS)
def test_one_that_was_behind_and_caught_up_is_not_named(framing, address, monkeypatch):
    """After so many requests whatever held the answers back forgets them."""
    most = 0
    for requests in range(1, 40, 3):
        place = Place(framing, address)
        with monkeypatch.context() as held:
            place.hold_back(held)
            hear, left = place.port.on_write, iter(range(requests))

            def write(data, hear=hear, left=left, place=place):
                place.meters.faulty = next(left, None) is not None
                hear(data)

            place.port.on_write = write
            health = place.measure()
        if health.values:
            most = max(most, health.earlier)
            assert not health.is_behind
            assert "behind" not in checkup_meters.finding(place.plan, health).says.en
    assert most >= checkup_meters.EARLIER_ANSWERS_MIN, "some of them looked like it at first"


@pytest.mark.parametrize(("framing", "address"), WAYS)
def test_faults_now_and_then_are_not_named(framing, address, monkeypatch):
    """All but the one, whether a value comes or not: late answers and those of other meters among them."""
    monkeypatch.setattr(faulty_meters, "HOLDS_BACK_RATE", 0)
    for seed in range(20):
        place = Place(framing, address, dice=random.Random(seed))
        health = place.measure()
        assert not health.is_behind, (seed, health)


@pytest.mark.parametrize("address", ["1", "00000805000001", "5"])
def test_another_meter_that_always_answers_is_not_named(address):
    place = Place("rtu", address)
    answer = place.meter.answer

    def foreign(request, now_s):
        """An acknowledgement of M-Bus names nobody; data do."""
        is_reset = isinstance(request, mbus.Frame) and request.function != mbus.REQUEST_DATA
        return answer(request, now_s) if is_reset else place.meter.foreign(request)

    place.meter.answer = foreign
    health = place.measure()
    assert (set(health.causes), health.values) == ({"wrong_answer"}, 0)
    assert not health.is_behind
    assert advice.BEHIND not in advice.after(place.read())


@pytest.mark.parametrize("address", ["1", "00000805000001", "5"])
def test_a_meter_that_is_always_late_is_slow_not_behind(address, monkeypatch):
    monkeypatch.setattr(faulty_meters, "TURNAROUND_S", 0.15)
    place = Place("rtu", address)
    health = place.measure()
    assert (health.values, health.is_behind) == (0, False)
    assert any("timeout" in step.en for step in checkup_meters.finding(place.plan, health).next)
