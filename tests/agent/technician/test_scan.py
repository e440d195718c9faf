"""Finding meters: real scans over simulated lines, the plan and its estimate, and a line that another master uses."""

import contextlib
import json
import socket
import subprocess
import threading
import time
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from partners import pymodbus_meters
from partners.overheard_line import tapped, village
from partners.processes import Running, find, free_port, run_shuiwang, shuiwang, wait_until

from agent import config
from agent.technician import modbus_wire, proposal, scan_plan, scan_probe, scan_questions, scanning
from agent.technician.fits import Fit, built_in
from agent.technician.lines import bits_text, line_text
from agent.technician.reading import Station, plan_from_config
from agent.technician.scan_found import Found
from agent.technician.scan_plan import SEARCH, ScanError, Wanted, parse_addresses
from agent.technician.scanning import Progress, Scan, Told
from gateway.clock import SystemClock
from gateway.line import LineSettings
from protocols import cjt188, mbus, modbus, modbus_ascii, profile
from protocols.cjt188 import BROADCAST

LINE = LineSettings(name="scan", port="/dev/ttyUSB0", baudrate=9600)
# Simulated meters answer within 0.2 s on a busy machine too: less patience with profiles that are not theirs will do.
HURRIED = [
    msgspec.structs.replace(known, timing=msgspec.structs.replace(known.timing, timeout_ms=500)) for known in built_in()
]
PREAMBLE = """
[gateway]
id = "g-1"
county = "shenxian"
data_dir = "data"
[broker]
url = "mqtt://127.0.0.1:1"
"""


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(scanning, "built_in", lambda: HURRIED)


def scan(port, *, listen_s=0.05, is_forced=False, **wanted):
    running = Scan([port], Wanted(**wanted), listen_s=listen_s, is_forced=is_forced)
    return running, list(running.run())


def found(running):
    return {(one.protocol, one.address): tuple(fit.volume_ml for fit in one.fits[:1]) for one in running.found}


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_the_likeliest_comes_first_and_every_protocol_has_its_turn():
    steps = scan_plan.quick("p", Wanted())
    assert [(step.line.baudrate, step.line.parity, step.protocol) for step in steps[:4]] == [
        (2400, "E", "cjt188"), (2400, "E", "mbus"), (9600, "N", "modbus"), (9600, "N", "cjt188"),
    ]  # fmt: skip
    assert {step.protocol for step in steps} == set(scan_plan.PROTOCOLS)
    # Whatever profile we have, its factory setting is among those that are tried for its protocol.
    tried = {(step.line.baudrate, step.line.parity, step.line.stop_bits, step.protocol) for step in steps}
    for name in profile.built_in_names():
        loaded = profile.load(name)
        line = loaded.line
        assert (line.baudrate, line.parity, line.stop_bits, loaded.head.protocol) in tried, name
    in_ascii = {(step.line.baudrate, step.line.data_bits, step.line.parity) for step in steps if step.wire == "ascii"}
    assert {(9600, 7, "E"), (9600, 8, "N")} <= in_ascii


def test_a_first_look_takes_about_a_minute_and_not_an_hour():
    assert 20 < scan_plan.total_s(scan_plan.quick("p", Wanted())) < 90
    assert scan_plan.total_s(scan_plan.second("p", Wanted())) < 26 * 60


def test_every_address_is_asked_once():
    for protocol, every in (("modbus", range(1, 248)), ("mbus", range(251))):
        wanted = Wanted(protocols=(protocol,), baudrates=(9600,), parities=("N",), framings=("rtu",))
        quick = scan_plan.quick("p", wanted)
        deep = scan_plan.deep(quick[0].line, protocol, wanted, answer="collision")
        asked = [address for step in [*quick, *deep] for address in step.addresses]
        numbers = [int(address) for address in asked if address not in {SEARCH, "254"}]
        assert sorted(numbers) == list(every)


