"""Simulated Modbus and CJ/T 188 meters, frame by frame, with every fault."""

import random

import pytest

from gateway.responder import RESPONDERS, Cjt188Responder, MbusResponder, ModbusResponder, SimulatedMeter
from gateway.village_file import parse
from protocols import cjt188, cjt188_dialogue, mbus, mbus_dialogue, mbus_search, modbus, profile, registers
from protocols.errors import Garbled, MeterFault, MeterRefused, NoResponse, WrongAnswer

ADDRESSES = {"usw-dn15-40": 17, "xintai": 18, "tuf-2000": 19}
SHOWN_ML = {"usw-dn15-40": 802_609_751, "xintai": 802_609_000, "tuf-2000": 802_609_751}  # xintai: whole litres


def village(fault="", names=("usw-dn15-40",), start_m3="802.609751", rest=""):
    text = "".join(
        f'[[meter]]\nprofile = "{name}"\naddress = "{ADDRESSES[name]}"\nstart_m3 = "{start_m3}"\nusage = []\n{rest}'
        + (f"fault = [{{ {fault} }}]\n" if fault else "")
        for name in names
    )
    chance = random.Random(5)
    meters = [SimulatedMeter(plan, chance=chance) for plan in parse(text, where="v").meters]
    return ModbusResponder(meters), meters


def request(unit=17, function=3, address=0x204, count=4):
    return modbus.ReadRequest(unit=unit, function=function, address=address, count=count)


def ask(responder, query, wall_ms=0):
    (answer,) = responder.hear(query.encode(), wall_ms=wall_ms)
    return answer


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_profile_reads_what_its_simulated_meter_shows(name):
    responder, (meter,) = village(names=[name])
    dialogue = profile.load(name).protocol.dialogue(meter.plan.profile.spec, ADDRESSES[name])
    told, query = [], next(dialogue)
    with pytest.raises(StopIteration) as end:
        while True:
            answer = ask(responder, query, wall_ms=1_800_000_000_000)
            told.append(answer.volume_ml)
            assert query.reader().feed(answer.frame) == answer.frame
            query = dialogue.send(answer.frame)
    assert end.value.value.volume_ml == SHOWN_ML[name]
    assert [volume_ml for volume_ml in told if volume_ml is not None] == [SHOWN_ML[name]], "only one block is the total"
    assert meter.counts.requests == len(told)


def test_requests_come_in_pieces_and_in_heaps():
    responder, _ = village(names=list(ADDRESSES))
    frame = request().encode()
    assert [len(responder.hear(bytes((byte,)), wall_ms=0)) for byte in frame] == [0] * 7 + [1]
    heap = frame + request(unit=18, address=1, count=2).encode() + request(unit=99).encode() + frame
    assert [answer.meter for answer in responder.hear(heap, wall_ms=0)] == ["17", "18", "17"]


def test_half_a_request_is_forgotten_after_a_pause():
    responder, _ = village()
    frame = request().encode()
    responder.hear(frame[:5], wall_ms=0)
    responder.pause()
    assert responder.hear(frame[5:], wall_ms=0) == []
    responder.pause()
    assert len(responder.hear(frame, wall_ms=0)) == 1


@pytest.mark.parametrize(
    "frame", [b"\x11\x06\x00\x01\x00\x02", b"\x11\x10\x00\x01\x00\x01\x02\x00\x05", b"\x00\x03\x02\x04\x00\x04"]
)
def test_writes_and_broadcasts_get_no_answer(frame):  # fmt: skip
    responder, (meter,) = village()
    assert responder.hear(modbus.add_crc(frame), wall_ms=0) == []
    assert meter.counts.requests == 0


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (request(function=4), modbus.ILLEGAL_FUNCTION),
        (request(address=0x203), modbus.ILLEGAL_DATA_ADDRESS),
        (request(address=0x205), modbus.ILLEGAL_DATA_ADDRESS),
        (request(count=5), modbus.ILLEGAL_DATA_ADDRESS),
    ],
)
def test_a_healthy_meter_refuses_what_it_does_not_have(query, code):
    responder, _ = village()
    assert ask(responder, query).frame == modbus.encode_exception(query, code)


