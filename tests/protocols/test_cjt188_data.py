"""CJ/T 188 data: totals, units, decimals, empty fields, clocks, status words, layouts and profiles' mistakes."""

import datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocols import cjt188_data
from protocols.cjt188_data import FREEZE_LAYOUT, LAYOUTS, SETTLED_LAYOUT, Cjt188Spec, ClockState
from protocols.errors import MeterFault, UsageError

STANDARD = LAYOUTS["standard"]
NO_CLOCK = "00 00 00 00 00 00 00"


def standard(total="00 02 00 00 2C", settled="00 01 00 00 2C", clock=NO_CLOCK, status="00 FF"):
    return bytes.fromhex(total + settled + clock + status)


def decode(content, *, layout=STANDARD, **spec):
    return cjt188_data.decode(Cjt188Spec(**spec), layout, content)


class TestTotals:
    def test_a_captured_answer(self):
        record = decode(standard())
        assert (record.total_ml, record.settled_ml, record.status) == (2_000_000, 1_000_000, b"\x00\xff")
        assert record.settled_fault is None
        assert (record.clock, record.clock_state) == (None, ClockState.ABSENT)

    @pytest.mark.parametrize(
        ("unit", "decimals", "volume_ml"),
        [
            ("29", 0, 12_345_678_000),
            ("29", 2, 123_456_780),
            ("29", 3, 12_345_678),
            ("2A", 2, 1_234_567_800),
            ("2B", 2, 12_345_678_000),
            ("2C", 0, 12_345_678_000_000),
            ("2C", 2, 123_456_780_000),
            ("2C", 3, 12_345_678_000),
            ("2C", 6, 12_345_678),
            ("2D", 2, 1_234_567_800_000),
            ("2E", 2, 12_345_678_000_000),
            ("2E", 8, 12_345_678),
        ],
    )
    def test_units_and_decimals(self, unit, decimals, volume_ml):
        content = standard(total="78 56 34 12" + unit, settled="FF FF FF FF" + unit)
        record = decode(content, decimals={unit: decimals})
        assert (record.total_ml, record.settled_ml) == (volume_ml, None)

    @pytest.mark.parametrize("unit", ["29", "2D", "00", "FF", "35", "AC"])
    def test_a_unit_that_the_profile_does_not_name_is_never_guessed(self, unit):
        with pytest.raises(MeterFault, match=f"unit code of the total is {unit}.*Compare 200 with the dial"):
            decode(standard(total="00 02 00 00" + unit))

    @pytest.mark.parametrize("settled", ["00 00 00 00 00", "00 02 00 00 00", "00 01 00 00 29", "00 01 00 00 FF"])
    def test_the_total_of_today_stands_where_that_of_the_settlement_day_has_no_unit_that_is_known(self, settled):
        """A meter that never settled may send 00 for the unit. No rule asks for that total; a home hangs on today's."""
        record = decode(standard(settled=settled))
        assert (record.total_ml, record.settled_ml, record.status) == (2_000_000, None, b"\x00\xff")
        assert f"unit code of the settled total is {settled[-2:]}" in record.settled_fault

    @pytest.mark.parametrize("layout", [SETTLED_LAYOUT, FREEZE_LAYOUT])
    def test_nobody_is_sent_to_change_the_layout_of_today_for_a_total_of_the_past(self, layout):
        """A meter that never settled sends 00 for the unit; the layout of today's total is right."""
        past = bytes.fromhex("00000000 00")
        content = past if layout == SETTLED_LAYOUT else bytes(7) + past + bytes.fromhex("00000000 35") + bytes(6)
        with pytest.raises(MeterFault, match="unit code of the past total is 00") as fault:
            decode(content, layout=layout)
        of_settlement_day = decode(standard(settled="00 00 00 00 00")).settled_fault
        for text in (str(fault.value), of_settlement_day):
            assert "a meter that never settled has none there. Leave `layout` as it is" in text
            assert "`unit`" not in text
            assert "total:4" not in text

    def test_a_unit_of_the_past_that_a_profile_can_name_is_asked_for(self):
        with pytest.raises(MeterFault, match=r"Compare 200 with what the dial showed on that day before you add it$"):
            decode(bytes.fromhex("00020000 29"), layout=SETTLED_LAYOUT)
        assert decode(standard(settled="00 02 00 00 29")).settled_fault.endswith("before you add it")

    def test_a_reading_that_is_nothing_but_its_total_is_no_past_one(self):
        spec = msgspec.convert({"layout": SETTLED_LAYOUT}, Cjt188Spec)
        with pytest.raises(MeterFault, match=r"unit code of the total is 00.*pass over it"):
            cjt188_data.decode(spec, spec.fields, bytes.fromhex("00020000 00"))

    @pytest.mark.parametrize("unit", ["00", "FF", "35", "AC"])
    def test_what_no_profile_can_name_is_not_asked_for(self, unit):
        """`decimals` takes no code that is none of a volume, so the message says what can be written instead."""
        with pytest.raises(MeterFault, match=r"before you give `unit`.*\(\"total:4\", \"other:1\""):
            decode(standard(total="00 02 00 00" + unit))
        layout = ("total:4", "other:1", "settled:4", "other:1", "clock:7", "status:2")
        spec = msgspec.convert({"layout": layout, "unit": "2C"}, Cjt188Spec)
        assert cjt188_data.decode(spec, layout, standard(total="00 02 00 00" + unit)).total_ml == 2_000_000

    @pytest.mark.parametrize("unit", ["29", "2D"])
    def test_what_a_profile_can_name_is_asked_for(self, unit):
        with pytest.raises(MeterFault, match=r"Compare 200 with the dial before you add it$"):
            decode(standard(total="00 02 00 00" + unit))

    @pytest.mark.parametrize("filled", ["FF FF FF FF", "99 99 99 99"])
    @pytest.mark.parametrize("unit", ["2C", "FF", "99", "00"])
    def test_filled_fields_are_absent_whatever_their_unit(self, filled, unit):
        record = decode(standard(settled=filled + unit))
        assert (record.settled_ml, record.settled_fault) == (None, None)
        assert decode(standard(total=filled + unit)).total_ml is None

    @pytest.mark.parametrize("digits", ["0A 00 00 00", "00 00 00 F0", "FF FF FF 00", "00 02 00 AA", "EE EE EE EE"])
    def test_other_half_bytes_are_no_value(self, digits):
        with pytest.raises(MeterFault, match="no BCD digits"):
            decode(standard(total=digits + "2C"))
        record = decode(standard(settled=digits + "2C"))
        assert (record.total_ml, record.settled_ml) == (2_000_000, None)
        assert record.settled_fault == f"{digits} are no BCD digits"

    def test_zero_is_a_reading(self):
        assert decode(standard(total="00 00 00 00 2C")).total_ml == 0

    def test_more_than_any_meter_can_show(self):
        layout = ("total:6+unit",)
        content = bytes.fromhex("99 99 99 99 99 98 2E")
        with pytest.raises(MeterFault, match="no meter reading"):
            decode(content, layout=layout, decimals={"2E": 0})
        assert decode(bytes.fromhex("00 00 00 10 00 00 2E"), layout=layout, decimals={"2E": 0}).total_ml == 10**15

    def test_short_answer(self):
        record = decode(bytes.fromhex("10 00 10 00 2C 5A"), layout=LAYOUTS["short"])
        assert (record.total_ml, record.settled_ml, record.status) == (1_000_100_000, None, None)

    def test_integer_and_decimals_in_two_fields(self):
        content = bytes.fromhex("34 12 00 00 90 78 56 50 12 00 23 30 45 12 11 07 13 00 01")
        record = decode(content, layout=LAYOUTS["rd-w10"], unit="2C", decimals={"2C": 6})
        assert record.total_ml == 1_234_567_890
        assert record.clock == datetime.datetime(2013, 7, 11, 12, 45, 30)
        assert record.status == b"\x00\x01"

    @pytest.mark.parametrize(("fraction", "total_ml"), [("98 99 99", 1_234_999_998), ("00 00 00", 1_234_000_000)])
    def test_decimals_at_their_ends(self, fraction, total_ml):
        content = bytes.fromhex(f"34 12 00 00 {fraction} 00 00 00 00 00 00 00 00 00 00 00 00")
        assert decode(content, layout=LAYOUTS["rd-w10"], unit="2C", decimals={"2C": 6}).total_ml == total_ml

    @pytest.mark.parametrize("fraction", ["FF FF FF", "99 99 99"])
    def test_a_total_without_its_decimals_is_no_total(self, fraction):
        content = bytes.fromhex(f"34 12 00 00 {fraction} 00 00 00 00 00 00 00 00 00 00 00 00")
        with pytest.raises(MeterFault, match=f"decimals of the total are empty .{fraction}"):
            decode(content, layout=LAYOUTS["rd-w10"], unit="2C", decimals={"2C": 6})

    @pytest.mark.parametrize("fraction", ["FF FF FF", "00 00 00"])
    def test_an_empty_total_with_decimals_is_empty(self, fraction):
        content = bytes.fromhex(f"FF FF FF FF {fraction} 00 00 00 00 00 00 00 00 00 00 00 00")
        assert decode(content, layout=LAYOUTS["rd-w10"], unit="2C", decimals={"2C": 6}).total_ml is None

    def test_settled_month(self):
        assert decode(bytes.fromhex("47 12 00 00 2C"), layout=SETTLED_LAYOUT).total_ml == 12_470_000

    def test_freeze_of_2018(self):
        content = bytes.fromhex(
            "20 26 01 08 14 30 00 | 47 12 00 00 2C | 00 25 01 00 35 | 50 21 00 | 30 00 00".replace("|", "")
        )
        record = decode(content, layout=FREEZE_LAYOUT)
        assert record.clock == datetime.datetime(2026, 1, 8, 14, 30)
        assert record.total_ml == 12_470_000
        assert (record.flow_l_h, record.temperature_c, record.pressure) == (1250, Decimal("21.5"), Decimal("0.3"))

    def test_freeze_with_empty_fields(self):
        content = b"\xff" * 7 + bytes.fromhex("47 12 00 00 2C") + b"\xff" * 11
        record = decode(content, layout=FREEZE_LAYOUT)
        assert record.total_ml == 12_470_000
        assert (record.clock, record.flow_l_h, record.temperature_c, record.pressure) == (None, None, None, None)

    def test_a_flow_needs_a_flow_unit(self):
        content = bytes(7) + bytes.fromhex("47 12 00 00 2C 00 25 01 00 2C") + bytes(6)
        with pytest.raises(MeterFault, match="2C is no unit code of a flow"):
            decode(content, layout=FREEZE_LAYOUT)


