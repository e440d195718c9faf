"""The dial finds the register map: for every Modbus profile that we have, and for any map that a meter may have."""

from decimal import Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.technician import meanings
from protocols import profile, registers
from protocols.errors import UsageError

TYPES = ["uint32", "float32", "uint64", "float64"]
ORDERS = ["ABCD", "CDAB", "BADC", "DCBA"]


def registers_with(term, volume_ml, *, unit, address=0, count=8):
    number = Decimal(volume_ml) / registers.UNIT_ML[unit] / Decimal(term.scale)
    return dict.fromkeys(range(address, address + count), 0) | registers.encode_number(term, number)


@settings(deadline=None)
@given(
    number_type=st.sampled_from(TYPES),
    order=st.sampled_from(ORDERS),
    unit_scale=st.sampled_from(meanings.SCALES),
    address=st.integers(0, 4),
    litres=st.integers(1_000, 9_999_999),
)
def test_the_map_that_made_the_registers_is_among_those_that_fit(number_type, order, unit_scale, address, litres):
    unit, scale = ("m3", "1") if number_type.startswith("float") else unit_scale
    step_ml = int(registers.UNIT_ML[unit] * Decimal(scale)) if not number_type.startswith("float") else 1000
    volume_ml = litres * 1000 // step_ml * step_ml
    assume(volume_ml > step_ml)
    term = registers.Term(address=address, type=number_type, order=order, scale=scale)
    try:
        values = registers_with(term, volume_ml, unit=unit)
    except UsageError:
        assume(False)
    found = meanings.fitting([(values, volume_ml)], tolerance_ml=1000)
    # The same bytes may be a whole number in other units too; the truth must be among what is offered.
    assert any(candidate.terms == (term,) and candidate.unit == unit for candidate in found)
    assert all(abs(candidate.volume_ml - volume_ml) <= 1000 for candidate in found)


@pytest.mark.parametrize("name", ["usw-dn15-40", "xintai", "tuf-2000"])
def test_the_profiles_that_come_with_shuiwang_would_have_been_found(name):
    loaded = profile.load(name)
    case = loaded.cases[-1] if name != "tuf-2000" else loaded.cases[0]
    request = bytes.fromhex(case.exchange[0].request)
    answer = bytes.fromhex(case.exchange[0].response)
    address = int.from_bytes(request[2:4], "big")
    values = {address + i: int.from_bytes(answer[3 + 2 * i : 5 + 2 * i], "big") for i in range(answer[2] // 2)}
    found = meanings.fitting([(values, case.volume_ml)], tolerance_ml=1000)
    texts = [candidate.how for candidate in found]
    wanted = {
        "usw-dn15-40": "uint64 ABCD @516-519, mL",
        "xintai": "float32 DCBA @1-2, m3",
        "tuf-2000": "uint32 CDAB @8-9 + float32 CDAB @10-11, m3",
    }
    assert wanted[name] in texts[:4], texts


def test_a_second_reading_leaves_less_to_chance():
    """45.6 m3 alone may be 456 in one register or in two; after 65535 only one of them still fits."""
    term = registers.Term(address=0, type="uint32", order="ABCD", scale="0.1")
    first = registers_with(term, 45_600_000, unit="m3", count=2)
    second = registers_with(term, 9_999_900_000, unit="m3", count=2)
    one = meanings.fitting([(first, 45_600_000)], tolerance_ml=100_000)
    both = meanings.fitting([(first, 45_600_000), (second, 9_999_900_000)], tolerance_ml=100_000)
    assert len(one) > len(both) == 1
    assert both[0].terms == (term,)


def test_gallons_only_where_nothing_metric_fits():
    term = registers.Term(address=0, type="uint32", order="ABCD")
    values = registers_with(term, int(1_000_000 * registers.UNIT_ML["US gal"]), unit="US gal", count=2)
    found = meanings.fitting([(values, 3_785_411_784)], tolerance_ml=1000)
    assert {candidate.unit for candidate in found} == {"US gal"}


def test_nothing_fits_a_dial_that_is_not_there():
    assert meanings.fitting([({0: 1, 1: 2, 2: 3, 3: 4}, 123_456_789)], tolerance_ml=1000) == []


def test_what_is_known_narrows_the_search():
    values = registers_with(registers.Term(address=2, type="uint32", order="CDAB"), 123_456_000, unit="L", count=6)
    found = meanings.fitting([(values, 123_456_000)], tolerance_ml=1000, order="CDAB", address=2, number_type="uint32")
    assert {(candidate.terms[0].order, candidate.terms[0].address) for candidate in found} == {("CDAB", 2)}


def test_the_likeliest_number_comes_first():
    shown = meanings.numbers({0: 0, 1: 0, 2: 1, 3: 0xF089}, at_most=8)
    assert shown[0].number == 127_113
    assert dict(shown[0].volumes) == {"L": 127_113_000, "mL": 127_113}


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 30), st.integers(0, 0xFFFF), max_size=30))
def test_any_registers_give_plausible_volumes_only(values):
    for shown in meanings.numbers(values, at_most=1000):
        for _, volume_ml in shown.volumes:
            assert meanings.VOLUME_ML_MIN <= volume_ml <= meanings.VOLUME_ML_MAX
