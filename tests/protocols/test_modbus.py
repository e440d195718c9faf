"""Modbus RTU frames: rows that serve both directions, frames of other people, and everything a line can do to them."""

import json
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import minimalmodbus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partners.two_interpreters import micropython
from pymodbus.framer.rtu import FramerRTU
from pymodbus.pdu import DecodePDU, ExceptionResponse
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadHoldingRegistersResponse,
    ReadInputRegistersRequest,
    ReadInputRegistersResponse,
)

from protocols import modbus
from protocols.errors import Garbled, MeterError, MeterRefused, NoResponse, UsageError, WrongAnswer

REPOSITORY = Path(__file__).parents[2]
VECTORS = REPOSITORY.parent / "shared" / "vectors" / "modbus_frames.json"
PEER = Path(__file__).with_name("modbus_peer.py")

# unit, function, address, request frame, response frame, registers
ROWS = {
    "usw total": (17, 3, 0x204, "11 03 02 04 00 04 06 E0", "11 03 08 00 00 00 00 00 01 F0 89 15 71", [0, 0, 1, 0xF089]),
    "xintai total": (1, 3, 1, "01 03 00 01 00 02 95 CB", "01 03 04 1E 85 0B 3F AA D2", [0x1E85, 0x0B3F]),
    "tuf total": (
        *(1, 3, 8, "01 03 00 08 00 04 C5 CB", "01 03 08 3F 31 00 0C 00 00 3F 40 F6 41"),
        [0x3F31, 0x000C, 0x0000, 0x3F40],
    ),
    "input registers": (1, 4, 12, "01 04 00 0C 00 02 B1 C8", "01 04 04 43 C9 AA 46 C1 6C", [0x43C9, 0xAA46]),
}
# request frame, exception frame, code
REFUSALS = {
    "illegal function": ("11 03 02 04 00 04 06 E0", "11 83 01 81 35", 1),
    "illegal address": ("01 04 00 0C 00 02 B1 C8", "01 84 02 C2 C1", 2),
    "busy": ("01 03 00 01 00 02 95 CB", "01 83 06 C1 32", 6),
}
EVERY_ROW = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
EVERY_REFUSAL = pytest.mark.parametrize("row", REFUSALS.values(), ids=REFUSALS)


def raw(text):
    return bytes.fromhex(text)


def request_of(row):
    unit, function, address, _, _, registers = row
    return modbus.ReadRequest(unit=unit, function=function, address=address, count=len(registers))


def value_in(request, data, *, one_at_a_time=False):
    """Return the registers that a reader takes from bytes, or None where it takes none."""
    reader = request.reader()
    frame = None
    for piece in [data[i : i + 1] for i in range(len(data))] if one_at_a_time else [data]:
        frame = reader.feed(piece)
        if frame:
            break
    try:
        return modbus.decode_response(frame) if frame else None
    except MeterRefused:
        return None


def fate(request, data):
    """Return the class of error with which an exchange ends."""
    reader = request.reader()
    try:
        frame = reader.feed(data)
        modbus.decode_response(frame) if frame else reader.close()
    except MeterError as error:
        return type(error)
    raise AssertionError("neither an answer nor an error")


