"""minimalmodbus behind the guard: it builds the request and checks the frame, and so do we."""

import minimalmodbus
import pytest
import serial
from hypothesis import given
from hypothesis import strategies as st
from partners.virtual_line import VirtualClock, VirtualPort, skip_real_pauses, virtual_line

from gateway import modbus_master
from protocols import modbus
from protocols.errors import Garbled, NoResponse, PortLost

REQUESTS = st.builds(
    lambda unit, function, address, count: modbus.ReadRequest(
        unit=unit, function=function, address=min(address, 0x10000 - count), count=count
    ),
    st.integers(1, 247),
    st.sampled_from([3, 4]),
    st.integers(0, 0xFFFF),
    st.integers(1, 125),
)


@pytest.fixture(autouse=True, scope="module")
def virtual_time():
    with pytest.MonkeyPatch.context() as monkeypatch:
        skip_real_pauses(monkeypatch)
        yield


def ask(request, answer):
    """Ask on a line where `answer` comes back; return what was sent and what was got."""
    sent = []
    port = VirtualPort(VirtualClock(), tell=lambda mark, what: sent.append(what))
    if answer:
        port.on_write = lambda data: port.arrive(port.clock.now_s + 0.02, answer)
    return sent, lambda: modbus_master.exchange(virtual_line(port), request, timeout_ms=100)


@given(REQUESTS, st.data())
def test_what_is_sent_and_what_comes_back_is_the_same_to_both(request, data):
    registers = data.draw(st.lists(st.integers(0, 0xFFFF), min_size=request.count, max_size=request.count))
    answer = modbus.encode_response(request, registers)
    sent, exchange = ask(request, answer)
    assert exchange() == answer
    assert sent == [request.encode()]


@given(REQUESTS, st.integers(0, 255))
def test_every_refusal_is_returned_as_its_frame(request, code):
    answer = modbus.encode_exception(request, code)
    assert ask(request, answer)[1]() == answer


def test_silence_is_no_response():
    with pytest.raises(NoResponse):
        ask(modbus.ReadRequest(unit=17, function=3, address=0, count=2), None)[1]()


def test_a_lost_port_is_no_answer_of_minimalmodbus():
    """Its own errors are OSErrors, as pyserial's are: the two must not be mixed up."""
    assert issubclass(minimalmodbus.ModbusException, OSError)
    port = VirtualPort(VirtualClock())

    def lost(_):
        raise serial.SerialException("gone")

    port.on_write = lost
    with pytest.raises(PortLost):
        request = modbus.ReadRequest(unit=17, function=3, address=0, count=2)
        modbus_master.exchange(virtual_line(port), request, timeout_ms=100)


def test_registers_on_which_the_two_implementations_disagree_are_never_returned(monkeypatch):
    request = modbus.ReadRequest(unit=17, function=3, address=0, count=2)
    answer = modbus.encode_response(request, [1, 2])
    read_registers = minimalmodbus.Instrument.read_registers

    def swapped(*arguments, **options):
        return read_registers(*arguments, **options)[::-1]

    monkeypatch.setattr(minimalmodbus.Instrument, "read_registers", swapped)
    with pytest.raises(AssertionError):
        ask(request, answer)[1]()


def test_what_our_reader_lets_pass_and_minimalmodbus_does_not_is_garbled(monkeypatch):
    """Two implementations must agree; when one of them has a bug the reading is missing, not wrong."""
    request = modbus.ReadRequest(unit=17, function=3, address=0, count=2)
    answer = bytearray(modbus.encode_response(request, [1, 2]))
    answer[-1] ^= 1
    monkeypatch.setattr(modbus, "has_crc", lambda frame: True)
    with pytest.raises(Garbled, match=r"(?i)checksum"):
        ask(request, bytes(answer))[1]()
