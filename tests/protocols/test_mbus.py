"""M-Bus frames: both sides of the line, whole and byte by byte, noise, echoes, foreign and late answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import mbus
from protocols.answer import BUFFER_BYTES_MAX
from protocols.errors import Garbled, NoResponse, UsageError, WrongAnswer
from protocols.mbus import Frame, Identity, Request, RequestReader

METER = Identity(number="00123456", manufacturer=0x4024, version=1, medium=7)
OTHER = Identity(number="00123457", manufacturer=0x4024, version=1, medium=7)
ACK = b"\xe5"
RESET = mbus.reset_link(5)
ASK = mbus.request_data(5, frame_count_bit=True)
SELECT = mbus.select(Identity(number="00123456"))
ASK_SELECTED = mbus.request_data(mbus.SELECTED, frame_count_bit=True, identity=Identity(number="00123456"))


def telegram(identity=METER, *, address=5, ci=0x72, data=b"\x2f"):
    return Frame(control=8, address=address, ci=ci, data=identity.encode() + data).encode()


ANSWER = telegram()


def hear(request, data, *, bytewise=False):
    """What a reader makes of bytes that come until the time is up."""
    reader = request.reader()
    for chunk in [bytes([byte]) for byte in data] if bytewise else [data]:
        answer = reader.feed(chunk)
        if answer is not None:
            return answer
    return reader.close()


class TestFrames:
    # C, A, CI and data beside the bytes that the public M-Bus documentation prints.
    @pytest.mark.parametrize(
        ("frame", "wire"),
        [
            (RESET.frame, "10 40 05 45 16"),
            (mbus.request_data(1, frame_count_bit=False).frame, "10 5B 01 5C 16"),
            (mbus.request_data(1, frame_count_bit=True).frame, "10 7B 01 7C 16"),
            (mbus.select(Identity(number="12345678")).frame, "68 0B 0B 68 53 FD 52 78 56 34 12 FF FF FF FF B2 16"),
            (Frame(control=8, address=1, ci=0x70), "68 03 03 68 08 01 70 79 16"),
        ],
    )
    def test_rows(self, frame, wire):
        assert frame.encode() == bytes.fromhex(wire)
        assert mbus.parse_frame(bytes.fromhex(wire)) == frame

    @given(
        st.builds(Frame, control=st.integers(0, 255), address=st.integers(0, 255)),
        st.none() | st.tuples(st.integers(0, 255), st.binary(max_size=252)),
    )
    def test_round_trip(self, short, rest):
        frame = short if rest is None else Frame(control=short.control, address=short.address, ci=rest[0], data=rest[1])
        assert mbus.parse_frame(frame.encode()) == frame
        assert list(mbus.find_frames(b"\x68\x10" + frame.encode() + b"\x68")) == [(2, frame)]

    @pytest.mark.parametrize("wire", ["68 00 00 68 00 16", "68 02 02 68 08 05 0D 16", "68 03 04 68 08 01 70 79 16"])
    def test_lengths_that_no_frame_has(self, wire):
        assert mbus.parse_frame(bytes.fromhex(wire)) is None

    def test_data_that_do_not_fit(self):
        with pytest.raises(AssertionError):
            Frame(control=8, address=1, ci=0x72, data=bytes(253)).encode()

    @pytest.mark.parametrize("wire", [ANSWER, RESET.encode(), SELECT.encode()])
    def test_every_bit_flip_and_every_cut_is_no_frame(self, wire):
        assert mbus.parse_frame(wire)
        for bit in range(8 * len(wire)):
            damaged = bytearray(wire)
            damaged[bit // 8] ^= 1 << bit % 8
            assert mbus.parse_frame(damaged) is None
        for length in range(len(wire)):
            assert mbus.parse_frame(wire[:length]) is None


class TestIdentity:
    def test_the_bytes_of_a_capture(self):
        identity = mbus.decode_identity(bytes.fromhex("78 03 49 11 77 04 0E 16"))
        assert identity == Identity(number="11490378", manufacturer=0x0477, version=0x0E, medium=0x16)
        assert identity.manufacturer_name == "ACW"
        assert str(identity) == "1149037877040E16"
        assert mbus.decode_identity(bytes.fromhex("11 49 03 78 04 77 0E 16"), high_byte_first=True) == identity

    def test_a_number_alone(self):
        assert str(Identity(number="00123456")) == "00123456"

    @pytest.mark.parametrize(
        ("mask", "selects"),
        [
            (Identity(), True),
            (Identity(number="0012FFFF"), True),
            (Identity(number="F012345F"), True),
            (Identity(number="1FFFFFFF"), False),
            (Identity(number="00123457"), False),
            (Identity(manufacturer=0x4024), True),
            (Identity(manufacturer=0x4025), False),
            (Identity(version=1, medium=7), True),
            (Identity(version=2), False),
            (Identity(medium=6), False),
        ],
    )
    def test_who_is_selected(self, mask, selects):
        assert METER.is_selected_by(mask) is selects
        assert mbus.decode_identity(mask.encode()) == mask

    def test_the_fixed_structure_says_the_number_alone(self):
        frame = Frame(control=8, address=1, ci=0x73, data=bytes.fromhex("78 56 34 12 0A 00"))
        assert frame.identity == Identity(number="12345678")
        assert frame.identity.is_selected_by(Identity(number="12345678", manufacturer=1, version=2, medium=3))
        turned = Frame(control=8, address=1, ci=0x77, data=bytes.fromhex("12 34 56 78 0A 00"))
        assert turned.identity == frame.identity

    @pytest.mark.parametrize(("ci", "data"), [(None, b""), (0x78, bytes(9)), (0x72, bytes(7)), (0x73, bytes(3))])
    def test_frames_that_do_not_say(self, ci, data):
        assert Frame(control=8, address=1, ci=ci, data=data).identity is None


class TestRequests:
    @pytest.mark.parametrize("address", [251, 252, 254, 255])
    def test_addresses_of_no_single_meter(self, address):
        with pytest.raises(UsageError, match="no single meter's"):
            mbus.reset_link(address)

    def test_an_answer_is_no_request(self):
        with pytest.raises(UsageError, match="no request of a master"):
            Request(frame=Frame(control=8, address=1))

    def test_the_longest_answer(self):
        assert RESET.response_bytes == SELECT.response_bytes == 1
        longest = Frame(control=8, address=5, ci=0x72, data=bytes(252)).encode()
        assert ASK.response_bytes == len(longest) == 261


@pytest.mark.parametrize("bytewise", [False, True])
class TestAcknowledgements:
    @pytest.mark.parametrize("request_", [RESET, SELECT])
    @pytest.mark.parametrize("before", [b"", b"\0", b"\xff\xfe", "echo", "noise and echo"])
    def test_heard(self, request_, before, bytewise):
        echo = {"echo": request_.encode(), "noise and echo": b"\0" + request_.encode()}
        assert hear(request_, echo.get(before, before) + ACK, bytewise=bytewise) == ACK

    @pytest.mark.parametrize("request_", [RESET, SELECT, mbus.reset_link(0xA5)])
    def test_heard_behind_what_is_left_of_our_own_request(self, request_, bytewise):
        """Transceivers that listen while they send lose or bend its first bytes; the 68 further in is no answer's."""
        sent = request_.encode()
        for lost in range(1, len(sent)):
            assert hear(request_, sent[lost:] + ACK, bytewise=bytewise) == ACK
            if sent[lost] != 0xE5:  # that one, heard first, looks the same as the meter's
                with pytest.raises((Garbled, NoResponse)):
                    hear(request_, sent[lost:], bytewise=bytewise)
        for bent in (b"\0", b"\xff", b"\0\xff"):
            assert hear(request_, bent + sent[len(bent) :] + ACK, bytewise=bytewise) == ACK

    def test_one_within_what_is_left_of_our_own_request_does_not_count(self, bytewise):
        request = mbus.reset_link(0xA5)
        assert request.encode() == bytes.fromhex("10 40 A5 E5 16"), "its checksum is an E5"
        for lost in (1, 2):
            with pytest.raises(Garbled):
                hear(request, request.encode()[lost:], bytewise=bytewise)

    @pytest.mark.parametrize("request_", [RESET, SELECT])
    def test_a_telegram_is_not_taken_for_what_is_left_of_our_own_request(self, request_, bytewise):
        """A late one, whole or from anywhere in it, that ends as the request does; more than was sent was not ours."""
        end = request_.encode()[-2:]
        tail = b"\x68\x13\x13\x68\x08\x05" + end
        for late in (tail, request_.encode() + tail, b"\x68" + request_.encode()[1:-1] + b"\0" + end):
            with pytest.raises((Garbled, WrongAnswer)):
                hear(request_, late + ACK, bytewise=bytewise)

    def test_one_within_our_own_echo_does_not_count(self, bytewise):
        request = mbus.select(Identity(number="00E50000", manufacturer=0xE5E5))
        assert 0xE5 in request.encode()
        with pytest.raises(NoResponse, match="echo"):
            hear(request, request.encode(), bytewise=bytewise)
        assert hear(request, request.encode() + ACK, bytewise=bytewise) == ACK

    def test_a_late_telegram_is_none(self, bytewise):
        late = telegram(data=b"\x04\x13\xe5\0\0\0")
        with pytest.raises(WrongAnswer, match=r"meter 5 with data, where an acknowledgement .* late answer"):
            hear(RESET, late, bytewise=bytewise)
        with pytest.raises(WrongAnswer):
            hear(RESET, late + ACK, bytewise=bytewise)

    def test_silence_and_noise(self, bytewise):
        with pytest.raises(NoResponse, match=r"^no answer$"):
            hear(RESET, b"", bytewise=bytewise)
        with pytest.raises(Garbled, match="2 bytes, no valid frame: 12 34"):
            hear(RESET, b"\x12\x34", bytewise=bytewise)

    def test_our_own_request_damaged_is_no_silence(self, bytewise):
        with pytest.raises(Garbled):
            hear(RESET, RESET.encode()[:-1] + b"\x17" + ACK, bytewise=bytewise)