class TestRows:
    @EVERY_ROW
    def test_request_both_ways(self, row):
        unit, function, address, frame, _, registers = row
        assert request_of(row).encode() == raw(frame)
        request = modbus.RequestReader().feed(raw(frame))
        assert (request.unit, request.function, request.address, request.count) == (
            *(unit, function, address),
            len(registers),
        )

    @EVERY_ROW
    def test_response_both_ways(self, row):
        *_, frame, registers = row
        assert modbus.encode_response(request_of(row), registers) == raw(frame)
        assert value_in(request_of(row), raw(frame)) == registers
        assert len(raw(frame)) == request_of(row).response_bytes

    @EVERY_ROW
    def test_one_byte_at_a_time_the_last_byte_completes_it(self, row):
        *_, request_frame, response_frame, registers = row
        reader, meter = request_of(row).reader(), modbus.RequestReader()
        answers = [reader.feed(bytes([byte])) for byte in raw(response_frame)]
        asked = [meter.feed(bytes([byte])) for byte in raw(request_frame)]
        assert answers[:-1] == [None] * (len(answers) - 1)
        assert modbus.decode_response(answers[-1]) == registers
        assert asked[:-1] == [None] * 7
        assert asked[-1].encode() == raw(request_frame)

    @EVERY_REFUSAL
    def test_exception_both_ways(self, row):
        request_frame, frame, code = row
        request = modbus.decode_request(raw(request_frame))
        assert modbus.encode_exception(request, code) == raw(frame)
        with pytest.raises(MeterRefused, match=rf"exception {code} \({modbus.EXCEPTION_NAMES[code]}\)"):
            modbus.decode_response(request.reader().feed(raw(frame)))

    def test_an_exception_code_that_nobody_knows_still_says_its_number(self):
        with pytest.raises(MeterRefused, match=r"exception 200 \(unknown code\)"):
            modbus.decode_response(modbus.add_crc(b"\x01\x83\xc8"))

    @pytest.mark.parametrize(
        ("unit", "function", "address", "count", "what"),
        [
            (-1, 3, 0, 1, "unit -1"),
            (248, 3, 0, 1, "unit 248"),
            (254, 3, 0, 1, "unit 254"),
            (256, 3, 0, 1, "unit 256"),
            (1, 6, 0, 1, "function 6"),
            (1, 3, 0, 0, "0 registers"),
            (1, 3, 0, 126, "126 registers"),
            (1, 3, 65535, 2, "65535 to 65536"),
            (1, 3, -1, 1, "registers -1"),
        ],
    )
    def test_a_request_that_no_meter_could_answer_is_our_error(self, unit, function, address, count, what):
        with pytest.raises(UsageError, match=what):
            modbus.ReadRequest(unit=unit, function=function, address=address, count=count)

    @pytest.mark.parametrize(("unit", "address", "count"), [(1, 65535, 1), (247, 0, 125), (1, 65411, 125)])
    def test_the_limits_themselves_are_allowed(self, unit, address, count):
        request = modbus.ReadRequest(unit=unit, function=3, address=address, count=count)
        assert modbus.decode_request(request.encode()).count == count


def third_party(section):
    return json.loads(VECTORS.read_text(encoding="utf-8"))[section] if VECTORS.exists() else []


NO_VECTORS = pytest.mark.skipif(not VECTORS.exists(), reason="../shared/vectors is not beside this checkout")


