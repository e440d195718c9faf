"""Modbus as it travels, in its three framings, and the RTU frame that says the same: the tools know one form.

    RTU     unit PDU crc(2)
    ASCII   : unit PDU lrc CR LF, each byte as two digits
    TCP     transaction(2) 0(2) length(2) unit PDU

A line of 7 data bits and parity that is overheard with 8 bits has the parity in bit 7; such ASCII is read all the same.
"""

import re
from typing import Final, Literal, NamedTuple

from protocols import modbus, modbus_ascii, modbus_tcp

Framing = Literal["rtu", "ascii", "tcp"]
FUNCTIONS: Final = (1, 2, 3, 4, 5, 6, 15, 16)
READS: Final = (1, 2, 3, 4)
WRITES: Final = (5, 6, 15, 16)
# These depend on the request alone; after "acknowledge", "busy" or a gateway's "no response" the answer may still come.
FINAL_EXCEPTIONS: Final = (modbus.ILLEGAL_FUNCTION, modbus.ILLEGAL_DATA_ADDRESS, modbus.ILLEGAL_DATA_VALUE)
_WRITES_MANY: Final = (15, 16)
# Colon, 255 bytes as digits, CR LF (Serial Line 2.5.2.1).
ASCII_BYTES_MAX: Final = 513
_COLON: Final = 0x3A
_SEVEN_BITS: Final = bytes(byte & 0x7F for byte in range(0x100))
_TORN_ASCII: Final = re.compile(rb":[0-9A-F]*\r?")
_ASCII_SHAPE: Final = re.compile(rb":((?:[0-9A-F]{2}){3,255})\r\n")
_TEXT: Final = re.compile(rb"[\x20-\x7e\r\n]+")
TCP_UNIT_MAX: Final = 255  # 255 is the device that is asked itself (Messaging 4.4.2)
# Per request (Application Protocol 6.1 to 6.4).
_COUNT_MAX: Final = {1: 2000, 2: 2000, 3: modbus.REGISTERS_MAX, 4: modbus.REGISTERS_MAX}


class Found(NamedTuple):
    """A sound frame: how many bytes it takes on the wire, and the RTU frame that says the same."""

    length: int
    rtu: bytes


def lengths(data: bytes, at: int, *, unit_max: int = modbus.UNIT_MAX) -> list[int]:
    """Return how long an RTU frame that begins there can be by its looks, whatever its checksum; longest last."""
    head = data[at : at + 7]
    if len(head) < 3 or head[0] > unit_max:
        return []
    function = head[1]
    if function & 0x80:
        is_exception = function & 0x7F in FUNCTIONS and head[2] in modbus.EXCEPTION_NAMES
        return [modbus.EXCEPTION_BYTES] if is_exception else []
    if function not in FUNCTIONS:
        return []
    found = [modbus.REQUEST_BYTES]
    if function in READS and head[2] and (function < modbus.READ_HOLDING_REGISTERS or head[2] % 2 == 0):
        found.append(5 + head[2])
    if function in _WRITES_MANY and len(head) == 7 and head[6]:
        found.append(9 + head[6])
    return sorted(set(found))


def rtu_at(data: bytes, at: int) -> Found | None:
    """Return the sound RTU frame that begins there."""
    for length in lengths(data, at):
        frame = data[at : at + length]
        if len(frame) == length and modbus.has_crc(frame):
            return Found(length, frame)
    return None


def ascii_at(data: bytes, at: int) -> Found | None:
    """Return the sound ASCII frame that begins there."""
    text = ascii_text(data, at)
    body = modbus_ascii.decode_frame(text) if text else None
    return _found(len(text), body) if body else None


def tcp_at(data: bytes, at: int) -> Found | None:
    """Return the TCP frame that begins there. It has no checksum: all that it says must fit together."""
    missing = tcp_missing(data, at)
    if missing != 0:
        return None
    length = tcp_length(data, at)
    return _found(length, data[at + modbus_tcp.HEADER_BYTES : at + length], unit_max=TCP_UNIT_MAX)


