"""Modbus TCP frames for reading registers, sans I/O ("MODBUS Messaging on TCP/IP Implementation Guide V1.0b").

    transaction(2)  protocol(2) = 0  length(2)  unit  PDU           length counts from the unit on

The answer repeats the transaction of its request, so an answer that is late on the network is dropped here. It says
nothing about the meter behind a gateway: `gateway.meters` counts answers as on a serial line. There is no checksum; TCP
has one.
"""

from typing import Final

from protocols import modbus
from protocols.errors import Garbled, NoResponse, WrongAnswer

HEADER_BYTES: Final = 6
TRANSACTIONS: Final = 0x10000
# Unit and PDU; a PDU has at least function and one byte, at most 253 (Messaging 4.1).
BODY_BYTES: Final = range(3, 255)


def encode_frame(body: bytes, *, transaction: int) -> bytes:
    """Return the frame that carries unit and PDU."""
    assert 0 <= transaction < TRANSACTIONS
    return transaction.to_bytes(2, "big") + b"\0\0" + len(body).to_bytes(2, "big") + body


def rtu_frame(frame: bytes) -> bytes:
    """Return a frame that a reader let pass as an RTU frame."""
    return modbus.add_crc(frame[HEADER_BYTES:])


class TcpRequest:
    """A read request in TCP framing. No two requests that may be under way share their transaction."""

    def __init__(self, request: modbus.ReadRequest, *, transaction: int) -> None:
        self.request = request
        self.transaction = transaction

    def encode(self) -> bytes:
        """Return the frame."""
        return encode_frame(bytes((self.request.unit,)) + self.request.pdu(), transaction=self.transaction)

    def reader(self) -> "TcpReader":
        """Return a fresh reader for the answer."""
        return TcpReader(self)

    @property
    def response_bytes(self) -> int:
        """The length of the frame that answers."""
        return HEADER_BYTES + 3 + 2 * self.request.count


class TcpReader:
    """Finds the answer to one request in the stream, and drops the late answers to others."""

    def __init__(self, query: TcpRequest) -> None:
        self._query = query
        self._buffer = bytearray()
        self._late: list[int] = []
        self._skipped = 0

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return the answering frame (normal or exception) once it is complete, else None.

        Raises WrongAnswer as soon as this transaction is answered by something else, and Garbled when more bytes come
        than late answers can explain.
        """
        self._buffer += data
        if self._skipped + len(self._buffer) > modbus.BUFFER_BYTES_MAX:
            raise Garbled(f"more than {modbus.BUFFER_BYTES_MAX} bytes and no answer among them: a device babbles")
        while len(self._buffer) >= HEADER_BYTES:
            length = int.from_bytes(self._buffer[4:6], "big")
            if self._buffer[2:4] != b"\0\0" or length not in BODY_BYTES:
                # The rest of an answer whose beginning was dropped, or no Modbus TCP at all.
                self._skip(1)
                continue
            if len(self._buffer) < HEADER_BYTES + length:
                return None
            frame = bytes(self._buffer[: HEADER_BYTES + length])
            self._skip(len(frame))
            transaction, body = int.from_bytes(frame[:2], "big"), frame[HEADER_BYTES:]
            if transaction != self._query.transaction:
                self._late.append(transaction)
            elif self._query.request.is_answered_by(body):
                return frame
            else:
                raise self._query.request.stranger(body)
        return None

    def close(self) -> None:
        """Say, when the time is up, why there is no answer: raises NoResponse, WrongAnswer or Garbled."""
        if self._late:
            raise WrongAnswer(
                f"only the answer to transaction {self._late[-1]} came, not to {self._query.transaction}: when this"
                " stays so, the device is slower than timeout_ms or does not repeat transactions"
            )
        if not self._skipped and not self._buffer:
            raise NoResponse("no answer")
        raise Garbled(
            f"{self._skipped + len(self._buffer)} bytes, no Modbus TCP; a serial server that passes RTU on needs"
            ' framing = "rtu"'
        )

    def _skip(self, count: int) -> None:
        del self._buffer[:count]
        self._skipped += count
