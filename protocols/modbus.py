"""Modbus RTU frames for reading registers, both sides of the line, sans I/O.

A reader is fed bytes as they come and returns an event, or None while it needs more, or raises; `close()` is called
when the time is up and says what went wrong. Timing belongs to whoever feeds. Frames are those of "MODBUS over
Serial Line V1.02" (RTU mode, CRC-16) and "MODBUS Application Protocol V1.1b3" (functions 3 and 4).

    request     unit  function  address(2)  count(2)        crc(2)
    response    unit  function  byte count  registers(2n)   crc(2)
    exception   unit  function|80H  code                    crc(2)

Portable: also runs on MicroPython.
"""

from protocols.errors import DUMP_BYTES_MAX, Garbled, MeterError, MeterRefused, NoResponse, UsageError, WrongAnswer

READ_HOLDING_REGISTERS = 3
READ_INPUT_REGISTERS = 4
READ_FUNCTIONS = (READ_HOLDING_REGISTERS, READ_INPUT_REGISTERS)

UNIT_MIN, UNIT_MAX = 1, 247  # 248-255 are reserved (Serial Line 2.2)
# Broadcast, which nobody answers by the standard. Some makers let a meter that is alone on its line answer it.
ANY_UNIT = 0
# The device at the other end of a Modbus TCP connection itself: its IP address names it already, so the unit is 255,
# and 0 is taken as well (Messaging on TCP/IP 4.4.2). On a serial line 255 is nobody.
TCP_DEVICE = 255
REGISTERS_MAX = 125  # per request (Application Protocol 6.3)
REQUEST_BYTES = 8
EXCEPTION_BYTES = 5
# Everything that a slow, noisy line can put before and after one frame; more is no frame but a babbling device.
BUFFER_BYTES_MAX = 1024

ILLEGAL_FUNCTION, ILLEGAL_DATA_ADDRESS, ILLEGAL_DATA_VALUE = 1, 2, 3
EXCEPTION_NAMES = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target failed to respond",
}


def crc16(data: bytes | bytearray) -> int:
    """Return the CRC-16 of Modbus over data, as an integer; on the wire its low byte goes first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
    return crc


def add_crc(data: bytes | bytearray) -> bytes:
    """Return data with its CRC behind it."""
    crc = crc16(data)
    return bytes(data) + bytes((crc & 0xFF, crc >> 8))


def has_crc(frame: bytes | bytearray) -> bool:
    """Tell whether the last two bytes of frame are the CRC of those before."""
    return len(frame) > 2 and crc16(frame[:-2]) == frame[-2] | frame[-1] << 8


class ReadRequest:
    """A request for `count` registers from wire address `address` (0-based) of one unit."""

    def __init__(self, *, unit: int, function: int, address: int, count: int) -> None:
        """Check the request: UsageError says which number is out of range. Any unit may answer ANY_UNIT."""
        if unit not in (ANY_UNIT, TCP_DEVICE) and not UNIT_MIN <= unit <= UNIT_MAX:
            raise UsageError(f"unit {unit} is not within {UNIT_MIN}-{UNIT_MAX}")
        if function not in READ_FUNCTIONS:
            raise UsageError(f"function {function} does not read registers; 3 and 4 do")
        if not 1 <= count <= REGISTERS_MAX:
            raise UsageError(f"{count} registers in one request; 1-{REGISTERS_MAX} are possible")
        if not 0 <= address <= 0x10000 - count:
            raise UsageError(f"registers {address} to {address + count - 1} are not all within 0-65535")
        self.unit = unit
        self.function = function
        self.address = address
        self.count = count

    def encode(self) -> bytes:
        """Return the frame."""
        return add_crc(bytes((self.unit,)) + self.pdu())

    def pdu(self) -> bytes:
        """Return what stands between unit and checksum, which is the same in every framing."""
        return bytes((self.function, self.address >> 8, self.address & 0xFF, self.count >> 8, self.count & 0xFF))

    def is_answered_by(self, body: bytes) -> bool:
        """Tell whether unit and PDU, taken from a valid frame, answer this request, normally or with an exception."""
        if len(body) < 3 or self.unit not in (body[0], ANY_UNIT):
            return False
        if body[1] == self.function | 0x80:
            return len(body) == 3
        return body[1] == self.function and body[2] == 2 * self.count == len(body) - 3

    def stranger(self, body: bytes) -> MeterError:
        """Return the error that says what unit and PDU of a valid frame are that do not answer this request."""
        if body[1:] == self.pdu() and body[0] == self.unit:
            return NoResponse("no answer, only our own request (echo): the adapter or the wiring repeats what is sent")
        if self.unit not in (body[0], ANY_UNIT):
            return WrongAnswer(f"answered by unit {body[0]}, asked was unit {self.unit}")
        return WrongAnswer(
            f"answered by function {body[1]} with {len(body) + 2} bytes; "
            f"asked were function {self.function} and {self.count} registers"
        )

    def reader(self) -> "ResponseReader":
        """Return a fresh reader for the answer."""
        return ResponseReader(self)

    @property
    def response_bytes(self) -> int:
        """The length of the frame that answers."""
        return 5 + 2 * self.count


class ResponseReader:
    """Finds the answer to one request among the bytes that come back, whatever noise stands around it."""

    def __init__(self, request: ReadRequest) -> None:
        self.request = request
        self.buffer = bytearray()
        self._echo = request.encode()
        self._start = 0  # no answer begins before it: nothing is checked twice, however slowly a device babbles

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return the answering frame (normal or exception) once it is complete, else None.

        Raises Garbled when more bytes come than any frame with noise around it can have.
        """
        self.buffer += data
        if len(self.buffer) > BUFFER_BYTES_MAX:
            raise Garbled(f"more than {BUFFER_BYTES_MAX} bytes and no answer among them: a device babbles")
        while self._start + EXCEPTION_BYTES <= len(self.buffer):
            # One of four things stands here.
            # 1. Our own request (some adapters repeat what is sent). It must not be taken for an answer: where the high
            #    byte of its address equals the byte count, request and a few 00 after it (a line that nobody drives)
            #    make a frame with a valid CRC, because 00 behind a CRC leaves the CRC of the whole at zero.
            echoed = self._bytes_at(self._start, REQUEST_BYTES)
            if echoed == self._echo[: len(echoed)]:
                if len(echoed) < REQUEST_BYTES:
                    return None
                self._start += REQUEST_BYTES
                continue
            # 2. An answer of which some bytes are still to come; what looks like an exception in it is its content.
            length = self._answer_length_at(self._start)
            frame = self._bytes_at(self._start, length)
            if len(frame) < length:
                return None
            # 3. The answer.
            if has_crc(frame):
                return frame
            # 4. Noise.
            self._start += 1
        return None

    def close(self) -> None:
        """Say, when the time is up, why there is no answer: raises NoResponse, WrongAnswer or Garbled."""
        if not self.buffer:
            raise NoResponse("no answer")
        frame = bytes(self.buffer)
        if has_crc(frame) and len(frame) >= EXCEPTION_BYTES:
            raise self.request.stranger(frame[:-2])
        raise Garbled(f"{len(self.buffer)} bytes, no valid frame: {hex_dump(self.buffer[:DUMP_BYTES_MAX])}")

    def _bytes_at(self, start: int, length: int) -> bytes:
        """Return so many bytes of the buffer, fewer where it ends before."""
        return bytes(self.buffer[start : start + length])

    def _answer_length_at(self, start: int) -> int:
        """Return the length of the answer that begins there by its looks; 0 where none can begin."""
        unit, function, byte_count = self.buffer[start : start + 3]
        if unit != self.request.unit and (self.request.unit != ANY_UNIT or unit > UNIT_MAX):
            return 0
        if function == self.request.function and byte_count == 2 * self.request.count:
            return self.request.response_bytes
        return EXCEPTION_BYTES if function == self.request.function | 0x80 else 0


