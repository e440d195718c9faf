"""Network captures: each connection's bytes in order, whatever the capture was made on; what is none is told."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from agent.cli import app
from agent.technician import decoding, modbus_wire, pasted, pcap
from protocols import profile

REQUEST = modbus_wire.encode(bytes.fromhex("11 03 02 04 00 04 06 E0"), "tcp", transaction=9)
ANSWER = modbus_wire.encode(bytes.fromhex("11 03 08 00 00 00 00 00 01 F0 89 15 71"), "tcp", transaction=9)
MASTER, METER = ("10.0.0.1", 40000), ("10.0.0.9", 502)
SYN = 2


def tcp(source, target, sequence, data, *, flags=0x18):
    return struct.pack(">HHIIBBHHH", source[1], target[1], sequence, 0, 5 << 4, flags, 1024, 0, 0) + data


def ipv4(source, target, segment, *, padding=b""):
    addresses = [bytes(map(int, end[0].split("."))) for end in (source, target)]
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0)
    return head + b"".join(addresses) + segment + padding


def ipv6(source, target, segment):
    addresses = [bytes(12) + bytes(map(int, end[0].split("."))) for end in (source, target)]
    return struct.pack(">IHBB", 6 << 28, len(segment), 6, 64) + b"".join(addresses) + segment


LINKS = {
    "ethernet": (1, b"\1" * 12 + b"\x08\x00"),
    "ethernet with VLAN": (1, b"\1" * 12 + b"\x81\x00\x00\x05\x08\x00"),
    "linux any": (113, bytes(14) + b"\x08\x00"),
    "linux any, second version": (276, b"\x08\x00" + bytes(18)),
    "raw IP": (101, b""),
}


def capture(*packets, link="ethernet", order="<", nanoseconds=False):
    kind, head = LINKS[link]
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    data = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, kind)
    for number, packet in enumerate(packets):
        size = len(head) + len(packet)
        data += struct.pack(f"{order}IIII", number, 0, size, size) + head + packet
    return data


def exchange(master=MASTER, *, opening=True, ip=ipv4):
    packets = [ip(master, METER, tcp(master, METER, 99, b"", flags=SYN))] if opening else []
    return [
        *packets,
        ip(master, METER, tcp(master, METER, 100, REQUEST)),
        ip(METER, master, tcp(METER, master, 500, ANSWER)),
    ]


def bytes_of(data):
    return [(chunk.direction, chunk.data) for chunk in pcap.chunks(data)]


BOTH = [("tx", REQUEST), ("rx", ANSWER)]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_an_exchange_comes_out_of_every_kind_of_capture(link, order, nanoseconds):
    data = capture(*exchange(), link=link, order=order, nanoseconds=nanoseconds)
    assert pcap.is_capture(data)
    assert bytes_of(data) == BOTH


def test_ip_version_6():
    assert bytes_of(capture(*exchange(ip=ipv6), link="raw IP")) == BOTH


def test_what_tcp_sends_again_is_there_once():
    opening, ask, answer = exchange()
    assert bytes_of(capture(opening, ask, ask, answer, answer)) == BOTH
    longer = ipv4(MASTER, METER, tcp(MASTER, METER, 100, REQUEST + b"\x55"))  # again, with more behind it
    assert bytes_of(capture(opening, ask, longer)) == [("tx", REQUEST + b"\x55")]


def test_a_frame_in_two_segments_is_one():
    parts = [ipv4(MASTER, METER, tcp(MASTER, METER, 100 + at, REQUEST[at : at + 7])) for at in (0, 7)]
    assert bytes_of(capture(*parts)) == [("tx", REQUEST)]


def test_two_masters_at_once_are_two_connections():
    first, second = exchange(), exchange(("10.0.0.2", 40001))
    mixed = [packet for pair in zip(first, second, strict=True) for packet in pair]
    assert bytes_of(capture(*mixed)) == BOTH + BOTH


def test_ethernet_padding_and_other_packets_are_no_bytes():
    padded = ipv4(MASTER, METER, tcp(MASTER, METER, 100, b""), padding=bytes(6))
    assert bytes_of(capture(padded, b"", b"\x45", b"\xff" * 60, *exchange())) == BOTH


def test_the_server_is_known_without_its_port_where_the_connection_was_seen_to_open():
    server = ("10.0.0.9", 50_200)
    packets = [
        ipv4(MASTER, server, tcp(MASTER, server, 99, b"", flags=SYN)),
        ipv4(MASTER, server, tcp(MASTER, server, 100, REQUEST)),
        ipv4(server, MASTER, tcp(server, MASTER, 7, ANSWER)),
    ]
    assert bytes_of(capture(*packets)) == BOTH


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x0a\x0d\x0d\x0a" + bytes(100), "pcapng"),
        (capture()[:10], "within its header"),
        (capture(), "no bytes of TCP"),
        (capture()[:20] + struct.pack("<I", 147), "link type 147"),
        (
            capture(*[ipv4(MASTER, METER, tcp(MASTER, METER, 1 + 60_000 * n, bytes(60_000))) for n in range(2)]),
            "more than",
        ),
    ],
)
def test_what_cannot_be_read_says_what_to_do(data, says):
    with pytest.raises(pcap.NoCapture, match=says):
        pcap.chunks(data)


@settings(deadline=None)
@given(st.data())
def test_no_damage_breaks_the_reader(data):
    broken = bytearray(capture(*exchange(), link=data.draw(st.sampled_from(list(LINKS)))))
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(4, len(broken) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(broken[: data.draw(st.integers(4, len(broken)))])
    try:
        found = pcap.chunks(broken)
    except pcap.NoCapture:
        return
    decoding.decode(found)


def test_a_capture_is_decoded_as_what_it_holds(tmp_path):
    file = tmp_path / "meter.pcap"
    file.write_bytes(capture(*exchange()))
    (volume,) = decoding.decode(pasted.chunks(file.read_bytes()), profile=profile.load("usw-dn15-40")).volumes
    assert volume.measurement.volume_ml == 127_113
    result = CliRunner().invoke(app, ["decode", "--file", str(file), "--profile", "usw-dn15-40"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    for words in ("Modbus TCP request", ">>", "<<", "0.127113 m³"):
        assert words in result.output
    file.write_bytes(b"\x0a\x0d\x0d\x0a")
    result = CliRunner().invoke(app, ["decode", "--file", str(file)])
    assert (result.exit_code, "editcap" in result.output) == (2, True)
