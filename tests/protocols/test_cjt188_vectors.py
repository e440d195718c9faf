"""Third-party CJ/T 188 byte strings (../shared/vectors/cjt188.json), read in place: value, refusal, bit flips, cuts."""

import json
from pathlib import Path

import pytest

from protocols import cjt188, cjt188_data, cjt188_dialogue, profile
from protocols.cjt188 import Request, RequestReader
from protocols.cjt188_data import Cjt188Spec
from protocols.errors import Garbled, NoResponse, WrongAnswer

FILE = Path(__file__).parents[3] / "shared/vectors/cjt188.json"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="../shared/vectors is not beside this checkout")
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))["vectors"] if FILE.exists() else []
VALID = [vector for vector in VECTORS if vector["checksum_ok"]]
INVALID = [vector for vector in VECTORS if not vector["checksum_ok"]]
SPEC = Cjt188Spec()


def by_id(vector):
    return vector["id"]


def is_reply(vector):
    return cjt188.parse_frame(data_of(vector), vector["frame_offset"]).is_reply


def data_of(vector):
    return bytes.fromhex(vector["hex"])


def request_for(answer):
    """The request that a captured answer belongs to, as the answer itself tells it."""
    lengths = {cjt188.READ_DATA: (0x16,), cjt188.READ_ADDRESS: (3, 10)}.get(answer.request_control, (5,))
    frame = cjt188.Frame(
        meter_type=answer.meter_type, address=answer.address, control=answer.request_control, data=answer.data[:3]
    )
    return Request(frame=frame, answer_lengths=lengths)


def heard(request, data, *, bytewise):
    """The frame that a reader finds in bytes, or None where it says why there is none."""
    reader = request.reader()
    try:
        for chunk in [bytes([byte]) for byte in data] if bytewise else [data]:
            found = reader.feed(chunk)
            if found:
                return found
        reader.close()
    except (Garbled, WrongAnswer, NoResponse):
        return None


def check_expectations(frame, expect):
    """Every stated value, each by its own name; a name that is not known here fails the test."""
    record = None
    if frame.is_reply and frame.request_control == cjt188.READ_DATA:
        record = cjt188_data.decode(SPEC, SPEC.fields, frame.content)
    for key, stated in expect.items():
        match key:
            case "type":
                assert f"{frame.meter_type:02X}" == stated
            case "address" | "address_wire":
                assert frame.address == stated
            case "ctrl":
                assert f"{frame.control:02X}" == stated
            case "di_wire":
                assert frame.identifier.hex().upper() == stated
            case "ser":
                assert frame.serial == stated
            case "op":
                assert frame.content.hex().upper() == stated
            case "current":
                assert record.total_ml == volume_ml(stated)
            case "settlement":
                assert record.settled_ml == volume_ml(stated)
            case "unit":
                assert frame.content[4] == int(stated, 16)
            case "time":
                assert record.clock is None if stated is None else str(record.clock) == stated.split(" (")[0]
            case "status":
                assert (record.status if record else frame.content).hex().upper() == stated
            case _:
                pytest.fail(f"expectation {key} is not checked")


def volume_ml(cubic_metres):
    whole, hundredths = cubic_metres.split(".")
    return (int(whole) * 100 + int(hundredths)) * 10_000


def test_all_of_them_are_tested():
    assert (len(VECTORS), len(VALID), len(INVALID)) == (46, 37, 9)
    assert sum(map(is_reply, VALID)) == 14


@pytest.mark.parametrize("vector", VALID, ids=by_id)
def test_a_frame_with_a_valid_checksum_says_what_is_stated(vector):
    data = data_of(vector)
    ((offset, frame),) = cjt188.find_frames(data)
    assert offset == vector["frame_offset"]
    assert len(data) - offset - len(frame.encode()) == vector["trailing_bytes"]
    check_expectations(frame, vector["expect"])
    for bytewise in (False, True):
        if frame.is_reply:
            assert heard(request_for(frame), data, bytewise=bytewise) == frame.encode()
        else:
            reader = RequestReader()
            chunks = [bytes([byte]) for byte in data] if bytewise else [data]
            assert [found for chunk in chunks if (found := reader.feed(chunk))] == [frame]


@pytest.mark.parametrize("vector", INVALID, ids=by_id)
def test_a_frame_with_an_invalid_checksum_is_refused(vector):
    data = data_of(vector)
    assert list(cjt188.find_frames(data)) == []
    if "checksum_should_be" not in vector:
        return  # B07 lost a byte: no request can be told from it
    mended = bytearray(data)
    mended[-2] = int(vector["checksum_should_be"], 16)
    frame = cjt188.parse_frame(mended, vector["frame_offset"])
    assert frame is not None, "the checksum alone is wrong"
    if "current" in vector["expect"]:
        check_expectations(frame, vector["expect"])  # what is meant is read once the checksum is mended
    for bytewise in (False, True):
        if frame.is_reply:
            assert heard(request_for_any(frame), mended, bytewise=bytewise) == frame.encode()
            assert heard(request_for_any(frame), data, bytewise=bytewise) is None
        else:
            assert RequestReader().feed(data) is None


