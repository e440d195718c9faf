"""Modbus ASCII frames for reading registers, sans I/O ("MODBUS over Serial Line V1.02", section 2.5.2).

    request     :  unit  function  address(2)  count(2)        lrc  CR LF
    response    :  unit  function  byte count  registers(2n)   lrc  CR LF      each byte as two digits 0-9 A-F

The checksum is a sum of eight bits: it sees every single wrong bit, but one in 256 arbitrary changes goes unseen
(RTU: one in 65 536). What makes up for some of it is strictness about everything else that a frame must be. Where the
meter speaks RTU as well, use RTU.
"""

import re
from typing import Final

from protocols import modbus
from protocols.errors import DUMP_BYTES_MAX, Garbled, NoResponse

_FRAME: Final = re.compile(rb":((?:[0-9A-F]{2}){3,255})\r\n")
_END: Final = b"\r\n"


def lrc(data: bytes) -> int:
    """Return the checksum of Modbus ASCII: what makes the sum of all bytes a multiple of 256."""
    return -sum(data) & 0xFF


def encode_frame(body: bytes) -> bytes:
    """Return the frame that carries unit and PDU."""
    return b":" + (body + bytes((lrc(body),))).hex().upper().encode("ascii") + _END


def decode_frame(frame: bytes) -> bytes | None:
    """Return unit and PDU in a frame; None where it is none, to the letter of the standard."""
    match = _FRAME.fullmatch(frame)
    if match is None:
        return None
    data = bytes.fromhex(match[1].decode("ascii"))
    return None if sum(data) & 0xFF else data[:-1]


def rtu_frame(frame: bytes) -> bytes:
    """Return a frame that a reader let pass as an RTU frame."""
    body = decode_frame(frame)
    assert body is not None, frame
    return modbus.add_crc(body)


class AsciiRequest:
    """A read request in ASCII framing."""

    def __init__(self, request: modbus.ReadRequest) -> None:
        self.request = request

    def encode(self) -> bytes:
        """Return the frame."""
        return encode_frame(bytes((self.request.unit,)) + self.request.pdu())

    def reader(self) -> "AsciiReader":
        """Return a fresh reader for the answer."""
        return AsciiReader(self.request)

    @property
    def response_bytes(self) -> int:
        """The length of the frame that answers."""
        return 11 + 4 * self.request.count


class AsciiReader:
    """Finds the answer to one request among the bytes that come back, whatever noise stands around it."""

    def __init__(self, request: modbus.ReadRequest) -> None:
        self._request = request
        self._buffer = bytearray()
        self._start = 0
        self._stranger: bytes | None = None

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return the answering frame (normal or exception) once it is complete, else None.

        Raises Garbled when more bytes come than any frame with noise around it can have.
        """
        self._buffer += data
        if len(self._buffer) > modbus.BUFFER_BYTES_MAX:
            raise Garbled(f"more than {modbus.BUFFER_BYTES_MAX} bytes and no answer among them: a device babbles")
        while (end := self._buffer.find(_END, self._start)) >= 0:
            # A colon begins a frame anew, whatever stood before it.
            begin = max(self._buffer.rfind(b":", self._start, end), self._start)
            frame = bytes(self._buffer[begin : end + len(_END)])
            self._start = end + len(_END)
            body = decode_frame(frame)
            if body is not None and self._request.is_answered_by(body):
                return frame
            self._stranger = body or self._stranger
        return None

    def close(self) -> None:
        """Say, when the time is up, why there is no answer: raises NoResponse, WrongAnswer or Garbled."""
        if self._stranger is not None:
            raise self._request.stranger(self._stranger)
        if not self._buffer:
            raise NoResponse("no answer")
        raise Garbled(f"{len(self._buffer)} bytes, no valid frame: {bytes(self._buffer[:DUMP_BYTES_MAX])!r}")
