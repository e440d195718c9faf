"""Register maps: every type in every order, exactly; what is no volume becomes a fault and never a number."""

import json
import math
import struct
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import minimalmodbus
import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pymodbus.client.mixin import ModbusClientMixin

from protocols import modbus, profile, registers
from protocols.errors import MeterFault, MeterRefused, ProfileError, UsageError
from protocols.registers import Block, ExponentRegister, Field, ModbusSpec, Term, UnitRegister

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "modbus_frames.json"

ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
BITS = {"uint16": 16, "int16": 16, "uint32": 32, "int32": 32, "uint64": 64, "int64": 64}
NAN, INFINITY = Decimal("NaN"), Decimal("Infinity")

# type, order, registers, value: written down by hand from the definition of the orders.
ROWS = [
    ("uint16", "ABCD", [0x1234], 0x1234),
    ("uint16", "BADC", [0x3412], 0x1234),
    ("uint16", "CDAB", [0x1234], 0x1234),
    ("uint16", "DCBA", [0x3412], 0x1234),
    ("int16", "ABCD", [0xFFFE], -2),
    ("int16", "BADC", [0xFEFF], -2),
    ("uint32", "ABCD", [0x0102, 0x0304], 0x01020304),
    ("uint32", "CDAB", [0x0304, 0x0102], 0x01020304),
    ("uint32", "BADC", [0x0201, 0x0403], 0x01020304),
    ("uint32", "DCBA", [0x0403, 0x0201], 0x01020304),
    ("int32", "CDAB", [0xFFFF, 0xFFFF], -1),
    ("int32", "ABCD", [0x8000, 0x0000], -(2**31)),
    ("uint64", "ABCD", [0x0102, 0x0304, 0x0506, 0x0708], 0x0102030405060708),
    ("uint64", "CDAB", [0x0708, 0x0506, 0x0304, 0x0102], 0x0102030405060708),
    ("uint64", "BADC", [0x0201, 0x0403, 0x0605, 0x0807], 0x0102030405060708),
    ("uint64", "DCBA", [0x0807, 0x0605, 0x0403, 0x0201], 0x0102030405060708),
    ("int64", "ABCD", [0xFFFF, 0xFFFF, 0xFFFF, 0xFFFD], -3),
    ("float32", "ABCD", [0x4120, 0x0000], "10.0"),
    ("float32", "CDAB", [0x0000, 0x4120], "10.0"),
    ("float32", "DCBA", [0x1E85, 0x0B3F], "0.54499996"),  # its maker prints it as 0.545; the next float32 is nearer
    ("float32", "BADC", [0x2041, 0x0000], "10.0"),
    ("float32", "ABCD", [0x3DCC, 0xCCCD], "0.1"),
    ("float32", "ABCD", [0x4B80, 0x0000], "16777216.0"),
    ("float64", "ABCD", [0x3FB9, 0x9999, 0x9999, 0x999A], "0.1"),
    ("float64", "DCBA", [0x9A99, 0x9999, 0x9999, 0xB93F], "0.1"),
]


def held(field, words):
    return dict(zip(field.addresses, words, strict=True))


def spec_of(kind="uint32", *, order="ABCD", **change):
    """Return the map of a meter with one total at register 10 and room for more behind it."""
    keys = {
        "read": (Block(address=10, count=20),),
        "total": (Term(address=10, type=kind, order=order),),
        "unit": "L",
    }
    return ModbusSpec(**(keys | change))


def shows(spec, *values):
    """Return what a meter means whose fields (terms, then unit, then exponent) hold these values."""
    fields = [*spec.total, *filter(None, (spec.unit_register, spec.exponent_register))]
    words = {address: 0 for block in spec.read for address in block.addresses}
    for field, value in zip(fields, values, strict=True):
        words |= registers.encode_number(field, Decimal(value))
    return registers.measure(spec, words).volume_ml


def registered(**tables):
    """Return a map as a profile file would give it; ValidationError where it would be refused."""
    keys = {"read": [{"address": 10, "count": 20}], "total": [{"address": 10, "type": "uint32"}], "unit": "L"}
    return msgspec.convert({k: v for k, v in (keys | tables).items() if v is not None}, ModbusSpec)