@pytest.mark.parametrize("bytewise", [False, True])
class TestData:
    @pytest.mark.parametrize(
        "before",
        [
            b"",
            b"\0\xff",
            ASK.encode(),
            b"\x68",
            b"\x68\x13",
            b"\x10",
            b"\x68\x13\x13\x68\x09",
            telegram(address=6),
            ANSWER[:-1] + b"\x17",
        ],
        ids=["nothing", "noise", "echo", "start", "start and length", "short start", "head", "foreign", "damaged"],
    )
    @pytest.mark.parametrize("behind", [b"", b"\0\x68"])
    def test_heard(self, before, behind, bytewise):
        assert hear(ASK, before + ANSWER + behind, bytewise=bytewise) == ANSWER

    @pytest.mark.parametrize("control", [0x08, 0x18, 0x28, 0x38])
    def test_flags_of_the_control_code_do_not_matter(self, control, bytewise):
        answer = Frame(control=control, address=5, ci=0x72, data=b"1").encode()
        assert hear(ASK, answer, bytewise=bytewise) == answer

    def test_a_frame_within_an_answer_is_its_content(self, bytewise):
        answer = telegram(data=telegram(data=b"inner"))
        assert hear(ASK, answer, bytewise=bytewise) == answer

    @pytest.mark.parametrize("request_", [ASK, mbus.request_data(106, frame_count_bit=True)])
    def test_behind_what_is_left_of_our_own_request(self, request_, bytewise):
        """Address 106 has E5 for a checksum; without its first byte that was taken for an acknowledgement."""
        sent, answer = request_.encode(), telegram(address=request_.frame.address)
        for lost in range(1, len(sent)):
            if sent[lost] != 0xE5:
                assert hear(request_, sent[lost:] + answer, bytewise=bytewise) == answer

    def test_behind_an_acknowledgement_none_counts(self, bytewise):
        """The meter is an answer behind: this telegram was asked for earlier, if the meter sends it at all."""
        for heard in (ACK, ACK + ANSWER, ASK.encode() + ACK + ANSWER, b"\0" + ACK):
            with pytest.raises(WrongAnswer, match=r"acknowledgement .* late answer"):
                hear(ASK, heard, bytewise=bytewise)

    @pytest.mark.parametrize(
        ("heard", "said"),
        [
            (telegram(address=6), "answered by meter 6, asked was 5"),
            (RESET.encode(), "control 40, which is no answer"),
            (Frame(control=0x08, address=5).encode(), "a short frame"),
            (Frame(control=0x53, address=5, ci=0x72).encode(), "control 53"),
        ],
    )
    def test_other_frames(self, heard, said, bytewise):
        with pytest.raises(WrongAnswer, match=said):
            hear(ASK, heard, bytewise=bytewise)

    def test_our_own_echo_is_silence(self, bytewise):
        with pytest.raises(NoResponse, match="echo"):
            hear(ASK, ASK.encode(), bytewise=bytewise)

    def test_every_cut_and_every_flipped_bit_is_refused(self, bytewise):
        for length in range(len(ANSWER)):
            with pytest.raises((NoResponse, Garbled)):
                hear(ASK, ANSWER[:length], bytewise=bytewise)
        for bit in range(8 * len(ANSWER)):
            damaged = bytearray(ANSWER)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises((Garbled, WrongAnswer)):
                hear(ASK, bytes(damaged), bytewise=bytewise)


