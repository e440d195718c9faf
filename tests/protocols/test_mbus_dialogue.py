"""M-Bus dialogues: both ways of addressing, the frame count bit, lost and late answers, several telegrams, profiles."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import mbus, mbus_dialogue, profile
from protocols.errors import Garbled, MeterError, MeterFault, MeterRefused, NoResponse, ProfileError, WrongAnswer
from protocols.mbus import Frame, Identity, RequestReader
from protocols.mbus_data import MbusSpec, encode_telegram, total_record
from protocols.mbus_dialogue import Slave, Station, dialogue, parse_address, total_telegram
from protocols.mbus_records import encode_record
from protocols.reading import Measurement

METER = Identity(number="00123456", manufacturer=0x4024, version=1, medium=7)
NEIGHBOUR = Identity(number="00123457", manufacturer=0x4024, version=1, medium=7)
SPEC = MbusSpec()


def known(text):
    """A station whose meter has no telegram that its master does not know."""
    station = parse_address(text)
    station.is_doubted = False
    return station


@pytest.fixture(autouse=True)
def stations():
    """What stations remember ends with each test."""
    for station, text in ((PRIMARY, "5"), (SECONDARY, "00123456")):
        vars(station).update(vars(known(text)))


PRIMARY, SECONDARY = known("5"), known("00123456")
NO_TOTAL = bytes.fromhex("02 FD 17 00 00")


def slave(identity=METER, *, primary=5, volumes=(12_345_000,)):
    """A meter that shows the next volume each time it makes a new telegram, and the last one for ever."""
    shown = itertools.chain(volumes, itertools.repeat(volumes[-1]))
    return Slave(identity=identity, primary=primary, telegrams=lambda: [total_telegram(SPEC, identity, next(shown))])


def many(*contents, identity=METER):
    """A meter whose records are spread over telegrams."""
    last = len(contents) - 1
    telegrams = [
        encode_telegram(identity, content, access=place, is_followed=place < last)
        for place, content in enumerate(contents)
    ]
    return Slave(identity=identity, primary=5, telegrams=lambda: list(telegrams))


def on_wire(meter):
    """The other end of the line: hears bytes, answers with bytes."""

    def hear(data):
        request = RequestReader().feed(data)
        return (request and meter.answer(request)) or b""

    return hear


def drive(station, *wires, spec=SPEC, bytewise=False, sent=None):
    """Read once; each exchange goes past all meters on the line. Return the measurement; `sent` collects requests."""
    reading = dialogue(spec, station)
    query = next(reading)
    try:
        while True:
            if sent is not None:
                sent.append(query.encode().hex(" ").upper())
            reader, frame = query.reader(), None
            heard = b"".join([wire(query.encode()) for wire in wires])
            for chunk in [bytes([byte]) for byte in heard] if bytewise else [heard]:
                frame = frame or reader.feed(chunk)
            if frame is None:
                reader.close()
            query = reading.send(frame)
    except StopIteration as end:
        return end.value


class TestAddresses:
    @pytest.mark.parametrize("text", ["0", "1", "17", "250"])
    def test_primary(self, text):
        station = parse_address(text)
        assert (station, str(station), station.address) == (Station(primary=int(text)), text, int(text))

    @pytest.mark.parametrize("text", ["00000000", "00123456", "1149037877040E16"])
    def test_identity(self, text):
        station = parse_address(text)
        assert (station.primary, str(station), station.address) == (None, text, 253)
        assert hash(station) == hash(parse_address(text))
        assert station != parse_address("00000001")

    def test_the_sixteen_digits_are_those_of_other_tools(self):
        identity = Identity(number="11490378", manufacturer=0x0477, version=0x0E, medium=0x16)
        assert parse_address("1149037877040E16").identity == identity

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("251", "0.* to .*250"),
            ("253", "253 is whoever was selected"),
            ("254", "254 is every meter at once"),
            ("255", "255 is every meter at once"),
            ("1234567", "8 digits"),
            ("FFFFFFFF", "8 digits"),
            ("0012345a", "8 digits"),
            ("1149037877040e16", "16 of identity"),
            ("05", "an M-Bus address is"),
            ("-1", "an M-Bus address is"),
            ("\u0665", "an M-Bus address is"),
            ("5\n", "an M-Bus address is"),
            ("", "an M-Bus address is"),
        ],
    )
    def test_what_is_none(self, text, said):
        with pytest.raises(ProfileError, match=said):
            parse_address(text)


@pytest.mark.parametrize("bytewise", [False, True])
class TestReading:
    def test_by_primary_address(self, bytewise):
        sent = []
        neighbour = on_wire(slave(NEIGHBOUR, primary=6, volumes=(1,)))
        measurement = drive(PRIMARY, neighbour, on_wire(slave()), bytewise=bytewise, sent=sent)
        assert measurement == Measurement(volume_ml=12_345_000)
        assert sent == ["10 40 05 45 16", "10 7B 05 80 16"]

    def test_by_identity(self, bytewise):
        sent = []
        neighbour = on_wire(slave(NEIGHBOUR, volumes=(1,)))
        measurement = drive(SECONDARY, neighbour, on_wire(slave()), bytewise=bytewise, sent=sent)
        assert measurement == Measurement(volume_ml=12_345_000)
        assert sent == ["68 0B 0B 68 53 FD 52 56 34 12 00 FF FF FF FF 3A 16", "10 7B FD 78 16"]

    def test_an_echo_and_noise(self, bytewise):
        def echo(data):
            return b"\0" + data + b"\xff"

        for station in (PRIMARY, SECONDARY):
            assert drive(station, echo, on_wire(slave()), bytewise=bytewise).volume_ml == 12_345_000


class TestWhoAnswers:
    def test_the_one_selected_before_is_deselected(self):
        first, second = slave(), slave(NEIGHBOUR, primary=6, volumes=(1_000,))
        wires = on_wire(first), on_wire(second)
        for _ in range(2):
            assert drive(SECONDARY, *wires).volume_ml == 12_345_000
            assert drive(parse_address("00123457"), *wires).volume_ml == 1_000
            assert (first.is_selected, second.is_selected) == (False, True)

    def test_a_meter_that_missed_the_selection_of_another_is_not_taken(self):
        """The neighbour stays selected because noise hid the selection from it, and the selected one has died since."""
        neighbour = slave(NEIGHBOUR)
        neighbour.is_selected = True

        def wire(data):
            request = RequestReader().feed(data)
            return b"\xe5" if request.ci == mbus.SELECT else neighbour.answer(request)

        with pytest.raises(WrongAnswer, match="meter 0012345724400107, asked was 00123456"):
            drive(SECONDARY, wire)

    def test_nobody(self):
        for station in (PRIMARY, SECONDARY):
            with pytest.raises(NoResponse):
                drive(station, on_wire(slave(NEIGHBOUR, primary=6)))

    def test_the_maker_decides_where_two_have_the_same_digits(self):
        twin = Identity(number="00123456", manufacturer=0x0477, version=1, medium=7)
        wires = on_wire(slave()), on_wire(slave(twin, primary=6, volumes=(1_000,)))

        def both_at_once(data):
            answers = [wire(data) for wire in wires]
            return bytes(one & other for one, other in zip(*answers, strict=True))

        with pytest.raises(Garbled):
            drive(SECONDARY, both_at_once)
        assert drive(parse_address("0012345677040107"), *wires).volume_ml == 1_000
        assert drive(parse_address("0012345624400107"), *wires).volume_ml == 12_345_000

    def test_a_refusal_and_a_fault(self):
        def wire(content):
            return lambda data: (
                b"\xe5" if data[1] == 0x40 else Frame(control=8, address=5, ci=content[0], data=content[1:]).encode()
            )

        with pytest.raises(MeterRefused, match="busy"):
            drive(PRIMARY, wire(b"\x70\x08"))
        with pytest.raises(MeterFault, match="no record is the total"):
            drive(PRIMARY, wire(encode_telegram(METER, NO_TOTAL)))


class TestFrameCountBit:
    def test_a_meter_repeats_its_telegram_until_the_bit_turns(self):
        """What the standard asks of meters, and why a master that lost count is told an old total."""
        meter = slave(volumes=(1_000, 2_000))
        ask = {bit: mbus.request_data(5, frame_count_bit=bit).frame for bit in (False, True)}
        first = meter.answer(ask[True])
        assert meter.answer(ask[True]) == first
        assert meter.answer(ask[False]) != first
        assert meter.answer(mbus.reset_link(5).frame) == b"\xe5"
        assert meter.answer(ask[False]) is not None

    @pytest.mark.parametrize("station", [PRIMARY, SECONDARY])
    def test_each_reading_is_new(self, station):
        meter = slave(volumes=(1_000, 2_000, 3_000))
        assert [drive(station, on_wire(meter)).volume_ml for _ in range(3)] == [1_000, 2_000, 3_000]

    @pytest.mark.parametrize("station", [PRIMARY, SECONDARY])
    @pytest.mark.parametrize("lost", ["request", "answer"])
    @pytest.mark.parametrize("exchange", [0, 1])
    def test_after_a_loss_the_next_reading_is_new(self, station, lost, exchange):
        """The meter made a telegram that nobody heard. Days later it must not be taken for the present."""
        meter = slave(volumes=(1_000, 2_000, 3_000, 4_000))
        assert drive(station, on_wire(meter)).volume_ml == 1_000
        turn = itertools.count()

        def lossy(data):
            if next(turn) != exchange:
                return on_wire(meter)(data)
            if lost == "answer":
                on_wire(meter)(data)
            return b""

        with pytest.raises(NoResponse):
            drive(station, lossy)
        # Where data were asked for, the next reading goes on with FCB turned: the meter makes one more.
        made = (lost == "answer") + 1 if exchange == 1 else 0
        meant = 2_000 + 1_000 * made
        assert drive(station, on_wire(meter)).volume_ml == meant

    @pytest.mark.parametrize("station", [PRIMARY, SECONDARY])
    def test_another_master_s_requests_do_not_matter(self, station):
        meter = slave(volumes=(1_000, 2_000, 3_000))
        drive(station, on_wire(meter))
        meter.answer(mbus.request_data(5, frame_count_bit=False).frame)
        assert drive(station, on_wire(meter)).volume_ml == 3_000


class NeverForgets(Slave):
    """Acknowledges SND_NKE and selections, and keeps frame count bit and telegram all the same."""

    def _forget(self, address):
        pass


class TestMetersThatNeverForget:
    """A meter may say with each telegram how often it was read (access), or always the same."""

    def meter(self, volumes, *, contents=1, accesses=None):
        shown, accesses = iter(volumes), accesses or itertools.count(1)

        def telegrams():
            total, access = encode_record(total_record(SPEC, next(shown))), next(accesses)
            places = range(contents)
            return [
                encode_telegram(METER, (NO_TOTAL, total)[place == 0], access=access, is_followed=place < contents - 1)
                for place in places
            ]

        return NeverForgets(identity=METER, primary=5, telegrams=telegrams)

    @pytest.mark.parametrize("station", [PRIMARY, SECONDARY])
    @pytest.mark.parametrize("contents", [1, 2, 3])
    def test_no_reading_gives_the_total_of_the_one_before(self, station, contents):
        wire = on_wire(self.meter(range(1_000, 10**6, 1_000), contents=contents))
        totals = [drive(station, wire).volume_ml for _ in range(20)]
        assert totals == sorted(set(totals)), "each is newer"

    def test_what_another_master_left_is_not_believed(self):
        meter = self.meter([1_000, 2_000])
        meter.answer(mbus.request_data(5, frame_count_bit=True).frame)
        assert drive(parse_address("5"), on_wire(meter)).volume_ml == 2_000

    def test_what_a_failed_reading_left_is_not_believed(self):
        meter = self.meter([1_000, 2_000, 3_000])
        drive(PRIMARY, on_wire(meter))
        meter.answer(mbus.request_data(5, frame_count_bit=False).frame)  # so that the next telegram is made anew

        def lossy(data):
            answer = on_wire(meter)(data)
            return answer if answer == b"\xe5" else b""

        with pytest.raises(NoResponse):
            drive(PRIMARY, lossy)
        meter._telegrams = lambda: [total_telegram(SPEC, METER, 9_000)]
        assert drive(PRIMARY, on_wire(meter)).volume_ml == 9_000

    def test_who_was_found_to_repeat_itself_is_asked_twice_each_time(self):
        meter, sent = self.meter(range(1_000, 10**6, 1_000)), []
        for _ in range(3):
            drive(PRIMARY, on_wire(meter), sent=sent)
        assert len(sent) == 2 + 3 + 3

    def test_who_forgets_and_counts_is_asked_once(self):
        accesses, sent = itertools.count(1), []
        meter = Slave(
            identity=METER, primary=5, telegrams=lambda: [total_telegram(SPEC, METER, 7_000, access=next(accesses))]
        )
        for _ in range(5):
            assert drive(PRIMARY, on_wire(meter), sent=sent).volume_ml == 7_000
        assert len(sent) == 5 * 2

    def test_who_forgets_and_does_not_count_is_asked_twice_while_it_stands_still(self):
        sent = []
        meter = slave(volumes=(1_000, 1_000, 1_000, 2_000, 3_000))
        assert [drive(PRIMARY, on_wire(meter), sent=sent).volume_ml for _ in range(4)] == [1_000, 1_000, 2_000, 3_000]
        assert len(sent) == 2 + 3 + 2 + 2


class TestLateAnswers:
    @pytest.mark.parametrize("station", [PRIMARY, SECONDARY])
    def test_a_meter_that_is_an_answer_behind_gives_no_value(self, station):
        """A serial server whose delay is longer than the timeout: every request gets the answer to the one before."""
        meter, behind = slave(volumes=range(0, 10**6, 1_000)), [b""]

        def wire(data):
            behind.append(on_wire(meter)(data))
            return behind.pop(0)

        for _ in range(20):
            with pytest.raises((NoResponse, WrongAnswer)):
                drive(station, wire)


class TestSeveralTelegrams:
    TOTAL = bytes.fromhex("0C 13 45 23 01 00")

    @pytest.mark.parametrize("place", range(mbus_dialogue.TELEGRAMS_MAX))
    def test_the_total_is_found_and_the_bit_turns(self, place):
        contents = [NO_TOTAL] * place + [self.TOTAL, NO_TOTAL]
        for station, address in ((PRIMARY, 0x05), (SECONDARY, 0xFD)):
            sent = []
            assert drive(station, on_wire(many(*contents)), sent=sent).volume_ml == 12_345_000
            controls = [(0x7B, 0x5B)[turn % 2] for turn in range(place + 1)]
            assert sent[1:] == [
                Frame(control=control, address=address).encode().hex(" ").upper() for control in controls
            ]

    def test_too_many(self):
        contents = [NO_TOTAL] * mbus_dialogue.TELEGRAMS_MAX + [self.TOTAL]
        with pytest.raises(MeterFault, match="no total in 8 telegrams, and the meter has more"):
            drive(PRIMARY, on_wire(many(*contents)))

    def test_all_without_a_total(self):
        with pytest.raises(MeterFault, match="no record is the total"):
            drive(PRIMARY, on_wire(many(NO_TOTAL, NO_TOTAL)))

    def test_a_second_meter_with_the_same_address_between_them(self):
        first, second = many(NO_TOTAL, self.TOTAL), many(NO_TOTAL, self.TOTAL, identity=NEIGHBOUR)
        turn = itertools.count()

        def wire(data):
            answers = [on_wire(meter)(data) for meter in (first, second)]
            return answers[next(turn) > 1]

        with pytest.raises(MeterFault, match="two meters have the same address: 0012345624400107 and 00123457"):
            drive(PRIMARY, wire)


class TestSlave:
    def test_requests_that_are_not_for_it(self):
        meter = slave()
        for request in (mbus.reset_link(6), mbus.request_data(mbus.SELECTED, frame_count_bit=True)):
            assert meter.answer(request.frame) is None

    def test_the_address_of_a_meter_on_the_bench(self):
        assert slave().answer(Frame(control=0x40, address=mbus.ANY_METER)) == b"\xe5"
        assert slave().answer(Frame(control=0x40, address=mbus.BROADCAST)) is None

    def test_a_reset_of_the_selected_deselects(self):
        meter = slave()
        assert meter.answer(mbus.select(METER).frame) == b"\xe5"
        assert meter.answer(mbus.reset_link(mbus.SELECTED).frame) == b"\xe5"
        assert meter.answer(mbus.reset_link(mbus.SELECTED).frame) is None

    def test_what_is_sent_to_it_is_acknowledged_and_changes_nothing(self):
        meter = slave()
        assert meter.answer(Frame(control=0x53, address=5, ci=0x51, data=b"\x01\x7a\x08")) == b"\xe5"
        assert meter.primary == 5

    def test_a_cut_selection(self):
        meter = slave()
        assert meter.answer(Frame(control=0x53, address=253, ci=mbus.SELECT, data=b"\xff")) is None


class TestProfiles:
    @pytest.mark.parametrize(
        ("name", "vif"),
        [("mbus-water", "13"), ("mbus-water-no-header", "13"), ("mbus-water-10l", "14"), ("mbus-water-100l", "15")],
    )
    def test_the_step_is_that_of_the_coarsest_unit(self, name, vif):
        loaded = profile.load(name)
        assert loaded.spec.vif[-1] == vif
        assert loaded.head.step_ml == 10 ** int(vif[1])

    def test_a_meter_that_does_not_say_who_it_is_has_a_primary_address_only(self):
        """Selected by its identity it would be refused in each reading, because the telegram names nobody."""
        nameless = profile.load("mbus-water-no-header")
        assert nameless.parse_address("5") == Station(primary=5)
        for text in ("00123456", "1149037877040E16"):
            with pytest.raises(ProfileError, match="give its primary address"):
                nameless.parse_address(text)
            assert profile.load("mbus-water").parse_address(text) == parse_address(text)

    def case(self, *frames):
        return mbus_dialogue.decode_case(SPEC, [(bytes.fromhex(asked), bytes.fromhex(told)) for asked, told in frames])

    ANSWER = Frame(control=8, address=5, ci=0x72, data=total_telegram(SPEC, METER, 5_000)[1:]).encode().hex()

    def test_frames_of_a_case(self):
        assert self.case(("10 40 05 45 16", "E5"), ("10 7B 05 80 16", self.ANSWER)).volume_ml == 5_000
        selection = mbus.select(METER).encode().hex()
        assert self.case((selection, "E5"), ("10 7B FD 78 16", self.ANSWER)).volume_ml == 5_000

    def test_frames_that_do_not_belong_together(self):
        with pytest.raises(WrongAnswer, match="meter 5, asked was 6"):
            self.case(("10 7B 06 81 16", self.ANSWER))
        with pytest.raises(WrongAnswer, match="asked was 00123457"):
            self.case((mbus.select(NEIGHBOUR).encode().hex(), "E5"), ("10 7B FD 78 16", self.ANSWER))
        with pytest.raises(Garbled):
            self.case(("10 7B 05 80 16", self.ANSWER[:-2] + "17"))
        with pytest.raises(NoResponse):
            self.case(("10 40 05 45 16", ""))
        for asked in ("10 7B 05 81 16", "00", self.ANSWER):
            with pytest.raises(ProfileError, match="holds no request"):
                self.case((asked, self.ANSWER))
        with pytest.raises(MeterFault, match="no record is the total"):
            self.case(("10 40 05 45 16", "E5"))


@given(
    st.integers(0, 99_999_999),
    st.sampled_from(["0", "250", "00123456", "0012345624400107"]),
    st.integers(0, 255),
    st.integers(0, 255),
)
def test_what_a_meter_shows_is_what_is_read(litres, address, access, status):
    station = parse_address(address)
    content = total_telegram(SPEC, METER, litres * 1_000, access=access, status=status)
    meter = Slave(identity=METER, primary=station.primary or 0, telegrams=lambda: [content])
    measurement = drive(station, on_wire(meter), bytewise=True)
    assert measurement.volume_ml == litres * 1_000
    assert bool(measurement.flags) == bool(status & 0x1F)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.booleans())
def test_hostile_answers_end_in_our_own_errors(answers, acknowledge_first):
    heard = itertools.cycle(([b"\xe5"] if acknowledge_first else []) + answers)
    with pytest.raises(MeterError):
        drive(PRIMARY, lambda _: next(heard))