class TestNumbers:
    @pytest.mark.parametrize(("kind", "order", "words", "value"), ROWS)
    def test_both_ways(self, kind, order, words, value):
        field = Field(address=7, type=kind, order=order)
        assert registers.decode_number(field, held(field, words)) == Decimal(value)
        assert registers.encode_number(field, Decimal(value)) == held(field, words)

    @pytest.mark.skipif(not VECTORS.exists(), reason="../shared/vectors is not beside this checkout")
    def test_word_orders_of_other_people(self):
        samples = json.loads(VECTORS.read_text(encoding="utf-8"))["word_order"]
        assert [sample["id"] for sample in samples] == [f"W{n}" for n in range(1, 8)]
        for sample in samples:
            field = Field(address=1, type=sample["type"], order=sample["order"][:4])
            words = held(field, [int(word, 16) for word in sample["registers"]])
            value = registers.decode_number(field, words)
            if sample["type"] == "float32":
                assert math.isclose(value, sample["value"], rel_tol=2**-23), sample["id"]  # W1 is off by one float32
            else:
                assert value == sample["value"], sample["id"]
            assert registers.encode_number(field, value) == words, sample["id"]

    @given(st.data())
    def test_every_integer_in_every_order_survives(self, data):
        kind, order = data.draw(st.sampled_from(list(BITS))), data.draw(st.sampled_from(ORDERS))
        low = 0 if kind.startswith("u") else -(2 ** (BITS[kind] - 1))
        value = data.draw(st.integers(low, low + 2 ** BITS[kind] - 1))
        field = Field(address=data.draw(st.integers(0, 0xFFFF - 3)), type=kind, order=order)
        words = registers.encode_number(field, Decimal(value))
        assert list(words) == list(field.addresses)
        assert registers.decode_number(field, words) == value

    @given(value=st.floats(width=32, allow_nan=False, allow_infinity=False), order=st.sampled_from(ORDERS))
    def test_every_float32_is_read_as_a_decimal_that_denotes_it(self, value, order):
        field = Field(address=1, type="float32", order=order)
        decimal = registers.decode_number(field, registers.encode_number(field, Decimal(value)))
        assert struct.pack(">f", decimal) == struct.pack(">f", value)
        assert len(decimal.normalize().as_tuple().digits) <= 9

    @given(millionths=st.integers(0, 999_999), exponent=st.integers(-6, 6))
    def test_a_decimal_of_six_digits_on_the_dial_is_read_as_it_stands_there(self, millionths, exponent):
        shown = Decimal(millionths).scaleb(exponent)
        field = Field(address=1, type="float32")
        assert registers.decode_number(field, registers.encode_number(field, shown)) == shown

    @given(value=st.floats(allow_nan=False, allow_infinity=False), order=st.sampled_from(ORDERS))
    def test_every_float64_survives(self, value, order):
        field = Field(address=1, type="float64", order=order)
        assert float(registers.decode_number(field, registers.encode_number(field, Decimal(repr(value))))) == value

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            ("uint16", 65536),
            ("uint16", -1),
            ("int16", 32768),
            ("uint64", 2**64),
            ("float32", "1e39"),
            ("uint32", NAN),
            ("uint32", INFINITY),
        ],
    )
    def test_a_value_that_does_not_fit_is_our_error(self, kind, value):
        with pytest.raises(UsageError, match=f"does not fit a {kind}"):
            registers.encode_number(Field(address=1, type=kind), Decimal(value))

    @given(words=st.lists(st.integers(0, 0xFFFF), min_size=4, max_size=4), order=st.sampled_from(ORDERS))
    def test_minimalmodbus_and_pymodbus_read_the_same(self, words, order):
        """Two oracles: minimalmodbus knows all four orders of 32 and 64 bits, pymodbus the order of words."""
        theirs = {
            "ABCD": minimalmodbus.BYTEORDER_BIG,
            "DCBA": minimalmodbus.BYTEORDER_LITTLE,
            "BADC": minimalmodbus.BYTEORDER_BIG_SWAP,
            "CDAB": minimalmodbus.BYTEORDER_LITTLE_SWAP,
        }[order]
        for kind, count in (("uint32", 2), ("int32", 2), ("uint64", 4), ("int64", 4)):
            field = Field(address=0, type=kind, order=order)
            value = registers.decode_number(field, dict(enumerate(words)))
            data = b"".join(word.to_bytes(2, "big") for word in words[:count])
            signed = kind.startswith("i")
            assert value == minimalmodbus._bytes_to_long(data, signed, count, theirs)
            if order in {"ABCD", "CDAB"}:
                pymodbus_type = ModbusClientMixin.DATATYPE[kind.upper()]
                word_order = "big" if order == "ABCD" else "little"
                assert value == ModbusClientMixin.convert_from_registers(
                    words[:count], pymodbus_type, word_order=word_order
                )
        for kind, count in (("float32", 2), ("float64", 4)):
            field = Field(address=0, type=kind, order=order)
            data = b"".join(word.to_bytes(2, "big") for word in words[:count])
            number = minimalmodbus._bytes_to_float(data, count, theirs)
            if math.isfinite(number):
                value = registers.decode_number(field, dict(enumerate(words)))
                code = ">f" if kind == "float32" else ">d"
                assert struct.pack(code, value) == struct.pack(code, number)