@NO_VECTORS
class TestFramesOfOthers:
    """Frames printed in manuals and logs. What none of our readers takes is none of a register read."""

    def reading(self, words):
        return [
            f
            for f in third_party("frames")
            if f["kind"].startswith(words) and ("FC03" in f["kind"] or "FC04" in f["kind"])
        ]

    def test_the_collection_is_the_one_these_tests_were_written_for(self):
        assert len(third_party("frames")) == 18
        assert len(self.reading("request")) == 7
        assert len(self.reading("response")) == 7

    def test_every_checksum_is_judged_as_stated(self):
        for frame in third_party("frames"):
            assert modbus.has_crc(raw(frame["hex"])) == frame["crc_ok"], frame["id"]

    def test_every_request_means_what_is_stated(self):
        for entry in self.reading("request"):
            frame, expect = raw(entry["hex"]), entry["expect"]
            request = modbus.RequestReader().feed(frame)
            if expect["unit"] == 0:
                # The maker prints the broadcast address as "any meter"; no meter of ours answers a broadcast.
                assert request is None, entry["id"]
                request = modbus.decode_request(b"\x11" + frame[1:])
                expect = {**expect, "unit": 0x11}
            assert request.unit == expect["unit"], entry["id"]
            assert request.function == expect.get("fc", frame[1]), entry["id"]
            assert request.address == expect.get("start", request.address), entry["id"]
            assert request.count == expect.get("count", request.count), entry["id"]

    def test_every_response_means_what_is_stated(self):
        for entry in self.reading("response"):
            frame, expect = raw(entry["hex"]), entry["expect"]
            request = modbus.ReadRequest(unit=expect["unit"], function=frame[1], address=0, count=frame[2] // 2)
            values = value_in(request, frame)
            whole = int.from_bytes(b"".join(v.to_bytes(2, "big") for v in values), "big")
            checks = {
                "registers": lambda v=values: v,
                "reverse_mL": lambda w=whole: w >> 64,
                "forward_mL": lambda w=whole: w & 2**64 - 1,
                "forward_0_1L": lambda w=whole: w >> 16,
                "status": lambda v=values: v[-1],
                "byte_count": lambda v=values: 2 * len(v),
            }
            stated = checks.keys() & expect.keys()
            assert stated or "float_CDAB_at_reg5" in expect, entry["id"]
            for name in stated:
                assert checks[name]() == expect[name], (entry["id"], name)

    def test_functions_that_read_no_registers_are_never_taken_for_one(self):
        others = [f for f in third_party("frames") if "FC01" in f["kind"] or "FC02" in f["kind"]]
        assert len(others) == 4
        for entry in others:
            frame = raw(entry["hex"])
            assert modbus.RequestReader().feed(frame) is None, entry["id"]
            for count in range(1, 10):
                request = modbus.ReadRequest(unit=frame[0], function=3, address=0, count=count)
                assert value_in(request, frame) is None, entry["id"]


def flipped(frame, bits):
    damaged = bytearray(frame)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


class TestDamage:
    """CRC-16 of Modbus has Hamming distance 4 up to 32751 bits, so up to three wrong bits are always detected."""

    @EVERY_ROW
    @pytest.mark.parametrize("wrong_bits", [1, 2])
    def test_no_flipped_bit_and_no_two_become_a_value(self, row, wrong_bits):
        frame, request = raw(row[4]), request_of(row)
        for bits in combinations(range(8 * len(frame)), wrong_bits):
            assert value_in(request, flipped(frame, bits)) is None, bits

    @EVERY_REFUSAL
    def test_three_wrong_bits_never_refuse_in_the_name_of_the_meter(self, row):
        request, frame = modbus.decode_request(raw(row[0])), raw(row[1])
        for bits in combinations(range(8 * len(frame)), 3):
            assert request.reader().feed(flipped(frame, bits)) is None, bits

    def test_the_longest_frame_has_hamming_distance_four(self):
        # The CRC is linear: wrong bits go unseen only where the traces of the single bits cancel out.
        frame = bytes(255)
        traces = [modbus.crc16(flipped(frame, [bit])) ^ modbus.crc16(frame) for bit in range(8 * len(frame))]
        seen = set(traces)
        assert 0 not in seen
        assert len(seen) == len(traces)  # no two cancel out
        assert not any(a ^ b in seen for a, b in combinations(traces, 2))  # and no three

    @EVERY_ROW
    def test_no_burst_of_16_bits_becomes_a_value(self, row):
        frame, request = raw(row[4]), request_of(row)
        for start in range(len(frame) - 1):
            for pattern in range(1, 0x10000, 97):
                damaged = bytearray(frame)
                damaged[start] ^= pattern >> 8
                damaged[start + 1] ^= pattern & 0xFF
                assert value_in(request, bytes(damaged)) is None

    @EVERY_ROW
    def test_no_truncation_becomes_a_value(self, row):
        frame, request = raw(row[4]), request_of(row)
        for length in range(len(frame)):
            assert value_in(request, frame[:length]) is None
            assert value_in(request, frame[-length:] if length else b"") is None
            assert fate(request, frame[:length]) is (NoResponse if length == 0 else Garbled)

    @EVERY_ROW
    def test_a_truncation_filled_up_by_the_idle_line_becomes_no_other_value(self, row):
        *_, frame, registers = row
        for length in range(len(raw(frame))):
            for filler in (b"\x00", b"\xff"):
                assert value_in(request_of(row), raw(frame)[:length] + 300 * filler) in (None, registers)

    @EVERY_ROW
    def test_an_answer_that_is_cut_and_then_comes_whole_is_taken(self, row):
        *_, frame, registers = row
        for length in range(len(raw(frame))):
            assert value_in(request_of(row), raw(frame)[:length] + raw(frame)) == registers


class TestNoise:
    NOISE = (b"\x00", b"\xff", b"\x00\xff\x7f\x80", b"\x01\x03", b"\x01\x83", b"\x11\x03\x08", bytes(range(256)))

    @EVERY_ROW
    @pytest.mark.parametrize("one_at_a_time", [False, True])
    def test_before_and_after(self, row, one_at_a_time):
        *_, frame, registers = row
        for noise in self.NOISE:
            for data in (noise + raw(frame), raw(frame) + noise, noise + raw(frame) + noise):
                assert value_in(request_of(row), data, one_at_a_time=one_at_a_time) == registers

    @EVERY_ROW
    def test_within(self, row):
        frame, request = raw(row[4]), request_of(row)
        for position in range(1, len(frame)):
            for noise in self.NOISE:
                data = frame[:position] + noise + frame[position:]
                if frame in data:
                    continue  # the noise repeats what stands around it: the frame is still whole
                assert value_in(request, data) is None, (position, noise)

    @given(noise=st.binary(max_size=80), row=st.sampled_from(list(ROWS.values())), tail=st.binary(max_size=20))
    def test_any_noise_before_never_makes_another_value(self, noise, row, tail):
        *_, frame, registers = row
        assert value_in(request_of(row), noise + raw(frame) + tail) in (None, registers)

    def test_two_answers_back_to_back_give_the_first(self):
        request = modbus.ReadRequest(unit=1, function=3, address=0, count=1)
        first, second = (modbus.encode_response(request, [value]) for value in (1, 2))
        assert value_in(request, first + second) == [1]

    def test_a_device_that_babbles_is_cut_off_at_the_limit(self):
        reader = modbus.ReadRequest(unit=1, function=3, address=0, count=1).reader()
        assert reader.feed(b"\x55" * modbus.BUFFER_BYTES_MAX) is None
        with pytest.raises(Garbled, match="babbles"):
            reader.feed(b"\x55")

    def test_babble_that_looks_like_answers_costs_each_checksum_once(self, monkeypatch):
        checked = []
        has_crc = modbus.has_crc
        monkeypatch.setattr(modbus, "has_crc", lambda frame: checked.append(frame) or has_crc(frame))
        reader = modbus.ReadRequest(unit=1, function=3, address=0, count=125).reader()
        for byte in (b"\x01\x03\xfa" * 400)[: modbus.BUFFER_BYTES_MAX]:
            reader.feed(bytes([byte]))
        # One check per place at most; before, it was one per place and byte that came, and stalled the loop.
        assert 0 < len(checked) <= modbus.BUFFER_BYTES_MAX


class TestWrongAnswers:
    REQUEST = modbus.ReadRequest(unit=17, function=3, address=0x204, count=4)

    def other(self, **change):
        numbers = {"unit": 17, "function": 3, "address": 0x204, "count": 4} | change
        return modbus.ReadRequest(**numbers)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"unit": 18}, "unit 18, asked was unit 17"),
            ({"function": 4}, "function 4 with 13 bytes"),
            ({"count": 5}, "function 3 with 15 bytes; asked were function 3 and 4 registers"),
            ({"count": 3}, "function 3 with 11 bytes"),
        ],
    )
    def test_a_valid_frame_that_answers_something_else(self, change, words):
        other = self.other(**change)
        frame = modbus.encode_response(other, [1] * other.count)
        reader = self.REQUEST.reader()
        assert reader.feed(frame) is None
        with pytest.raises(WrongAnswer, match=words):
            reader.close()

    def test_the_refusal_of_another_unit_or_function_is_not_ours(self):
        for change in ({"unit": 18}, {"function": 4}):
            assert fate(self.REQUEST, modbus.encode_exception(self.other(**change), 2)) is WrongAnswer

    @pytest.mark.parametrize("lie", [0, 6, 7, 9, 10, 255])
    def test_a_byte_count_that_does_not_fit_is_no_answer(self, lie):
        body = bytes((17, 3, lie, 0, 0, 0, 0, 0, 1, 0xF0, 0x89))
        assert fate(self.REQUEST, modbus.add_crc(body)) is WrongAnswer

    def test_a_foreign_answer_before_ours_is_stepped_over(self):
        foreign = modbus.encode_response(self.other(unit=18), [9, 9, 9, 9])
        assert value_in(self.REQUEST, foreign + modbus.encode_response(self.REQUEST, [1, 2, 3, 4])) == [1, 2, 3, 4]

    def test_silence(self):
        with pytest.raises(NoResponse, match="no answer"):
            self.REQUEST.reader().close()

    def test_garbage_is_shown(self):
        reader = self.REQUEST.reader()
        reader.feed(b"\xde\xad")
        with pytest.raises(Garbled, match="2 bytes, no valid frame: DE AD"):
            reader.close()

    def test_an_exception_inside_an_answer_is_its_content(self):
        request = modbus.ReadRequest(unit=1, function=3, address=0, count=4)
        exception = modbus.encode_exception(request, 2)
        registers = [int.from_bytes((exception + b"\x00")[i : i + 2], "big") for i in (0, 2, 4)] + [0]
        frame = modbus.encode_response(request, registers)
        assert exception in frame
        assert value_in(request, frame, one_at_a_time=True) == registers