def test_a_narrow_wish_is_followed():
    wanted = Wanted(protocols=("modbus",), baudrates=(1234,), units=(5, 300 - 53))
    steps = scan_plan.quick("p", wanted)
    assert {(step.line.baudrate, step.line.parity) for step in steps} == {(1234, "N"), (1234, "E")}
    assert {step.addresses for step in steps} == {("5", "247")}
    assert [step.is_closer for step in scan_plan.second("p", wanted)] == [True, True], "the same, closer"
    assert {step.addresses for step in scan_plan.second("p", wanted)} == {("5", "247")}
    numbers = Wanted(numbers=("00000805000001",))
    assert {step.protocol for step in scan_plan.quick("p", numbers)} == {"cjt188"}
    assert {step.addresses for step in scan_plan.quick("p", numbers)} == {("00000805000001",)}


def wires(port, **wanted):
    return [(step.wire, bits_text(step.line)) for step in scan_plan.quick(port, Wanted(**wanted))]


def test_behind_a_network_port_every_speed_is_the_same_and_modbus_tcp_comes_first():
    assert wires("socket://h:502") == [
        ("tcp", "9600 8N1"), ("rtu", "9600 8N1"), ("ascii", "9600 8N1"), ("cjt188", "2400 8E1"), ("mbus", "2400 8E1"),
    ]  # fmt: skip
    assert scan_plan.total_s(scan_plan.quick("socket://h:502", Wanted())) < 30
    assert wires("socket://h:502", framings=("tcp",)) == [("tcp", "9600 8N1")]
    assert "tcp" not in dict(wires("rfc2217://h:4001")), "there the speed is ours, and no Modbus TCP"


def test_over_modbus_tcp_the_device_itself_is_asked_first_and_counted():
    (step,) = scan_plan.quick("socket://h:502", Wanted(framings=("tcp",)))
    assert step.addresses == ("255", *map(str, scan_plan.FIRST_UNITS))
    assert step.cost_s == pytest.approx(len(step.addresses) * step.question_s)
    asked = [step, *scan_plan.second("socket://h:502", Wanted(framings=("tcp",)))]
    first = [address for step in asked if not step.is_closer for address in step.addresses]
    assert sorted(map(int, first)) == [*range(1, 248), 255]


@pytest.mark.parametrize("units", [(255,), (0,), (255, 0)])
def test_255_and_0_are_a_device_over_modbus_tcp_and_on_no_other_line(units):
    steps = {step.wire: step.addresses for step in scan_plan.quick("socket://h:502", Wanted(units=units))}
    assert steps.pop("tcp") == tuple(map(str, units))
    assert steps == ({"mbus": ("0",)} if 0 in units else {}), "to 255 all M-Bus meters would listen"
    assert scan_plan.quick("p", Wanted(units=(255,))) == []
    assert "255" not in {address for step in scan_plan.quick("p", Wanted(units=(1, 255))) for address in step.addresses}


def test_a_unit_that_is_nobody_on_this_line_is_told():
    class Mute:
        in_waiting = 0
        now_s = 0.0

        def write(self, data):
            pass

        def read(self, size):
            self.now_s += 0.1
            return b""

        def close(self):
            pass

        def pause(self, seconds):
            self.now_s += seconds

    port = Mute()
    running = Scan(["p"], Wanted(protocols=("modbus",), baudrates=(9600,), parities=("N",), units=(1, 255)), listen_s=0,
                   opener=lambda _: port, monotonic=lambda: port.now_s, pause=port.pause)  # fmt: skip
    told = [event.words.en for event in running.run() if isinstance(event, Told)]
    assert ["unit 255 is a Modbus TCP device itself" in text for text in told] == [True]
    assert running.is_complete, "nobody can be there"


def test_framings_and_data_bits_narrow_it_down():
    assert {wire for wire, _ in wires("p", framings=("ascii",))} == {"ascii"}
    assert {text.split()[1] for _, text in wires("p", data_bits=7)} == {"7E1"}
    assert wires("p", baudrates=(4800,), data_bits=7) == [("ascii", "4800 7E1")]
    assert wires("p", baudrates=(4800,), data_bits=7, parities=("O",)) == [("ascii", "4800 7O1")]
    assert wires("p", framings=("tcp",)) == []