class TestSelected:
    @pytest.mark.parametrize("address", [0, 5, 250, 253])
    def test_a_meter_answers_with_its_own_address_or_fd(self, address):
        assert hear(ASK_SELECTED, telegram(address=address)) == telegram(address=address)

    @pytest.mark.parametrize(
        ("heard", "said"),
        [
            (telegram(OTHER), "meter 0012345724400107, asked was 00123456"),
            (telegram(address=254), "address 254, no meter's"),
            (Frame(control=8, address=5, ci=0x78, data=b"\x2f").encode(), "CI 78.* does not say whose it is"),
        ],
    )
    def test_other_meters(self, heard, said):
        with pytest.raises(WrongAnswer, match=said):
            hear(ASK_SELECTED, heard)

    @pytest.mark.parametrize("ci", [0x70, 0x71])
    def test_reports_name_nobody(self, ci):
        report = Frame(control=8, address=5, ci=ci, data=b"\x08").encode()
        assert hear(ASK_SELECTED, report) == report


class TestLimits:
    def test_a_babbling_device(self):
        reader = ASK.reader()
        assert reader.feed(bytes(BUFFER_BYTES_MAX)) is None
        with pytest.raises(Garbled, match="babbles"):
            reader.feed(b"\0")

    def test_an_answer_in_the_last_bytes_that_fit(self):
        noise = bytes(BUFFER_BYTES_MAX - len(ANSWER))
        assert hear(ASK, noise + ANSWER) == ANSWER

    @given(st.binary(max_size=400), st.sampled_from([ASK, ASK_SELECTED, RESET, SELECT]))
    def test_hostile_bytes_end_in_an_answer_or_an_error_of_ours(self, data, request_):
        try:
            answer = hear(request_, data)
        except (NoResponse, Garbled, WrongAnswer):
            pass
        else:
            assert answer in data

    @given(st.lists(st.sampled_from([ANSWER, ACK, b"\x68", b"\x10", RESET.encode(), ASK.encode(), b"\0"]), max_size=8))
    def test_whole_and_byte_by_byte_are_the_same(self, parts):
        def outcome(request, *, bytewise):
            try:
                return hear(request, b"".join(parts), bytewise=bytewise)
            except (NoResponse, Garbled, WrongAnswer) as error:
                return type(error), str(error)

        for request in (ASK, RESET):
            assert outcome(request, bytewise=True) == outcome(request, bytewise=False)


