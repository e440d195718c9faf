"""Whose answer is it? No reading comes of an answer to another request, and no meter gets the telegram of another."""

import io

import pytest
from partners.overheard_frames import ask, overhear, registers, volumes
from rich.console import Console

from agent.technician import capture, replaying, views_sniffing
from agent.technician.capture import Writer
from agent.technician.pairing import NOBODY_SELECTED
from agent.technician.recording import PassiveRecorder
from agent.technician.sniffing import LATE, LATE_MS_MAX, NOBODY_ASKED, UNCLEAR
from gateway.line import LineSettings
from protocols import mbus, mbus_data, mbus_dialogue, modbus
from protocols.mbus import Identity

FORWARD, REVERSE = 0x204, 0x200  # totals of a USW meter, four registers each
ONE, OTHER = (Identity(number=digit * 8, manufacturer=0x4D17, version=1, medium=7) for digit in "12")
WIDE, NARROW = ask(0, 8), ask(FORWARD, 4)
LATE_BYTES = modbus.encode_response(WIDE, [0, 0, 0x12, 0x3456, 1, 2, 3, 4])
OWN_BYTES = modbus.encode_response(NARROW, registers(69_905))


def test_an_answer_of_another_length_is_the_late_one_and_the_right_one_is_read():
    sniffer, heard = overhear((100, WIDE.encode()), (600, NARROW.encode()), (50, LATE_BYTES), (20, OWN_BYTES))
    assert [one.note for one in heard] == [None, None, LATE, None]
    assert volumes(heard)[0] == set()
    assert 69_905 in volumes(heard)[1]
    station = sniffer.stations["modbus", "17"]
    assert (station.requests, station.answers, station.late, station.silent) == (2, 1, 1, 1)


def test_a_late_answer_makes_no_outcome_of_a_capture(tmp_path):
    file = tmp_path / "capture.txt"
    line = LineSettings(name="t", port="t", baudrate=9600)
    with Writer(file, line, remark="test") as writer:
        recorder = PassiveRecorder(writer, line)
        now_ms = 0
        for pause_ms, data in ((100, WIDE.encode()), (600, NARROW.encode()), (50, LATE_BYTES), (20, OWN_BYTES)):
            now_ms += pause_ms + len(data)
            recorder.feed(now_ms, data)
        recorder.finish()
    text = file.read_text(encoding="utf-8")
    assert [line.split(" == ")[1] for line in text.splitlines() if " == " in line] == ["17: 69905 mL"]
    assert [outcome.is_same for outcome in replaying.replay(capture.load(file)).outcomes] == [True]


@pytest.mark.parametrize("function", [1, 2, 3, 4])
def test_the_number_of_bytes_that_answers_is_that_of_the_function(function):
    """Eight coils are one byte, nine are two; a register is always two."""
    for count in (8, 9):
        request = modbus.add_crc(bytes((17, function, 0, 0, 0, count)))
        right = count // 8 + (count > 8) if function < 3 else 2 * count
        for size in {1, 2, 16, 18, right}:
            if function >= 3 and size % 2:
                continue
            _, heard = overhear((0, request), (60, modbus.add_crc(bytes((17, function, size)) + b"\1" * size)))
            assert heard[-1].note is (None if size == right else NOBODY_ASKED), (function, count, size)


def test_what_answers_nothing_that_was_asked_is_nobodys_also_of_a_meter_that_was_silent_before():
    sniffer, heard = overhear((0, NARROW.encode()), (600, NARROW.encode()), (60, LATE_BYTES))
    assert (heard[-1].note, heard[-1].fits) == (NOBODY_ASKED, ())
    assert sniffer.stations["modbus", "17"].late == 0


@pytest.mark.parametrize("lost", [b"", b"\xff\x00\x55\x12\x80"])
def test_an_answer_that_fits_two_open_requests_is_no_reading(lost):
    """Both totals have four registers: the late answer to the reverse total would be read as the forward one."""
    backward = modbus.encode_response(ask(REVERSE, 4), registers(5))
    sniffer, heard = overhear(
        (0, ask(REVERSE, 4).encode()), (50, lost), (600, NARROW.encode()), (60, backward), (30, OWN_BYTES)
    )
    told = [one for one in heard if one.kind == "answer"]
    assert [one.note for one in told] == [UNCLEAR, LATE]
    assert volumes(heard) == [set(), set()]
    assert told[0].latency_ms is None
    station = sniffer.stations["modbus", "17"]
    assert (station.answers, station.unclear, station.late) == (1, 1, 1)
    assert any("no reading" in words.en for words in views_sniffing.advice(sniffer))


def test_a_device_that_is_busy_may_answer_yet():
    busy, no_such_register = (modbus.add_crc(bytes((17, 0x83, code))) for code in (6, 2))
    for refusal, note in ((busy, UNCLEAR), (no_such_register, None)):
        _, heard = overhear((0, ask(REVERSE, 4).encode()), (50, refusal), (200, NARROW.encode()), (60, OWN_BYTES))
        assert heard[-1].note is note


def test_a_request_that_is_repeated_or_long_past_makes_nothing_unclear():
    for first, pause_ms in ((NARROW, 600), (ask(REVERSE, 4), LATE_MS_MAX + 1)):
        _, heard = overhear((0, first.encode()), (pause_ms, NARROW.encode()), (60, OWN_BYTES))
        assert heard[-1].note is None
        assert 69_905 in volumes(heard)[0]