@pytest.mark.parametrize(
    ("text", "units", "numbers"),
    [
        ("1-3,7", (1, 2, 3, 7), ()),
        ("7, 7 ,7", (7,), ()),
        ("0", (0,), ()),
        ("1,255", (1, 255), ()),
        ("00000805000001,5", (5,), ("00000805000001",)),
    ],
)
def test_addresses_as_people_write_them(text, units, numbers):
    assert parse_addresses(text) == (units, numbers)


@pytest.mark.parametrize(
    "text", ["", ",", "x", "3-1", "251", "254", "256", "250-255", "1-", "-3", "1--3", "123456789", "１", "1\n;2"]
)
def test_what_is_no_address_is_told(text):
    with pytest.raises(ScanError):
        parse_addresses(text)


@given(st.text(max_size=40))
def test_no_text_breaks_the_addresses(text):
    try:
        units, numbers = parse_addresses(text)
    except ScanError:
        return
    assert all(0 <= unit <= 250 or unit == 255 for unit in units)
    assert all(len(number) == 14 for number in numbers)


# -- what is heard ----------------------------------------------------------------------------------------------------


def test_who_speaks_is_told_by_the_answer():
    request = modbus.ReadRequest(unit=7, function=3, address=0, count=1)
    answer = modbus.encode_response(request, [1])
    refusal = modbus.encode_exception(request, 2)
    for heard in (answer, refusal, b"\x00" + answer + b"\xff"):
        assert scan_probe.heard_modbus(heard, LINE).speakers == ("7",)
    assert scan_probe.heard_modbus(request.encode(), LINE).speakers == (), "a request is no meter"
    for framing in ("ascii", "tcp"):
        line = msgspec.structs.replace(LINE, framing=framing)
        heard = scan_probe.heard_modbus(modbus_wire.encode(answer, framing, transaction=5), line)
        assert heard == scan_probe.Heard(speakers=("7",))
    nobody = scan_probe.heard_modbus(modbus.encode_exception(request, 11), LINE)
    assert nobody == scan_probe.Heard(), "a gateway says that nobody is there"
    late = modbus_ascii.encode_frame(request.encode()[:-2])
    assert scan_probe.requests_in(b"noise" + late, LINE) == [late]
    assert scan_probe.heard_modbus(b"\x00\x01\x02", LINE).garbled
    frame = cjt188.Frame(meter_type=0x10, address="00000805000001", control=0x83, data=bytes.fromhex("810A00"))
    assert scan_probe.heard_cjt188(b"\xfe\xfe" + frame.encode()).speakers == ("00000805000001",)
    nameless = cjt188.Frame(
        meter_type=0x10, address=BROADCAST, control=0x83, data=bytes.fromhex("810A00") + bytes.fromhex("01000005080000")
    )
    assert scan_probe.heard_cjt188(nameless.encode()).speakers == ("00000805000001",)
    assert scan_probe.heard_mbus(b"\xe5", "5", LINE).speakers == ("5",)
    assert scan_probe.heard_mbus(b"\xe5", "254", LINE).garbled == b"\xe5"


def test_nothing_but_reads_is_ever_sent(monkeypatch):
    sent = []

    class Silent:
        in_waiting = 0

        def write(self, data):
            sent.append(bytes(data))

        def read(self, size):
            now[0] += 0.02
            return b""

        def close(self):
            pass

    now = [0.0]

    def pause(seconds):
        now[0] += seconds

    running = Scan(["p"], Wanted(everywhere=True), opener=lambda _: Silent(), monotonic=lambda: now[0], pause=pause)
    last = None
    for event in running.run():
        assert not isinstance(event, Found | Told), event
        last = event
    assert isinstance(last, Progress)
    assert running.requests == len(sent) > 2000
    for data in sent:
        body = data.lstrip(b"\xfe")
        telegram, frame = mbus.parse_frame(body), cjt188.parse_frame(body)
        if telegram is not None and len(telegram.encode()) == len(body):
            assert telegram.function == mbus.REQUEST_DATA or telegram.ci == mbus.SELECT
        elif frame is not None:
            assert frame.control in (cjt188.READ_DATA, cjt188.READ_ADDRESS)
        else:
            rtu = modbus_ascii.rtu_frame(body) if modbus_ascii.decode_frame(body) else body
            assert rtu[1] in modbus.READ_FUNCTIONS
            assert modbus.has_crc(rtu)
            assert len(rtu) == modbus.REQUEST_BYTES


