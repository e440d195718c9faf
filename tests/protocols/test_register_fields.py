"""Numbers in registers: every type in every order, exactly; marks for "no value", limits and units."""

import json
import math
import struct
from decimal import Decimal
from pathlib import Path

import minimalmodbus
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.client.mixin import ModbusClientMixin

from protocols import profile, register_fields, registers
from protocols.errors import MeterFault, UsageError
from protocols.registers import Block, Field, ModbusSpec, MultiplierRegister, Term, UnitRegister

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "modbus_frames.json"

ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
LONG_ORDERS = ("ABCDEFGH", "BADCFEHG", "CDABGHEF", "DCBAHGFE", "EFGHABCD", "FEHGBADC", "GHEFCDAB", "HGFEDCBA")
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
    ("uint64", "ABCDEFGH", [0x0102, 0x0304, 0x0506, 0x0708], 0x0102030405060708),
    ("uint64", "BADCFEHG", [0x0201, 0x0403, 0x0605, 0x0807], 0x0102030405060708),
    ("uint64", "CDABGHEF", [0x0304, 0x0102, 0x0708, 0x0506], 0x0102030405060708),
    ("uint64", "DCBAHGFE", [0x0403, 0x0201, 0x0807, 0x0605], 0x0102030405060708),
    ("uint64", "EFGHABCD", [0x0506, 0x0708, 0x0102, 0x0304], 0x0102030405060708),
    ("uint64", "FEHGBADC", [0x0605, 0x0807, 0x0201, 0x0403], 0x0102030405060708),
    ("uint64", "GHEFCDAB", [0x0708, 0x0506, 0x0304, 0x0102], 0x0102030405060708),
    ("uint64", "HGFEDCBA", [0x0807, 0x0605, 0x0403, 0x0201], 0x0102030405060708),
    ("int64", "GHEFCDAB", [0xFFFD, 0xFFFF, 0xFFFF, 0xFFFF], -3),  # least significant word first
    ("float64", "HGFEDCBA", [0x9A99, 0x9999, 0x9999, 0xB93F], "0.1"),  # fully reversed double
    ("float64", "GHEFCDAB", [0x999A, 0x9999, 0x9999, 0x3FB9], "0.1"),
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

    @pytest.mark.parametrize("order", LONG_ORDERS)
    def test_the_name_of_an_order_is_the_order_of_the_bytes(self, order):
        """A technician writes down the bytes as they come and finds the letters."""
        letters = order.encode("ascii")
        field = Field(address=0, type="uint64", order=order)
        words = dict(enumerate(int.from_bytes(letters[i : i + 2], "big") for i in range(0, 8, 2)))
        assert registers.decode_number(field, words) == int.from_bytes(b"ABCDEFGH", "big")

    @pytest.mark.parametrize("order", ORDERS)
    def test_the_short_name_too(self, order):
        letters = order.encode("ascii")
        field = Field(address=0, type="uint32", order=order)
        words = {i: int.from_bytes(letters[2 * i : 2 * i + 2], "big") for i in (0, 1)}
        assert registers.decode_number(field, words) == int.from_bytes(b"ABCD", "big")

    @pytest.mark.skipif(not VECTORS.exists(), reason="../shared/vectors is not beside this checkout")
    def test_word_orders_of_other_people(self):
        samples = json.loads(VECTORS.read_text(encoding="utf-8"))["word_order"]
        assert [sample["id"] for sample in samples] == [f"W{n}" for n in range(1, 8)]
        for sample in samples:
            field = Field(address=1, type=sample["type"], order=sample["order"])
            words = held(field, [int(word, 16) for word in sample["registers"]])
            value = registers.decode_number(field, words)
            if sample["type"] == "float32":
                assert math.isclose(value, sample["value"], rel_tol=2**-23), sample["id"]  # W1 is off by one float32
            else:
                assert value == sample["value"], sample["id"]
            assert registers.encode_number(field, value) == words, sample["id"]

    @given(st.data())
    def test_every_integer_in_every_order_survives(self, data):
        kind = data.draw(st.sampled_from(list(BITS)))
        order = data.draw(st.sampled_from(ORDERS + LONG_ORDERS if BITS[kind] == 64 else ORDERS))
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


