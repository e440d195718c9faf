"""What a network capture holds: the bytes of each TCP connection, in order. `tcpdump -w FILE port 502` makes one.

Files of tcpdump and of Wireshark are read (`agent.technician.packets`): Ethernet, Linux "any", raw IP.
Nothing but headers is looked at here; whether the bytes are Modbus the decoder says.
"""

from typing import Final, NamedTuple

from agent.technician.hextext import BYTES_MAX, Chunk, Direction
from agent.technician.packets import NoCapture, packets

# Link type, and how many bytes stand before the IP header; Ethernet may have a VLAN tag as well.
_ETHERNET: Final = 1
_LINK_BYTES: Final = {0: 4, 1: 14, 12: 0, 14: 0, 101: 0, 108: 4, 113: 16, 228: 0, 229: 0, 276: 20}
_VLAN_BYTES: Final = 4
_TCP: Final = 6
_MODBUS_PORT: Final = 502


class _Segment(NamedTuple):
    source: bytes  # address and port
    target: bytes
    sequence: int
    is_opening: bool
    data: bytes


def chunks(data: bytes) -> list[Chunk]:
    """Return what went over each connection, one after the other; `tx` is to the server. Raises NoCapture."""
    connections: dict[frozenset[bytes], list[Chunk]] = {}
    expected: dict[tuple[bytes, bytes], int] = {}
    servers: dict[frozenset[bytes], bytes] = {}
    strangers: set[int] = set()
    total = 0
    for packet in packets(data):
        if packet.link not in _LINK_BYTES:
            strangers.add(packet.link)
            continue
        segment = _segment(packet.data, packet.link)
        if segment is None:
            continue
        ends = frozenset((segment.source, segment.target))
        servers.setdefault(ends, _server(segment))
        fresh = _fresh(segment, expected)
        if fresh:
            total += len(fresh)
            if total > BYTES_MAX:
                raise NoCapture(f"more than {BYTES_MAX} bytes of TCP 数据太长: capture fewer packets (`-c 500`)")
            _add(connections.setdefault(ends, []), fresh, is_request=segment.target == servers[ends])
    found = [chunk for connection in connections.values() for chunk in connection]
    if not found and strangers:
        links = ", ".join(map(str, sorted(strangers)))
        raise NoCapture(f"link type {links} is not known 不支持的链路类型: capture on Ethernet, or `tcpdump -i any`")
    if not found:
        raise NoCapture("no bytes of TCP in this capture 抓包中没有 TCP 数据: capture with `tcpdump -w FILE port 502`")
    return found


def _segment(packet: bytes, link: int) -> _Segment | None:
    """Return the TCP segment in a packet; None for any other packet, and for one that was cut off."""
    start = _LINK_BYTES[link]
    if link == _ETHERNET and packet[12:14] == b"\x81\x00":
        start += _VLAN_BYTES
    ip = packet[start:]
    version = ip[0] >> 4 if ip else 0
    if version == 4 and len(ip) >= 20 and ip[9] == _TCP and not int.from_bytes(ip[6:8], "big") & 0x1FFF:
        head, length, addresses = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big"), (ip[12:16], ip[16:20])
    elif version == 6 and len(ip) >= 40 and ip[6] == _TCP:
        head, length, addresses = 40, 40 + int.from_bytes(ip[4:6], "big"), (ip[8:24], ip[24:40])
    else:
        return None
    tcp = ip[head:length]
    if len(tcp) < 20 or len(ip) < length:
        return None
    return _Segment(
        source=addresses[0] + tcp[0:2],
        target=addresses[1] + tcp[2:4],
        sequence=int.from_bytes(tcp[4:8], "big"),
        is_opening=bool(tcp[13] & 2),
        data=tcp[(tcp[12] >> 4) * 4 :],
    )


def _server(segment: _Segment) -> bytes:
    """Return which end is the server: port 502, else whom the connection was opened to, else the lower port."""
    ends = (segment.source, segment.target)
    known = [end for end in ends if int.from_bytes(end[-2:], "big") == _MODBUS_PORT]
    if known:
        return known[0]
    if segment.is_opening:
        return segment.target
    return min(ends, key=lambda end: int.from_bytes(end[-2:], "big"))


def _fresh(segment: _Segment, expected: dict[tuple[bytes, bytes], int]) -> bytes:
    """Return the bytes of a segment that were not there before: TCP repeats what was lost."""
    way = (segment.source, segment.target)
    seen = (expected.get(way, segment.sequence) - segment.sequence) & 0xFFFFFFFF
    if segment.is_opening or seen > 0x7FFFFFFF:  # a new connection, or some packets are missing in the capture
        seen = 0
    after = segment.sequence + max(seen, len(segment.data)) + segment.is_opening
    expected[way] = after & 0xFFFFFFFF
    return segment.data[seen:]


def _add(connection: list[Chunk], data: bytes, *, is_request: bool) -> None:
    direction: Direction = "tx" if is_request else "rx"
    if connection and connection[-1].direction == direction:
        data = connection.pop().data + data
    connection.append(Chunk(direction=direction, data=data))