class TestMeasure:
    @pytest.mark.parametrize(
        ("unit", "millilitres"),
        [
            ("mL", "1"),
            ("L", "1000"),
            ("m3", "1000000"),
            ("US gal", "3785.411784"),
            ("imp gal", "4546.09"),
            ("ft3", "28316.846592"),
        ],
    )
    def test_units(self, unit, millilitres):
        assert Decimal(millilitres) == registers.UNIT_ML[unit]
        assert shows(spec_of(unit=unit), 1000) == round(Decimal(millilitres) * 1000)

    def test_the_units_are_those_of_the_definitions(self):
        inch_cm = Fraction(254, 100)
        assert Fraction(registers.UNIT_ML["US gal"]) == 231 * inch_cm**3
        assert Fraction(registers.UNIT_ML["ft3"]) == (12 * inch_cm) ** 3

    def test_halves_go_to_the_even_millilitre(self):
        spec = spec_of(total=(Term(address=10, type="uint32", scale="0.5"),), unit="mL")
        assert [shows(spec, n) for n in range(8)] == [0, 0, 1, 2, 2, 2, 3, 4]

    @given(
        st.integers(0, 2**32 - 1), st.integers(1, 10**12), st.integers(0, 12), st.sampled_from(list(registers.UNIT_ML))
    )
    def test_arithmetic_is_exact(self, number, scale, places, unit):
        text = f"{Decimal(scale).scaleb(-places):f}"
        assume(len(text.partition(".")[0]) <= 12)
        spec = registered(total=[{"address": 10, "type": "uint32", "scale": text}], unit=unit)
        exact = Fraction(text) * number * Fraction(registers.UNIT_ML[unit])
        if exact > registers.VOLUME_ML_MAX:
            with pytest.raises(MeterFault):
                shows(spec, number)
        else:
            assert shows(spec, number) == round(exact)

    def test_what_lies_36_digits_behind_still_decides_a_half(self):
        terms = (
            Term(address=10, type="uint64", scale="10000"),
            Term(address=14, type="uint32"),
            Term(address=16, scale="0.000000000001"),
        )
        spec = spec_of(total=terms, unit="mL", exponent_register=ExponentRegister(address=20, type="int16"))
        assert shows(spec, 10**19, 500_000_000, 1, -9) == 10**14 + 1
        assert shows(spec, 10**19, 500_000_000, 0, -9) == 10**14

    def test_integer_and_fraction(self):
        terms = (Term(address=10, type="int32", order="CDAB"), Term(address=12, type="float32", order="CDAB"))
        assert shows(spec_of(total=terms, unit="m3"), 802609, "0.75") == 802_609_750_000

    def test_litres_beside_cubic_metres(self):
        terms = (Term(address=10, type="uint32", scale="1000"), Term(address=12, type="uint16"))
        assert shows(spec_of(total=terms), 42, 999) == 42_999_000

    def test_unit_register(self):
        spec = spec_of(
            unit=None, unit_register=UnitRegister(address=14, type="int16", values={"0": "m3", "1": "L", "-1": "ft3"})
        )
        assert shows(spec, 7, 0) == 7_000_000
        assert shows(spec, 7, 1) == 7_000
        assert shows(spec, 7, -1) == round(7 * registers.UNIT_ML["ft3"])
        for unknown in (2, 255, -32768):
            with pytest.raises(MeterFault, match=f"the unit register holds {unknown}, a unit that the profile"):
                shows(spec, 7, unknown)

    def test_exponent_register(self):
        spec = spec_of(exponent_register=ExponentRegister(address=15, type="int16", offset=-3, min=-3, max=4))
        assert [shows(spec, 5, held) for held in (0, 3, 7)] == [5, 5_000, 50_000_000]
        for outside in (-1, 8, 32767):
            with pytest.raises(MeterFault, match=rf"10\^{outside - 3}; -3 to 4 are possible"):
                shows(spec, 5, outside)

    @pytest.mark.parametrize("kind", ["float32", "float64"])
    @pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
    def test_what_is_not_a_number_is_a_fault(self, kind, value):
        with pytest.raises(MeterFault, match=r"register 10 holds .*, not a number"):
            shows(spec_of(kind), Decimal(value))

    @pytest.mark.parametrize(
        ("kind", "value"), [("int32", -1), ("int64", -(2**63)), ("float32", "-0.001"), ("float64", "-1e300")]
    )
    def test_a_negative_total_is_a_fault(self, kind, value):
        with pytest.raises(MeterFault, match="which is no meter reading"):
            shows(spec_of(kind), value)

    def test_every_nan_is_a_fault_whatever_its_payload(self):
        spec = spec_of("float32")
        for high in (0x7F80, 0x7FC0, 0x7FFF, 0xFF80, 0xFFFF):
            for low in (0x0000, 0x0001, 0xFFFF):
                with pytest.raises(MeterFault):
                    registers.measure(spec, {10: high, 11: low})

    def test_the_limit_of_a_volume(self):
        spec = spec_of("uint64", unit="mL")
        assert shows(spec, registers.VOLUME_ML_MAX) == registers.VOLUME_ML_MAX
        with pytest.raises(MeterFault, match="1000000000000001 mL, which is no meter reading"):
            shows(spec, registers.VOLUME_ML_MAX + 1)
        with pytest.raises(MeterFault):
            shows(spec_of("float64"), "1.7e308")

    def test_minus_zero_is_zero(self):
        assert shows(spec_of("float32"), "-0.0") == 0

    @given(
        words=st.lists(st.integers(0, 0xFFFF), min_size=20, max_size=20), name=st.sampled_from(profile.built_in_names())
    )
    def test_any_registers_give_a_volume_or_a_fault(self, words, name):
        spec = profile.load(name).spec
        if not isinstance(spec, ModbusSpec):
            return
        addresses = sorted(address for block in spec.read for address in block.addresses)
        content = dict(zip(addresses, words, strict=False))
        try:
            assert 0 <= registers.measure(spec, content).volume_ml <= registers.VOLUME_ML_MAX
        except MeterFault:
            pass