class TestNoValue:
    """What a meter sends in the place of a value is a fault, never a number."""

    @pytest.mark.parametrize(
        ("kind", "mark", "order"),
        [
            ("uint16", "FFFF", "ABCD"),
            ("int16", "8000", "DCBA"),
            ("uint32", "FFFFFFFF", "CDAB"),
            ("int32", "80000000", "CDAB"),
            ("float32", "80000000", "DCBA"),
            ("uint64", "FFFFFFFFFFFFFFFF", "ABCD"),
            ("int64", "8000000000000000", "EFGHABCD"),
            ("float64", "FFF0000000000001", "HGFEDCBA"),
        ],
    )
    def test_the_mark_is_a_fault_and_its_neighbour_is_not(self, kind, mark, order):
        spec = registered(total=[{"address": 10, "type": kind, "order": order, "absent": [mark]}], unit="mL")
        plain = Term(address=10, type=f"uint{4 * len(mark)}", order=order)
        raw = lambda number: registers.simulate(spec, 0) | registers.encode_number(plain, Decimal(number))
        with pytest.raises(MeterFault, match=f"register 10 holds {mark}, by which the meter says that it has no value"):
            registers.measure(spec, raw(int(mark, 16)))
        assert registers.measure(spec, raw(0)).volume_ml == 0

    def test_more_than_the_map_allows_is_a_fault(self):
        spec = registered(total=[{"address": 10, "max": "999"}], unit="L")
        assert registers.measure(spec, {**registers.simulate(spec, 0), 10: 999}).volume_ml == 999_000
        with pytest.raises(MeterFault, match="register 10 holds 1000, at most 999 is possible: is the order right"):
            registers.measure(spec, {**registers.simulate(spec, 0), 10: 1000})

    @given(cubic_metres=st.integers(0, 999_999), litres=st.integers(1, 999))
    def test_decimals_with_a_limit_tell_a_wrong_order(self, cubic_metres, litres):
        """MAGS1, whose guide does not say which register goes first: unless the decimals are 000, it is a fault."""
        spec = profile.load("arkon-mags1").spec
        volume_ml = cubic_metres * 1_000_000 + litres * 1000
        content = registers.simulate(spec, volume_ml)
        assert registers.measure(spec, content).volume_ml == volume_ml
        swapped = content | {107: content[108], 108: content[107], 109: content[110], 110: content[109]}
        with pytest.raises(MeterFault, match="at most 999"):
            registers.measure(spec, swapped)


class TestUnits:
    @pytest.mark.parametrize(
        ("text", "millilitres"),
        [("0.1 m3", 100_000), ("1000 L", 1_000_000), ("1000 US gal", Decimal("3785411.784")), ("10 mL", 10)],
    )
    def test_a_number_before_a_unit(self, text, millilitres):
        assert register_fields.unit_ml(text) == millilitres
        assert shows(spec_of(unit=text), 1) == round(millilitres)
        spec = spec_of(unit=None, unit_register=UnitRegister(address=14, values={"3": text}))
        assert shows(spec, 1, 3) == round(millilitres)

    @pytest.mark.parametrize(
        "text", ["", " L", "0 L", "-1 L", "1e3 L", "1000", "1000 ", "1000  L", "2 x m3", "L ", "１ L"]
    )
    def test_what_is_no_unit(self, text):
        with pytest.raises(ValueError, match="is not one of mL, L, m3"):
            register_fields.unit_ml(text)

    def test_multiplier_register(self):
        field = MultiplierRegister(address=15, values={"0": "0.001", "7": "10"})
        spec = spec_of(unit="m3", multiplier_register=field)
        for code, factor_ml in ((0, 1_000), (7, 10_000_000)):
            assert registers.measure(spec, registers.simulate(spec, 0) | {11: 5, 15: code}).volume_ml == 5 * factor_ml
        with pytest.raises(MeterFault, match="the multiplier register holds 1, a multiplier that the profile does not"):
            registers.measure(spec, registers.simulate(spec, 0) | {15: 1})
        assert registers.measure(spec, registers.simulate(spec, 123_000)).volume_ml == 123_000
