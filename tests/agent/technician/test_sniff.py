"""Overhearing: frames of all protocols out of one stream, who answers whom, and a real foreign master on a real tap."""

import contextlib
import io
import json
import random
import subprocess
import sys
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from partners import pymodbus_meters
from partners.overheard_line import tapped, village
from partners.processes import find, run_shuiwang
from pymodbus import FramerType, ModbusException
from pymodbus.client import ModbusSerialClient
from rich.console import Console

from agent.technician import modbus_wire, views_sniffing
from agent.technician.cutting import PAUSE_MS, WAITING_BYTES_MAX, Cutter
from agent.technician.sniffing import LATE, NOBODY_ASKED, STATIONS_MAX, WRITES, Sniffer
from protocols import cjt188, mbus, modbus, profile

PROFILES = [profile.load(name) for name in profile.built_in_names()]
CASES = [
    pytest.param(loaded, case, id=f"{loaded.name}-{number}")
    for loaded in PROFILES
    for number, case in enumerate(loaded.cases, 1)
]
BYTE_MS = 1.0
REQUEST = bytes.fromhex("11 03 02 04 00 04 06 E0")
ANSWER = bytes.fromhex("11 03 08 00 00 00 00 00 01 F0 89 15 71")
VOLUME_ML = 127_113
CJT_REQUEST = bytes.fromhex("FE FE FE 68 10 18 02 12 20 20 00 00 01 03 90 1F 00 97 16")
CJT_ANSWER = bytes.fromhex(
    "FE FE FE 68 10 18 02 12 20 20 00 00 81 16 90 1F 00 00 02 00 00 2C 00 02 00 00 2C 00 00 00 00 00 00 00 00 FF 85 16"
)


def stream(*parts):
    """(ms, bytes) pairs -> (ms of the last byte, bytes), as an ear would hand them out."""
    return [(at_ms + len(data) * BYTE_MS, data) for at_ms, data in parts]


def overhear(*parts, by_byte=False):
    sniffer = Sniffer(byte_ms=BYTE_MS)
    heard = []
    for at_ms, data in stream(*parts):
        if by_byte:
            for index, byte in enumerate(data):
                heard += sniffer.feed(at_ms - (len(data) - 1 - index) * BYTE_MS, bytes([byte]))
        else:
            heard += sniffer.feed(at_ms, data)
    return sniffer, heard + sniffer.finish()


