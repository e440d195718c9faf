"""The packets of captures that scapy wrote, in the order in which they were seen; and no damage that is not told."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from partners import scapy_capture
from partners.scapy_capture import ETHERNET, RAW_IP, Capture, written

from agent.technician.packets import NoCapture, Packet, is_capture, packets

FIRST, SECOND, THIRD = b"first packet", b"the second one", b"and a third packet."


def found(data):
    return [(packet.link, packet.data) for packet in packets(data)]


def bytes_of(data):
    return [packet.data for packet in packets(data)]


def pcap(*frames, order="<"):
    head = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, ETHERNET)
    return head + b"".join(struct.pack(f"{order}IIII", 0, 0, len(one), len(one)) + one for one in frames)


@pytest.fixture(params=["<", ">"])
def made(tmp_path, request):
    return lambda write: written(tmp_path, write=write, order=request.param)


# -- what a file may hold ---------------------------------------------------------------------------------------------


def test_packets_of_several_interfaces_keep_their_link_types(made):
    def write(capture):
        capture.interface(ETHERNET)
        capture.interface(RAW_IP, name=b"tun0")
        capture.packet(FIRST, ticks=1)
        capture.packet(SECOND, interface=1, ticks=2, comment="from the other side", flags=1)
        capture.packet(THIRD, ticks=3)

    data = made(write)
    assert is_capture(data)
    assert found(data) == [(ETHERNET, FIRST), (RAW_IP, SECOND), (ETHERNET, THIRD)]


def test_interfaces_are_merged_by_time_and_one_alone_keeps_the_order_of_the_file(made):
    def two(capture):
        capture.interface()
        capture.interface(name=b"eth1")
        capture.packet(SECOND, interface=1, ticks=5)
        capture.packet(FIRST, ticks=4)
        capture.packet(THIRD, ticks=6)

    def one(capture):
        capture.interface()
        capture.packet(FIRST, ticks=5)
        capture.packet(SECOND, ticks=4)  # the clock was set back

    assert bytes_of(made(two)) == [FIRST, SECOND, THIRD]
    assert bytes_of(made(one)) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("clock", "ticks"),
    [
        ({}, 2_500_000),
        ({"tsresol": 3}, 2_500),
        ({"tsresol": 9}, 2_500_000_000),
        ({"tsresol": 0}, 2),
        ({"tsresol": 0x80 | 10}, 2_560),
        ({"tsresol": 0, "tsoffset": -7}, 9),
        ({"tsresol": 6, "tsoffset": 2}, 500_000),
    ],
)
def test_each_interface_counts_time_in_its_own_way(made, clock, ticks):
    """Between 1.9 and 2.6 s, whatever it counts in."""

    def write(capture):
        capture.interface()
        capture.clock(**clock)
        capture.packet(FIRST, ticks=1_900_000)
        capture.packet(THIRD, ticks=2_600_000)
        capture.packet(SECOND, interface=1, ticks=ticks)

    assert bytes_of(made(write)) == [FIRST, SECOND, THIRD]


def test_simple_packets_come_from_the_first_interface_in_their_place(made):
    def write(capture):
        capture.interface(RAW_IP)
        capture.interface(ETHERNET)
        capture.packet(FIRST, interface=1, ticks=7)
        capture.simple(SECOND)
        capture.packet(THIRD, interface=1, ticks=8)

    assert found(made(write)) == [(ETHERNET, FIRST), (RAW_IP, SECOND), (ETHERNET, THIRD)]


def test_a_simple_packet_is_as_long_as_its_interface_lets_it_be(made):
    def write(capture):
        capture.block(1, struct.pack(f"{capture.endian}HHI", ETHERNET, 0, 5))
        capture.block(3, struct.pack(f"{capture.endian}I", 1000) + b"short")

    assert found(made(write)) == [(ETHERNET, b"short")]


def test_an_obsolete_packet_block_is_a_packet(made):
    def write(capture):
        capture.interface(RAW_IP)
        capture.interface(ETHERNET)
        head = struct.pack(f"{capture.endian}HHIIII", 1, 99, 0, 1, len(SECOND), len(SECOND))
        capture.block(2, head + SECOND)

    assert found(made(write)) == [(ETHERNET, SECOND)]


def test_what_is_no_packet_is_passed_over(made):
    def write(capture):
        for kind in (4, 5, 0x0BAD, 0x40000BAD, 0x80000001, 0xFFFFFFFF):
            capture.block(kind, b"anything at all")
            capture.block(kind)
        capture.interface()
        capture.block(0x0BAD, FIRST)
        capture.packet(SECOND)

    assert found(made(write)) == [(ETHERNET, SECOND)]


def test_sections_follow_one_another_each_with_its_byte_order_and_interfaces(made):
    def write(capture):
        capture.interface(ETHERNET)
        capture.packet(FIRST, ticks=99)
        for order, link, data in ((">", RAW_IP, SECOND), ("<", ETHERNET, THIRD)):
            capture.section(order)
            capture.interface(link)
            capture.packet(data, ticks=1)

    assert found(made(write)) == [(ETHERNET, FIRST), (RAW_IP, SECOND), (ETHERNET, THIRD)]


@settings(deadline=None)
@given(
    order=st.sampled_from("<>"),
    steps=st.lists(
        st.tuples(st.sampled_from(["packet", "simple", "block"]), st.binary(max_size=40), st.binary(max_size=9)),
        max_size=12,
    ),
)
def test_scapy_reads_the_same_packets(tmp_path_factory, order, steps):
    def write(capture):
        capture.interface(RAW_IP)
        for kind, data, comment in steps:
            if kind == "packet" and data:
                capture.packet(data, comment=comment or None)
            elif kind == "simple":
                capture.simple(data)
            elif kind == "block":
                capture.block(0x0BAD, data)

    folder = tmp_path_factory.getbasetemp()
    data = written(folder, write=write, order=order)
    assert found(data) == scapy_capture.read(folder / "scapy.pcapng")


# -- damage -----------------------------------------------------------------------------------------------------------


def whole(capture):
    capture.interface(ETHERNET)
    capture.clock(RAW_IP, tsresol=9, tsoffset=3)
    capture.packet(FIRST, ticks=1, comment="with options", flags=2)
    capture.simple(SECOND)
    capture.block(5, b"statistics")
    capture.packet(THIRD, interface=1, ticks=2_000_000)


def ends_of(data, *, order, header, length_at, rest):
    """Where the parts of a file end: its header, and what a length at `length_at` of it and `rest` bytes make up."""
    ends = [header]
    while ends[-1] < len(data):
        ends.append(ends[-1] + rest + struct.unpack_from(f"{order}I", data, ends[-1] + length_at)[0])
    return ends


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["pcap", "pcapng"])
def test_wherever_a_file_is_cut_off_it_says_so_or_gives_the_packets_before(tmp_path, name, order):
    if name == "pcap":
        data = pcap(FIRST, SECOND, THIRD, order=order)
        ends = ends_of(data, order=order, header=24, length_at=8, rest=16)
    else:
        data = written(tmp_path, write=whole, order=order)
        ends = ends_of(data, order=order, header=0, length_at=4, rest=0)
    packets_whole = bytes_of(data)
    assert (len(packets_whole), ends[-1]) == (3, len(data))
    for size in range(max(4, ends[0]), len(data)):
        if size in ends:
            assert set(bytes_of(data[:size])) < set(packets_whole)
            continue
        with pytest.raises(NoCapture, match=rf"at byte {max(end for end in ends if end <= size)} ") as refused:
            bytes_of(data[:size])
        assert "editcap" in str(refused.value)


def test_a_header_that_is_cut_off_is_told_at_its_end():
    with pytest.raises(NoCapture, match=r"at byte 10 .*within its header"):
        bytes_of(pcap()[:10])


@pytest.mark.parametrize("order", ["<", ">"])
def test_no_single_damage_around_the_packets_makes_a_packet_that_was_not_sent(tmp_path, order):
    data = written(tmp_path, write=whole, order=order)
    within = {at for one in (FIRST, SECOND, THIRD) for at in range(data.find(one), data.find(one) + len(one))}
    refused = 0
    for at in set(range(4, len(data))) - within:
        for mask in (0x01, 0x04, 0x80, 0xFF):
            broken = bytearray(data)
            broken[at] ^= mask
            try:
                came = bytes_of(bytes(broken))
            except NoCapture:
                refused += 1
                continue
            for one in came:
                # Of a packet some bytes may be cut off, and of the padding behind it some may be there: what IP says of
                # its length tells both.
                assert any((one.startswith(sent) and not any(one[len(sent) :])) or sent.startswith(one)
                           for sent in (FIRST, SECOND, THIRD)), (at, mask)  # fmt: skip
    assert refused > 100


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_damage_breaks_the_reader(tmp_path_factory, data):
    good = data.draw(
        st.sampled_from(
            [pcap(FIRST, SECOND, order="<"), pcap(FIRST, SECOND, order=">")]
            + [written(tmp_path_factory.getbasetemp(), write=whole, order=order) for order in "<>"]
        )
    )
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(4, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(4, len(broken)))
    try:
        came = list(packets(bytes(broken[:cut])))
    except NoCapture:
        return
    assert all(isinstance(one, Packet) for one in came)
    assert sum(len(one.data) for one in came) < len(good)


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(bytes(12))
def test_anything_behind_a_section_ends_in_packets_or_an_error(tmp_path_factory, rest):
    head = written(tmp_path_factory.getbasetemp(), write=Capture.interface)
    try:
        came = bytes_of(head + rest)
    except NoCapture:
        return
    assert all(len(one) < len(rest) for one in came)


@pytest.mark.parametrize(
    ("kind", "body", "match"),
    [
        (1, b"\x01\0", "too short"),
        (1, struct.pack("<HHIHHBxxxI", 1, 0, 0, 9, 2, 6, 0), "if_tsresol has 2 bytes"),
        (1, struct.pack("<HHIHHII", 1, 0, 0, 14, 4, 6, 0), "if_tsoffset has 4 bytes"),
        (1, struct.pack("<HHIHHI", 1, 0, 0, 2, 40, 0), "the options of a block of kind 1"),
        (1, struct.pack("<HHIII", 1, 0, 0, 0, 0), "the options of a block of kind 1"),
        (6, struct.pack("<IIIII", 1, 0, 0, 0, 0), "a packet of interface 1; 1 are described"),
        (6, struct.pack("<IIIII", 0, 0, 0, 8, 8), "8 bytes of a packet of 8 in a block of 20"),
        (6, struct.pack("<IIIIII", 0, 0, 0, 4, 3, 0), "4 bytes of a packet of 3"),
        (3, struct.pack("<II", 9, 0), "9 bytes of a packet of 9 in a block of 8"),
        (6, struct.pack("<IIIII", 0, 0, 0, 4, len(FIRST)) + FIRST, "the options of a block of kind 6"),
        (3, struct.pack("<I", 4) + FIRST, "4 bytes of a packet of 4 in a block of 16"),
        (0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1), "version 2"),
        (0x0A0D0D0A, struct.pack("<IHHqHH", 0x1A2B3C4D, 1, 0, -1, 2, 99), "the options of a block of kind 168627466"),
        (0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4E, 1, 0, -1), "byte order"),
        (0x0A0D0D0A, struct.pack("<I", 0x1A2B3C4D), "too short"),
    ],
)
def test_each_damage_has_its_words(tmp_path, kind, body, match):
    def write(capture):
        capture.interface()
        capture.block(kind, body)

    with pytest.raises(NoCapture, match=match):
        bytes_of(written(tmp_path, write=write))


@pytest.mark.parametrize(
    ("block", "match"),
    [
        (struct.pack("<III", 5, 8, 8), "no block has 8 bytes"),
        (struct.pack("<IIII", 5, 14, 0, 14), "no block has 14 bytes"),
        (struct.pack("<IIII", 5, 16, 0, 12), "16 bytes by its first length, 12 by its last"),
        (struct.pack("<IIII", 5, 400, 0, 400), "of 400 bytes of a block 16 are there"),
    ],
)
def test_each_wrong_length_has_its_words_and_place(tmp_path, block, match):
    head = written(tmp_path, write=Capture.interface)
    with pytest.raises(NoCapture, match=f"at byte {len(head)} .*{match}"):
        bytes_of(head + block)


def test_a_packet_longer_than_it_was_is_damage():
    broken = bytearray(pcap(FIRST))
    broken[36] -= 1
    with pytest.raises(NoCapture, match=f"at byte 24 .*{len(FIRST)} bytes of a packet of {len(FIRST) - 1}"):
        bytes_of(bytes(broken))
