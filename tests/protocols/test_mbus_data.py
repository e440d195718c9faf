"""M-Bus telegrams: headers, the one record that is the total, faults, flags, and the library that we do not rely on."""

import math
import struct

import meterbus
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import mbus, mbus_data
from protocols.errors import MeterFault, MeterRefused
from protocols.mbus import Frame, Identity
from protocols.mbus_data import MbusSpec, decode, encode_telegram, measurement_of
from protocols.mbus_records import encode_record
from protocols.reading import Measurement

METER = Identity(number="00123456", manufacturer=0x4024, version=1, medium=7)
SPEC = MbusSpec()


def frame_of(content):
    return Frame(control=8, address=1, ci=content[0], data=content[1:])


def telegram(records, **options):
    return frame_of(encode_telegram(METER, bytes.fromhex(records), **options))


def measure(records, spec=SPEC, *, word="00 00", **options):
    frame = telegram(records, **options)
    data = frame.data[:10] + bytes.fromhex(word) + frame.data[12:]
    return measurement_of(spec, [decode(spec, msgspec.structs.replace(frame, data=data))])


def float32(number):
    """A total as a float32, its unit before it."""
    return struct.pack("<f", number).hex()


def fixed(*, status=0, units=(0x29, 0x3F), counters=("01 00 00 00", "00 00 00 00"), medium=7, ci=0x73):
    unit_bytes = bytes((units[0] | (medium & 3) << 6, units[1] | (medium >> 2) << 6))
    number, values = bytes.fromhex("78563412"), [bytes.fromhex(counter) for counter in counters]
    if ci == 0x77:
        number, unit_bytes, values = number[::-1], unit_bytes[::-1], [value[::-1] for value in values]
    return Frame(control=8, address=5, ci=ci, data=number + bytes((10, status)) + unit_bytes + b"".join(values))