def text_of(renderable, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("by_byte", [False, True])
@pytest.mark.parametrize(("loaded", "case"), CASES)
def test_the_frames_of_every_profile_are_overheard_and_understood(loaded, case, by_byte):
    parts, now_ms = [], 0
    for exchange in case.exchange:
        request, response = bytes.fromhex(exchange.request), bytes.fromhex(exchange.response)
        parts += [(now_ms, request), (now_ms + len(request) + 30, response)]
        now_ms += len(request) + len(response) + 60
    _, heard = overhear(*parts, by_byte=by_byte)
    told = {(fit.profile, fit.volume_ml) for one in heard for fit in one.fits}
    if case.volume_ml is not None and case.volume_ml < 10**11:
        assert (loaded.name, case.volume_ml) in told
    if case.fault in profile.REFUSALS:
        assert loaded.name not in {name for name, _ in told}
    if case.fault != "garbled":
        assert {one.protocol for one in heard if one.kind != "noise"} == {loaded.head.protocol}


@pytest.mark.parametrize("by_byte", [False, True])
def test_who_answers_whom_and_how_fast(by_byte):
    parts = [(100 * n, data) for n, data in enumerate([REQUEST, b"", REQUEST, ANSWER, CJT_REQUEST, CJT_ANSWER])]
    sniffer, heard = overhear(*[part for part in parts if part[1]], by_byte=by_byte)
    unit, meter = sniffer.stations["modbus", "17"], sniffer.stations["cjt188", "00002020120218"]
    assert (unit.requests, unit.answers, unit.silent, unit.answer_rate) == (2, 1, 1, 0.5)
    assert (meter.requests, meter.answers, meter.silent) == (1, 1, 0)
    # A part's time is that of its first byte; the answer begins 100 ms after the request, whose bytes took theirs.
    assert unit.latency_ms == pytest.approx((92, 92, 92), abs=0.01)
    assert meter.latency_ms[1] == pytest.approx(100 - len(CJT_REQUEST) + 3, abs=0.01), "the preamble is not the frame"
    assert unit.period_s == pytest.approx(0.2)
    assert [fit.volume_ml for fit in unit.fits][:1] == [VOLUME_ML]
    assert sniffer.totals.unknown_bytes == 0
    assert [one.lead for one in heard if one.protocol == "cjt188"] == [b"\xfe" * 3] * 2


@pytest.mark.parametrize("by_byte", [False, True])
@pytest.mark.parametrize("parity", ["", "E", "O"])
def test_modbus_ascii_is_overheard_also_with_its_parity_in_bit_7(by_byte, parity):
    ask, answer = (modbus_wire.encode(frame, "ascii") for frame in (REQUEST, ANSWER))
    if parity:
        ask, answer = (
            bytes(byte | (byte.bit_count() % 2 != (parity == "O")) << 7 for byte in wire) for wire in (ask, answer)
        )
    sniffer, heard = overhear((0, b"\x00" + ask), (60, answer + b"\xff"), (400, ask), by_byte=by_byte)
    assert [(one.kind, one.framing) for one in heard if one.kind != "noise"] == [
        ("request", "ascii"), ("answer", "ascii"), ("request", "ascii"),
    ]  # fmt: skip
    station = sniffer.stations["modbus", "17"]
    assert (station.requests, station.answers, station.silent) == (2, 1, 1)
    assert station.fits[0].volume_ml == VOLUME_ML
    assert sniffer.totals.unknown_bytes == 2
    line = text_of(views_sniffing.frame_line(next(one for one in heard if one.kind == "answer"), width=120), width=120)
    assert ":110308000000000001F0896A CR LF" in line
    assert views_sniffing.as_json(heard[-1])["framing"] == "ascii"
    assert any("7E1" in words.en or "7O1" in words.en for words in views_sniffing.advice(sniffer)) == bool(parity)


def test_a_damaged_ascii_answer_is_the_asked_meters():
    ask, answer = (modbus_wire.encode(frame, "ascii") for frame in (REQUEST, ANSWER))
    sniffer, heard = overhear((0, ask), (60, answer.replace(b"F0", b"F1")))
    assert [one.kind for one in heard] == ["request", "damaged"]
    assert sniffer.stations["modbus", "17"].damaged == 1


def test_who_writes_in_ascii_is_noticed():
    write = modbus_wire.encode(modbus.add_crc(bytes.fromhex("11 06 00 01 00 02")), "ascii")
    sniffer, heard = overhear((0, write), (40, write))
    assert [(one.kind, one.note) for one in heard] == [("request", WRITES), ("answer", WRITES)]
    assert sniffer.totals.writes == 1


def test_noise_before_between_and_after_is_counted_and_hides_nothing():
    sniffer, heard = overhear((0, b"\x00\xff" + REQUEST), (40, b"\x7f" + ANSWER + b"\x00"), (400, b"\x01\x02"))
    assert [one.kind for one in heard] == ["noise", "request", "noise", "answer", "noise", "noise"]
    assert sniffer.totals.unknown_bytes == 6
    assert sniffer.stations["modbus", "17"].answers == 1


@pytest.mark.parametrize(("request_", "answer"), [(REQUEST, ANSWER), (CJT_REQUEST, CJT_ANSWER)])
def test_no_single_flipped_bit_of_an_answer_is_a_volume(request_, answer):
    good = {fit.volume_ml for one in overhear((0, request_), (90, answer))[1] for fit in one.fits}
    lead = len(answer) - len(answer.lstrip(b"\xfe"))
    for place in range(8 * lead, 8 * len(answer)):
        wrong = bytearray(answer)
        wrong[place // 8] ^= 1 << place % 8
        sniffer, heard = overhear((0, request_), (90, bytes(wrong)))
        assert not [one for one in heard if one.fits], (place, good)
        assert sum(station.damaged for station in sniffer.stations.values()) == sniffer.totals.damaged


def test_a_damaged_answer_is_the_asked_meters_and_no_noise():
    sniffer, heard = overhear((0, REQUEST), (30, ANSWER[:-1] + b"\x00"))
    assert [one.kind for one in heard] == ["request", "damaged"]
    station = sniffer.stations["modbus", "17"]
    assert (station.damaged, station.silent, sniffer.totals.damaged) == (1, 0, 1)


def test_a_late_cjt188_answer_is_told_from_the_one_in_time():
    frame = cjt188.parse_frame(CJT_REQUEST, 3)
    second = cjt188.Frame(
        meter_type=frame.meter_type, address=frame.address, control=1, data=bytes.fromhex("901F01")
    ).encode()
    sniffer, heard = overhear((0, CJT_REQUEST), (1000, second), (1100, CJT_ANSWER))
    assert heard[-1].note is LATE
    station = sniffer.stations["cjt188", "00002020120218"]
    assert (station.late, station.answers, station.silent) == (1, 0, 2)


def test_an_answer_whose_request_was_not_heard_says_so():
    sniffer, heard = overhear((0, CJT_ANSWER))
    assert (heard[0].note, heard[0].fits) == (NOBODY_ASKED, ())
    assert sniffer.stations["cjt188", "00002020120218"].answer_rate is None


def test_a_refusal_is_an_answer_and_no_reading():
    refusal = modbus.add_crc(b"\x11\x83\x02")
    sniffer, heard = overhear((0, REQUEST), (30, refusal))
    station = sniffer.stations["modbus", "17"]
    assert (heard[-1].kind, station.refusals, station.answers, station.silent) == ("refusal", 1, 0, 0)


@pytest.mark.parametrize(
    ("write", "answer"),
    [
        (modbus.add_crc(bytes.fromhex("11 06 00 01 00 02")), modbus.add_crc(bytes.fromhex("11 06 00 01 00 02"))),
        (
            modbus.add_crc(bytes.fromhex("11 10 00 01 00 01 02 00 05")),
            modbus.add_crc(bytes.fromhex("11 10 00 01 00 01")),
        ),
        (
            cjt188.Frame(
                meter_type=0x10, address="00000805000001", control=4, data=bytes.fromhex("A017005599")
            ).encode(),
            cjt188.Frame(
                meter_type=0x10, address="00000805000001", control=0x84, data=bytes.fromhex("A017000000")
            ).encode(),
        ),
    ],
)
def test_who_writes_to_a_meter_is_noticed(write, answer):
    sniffer, heard = overhear((0, write), (40, answer))
    assert [(one.kind, one.note) for one in heard] == [("request", WRITES), ("answer", WRITES)]
    assert sniffer.totals.writes == 1
    assert "写表" in text_of(views_sniffing.heading(sniffer, title="t", elapsed_ms=1000))


def test_mbus_selection_acknowledgement_and_telegram_are_one_meters():
    case = next(case for case in profile.load("mbus-water").cases if len(case.exchange) == 2)
    telegram = bytes.fromhex(case.exchange[1].response)
    number = mbus.parse_frame(telegram).identity.number
    select = mbus.select(mbus.Identity(number=number)).encode()
    ask = mbus.request_data(mbus.SELECTED, frame_count_bit=True).encode()
    sniffer, heard = overhear((0, select), (60, b"\xe5"), (200, ask), (260, telegram))
    assert [one.kind for one in heard] == ["request", "acknowledgement", "request", "answer"]
    assert {one.station for one in heard} == {number}
    assert sniffer.stations["mbus", number].answers == 2


@given(st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=80)), max_size=20))
def test_no_byte_is_lost_and_none_is_invented(chunks):
    cutter, now_ms, pieces, fed = Cutter(byte_ms=BYTE_MS), 0.0, [], b""
    for pause_ms, data in chunks:
        now_ms += pause_ms
        pieces += cutter.feed(now_ms, data)
        fed += data
    pieces += cutter.finish()
    assert b"".join(piece.lead + piece.data for piece in pieces) == fed
    assert all(piece.at_ms <= piece.until_ms for piece in pieces)