# -- whole scans ------------------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_scan_finds_what_there_is_and_which_profile_reads_it():
    meters = [
        ("usw-dn15-40", "3", "802.609751"),
        ("xintai", "17", "12.345"),
        ("cjt188-water-1f90", "00000805000001", "77.12"),
    ]
    with village(*meters) as line:
        running, events = scan(line.port, baudrates=(9600,), parities=("N",), protocols=("modbus", "cjt188"),
                               units=(3, 16, 17), timeout_ms=100)  # fmt: skip
        numbers, _ = scan(line.port, baudrates=(9600,), parities=("N",), numbers=("00000805000001",), timeout_ms=200)
        alone, _ = scan(line.port, baudrates=(9600,), parities=("N",), protocols=("cjt188",), timeout_ms=200)
    assert found(running) == {("modbus", "3"): (802_609_751,), ("modbus", "17"): (12_345_000,)}
    assert running.found[0].fits[0].profile == "usw-dn15-40"
    assert running.found[1].fits[0].profile == "xintai"
    assert found(numbers) == found(alone) == {("cjt188", "00000805000001"): (77_120_000,)}
    assert alone.found[0].fits[0].profile == "cjt188-water-1f90", "a meter that refuses 901F is not read with it"
    progress = [event for event in events if isinstance(event, Progress)]
    assert all(one.done_s <= one.total_s + 1e-9 for one in progress)
    assert [event for event in events if isinstance(event, Found)] == running.found


@pytest.mark.e2e
def test_the_speed_is_found_and_the_search_ends_there():
    with village(("cjt188-water", "00000805000009", "5.5"), line="baudrate = 4800\nparity = 'E'") as line:
        running, events = scan(line.port, protocols=("cjt188",), baudrates=(2400, 4800, 1200), timeout_ms=120)
    assert found(running) == {("cjt188", "00000805000009"): (5_500_000,)}
    assert running.found[0].line.baudrate == 4800, "a pty has no parity"
    steps = [event.step.line.baudrate for event in events if isinstance(event, Progress) and event.step]
    assert steps[-1] == 4800


@pytest.mark.e2e
def test_several_cjt188_meters_collide_and_are_found_by_their_numbers():
    numbers = ("00000805000001", "00000805000002")
    meters = [("cjt188-water", number, "5.5") for number in numbers]
    with village(*meters) as line:
        running, _ = scan(line.port, protocols=("cjt188",), baudrates=(9600,), parities=("N",), timeout_ms=150)
        assert running.found == []
        assert any("several CJ/T 188 meters" in told.words.en for told in running.told)
        running, _ = scan(line.port, baudrates=(9600,), parities=("N",), numbers=numbers, timeout_ms=200)
    assert {address for _, address in found(running)} == set(numbers)


@pytest.mark.e2e
def test_meters_of_three_protocols_on_one_line(monkeypatch):
    """None of them is hidden by another: only what cannot be told apart is left, and that is said."""
    monkeypatch.setattr(scan_plan, "ALL_UNITS", range(1, 18))  # for the sake of time
    monkeypatch.setattr(scan_plan, "FIRST_UNITS", range(1, 3))
    numbers = ("00000805000001", "00000805000002")
    meters = [("cjt188-water", numbers[0], "12.34"), ("cjt188-water", numbers[1], "55"),
              ("usw-dn15-40", "17", "127.113"), ("mbus-water", "5", "9.876")]  # fmt: skip
    found_first = {("modbus", "17"): (127_113_000,), ("mbus", "5"): (9_876_000,)}
    with village(*meters) as line:
        for everywhere in (False, True):
            running, _ = scan(line.port, parities=("N",), baudrates=(9600,), timeout_ms=60, everywhere=everywhere)
            assert found(running) == found_first
            assert not running.is_complete
            (gap,) = {told.words.en for told in running.told if told.is_gap}
            assert "several CJ/T 188 meters" in gap
            assert "--addresses" in gap
        running, _ = scan(line.port, baudrates=(9600,), parities=("N",), numbers=numbers, timeout_ms=300)
        assert {address for _, address in found(running)} == set(numbers)
        assert running.is_complete