class TestEcho:
    """Some RS-485 adapters hear themselves: the request comes back before the answer."""

    @EVERY_ROW
    @pytest.mark.parametrize("one_at_a_time", [False, True])
    def test_the_answer_behind_the_echo_is_taken(self, row, one_at_a_time):
        _, _, _, request, response, registers = row
        for noise in (b"", b"\x00", b"\xff\xff"):
            data = noise + raw(request) + noise + raw(response)
            assert value_in(request_of(row), data, one_at_a_time=one_at_a_time) == registers

    @EVERY_REFUSAL
    def test_the_refusal_behind_the_echo_is_taken(self, row):
        assert fate(modbus.decode_request(raw(row[0])), raw(row[0]) + raw(row[1])) is MeterRefused

    @EVERY_ROW
    def test_an_echo_alone_is_named(self, row):
        reader = request_of(row).reader()
        assert reader.feed(raw(row[3])) is None
        with pytest.raises(NoResponse, match=r"our own request \(echo\)"):
            reader.close()

    @pytest.mark.parametrize("one_at_a_time", [False, True])
    def test_an_echo_and_zeros_of_an_idle_line_are_no_answer(self, one_at_a_time):
        """The high byte of the address equals the byte count, and 00 behind a CRC leaves it valid."""
        for count in range(2, modbus.REGISTERS_MAX + 1):
            request = modbus.ReadRequest(unit=1, function=3, address=2 * count << 8, count=count)
            fatal = (request.encode() + bytes(300))[: request.response_bytes]
            assert modbus.has_crc(fatal)
            for noise in (b"", b"\xff"):
                assert value_in(request, noise + fatal + bytes(3), one_at_a_time=one_at_a_time) is None, count

    def test_no_answer_begins_inside_the_echo(self):
        request = modbus.ReadRequest(unit=3, function=3, address=0x0308, count=4)  # 03 [03 03 08: as an answer begins
        assert fate(request, request.encode() + modbus.encode_exception(request, 2)) is MeterRefused

    def test_an_answer_that_begins_like_the_request_is_no_echo(self):
        request = modbus.ReadRequest(unit=17, function=3, address=0x0842, count=4)
        registers = [0x4200, 0x0500, 0, 0]  # 11 03 08 42 00, as in the request; then 05 and not 04
        frame = modbus.encode_response(request, registers)
        assert frame[:5] == request.encode()[:5]
        assert value_in(request, frame, one_at_a_time=True) == registers

    def test_no_echo_of_any_single_register_request_is_an_answer(self):
        """Seven of its eight bytes could be the answer; for a few addresses their CRC even fits."""
        fitting = 0
        for unit in range(modbus.UNIT_MIN, modbus.UNIT_MAX + 1):
            for low in range(256):
                head = bytes((unit, 3, 2, low, 0, 1))
                crc = modbus.crc16(head[:5])
                if crc & 0xFF != 1 or crc >> 8 != modbus.crc16(head) & 0xFF:
                    continue
                fitting += 1
                request = modbus.ReadRequest(unit=unit, function=3, address=2 << 8 | low, count=1)
                assert modbus.has_crc(request.encode()[:7])
                assert value_in(request, request.encode(), one_at_a_time=True) is None
        assert fitting == 248  # about one address per unit


