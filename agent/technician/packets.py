"""The packets in a network capture: pcap, which `tcpdump -w` writes, and pcapng, which Wireshark saves.

    pcap      24 bytes of header, then each packet behind 16 bytes of its own (draft-ietf-opsawg-pcap)
    pcapng    blocks of a kind and a length, which stands at both ends: a section header, interfaces, packets
              (draft-ietf-opsawg-pcapng). An interface says what comes first in its packets and how it counts time

Either byte order is read. A file that is cut off or damaged is refused, with the offset: a reader that goes on in the
wrong place finds packets that nobody sent. Packets carry no checksum of the file's: what is damaged within one is not
seen here.
"""

import heapq
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from protocols.errors import ShuiwangError

_MAGIC: Final = {b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">", b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<"}
_HEADER_BYTES: Final = 24
_PACKET_HEADER_BYTES: Final = 16

_BYTE_ORDERS: Final = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}
_SECTION: Final = 0x0A0D0D0A  # the same in either byte order
_INTERFACE: Final = 1
_PACKET: Final = 2  # obsolete, but a packet all the same
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6
_BLOCK_BYTES_MIN: Final = 12
_VERSION: Final = 1
_END_OF_OPTIONS: Final = 0
_IF_TSRESOL: Final = 9
_IF_TSOFFSET: Final = 14
_TICKS_PER_S: Final = 10**6  # where if_tsresol does not say otherwise
_NS_PER_S: Final = 10**9


class NoCapture(ShuiwangError):
    """The file is no capture that can be read; the message says what to do."""


class Packet(NamedTuple):
    """One packet, and its link type, which says what stands before the IP header."""

    link: int
    data: bytes


def is_capture(data: bytes) -> bool:
    """Tell whether a file begins as network captures do."""
    return data[:4] in _MAGIC or data[:4] == _SECTION.to_bytes(4, "big")


def packets(data: bytes) -> Iterator[Packet]:
    """Yield the packets of a capture in the order in which they were seen. Raises NoCapture where it is damaged."""
    order = _MAGIC.get(data[:4])
    return _pcapng(data) if order is None else _pcap(data, order)


def _pcap(data: bytes, order: str) -> Iterator[Packet]:
    if len(data) < _HEADER_BYTES:
        raise _damaged(len(data), "the file ends within its header")
    (link,) = struct.unpack_from(f"{order}I", data, 20)
    at = _HEADER_BYTES
    while at < len(data):
        if at + _PACKET_HEADER_BYTES > len(data):
            raise _damaged(at, "the file ends within a packet's header")
        captured, original = struct.unpack_from(f"{order}II", data, at + 8)
        start, end = at + _PACKET_HEADER_BYTES, at + _PACKET_HEADER_BYTES + captured
        if captured > original:
            raise _damaged(at, f"{captured} bytes of a packet of {original}")
        if end > len(data):
            raise _damaged(at, f"of {captured} bytes of a packet {len(data) - start} are there")
        yield Packet(link=link & 0xFFFF, data=data[start:end])  # the upper half says how long checksums are
        at = end


class _Block(NamedTuple):
    """One block of a pcapng file; `body` is what stands between its two lengths."""

    at: int
    order: str
    kind: int
    body: bytes

    def fields(self, layout: str, offset: int = 0) -> tuple[Any, ...]:
        """Return what stands at an offset of the body. Raises NoCapture where the body is too short for it."""
        try:
            return struct.unpack_from(self.order + layout, self.body, offset)
        except struct.error as error:
            raise self.damaged(f"a block of kind {self.kind} with {len(self.body)} bytes is too short") from error

    def damaged(self, what: str) -> NoCapture:
        """Return the error that names this block's place."""
        return _damaged(self.at, what)


class _Interface(NamedTuple):
    """What a section says of one of its interfaces, and the packets that came from it."""

    link: int
    packet_bytes_max: int  # 0: no limit
    ticks_per_s: int
    offset_s: int
    packets: list[tuple[int, int, Packet]]  # when it was seen, in ns, and where it stands in the file

    def add(self, block: _Block, data: bytes, at_ns: int) -> None:
        self.packets.append((at_ns, block.at, Packet(link=self.link, data=data)))


def _pcapng(data: bytes) -> Iterator[Packet]:
    interfaces: list[_Interface] = []
    at_ns = 0
    for block in _blocks(data):
        if block.kind == _SECTION:
            yield from _merged(interfaces)
            interfaces, at_ns = [], 0
        elif block.kind == _INTERFACE:
            interfaces.append(_interface(block))
        elif block.kind in (_ENHANCED_PACKET, _PACKET):
            at_ns = _add_packet(block, interfaces)
        elif block.kind == _SIMPLE_PACKET:
            _add_simple_packet(block, interfaces, at_ns)  # it has no time: that of the packet before it will do
    yield from _merged(interfaces)