@given(st.binary(max_size=400), st.randoms(use_true_random=False))
def test_nothing_that_is_overheard_breaks_the_sniffer(data, chance):
    mixed = bytearray(data)
    for frame in (REQUEST, ANSWER, CJT_REQUEST, CJT_ANSWER, b"\xe5"):
        at = chance.randrange(len(mixed) + 1)
        mixed[at:at] = frame
    sniffer, heard = overhear((0, bytes(mixed)))
    assert sniffer.totals.bytes == len(mixed) == sum(len(one.lead + one.data) for one in heard)
    for one in heard:
        text_of(views_sniffing.frame_line(one, width=80))
    text_of(views_sniffing.stations(sniffer))
    msgspec.json.encode([views_sniffing.as_json(one) for one in heard])


def test_a_babbling_line_does_not_fill_the_memory():
    cutter = Cutter(byte_ms=BYTE_MS)
    frame_start = b"\x68\x10" + b"\x01" * 7 + b"\x81\x64"  # claims 100 bytes of data
    for number in range(200):
        cutter.feed(number * 20.0, frame_start)
        assert len(cutter._data) <= WAITING_BYTES_MAX + len(frame_start)
    chance = random.Random(7)
    sniffer = Sniffer(byte_ms=BYTE_MS)
    for number in range(3000):
        frame = cjt188.Frame(
            meter_type=0x10, address=f"{chance.randrange(10**14):014d}", control=1, data=bytes.fromhex("901F00")
        )
        sniffer.feed(number * 50.0, frame.encode())
    assert len(sniffer.stations) == STATIONS_MAX
    assert sniffer.totals.stations_forgotten == 3000 - STATIONS_MAX


