"""Modbus TCP: only the answer to this very request counts, however late, cut or foreign what else comes may be."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.framer.socket import FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse
from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadHoldingRegistersResponse

from protocols import modbus, modbus_tcp
from protocols.errors import Garbled, MeterError, MeterRefused, NoResponse, WrongAnswer
from protocols.modbus_tcp import TcpRequest

REQUEST = modbus.ReadRequest(unit=17, function=3, address=0x204, count=4)
REGISTERS = [0, 0, 1, 0xF089]
transactions = st.integers(0, 0xFFFF)
registers_of_four = st.lists(st.integers(0, 0xFFFF), min_size=4, max_size=4)


def answer(registers=REGISTERS, *, transaction=7, request=REQUEST):
    return modbus_tcp.encode_frame(modbus.encode_response(request, registers)[:-2], transaction=transaction)


def take(data, *, transaction=7, request=REQUEST, step=None):
    """Return the registers in the answer that a reader takes, None where it takes none."""
    reader = TcpRequest(request, transaction=transaction).reader()
    pieces = [data] if step is None else [data[i : i + step] for i in range(0, len(data), step)]
    frame = None
    for piece in pieces:
        frame = frame or reader.feed(piece)
    return modbus.decode_response(modbus_tcp.rtu_frame(frame)) if frame else None


def fate(data):
    reader = TcpRequest(REQUEST, transaction=7).reader()
    with pytest.raises(MeterError) as error:
        frame = reader.feed(data)
        modbus.decode_response(modbus_tcp.rtu_frame(frame)) if frame else reader.close()
    return error.type, str(error.value)


class TestFrames:
    def test_request_and_answer_written_by_hand(self):
        assert TcpRequest(REQUEST, transaction=0x1234).encode().hex(" ") == "12 34 00 00 00 06 11 03 02 04 00 04"
        assert answer(transaction=0x1234).hex(" ") == "12 34 00 00 00 0b 11 03 08 00 00 00 00 00 01 f0 89"
        assert TcpRequest(REQUEST, transaction=0).response_bytes == len(answer())

    @pytest.mark.parametrize("step", [None, 1, 5])
    def test_the_answer_is_taken(self, step):
        assert take(answer(), step=step) == REGISTERS

    def test_a_refusal(self):
        frame = modbus_tcp.encode_frame(b"\x11\x83\x0b", transaction=7)
        assert fate(frame) == (MeterRefused, "exception 11 (gateway target failed to respond)")

    def test_the_device_itself(self):
        """Messaging on TCP/IP 4.4.2."""
        request = modbus.ReadRequest(unit=modbus.TCP_DEVICE, function=3, address=0x204, count=4)
        assert TcpRequest(request, transaction=1).encode().hex(" ") == "00 01 00 00 00 06 ff 03 02 04 00 04"
        assert take(answer(transaction=1, request=request), transaction=1, request=request) == REGISTERS
        with pytest.raises(WrongAnswer, match="answered by unit 17, asked was unit 255"):
            take(answer(transaction=1), transaction=1, request=request)

    def test_any_unit_may_answer_a_request_to_any_unit(self):
        any_unit = modbus.ReadRequest(unit=modbus.ANY_UNIT, function=3, address=0x204, count=4)
        assert take(answer(), request=any_unit) == REGISTERS

    def test_the_longest_answer(self):
        request = modbus.ReadRequest(unit=1, function=4, address=0, count=125)
        assert take(answer(list(range(125)), request=request), request=request) == list(range(125))


class TestLateAnswers:
    """The counting of answers in gateway.meters is for framings that have nothing like this."""

    @given(late=transactions, registers=registers_of_four)
    def test_a_late_answer_is_no_value(self, late, registers):
        if late != 7:
            assert take(answer(registers, transaction=late)) is None
            assert take(answer(registers, transaction=late) + answer()) == REGISTERS

    @given(
        late=st.lists(transactions.filter(lambda number: number != 7), max_size=20),
        cuts=st.lists(st.integers(0, 357), max_size=9),
    )
    def test_however_many_and_in_whatever_pieces(self, late, cuts):
        data = b"".join(answer([number] * 4, transaction=number) for number in late) + answer()
        reader = TcpRequest(REQUEST, transaction=7).reader()
        edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        frames = [reader.feed(data[a:b]) for a, b in pairwise(edges)]
        assert [frame for frame in frames if frame] == [answer()]

    @given(cut=st.integers(0, 16), registers=registers_of_four)
    def test_the_rest_of_a_late_answer_whose_beginning_was_dropped(self, cut, registers):
        rest = answer(registers, transaction=6)[cut:]
        assert take_or_none(rest) is None
        assert take_or_none(rest + answer()) in (None, REGISTERS)

    def test_an_answer_inside_the_content_of_another_is_content(self):
        """Registers may hold anything, even the bytes of our answer."""
        inner = answer(transaction=7)
        words = [int.from_bytes((inner + b"\0")[i : i + 2], "big") for i in range(0, 18, 2)]
        other = modbus.ReadRequest(unit=17, function=3, address=0, count=9)
        assert take(answer(words, transaction=6, request=other)) is None
        assert take(answer(words, transaction=6, request=other) + answer([5, 6, 7, 8])) == [5, 6, 7, 8]

    def test_only_late_answers_are_named(self):
        kind, text = fate(answer(transaction=6))
        assert kind is WrongAnswer
        assert text.startswith(
            "only the answer to transaction 6 came, not to 7: when this stays so, the device is slower"
        )


def take_or_none(data):
    try:
        return take(data)
    except MeterError:
        return None


class TestWrongAnswers:
    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"\x12\x03\x08" + bytes(8), "answered by unit 18, asked was unit 17"),
            (b"\x11\x04\x08" + bytes(8), "answered by function 4"),
            (b"\x11\x03\x04" + bytes(4), "asked were function 3 and 4 registers"),
            (b"\x11\x03\x08" + bytes(6), "asked were function 3 and 4 registers"),
            (b"\x11\x83\x02\x00", "answered by function 131"),
        ],
    )
    def test_this_transaction_answered_by_something_else(self, body, words):
        kind, text = fate(modbus_tcp.encode_frame(body, transaction=7))
        assert kind is WrongAnswer
        assert re.search(words, text)

    def test_silence_is_no_response(self):
        assert fate(b"")[0] is NoResponse

    def test_rtu_behind_a_serial_server_is_named(self):
        kind, text = fate(modbus.encode_response(REQUEST, REGISTERS))
        assert kind is Garbled
        assert 'needs framing = "rtu"' in text

    @pytest.mark.parametrize("length", range(len(answer())))
    def test_no_truncation_becomes_a_value(self, length):
        assert take(answer()[:length]) is None
        assert fate(answer()[:length])[0] is (NoResponse if length == 0 else Garbled)

    def test_no_wrong_bit_in_the_header_becomes_a_value(self):
        for bit in range(8 * 9):  # up to the byte count; what follows are registers, which TCP's checksum guards
            damaged = bytearray(answer())
            damaged[bit // 8] ^= 1 << bit % 8
            assert take_or_none(bytes(damaged)) is None, bit

    @given(noise=st.binary(max_size=300))
    def test_arbitrary_bytes_are_no_value(self, noise):
        assert take_or_none(noise) is None
        assert take_or_none(noise + answer()) in (None, REGISTERS)

    def test_a_device_that_babbles_is_cut_off(self):
        reader = TcpRequest(REQUEST, transaction=7).reader()
        for _ in range(modbus.BUFFER_BYTES_MAX // 16):
            assert reader.feed(b"\x55" * 16) is None
        with pytest.raises(Garbled, match="babbles"):
            reader.feed(b"\x55" * 16)


class TestAgainstPymodbus:
    @given(transaction=st.integers(1, 0xFFFF), registers=registers_of_four)
    def test_frames(self, transaction, registers):
        framer = FramerSocket(DecodePDU(True))
        pdu = ReadHoldingRegistersRequest(address=0x204, count=4, dev_id=17, transaction_id=transaction)
        assert framer.buildFrame(pdu) == TcpRequest(REQUEST, transaction=transaction).encode()
        pdu = ReadHoldingRegistersResponse(registers=registers, dev_id=17, transaction_id=transaction)
        assert framer.buildFrame(pdu) == answer(registers, transaction=transaction)
        _, theirs = FramerSocket(DecodePDU(False)).handleFrame(
            answer(registers, transaction=transaction), 17, transaction
        )
        assert (
            theirs.registers == registers == take(answer(registers, transaction=transaction), transaction=transaction)
        )

    def test_exceptions(self):
        pdu = ExceptionResponse(3, exception_code=2, device_id=17, transaction=7)
        frame = FramerSocket(DecodePDU(False)).buildFrame(pdu)
        assert fate(frame) == (MeterRefused, "exception 2 (illegal data address)")