def test_part_of_the_total_tells_no_volume():
    responder, _ = village()
    answer = ask(responder, request(count=3))
    assert (len(modbus.decode_response(answer.frame)), answer.volume_ml) == (3, None)


def test_a_total_beyond_the_registers_is_a_device_failure():
    responder, _ = village(names=["tuf-2000"], start_m3="999999999")  # int32 holds it
    assert ask(responder, request(unit=19, address=8)).volume_ml == 999_999_999_000_000
    plan = parse('[[meter]]\nprofile = "tuf-2000"\naddress = "19"\nusage = []\n', where="v").meters[0]

    class Beyond:
        def volume_ml(self, wall_ms):
            return 2**31 * 10**6

    import msgspec

    responder = ModbusResponder(
        [SimulatedMeter(msgspec.structs.replace(plan, register=Beyond()), chance=random.Random())]
    )
    query = request(unit=19, address=8)
    with pytest.raises(MeterRefused, match="device failure"):
        modbus.decode_response(ask(responder, query).frame)


def outcome(responder, query):
    """What a master makes of the answer."""
    reader = query.reader()
    for answer in responder.hear(query.encode(), wall_ms=0):
        frame = reader.feed(answer.before + answer.frame + answer.after)
        if frame:
            return modbus.decode_response(frame), answer
    return reader.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("kind = 'dead'", NoResponse),
        ("kind = 'garbage'", Garbled),
        ("kind = 'flip_bit'", Garbled),
        ("kind = 'wrong_unit', address = '18'", WrongAnswer),
        ("kind = 'exception', code = 6", MeterRefused),
    ],
)
def test_a_fault_is_what_it_says(fault, error):
    responder, (meter,) = village(fault)
    for _ in range(50):
        with pytest.raises(error):
            outcome(responder, request())
    assert meter.counts.requests == 50


@pytest.mark.parametrize("fault", ["garbage", "flip_bit", "wrong_unit', address = '18", "exception', code = '6"])
def test_a_spoiled_answer_tells_no_volume(fault):
    fault = f"kind = '{fault}'".replace("'6'", "6")
    responder, _ = village(fault)
    assert ask(responder, request()).volume_ml is None


def test_a_flipped_bit_is_one_bit():
    responder, _ = village("kind = 'flip_bit'")
    good = ask(village()[0], request()).frame
    for _ in range(100):
        wrong = ask(responder, request()).frame
        assert sum((a ^ b).bit_count() for a, b in zip(good, wrong, strict=True)) == 1


def test_noise_stands_around_a_good_answer():
    responder, _ = village("kind = 'noise', before = 3, after = 2")
    values, answer = outcome(responder, request())
    assert (len(answer.before), len(answer.after)) == (3, 2)
    block = registers.registers_of(request(), values)
    assert registers.measure(profile.load("usw-dn15-40").spec, block).volume_ml == answer.volume_ml == 802_609_751


def test_late_is_later_than_the_usual_delay():
    responder, _ = village("kind = 'late', late_ms = 700", rest="answer_delay_ms = 20\n")
    assert ask(responder, request()).delay_s == pytest.approx(0.72)


def test_a_fault_lasts_from_and_to():
    responder, _ = village("kind = 'dead', from = 1970-01-01T00:00:10Z, to = 1970-01-01T00:00:20Z")
    alive = [len(responder.hear(request().encode(), wall_ms=at)) for at in (9_999, 10_000, 19_999, 20_000)]
    assert alive == [1, 0, 0, 1]


def test_a_rate_is_a_share_and_the_seed_decides():
    def struck():
        responder, _ = village("kind = 'dead', rate = 0.25")
        return [len(responder.hear(request().encode(), wall_ms=0)) for _ in range(2000)]

    assert 400 < struck().count(0) < 600
    assert struck() == struck()


