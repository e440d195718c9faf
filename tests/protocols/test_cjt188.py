"""CJ/T 188 frames: what answers a request, what does not, and what a hostile line can make of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import cjt188
from protocols.answer import BUFFER_BYTES_MAX
from protocols.cjt188 import BROADCAST, AnswerReader, Frame, Request, RequestReader
from protocols.errors import Garbled, NoResponse, UsageError, WrongAnswer

METER = "00002020120218"
OTHER = "00002020120219"


def hexed(text):
    return bytes.fromhex(text)


# A captured exchange (csdn.net xuehu96/112055510).
ASKED = hexed("68 10 18 02 12 20 20 00 00 01 03 90 1F 00 97 16")
ANSWERED = hexed(
    "68 10 18 02 12 20 20 00 00 81 16 90 1F 00 00 02 00 00 2C 00 02 00 00 2C 00 00 00 00 00 00 00 00 FF 85 16"
)


def request(**changes):
    fields = {"meter_type": 0x10, "address": METER, "control": 0x01, "data": hexed("90 1F 00")}
    lengths = changes.pop("answer_lengths", (0x16,))
    return Request(frame=Frame(**fields | changes), answer_lengths=lengths)


def reply(**changes):
    fields = {"meter_type": 0x10, "address": METER, "control": 0x81, "data": ANSWERED[11:-2]}
    return Frame(**fields | changes).encode()


def result(reader, chunks):
    """What a reader makes of chunks: the frame, or the class of the error."""
    try:
        for chunk in chunks:
            frame = reader.feed(chunk)
            if frame is not None:
                return frame
        reader.close()
    except (Garbled, NoResponse, WrongAnswer) as error:
        return type(error)
    raise AssertionError("close() returned")


def whole_and_bytewise(asked, data):
    whole = result(asked.reader(), [data])
    assert result(asked.reader(), [bytes([byte]) for byte in data]) == whole
    return whole


def refused(asked, data):
    """The message with which a reader closes after bytes that hold no answer."""
    reader = asked.reader()
    assert reader.feed(data) is None
    with pytest.raises((WrongAnswer, Garbled, NoResponse)) as error:
        reader.close()
    return error


class TestFrame:
    def test_a_captured_exchange_is_reproduced_byte_by_byte(self):
        assert request().frame.encode() == ASKED
        assert request().encode() == hexed("FE FE FE FE") + ASKED
        assert cjt188.parse_frame(ANSWERED).encode() == ANSWERED

    def test_the_address_is_printed_with_the_last_byte_first(self):
        frame = cjt188.parse_frame(hexed("68 10 44 33 22 11 00 33 78 01 03 1F 90 00 80 16"))
        assert frame.address == "78330011223344"

    def test_parts_of_an_answer(self):
        frame = cjt188.parse_frame(ANSWERED)
        assert (frame.is_reply, frame.is_abnormal, frame.request_control) == (True, False, cjt188.READ_DATA)
        assert (frame.identifier, frame.serial, frame.content) == (hexed("90 1F"), 0, ANSWERED[14:-2])

    @pytest.mark.parametrize("asked", [0x01, 0x03, 0x04, 0x09, 0x15, 0x16, 0x2A, 0x33])
    def test_control_codes_of_answers(self, asked):
        question = Frame(meter_type=0x10, address=METER, control=asked, data=hexed("A0 17 05 55"))
        good = cjt188.answer(question, hexed("01 FF"), address=METER, meter_type=0x10)
        bad = cjt188.refusal(question, hexed("11 22"), address=METER, meter_type=0x10)
        assert (good.control, bad.control) == (asked | 0x80, asked | 0xC0)
        assert (good.request_control, bad.request_control) == (asked, asked)
        assert (good.is_abnormal, bad.is_abnormal) == (False, True)
        assert good.data == hexed("A0 17 05 01 FF")
        assert bad.data == hexed("05 11 22")
        assert (bad.identifier, bad.serial, bad.content) == (None, 5, hexed("11 22"))

    def test_a_frame_without_data_has_neither_identifier_nor_serial(self):
        frame = Frame(meter_type=0x10, address=METER, control=0x81, data=b"")
        assert cjt188.parse_frame(frame.encode()) == frame
        assert (frame.identifier, frame.serial) == (None, None)

    def test_the_longest_frame_and_one_byte_more(self):
        longest = bytearray(Frame(meter_type=0x10, address=METER, control=0x81, data=bytes(100)).encode())
        assert cjt188.parse_frame(longest).data == bytes(100)
        longer = longest[:10] + bytes([101]) + longest[11:-2] + b"\0"
        longer += bytes((cjt188.checksum(longer), 0x16))
        assert cjt188.parse_frame(longer) is None

    def test_frames_are_found_between_noise_and_within_a_stream(self):
        stream = b"\x00\x68" + ASKED + b"\xfe\xfe" + ANSWERED + b"\x16\x68\x10"
        assert [(at, frame.is_reply) for at, frame in cjt188.find_frames(stream)] == [(2, False), (20, True)]

    @given(
        meter_type=st.integers(0, 255),
        address=st.binary(min_size=7, max_size=7).map(lambda data: data.hex().upper()),
        control=st.integers(0, 255),
        data=st.binary(max_size=cjt188.DATA_BYTES_MAX),
    )
    def test_round_trip(self, meter_type, address, control, data):
        frame = Frame(meter_type=meter_type, address=address, control=control, data=data)
        assert cjt188.parse_frame(frame.encode()) == frame

    @pytest.mark.parametrize(
        ("asked", "answered", "expected"),
        [
            (0x10, 0x10, True),
            (0x10, 0x11, True),
            (0x10, 0xAA, True),
            (0xAA, 0x30, True),
            (0x55, 0x55, True),
            (0x10, 0x20, False),
            (0x10, 0x1A, False),
            (0x55, 0x56, False),
        ],
    )
    def test_families(self, asked, answered, expected):
        assert cjt188.same_family(asked, answered) is expected


class TestRequest:
    @pytest.mark.parametrize("changes", [{"control": 0x81}, {"data": b""}, {"data": b"\x90\x1f"}])
    def test_what_is_no_request_is_our_own_mistake(self, changes):
        with pytest.raises(UsageError):
            request(**changes)

    def test_the_longest_answer_counts_its_preamble(self):
        assert request().response_bytes == 6 + len(ANSWERED)
        assert request(answer_lengths=(1,)).response_bytes == 6 + 16, "a refusal may be longer than the answer"


class TestAnswers:
    @pytest.mark.parametrize(
        "before", ["", "FE", "FE FE FE FE FE FE", "FF", "00 00 00 00 FE FE", "68", "68 10 18", "16"]
    )
    @pytest.mark.parametrize("after", ["", "00", "B4 0A", "68 10"])
    def test_noise_around_the_answer(self, before, after):
        assert whole_and_bytewise(request(), hexed(before) + ANSWERED + hexed(after)) == ANSWERED

    def test_the_echo_of_the_request_is_dropped(self):
        asked = request()
        assert whole_and_bytewise(asked, asked.encode() + b"\xfe\xfe" + ANSWERED) == ANSWERED

    def test_an_answer_of_an_exact_type_or_of_any_type(self):
        for meter_type in (0x11, 0xAA):
            answer = reply(meter_type=meter_type)
            assert whole_and_bytewise(request(), answer) == answer

    def test_the_identifier_may_come_back_in_the_other_order(self):
        answer = reply(data=hexed("1F 90") + ANSWERED[13:-2])
        assert whole_and_bytewise(request(), answer) == answer

    def test_an_abnormal_answer_ends_the_wait(self):
        answer = reply(control=0xC1, data=hexed("00 11 22"))
        assert whole_and_bytewise(request(), answer) == answer

    def test_a_late_answer_before_the_right_one_is_passed_over(self):
        asked = request(data=hexed("90 1F 07"))
        right = reply(data=hexed("90 1F 07") + ANSWERED[14:-2])
        assert whole_and_bytewise(asked, ANSWERED + right) == right

    def test_a_cut_answer_before_the_right_one_is_passed_over(self):
        for length in range(len(ANSWERED)):
            assert whole_and_bytewise(request(), ANSWERED[:length] + ANSWERED) == ANSWERED

    def test_a_start_byte_within_address_and_data(self):
        data = hexed("90 1F 00") + hexed("68 16 68 16 2C") * 3 + bytes(4)
        answer = reply(address="68161668166810", data=data)
        assert whole_and_bytewise(request(address="68161668166810"), b"\x68" + answer) == answer

    def test_what_looks_like_an_answer_within_the_answer_is_its_content(self):
        inner = reply(control=0xC1, data=hexed("00 11 22"))
        outer = reply(data=hexed("90 1F 00") + inner)
        asked = request(answer_lengths=(3 + len(inner),))
        assert whole_and_bytewise(asked, outer) == outer

    def test_anybody_answers_a_broadcast_but_only_with_digits(self):
        asked = request(address=BROADCAST)
        assert whole_and_bytewise(asked, ANSWERED) == ANSWERED
        assert whole_and_bytewise(asked, reply(address="0000202012021F")) is WrongAnswer
        assert whole_and_bytewise(asked, reply(address=BROADCAST)) is WrongAnswer

    def test_a_nameless_header_answers_only_the_question_for_the_address(self):
        asked = request(address=BROADCAST, control=0x03, data=hexed("81 0A 00"), answer_lengths=(3, 10))
        nameless = reply(address=BROADCAST, control=0x83, data=hexed("81 0A 00 18 02 12 20 20 00 00"))
        assert whole_and_bytewise(asked, nameless) == nameless
        assert whole_and_bytewise(asked, reply(address=BROADCAST, control=0x83, data=hexed("81 0A 00"))) is WrongAnswer


class TestStrangers:
    @pytest.mark.parametrize(
        ("answer", "text"),
        [
            (reply(address=OTHER), "meter 00002020120219, asked was 00002020120218"),
            (reply(meter_type=0x20), "type 20, asked was type 10"),
            (reply(control=0x84), "control 84, expected was 81 or C1"),
            (reply(data=ANSWERED[11:20]), "09 bytes of data .L., the profile expects 16"),
            (reply(control=0xC1, data=hexed("90 1F 00 11 22")), "05 bytes of data .L., the profile expects 03"),
            (reply(data=hexed("90 1F 01") + bytes(19)), "SER. 01, asked was 00: a late answer"),
            (reply(control=0xC1, data=hexed("01 11 22")), "SER. 01, asked was 00: a late answer"),
            (reply(data=hexed("D1 20 00") + bytes(19)), "data D1 20, asked was 90 1F"),
            (reply(control=0x01, address=OTHER), "another master .read data to 00002020120219."),
        ],
    )
    def test_a_sound_frame_that_answers_something_else(self, answer, text):
        assert whole_and_bytewise(request(), answer) is WrongAnswer
        refused(request(), b"\xfe\xfe" + answer).match("answered by .*" + text)

    def test_silence_and_an_echo_alone_are_no_answer(self):
        assert result(request().reader(), []) is NoResponse
        echo = request().encode()
        assert whole_and_bytewise(request(), echo) is NoResponse
        refused(request(), echo).match("echo")

    def test_bytes_that_are_no_frame_are_shown(self):
        refused(request(), hexed("FE FE 00")).match("3 bytes, no valid frame: FE FE 00")
        assert whole_and_bytewise(request(), request().encode() + b"\xff") is Garbled

    def test_a_refusal_cut_into_by_its_own_repetition_gives_no_value(self):
        inner = reply(control=0xC1, data=hexed("00 11 22"))
        assert whole_and_bytewise(request(), ANSWERED[:12] + inner) is WrongAnswer


class TestDamage:
    def test_every_single_bit_flip_is_refused(self):
        for bit in range(8 * len(ANSWERED)):
            damaged = bytearray(ANSWERED)
            damaged[bit // 8] ^= 1 << bit % 8
            assert whole_and_bytewise(request(), bytes(damaged)) in (Garbled, WrongAnswer), bit

    def test_every_truncation_is_refused(self):
        for length in range(1, len(ANSWERED)):
            assert whole_and_bytewise(request(), ANSWERED[:length]) is Garbled
            assert whole_and_bytewise(request(), ANSWERED[length:]) is Garbled

    def test_two_meters_at_once_are_refused(self):
        """An open-collector line shows the AND of two meters that answer a broadcast together."""
        other = reply(address=OTHER, data=hexed("90 1F 00 47 12") + bytes(17))
        both = bytes(a & b for a, b in zip(ANSWERED, other, strict=True))
        assert whole_and_bytewise(request(address=BROADCAST), both) is Garbled


class TestHostileInput:
    def test_as_many_bytes_as_are_allowed_and_one_more(self):
        limit = BUFFER_BYTES_MAX
        for noise in (b"\xfe", b"\x68", b"\x16", ANSWERED[:11]):
            babble = noise * limit
            assert whole_and_bytewise(request(), babble[: limit - len(ANSWERED)] + ANSWERED) in (ANSWERED, WrongAnswer)
            reader = request().reader()
            assert reader.feed(babble[:limit]) is None
            with pytest.raises(Garbled, match="babbles"):
                reader.feed(b"\0")

    def test_an_answer_beyond_the_limit_is_not_looked_for(self):
        babble = bytes(BUFFER_BYTES_MAX) + ANSWERED
        assert whole_and_bytewise(request(), babble) is Garbled

    def test_a_length_that_never_comes_does_not_hide_the_answer(self):
        for length in (0x16, 0x64, 0x65, 0xFF):
            head = ANSWERED[:10] + bytes([length])
            assert whole_and_bytewise(request(), head + ANSWERED) == ANSWERED

    def test_a_device_that_babbles_starts_costs_no_more_than_its_bytes(self):
        """68 and a believable header, over and over: each byte is looked at once, so this ends at once."""
        assert whole_and_bytewise(request(), ANSWERED[:11] * 93) in (Garbled, WrongAnswer)

    @given(st.binary(max_size=1500), st.integers(1, 50))
    def test_random_bytes_are_never_an_answer(self, noise, chunk):
        outcome = result(request().reader(), [noise[i : i + chunk] for i in range(0, len(noise), chunk)])
        assert outcome in (NoResponse, Garbled, WrongAnswer)

    pieces = st.sampled_from(
        [
            ANSWERED,
            request().encode(),
            ANSWERED[:11],
            ANSWERED[:20],
            ANSWERED[5:],
            reply(control=0xC1, data=b"\0\0\0"),
            reply(data=hexed("90 1F 01") + bytes(19)),
            reply(address=OTHER),
            b"\x68",
            b"\xfe\xfe",
        ]
    )

    @given(
        st.lists(pieces | st.binary(max_size=20), max_size=8).map(b"".join), st.lists(st.integers(1, 40), min_size=1)
    )
    def test_how_the_bytes_are_cut_makes_no_difference(self, data, sizes):
        cut, at = [], 0
        while at < len(data):
            size = sizes[len(cut) % len(sizes)]
            cut.append(data[at : at + size])
            at += size
        assert result(request().reader(), cut) == result(request().reader(), [data])


class TestRequestReader:
    def feed(self, reader, data):
        return [frame for byte in data if (frame := reader.feed(bytes([byte])))]

    def test_requests_in_a_stream_whole_and_byte_by_byte(self):
        first, second = request(), request(address=OTHER, data=hexed("1F 90 01"))
        stream = b"\x68\x00" + first.encode() + ANSWERED + second.encode() + b"\xfe"
        reader = RequestReader()
        assert reader.feed(stream) == first.frame
        assert reader.feed(b"") == second.frame
        assert reader.feed(b"") is None
        assert self.feed(RequestReader(), stream) == [first.frame, second.frame]

    def test_a_broken_request_is_nobodys_and_the_next_is_heard(self):
        broken = bytearray(request().encode())
        broken[-2] ^= 1
        assert self.feed(RequestReader(), bytes(broken) + request().encode()) == [request().frame]

    def test_silence_ends_what_will_not_become_a_frame(self):
        reader = RequestReader()
        assert reader.feed(ASKED[:-1]) is None
        reader.silence()
        assert reader.feed(ASKED[-1:]) is None

    @given(st.lists(st.binary(max_size=300), max_size=20))
    def test_noise_is_not_kept(self, chunks):
        reader = RequestReader()
        for chunk in chunks:
            request = reader.feed(chunk)
            while request:
                request = reader.feed(b"")
            assert len(reader._buffer) < cjt188.OVERHEAD_BYTES + cjt188.DATA_BYTES_MAX

    def test_starts_without_end_are_not_kept(self):
        reader = RequestReader()
        for _ in range(3000):
            assert reader.feed(b"\x68") is None
        assert len(reader._buffer) < cjt188.OVERHEAD_BYTES + cjt188.DATA_BYTES_MAX


def test_a_reader_is_what_the_gateway_expects():
    assert isinstance(request().reader(), AnswerReader)