def decode_response(frame: bytes) -> list[int]:
    """Return the registers of a normal response.

    Raises MeterRefused for an exception response. The frame must have passed a reader.
    """
    if frame[1] & 0x80:
        code = frame[2]
        raise MeterRefused(f"exception {code} ({EXCEPTION_NAMES.get(code, 'unknown code')})")
    data = frame[3:-2]
    return [data[i] << 8 | data[i + 1] for i in range(0, len(data), 2)]


def encode_response(request: ReadRequest, registers: list[int]) -> bytes:
    """Return the frame in which a meter answers a request with registers."""
    assert len(registers) == request.count
    body = bytearray((request.unit, request.function, 2 * len(registers)))
    for register in registers:
        body += bytes((register >> 8, register & 0xFF))
    return add_crc(body)


def encode_exception(request: ReadRequest, code: int) -> bytes:
    """Return the frame in which a meter refuses a request."""
    return add_crc(bytes((request.unit, request.function | 0x80, code)))


class RequestReader:
    """The meter's side: finds read requests to any unit among the bytes on the line."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, data: bytes) -> ReadRequest | None:
        """Take bytes; return the first ReadRequest in them, else None. What stands before it is dropped.

        What stands behind it is kept: `feed(b"")` returns the next one.
        """
        self.buffer += data
        start = 0
        request = None
        while request is None and start + REQUEST_BYTES <= len(self.buffer):
            frame = bytes(self.buffer[start : start + REQUEST_BYTES])
            if frame[1] in READ_FUNCTIONS and has_crc(frame):
                start += REQUEST_BYTES
                try:
                    request = decode_request(frame) if frame[0] not in (ANY_UNIT, TCP_DEVICE) else None
                except UsageError:
                    pass  # more registers than fit: no meter answers it
            else:
                start += 1
        self.buffer = self.buffer[start:]
        return request

    def silence(self) -> None:
        """Note a pause of 3.5 characters: what came before it and is no frame will not become one."""
        self.buffer = bytearray()


def decode_request(frame: bytes | bytearray) -> ReadRequest:
    """Return the ReadRequest in a frame. Raises UsageError where its numbers are out of range."""
    return ReadRequest(
        unit=frame[0], function=frame[1], address=frame[2] << 8 | frame[3], count=frame[4] << 8 | frame[5]
    )


def hex_dump(data: bytes | bytearray) -> str:
    """Return data as spaced upper-case pairs."""
    return " ".join(f"{byte:02X}" for byte in data)