class TestRequestReader:
    @pytest.mark.parametrize("bytewise", [False, True])
    def test_requests_among_answers_and_noise(self, bytewise):
        heard = b"\0" + RESET.encode() + ACK + ASK.encode() + ANSWER + SELECT.encode() + b"\x68\x09"
        reader, found = RequestReader(), []
        for chunk in [bytes([byte]) for byte in heard] if bytewise else [heard]:
            frame = reader.feed(chunk)
            while frame:
                found.append(frame)
                frame = reader.feed(b"")
        assert found == [RESET.frame, ASK.frame, SELECT.frame]

    def test_a_request_right_behind_noise_that_looks_like_a_start(self):
        reader = RequestReader()
        assert reader.feed(b"\x68\x0b\x0b") is None
        reader.silence()
        assert reader.feed(RESET.encode()) == RESET.frame

    def test_noise_is_not_kept(self):
        reader = RequestReader()
        for _ in range(100):
            assert reader.feed(b"\x68\x68\x68\x10\0\xff" * 50) is None
        assert len(reader._buffer) <= mbus.FRAME_BYTES_MAX

    @given(st.binary(max_size=300))
    def test_hostile_bytes(self, data):
        reader = RequestReader()
        reader.feed(data)
        reader.silence()
        assert reader.feed(ASK.encode()) == ASK.frame