# -- CJ/T 188 ---------------------------------------------------------------------------------------------------------

FIRST, SECOND = "00000805000001", "00000805000002"


def line(*, fault="", names=("cjt188-water",), start_m3="802.609751"):
    """CJ/T 188 meters from address FIRST on."""
    text = "".join(
        f'[[meter]]\nprofile = "{name}"\naddress = "{int(FIRST) + index:014d}"\nstart_m3 = "{start_m3}"\nusage = []\n'
        + (f"fault = [{{ {fault} }}]\n" if fault else "")
        for index, name in enumerate(names)
    )
    chance = random.Random(5)
    meters = [SimulatedMeter(plan, chance=chance) for plan in parse(text, where="v").meters]
    return Cjt188Responder(meters), meters


def cjt_read(responder, *, spec=None, address=FIRST, generator=cjt188_dialogue.dialogue):
    """What a master makes of reading a meter once, and the answers that it got."""
    spec = spec or profile.load("cjt188-water").spec
    reading, answers = generator(spec, cjt188_dialogue.parse_address(address)), []
    query = next(reading)
    try:
        while True:
            reader, frame = query.reader(), None
            for answer in responder.hear(query.encode(), wall_ms=0):
                answers.append(answer)
                frame = frame or reader.feed(answer.before + answer.frame + answer.after)
            if frame is None:
                reader.close()
            query = reading.send(frame)
    except StopIteration as end:
        return end.value, answers


@pytest.mark.parametrize(
    ("name", "shown_ml"),
    [
        ("cjt188-water", 802_600_000),
        ("cjt188-water-1f90", 802_600_000),
        ("cjt188-water-probe", 802_600_000),
        ("cjt188-short", 802_600_000),
        ("cjt188-litres", 802_609_000),
        ("cjt188-litres-2", 802_609_750),
        ("rd-w10", 802_609_751),
    ],
)
def test_a_cjt188_profile_reads_what_its_simulated_meter_shows(name, shown_ml):
    responder, (meter,) = line(names=[name])
    measurement, answers = cjt_read(responder, spec=meter.plan.profile.spec)
    assert measurement.volume_ml == shown_ml
    assert [answer.volume_ml for answer in answers] == [shown_ml]
    assert meter.counts.requests == 1


def settled_line(settled, *, name="cjt188-water", start="123.45"):
    text = f'[[meter]]\nprofile = "{name}"\naddress = "{FIRST}"\nstart_m3 = "{start}"\nusage = []\n'
    meters = [
        SimulatedMeter(plan, chance=random.Random(5))
        for plan in parse(text + f"settled_m3 = {settled}\n", where="v").meters
    ]
    return Cjt188Responder(meters), meters[0]


@pytest.mark.parametrize("name", ["cjt188-water", "cjt188-water-1f90", "cjt188-water-probe", "cjt188-short"])
def test_a_meter_tells_the_totals_of_its_settlement_days(name):
    responder, meter = settled_line(["120.50", "empty", "refused", "99.99"], name=name)
    spec, said = meter.plan.profile.spec, []
    for identifier in range(0xD120, 0xD125):
        try:
            record, answers = cjt_read(
                responder,
                spec=spec,
                generator=lambda spec, station, month=identifier: cjt188_dialogue.read(spec, station, month),
            )
        except MeterRefused:
            said.append("refused")
        else:
            said.append(record.total_ml)
            assert answers[-1].volume_ml is None, "no total of today is told"
    assert said == [120_500_000, None, "refused", 99_990_000, "refused"]
    current, _ = cjt_read(
        responder, spec=spec, generator=lambda spec, station: cjt188_dialogue.read(spec, station, 0x901F)
    )
    assert (current.total_ml, current.settled_ml) == (
        123_450_000,
        120_500_000 if name.startswith("cjt188-water") else None,
    )


