"""Register maps: every type in every order, exactly; what is no volume becomes a fault and never a number."""

import math
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocols import modbus, profile, registers
from protocols.errors import MeterFault, MeterRefused, ProfileError, UsageError
from protocols.registers import Block, ExponentRegister, ModbusSpec, Term, UnitRegister

BITS = {"uint16": 16, "int16": 16, "uint32": 32, "int32": 32, "uint64": 64, "int64": 64}


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


def flagged(**keys):
    """Return a map with one flag, of which `keys` may be wrong."""
    return {"status": [{"address": 20, "flags": [{"flag": "leak", "volume": "stands", **keys}]}]}


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

    def test_zero_is_an_address_only_where_the_profile_says_so(self):
        usw, xintai = profile.load("usw-dn15-40"), profile.load("xintai")
        assert usw.parse_address("0") == modbus.ANY_UNIT
        assert usw.parse_address("17") == xintai.parse_address("17") == 17
        for meter, text in ((xintai, "0"), (usw, "00"), (usw, "248")):
            with pytest.raises(ProfileError, match='from "1" to "247"'):
                meter.parse_address(text)

    def test_the_device_itself_is_an_address_over_modbus_tcp_alone(self):
        """Messaging on TCP/IP 4.4.2: the IP address names it; the unit is 255 then, and 0 is taken too."""
        xintai = profile.load("xintai")
        for text in ("255", "0", "1", "017", "247"):
            assert xintai.parse_address(text, framing="tcp") == int(text)
        for framing in ("rtu", "ascii"):
            with pytest.raises(ProfileError, match='"255" is the device itself and exists where the framing is "tcp"'):
                xintai.parse_address("255", framing=framing)
        with pytest.raises(ProfileError, match='exists where the framing is "tcp"'):
            xintai.parse_address("255")
        cjt188 = profile.load("cjt188-water")
        with pytest.raises(ProfileError, match="14 digits"):
            cjt188.parse_address("255", framing="tcp")

    @pytest.mark.parametrize("text", ["", "00", "0255", "248", "254", "256", "-1", "255\n", "２５５"])
    def test_what_is_no_address_over_modbus_tcp(self, text):
        with pytest.raises(ProfileError, match='from "1" to "247", or over Modbus TCP "255" for the device itself'):
            registers.parse_tcp_unit(text)

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
        to_any_unit = modbus.add_crc(b"\x00" + self.REQUEST.encode()[1:-2])
        assert self.means(to_any_unit, response) == 5_000

    @pytest.mark.parametrize(
        ("request_frame", "response", "words"),
        [
            (b"", b"", "request  has 0 bytes; a Modbus read has 8"),
            (modbus.add_crc(b"\x01"), b"", "request 01 7E 80 has 3 bytes"),
            (REQUEST.encode()[:-1] + b"\x00", b"", r"wrong checksum; .* is right"),
            (modbus.add_crc(bytes((1, 4, 0, 10, 0, 2))), b"", "function 4; the profile reads with function 3"),
            (modbus.add_crc(bytes((1, 3, 0, 10, 0, 0))), b"", "0 registers in one request"),
            (modbus.add_crc(bytes((248, 3, 0, 10, 0, 2))), b"", "unit 248 is not within"),
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


class TestRequests:
    """A meter that gives few registers at a time is asked more often, and what belongs together stays together."""

    def asked(self, **tables):
        return list(registered(**tables).requests())

    def test_without_a_limit_each_block_is_one_request(self):
        blocks = [{"address": 10, "count": 125}, {"address": 500, "count": 1}]
        assert self.asked(read=blocks) == [(10, 125), (500, 1)]

    def test_a_block_is_cut_at_the_limit(self):
        assert self.asked(read=[{"address": 10, "count": 50}], max_registers=22) == [(10, 22), (32, 22), (54, 6)]

    def test_the_limit_itself_is_no_reason_to_cut(self):
        assert self.asked(read=[{"address": 10, "count": 22}], max_registers=22) == [(10, 22)]

    def test_no_number_is_torn(self):
        asked = self.asked(
            read=[{"address": 0, "count": 10}],
            total=[{"address": 3, "type": "uint64"}],
            unit=None,
            unit_register={"address": 8, "type": "uint32", "values": {"0": "L"}},
            max_registers=5,
        )
        assert asked == [(0, 3), (3, 5), (8, 2)]

    def test_the_terms_of_the_total_stay_in_one_request(self):
        total = [{"address": 3, "type": "uint32"}, {"address": 7, "scale": "0.001"}]
        assert self.asked(read=[{"address": 0, "count": 10}], total=total, max_registers=6) == [(0, 3), (3, 6), (9, 1)]

    def test_a_total_that_the_meter_cannot_give_at_one_moment_is_refused(self):
        total = [{"address": 3, "type": "uint32"}, {"address": 7, "scale": "0.001"}]
        words = "registers 3 to 7 belong together, but `max_registers` is 4: two requests are two moments"
        with pytest.raises(msgspec.ValidationError, match=words):
            registered(read=[{"address": 0, "count": 10}], total=total, max_registers=4)

    @given(
        limit=st.integers(4, 30),
        gaps=st.lists(st.integers(0, 5), min_size=3, max_size=3),
        kinds=st.lists(st.sampled_from(["uint16", "uint32", "uint64"]), min_size=3, max_size=3),
    )
    def test_whatever_the_map_each_register_is_asked_once_and_no_number_is_torn(self, limit, gaps, kinds):
        fields, free = [], 0
        for gap, kind in zip(gaps, kinds, strict=True):
            fields.append({"address": free + gap, "type": kind})
            free += gap + BITS[kind] // 16
        status = [{**field, "flags": []} for field in fields[1:]]
        spec = registered(read=[{"address": 0, "count": 60}], total=fields[:1], status=status, max_registers=limit)
        pieces = [range(address, address + number) for address, number in spec.requests()]
        assert [address for piece in pieces for address in piece] == list(range(60))
        assert all(len(piece) <= limit for piece in pieces)
        assert all(any(set(field.addresses) <= set(piece) for piece in pieces) for field in spec.fields)

    def test_the_meter_is_read_through_all_of_them(self):
        spec = registered(
            read=[{"address": 0, "count": 30}], total=[{"address": 11, "type": "uint32"}], max_registers=7
        )
        content = registers.simulate(spec, 123_456_000)
        talk = registers.dialogue(spec, 9)
        request, asked = next(talk), []
        with pytest.raises(StopIteration) as end:
            while True:
                asked.append((request.address, request.count))
                values = [content[request.address + i] for i in range(request.count)]
                request = talk.send(modbus.encode_response(request, values))
        assert asked == [(0, 7), (7, 7), (14, 7), (21, 7), (28, 2)]
        assert end.value.value.volume_ml == 123_456_000


STATUS = {
    "status": [
        {
            "address": 20,
            "flags": [
                {"flag": "battery_low", "volume": "stands", "bit": 0},
                {"flag": "empty_pipe", "volume": "doubtful", "bit": 3},
                {"flag": "sensor_fault", "volume": "doubtful", "bit": 15, "when": 0},
                {"flag": "tamper", "volume": "stands", "value": 0x8055},
            ],
        }
    ]
}


class TestStatus:
    @pytest.mark.parametrize(
        ("status", "flags", "is_doubtful"),
        [
            (0x8000, (), False),
            (0x8001, ("battery_low",), False),
            (0x8008, ("empty_pipe",), True),
            (0x8009, ("battery_low", "empty_pipe"), True),
            (0x0001, ("battery_low", "sensor_fault"), True),
            (0x8055, ("battery_low", "tamper"), False),
            (0xFFF6, (), False),
        ],
    )
    def test_bits_and_values_raise_flags(self, status, flags, is_doubtful):
        spec = registered(**STATUS)
        measurement = registers.measure(spec, registers.simulate(spec, 5_000) | {20: status})
        assert measurement.volume_ml == 5_000
        assert (measurement.flags, measurement.is_doubtful) == (flags, is_doubtful)

    def test_a_simulated_meter_is_healthy(self):
        spec = registered(**STATUS)
        assert registers.simulate(spec, 1)[20] == 0x8000
        assert registers.measure(spec, registers.simulate(spec, 1)).flags == ()

    @pytest.mark.parametrize("step", [1, -1])
    @pytest.mark.parametrize(("status", "is_doubtful"), [(1, False), (2, True), (3, True)])
    def test_where_two_bits_raise_one_flag_the_worse_decides(self, step, status, is_doubtful):
        flags = [{"flag": "leak", "volume": "stands", "bit": 0}, {"flag": "leak", "volume": "doubtful", "bit": 1}][
            ::step
        ]
        in_one_register = registered(status=[{"address": 20, "flags": flags}])
        in_two = registered(status=[{"address": 20 + i, "flags": [flag]} for i, flag in enumerate(flags)])
        for spec in (in_one_register, in_two):
            measurement = registers.measure(spec, registers.simulate(spec, 0) | {20: status, 21: status})
            assert (measurement.flags, measurement.is_doubtful) == (("leak",), is_doubtful)

    def test_a_status_of_32_bits(self):
        flags = [{"flag": "overload", "volume": "doubtful", "bit": 31}]
        spec = registered(status=[{"address": 20, "type": "uint32", "order": "CDAB", "flags": flags}])
        assert registers.measure(spec, registers.simulate(spec, 0) | {21: 0x8000}).flags == ("overload",)

    def test_a_status_that_nothing_satisfies_cannot_be_simulated(self):
        flags = [{"flag": "leak", "volume": "stands", "bit": 0, "when": when} for when in (0, 1)]
        with pytest.raises(UsageError, match="every value of the status register 20 raises a flag"):
            registers.simulate(registered(status=[{"address": 20, "flags": flags}]), 0)


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
            ({"multiplier_register": {"address": 20, "values": {}}}, "`values` needs at least one value"),
            (
                {"multiplier_register": {"address": 20, "values": {"0": "0.0"}}},
                "multiplier 0, which would make nothing",
            ),
            ({"multiplier_register": {"address": 20, "values": {"0": "1e3"}}}, "matching regex"),
            ({"multiplier_register": {"address": 30, "values": {"0": "1"}}}, "the whole number at register 30"),
            ({"total": [{"address": 10, "type": "uint32", "order": "ABCDEFGH"}]}, "eight bytes, a uint32 has 4"),
            ({"total": [{"address": 10, "order": "GHEFCDAB"}]}, "eight bytes, a uint16 has 2"),
            ({"total": [{"address": 10, "type": "uint64", "order": "ABCDEFHG"}]}, "matching regex"),
            ({"total": [{"address": 10, "type": "uint32", "absent": ["FFFF"]}]}, "'FFFF'; a uint32 has 8 hexadecimal"),
            (
                {"total": [{"address": 10, "absent": ["ffff"]}]},
                "'ffff'; a uint16 has 4 hexadecimal digits, A to F large",
            ),
            ({"total": [{"address": 10, "max": "-1"}]}, "matching regex"),
            ({"unit": "1000"}, "unit '1000' is not one of mL"),
            ({"max_registers": 0}, ">= 1"),
            ({"max_registers": 126}, "<= 125"),
            ({"max_registers": 1}, "registers 10 to 11 belong together, but `max_registers` is 1"),
            ({"status": [{"address": 30, "flags": []}]}, "the whole number at register 30"),
            ({"status": [{"address": 20, "type": "float32", "flags": []}]}, "matching regex"),
            (flagged(flag="hungry", bit=0), "flag 'hungry' is not one of battery_low, burst"),
            (flagged(), "flag 'leak': give either `bit` or `value`"),
            (flagged(bit=0, value=0), "flag 'leak': give either `bit` or `value`"),
            (flagged(bit=16), "flag 'leak': a uint16 has no bit 16"),
            (flagged(value=65536), "flag 'leak': a uint16 cannot hold 65536"),
            (flagged(bit=0, volume="wrong"), "Invalid enum value 'wrong'"),
            (flagged(bit=0, when=2), "<= 1"),
        ],
    )
    def test_refused(self, tables, words):
        with pytest.raises(msgspec.ValidationError, match=words):
            registered(**tables)

    def test_the_map_that_they_all_start_from_is_right(self):
        assert registered() == spec_of()