class TestAnyUnit:
    """A meter that is alone on its line answers to unit 0, and its answer says who it is."""

    REQUEST = modbus.ReadRequest(unit=modbus.ANY_UNIT, function=3, address=0x204, count=4)

    def answer(self, unit):
        return modbus.add_crc(bytes((unit, 3, 8)) + bytes(8))

    @pytest.mark.parametrize("unit", [0, 1, 17, 247])
    @pytest.mark.parametrize("one_at_a_time", [False, True])
    def test_whoever_answers_is_taken(self, unit, one_at_a_time):
        for before in (b"", b"\xff", self.REQUEST.encode()):
            assert value_in(self.REQUEST, before + self.answer(unit), one_at_a_time=one_at_a_time) == [0, 0, 0, 0]

    @pytest.mark.parametrize("unit", [248, 255])
    def test_a_reserved_unit_is_not(self, unit):
        assert value_in(self.REQUEST, self.answer(unit)) is None

    def test_the_device_at_the_end_of_a_tcp_connection_is_nobody_on_a_line(self):
        """Its exchanges stand in profiles as RTU frames; a meter on a serial line does not hear them."""
        request = modbus.ReadRequest(unit=modbus.TCP_DEVICE, function=3, address=0x204, count=4)
        assert value_in(request, self.answer(255)) == [0, 0, 0, 0]
        for unit in (0, 1, 247, 254):
            assert value_in(request, self.answer(unit)) is None
        assert modbus.decode_request(request.encode()).unit == 255
        assert modbus.RequestReader().feed(request.encode()) is None

    def test_no_wrong_bit_and_no_truncation_becomes_a_value(self):
        frame = raw(ROWS["usw total"][4])
        for bit in range(8 * len(frame)):
            assert value_in(self.REQUEST, flipped(frame, [bit])) is None
        for length in range(len(frame)):
            assert value_in(self.REQUEST, frame[:length]) is None

    def test_an_echo_alone_is_named(self):
        assert fate(self.REQUEST, self.REQUEST.encode()) is NoResponse

    def test_a_simulated_meter_stays_silent_as_the_standard_says(self):
        assert modbus.RequestReader().feed(self.REQUEST.encode()) is None