def test_a_total_of_a_settlement_day_with_more_digits_than_the_meter_has_is_refused():
    responder, _ = settled_line(["1234567.00"])
    with pytest.raises(MeterRefused):
        cjt_read(responder, generator=lambda spec, station: cjt188_dialogue.read(spec, station, 0xD120))


def test_a_single_meter_tells_its_address_and_two_tell_it_at_once():
    for names in (["cjt188-water"], ["cjt188-water", "cjt188-water-1f90"]):
        responder, _ = line(names=names)
        request = cjt188.Frame(meter_type=0xAA, address=cjt188.BROADCAST, control=3, data=bytes.fromhex("810A00"))
        answers = responder.hear(request.encode(), wall_ms=0)
        assert [next(cjt188.find_frames(answer.frame))[1].address for answer in answers] == [FIRST, SECOND][
            : len(names)
        ]
        assert {answer.volume_ml for answer in answers} == {None}


def valve_line(*, fault="", valve="obeys", name="cjt188-water-valve"):
    """One meter with a valve that moves for a second."""
    text = f'[[meter]]\nprofile = "{name}"\naddress = "{FIRST}"\nusage = []\nvalve = "{valve}"\n'
    text += f"fault = [{{ {fault} }}]\n" if fault else ""
    meters = [SimulatedMeter(plan, chance=random.Random(5)) for plan in parse(text, where="v").meters]
    return Cjt188Responder(meters), meters[0]


def valve_says(responder, data, *, wall_ms, control=4, address=FIRST):
    """Control code and status of what comes back; None where nothing does."""
    frame = cjt188.Frame(meter_type=0x10, address=address, control=control, data=bytes.fromhex(data))
    answers = responder.hear(frame.encode(), wall_ms=wall_ms)
    if not answers:
        return None
    ((_, found),) = cjt188.find_frames(answers[0].frame)
    assert answers[0].volume_ml == (0 if found.control == 0x81 else None)
    return f"{found.control:02X}", found.content[-2:].hex()


CLOSE, OPEN, READ = "A0 17 07 99", "A0 17 07 55", "90 1F 08"


def test_a_valve_takes_its_time_and_the_meter_says_where_it_was():
    responder, meter = valve_line()
    assert valve_says(responder, CLOSE, wall_ms=5000) == ("84", "0000")
    said = [valve_says(responder, READ, wall_ms=at, control=1) for at in (5000, 5999, 6000, 9000)]
    assert said == [("81", "0000"), ("81", "0000"), ("81", "0100"), ("81", "0100")]
    assert valve_says(responder, OPEN, wall_ms=9000) == ("84", "0100")
    assert not meter.valve.is_open(9999)
    assert meter.valve.is_open(10_000)
    # A command that comes while it moves finds it where it was.
    valve_says(responder, CLOSE, wall_ms=20_000)
    valve_says(responder, OPEN, wall_ms=20_500)
    assert [meter.valve.is_open(at) for at in (20_999, 21_000, 21_500)] == [True, True, True]


@pytest.mark.parametrize(("valve", "answer", "moves"), [("stuck", ("84", "0000"), False), ("mute", None, True)])
def test_a_valve_that_does_not_do_as_told(valve, answer, moves):
    responder, meter = valve_line(valve=valve)
    assert valve_says(responder, CLOSE, wall_ms=0) == answer
    assert meter.valve.is_open(1000) is not moves


@pytest.mark.parametrize("fault", ["kind = 'dead'", "kind = 'exception', code = 1"])
def test_a_valve_whose_meter_is_dead_or_refuses_stays(fault):
    responder, meter = valve_line(fault=fault)
    assert valve_says(responder, CLOSE, wall_ms=0) == (None if "dead" in fault else ("C4", "0100"))
    assert meter.valve.is_open(10_000)


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (CLOSE, {"name": "cjt188-water"}),  # names no valve
        (CLOSE, {"name": "cjt188-water-valve-2a"}),  # another control code
        ("17 A0 07 99", {}),
        ("A0 17 07 77", {}),
        ("A0 18 07 99", {}),
    ],
)
def test_what_is_no_command_for_its_valve_is_refused(data, change):
    responder, meter = valve_line(**change)
    assert valve_says(responder, data, wall_ms=0)[0] == "C4"
    assert meter.valve.is_open(10_000)