class TestTheTotal:
    @pytest.mark.parametrize(
        ("records", "volume_ml"),
        [
            ("0C 13 67 45 23 01", 1_234_567_000),
            ("04 10 FF FF FF 7F", 2**31 - 1),
            ("04 11 07 00 00 00", 70),
            ("05 13 00 00 20 41", 10_000),
            ("05 13 6F 12 83 3A", 1),
            ("84 00 13 05 00 00 00", 5_000),
            ("04 13 05 00 00 00 0F 04 13 06 00 00 00", 5_000),
            ("0C 13 00 00 00 00", 0),
        ],
    )
    def test_rows(self, records, volume_ml):
        assert measure(records) == Measurement(volume_ml=volume_ml)

    @pytest.mark.parametrize(
        "other",
        [
            "44 13",
            "84 01 13",
            "84 10 13",
            "84 40 13",
            "14 13",
            "24 13",
            "34 13",
            "04 93 7F",
            "04 93 3C",
            "04 90 28",
            "04 3B",
            "04 FB 09",
            "04 FF 13",
        ],
    )
    @pytest.mark.parametrize("order", ["first", "last"])
    def test_other_records_are_not_it(self, other, order):
        total, other = "0C 13 67 45 23 01", other + "07 00 00 00"
        assert measure(other + total if order == "first" else total + other).volume_ml == 1_234_567_000
        with pytest.raises(MeterFault, match="no record is the total"):
            measure(other)

    def test_what_was_there_is_said(self):
        with pytest.raises(MeterFault, match=r"telegram: VIF 93 7F, instantaneous; VIF 13, maximum, storage 1$"):
            measure("04 93 7F 07 00 00 00 54 13 07 00 00 00")
        with pytest.raises(MeterFault, match=r"telegram: none$"):
            measure("0C 78 01 02 03 04")

    def test_another_step_than_the_profile_s_is_named(self):
        with pytest.raises(MeterFault, match="comes with VIF 15, in steps of 100000 mL; the profile reads VIF 10, 11"):
            measure("04 15 B7 11 00 00")
        assert measure("04 15 B7 11 00 00", MbusSpec(vif=("15",))).volume_ml == 453_500_000
        assert measure("04 FB 10 02 00 00 00", MbusSpec(vif=("FB10",))).volume_ml == 2 * 10**8

    @pytest.mark.parametrize(
        ("vif", "number", "volume_ml"),
        [
            ("16", 1234.567, 1_234_567_000),
            ("16", 0.0, 0),
            ("16", 0.001, 1_000),
            ("16", 16_383.999, 16_383_999_000),
            ("14", 123_456.7, 1_234_567_000),
            ("17", 123.4567, 1_234_567_000),
            ("FB 10", 12.34567, 1_234_567_000),
            ("13", 1_234_567.0, 1_234_567_000),
        ],
    )
    def test_a_float_is_read_in_any_unit_while_its_last_bit_is_fine_enough(self, vif, number, volume_ml):
        """A unit of 1 m3 says nothing of the steps of a float; the shortest decimal that denotes it was meant."""
        assert measure(f"05 {vif} {float32(number)}").volume_ml == volume_ml

    @pytest.mark.parametrize(
        ("number", "step"),
        [(16_384.0, "1953.12"), (99_999.99, "7812.5"), (-20_000.0, "1953.12"), (3e38, "2.02824e.37")],
    )
    def test_a_float_whose_last_bit_is_coarser_says_so(self, number, step):
        said = (
            f"VIF 16 as a float, whose last bit is worth {step} mL at this size; the profile reads .* at most 1000 mL"
        )
        with pytest.raises(MeterFault, match=said):
            measure(f"05 16 {float32(number)}")

    def test_a_coarser_profile_reads_it(self):
        assert measure(f"05 16 {float32(16_384.0)}", MbusSpec(vif=("14",))).volume_ml == 16_384_000_000

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_a_float_that_is_no_number_is_no_total_in_any_unit(self, number):
        with pytest.raises(MeterFault, match="which is no number"):
            measure(f"05 16 {float32(number)}")

    @pytest.mark.parametrize("other", ["45 16", "15 16", "85 10 16", "85 40 16", "05 96 3B", "05 56", "05 06"])
    def test_a_float_elsewhere_is_something_else(self, other):
        assert measure(f"04 13 05 00 00 00 {other} {float32(7.0)}").volume_ml == 5_000
        with pytest.raises(MeterFault, match="no record is the total"):
            measure(f"{other} {float32(7.0)}")

    @pytest.mark.parametrize("number", [1234.567, 1234.57, 0.0, 7.0, float("nan")])
    def test_a_float_in_another_unit_says_nothing_against_a_total_in_a_unit_of_the_profile(self, number):
        for records in (f"04 13 87 D6 12 00 05 16 {float32(number)}", f"05 16 {float32(number)} 04 13 87 D6 12 00"):
            assert measure(records).volume_ml == 1_234_567_000

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (f"05 16 {float32(1.0)}", f"05 16 {float32(1.002)}"),
            ("04 13 87 D6 12 00", f"05 13 {float32(1_234_569.0)}"),
        ],
    )
    def test_floats_that_are_the_total_agree_to_the_litre_with_whatever_else_is(self, first, second):
        for records in (first + second, second + first):
            with pytest.raises(MeterFault, match="disagree"):
                measure(records)

    @pytest.mark.parametrize(
        ("spec", "records"),
        [
            (MbusSpec(vife="3B"), "04 93 3B 05 00 00 00"),
            (MbusSpec(vife="BA3B"), "04 93 BA 3B 05 00 00 00"),
            (MbusSpec(storage=1), "44 13 05 00 00 00"),
            (MbusSpec(tariff=2), "84 20 13 05 00 00 00"),
            (MbusSpec(subunit=3), "84 C0 40 13 05 00 00 00"),
        ],
    )
    def test_a_profile_may_name_another_place(self, spec, records):
        assert measure(records + "04 13 07 00 00 00", spec).volume_ml == 5_000

    def test_two_that_agree(self):
        assert measure("04 13 05 00 00 00 0C 13 05 00 00 00").volume_ml == 5_000
        assert measure("04 13 05 00 00 00 04 10 8B 14 00 00").volume_ml == 5_259, "the finer one is taken"

    @pytest.mark.parametrize("second", ["04 13 06 00 00 00", "04 10 70 17 00 00", "04 10 A0 0F 00 00"])
    def test_two_that_disagree(self, second):
        with pytest.raises(MeterFault, match="disagree: 5000 mL"):
            measure("04 13 05 00 00 00" + second)

    @pytest.mark.parametrize(
        ("records", "said"),
        [
            ("0C 13 FF FF FF FF", "no digits: the meter has no value"),
            ("0C 13 01 00 00 F0", "-1000 mL, which is no meter reading"),
            ("04 13 00 00 00 80", "no meter reading"),
            ("07 13 FF FF FF FF FF FF FF 7F", "no meter reading"),
            ("05 13 00 00 C0 7F", "no number"),
            ("00 13", "nothing, which is no number"),
        ],
    )
    def test_what_is_no_reading(self, records, said):
        with pytest.raises(MeterFault, match=said):
            measure(records)

    def test_the_greatest_reading(self):
        assert measure("07 10 00 80 C6 A4 7E 8D 03 00").volume_ml == 10**15
        with pytest.raises(MeterFault):
            measure("07 10 01 80 C6 A4 7E 8D 03 00")


