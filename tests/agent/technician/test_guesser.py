"""Registers of different moments are never one reading: what a profile reads together must have come together."""

import pytest
from partners.overheard_frames import ask, overhear, registers, volumes

from agent.technician.fits import Guesser
from agent.technician.sniffing import Sniffer
from protocols import modbus, profile

# Whole units and fraction in 8 to 11, the unit's exponent in 1437 and 1438; its document is in the profile.
TUF = profile.load("tuf-2000")
TOTAL, WHOLE, UNIT = ask(8, 4, unit=1), ask(8, 2, unit=1), ask(1437, 2, unit=1)
FRACTION = ask(10, 2, unit=1)


def tuf(*parts):
    """(pause in ms, request, registers or None)... -> what each answer was read as."""
    sniffer = Sniffer(byte_ms=1.0, guesser=Guesser([TUF]))
    exchanges = []
    for pause_ms, request, told in parts:
        exchanges.append((pause_ms, request.encode()))
        if told is not None:
            exchanges.append((30, modbus.encode_response(request, told)))
    return volumes(overhear(*exchanges, sniffer=sniffer)[1])


FIRST, LATER, CUBIC_METRES = [12, 0, 0x7FBE, 0x3F7F], [13, 0, 0x7FBE, 0x3F7F], [0, 3]
READING = [(100, TOTAL, FIRST), (100, UNIT, CUBIC_METRES)]
VALUE, LATER_VALUE = {12_998_043}, {13_998_043}


def test_what_one_reading_brings_is_a_volume_whatever_comes_first():
    assert tuf(*READING) == [set(), VALUE]
    assert tuf(*reversed(READING)) == [set(), VALUE]


def test_a_whole_number_is_not_put_to_the_fraction_of_the_reading_before():
    assert tuf(*READING, (1000, WHOLE, [13, 0])) == [set(), VALUE, set()]


def test_a_whole_number_and_its_fraction_of_two_requests_are_two_moments():
    assert tuf((100, WHOLE, [12, 0]), (100, FRACTION, [0x7FBE, 0x3F7F]), (100, UNIT, CUBIC_METRES)) == [set()] * 3


def test_each_reading_stands_by_itself():
    again = [(1000, TOTAL, LATER), (100, UNIT, CUBIC_METRES)]
    assert tuf(*READING, *again) == [set(), VALUE, set(), LATER_VALUE]
    assert tuf(*READING, again[0]) == [set(), VALUE, set()], "the exponent is of the reading before"


def test_halves_of_two_failed_readings_are_none():
    """Of the first the total came, of the second the exponent."""
    assert tuf((100, TOTAL, FIRST), (100, UNIT, None), (500, TOTAL, None), (500, UNIT, CUBIC_METRES)) == [set()] * 2


def test_a_request_that_is_repeated_goes_on_with_the_reading():
    assert tuf((100, TOTAL, FIRST), (100, UNIT, None), (500, UNIT, CUBIC_METRES)) == [set(), VALUE]
    assert tuf((100, UNIT, CUBIC_METRES), (100, TOTAL, None), (500, TOTAL, FIRST)) == [set(), VALUE]


def test_what_comes_long_after_is_another_reading():
    limit_ms = Guesser.READING_MS_MAX
    for pause_ms, value in ((limit_ms - 200, VALUE), (limit_ms, set())):
        assert tuf((100, TOTAL, FIRST), (pause_ms, UNIT, CUBIC_METRES)) == [set(), value]


def test_another_line_begins_at_its_own_zero():
    """`sniff` keeps its guesser while it tries one speed after the other; time begins anew with each."""
    guesser = Guesser([TUF])
    told = []
    for pause_ms, request, answer in ((5000, TOTAL, FIRST), (100, UNIT, CUBIC_METRES)):
        sniffer = Sniffer(byte_ms=1.0, guesser=guesser)
        parts = (pause_ms, request.encode()), (30, modbus.encode_response(request, answer))
        told += volumes(overhear(*parts, sniffer=sniffer)[1])
    assert told == [set(), set()]


def test_units_and_functions_are_kept_apart():
    for other in (ask(1437, 2, unit=2), ask(1437, 2, unit=1, function=4)):
        assert tuf((100, TOTAL, FIRST), (100, other, CUBIC_METRES)) == [set(), set()]


@pytest.mark.parametrize("unit", [17, 18])
def test_a_request_to_any_unit_is_of_whoever_answers(unit):
    """Unit 0: the meter says its own address. After it is exchanged for another one, nothing of the first counts."""
    sniffer = Sniffer(byte_ms=1.0, guesser=Guesser([TUF]))
    parts = []
    for request, told, by in ((ask(8, 4, unit=0), FIRST, 17), (ask(1437, 2, unit=0), CUBIC_METRES, unit)):
        answer = modbus.encode_response(ask(request.address, request.count, unit=by), told)
        parts += [(100, request.encode()), (30, answer)]
    assert volumes(overhear(*parts, sniffer=sniffer)[1]) == [set(), VALUE if unit == 17 else set()]


def test_units_that_only_modbus_tcp_has_break_nothing():
    request = modbus.add_crc(bytes((255, 3, 0x02, 0x04, 0, 4)))
    answer = modbus.add_crc(bytes((255, 3, 8)) + b"".join(n.to_bytes(2, "big") for n in registers(5)))
    guesser = Guesser([profile.load("usw-dn15-40")])
    guesser.asked("modbus", request, at_ms=0)
    assert [fit.volume_ml for fit in guesser.fits("modbus", request, answer)] == [5]
