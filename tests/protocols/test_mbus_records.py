"""M-Bus records: codings, chains, cuts, and numbers; pyMeterBus reads the same values where it reads any."""

from decimal import Decimal

import meterbus
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import mbus, mbus_data, mbus_records
from protocols.errors import MeterFault, UsageError
from protocols.mbus_records import BCD_BYTES, INTEGER_BYTES, Record, decode_number, encode_record, parse_records

METER = mbus.Identity(number="00123456", manufacturer=0x4024, version=1, medium=7)


def parse(text, *, high_byte_first=False):
    return parse_records(bytes.fromhex(text), high_byte_first=high_byte_first)


def only(text, **options):
    (record,), is_followed = parse(text, **options)
    assert not is_followed
    return record


class TestNumbers:
    @pytest.mark.parametrize(
        ("wire", "number"),
        [
            ("01 13 FF", -1),
            ("02 13 39 30", 12345),
            ("03 13 15 31 00", 12565),
            ("04 13 31 D4 00 00", 54321),
            ("04 13 FF FF FF FF", -1),
            ("06 13 01 00 00 00 00 01", 2**40 + 1),
            ("07 13 00 00 00 00 00 00 00 80", -(2**63)),
            ("09 13 99", 99),
            ("0A 13 34 12", 1234),
            ("0B 13 56 34 12", 123456),
            ("0C 13 67 45 23 01", 1234567),
            ("0C 13 01 00 00 F0", -1),
            ("0C 13 00 00 00 F0", 0),
            ("0E 13 56 34 12 90 78 56", 567890123456),
            ("05 13 00 00 20 41", 10),
        ],
    )
    def test_rows(self, wire, number):
        assert decode_number(only(wire)) == number

    def test_a_float_is_the_shortest_decimal_that_denotes_it(self):
        assert decode_number(only("05 16 1F 85 0B 3F")) == Decimal("0.545")
        assert decode_number(only("05 16 CD CC 4C 3E")) == Decimal("0.2")

    @pytest.mark.parametrize(
        "wire",
        [
            "0C 13 FF FF FF FF",
            "0C 13 0A 00 00 00",
            "0C 13 00 00 00 A0",
            "0C 13 00 00 F0 00",
            "05 13 00 00 C0 7F",
            "05 13 00 00 80 7F",
            "00 13",
            "08 13",
            "0D 13 02 31 32",
        ],
    )
    def test_what_is_no_number(self, wire):
        with pytest.raises(MeterFault, match=r"no digits|no number"):
            decode_number(only(wire))

    @pytest.mark.parametrize(("number", "size"), [(100, 1), (-10, 1), (10**8, 4), (-(10**7), 4)])
    def test_what_does_not_fit(self, number, size):
        with pytest.raises(UsageError, match="does not fit"):
            mbus_records.encode_bcd(number, size)