def request_for_any(answer):
    """The request for a synthetic answer, refusals among them."""
    data = b"\x90\x1f" + answer.data[:1] if answer.is_abnormal else answer.data[:3]
    frame = cjt188.Frame(
        meter_type=answer.meter_type, address=answer.address, control=answer.request_control, data=data
    )
    return Request(frame=frame, answer_lengths=(len(answer.data),))


def test_a_frame_that_lost_a_byte_is_refused_by_every_reader():
    """B07: six address bytes. Nobody's answer, whichever meter was asked and however."""
    (lost,) = [data_of(vector) for vector in INVALID if vector["id"] == "B07"]
    for identifier in ("1F 90 00", "90 1F 00"):
        for address in ("00000805000001", cjt188.BROADCAST):
            data = bytes.fromhex(identifier)
            frame = cjt188.Frame(meter_type=0x10, address=address, control=cjt188.READ_DATA, data=data)
            assert heard(Request(frame=frame, answer_lengths=(0x16,)), lost, bytewise=False) is None


@pytest.mark.parametrize("vector", [vector for vector in VALID if is_reply(vector)], ids=by_id)
@pytest.mark.parametrize("bytewise", [False, True])
class TestDamagedAnswers:
    def test_every_single_bit_flip_is_refused_or_changes_nothing(self, vector, bytewise):
        data, offset = data_of(vector), vector["frame_offset"]
        frame = cjt188.parse_frame(data, offset)
        for bit in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            found = heard(request_for(frame), bytes(damaged), bytewise=bytewise)
            assert found == (frame.encode() if bit // 8 < offset else None), f"bit {bit}"

    def test_every_cut_is_refused_or_changes_nothing(self, vector, bytewise):
        data, offset = data_of(vector), vector["frame_offset"]
        frame = cjt188.parse_frame(data, offset)
        for length in range(len(data)):
            assert heard(request_for(frame), data[:length], bytewise=bytewise) is None
            found = heard(request_for(frame), data[length:], bytewise=bytewise)
            assert found == (frame.encode() if length <= offset else None)


def test_captured_questions_and_answers_belong_together():
    """A03 asks what A04 answers: the two ends of one captured exchange, by the way of the line."""
    hexes = {vector["id"]: data_of(vector) for vector in VECTORS}
    for asked, answered, volume in (("A03", "A04", 2_000_000), ("A07", "A05", 123_000_000), ("A14", "A13", 0)):
        measurement = cjt188_dialogue.decode_case(SPEC, [(hexes[asked], hexes[answered])])
        assert measurement.volume_ml == volume


VALVE_REQUESTS = [vector for vector in VALID if vector["kind"].startswith("request_valve")]


@pytest.mark.parametrize("vector", VALVE_REQUESTS, ids=by_id)
def test_a_valve_command_of_others_is_the_one_that_we_would_send_or_none(vector):
    """55 and 99 byte by byte, whatever control code and order; 00, 66 and 77 cannot be said at all."""
    ((_, frame),) = cjt188.find_frames(data_of(vector))
    orders = {b"\xa0\x17": "A017", b"\x17\xa0": "17A0"}
    valve = cjt188_data.Valve(open=0x55, close=0x99, control=frame.control, di_order=orders[frame.identifier])
    spec = Cjt188Spec(valve=valve, meter_type=frame.meter_type)
    asked = cjt188_dialogue.valve_asked(spec, frame)
    if vector["expect"]["op"] not in ("55", "99"):
        assert asked is None
        return
    assert asked == (vector["expect"]["op"] == "55")
    station = cjt188_dialogue.Station(frame.address)
    while station.next_serial() != (frame.serial - 1) % 256:
        pass
    assert cjt188_dialogue.valve_request(spec, station, is_open=asked).frame.encode() == frame.encode()


def test_valve_commands_of_others_are_all_there_and_one_is_answered():
    assert sorted(vector["expect"]["op"] for vector in VALVE_REQUESTS) == ["00", *["55"] * 4, "66", "77", *["99"] * 3]
    close, answer = (next(vector for vector in VALID if vector["id"] == name) for name in ("V08", "V10"))
    ((_, asked),) = cjt188.find_frames(data_of(close))
    found = heard(request_for(cjt188.parse_frame(data_of(answer), 3)), data_of(answer), bytewise=True)
    assert cjt188.parse_frame(found).serial == asked.serial
    spec = profile.load("cjt188-water-valve-2a").spec
    assert cjt188_dialogue.valve_position(spec, cjt188_dialogue.valve_answer(found)) == "closed"