def test_a_pause_ends_the_wait_for_the_rest_of_a_frame():
    sniffer = Sniffer(byte_ms=BYTE_MS)
    assert sniffer.feed(0, ANSWER[:6]) == []
    assert sniffer.tick(PAUSE_MS - 10) == []
    assert [one.data for one in sniffer.tick(PAUSE_MS + 1)] == [ANSWER[:6]]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 32)])
def test_the_moving_picture_fits_its_terminal(width, height):
    parts, now_ms = [], 0
    for unit in range(1, 40):
        request = modbus.ReadRequest(unit=unit, function=3, address=0x204, count=4)
        parts += [(now_ms, request.encode()), (now_ms + 30, modbus.encode_response(request, [0, 0, unit, 5]))]
        now_ms += 80
    sniffer, heard = overhear(*parts)
    picture = views_sniffing.live(sniffer, heard, title="/dev/ttyUSB0", elapsed_ms=now_ms, width=width, height=height)
    lines = text_of(picture, width=width).splitlines()
    assert len(lines) <= height, "\n".join(lines)
    for words in ("应答", "answered", "load 占用", "more 更多", "Ctrl-C"):
        assert words in "\n".join(lines)


def test_long_notes_do_not_push_the_picture_out_of_its_terminal():
    parts = []
    for number in range(20):
        wide = modbus.ReadRequest(unit=17, function=3, address=0, count=8)
        late = modbus.encode_response(wide, [0] * 8)
        parts += [(number * 900, wide.encode()), (number * 900 + 300, REQUEST), (number * 900 + 600, late)]
    sniffer, heard = overhear(*parts)
    assert sum(one.note is LATE for one in heard) == 20
    picture = views_sniffing.live(sniffer, heard, title="/dev/ttyUSB0", elapsed_ms=20_000, width=80, height=24)
    lines = text_of(picture).splitlines()
    assert len(lines) <= 24
    assert any("a late answer" in line for line in lines)


def test_advice_tells_dead_meters_wrong_speed_and_silence():
    def english(*parts):
        return " ".join(words.en for words in views_sniffing.advice(overhear(*parts)[0]))

    assert "Nothing on the line" in english()
    assert "no frames" in english((0, b"\x3c" * 30))
    assert "never answers" in english((0, REQUEST), (100, REQUEST), (200, REQUEST))
    assert english((0, REQUEST), (30, ANSWER)) == ""


