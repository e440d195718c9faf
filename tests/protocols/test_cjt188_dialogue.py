"""CJ/T 188 dialogues: reading, probing, addresses, refusals, valves, and the profiles that come with shuiwang."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import cjt188, cjt188_data, cjt188_dialogue, profile
from protocols.cjt188 import BROADCAST, Frame
from protocols.cjt188_data import CURRENT, Cjt188Spec, DiOrder, Valve
from protocols.cjt188_dialogue import Identity, Station
from protocols.errors import Garbled, MeterFault, MeterRefused, NoResponse, ProfileError, UsageError, WrongAnswer
from protocols.reading import Measurement

METER = "00002020120218"
HIGH, LOW, PROBE = (Cjt188Spec(di_order=order) for order in (DiOrder.HIGH_FIRST, DiOrder.LOW_FIRST, DiOrder.PROBE))


def drive(dialogue, *meters, bytewise=False):
    """Run a dialogue to its end; each exchange goes past all meters on the line. Return its requests and its value."""
    sent = []
    try:
        query = next(dialogue)
        while True:
            sent.append(query)
            reader = query.reader()
            heard = b"".join(filter(None, (meter(query.encode()) for meter in meters)))
            frame = None
            for chunk in [bytes([byte]) for byte in heard] if bytewise else [heard]:
                frame = frame or reader.feed(chunk)
            if frame is None:
                reader.close()
            query = dialogue.send(frame)
    except StopIteration as end:
        return sent, end.value


def meter(spec=HIGH, *, address=METER, **options):
    """The other end of the line: a meter that hears bytes and answers with bytes."""
    options = {"totals_ml": {CURRENT: 12_470_000}} | options

    def hear(data):
        request = cjt188.RequestReader().feed(data)
        return request and cjt188_dialogue.respond(spec, request, address=address, **options)

    return hear


def mute_to(order, answering):
    """A meter that does not even refuse identifiers in the other order."""

    def hear(data):
        request = cjt188.RequestReader().feed(data)
        asked_high = request.data[0] in (0x90, 0x81, 0xD1)
        return answering(data) if asked_high == (order is DiOrder.HIGH_FIRST) else b""

    return hear


class TestReading:
    @pytest.mark.parametrize("spec", [HIGH, LOW])
    @pytest.mark.parametrize("bytewise", [False, True])
    def test_one_exchange(self, spec, bytewise):
        dialogue = cjt188_dialogue.dialogue(spec, Station(METER))
        sent, measurement = drive(dialogue, meter(spec), bytewise=bytewise)
        assert measurement == Measurement(volume_ml=12_470_000)
        wire = {DiOrder.HIGH_FIRST: "90 1F", DiOrder.LOW_FIRST: "1F 90"}[spec.di_order]
        assert [query.frame.data for query in sent] == [bytes.fromhex(wire + "00")]

    def test_the_bytes_of_a_captured_request(self):
        dialogue = cjt188_dialogue.dialogue(Cjt188Spec(preamble_bytes=3), Station(METER))
        assert next(dialogue).encode() == bytes.fromhex("FE FE FE 68 10 18 02 12 20 20 00 00 01 03 90 1F 00 97 16")

    def test_each_exchange_has_its_own_serial_number(self):
        station = Station(METER)
        serials = [drive(cjt188_dialogue.dialogue(HIGH, station), meter())[0][0].frame.serial for _ in range(258)]
        assert serials == [*range(256), 0, 1]

    def test_an_answer_to_the_exchange_before_is_not_taken(self):
        station = Station(METER)
        late = meter(totals_ml={CURRENT: 0})(next(cjt188_dialogue.dialogue(HIGH, station)).encode())
        with pytest.raises(WrongAnswer, match="late answer"):
            drive(cjt188_dialogue.dialogue(HIGH, station), lambda _: late)
        _, measurement = drive(cjt188_dialogue.dialogue(HIGH, station), lambda _: late, meter())
        assert measurement.volume_ml == 12_470_000

    def test_only_the_asked_meter_counts(self):
        other = meter(address="00000000000001", totals_ml={CURRENT: 1})
        assert drive(cjt188_dialogue.dialogue(HIGH, Station(METER)), other, meter())[1].volume_ml == 12_470_000
        with pytest.raises(NoResponse):
            drive(cjt188_dialogue.dialogue(HIGH, Station(METER)), other)

    def test_whoever_is_alone_on_the_line(self):
        station = cjt188_dialogue.parse_address(BROADCAST)
        assert drive(cjt188_dialogue.dialogue(HIGH, station), meter())[1].volume_ml == 12_470_000

    def test_a_refusal_shows_what_the_meter_said(self):
        with pytest.raises(MeterRefused, match="control C1, ST 11 22"):
            drive(cjt188_dialogue.dialogue(HIGH, Station(METER)), meter(totals_ml={}, status=b"\x11\x22"))

    def test_an_empty_total_is_a_fault(self):
        def empty(data):
            request = cjt188.RequestReader().feed(data)
            content = b"\xff" * 19
            return cjt188.answer(request, content, address=METER, meter_type=0x10).encode()

        with pytest.raises(MeterFault, match="left its total empty"):
            drive(cjt188_dialogue.dialogue(HIGH, Station(METER)), empty)

    def test_a_low_battery_and_a_closed_valve_are_told_and_the_volume_stands(self):
        spec = Cjt188Spec(status={"valve_closed": "ST0.0", "battery_low": "ST0.2"})
        _, measurement = drive(cjt188_dialogue.dialogue(spec, Station(METER)), meter(spec, status=b"\x05\xff"))
        assert measurement.flags == ("battery_low", "valve_closed")
        assert not measurement.is_doubtful

    @pytest.mark.parametrize(("volume", "is_doubtful"), [("doubtful", True), ("stands", False)])
    @pytest.mark.parametrize("flag", ["leak", "empty_pipe"])
    def test_a_profile_knows_its_meter_better(self, flag, volume, is_doubtful):
        spec = Cjt188Spec(status={flag: f"ST0.2 {volume}", "battery_low": "ST0.0"})
        _, measurement = drive(cjt188_dialogue.dialogue(spec, Station(METER)), meter(spec, status=b"\x05\xff"))
        assert (measurement.flags, measurement.is_doubtful) == (tuple(sorted(["battery_low", flag])), is_doubtful)

    @pytest.mark.parametrize("identifier", [0xD120, 0xD12B, 0xD200, 0xD2FF, 0xD300, 0xD4FF])
    @pytest.mark.parametrize("spec", [HIGH, LOW])
    def test_totals_of_the_past(self, spec, identifier):
        dialogue = cjt188_dialogue.read(spec, Station(METER), identifier)
        sent, record = drive(dialogue, meter(spec, totals_ml={CURRENT: 5, identifier: 12_460_000}))
        assert record.total_ml == 12_460_000
        order = "little" if spec is LOW else "big"
        assert sent[0].frame.identifier == identifier.to_bytes(2, order)

    def test_an_identifier_without_a_total_is_not_asked(self):
        with pytest.raises(UsageError):
            next(cjt188_dialogue.read(HIGH, Station(METER), 0xA016))

    def test_a_radio_modem(self):
        spec = Cjt188Spec(tx_prefix="FF 07", preamble_bytes=3)
        station = cjt188_dialogue.parse_address(f"0005:{METER}")
        sent, measurement = drive(cjt188_dialogue.dialogue(spec, station), meter(spec))
        assert sent[0].encode().startswith(bytes.fromhex("FF 07 00 05 FE FE FE 68"))
        assert measurement.volume_ml == 12_470_000


class TestProbing:
    @pytest.mark.parametrize("spec", [HIGH, LOW])
    def test_a_meter_that_refuses_one_order_is_asked_in_the_other_at_once(self, spec):
        station = Station(METER)
        sent, measurement = drive(cjt188_dialogue.dialogue(PROBE, station), meter(spec))
        assert measurement.volume_ml == 12_470_000
        assert len(sent) == (1 if spec is HIGH else 2)
        assert len({query.frame.serial for query in sent}) == len(sent)
        assert len(drive(cjt188_dialogue.dialogue(PROBE, station), meter(spec))[0]) == 1, "the order is remembered"

    def test_a_meter_that_refuses_both_is_asked_twice_each_time(self):
        station = Station(METER)
        asked = []

        def refusing(data):
            asked.append(data)
            return meter(totals_ml={})(data)

        for _ in range(3):
            asked.clear()
            with pytest.raises(MeterRefused):
                drive(cjt188_dialogue.dialogue(PROBE, station), refusing)
            assert [data[-5:-3] for data in asked] == [b"\x90\x1f", b"\x1f\x90"]

    def test_another_meter_in_the_same_place_that_refuses_the_known_order_is_read_at_once(self):
        station = Station(METER)
        drive(cjt188_dialogue.dialogue(PROBE, station), meter(HIGH))
        sent, measurement = drive(cjt188_dialogue.dialogue(PROBE, station), meter(LOW))
        assert (len(sent), measurement.volume_ml) == (2, 12_470_000)

    def orders_tried(self, station, times):
        """The orders of dialogues whose exchange fails and that nobody closes."""
        return [next(cjt188_dialogue.dialogue(PROBE, station)).frame.identifier.hex() for _ in range(times)]

    def test_a_meter_that_was_never_heard_is_asked_in_both_orders_by_turns(self):
        assert self.orders_tried(Station(METER), 5) == ["901f", "1f90", "901f", "1f90", "901f"]

    def test_a_meter_that_is_mute_to_one_order_is_found_at_the_second_attempt(self):
        station = Station(METER)
        answering = mute_to(DiOrder.LOW_FIRST, meter(LOW))
        with pytest.raises(NoResponse):
            drive(cjt188_dialogue.dialogue(PROBE, station), answering)
        assert drive(cjt188_dialogue.dialogue(PROBE, station), answering)[1].volume_ml == 12_470_000
        # One failure is more likely noise than another meter; after two in a row the other order gets its turn.
        assert self.orders_tried(station, 7) == ["1f90", "1f90", "901f", "901f", "1f90", "1f90", "901f"]

    def test_no_other_profile_ever_changes_its_order(self):
        station = Station(METER)
        assert {next(cjt188_dialogue.dialogue(LOW, station)).frame.identifier for _ in range(5)} == {b"\x1f\x90"}
        with pytest.raises(MeterRefused):
            drive(cjt188_dialogue.dialogue(LOW, station), meter(HIGH))


class TestAddresses:
    @pytest.mark.parametrize("spec", [HIGH, LOW, Cjt188Spec(meter_type=0xAA)])
    def test_the_answer_with_the_address_in_its_header(self, spec):
        sent, identity = drive(cjt188_dialogue.read_address(spec, Station(BROADCAST)), meter(spec))
        assert identity == Identity(meter_type=spec.meter_type, address=METER)
        assert sent[0].frame.control == cjt188.READ_ADDRESS

    @pytest.mark.parametrize("header", [METER, BROADCAST])
    def test_the_answer_with_the_address_in_its_data(self, header):
        def hear(data):
            request = cjt188.RequestReader().feed(data)
            return cjt188.answer(request, cjt188.address_bytes(METER), address=header, meter_type=0x11).encode()

        _, identity = drive(cjt188_dialogue.read_address(HIGH, Station(BROADCAST)), hear)
        assert identity == Identity(meter_type=0x11, address=METER)

    @pytest.mark.parametrize(("header", "data"), [(METER, "00002020120219"), (BROADCAST, "0000202012021A")])
    def test_an_answer_that_contradicts_itself(self, header, data):
        def hear(asked):
            request = cjt188.RequestReader().feed(asked)
            return cjt188.answer(request, cjt188.address_bytes(data), address=header, meter_type=0x10).encode()

        with pytest.raises(MeterFault, match=f"calls itself {data} in the data and {header} in the header"):
            drive(cjt188_dialogue.read_address(HIGH, Station(BROADCAST)), hear)

    @pytest.mark.parametrize(
        ("text", "address", "prefix"),
        [(METER, METER, ""), (BROADCAST, BROADCAST, ""), ("0005:" + METER, METER, "0005")],
    )
    def test_configured_addresses(self, text, address, prefix):
        station = cjt188_dialogue.parse_address(text)
        assert (station.address, station.prefix) == (address, bytes.fromhex(prefix))
        assert repr(station) == text
        assert station == Station(address, prefix=station.prefix)
        assert hash(station) == hash(Station(address, prefix=station.prefix))
        assert station != Station("00000000000001")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "17",
            METER[1:],
            METER + "0",
            "AAAAAAAAAAAAA1",
            "0000202012021A",
            METER + "\n",
            "5:" + METER,
            "00 05:" + METER,
            "aaaaaaaaaaaaaa",
            "٠" * 14,
            "1A" * 17 + ":" + METER,
        ],
    )
    def test_what_is_no_address(self, text):
        with pytest.raises(ProfileError, match="14 digits"):
            cjt188_dialogue.parse_address(text)

    @pytest.mark.parametrize(
        ("prefix", "text", "problem"),
        [
            ("", "0068:" + METER, "holds a 68"),
            ("", "1A" * 8 + ":" + METER, "8 bytes; at most 7"),
            ("00 01 02 03", "04050607:" + METER, "8 bytes; at most 7"),
        ],
    )
    def test_a_destination_that_could_be_a_frame(self, prefix, text, problem):
        with pytest.raises(ProfileError, match=problem):
            cjt188_dialogue.parse_address_of(Cjt188Spec(tx_prefix=prefix), text)


class TestValve:
    spec = Cjt188Spec(valve=Valve(open=0x55, close=0x99))

    def test_the_bytes_of_captured_requests(self):
        station = Station("78331505900569")
        station.next_serial()
        request = cjt188_dialogue.valve_request(self.spec, station, is_open=True)
        assert request.encode() == bytes.fromhex("FE FE FE FE 68 10 69 05 90 05 15 33 78 04 04 A0 17 01 55 50 16")
        vendor = Cjt188Spec(valve=Valve(open=0x55, close=0x99, control=0x2A), preamble_bytes=3)
        request = cjt188_dialogue.valve_request(vendor, Station("00000805000001"), is_open=False)
        assert request.encode() == bytes.fromhex("FE FE FE 68 10 01 00 00 05 08 00 00 2A 04 A0 17 00 99 04 16")
        answer = bytes.fromhex("FE FE FE 68 10 01 00 00 05 08 00 00 AA 05 A0 17 00 01 FF EC 16")
        assert cjt188.parse_frame(request.reader().feed(answer)).content == b"\x01\xff"

    def test_never_without_the_profile_and_never_for_everybody(self):
        with pytest.raises(UsageError, match="names no valve"):
            cjt188_dialogue.valve_request(HIGH, Station(METER), is_open=True)
        with pytest.raises(UsageError, match="own address only"):
            cjt188_dialogue.valve_request(self.spec, Station(BROADCAST), is_open=False)

    @pytest.mark.parametrize("spec", [spec, Cjt188Spec(di_order=DiOrder.PROBE, valve=Valve(open=0x55, close=0x99))])
    @pytest.mark.parametrize("totals_ml", [{CURRENT: 1, 0xD120: 1}, {}])
    def test_no_dialogue_ever_writes(self, spec, totals_ml):
        asked = []

        def overheard(data):
            asked.append(cjt188.RequestReader().feed(data).control)
            return meter(spec, totals_ml=totals_ml)(data)

        station = Station(METER)
        for dialogue in (
            cjt188_dialogue.dialogue(spec, station),
            cjt188_dialogue.read(spec, station, 0xD120),
            cjt188_dialogue.read_address(spec, station),
        ):
            try:
                drive(dialogue, overheard)
            except MeterRefused:
                assert not totals_ml
        assert len(asked) >= 3
        assert set(asked) == {cjt188.READ_DATA, cjt188.READ_ADDRESS}

    def test_only_profiles_that_are_called_so_move_a_valve(self):
        """Who takes a profile for reading shall not come by a valve unawares."""
        specs = {name: profile.load(name).spec for name in profile.built_in_names()}
        with_valve = {name for name, spec in specs.items() if isinstance(spec, Cjt188Spec) and spec.valve}
        assert with_valve == {"cjt188-water-valve", "cjt188-water-valve-2a"}
        for name in with_valve:
            assert {"valve_closed", "valve_fault"} <= specs[name].status.keys()

    def test_the_order_of_its_identifier_is_the_one_that_was_understood_unless_the_profile_says_so(self):
        """A meter of maker code 7833 is read with 1F 90 and opened with A0 17 (csdn.net 46824903 and 47306719)."""
        for di_order, valve_order, wire in (
            (DiOrder.HIGH_FIRST, None, "A0 17"),
            (DiOrder.LOW_FIRST, None, "17 A0"),
            (DiOrder.LOW_FIRST, "A017", "A0 17"),
            (DiOrder.PROBE, None, "17 A0"),  # the meter below understands no other
            (DiOrder.PROBE, "A017", "A0 17"),
        ):
            spec = Cjt188Spec(di_order=di_order, valve=Valve(open=0x55, close=0x99, di_order=valve_order))
            station = Station(METER)
            if di_order is DiOrder.PROBE:
                only_low = Cjt188Spec(di_order=DiOrder.LOW_FIRST)
                drive(cjt188_dialogue.dialogue(spec, station), meter(only_low, totals_ml={CURRENT: 1}))
            request = cjt188_dialogue.valve_request(spec, station, is_open=False)
            assert request.frame.identifier == bytes.fromhex(wire), (di_order, valve_order)
            assert cjt188_dialogue.valve_asked(spec, request.frame) is False

    @pytest.mark.parametrize(
        ("status", "bits", "position"),
        [
            ("00 00", {"valve_closed": "ST0.0", "valve_fault": "ST0.1"}, "open"),
            ("01 FF", {"valve_closed": "ST0.0", "valve_fault": "ST0.1"}, "closed"),  # captured: V10
            ("02 FF", {"valve_closed": "ST0.0", "valve_fault": "ST0.1"}, "fault"),
            ("03 FF", {"valve_closed": "ST0.0", "valve_fault": "ST0.1"}, "fault"),
            ("40 00", {"valve_closed": "ST0.6"}, "closed"),
            ("FF FF", {"valve_closed": "ST0.0", "valve_fault": "ST0.1"}, "unknown"),  # left empty
            ("99 99", {"valve_closed": "ST0.0"}, "unknown"),
            ("01 00", {}, "unknown"),
            ("01 00", {"battery_low": "ST0.0"}, "unknown"),
            ("02 00", {"valve_fault": "ST0.1"}, "fault"),
            ("00 00", {"valve_fault": "ST0.1"}, "unknown"),  # no fault, but closed or open?
        ],
    )
    def test_where_it_is(self, status, bits, position):
        assert cjt188_dialogue.valve_position(Cjt188Spec(status=bits), bytes.fromhex(status)) == position
        assert cjt188_dialogue.valve_position(Cjt188Spec(status=bits), None) == "unknown"

    @pytest.mark.parametrize("flags", [(), ("valve_closed",), ("valve_fault",), ("battery_low",)])
    def test_the_status_of_a_simulated_meter_means_its_flags(self, flags):
        spec = Cjt188Spec(status={"valve_closed": "ST0.6", "valve_fault": "ST1.7"})
        status = cjt188_data.status_of(spec, flags)
        found = cjt188_data.decode(spec, cjt188_data.STATUS_LAYOUT, status).flags
        assert found == tuple(flag for flag in flags if flag in spec.status)

    def test_a_request_says_what_it_asks_of_the_valve(self):
        def asked(spec=self.spec, **changes):
            fields = {"meter_type": 0x10, "address": METER, "control": 0x04, "data": bytes.fromhex("A0 17 07 55")}
            return cjt188_dialogue.valve_asked(spec, Frame(**fields | changes))

        assert asked() is True
        assert asked(data=bytes.fromhex("A0 17 07 99")) is False
        for changes in (
            {"spec": HIGH},  # names no valve
            {"control": 0x2A},
            {"control": 0x84},
            {"data": bytes.fromhex("17 A0 07 55")},
            {"data": bytes.fromhex("A0 18 07 55")},
            {"data": bytes.fromhex("A0 17 07 00")},  # 00, 66 and 77 mean one thing here and another there
            {"data": bytes.fromhex("A0 17 07 66")},
            {"data": bytes.fromhex("A0 17 07 77")},
            {"data": bytes.fromhex("A0 17 07")},
            {"data": bytes.fromhex("A0 17 07 55 55")},
        ):
            assert asked(**changes) is None, changes

    def test_a_refusal_is_an_error_and_never_a_status(self):
        request = cjt188_dialogue.valve_request(self.spec, Station(METER), is_open=False)
        refused = cjt188.refusal(request.frame, b"\1\0", address=METER, meter_type=0x10).encode()
        with pytest.raises(MeterRefused):
            cjt188_dialogue.valve_answer(request.reader().feed(refused))

    def test_frames_of_a_profile_prove_its_commands(self):
        """A command that the profile does not name, an answer that does not fit, no reading beside it."""
        spec = profile.load("cjt188-water-valve-2a").spec
        case = profile.load("cjt188-water-valve-2a").cases[0]
        reading, valve = [(bytes.fromhex(one.request), bytes.fromhex(one.response)) for one in case.exchange]
        assert cjt188_dialogue.decode_case(spec, [valve, reading]).volume_ml == case.volume_ml
        with pytest.raises(MeterFault, match="no reading"):
            cjt188_dialogue.decode_case(spec, [valve])
        with pytest.raises(ProfileError, match="no request for the current reading"):
            cjt188_dialogue.decode_case(profile.load("cjt188-water-valve").spec, [reading, valve])
        with pytest.raises(WrongAnswer):
            cjt188_dialogue.decode_case(spec, [reading, (valve[0], reading[1])])

    def test_a_simulated_meter_obeys_in_its_own_name_alone(self):
        def told(address):
            frame = Frame(meter_type=0x10, address=address, control=0x04, data=bytes.fromhex("A0 17 07 99"))
            sent = cjt188_dialogue.respond(self.spec, frame, address=METER, totals_ml={}, status=b"\1\xff")
            return cjt188.parse_frame(sent, 4)

        assert (told(METER).control, told(METER).content) == (0x84, b"\1\xff")
        assert told(BROADCAST).is_abnormal


class TestMeterSide:
    def frame(self, **changes):
        fields = {"meter_type": 0x10, "address": METER, "control": 0x01, "data": bytes.fromhex("90 1F 07")}
        return Frame(**fields | changes)

    def respond(self, **changes):
        answer = cjt188_dialogue.respond(HIGH, self.frame(**changes), address=METER, totals_ml={CURRENT: 0})
        return answer and cjt188.parse_frame(answer, 4)

    def test_it_answers_to_its_name_and_type_alone(self):
        assert self.respond().control == 0x81
        assert self.respond(meter_type=0xAA, address=BROADCAST).address == METER
        assert self.respond(address="00000000000001") is None
        assert self.respond(meter_type=0x30) is None

    @pytest.mark.parametrize("control", [0x04, 0x09, 0x15, 0x16, 0x2A])
    def test_it_refuses_to_be_written_to(self, control):
        answer = self.respond(control=control, data=bytes.fromhex("A0 16 07 00"))
        assert (answer.control, answer.data) == (control | 0xC0, b"\x07\0\0")

    def test_the_other_order_is_refused_unless_it_probes(self):
        other = self.frame(data=bytes.fromhex("1F 90 07"))
        assert self.respond(data=other.data).is_abnormal
        answer = cjt188_dialogue.respond(PROBE, other, address=METER, totals_ml={CURRENT: 0})
        assert cjt188.parse_frame(answer, 4).data[:3] == bytes.fromhex("1F 90 07")

    @given(st.integers(0, 99_999_998), st.sampled_from([HIGH, LOW, PROBE]), st.booleans(), st.integers(0, 300))
    def test_what_it_shows_is_what_is_read(self, count, spec, bytewise, exchanges_before):
        station = Station(METER)
        for _ in range(exchanges_before):
            station.next_serial()
        showing = meter(spec, totals_ml={CURRENT: count * 10_000})
        _, measurement = drive(cjt188_dialogue.dialogue(spec, station), showing, bytewise=bytewise)
        assert measurement.volume_ml == count * 10_000


CJT188_PROFILES = [name for name in profile.built_in_names() if profile.load(name).head.protocol == "cjt188"]


class TestProfiles:
    def test_the_variants_of_the_vectors_are_there(self):
        assert set(CJT188_PROFILES) >= {
            "cjt188-water",
            "cjt188-water-1f90",
            "cjt188-water-probe",
            "cjt188-litres",
            "cjt188-litres-2",
            "cjt188-short",
            "cjt188-radio-modem",
            "rd-w10",
        }

    @pytest.mark.parametrize("name", CJT188_PROFILES)
    def test_its_step_is_the_last_digit_of_its_total(self, name):
        loaded = profile.load(name)
        unit = loaded.spec.unit or next(iter(loaded.spec.decimals))
        assert loaded.head.step_ml == cjt188_data.UNIT_ML[unit] // 10 ** loaded.spec.decimals[unit]

    @pytest.mark.parametrize("name", CJT188_PROFILES)
    def test_a_simulated_meter_is_read_through_it(self, name):
        loaded = profile.load(name)
        volume_ml = 7 * loaded.head.step_ml
        station = loaded.protocol.parse_address(METER)
        dialogue = loaded.protocol.dialogue(loaded.spec, station)
        assert drive(dialogue, meter(loaded.spec, totals_ml={CURRENT: volume_ml}))[1].volume_ml == volume_ml

    @pytest.mark.parametrize("name", CJT188_PROFILES)
    def test_no_single_bit_of_its_frames_can_change_a_value(self, name):
        loaded = profile.load(name)
        for case in loaded.cases:
            frames = [(bytes.fromhex(one.request), bytes.fromhex(one.response)) for one in case.exchange]
            for place, (request, answer) in enumerate(frames):
                for bit in range(8 * len(answer)):
                    damaged = bytearray(answer)
                    damaged[bit // 8] ^= 1 << bit % 8
                    heard = [*frames[:place], (request, bytes(damaged)), *frames[place + 1 :]]
                    try:
                        measurement = cjt188_dialogue.decode_case(loaded.spec, heard)
                    except (Garbled, WrongAnswer):
                        continue
                    assert measurement.volume_ml == case.volume_ml, f"bit {bit}"


class TestCases:
    asked = "68 10 12 00 00 00 00 00 00 01 03 90 1F 07 44 16"
    answered = "FE FE 68 10 12 00 00 00 00 00 00 81 09 90 1F 07 10 00 10 00 2C 00 16 16"

    def decode(self, asked, answered):
        return cjt188_dialogue.decode_case(
            Cjt188Spec(layout="short"), [(bytes.fromhex(asked), bytes.fromhex(answered))]
        )

    def test_an_exchange(self):
        assert self.decode(self.asked, self.answered) == Measurement(volume_ml=1_000_100_000)

    @pytest.mark.parametrize(
        "asked",
        [
            "",
            "68 10 12",
            answered,
            "FE FE FE 68 10 AA AA AA AA AA AA AA 03 03 0A 81 00 AF 16",
            asked[:-5] + "45 16",
            "68 10 12 00 00 00 00 00 00 04 03 90 1F 07 47 16",  # a write
            "68 10 12 00 00 00 00 00 00 01 03 D1 20 07 86 16",  # the total of another day
        ],
    )
    def test_a_request_for_something_else_proves_nothing(self, asked):
        with pytest.raises(ProfileError, match="holds no request for the current reading"):
            self.decode(asked, self.answered)

    def test_an_answer_to_something_else_proves_nothing(self):
        with pytest.raises(WrongAnswer, match="SER"):
            self.decode("68 10 12 00 00 00 00 00 00 01 03 90 1F 08 45 16", self.answered)
        with pytest.raises(NoResponse):
            self.decode(self.asked, "")

    def test_no_exchange_is_no_measurement(self):
        with pytest.raises(MeterFault):
            cjt188_dialogue.decode_case(Cjt188Spec(), [])