class TestClock:
    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("06 20 17 09 01 17 20", "2017-01-09 17:20:06"),  # FrameCJT188_2004, captured
            ("31 01 22 11 05 15 20", "2015-05-11 22:01:31"),  # csdn.net 46824903
            ("20 16 07 15 09 59 59", "2016-07-15 09:59:59"),  # high byte first, PHP test file
            ("59 59 23 29 02 24 20", "2024-02-29 23:59:59"),
        ],
    )
    def test_both_byte_orders(self, text, moment):
        expected = datetime.datetime.fromisoformat(moment)
        assert cjt188_data.decode_clock(bytes.fromhex(text)) == (expected, ClockState.SET)
        assert cjt188_data.decode_clock(bytes.fromhex(text)[::-1]) == (expected, ClockState.SET)

    @pytest.mark.parametrize(
        ("text", "state"),
        [
            ("00 00 00 00 00 00 00", ClockState.ABSENT),
            ("FF FF FF FF FF FF FF", ClockState.ABSENT),
            ("99 99 99 99 99 99 99", ClockState.ABSENT),
            ("06 60 17 09 01 17 20", ClockState.INVALID),  # minute 60
            ("06 20 17 30 02 17 20", ClockState.INVALID),  # 30 February
            ("06 20 17 09 01 17 19", ClockState.INVALID),  # last century
            ("06 20 17 09 01 1A 20", ClockState.INVALID),
            ("06 20 17 09 01 00 00", ClockState.INVALID),
            ("20 16 07 15 09 11 20", ClockState.AMBIGUOUS),  # 2011-09-15 07:16:20 or 2016-07-15 09:11:20
        ],
    )
    def test_no_clock_never_fails_a_reading(self, text, state):
        record = decode(standard(clock=text))
        assert (record.clock, record.clock_state, record.total_ml) == (None, state, 2_000_000)

    @given(st.binary(min_size=7, max_size=7))
    def test_whatever_the_bytes(self, data):
        moment, state = cjt188_data.decode_clock(data)
        assert (moment is not None) == (state is ClockState.SET)

    @given(st.datetimes(min_value=datetime.datetime(2000, 1, 1), max_value=datetime.datetime(2099, 12, 31, 23, 59, 59)))
    def test_every_moment_is_read_or_left_open(self, moment):
        wanted = moment.replace(microsecond=0)
        data = bytes.fromhex(f"{moment:%S%M%H%d%m}{moment.year % 100:02d}20")
        for wire in (data, data[::-1]):
            read, state = cjt188_data.decode_clock(wire)
            assert read == wanted if state is ClockState.SET else state is ClockState.AMBIGUOUS