def test_a_valve_is_not_moved_in_everybodys_name():
    responder, meter = valve_line()
    assert valve_says(responder, CLOSE, wall_ms=0, address=cjt188.BROADCAST)[0] == "C4"
    assert valve_says(responder, CLOSE, wall_ms=0, address=SECOND) is None
    assert meter.valve.is_open(10_000)


def test_cjt188_requests_come_in_pieces_and_half_of_one_is_forgotten():
    responder, _ = line()
    frame = cjt188.Frame(meter_type=0x10, address=FIRST, control=1, data=bytes.fromhex("901F07")).encode()
    assert [len(responder.hear(bytes((byte,)), wall_ms=0)) for byte in frame] == [0] * 15 + [1]
    responder.hear(frame[:5], wall_ms=0)
    responder.pause()
    assert responder.hear(frame[5:], wall_ms=0) == []


@pytest.mark.parametrize(
    ("control", "data"),
    [(0x01, "1F9000"), (0x01, "D12000"), (0x04, "A0170055"), (0x15, "A01800112233445566"), (0x16, "A01600")],
)
def test_a_cjt188_meter_refuses_what_it_does_not_have_and_every_write(control, data):
    responder, _ = line()
    request = cjt188.Frame(meter_type=0x10, address=FIRST, control=control, data=bytes.fromhex(data))
    (answer,) = responder.hear(request.encode(), wall_ms=0)
    ((_, frame),) = cjt188.find_frames(answer.frame)
    assert (frame.is_abnormal, frame.serial, answer.volume_ml) == (True, 0, None)


def test_nobody_answers_for_another_cjt188_meter_or_another_kind_of_meter():
    responder, (meter,) = line()
    for meter_type, address in ((0x10, SECOND), (0x30, FIRST), (0x20, FIRST)):
        request = cjt188.Frame(meter_type=meter_type, address=address, control=1, data=bytes.fromhex("901F00"))
        assert responder.hear(request.encode(), wall_ms=0) == []
    assert meter.counts.requests == 0


def test_a_total_beyond_the_digits_is_refused():
    responder, _ = line(start_m3="999999.98")  # all nines say "I have none"
    assert cjt_read(responder)[0].volume_ml == 999_999_980_000
    responder, _ = line(start_m3="1000000")
    with pytest.raises(MeterRefused):
        cjt_read(responder)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("kind = 'dead'", NoResponse),
        ("kind = 'wrong_unit', address = '00000805000009'", WrongAnswer),
        ("kind = 'exception', code = 4", MeterRefused),
        ("kind = 'garbage'", Garbled),
    ],
)
def test_a_cjt188_fault_is_what_it_says(fault, error):
    responder, (meter,) = line(fault=fault)
    for _ in range(20):
        with pytest.raises(error):
            cjt_read(responder)
    assert meter.counts.requests == 20


def test_a_flipped_bit_in_a_cjt188_answer_is_never_a_value():
    responder, _ = line(fault="kind = 'flip_bit'")
    spec = profile.load("cjt188-water").spec
    for _ in range(200):
        try:
            measurement, _ = cjt_read(responder, spec=spec)
        except (Garbled, WrongAnswer):
            continue
        assert measurement.volume_ml == 802_600_000, "the bit was in the preamble"


# -- M-Bus ------------------------------------------------------------------------------------------------------------