MODBUS_PROFILES = [name for name in profile.built_in_names() if profile.load(name).head.protocol == "modbus"]


class TestSimulate:
    """The simulator's meters are read by the same code that reads real ones, and show what they were told to."""

    @pytest.mark.parametrize("name", MODBUS_PROFILES)
    @given(volume_ml=st.integers(0, 9_999_999_999))
    def test_inverse_of_measure_up_to_the_step(self, name, volume_ml):
        meter = profile.load(name)
        shown = registers.measure(meter.spec, registers.simulate(meter.spec, volume_ml)).volume_ml
        assert abs(shown - volume_ml) <= meter.head.step_ml

    @pytest.mark.parametrize("unit", list(registers.UNIT_ML))
    @given(volume_ml=st.integers(0, 10**12))
    def test_inverse_for_a_meter_that_counts_in_any_unit(self, unit, volume_ml):
        spec = spec_of("uint64", unit=unit)
        shown = registers.measure(spec, registers.simulate(spec, volume_ml)).volume_ml
        assert 0 <= volume_ml - shown <= math.ceil(registers.UNIT_ML[unit])

    @pytest.mark.parametrize(
        ("kind", "offset", "least", "most"), [("int16", -3, -3, 4), ("uint16", 2, 2, 9), ("uint16", 0, -9, 9)]
    )
    def test_the_exponent_next_to_zero_is_simulated(self, kind, offset, least, most):
        field = ExponentRegister(address=15, type=kind, offset=offset, min=least, max=most)
        spec = spec_of("uint64", unit="mL", exponent_register=field)
        assert registers.measure(spec, registers.simulate(spec, 123_400)).volume_ml == 123_400

    def test_a_volume_that_the_meter_cannot_show_is_our_error(self):
        with pytest.raises(UsageError, match="does not fit a uint16"):
            registers.simulate(spec_of("uint16"), 65_536_000)

    def test_every_register_of_every_block_is_there(self):
        spec = profile.load("tuf-2000").spec
        assert sorted(registers.simulate(spec, 1)) == [8, 9, 10, 11, 1437, 1438]