def ascii_text(data: bytes, at: int) -> bytes:
    """Return what has the shape of an ASCII frame there, without parity bits, its checksum right or not; else b""."""
    if data[at] & 0x7F != _COLON:
        return b""
    wire = data[at : at + ASCII_BYTES_MAX]
    match = _ASCII_SHAPE.match(wire.translate(_SEVEN_BITS))
    return match[0] if match and (max(wire[: match.end()]) < 0x80 or parity_in(wire[: match.end()])) else b""


def is_torn_ascii(data: bytes, at: int) -> bool:
    """Tell whether everything from there on is the beginning of an ASCII frame."""
    if data[at] & 0x7F != _COLON or len(data) - at >= ASCII_BYTES_MAX:
        return False
    return _TORN_ASCII.fullmatch(data[at:].translate(_SEVEN_BITS)) is not None


def parity_in(data: bytes) -> str:
    """Return E or O where bit 7 of every byte is the parity of the others, and nothing for plain seven bits."""
    if max(data, default=0) < 0x80:
        return ""
    odd = {byte.bit_count() % 2 for byte in data}
    return {0: "E", 1: "O"}[odd.pop()] if len(odd) == 1 else ""


def tcp_length(data: bytes, at: int) -> int:
    """Return how long the TCP frame is that begins there by its header; 0 where none does."""
    head = data[at : at + modbus_tcp.HEADER_BYTES]
    if len(head) < modbus_tcp.HEADER_BYTES or head[2:4] != b"\0\0":
        return 0
    length = int.from_bytes(head[4:6], "big")
    return modbus_tcp.HEADER_BYTES + length if length in modbus_tcp.BODY_BYTES else 0


def tcp_missing(data: bytes, at: int) -> int | None:
    """Return how many bytes the TCP frame that begins there still lacks; None where none begins."""
    length = tcp_length(data, at)
    if not length:
        return None
    head = data[at + modbus_tcp.HEADER_BYTES : at + length]
    is_enough = len(head) >= (7 if head[1:2] and head[1] in _WRITES_MANY else 3)
    if is_enough and length - modbus_tcp.HEADER_BYTES + 2 not in lengths(head, 0, unit_max=TCP_UNIT_MAX):
        return None
    return max(0, at + length - len(data))


def encode(rtu: bytes, framing: str, *, transaction: int = 0) -> bytes:
    """Return the frame in another framing that says what an RTU frame says."""
    if framing == "ascii":
        return modbus_ascii.encode_frame(rtu[:-2])
    if framing == "tcp":
        return modbus_tcp.encode_frame(rtu[:-2], transaction=transaction)
    return rtu


def shown(data: bytes, framing: str | None) -> str:
    """Return bytes as people read them: spaced pairs, and Modbus ASCII as the text that it is."""
    text = data.translate(_SEVEN_BITS)
    if framing != "ascii" or not _TEXT.fullmatch(text) or not (text == data or parity_in(data)):
        return data.hex(" ").upper()
    return text.decode("ascii").replace("\r\n", " CR LF ").strip()


def is_request(rtu: bytes) -> bool:
    """Tell whether a sound frame can only be a request to read, or one to write or its confirmation."""
    return not rtu[1] & 0x80 and len(rtu) == modbus.REQUEST_BYTES and len(rtu) != 5 + rtu[2]


def _found(length: int, body: bytes, *, unit_max: int = modbus.UNIT_MAX) -> Found | None:
    """Return the frame with this unit and PDU where they are Modbus by their looks."""
    rtu = modbus.add_crc(body)
    if len(rtu) not in lengths(rtu, 0, unit_max=unit_max):
        return None
    count = int.from_bytes(rtu[4:6], "big")
    if rtu[1] in READS and len(rtu) == modbus.REQUEST_BYTES and len(rtu) != 5 + rtu[2]:
        return Found(length, rtu) if 1 <= count <= _COUNT_MAX[rtu[1]] else None
    return Found(length, rtu)