def mbus_line(*addresses, fault="", name="mbus-water", start_m3="802.609751"):
    text = "".join(
        f'[[meter]]\nprofile = "{name}"\naddress = "{address}"\nstart_m3 = "{start_m3}"\nusage = []\n'
        + (f"fault = [{{ {fault} }}]\n" if fault else "")
        for address in addresses
    )
    chance = random.Random(5)
    meters = [SimulatedMeter(plan, chance=chance) for plan in parse(text, where="v").meters]
    return MbusResponder(meters), meters


def mbus_read(responder, address, *, name="mbus-water"):
    """What a master makes of reading a meter once, and the volumes that the answers told."""
    spec, station = profile.load(name).spec, mbus_dialogue.parse_address(address)
    station.is_doubted = False  # no telegram of an earlier reading is to be feared
    reading, told = mbus_dialogue.dialogue(spec, station), []
    query = next(reading)
    try:
        while True:
            reader, frame = query.reader(), None
            for answer in responder.hear(query.encode(), wall_ms=0):
                told.append(answer.volume_ml)
                frame = frame or reader.feed(answer.before + answer.frame + answer.after)
            query = reading.send(frame if frame is not None else reader.close())
    except StopIteration as end:
        return end.value.volume_ml, told


@pytest.mark.parametrize("address", ["5", "00123456", "1149037877040E16"])
@pytest.mark.parametrize(
    ("name", "shown_ml"),
    [("mbus-water", 802_609_000), ("mbus-water-10l", 802_600_000), ("mbus-water-100l", 802_600_000)],
)
def test_an_mbus_profile_reads_what_its_simulated_meter_shows(name, shown_ml, address):
    responder, _ = mbus_line(address, "7", name=name)
    assert mbus_read(responder, address, name=name) == (shown_ml, [None, shown_ml])


def test_a_simulated_mbus_meter_that_does_not_say_what_it_measures():
    responder, _ = mbus_line("5", "7", name="mbus-water-no-header")
    assert mbus_read(responder, "5", name="mbus-water-no-header") == (802_609_000, [None, 802_609_000])
    responder, _ = mbus_line("5", "7", name="mbus-water-no-header")
    with pytest.raises(MeterFault, match=r"does not say what it measures, .* mbus-water-no-header takes it"):
        mbus_read(responder, "5")


def test_at_address_254_every_mbus_meter_answers_at_once():
    responder, _ = mbus_line("5", "7")
    assert len(responder.hear(mbus.Frame(control=mbus.RESET_LINK, address=mbus.ANY_METER).encode(), wall_ms=0)) == 2
    assert responder.hear(mbus.Frame(control=mbus.RESET_LINK, address=6).encode(), wall_ms=0) == []


def test_a_search_finds_simulated_mbus_meters():
    responder, _ = mbus_line("00123456", "00123999", "99000001")
    search = mbus_search.Search()
    queries = search.queries()
    query = next(queries)
    with pytest.raises(StopIteration):
        while True:
            answers = responder.hear(query.encode(), wall_ms=0)
            told = {answer.frame for answer in answers}
            heard = mbus_search.Heard.COLLISION if len(told) > 1 else mbus_search.Heard.SILENCE
            query = queries.send(told.pop() if len(told) == 1 else heard)
    assert [identity.number for identity in search.found] == ["00123456", "00123999", "99000001"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("kind = 'dead'", NoResponse),
        ("kind = 'wrong_unit', address = '9'", WrongAnswer),
        ("kind = 'exception', code = 8", MeterRefused),
    ],
)
def test_an_mbus_fault_is_what_it_says(fault, error):
    responder, _ = mbus_line("5", fault=fault)
    for _ in range(20):
        with pytest.raises(error):
            mbus_read(responder, "5")


def test_an_mbus_total_beyond_the_digits_is_an_error_report():
    responder, _ = mbus_line("5", start_m3="100000")
    with pytest.raises(MeterRefused):
        mbus_read(responder, "5")


def test_every_responder_is_registered_by_the_name_of_a_protocol():
    assert set(RESPONDERS) <= set(profile.PROTOCOLS)