class TestHeaders:
    def test_high_byte_first(self):
        assert measure("0C 13 01 23 45 67", ci=0x76).volume_ml == 1_234_567_000
        assert decode(SPEC, telegram("", ci=0x76)).identity == METER

    @pytest.mark.parametrize(("ci", "header"), [(0x78, ""), (0x7A, "2A 04 00 00")])
    def test_telegrams_that_do_not_say_what_is_measured(self, ci, header):
        frame = Frame(control=8, address=1, ci=ci, data=bytes.fromhex(header + "0C 13 67 45 23 01"))
        with pytest.raises(MeterFault, match="does not say what it measures, the profile wants 06, 07, 15, 16"):
            measurement_of(SPEC, [decode(SPEC, frame)])
        for media in ((), ("unsaid",), (0x07, "unsaid")):
            self._is_read_without_medium(frame, MbusSpec(media=media), header)

    def test_a_telegram_that_says_what_is_measured_is_not_unsaid(self):
        with pytest.raises(MeterFault, match=r"measures 07 \(water\), the profile wants unsaid"):
            measure("0C 13 67 45 23 01", MbusSpec(media=("unsaid",)))

    def _is_read_without_medium(self, frame, anything, header):
        flags = ("battery_low",) if header else ()
        measured = measurement_of(anything, [decode(anything, frame)])
        assert (measured.volume_ml, measured.flags, measured.is_doubtful) == (1_234_567_000, flags, False)

    @pytest.mark.parametrize("length", range(12))
    def test_a_cut_header(self, length):
        with pytest.raises(MeterFault, match="header is cut"):
            decode(SPEC, Frame(control=8, address=1, ci=0x72, data=bytes(length)))

    @pytest.mark.parametrize("medium", sorted(set(range(256)) - {0x06, 0x07, 0x15, 0x16}))
    def test_other_media(self, medium):
        other = msgspec.structs.replace(METER, medium=medium)
        frame = frame_of(encode_telegram(other, bytes.fromhex("0C 13 67 45 23 01")))
        with pytest.raises(MeterFault, match=f"the meter measures {medium:02X} "):
            measurement_of(SPEC, [decode(SPEC, frame)])

    @pytest.mark.parametrize(("ci", "word"), [(0x72, "FF FF"), (0x76, "FF FF"), (0x7A, "FF FF"), (0x72, "FF E0")])
    def test_what_is_not_encrypted_is_not_called_so(self, ci, word):
        """Mode 0, or a word filled with ones: meters older than it had a reserved "signature" there."""
        head = {0x72: "56 34 12 00 24 40 01 07", 0x76: "00 12 34 56 40 24 01 07", 0x7A: ""}[ci]
        total = "04 13 00 00 00 05" if ci == 0x76 else "04 13 05 00 00 00"
        spec = MbusSpec(media=(0x07, "unsaid"))
        frame = Frame(control=8, address=1, ci=ci, data=bytes.fromhex(head + "01 00" + word + total))
        assert measurement_of(spec, [decode(spec, frame)]).volume_ml == 5_000

    @pytest.mark.parametrize(
        "records", ["8A 4C E1 07 93 55", "04 13 05 00 00", "5F 13 05 00 00 00", "04 13 05 00 00 00 04"]
    )
    def test_a_word_of_ones_is_believed_only_with_whole_records_behind_it(self, records):
        with pytest.raises(MeterFault):
            measure(records, word="FF FF")

    @pytest.mark.parametrize("mode", range(1, 32))
    def test_every_mode_is_refused_and_those_that_nobody_defines_are_not_called_encrypted_outright(self, mode):
        word = f"00 {mode:02X}"
        said = rf"telegram {'is' if mode < 16 else 'may be'} encrypted \(mode {mode}\)"
        with pytest.raises(MeterFault, match=said):
            measure("04 13 05 00 00 00", word=word)

    @pytest.mark.parametrize(
        ("ci", "word"), [(0x72, "20 05"), (0x76, "05 20"), (0x72, "FE FF"), (0x72, "FF BF"), (0x7A, "00 07")]
    )
    def test_encrypted(self, ci, word):
        head = "56 34 12 00 24 40 01 07" if ci != 0x7A else ""
        data = bytes.fromhex(head + "01 00" + word + "04 13 05 00 00 00")
        with pytest.raises(MeterFault, match=r"encrypted \(mode \d+\)"):
            decode(SPEC, Frame(control=8, address=1, ci=ci, data=data))

    @pytest.mark.parametrize(("data", "said"), [("08", "error 8: busy"), ("", "error 0: unspec"), ("7F", "reserved")])
    def test_error_reports(self, data, said):
        with pytest.raises(MeterRefused, match=said):
            decode(SPEC, Frame(control=8, address=1, ci=0x70, data=bytes.fromhex(data)))

    def test_an_alarm_in_place_of_data(self):
        with pytest.raises(MeterFault, match="alarm in place of data: 04"):
            decode(SPEC, Frame(control=8, address=1, ci=0x71, data=b"\4"))

    @pytest.mark.parametrize("ci", sorted(set(range(256)) - {0x70, 0x71, 0x72, 0x73, 0x76, 0x77, 0x78, 0x7A}))
    def test_other_kinds(self, ci):
        with pytest.raises(MeterFault, match=f"CI {ci:02X} are not understood"):
            decode(SPEC, Frame(control=8, address=1, ci=ci, data=telegram("04 13 05 00 00 00").data))