class TestDialogue:
    def test_a_whole_dialogue_of_two_requests(self):
        spec = profile.load("tuf-2000").spec
        content = registers.simulate(spec, 5_000_250_000)
        talk = registers.dialogue(spec, 9)
        request = next(talk)
        asked = []
        with pytest.raises(StopIteration) as end:
            while True:
                asked.append((request.unit, request.function, request.address, request.count))
                values = [content[address] for address in range(request.address, request.address + request.count)]
                request = talk.send(modbus.encode_response(request, values))
        assert asked == [(9, 3, 8, 4), (9, 3, 1437, 2)]
        assert end.value.value.volume_ml == 5_000_250_000

    def test_a_refusal_ends_it(self):
        talk = registers.dialogue(profile.load("xintai").spec, 9)
        refusal = modbus.encode_exception(next(talk), modbus.ILLEGAL_DATA_ADDRESS)
        with pytest.raises(MeterRefused, match="illegal data address"):
            talk.send(refusal)

    @pytest.mark.parametrize("text", ["1", "17", "247", "001"])
    def test_addresses(self, text):
        assert registers.parse_unit(text) == int(text)

    @pytest.mark.parametrize("text", ["", "0", "248", "-1", "1.0", "0x11", "１７", "17\n", " 17", "9" * 5000])
    def test_what_is_no_address(self, text):
        with pytest.raises(ProfileError, match='from "1" to "247"'):
            registers.parse_unit(text)


class TestCases:
    """Captured frames take the way of frames from the line."""

    REQUEST = modbus.ReadRequest(unit=1, function=3, address=10, count=2)

    def means(self, request, response, **change):
        return registers.decode_case(spec_of(**change), [(request, response)]).volume_ml

    def test_frames_mean_a_volume(self):
        response = modbus.encode_response(self.REQUEST, [0, 5])
        assert self.means(self.REQUEST.encode(), response) == 5_000
        broadcast = modbus.add_crc(b"\x00" + self.REQUEST.encode()[1:-2])
        assert self.means(broadcast, response) == 5_000

    @pytest.mark.parametrize(
        ("request_frame", "response", "words"),
        [
            (b"", b"", "request  has 0 bytes; a Modbus read has 8"),
            (modbus.add_crc(b"\x01"), b"", "request 01 7E 80 has 3 bytes"),
            (REQUEST.encode()[:-1] + b"\x00", b"", r"wrong checksum; .* is right"),
            (modbus.add_crc(bytes((1, 4, 0, 10, 0, 2))), b"", "function 4; the profile reads with function 3"),
            (modbus.add_crc(bytes((1, 3, 0, 10, 0, 0))), b"", "0 registers in one request"),
            (modbus.add_crc(bytes((0, 3, 0, 10, 0, 2))), b"", "unit 0 is not within"),
            (REQUEST.encode(), 2 * modbus.encode_response(REQUEST, [0, 5]), "more than one frame"),
            (REQUEST.encode(), b"\x00" + modbus.encode_response(REQUEST, [0, 5]), "more than one frame"),
        ],
    )
    def test_frames_that_prove_nothing(self, request_frame, response, words):
        with pytest.raises(ProfileError, match=words):
            self.means(request_frame, response)

    def test_registers_that_no_exchange_reads(self):
        with pytest.raises(ProfileError, match="no exchange reads register 11"):
            one = modbus.ReadRequest(unit=1, function=3, address=10, count=1)
            self.means(one.encode(), modbus.encode_response(one, [1]))