STATUS_BITS = {"valve_closed": "ST0.0", "valve_fault": "ST0.1", "battery_low": "ST0.2", "leak": "ST1.7"}


class TestStatus:
    @pytest.mark.parametrize(
        ("status", "flags"),
        [
            ("00 00", ()),
            ("01 00", ("valve_closed",)),
            ("02 00", ("valve_fault",)),
            ("03 00", ("valve_fault",)),
            ("04 00", ("battery_low",)),
            ("05 80", ("battery_low", "leak", "valve_closed")),
            ("F8 7F", ()),
        ],
    )
    def test_named_bits(self, status, flags):
        record = decode(standard(status=status), status=STATUS_BITS)
        assert (record.flags, record.status) == (flags, bytes.fromhex(status))

    def test_the_mirror_image_that_one_driver_has(self):
        bits = {"valve_closed": "ST0.6", "battery_low": "ST0.5"}
        assert decode(standard(status="20 00"), status=bits).flags == ("battery_low",)
        assert decode(standard(status="40 00"), status=bits).flags == ("valve_closed",)

    def test_without_names_the_word_stays_raw(self):
        assert decode(standard(status="FF FF")).flags == ()

    @pytest.mark.parametrize("status", ["FF FF", "99 99"])
    def test_an_absent_status_raises_no_flag(self, status):
        record = decode(standard(status=status), status=STATUS_BITS)
        assert (record.flags, record.status) == ((), bytes.fromhex(status))