requests = st.builds(
    lambda unit, function, address, count: modbus.ReadRequest(
        unit=unit, function=function, address=min(address, 0x10000 - count), count=count
    ),
    st.integers(modbus.UNIT_MIN, modbus.UNIT_MAX),
    st.sampled_from(modbus.READ_FUNCTIONS),
    st.integers(0, 0xFFFF),
    st.integers(1, modbus.REGISTERS_MAX),
)


@st.composite
def dialogues(draw):
    request = draw(requests)
    return request, draw(st.lists(st.integers(0, 0xFFFF), min_size=request.count, max_size=request.count))


class MeterPair:
    """A master and a meter with a wire between them that may do to the bytes what it likes."""

    def __init__(self, wire):
        self.wire = wire
        self.meter = modbus.RequestReader()

    def ask(self, request, registers):
        """Return what the master makes of one exchange: registers, or None."""
        heard = self.meter.feed(self.wire(request.encode()))
        if heard is None or heard.unit != request.unit:
            self.meter.silence()
            return None
        # A damaged request that is valid all the same would be answered with other registers.
        assert heard.encode() == request.encode()
        return value_in(request, self.wire(modbus.encode_response(heard, registers)))


def lossy(rng):
    """Return a wire that loses, doubles, flips and invents bytes, often in the same frame."""

    def carry(frame):
        data = bytearray(frame)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(data) + 1)
            fault = rng.randrange(5)
            if fault == 0:
                del data[at : at + rng.randrange(1, 4)]
            elif fault == 1:
                data[at:at] = rng.randbytes(rng.randrange(1, 4))
            elif fault == 2:
                data[at:at] = data[at : at + rng.randrange(1, 6)]
            elif fault == 3 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            else:
                data += bytes(rng.randrange(1, 9))
        return bytes(data)

    return carry