class TestMistakes:
    """A map that could mislead is refused when it is read, not when a meter answers."""

    @pytest.mark.parametrize(
        ("tables", "words"),
        [
            ({"function": 6}, "function 6 does not read registers; 3 and 4 do"),
            ({"unit": None}, "give either `unit` or `unit_register`"),
            ({"unit_register": {"address": 20, "values": {"0": "L"}}}, "give either `unit` or `unit_register`"),
            ({"unit": ""}, "unit '' is not one of mL, L, m3"),
            ({"unit": "hL"}, "unit 'hL' is not one of mL, L, m3"),
            ({"total": []}, "`total` needs at least one term"),
            ({"read": []}, "no `read` block holds the whole number at register 10"),
            ({"total": [{"address": 29, "type": "uint32"}]}, "holds the whole number at register 29"),
            ({"total": [{"address": 10, "scale": "0.00"}]}, "`scale` 0 would make nothing"),
            ({"total": [{"address": 10, "scale": "1\n"}]}, "matching regex"),
            ({"total": [{"address": 10, "scale": "1e3"}]}, "matching regex"),
            ({"total": [{"address": 10, "type": "uint16\n"}]}, "matching regex"),
            ({"total": [{"address": 10, "type": "uint32"}, {"address": 11}]}, "`total` counts register 11 twice"),
            (
                {
                    "read": [{"address": 10, "count": 2}, {"address": 12, "count": 1}],
                    "total": [{"address": 10, "type": "uint32"}, {"address": 12}],
                },
                "two requests are two moments",
            ),
            ({"read": [{"address": 10, "count": 4}, {"address": 12, "count": 4}]}, "`read` blocks overlap"),
            ({"read": [{"address": 65535, "count": 2}]}, "beyond the last register, 65535"),
            ({"read": [{"address": 0, "count": 126}]}, "<= 125"),
            ({"unit": None, "unit_register": {"address": 20, "values": {}}}, "`values` needs at least one value"),
            ({"unit": None, "unit_register": {"address": 20, "values": {"01": "L"}}}, "'01', which a uint16"),
            ({"unit": None, "unit_register": {"address": 20, "values": {"-1": "L"}}}, "'-1', which a uint16"),
            ({"unit": None, "unit_register": {"address": 20, "values": {"65536": "L"}}}, "'65536', which"),
            ({"unit": None, "unit_register": {"address": 20, "type": "float32", "values": {"1": "L"}}}, "regex"),
            ({"unit": None, "unit_register": {"address": 20, "values": {"1": "gal"}}}, "unit 'gal' is not one of"),
            ({"exponent_register": {"address": 20, "type": "float32"}}, "matching regex"),
            ({"exponent_register": {"address": 20, "min": 5, "max": 4}}, "lies in 5 to 4"),
            ({"exponent_register": {"address": 20, "offset": 9, "max": 3}}, "offset 9 lies in -9 to 3"),
            ({"exponent_register": {"address": 20, "max": 19}}, "<= 18"),
            ({"exponent_register": {"address": 30}}, "holds the whole number at register 30"),
        ],
    )
    def test_refused(self, tables, words):
        with pytest.raises(msgspec.ValidationError, match=words):
            registered(**tables)

    def test_the_map_that_they_all_start_from_is_right(self):
        assert registered() == spec_of()