@pytest.mark.e2e
def test_what_was_not_asked_is_told_and_how_to_ask_for_it(monkeypatch):
    """At 2400 8E1 nobody expects Modbus: its first units are asked, and the rest is named."""
    monkeypatch.setattr(scan_plan, "ALL_UNITS", range(1, 18))  # for the sake of time
    monkeypatch.setattr(scan_plan, "FIRST_UNITS", range(1, 4))
    meters = [("cjt188-water", "00000805000009", "5.5"), ("usw-dn15-40", "17", "1")]
    with village(*meters, line="baudrate = 2400") as line:
        running, _ = scan(line.port, timeout_ms=60)
        assert found(running) == {("cjt188", "00000805000009"): (5_500_000,)}
        assert not running.is_complete
        (told,) = running.told
        assert "2400 8E1: of Modbus only the units 1 to 3 were asked; for 4 to 17" in told.words.en
        assert "--protocol modbus --baudrate 2400 --parity E" in told.words.en
        asked, _ = scan(line.port, timeout_ms=60, protocols=("modbus",), baudrates=(2400,), parities=("E",))
        assert found(asked) == {("modbus", "17"): (1_000_000,)}
        assert asked.is_complete


@pytest.mark.e2e
def test_mbus_meters_are_found_by_address_and_by_search_each_once(monkeypatch):
    monkeypatch.setattr(scan_plan.mbus, "PRIMARY_MAX", 20)  # for the sake of time
    meters = [("mbus-water", "5", "9.001"), ("mbus-water", "00123456", "8.002"), ("mbus-water", "00923499", "7.003")]
    with village(*meters) as line:
        running, _ = scan(line.port, protocols=("mbus",), baudrates=(9600,), parities=("N",), timeout_ms=40)
    volumes = sorted(fits[0] for fits in found(running).values())
    assert volumes == [7_003_000, 8_002_000, 9_001_000], found(running)


@pytest.mark.e2e
def test_two_meters_with_one_modbus_address_are_told():
    with village(("usw-dn15-40", "3", "1"), line="baudrate = 9600") as line:
        running, _ = scan(line.port, protocols=("modbus",), baudrates=(9600,), parities=("N",), units=(3,))
        assert len(running.found) == 1

    class Garbling:
        in_waiting = 0

        def __init__(self):
            self.waiting = b""

        def write(self, data):
            self.waiting = b"\x03\x03\x08\x55\x66\x77\x88\x99" if data[0] == 3 else b""

        def read(self, size):
            data, self.waiting = self.waiting, b""
            if not data:
                time.sleep(0.001)
            return data

        def close(self):
            pass

    wanted = Wanted(protocols=("modbus",), baudrates=(9600,), parities=("N",), units=(2, 3), timeout_ms=10)
    running = Scan(["p"], wanted, opener=lambda _: Garbling(), listen_s=0)
    list(running.run())
    assert running.found == []
    assert ["address 3 answers, but garbled" in told.words.en for told in running.told] == [True]


@pytest.mark.e2e
def test_the_estimate_is_close_to_the_time_that_it_takes():
    """To the end of the first look, and of the closer one that comes when it brought nothing."""
    with village(("usw-dn15-40", "99", "1")) as line:
        wanted = Wanted(
            protocols=("modbus",),
            baudrates=(9600,),
            parities=("N",),
            framings=("rtu",),
            units=(1, 2, 3),
            timeout_ms=150,
        )
        running = Scan([line.port], wanted, listen_s=0.2)
        estimate_s, began_s = running.estimate_s(), time.monotonic()
        looked_at_s, planned_s = 0.0, 0.0
        for event in running.run():
            if isinstance(event, Progress) and event.step and event.step.is_closer and not looked_at_s:
                looked_at_s, planned_s = time.monotonic() - began_s, event.total_s
        took_s = time.monotonic() - began_s
    assert estimate_s * 0.7 < looked_at_s < estimate_s * 1.6, (estimate_s, looked_at_s)
    assert planned_s * 0.7 < took_s < planned_s * 1.6, (planned_s, took_s)
    assert running.requests == 3 * (1 + len(scan_questions.modbus_questions(is_closer=True)))


