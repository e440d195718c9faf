"""Network captures: each connection's bytes in order, whatever the capture was made on; what is none is told."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partners.scapy_capture import ETHERNET, RAW_IP, written
from typer.testing import CliRunner

from agent.cli import app
from agent.technician import decoding, modbus_wire, pasted, pcap
from agent.technician.packets import NoCapture, is_capture
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
    assert is_capture(data)
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
        (b"\x0a\x0d\x0d\x0a" + bytes(100), "byte order"),
        (capture()[:10], "within its header"),
        (capture(*exchange())[:-1], "at byte .*of 71 bytes of a packet 70 are there"),
        (capture(), "no bytes of TCP"),
        (capture()[:20] + struct.pack("<I", 147) + capture(*exchange())[24:], "link type 147"),
        (
            capture(*[ipv4(MASTER, METER, tcp(MASTER, METER, 1 + 60_000 * n, bytes(60_000))) for n in range(2)]),
            "more than",
        ),
    ],
)
def test_what_cannot_be_read_says_what_to_do(data, says):
    with pytest.raises(NoCapture, match=says):
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
    except NoCapture:
        return
    decoding.decode(found)


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_two_interfaces_of_a_pcapng_saw_is_one_exchange(tmp_path, order):
    """The master's side of a router and the meter's, and a Bluetooth adapter: by time, once, and in order."""
    opening, ask, answer = exchange()
    head = LINKS["ethernet"][1]

    def write(file):
        for link in (ETHERNET, RAW_IP, 201):
            file.interface(link)
        file.packet(b"\2\0" + ask, interface=2, ticks=1)
        for ticks, packet in ((5, answer), (3, ask), (1, opening)):
            file.packet(packet, interface=1, ticks=ticks)
        for ticks, packet in ((2, opening), (4, ask), (6, answer)):
            file.packet(head + packet, ticks=ticks, comment="again", flags=2)

    assert bytes_of(written(tmp_path, write=write, order=order)) == BOTH


def test_a_pcapng_of_unknown_links_names_them(tmp_path):
    def write(file):
        for number, link in enumerate((201, 147)):
            file.interface(link)
            file.packet(b"any", interface=number)

    with pytest.raises(NoCapture, match="link type 147, 201 "):
        pcap.chunks(written(tmp_path, write=write))


@pytest.mark.parametrize("order", ["<", ">"])
def test_damage_around_the_packets_never_makes_another_frame(tmp_path, order):
    """Every byte that is not a packet's, damaged in three ways: an error, or what was sent, or less of it."""

    def write(file):
        file.interface(RAW_IP)
        _, ask, answer = exchange()
        file.packet(ask, ticks=1, flags=1)
        file.simple(answer)

    data = written(tmp_path, write=write, order=order)
    starts = [(data.find(packet), packet) for packet in exchange()[1:]]
    packets = {at for start, packet in starts for at in range(start, start + len(packet))}
    refused = 0
    for at in set(range(4, len(data))) - packets:
        for mask in (0x01, 0x80, 0xFF):
            broken = bytearray(data)
            broken[at] ^= mask
            try:
                assert set(bytes_of(bytes(broken))) <= set(BOTH), (at, mask)
            except NoCapture:
                refused += 1
    assert refused > 100


def test_a_longer_file_than_is_read_is_refused_before_its_end_is_missed(tmp_path):
    file = tmp_path / "long.pcap"
    file.write_bytes(capture(*exchange()) + capture(*[b"\xff" * 60_000] * 20)[24:])
    result = CliRunner().invoke(app, ["decode", "--file", str(file)])
    assert (result.exit_code, "more than 1 MiB" in result.output) == (2, True)


def test_a_capture_is_decoded_as_what_it_holds(tmp_path):
    file = tmp_path / "meter.pcap"
    file.write_bytes(capture(*exchange()))
    (volume,) = decoding.decode(pasted.chunks(file.read_bytes()), profile=profile.load("usw-dn15-40")).volumes
    assert volume.measurement.volume_ml == 127_113
    result = CliRunner().invoke(app, ["decode", "--file", str(file), "--profile", "usw-dn15-40"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    for words in ("Modbus TCP request", ">>", "<<", "0.127113 m³"):
        assert words in result.output
    file.write_bytes(file.read_bytes()[:-1])
    result = CliRunner().invoke(app, ["decode", "--file", str(file)])
    assert (result.exit_code, "editcap" in result.output) == (2, True)


def test_a_capture_of_wireshark_is_decoded(tmp_path):
    def write(file):
        file.interface()
        for number, packet in enumerate(exchange()):
            file.packet(LINKS["ethernet"][1] + packet, ticks=number)

    file = tmp_path / "meter.pcapng"
    file.write_bytes(written(tmp_path, write=write))
    arguments = ["decode", "--file", str(file), "--profile", "usw-dn15-40"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert (result.exit_code, "0.127113 m³" in result.output) == (0, True), result.output
    file.write_bytes(file.read_bytes()[:-7])
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "cut off or damaged at byte" in result.output) == (2, True), result.output