class TestFlags:
    @pytest.mark.parametrize(
        ("status", "flags"),
        [
            (0x00, ()),
            (0x01, ("application_busy",)),
            (0x02, ("application_error",)),
            (0x03, ("alarm",)),
            (0x04, ("battery_low",)),
            (0x08, ("permanent_error",)),
            (0x10, ("temporary_error",)),
            (0xE0, ()),
            (0x27, ("alarm", "battery_low")),
        ],
    )
    def test_status(self, status, flags):
        measured = measure("04 13 05 00 00 00", status=status)
        assert (measured.volume_ml, measured.flags) == (5_000, flags)
        assert measured.is_doubtful == bool(set(flags) - {"battery_low"})

    def test_bits_of_the_maker_have_the_names_of_the_profile(self):
        spec = MbusSpec(status={"leak": 5, "valve_closed": 6})
        assert measure("04 13 05 00 00 00", spec, status=0x60).flags == ("leak", "valve_closed")


class TestFixedStructure:
    """The frame of the M-Bus documentation and what follows from its table of units."""

    def measure(self, spec=SPEC, **options):
        return measurement_of(spec, [decode(spec, fixed(**options))])

    def test_the_example_of_the_documentation(self):
        frame = mbus.parse_frame(
            bytes.fromhex("68 13 13 68 08 05 73 78 56 34 12 0A 00 E9 7E 01 00 00 00 35 01 00 00 3C 16")
        )
        telegram = decode(SPEC, frame)
        assert (telegram.medium, telegram.access, str(telegram.identity)) == (7, 10, "12345678")
        assert measurement_of(SPEC, [telegram]) == Measurement(volume_ml=1_000)
        assert fixed(units=(0x29, 0x3E), counters=("01 00 00 00", "35 01 00 00")) == frame

    @pytest.mark.parametrize("power", range(9))
    def test_units(self, power):
        spec = MbusSpec(vif=(*(f"1{digit}" for digit in range(8)), "FB10"))
        volume = self.measure(spec, units=(0x26 + power, 0x3F), counters=("12 00 00 00", "FF FF FF FF"))
        assert volume.volume_ml == 12 * 10**power

    def test_binary_counters_and_high_byte_first(self):
        assert self.measure(status=1, counters=("12 00 00 00", "0A 00 00 00")).volume_ml == 18_000
        assert self.measure(ci=0x77, counters=("12 00 00 00", "00 00 00 00")).volume_ml == 12_000

    @pytest.mark.parametrize(
        ("status", "flags"), [(0x04, ("battery_low",)), (0x18, ("permanent_error", "temporary_error"))]
    )
    def test_status(self, status, flags):
        assert self.measure(status=status).flags == flags

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"status": 2}, "storage 1"),  # both counters are of a date in the past
            ({"units": (0x05, 0x3F)}, "no record is the total"),  # kWh
            ({"units": (0x29, 0x29)}, "disagree"),
            ({"medium": 4}, r"measures 04 \(heat\)"),
            ({"counters": ("0A 00 00 00", "00 00 00 00")}, "no digits"),
        ],
    )
    def test_what_is_no_reading(self, options, said):
        with pytest.raises(MeterFault, match=said):
            self.measure(**options)

    @pytest.mark.parametrize("length", [0, 3, 4, 15, 17])
    def test_other_lengths(self, length):
        with pytest.raises(MeterFault, match=f"16 bytes, not {length}"):
            decode(SPEC, Frame(control=8, address=1, ci=0x73, data=bytes(length)))