@pytest.mark.e2e
def test_a_line_that_another_master_uses_is_left_alone(tmp_path):
    poll = [find("mbpoll"), "-m", "rtu", "-b", "9600", "-P", "none", "-0", "-r", "516", "-c", "4", "-t", "4:hex"]
    with village(("usw-dn15-40", "3", "802.609751")) as line, tapped(tmp_path, line.port) as (master, tap):
        polling = subprocess.Popen(
            [*poll, "-a", "3", "-l", "300", master], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            running, _ = scan(tap, listen_s=1.5, baudrates=(9600,), parities=("N",), protocols=("modbus",), units=(3,))
        finally:
            polling.kill()
            polling.wait()
    assert (running.requests, running.found) == (0, [])
    (told,) = running.told
    assert told.is_grave
    assert "another master reads this line (9600 8N1: modbus 3)" in told.words.en
    assert {one.kind for one in told.heard} <= {"request", "answer"}


def test_a_master_that_wakes_up_during_the_search_ends_it():
    class Woken:
        in_waiting = 0
        asked = 0

        def write(self, data):
            type(self).asked += 1

        def read(self, size):
            foreign = modbus.ReadRequest(unit=44, function=3, address=1, count=2).encode()
            if self.asked == 3:
                type(self).asked += 1
                return foreign
            time.sleep(0.001)
            return b""

        def close(self):
            pass

    wanted = Wanted(protocols=("modbus",), baudrates=(9600,), parities=("N",), timeout_ms=10)
    running = Scan(["p"], wanted, opener=lambda _: Woken(), listen_s=0)
    list(running.run())
    assert running.requests == 3
    assert [told.is_grave for told in running.told] == [True]
    assert "2C 03 00 01 00 02" in running.told[0].words.en


def test_a_port_that_is_lost_is_told_and_the_next_one_is_searched():
    with village(("usw-dn15-40", "3", "1")) as line:
        wanted = Wanted(protocols=("modbus",), baudrates=(9600,), parities=("N",), units=(3,), timeout_ms=100)
        running = Scan(["/dev/no-such-port", line.port], wanted, listen_s=0.05)
        list(running.run())
    assert list(running.lost) == ["/dev/no-such-port"]
    assert len(running.found) == 1


# -- Modbus ASCII and TCP ---------------------------------------------------------------------------------------------

TWO = {3: 802_609_751, 7: 5_000_000}


def read_as_configured(text, folder):
    """Load what was proposed, and read every meter with it as the agent does."""
    loaded = config.parse(PREAMBLE + text, path=folder / "shuiwang.toml")
    assert not loaded.warnings, loaded.warnings
    volumes = {}
    for meter in loaded.meters:
        station = Station(plan_from_config(loaded, meter.id), clock=SystemClock())
        volumes[int(meter.address_text)] = station.read().measurement.volume_ml
        station.close()
    return volumes


@pytest.mark.e2e
def test_ascii_meters_of_pymodbus_are_found_and_read_with_what_is_proposed(tmp_path):
    with pymodbus_meters.ascii_on_a_pty(tmp_path, TWO) as port:
        running, events = scan(port, protocols=("modbus",), baudrates=(9600,), units=(2, 3, 7), timeout_ms=120)
        text = proposal.toml(running.found)
        assert read_as_configured(text, tmp_path) == TWO
    assert found(running) == {("modbus", str(unit)): (volume_ml,) for unit, volume_ml in TWO.items()}
    assert {one.line.framing for one in running.found} == {"ascii"}
    asked = [event.step.wire for event in events if isinstance(event, Progress) and event.step]
    assert asked[0] == "rtu", "RTU comes first: it has the better checksum"
    assert 'framing = "ascii"' in text


@pytest.mark.e2e
@pytest.mark.parametrize("absent", [None, 4, 11], ids=["silent", "exception 4", "gateway target failed"])
def test_modbus_tcp_meters_behind_a_gateway_are_found_and_nobody_else(tmp_path, absent):
    with pymodbus_meters.over_tcp(TWO, absent=absent) as port:
        running, _ = scan(port, units=(2, 3, 7, 9), timeout_ms=120)
        text = proposal.toml(running.found)
        assert read_as_configured(text, tmp_path) == TWO
    assert found(running) == {("modbus", str(unit)): (volume_ml,) for unit, volume_ml in TWO.items()}
    assert running.told == []
    assert 'framing = "tcp"' in text
    assert "baudrate" not in text


@pytest.mark.e2e
def test_a_device_that_answers_every_unit_is_listed_once():
    with pymodbus_meters.over_tcp({0: 802_609_751}) as port:
        running, _ = scan(port, timeout_ms=120)
    assert found(running) == {("modbus", "1"): (802_609_751,)}
    assert ["whatever unit is asked" in told.words.en for told in running.told] == [True]
    assert running.requests < 30


@pytest.mark.e2e
@pytest.mark.parametrize("units", [(), (255,)], ids=["first look", "named"])
def test_a_device_that_answers_to_255_alone_is_found_and_read_with_what_is_proposed(tmp_path, monkeypatch, units):
    monkeypatch.setattr(scan_plan, "ALL_UNITS", range(1, 4))  # for the sake of time
    monkeypatch.setattr(scan_plan, "FIRST_UNITS", range(1, 3))
    with pymodbus_meters.over_tcp({255: 802_609_751}) as port:
        running, _ = scan(port, protocols=("modbus",), framings=("tcp",), units=units, timeout_ms=120)
        assert found(running) == {("modbus", "255"): (802_609_751,)}
        assert read_as_configured(proposal.toml(running.found), tmp_path) == {255: 802_609_751}


@pytest.mark.e2e
def test_who_speaks_modbus_tcp_is_never_sent_anything_else():
    """It would take the rest for the beginning of a frame, and hang up or wait; --all changes nothing about that."""
    with pymodbus_meters.over_tcp({3: 1_000_000}) as port:
        running, events = scan(port, units=(2, 3), timeout_ms=120, everywhere=True)
    assert len(running.found) == 1
    assert {event.step.wire for event in events if isinstance(event, Progress) and event.step} == {"tcp"}


@pytest.mark.e2e
def test_a_serial_server_that_passes_bytes_on_is_no_modbus_tcp(tmp_path):
    number = free_port()
    with village(("usw-dn15-40", "3", "802.609751")) as line:
        # Without -t, socat's old connection holds on for half a second and takes the next one's answers.
        served = ["-t", "0.01", f"tcp-listen:{number},bind=127.0.0.1,reuseaddr,fork", f"{line.port},raw,echo=0"]
        with Running(tmp_path / "socat.log", find("socat"), *served):
            port = f"socket://127.0.0.1:{number}"
            wait_until(lambda: can_connect(number), what="the serial server")
            running, _ = scan(port, protocols=("modbus",), units=(3,), timeout_ms=200)
            text = proposal.toml(running.found)
            assert read_as_configured(text, tmp_path) == {3: 802_609_751}
    assert [(one.line.framing, line_text(one.line)) for one in running.found] == [("rtu", "over TCP")]
    assert "what the serial server is set to" in text


def can_connect(number):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", number), timeout=1):
        return True
    return False


@pytest.mark.e2e
def test_a_modbus_tcp_port_where_nothing_listens_says_what_to_do():
    done = run_shuiwang("scan", "--port", f"socket://127.0.0.1:{free_port()}", "--framing", "tcp")
    assert done.returncode == 6
    assert "--framing tcp" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_meter_with_seven_bits_is_proposed_as_such(tmp_path):
    line = LineSettings(name="scan", port="/dev/ttyUSB0", parity="E", data_bits=7, framing="ascii")
    text = proposal.toml([Found(line=line, protocol="modbus", address="3", fits=(Fit(profile="xintai", volume_ml=1),))])
    (bus,) = config.parse(PREAMBLE + text, path=tmp_path / "x.toml").buses
    assert (bus.framing, bus.data_bits, bus.parity, line_text(bus)) == ("ascii", 7, "E", "9600 7E1 ASCII")


# -- what is proposed -------------------------------------------------------------------------------------------------


def test_the_proposal_is_a_configuration():
    line = LineSettings(name="scan", port='/dev/serial/by-id/usb-"odd\\name', baudrate=2400, parity="E")
    fits = (Fit(profile="usw-dn15-40", volume_ml=5_000_001),)
    text = proposal.toml([
        Found(line=line, protocol="modbus", address="3", fits=fits),
        Found(line=line, protocol="modbus", address="4", reason="tuf-2000: exception 2\n[[bus]]"),
        Found(line=LINE, protocol="cjt188", address="00000805000001", fits=(Fit(profile="cjt188-water", volume_ml=0),)),
    ])  # fmt: skip
    loaded = config.parse(PREAMBLE + text, path=Path("/etc/x.toml"))
    assert [(bus.port, bus.baudrate, bus.parity) for bus in loaded.buses] == [
        (line.port, 2400, "E"), (LINE.port, 9600, "N"),
    ]  # fmt: skip
    assert [(meter.address_text, meter.profile.name, meter.bus) for meter in loaded.meters] == [
        ("3", "usw-dn15-40", "rs485-1"), ("00000805000001", "cjt188-water", "rs485-2"),
    ]  # fmt: skip
    assert "# modbus 4 answers, but no profile reads it" in text


@pytest.mark.e2e
def test_the_command_finds_writes_and_prints(tmp_path):
    file = tmp_path / "meters.toml"
    arguments = ["--baudrate", 9600, "--parity", "N", "--protocol", "modbus", "--listen", 0.1, "--addresses", "2-4"]
    with village(("usw-dn15-40", "3", "802.609751")) as line:
        done = run_shuiwang("scan", "--port", line.port, *arguments, "--write", file, "--json")
        again = run_shuiwang("scan", "--port", line.port, *arguments, "--write", file)
        shown = run_shuiwang("scan", "--port", line.port, *arguments, env={"COLUMNS": "80", "PATH": ""})
    assert done.returncode == 0, done.stderr
    (meter,) = json.loads(done.stdout)["found"]
    assert (meter["address"], meter["fits"][0]) == (
        "3", {"profile": "usw-dn15-40", "volume_ml": 802_609_751, "flags": []},
    )  # fmt: skip
    assert tomllib.loads(file.read_text(encoding="utf-8"))["meter"][0]["address"] == "3"
    assert again.returncode == 2, "nothing is overwritten"
    assert "802.609751 m³" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--port", "/dev/no-such-port"], 6),
        (["--port", "nonsense://x"], 6),
        (["--port", "p", "--protocol", "profibus"], 2),
        (["--port", "p", "--parity", "X"], 2),
        (["--port", "p", "--framing", "rtu-over-tcp"], 2),
        (["--port", "p", "--framing", "tcp"], 2),
        (["--port", "p", "--protocol", "modbus", "--addresses", "00000805000001"], 2),
        (["--port", "p", "--addresses", "999"], 2),
    ],
)
def test_what_cannot_be_searched_ends_with_its_code_and_no_traceback(arguments, code):
    done = run_shuiwang("scan", *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


@pytest.mark.e2e
def test_an_interruption_keeps_what_was_found():
    with village(("usw-dn15-40", "1", "802.609751")) as line:
        command = shuiwang("scan", "--port", line.port, "--protocol", "modbus", "--baudrate", 9600, "--parity", "N",
                           "--listen", 0.1, "--json")  # fmt: skip
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        told = []

        def watch():
            for row in running.stderr:
                if "802.609751" in row and not any("802.609751" in earlier for earlier in told):
                    running.send_signal(2)
                told.append(row)

        watcher = threading.Thread(target=watch)
        watcher.start()
        out = running.stdout.read()
        running.wait(20)
        watcher.join()
        running.stdout.close()
        running.stderr.close()
    result = json.loads(out)
    assert (running.returncode, result["complete"], len(result["found"])) == (0, False, 1)
    assert "Traceback" not in "".join(told)
