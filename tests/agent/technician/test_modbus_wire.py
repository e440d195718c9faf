"""Modbus in its three framings: the same frame comes out of each, and nothing of what merely looks like one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.technician import modbus_wire
from agent.technician.cutting import Cutter, cut
from protocols import modbus, modbus_ascii, modbus_tcp

REQUEST = bytes.fromhex("11 03 02 04 00 04 06 E0")
ANSWER = bytes.fromhex("11 03 08 00 00 00 00 00 01 F0 89 15 71")
REFUSAL = modbus.add_crc(b"\x11\x83\x02")
WRITE = modbus.add_crc(bytes.fromhex("11 10 00 01 00 01 02 00 05"))
FRAMES = (REQUEST, ANSWER, REFUSAL, WRITE)
FINDERS = {"rtu": modbus_wire.rtu_at, "ascii": modbus_wire.ascii_at, "tcp": modbus_wire.tcp_at}
EVERY_FRAMING = pytest.mark.parametrize("framing", FINDERS)


def with_parity(data, *, odd):
    return bytes(byte | (byte.bit_count() % 2 != odd) << 7 for byte in data)


@EVERY_FRAMING
@pytest.mark.parametrize("rtu", FRAMES)
def test_a_frame_comes_back_from_every_framing(framing, rtu):
    wire = modbus_wire.encode(rtu, framing, transaction=515)
    assert FINDERS[framing](b"\x00" + wire + b"\x00", 1) == (len(wire), rtu)
    assert [FINDERS[framing](wire[:size], 0) for size in range(1, len(wire))] == [None] * (len(wire) - 1)


def test_the_frames_are_those_of_the_protocol_modules():
    assert modbus_wire.encode(REQUEST, "ascii") == b":110302040004E2\r\n"
    request = modbus.decode_request(REQUEST)
    assert modbus_wire.encode(REQUEST, "ascii") == modbus_ascii.AsciiRequest(request).encode()
    assert modbus_wire.encode(REQUEST, "tcp", transaction=7) == modbus_tcp.TcpRequest(request, transaction=7).encode()


@pytest.mark.parametrize("odd", [False, True])
def test_seven_bits_that_were_received_as_eight_are_known_by_their_parity(odd):
    wire = with_parity(modbus_wire.encode(ANSWER, "ascii"), odd=odd)
    assert max(wire) >= 0x80
    assert modbus_wire.parity_in(wire) == ("O" if odd else "E")
    assert modbus_wire.ascii_at(wire, 0) == (len(wire), ANSWER)
    for place in range(len(wire)):  # one wrong parity bit is a damaged byte
        broken = bytearray(wire)
        broken[place] ^= 0x80
        assert modbus_wire.ascii_at(bytes(broken), 0) is None


def test_no_single_flipped_bit_of_an_ascii_frame_passes():
    wire = modbus_wire.encode(ANSWER, "ascii")
    for bit in range(8 * len(wire)):
        broken = bytearray(wire)
        broken[bit // 8] ^= 1 << bit % 8
        assert modbus_wire.ascii_at(bytes(broken), 0) is None, bit


@pytest.mark.parametrize(
    "wire",
    [
        "00 01 00 01 00 06 11 03 02 04 00 04",  # another protocol
        "00 01 00 00 00 07 11 03 02 04 00 04 00",  # a length that fits no request
        "00 01 00 00 00 06 11 03 02 04 00 7E",  # more registers than fit into an answer
        "00 01 00 00 00 06 11 03 02 04 00 00",  # none
        "00 01 00 00 00 05 11 03 03 00 01",  # half a register
        "00 01 00 00 00 03 11 08 00",  # a function that we do not know
        "00 01 00 00 00 02 11 03",
    ],
)
def test_what_does_not_fit_together_is_no_modbus_tcp(wire):
    assert modbus_wire.tcp_at(bytes.fromhex(wire), 0) is None


def test_the_unit_of_the_device_itself_is_known_in_tcp_alone():
    frame = modbus.add_crc(bytes.fromhex("FF 03 02 04 00 04"))
    assert modbus_wire.tcp_at(modbus_wire.encode(frame, "tcp"), 0).rtu == frame
    assert modbus_wire.rtu_at(frame, 0) is None
    assert modbus_wire.ascii_at(modbus_wire.encode(frame, "ascii"), 0) is None


def framings(data, source):
    return [one.framing or one.protocol or "none" for one in cut(data, source=source)]


def test_modbus_tcp_is_looked_for_where_it_can_be():
    tcp = modbus_wire.encode(REQUEST, "tcp") + modbus_wire.encode(ANSWER, "tcp")
    assert framings(tcp, "tcp") == framings(tcp, "paste") == ["tcp", "tcp"]
    assert framings(tcp, "line") == ["none"], "on a line it would be guessed from zeros"
    assert framings(b"\x55" + tcp, "tcp") == ["none", "tcp", "tcp"], "after a loss it is found again"
    assert framings(b"\x55" + tcp, "paste") == ["none"]
    assert framings(REQUEST + ANSWER, "paste") == ["rtu", "rtu"]
    assert framings(REQUEST + ANSWER, "tcp") == ["none"], "a TCP connection holds Modbus TCP and nothing else"


def test_a_checksum_is_believed_before_a_shape():
    """A request to register 0 for 6 registers begins as a header of Modbus TCP does."""
    rtu = modbus.add_crc(bytes.fromhex("01 03 00 00 00 06"))
    assert framings(rtu + rtu, "paste") == ["rtu", "rtu"]


@EVERY_FRAMING
@given(st.lists(st.sampled_from(FRAMES), max_size=6), st.randoms(use_true_random=False))
def test_a_stream_in_pieces_of_any_size_gives_every_frame(framing, frames, chance):
    source = "tcp" if framing == "tcp" else "line"
    wire = b"".join(modbus_wire.encode(frame, framing) for frame in frames)
    cutter, pieces, at = Cutter(byte_ms=0.1, source=source), [], 0
    while at < len(wire):
        size = chance.randrange(1, 9)
        pieces += cutter.feed(at, wire[at : at + size])
        at += size
    pieces += cutter.finish()
    assert [piece.plain for piece in pieces if piece.protocol] == frames
    assert b"".join(piece.data for piece in pieces) == wire


@given(st.binary(max_size=80), st.sampled_from(["line", "tcp", "paste"]), st.booleans())
def test_cutting_loses_nothing_and_invents_nothing(data, source, is_final):
    cuts = cut(data, source=source, is_final=is_final)
    parts = [data[one.start - one.lead : one.end] for one in cuts]
    whole = b"".join(parts)
    assert data.startswith(whole)
    assert not is_final or whole == data


@given(st.binary(max_size=60), st.sampled_from([None, "rtu", "ascii", "tcp"]))
def test_what_is_shown_never_hides_a_byte(data, framing):
    text = modbus_wire.shown(data, framing)
    if text.startswith(":"):
        assert len(text.replace(" CR LF ", "\r\n").replace(" CR LF", "\r\n")) >= len(data.strip()) - 4
    elif data and framing != "ascii":
        assert bytes.fromhex(text) == data


def test_garbage_on_an_ascii_line_is_shown_as_bytes():
    assert modbus_wire.shown(b":1103\r\n", "ascii") == ":1103 CR LF"
    assert modbus_wire.shown(b":1103\x00", "ascii") == "3A 31 31 30 33 00"
    assert modbus_wire.shown(b"\xba1\xb1", "ascii") == "BA 31 B1", "no parity fits: these are not characters"