class TestSpec:
    @pytest.mark.parametrize(
        ("table", "text"),
        [
            ({"layout": "ultrasonic"}, "'ultrasonic' is neither a list of fields nor one of standard, short, rd-w10"),
            ({"layout": ["unit:1"]}, "'unit:1' is not of the form kind:bytes"),
            ({"layout": ["total:0+unit"]}, "not of the form"),
            ({"layout": ["settled:4+unit"]}, "has no total"),
            ({"layout": ["total:4+unit", "total:4+unit"]}, "each field once"),
            ({"layout": ["total:4+unit", "clock:5"]}, "a clock has 6 or 7 bytes"),
            ({"layout": ["total:4+unit", "status:1"]}, "a status has 2 bytes"),
            ({"layout": ["total:4+unit", "status:2+unit"]}, "no unit code belongs to it"),
            ({"layout": ["total:4+unit", *["other:9"] * 11]}, "at most 97 bytes"),
            ({"layout": ["total:4", "clock:7"]}, "needs `unit`"),
            ({"layout": ["total:4+unit", "settled:4"]}, "needs `unit`"),
            ({"layout": ["total:4+unit", "fraction:3"]}, "needs `unit`"),
            ({"layout": ["total:4"], "unit": "29"}, "`decimals` says nothing of unit '29'"),
            ({"layout": ["total:4"], "unit": "30"}, "unit '30' is not one of 29, 2A, 2B, 2C, 2D, 2E"),
            ({"decimals": {"2c": 2}}, "unit '2c' is not one of"),
            ({"decimals": {"29": 4}}, "4 decimals of unit 29 are less than a millilitre"),
            ({"decimals": {"2C": 9}}, "<= 8"),
            ({"decimals": {"2C": -1}}, ">= 0"),
            ({"decimals": {}}, "`decimals` names no unit"),
            ({"di_order": "9F01"}, "Invalid enum value '9F01'"),
            ({"meter_type": 256}, "<= 255"),
            ({"preamble_bytes": 33}, "<= 32"),
            ({"meter_type": 0x09}, ">= 16"),
            ({"tx_prefix": "0 05"}, "tx_prefix '0 05' is not hexadecimal"),
            ({"tx_prefix": "6810010000050800000404A0170099DE16"}, "has 17 bytes; at most 7"),  # closes a valve
            ({"tx_prefix": "11 06 00 1C 00 02 C9 CD"}, "has 8 bytes; at most 7"),  # closes one over Modbus
            ({"tx_prefix": "00 68"}, "'00 68' holds a 68, with which a frame begins"),
            ({"status": {"battery": "ST0.2"}}, "flag 'battery' is not one of battery_low"),
            ({"status": {"battery_low": "ST0.8"}}, "'ST0.8' is not of the form ST0.2"),
            ({"status": {"battery_low": "ST2.0"}}, "'ST2.0' is not of the form ST0.2"),
            ({"status": {"leak": "ST0.2 maybe"}}, "form ST0.2, or ST0.2 with one of doubtful, stands"),
            ({"valve": {"open": 0x99, "close": 0x99}}, "<= 85"),
            ({"valve": {"open": 0x55, "close": 0x77}}, ">= 153"),
            ({"valve": {"open": 0x55, "close": 0x99, "control": 0x16}}, "valve.control is 0x04"),
            ({"valve": {"open": 0x55}}, "missing required field `close`"),
            ({"ser": 1}, "unknown field `ser`"),
        ],
    )
    def test_mistakes_are_named(self, table, text):
        with pytest.raises(msgspec.ValidationError) as error:
            msgspec.convert(table, Cjt188Spec)
        assert text in str(error.value)

    def test_a_profile_may_bring_its_own_layout(self):
        spec = msgspec.convert({"layout": ["other:2", "total:3+unit"], "decimals": {"29": 0}}, Cjt188Spec)
        assert cjt188_data.decode(spec, spec.fields, bytes.fromhex("FF FF 56 34 12 29")).total_ml == 123_456_000

    @pytest.mark.parametrize("identifier", [0x901F, 0xD120, 0xD12B, 0xD200, 0xD2FF, 0xD300, 0xD3FF, 0xD400, 0xD4FF])
    def test_identifiers_with_a_total(self, identifier):
        layout = cjt188_data.layout_of(Cjt188Spec(), identifier)
        length = 3 + cjt188_data.content_bytes(cjt188_data.parse_layout(layout))
        assert length == {0x90: 0x16, 0xD1: 8, 0xD2: 8, 0xD3: 0x1A, 0xD4: 0x1A}[identifier >> 8]

    @pytest.mark.parametrize("identifier", [0x1F90, 0xD11F, 0xD12C, 0xD1FF, 0xD500, 0x810A])
    def test_identifiers_without(self, identifier):
        with pytest.raises(UsageError, match=f"{identifier:04X} holds no total"):
            cjt188_data.layout_of(Cjt188Spec(), identifier)