def _merged(interfaces: list[_Interface]) -> Iterator[Packet]:
    """Yield the packets of a section by their time; those of one interface in the order of the file.

    Threads that listen on several interfaces write what they have when they have it. One alone writes in order, also
    when the clock is set back meanwhile.
    """
    merged = heapq.merge(*(interface.packets for interface in interfaces), key=lambda seen: seen[:2])
    return (packet for _, _, packet in merged)


def _blocks(data: bytes) -> Iterator[_Block]:
    at, order = 0, "<"
    while at < len(data):
        if at + _BLOCK_BYTES_MIN > len(data):
            raise _damaged(at, "the file ends within a block's header")
        if data[at : at + 4] == _SECTION.to_bytes(4, "big"):
            found = _BYTE_ORDERS.get(data[at + 8 : at + 12])
            if found is None:
                raise _damaged(at, "a section does not say its byte order")
            order = found
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if size < _BLOCK_BYTES_MIN or size % 4:
            raise _damaged(at, f"no block has {size} bytes")
        if at + size > len(data):
            raise _damaged(at, f"of {size} bytes of a block {len(data) - at} are there")
        (again,) = struct.unpack_from(f"{order}I", data, at + size - 4)
        if again != size:
            raise _damaged(at, f"a block has {size} bytes by its first length, {again} by its last")
        block = _Block(at=at, order=order, kind=kind, body=data[at + 8 : at + size - 4])
        if kind == _SECTION:
            _, version, _, _ = block.fields("IHHq")
            if version != _VERSION:
                raise NoCapture(f"pcapng of version {version} is not known 不支持的版本: `editcap -F pcap IN OUT`")
            _options(block, 16)
        yield block
        at += size


def _interface(block: _Block) -> _Interface:
    link, _, packet_bytes_max = block.fields("HHI")
    options = _options(block, 8)
    ticks_per_s, offset_s = _TICKS_PER_S, 0
    if (resolution := options.get(_IF_TSRESOL)) is not None:
        if len(resolution) != 1:
            raise block.damaged(f"if_tsresol has {len(resolution)} bytes")
        ticks_per_s = (2 if resolution[0] & 0x80 else 10) ** (resolution[0] & 0x7F)
    if (offset := options.get(_IF_TSOFFSET)) is not None:
        if len(offset) != 8:
            raise block.damaged(f"if_tsoffset has {len(offset)} bytes")
        (offset_s,) = struct.unpack(f"{block.order}q", offset)
    return _Interface(link, packet_bytes_max, ticks_per_s, offset_s, [])


def _add_packet(block: _Block, interfaces: list[_Interface]) -> int:
    """Add a packet to its interface; return its time."""
    layout = "IIIII" if block.kind == _ENHANCED_PACKET else "HxxIIII"  # the obsolete one counts drops in its gap
    number, high, low, captured, original = block.fields(layout)
    interface = _interface_of(block, interfaces, number)
    end = 20 + captured
    if captured > original or end > len(block.body):
        raise block.damaged(f"{captured} bytes of a packet of {original} in a block of {len(block.body)}")
    _options(block, end + -end % 4)
    at_ns: int = interface.offset_s * _NS_PER_S + (high << 32 | low) * _NS_PER_S // interface.ticks_per_s
    interface.add(block, block.body[20:end], at_ns)
    return at_ns


def _add_simple_packet(block: _Block, interfaces: list[_Interface], at_ns: int) -> None:
    (original,) = block.fields("I")
    interface = _interface_of(block, interfaces, 0)
    end = 4 + min(original, interface.packet_bytes_max or original)
    if end + -end % 4 != len(block.body):
        raise block.damaged(f"{end - 4} bytes of a packet of {original} in a block of {len(block.body)}")
    interface.add(block, block.body[4:end], at_ns)


def _interface_of(block: _Block, interfaces: list[_Interface], number: int) -> _Interface:
    if number >= len(interfaces):
        raise block.damaged(f"a packet of interface {number}; {len(interfaces)} are described before it")
    return interfaces[number]


def _options(block: _Block, offset: int) -> dict[int, bytes]:
    """Return the options from an offset to the end of the body, by their code.

    They end with the body or with a mark behind which nothing stands. That is looked at also where no option matters:
    a damaged length lets them begin in the wrong place.
    """
    found: dict[int, bytes] = {}
    while offset < len(block.body):
        code, size = block.fields("HH", offset)
        offset += 4
        found[code] = block.body[offset : offset + size]
        offset += size + -size % 4
        if offset > len(block.body) or (code == _END_OF_OPTIONS and (size or offset < len(block.body))):
            raise block.damaged(f"the options of a block of kind {block.kind} do not end with it")
    return found


def _damaged(at: int, what: str) -> NoCapture:
    return NoCapture(
        f"cut off or damaged at byte {at} 文件在第 {at} 字节处不完整或损坏: {what}; capture again, or keep the packets"
        " before it: `editcap IN OUT`"
    )