class TestWhyNoLibrary:
    """docs/decisions/0003: pyMeterBus 0.8.5 makes a total of these telegrams, we make none."""

    def theirs(self, records):
        found = meterbus.load(telegram(records).encode()).records
        return [
            round(float(record.interpreted["value"]) * 10**6)
            for record in found
            if record.interpreted["type"] == "VIFUnit.VOLUME" and record.interpreted["value"] is not None
        ]

    @pytest.mark.parametrize(
        ("records", "volume_ml"),
        [
            # The content of a record of variable length (F0: 16 bytes) is taken for records.
            ("0D 78 F0 04 13 39 30 00 00 0F 00 00 00 00 00 00 00 00 00 04 13 01 00 00 00", 12_345_000),
            # Digits that are none, and a counter that says with FF that it has no value.
            ("0C 13 0A 00 00 00", 10_000),
            ("0C 13 FF FF FF FF", -15_151_515_000),
            # A telegram that ends within a record.
            ("04 13 01 00 00 00 84", 1_000),
        ],
    )
    def test_a_number_where_there_is_none(self, records, volume_ml):
        assert self.theirs(records) == [volume_ml]
        with pytest.raises(MeterFault):
            measure(records)


class TestSpec:
    @pytest.mark.parametrize(
        ("table", "said"),
        [
            ({"vif": []}, "`vif` names no volume"),
            ({"vif": ["18"]}, "matching regex"),
            ({"vife": "3"}, "not a chain of VIFE"),
            ({"vife": "3B3C"}, "not a chain of VIFE"),
            ({"vife": "BA"}, "not a chain of VIFE"),
            ({"status": {"broken": 5}}, "flag 'broken' is not one of battery_low"),
            ({"status": {"leak": 4}}, ">= 5"),
            ({"media": [256]}, "<= 255"),
            ({"media": ["water"]}, "Invalid enum value 'water'"),
            ({"storage": -1}, ">= 0"),
            ({"adress": 1}, "unknown field"),
        ],
    )
    def test_mistakes(self, table, said):
        with pytest.raises(msgspec.ValidationError, match=said):
            msgspec.convert(table, MbusSpec)


class TestProperties:
    @given(
        st.integers(0, 99_999_999),
        st.sampled_from(["10", "11", "12", "13", "14", "15", "16", "17", "FB10"]),
        st.sampled_from(["", "3B", "BA3B"]),
        st.tuples(st.integers(0, 2**41 - 1), st.integers(0, 2**20 - 1), st.integers(0, 2**10 - 1)),
    )
    def test_what_a_meter_shows_is_read(self, count, vif, vife, place):
        storage, tariff, subunit = place
        spec = MbusSpec(vif=(vif,), vife=vife, storage=storage, tariff=tariff, subunit=subunit)
        step_ml = 10 ** (8 if vif == "FB10" else int(vif[1]))
        record = mbus_data.total_record(spec, count * step_ml)
        content = encode_telegram(METER, encode_record(record))
        found = decode(spec, frame_of(content))
        if count * step_ml > mbus_data.VOLUME_ML_MAX:
            with pytest.raises(MeterFault):
                measurement_of(spec, [found])
        else:
            assert measurement_of(spec, [found]) == Measurement(volume_ml=count * step_ml)

    @given(st.sampled_from([0x70, 0x71, 0x72, 0x73, 0x76, 0x77, 0x78, 0x7A]), st.binary(max_size=252))
    def test_hostile_bytes_end_in_our_own_errors(self, ci, data):
        spec = MbusSpec(media=())
        try:
            found = measurement_of(spec, [decode(spec, Frame(control=8, address=1, ci=ci, data=data))])
        except (MeterFault, MeterRefused):
            pass
        else:
            assert 0 <= found.volume_ml <= 10**15