class TestPastTotals:
    """Settled and frozen totals have four bytes and a unit, whatever form today's total has."""

    ODD = (
        Cjt188Spec(layout="rd-w10", unit="2C", decimals={"2C": 6}),
        Cjt188Spec(layout=("total:5+unit",), decimals={"2C": 3}),
        Cjt188Spec(layout=("total:3+unit",), decimals={"2C": 1}),
    )

    @pytest.mark.parametrize("spec", ODD)
    @pytest.mark.parametrize("identifier", [0xD120, 0xD2FF, 0xD300, 0xD4FF])
    def test_decimals_of_a_total_of_another_form_are_not_applied(self, spec, identifier):
        """`decimals` = 6 of RD-W10 counts its fraction; 47 12 00 00 2C of D120 would become 0.001247 m3."""
        assert not cjt188_data.knows_past(spec)
        with pytest.raises(UsageError, match="how many decimals its past totals have is not known"):
            cjt188_data.layout_of(spec, identifier)
        assert cjt188_data.layout_of(spec, 0x901F) == spec.fields
        settled, freeze = bytes.fromhex("47 12 00 00 2C"), bytes(7) + bytes.fromhex("47 12 00 00 2C") + b"\xff" * 11
        for layout, content in ((SETTLED_LAYOUT, settled), (FREEZE_LAYOUT, freeze)):
            with pytest.raises(UsageError, match="form of its own"):
                cjt188_data.decode(spec, layout, content)

    @pytest.mark.parametrize("layout", ["standard", "short", ("other:2", "total:4+unit"), ("total:4",)])
    def test_those_of_the_usual_form_are(self, layout):
        spec = Cjt188Spec(layout=layout, unit="2C")
        assert cjt188_data.knows_past(spec)
        assert cjt188_data.decode(spec, SETTLED_LAYOUT, bytes.fromhex("47 12 00 00 2C")).total_ml == 12_470_000