class TestPair:
    @given(dialogue=dialogues())
    def test_round_trip(self, dialogue):
        request, registers = dialogue
        assert MeterPair(bytes).ask(request, registers) == registers

    @given(dialogue=dialogues(), cuts=st.lists(st.integers(0, 260), max_size=4))
    def test_pieces_do_not_matter(self, dialogue, cuts):
        request, registers = dialogue
        frame = modbus.encode_response(request, registers)
        reader, meter = request.reader(), modbus.RequestReader()
        answers = [reader.feed(frame[a:b]) for a, b in pairwise([0, *sorted(cuts), 300])]
        asked = [meter.feed(request.encode()[a:b]) for a, b in pairwise([0, *sorted(cuts), 300])]
        assert frame in answers
        assert [r.encode() for r in asked if r] == [request.encode()]

    # Fixed examples: with 16 bits of checksum, one in 65 536 random wrecks is valid by pure chance.
    @settings(derandomize=True, max_examples=500)
    @given(dialogue=dialogues(), rng=st.randoms(use_true_random=False))
    def test_over_a_lossy_wire_never_a_wrong_value(self, dialogue, rng):
        request, registers = dialogue
        pair = MeterPair(lossy(rng))
        for _ in range(3):
            assert pair.ask(request, registers) in (None, registers)

    @settings(derandomize=True, max_examples=20)
    @given(dialogue=dialogues(), rng=st.randoms(use_true_random=False))
    def test_a_lossy_wire_does_not_block_for_ever(self, dialogue, rng):
        request, registers = dialogue
        pair = MeterPair(lossy(rng))
        assert any(pair.ask(request, registers) == registers for _ in range(60))


class TestRequestReader:
    FRAME = raw(ROWS["usw total"][3])

    def test_noise_and_other_traffic_before_a_request(self):
        answer = raw(ROWS["usw total"][4])
        for before in (b"\x00", b"\xff" * 9, self.FRAME[:7], answer, bytes(range(256)) * 5):
            assert modbus.RequestReader().feed(before + self.FRAME).encode() == self.FRAME

    def test_two_requests_in_one_piece_come_one_by_one(self):
        reader = modbus.RequestReader()
        other = modbus.ReadRequest(unit=2, function=4, address=5, count=6).encode()
        assert reader.feed(self.FRAME + other + self.FRAME[:3]).encode() == self.FRAME
        assert reader.feed(b"").encode() == other
        assert reader.feed(b"") is None
        assert reader.feed(self.FRAME[3:]).encode() == self.FRAME

    def test_a_request_behind_one_that_no_meter_answers_is_found(self):
        broadcast = raw("00 03 02 00 00 08 44 65")
        too_many = modbus.add_crc(bytes((17, 3, 0, 0, 0, 126)))
        assert modbus.RequestReader().feed(broadcast + too_many + self.FRAME).encode() == self.FRAME

    def test_a_pause_ends_a_frame(self):
        reader = modbus.RequestReader()
        reader.feed(self.FRAME[:5])
        reader.silence()
        assert reader.feed(self.FRAME[5:]) is None

    def test_it_keeps_less_than_a_frame_of_noise(self):
        reader = modbus.RequestReader()
        for _ in range(100):
            reader.feed(b"\x03" * 1000)
        assert len(reader.buffer) < modbus.REQUEST_BYTES

    def test_no_wrong_bit_and_no_two_become_a_request(self):
        for wrong_bits in (1, 2):
            for bits in combinations(range(8 * len(self.FRAME)), wrong_bits):
                assert modbus.RequestReader().feed(flipped(self.FRAME, bits)) is None


