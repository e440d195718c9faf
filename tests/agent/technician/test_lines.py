"""What the options of a command mean as a line, and how a line is written for people."""

import pytest

from agent.technician import lines
from agent.technician.lines import LineError, line_of, line_text
from protocols import profile


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "9600 8N1"),
        ({"parity": "e", "baudrate": 2400}, "2400 8E1"),
        ({"framing": "ASCII"}, "9600 8N1 ASCII"),
        ({"framing": "ascii", "data_bits": 7, "parity": "E"}, "9600 7E1 ASCII"),
        ({"framing": "ascii", "data_bits": 7, "stop_bits": 2}, "9600 7N2 ASCII"),
    ],
)
def test_options_become_a_line(options, text):
    assert line_text(line_of("/dev/ttyUSB0", **options)) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [({"framing": "tcp"}, "Modbus TCP"), ({}, "over TCP"), ({"framing": "ascii"}, "ASCII over TCP")],
)
def test_over_the_network_nobody_says_a_speed_that_is_the_servers(options, text):
    assert line_text(line_of("SOCKET://h:502", **options)) == text


def test_the_factory_settings_stand_for_what_is_not_said():
    line = line_of("/dev/ttyUSB0", profile=profile.load("cjt188-water"), baudrate=4800)
    assert line_text(line) == "4800 8E1"


@pytest.mark.parametrize(
    ("port", "options", "says"),
    [
        ("/dev/ttyUSB0", {"framing": "tcp"}, "socket://"),
        ("rfc2217://h:1", {"framing": "tcp"}, "no serial port"),
        ("/dev/ttyUSB0", {"framing": "udp"}, "rtu, ascii or tcp"),
        ("/dev/ttyUSB0", {"data_bits": 7}, "--framing ascii"),
        ("/dev/ttyUSB0", {"parity": "M"}, "N (none"),
        ("/dev/ttyUSB0", {"framing": "rtu", "profile": profile.load("mbus-water")}, "does not speak Modbus"),
    ],
)
def test_what_makes_no_line_says_what_would(port, options, says):
    with pytest.raises(LineError) as error:
        line_of(port, **options)
    assert says in str(error.value)


def test_the_usual_settings_are_each_there_once():
    settings = [usual[:4] for usual in lines.USUAL]
    assert len(set(settings)) == len(settings)