SPECS = [
    Cjt188Spec(),
    Cjt188Spec(decimals={"29": 0}),
    Cjt188Spec(decimals={"29": 2, "2C": 2}),
    Cjt188Spec(layout="short"),
    Cjt188Spec(layout="rd-w10", unit="2C", decimals={"2C": 6}),
    Cjt188Spec(layout=("clock:7", "total:5+unit", "other:3"), decimals={"2E": 8}),
]


class TestEncode:
    @given(st.sampled_from(SPECS), st.integers(0, 10**12), st.binary(min_size=2, max_size=2))
    def test_round_trip_up_to_the_meters_step(self, spec, volume_ml, status):
        unit = spec.unit or next(iter(spec.decimals))
        step_ml = cjt188_data.UNIT_ML[unit] // 10 ** spec.decimals[unit]
        volume_ml %= 99_999_999 * step_ml
        assume(spec.layout != "rd-w10" or volume_ml % 1_000_000 != 999_999)  # as if the meter had no decimals
        content = cjt188_data.encode(spec, spec.fields, total_ml=volume_ml, status=status)
        record = cjt188_data.decode(spec, spec.fields, content)
        assert record.total_ml == volume_ml // step_ml * step_ml
        assert record.status in (None, status)

    @given(st.integers(0, 99_999_998))
    def test_history_and_freezes(self, count):
        for layout in (SETTLED_LAYOUT, FREEZE_LAYOUT):
            content = cjt188_data.encode(Cjt188Spec(), layout, total_ml=count * 10_000)
            assert decode(content, layout=layout).total_ml == count * 10_000

    def test_what_does_not_fit_is_our_own_mistake(self):
        for total_ml in (10**12, -1):
            with pytest.raises(UsageError, match="does not fit 4 bytes of BCD"):
                cjt188_data.encode(Cjt188Spec(), STANDARD, total_ml=total_ml)

    @given(st.integers(1, 8), st.data())
    def test_bcd(self, size, data):
        number = data.draw(st.integers(0, 100**size - 1))
        assert cjt188_data.decode_bcd(cjt188_data.encode_bcd(number, size)) == number


@given(st.binary(min_size=19, max_size=19))
def test_whatever_the_bytes_there_is_a_record_or_a_fault(content):
    try:
        record = decode(content)
    except MeterFault:
        return
    for volume_ml in (record.total_ml, record.settled_ml):
        assert volume_ml is None or (0 <= volume_ml < 10**12 and volume_ml % 10_000 == 0)