class TestAgainstOtherImplementations:
    @given(data=st.binary(max_size=300))
    def test_crc(self, data):
        ours = modbus.add_crc(data)[-2:]
        assert int.from_bytes(ours, "big") == FramerRTU.compute_CRC(data)
        assert ours == minimalmodbus._calculate_crc(data)

    @given(request=requests)
    def test_requests(self, request):
        kind = ReadHoldingRegistersRequest if request.function == 3 else ReadInputRegistersRequest
        pdu = kind(address=request.address, count=request.count, dev_id=request.unit)
        assert FramerRTU(DecodePDU(True)).buildFrame(pdu) == request.encode()
        payload = request.address.to_bytes(2, "big") + request.count.to_bytes(2, "big")
        assert request.encode() == minimalmodbus._embed_payload(request.unit, "rtu", request.function, payload)
        _, theirs = FramerRTU(DecodePDU(True)).handleFrame(request.encode(), request.unit, 0)
        assert (theirs.dev_id, theirs.function_code, theirs.address, theirs.count) == (
            *(request.unit, request.function, request.address, request.count),
        )

    @given(dialogue=dialogues())
    def test_responses(self, dialogue):
        request, registers = dialogue
        frame = modbus.encode_response(request, registers)
        kind = ReadHoldingRegistersResponse if request.function == 3 else ReadInputRegistersResponse
        assert FramerRTU(DecodePDU(False)).buildFrame(kind(registers=registers, dev_id=request.unit)) == frame
        _, theirs = FramerRTU(DecodePDU(False)).handleFrame(frame, request.unit, 0)
        assert theirs.registers == modbus.decode_response(request.reader().feed(frame)) == registers
        payload = minimalmodbus._extract_payload(frame, request.unit, "rtu", request.function)
        assert minimalmodbus._bytes_to_valuelist(payload[1:], request.count) == registers

    @given(request=requests, code=st.integers(1, 255))
    def test_exceptions(self, request, code):
        frame = modbus.encode_exception(request, code)
        pdu = ExceptionResponse(request.function, exception_code=code, device_id=request.unit)
        assert FramerRTU(DecodePDU(False)).buildFrame(pdu) == frame
        with pytest.raises(minimalmodbus.ModbusException):
            minimalmodbus._extract_payload(frame, request.unit, "rtu", request.function)


def peer_tasks():
    """Return what both interpreters are asked: every row and refusal, whole, byte by byte, damaged and surrounded."""
    damage = [
        lambda frame: frame,
        lambda frame: b"\xff" + frame + b"\x00",
        lambda frame: frame[:-1],
        lambda frame: frame[:4] + bytes([frame[4] ^ 1]) + frame[5:],
        lambda frame: b"",
        lambda frame: bytes(1100),
        lambda frame: b"\x2a" + frame[1:-2] + modbus.add_crc(b"\x2a" + frame[1:-2])[-2:],
    ]
    frames = [(row[3], row[4]) for row in ROWS.values()] + [row[:2] for row in REFUSALS.values()]
    return [
        {"request": raw(request).hex(), "line": (echo * raw(request) + harm(raw(response))).hex(), "step": step}
        for request, response in frames
        for harm in damage
        for echo in (0, 1)
        for step in (1, 5, 2000)
    ]


def run_peer(command, tasks):
    done = subprocess.run(
        [*command, str(PEER), str(REPOSITORY)],
        input="".join(json.dumps(task) + "\n" for task in tasks),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


class TestPortable:
    def test_the_tasks_reach_every_outcome(self):
        outcomes = run_peer([sys.executable], peer_tasks())
        ends = {outcome["end"].split(":")[0] for outcome in outcomes}
        assert ends == {"registers", "NoResponse", "Garbled", "WrongAnswer", "MeterRefused"}

    def test_micropython_and_cpython_say_the_same(self):
        tasks = peer_tasks()
        ours, theirs = run_peer([sys.executable], tasks), run_peer([micropython()], tasks)
        assert len(ours) == len(tasks)
        for task, cpython, micro in zip(tasks, ours, theirs, strict=True):
            assert micro == cpython, task