@pytest.mark.parametrize("write", ["11 06 00 01 00 02", "11 10 00 01 00 01 02 00 05"])
def test_a_second_write_is_no_answer_to_the_first(write):
    first = modbus.add_crc(bytes.fromhex(write))
    second = modbus.add_crc(bytes.fromhex("11 06 00 07 00 02"))
    sniffer, heard = overhear((0, first), (300, second), (40, second))
    assert [one.kind for one in heard] == ["request", "request", "answer"]
    assert sniffer.totals.writes == 2


# M-Bus


def select(identity):
    """By the number alone, as most masters do."""
    return mbus.select(Identity(number=identity.number)).encode()


def telegram(identity, volume_ml=5_000_000):
    told = mbus_dialogue.total_telegram(mbus_data.MbusSpec(), identity, volume_ml)
    return mbus.Frame(control=mbus.RESPOND_DATA, address=0, ci=told[0], data=told[1:]).encode()


ASK = mbus.request_data(mbus.SELECTED, frame_count_bit=True).encode()
ACK = b"\xe5"


def test_the_identity_in_a_telegram_names_the_meter_and_not_the_selection():
    sniffer, heard = overhear((0, select(ONE)), (30, ACK), (50, ASK), (60, telegram(OTHER)))
    assert heard[-1].station == "22222222"
    assert "11111111 was selected, 22222222 answers" in heard[-1].note.en
    assert sniffer.stations["mbus", "11111111"].fits == ()
    assert [fit.volume_ml for fit in sniffer.stations["mbus", "22222222"].fits] == [5_000_000]
    assert sniffer.stations["mbus", "22222222"].unselected == 1
    assert any("22222222 answers where another" in words.en for words in views_sniffing.advice(sniffer))
    console = Console(file=io.StringIO(), width=200)
    console.print(views_sniffing.frame_line(heard[-1], width=200))
    assert "11111111 was selected" in console.file.getvalue()


@pytest.mark.parametrize("lost", [b"", b"\xe4"])
def test_a_selection_that_nobody_acknowledged_selects_nobody(lost):
    for who in (ONE, OTHER):
        sniffer, heard = overhear((0, select(ONE)), (30, lost), (300, ASK), (60, telegram(who)))
        asked, told = [one for one in heard if one.kind in {"request", "answer"}][1:]
        assert (asked.station, told.station) == ("253", who.number)
        assert told.note is NOBODY_SELECTED
        assert ("mbus", "253") not in sniffer.stations, "whom it meant is known now"
        assert sniffer.stations["mbus", who.number].fits
        assert sniffer.stations["mbus", "11111111"].silent == 1


def test_the_selection_before_ends_with_the_next_and_with_a_reset():
    reset = mbus.reset_link(mbus.SELECTED).encode()
    for end in (select(OTHER), reset):
        _, heard = overhear((0, select(ONE)), (30, ACK), (50, end), (300, ASK), (60, telegram(OTHER)))
        assert heard[-2].station == "253"
        assert (heard[-1].station, heard[-1].note) == ("22222222", NOBODY_SELECTED)


def test_an_acknowledgement_of_another_request_selects_nobody():
    reset_other = mbus.reset_link(5).encode()
    _, heard = overhear((0, select(ONE)), (300, reset_other), (30, ACK), (50, ASK), (60, telegram(OTHER)))
    assert heard[-1].note is NOBODY_SELECTED


def test_a_late_acknowledgement_selects():
    _, heard = overhear((0, select(ONE)), (300, ASK), (30, ACK), (300, ASK), (60, telegram(ONE)))
    assert [one.note for one in heard if one.kind == "acknowledgement"] == [LATE]
    assert (heard[-1].station, heard[-1].note) == ("11111111", None)


def test_a_late_acknowledgement_of_a_selection_before_the_last_selects_nobody():
    """It may be to either; the telegram says by itself whose it is."""
    _, heard = overhear((0, select(ONE)), (300, select(OTHER)), (300, ASK), (30, ACK), (300, ASK), (60, telegram(ONE)))
    assert (heard[-2].station, heard[-1].station, heard[-1].note) == ("253", "11111111", NOBODY_SELECTED)


@pytest.mark.parametrize("mask", [Identity(number="2222FFFF"), Identity()])
def test_a_selection_of_several_is_named_by_who_answers(mask):
    sniffer, heard = overhear((0, select(mask)), (30, ACK), (50, ASK), (60, telegram(OTHER)))
    assert (heard[-1].station, heard[-1].note) == ("22222222", None)
    assert sniffer.stations["mbus", "22222222"].answer_rate == 1.0


def test_two_makers_with_one_number_stay_two_meters():
    twin = Identity(number="22222222", manufacturer=0x1234, version=1, medium=7)
    sniffer, heard = overhear((0, mbus.select(twin).encode()), (30, ACK), (50, ASK), (60, telegram(OTHER)))
    assert heard[-1].station == str(OTHER) != str(twin)
    assert sniffer.stations["mbus", str(twin)].fits == ()


def test_a_telegram_that_names_nobody_is_the_selected_meters_or_no_reading():
    unnamed = mbus.Frame(control=mbus.RESPOND_DATA, address=0, ci=0x78, data=bytes.fromhex("0C1378563412")).encode()
    _, heard = overhear((0, select(ONE)), (30, ACK), (50, ASK), (60, unnamed))
    assert (heard[-1].station, heard[-1].note) == ("11111111", None)
    sniffer, heard = overhear((0, ASK), (60, unnamed))
    assert (heard[-1].station, heard[-1].note, heard[-1].fits) == ("253", NOBODY_SELECTED, ())
    assert sniffer.stations["mbus", "253"].fits == ()