class TestChains:
    @pytest.mark.parametrize(
        ("wire", "storage", "tariff", "subunit", "function"),
        [
            ("01 13 00", 0, 0, 0, 0),
            ("41 13 00", 1, 0, 0, 0),
            ("81 00 13 00", 0, 0, 0, 0),
            ("81 01 13 00", 2, 0, 0, 0),
            ("C1 01 13 00", 3, 0, 0, 0),
            ("81 10 13 00", 0, 1, 0, 0),
            ("81 40 13 00", 0, 0, 1, 0),
            ("91 80 40 13 00", 0, 0, 2, 1),
            ("A1 B1 12 13 00", 2 | 2 << 5, 3 | 1 << 2, 0, 2),
            ("31 13 00", 0, 0, 0, 3),
            ("81 80 80 80 80 80 80 80 80 80 01 13 00", 1 << 37, 0, 0, 0),
        ],
    )
    def test_where_a_value_belongs(self, wire, storage, tariff, subunit, function):
        record = only(wire)
        assert (record.storage, record.tariff, record.subunit, record.function) == (storage, tariff, subunit, function)

    @pytest.mark.parametrize(
        ("wire", "vif", "vife"),
        [
            ("01 10 00", "10", ""),
            ("01 17 00", "17", ""),
            ("01 93 7F 00", "13", "7F"),
            ("01 93 BA 3C 00", "13", "BA3C"),
            ("01 FB 10 00", "FB10", ""),
            ("01 FB 91 3C 00", "FB11", "3C"),
        ],
    )
    def test_volumes(self, wire, vif, vife):
        assert only(wire).volume_vib == (vif, vife)

    @pytest.mark.parametrize("wire", ["01 0F 00", "01 18 00", "01 3B 00", "01 FB 0F 00", "01 FD 10 00", "01 7F 00"])
    def test_other_quantities(self, wire):
        assert only(wire).volume_vib is None

    def test_steps(self):
        steps = {f"1{power}": 10**power for power in range(8)} | {"FB10": 10**8, "FB11": 10**9}
        assert {vif: only(f"01 {vif} 00").step_ml for vif in steps} == steps

    def test_text(self):
        plain, extended = parse("02 7C 09 65 6D 69 74 20 2E 74 61 62 D4 09 02 FC 03 48 52 25 74 D4 11")[0]
        assert (plain.text, plain.value.hex()) == ("bat. time", "d409")
        assert (extended.text, extended.vib.hex(), extended.value.hex()) == ("%RH", "fc74", "d411")

    def test_high_byte_first(self):
        assert decode_number(only("04 13 00 00 30 39", high_byte_first=True)) == 12345

    def test_what_follows_a_variable_length(self):
        record = only("0D 78 03 63 62 61")
        assert record.value == b"cba"
        assert only("0D 78 E2 01 02").value == b"\1\2"

    @pytest.mark.parametrize("length", [0xC0, 0xC9, 0xD4, 0xDF, 0xF0, 0xF4, 0xF5, 0xFA, 0xFF])
    def test_a_disputed_length_refuses_the_whole(self, length):
        with pytest.raises(MeterFault, match=f"variable length {length:02X}"):
            parse(f"04 13 01 00 00 00 0D 78 {length:02X}" + "00" * 64)

    def test_filler_and_the_maker_s_own_data(self):
        records, is_followed = parse("2F 2F 01 13 05 2F 0F 04 13 FF")
        assert ([decode_number(record) for record in records], is_followed) == ([5], False)
        assert parse("01 13 05 1F")[1]
        assert parse("1F 01 13 05") == ((), True)
        assert parse("") == ((), False)

    @pytest.mark.parametrize("dif", ["3F", "4F", "6F", "7F", "8F", "FF"])
    def test_reserved_dif(self, dif):
        with pytest.raises(MeterFault, match="reserved"):
            parse(f"{dif} 04 13 01 00 00 00")

    @pytest.mark.parametrize(
        ("wire", "said"),
        [("81" + "80" * 10 + "00 13 00", "10 DIFE"), ("01 93" + "80" * 10 + "00 00", "10 VIFE")],
    )
    def test_chains_that_are_too_long(self, wire, said):
        with pytest.raises(MeterFault, match=f"more than {said}"):
            parse(wire)

    def test_chains_of_the_greatest_length(self):
        assert only("81" + "80" * 9 + "00 13 00").storage == 0
        assert len(only("01 93" + "80" * 9 + "00 00").vib) == 11

    @pytest.mark.parametrize(
        "wire", ["04 13 01 02 03 04", "84 40 13 01 02 03 04", "02 FC 03 48 52 25 74 D4 11", "0D 78 03 63 62 61"]
    )
    def test_every_cut_is_a_fault(self, wire):
        data = bytes.fromhex(wire)
        only(wire)
        for length in range(1, len(data)):
            with pytest.raises(MeterFault, match="ends within a record"):
                parse_records(data[:length], high_byte_first=False)

    def test_a_technician_can_read_it(self):
        assert str(only("D1 51 93 7F 00")) == "VIF 93 7F, maximum, storage 3, tariff 1, sub-unit 1"


@st.composite
def records(draw):
    coding = draw(st.sampled_from([*INTEGER_BYTES, *BCD_BYTES]))
    if coding in INTEGER_BYTES:
        value = draw(st.binary(min_size=INTEGER_BYTES[coding], max_size=INTEGER_BYTES[coding]))
    else:
        size = BCD_BYTES[coding]
        number = draw(st.integers(-(10 ** (2 * size - 1)) + 1, 10 ** (2 * size) - 1))
        value = mbus_records.encode_bcd(number, size)
    return Record(
        function=draw(st.integers(0, 3)),
        storage=draw(st.integers(0, 2**41 - 1)),
        tariff=draw(st.integers(0, 2**20 - 1)),
        subunit=draw(st.integers(0, 2**10 - 1)),
        coding=coding,
        vib=bytes([draw(st.integers(0x10, 0x17))]),
        value=value,
    )


class TestProperties:
    @given(st.lists(records(), max_size=5), st.booleans())
    def test_round_trip(self, wanted, high_byte_first):
        data = b"".join(encode_record(record, high_byte_first=high_byte_first) for record in wanted)
        assert parse_records(data, high_byte_first=high_byte_first) == (tuple(wanted), False)

    @given(st.binary(max_size=250), st.booleans())
    def test_hostile_bytes_give_records_or_our_own_error(self, data, high_byte_first):
        try:
            found, _ = parse_records(data, high_byte_first=high_byte_first)
            for record in found:
                assert str(record)
                decode_number(record)
        except MeterFault:
            pass

    @given(st.lists(records(), min_size=1, max_size=5), st.sampled_from(mbus.VARIABLE))
    def test_pymeterbus_reads_the_same(self, wanted, ci):
        """An implementation that we did not write: same places, same values up to its binary fractions."""
        high = ci in mbus.HIGH_BYTE_FIRST
        data = b"".join(encode_record(record, high_byte_first=high) for record in wanted)
        content = mbus_data.encode_telegram(METER, data, ci=ci)
        frame = mbus.Frame(control=8, address=1, ci=ci, data=content[1:]).encode()
        # `meterbus.load` would take a telegram with L = 44 for a wireless one.
        theirs = meterbus.TelegramLong.parse(list(frame)).records
        for record, peer in zip(wanted, theirs, strict=True):
            says = peer.interpreted
            places = (says["storage_number"], says.get("tariff") or 0, says.get("device") or 0)
            assert places == (record.storage, record.tariff, record.subunit)
            ours_m3 = decode_number(record) * record.step_ml / 10**6
            assert float(says["value"]) == pytest.approx(float(ours_m3), rel=1e-12)