@pytest.mark.e2e
def test_mbpoll_as_a_foreign_master_is_overheard_through_a_tap(tmp_path):
    poll = [find("mbpoll"), "-m", "rtu", "-b", "9600", "-P", "none", "-0", "-r", "516", "-c", "4", "-t", "4:hex", "-1"]
    with village(("usw-dn15-40", "3", "802.609751")) as meters, tapped(tmp_path, meters.port) as (master, tap):

        def ask():
            for unit in ("3", "9", "3"):
                subprocess.run([*poll, "-q", "-o", "0.3", "-a", unit, master], capture_output=True, check=False)

        asking = threading.Timer(1.5, ask)
        asking.start()
        done = run_shuiwang("sniff", "--port", tap, "--baudrate", 9600, "--seconds", 6, "--json")
        asking.join()
    assert done.returncode == 0, done.stderr
    *frames, summary = map(json.loads, done.stdout.splitlines())
    assert [(frame["kind"], frame["station"]) for frame in frames] == [
        ("request", "3"), ("answer", "3"), ("request", "9"), ("request", "3"), ("answer", "3"),
    ]  # fmt: skip
    assert {"profile": "usw-dn15-40", "volume_ml": 802_609_751} in frames[1]["fits"]
    assert 0 <= frames[1]["latency_ms"] < 100
    stations = {station["address"]: station for station in summary["stations"]}
    assert (stations["3"]["answers"], stations["9"]["answers"], stations["9"]["silent"]) == (2, 0, 1)
    assert summary["stray_bytes"] == 0


@pytest.mark.e2e
def test_pymodbus_in_ascii_is_overheard_through_a_tap(tmp_path):
    (tmp_path / "meters").mkdir()
    with (
        pymodbus_meters.ascii_on_a_pty(tmp_path / "meters", {3: 802_609_751}) as meters,
        tapped(tmp_path, meters) as (master, tap),
    ):

        def ask():
            client = ModbusSerialClient(master, framer=FramerType.ASCII, baudrate=9600, timeout=0.4, retries=0)
            assert client.connect()
            for unit in (3, 9, 3):
                with contextlib.suppress(ModbusException):
                    client.read_holding_registers(0x204, count=4, device_id=unit)
            client.close()

        asking = threading.Timer(1.5, ask)
        asking.start()
        done = run_shuiwang("sniff", "--port", tap, "--baudrate", 9600, "--seconds", 5, "--json")
        asking.join()
    assert done.returncode == 0, done.stderr
    *frames, summary = map(json.loads, done.stdout.splitlines())
    assert [(frame["kind"], frame["framing"], frame["station"]) for frame in frames] == [
        (kind, "ascii", station) for kind, station in
        (("request", "3"), ("answer", "3"), ("request", "9"), ("request", "3"), ("answer", "3"))
    ]  # fmt: skip
    assert {"profile": "usw-dn15-40", "volume_ml": 802_609_751} in frames[1]["fits"]
    assert summary["stray_bytes"] == 0


@pytest.mark.parametrize("command", [["sniff"], ["record", "--to", "capture.txt"]])
def test_modbus_tcp_cannot_be_overheard_and_it_says_what_to_do_instead(tmp_path, command):
    with pymodbus_meters.over_tcp({3: 1}) as port:
        done = run_shuiwang(
            *command, "--port", port, "--seconds", 1, cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)}
        )
    assert done.returncode == 9, done.stderr
    assert "Modbus TCP cannot be overheard" in done.stderr
    assert "tcpdump" in done.stderr


def test_a_port_that_is_not_there_ends_with_its_code_and_advice():
    done = run_shuiwang("sniff", "--port", "/dev/no-such-port", "--seconds", 1)
    assert (done.returncode, done.stdout) == (6, "")
    assert "no-such-port" in done.stderr
    assert "Traceback" not in done.stderr
