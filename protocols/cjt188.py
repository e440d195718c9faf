"""CJ/T 188 frames (2004 and 2018), both sides of the line, sans I/O.

    FE ... | 68 | T | A0 ... A6 | C      | L  | DI DI SER data ... | CS | 16     request
    FE ... | 68 | T | A0 ... A6 | C|80H  | L  | DI DI SER data ... | CS | 16     answer
    FE ... | 68 | T | A0 ... A6 | C|C0H  | 03 | SER ST0 ST1        | CS | 16     abnormal answer

L counts the bytes from DI to the one before CS; CS is the sum of all bytes from 68 to there, modulo 256. The address
is 14 BCD digits, its low byte first. SER counts the master's requests and comes back in the answer. The standard's text
is not public; what is said here of it rests on a published summary of the 2004 text and on captured frames.

Eight bits of checksum let one damaged frame in 256 pass. A frame is therefore an answer only when length, terminator,
meter type, address, control code, data identifier and serial number fit the request as well. A reader is fed bytes as
they come; `close()` is called when the time is up and says what went wrong. What a frame's data mean: `cjt188_data`.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from protocols.answer import BufferedReader
from protocols.errors import UsageError

START: Final = 0x68
END: Final = 0x16
PREAMBLE: Final = 0xFE
HEADER_BYTES: Final = 11  # 68 T A0-A6 C L
OVERHEAD_BYTES: Final = HEADER_BYTES + 2  # and CS, 16
# 2004: at most 64H when reading, 32H when writing. A larger L is noise that would make us wait for what never comes.
DATA_BYTES_MAX: Final = 0x64
# 2004: two to four; meters were seen to send up to six.
PREAMBLE_BYTES_SEEN: Final = 6

COLD_WATER: Final = 0x10
ANY_TYPE: Final = 0xAA
BROADCAST: Final = "AA" * 7
TYPE_NAMES: Final = {
    COLD_WATER: "cold water",
    0x11: "hot water",
    0x12: "drinking water",
    0x13: "reclaimed water",
    0x20: "heat",
    0x21: "cooling",
    0x22: "heat and cooling",
    0x30: "gas",
    0x40: "electricity or other",
    ANY_TYPE: "any",
}

READ_DATA: Final = 0x01
READ_ADDRESS: Final = 0x03
WRITE_DATA: Final = 0x04  # also moves the valve
READ_KEY_VERSION: Final = 0x09
WRITE_ADDRESS: Final = 0x15
SET_TOTAL: Final = 0x16  # "mechanical-electrical synchronisation": overwrites the register
VENDOR_VALVE: Final = 0x2A
CONTROL_NAMES: Final = {
    READ_DATA: "read data",
    READ_ADDRESS: "read address",
    WRITE_DATA: "write data",
    READ_KEY_VERSION: "read key version",
    WRITE_ADDRESS: "write address",
    SET_TOTAL: "set the total",
    0x22: "broadcast read address (vendor)",
    VENDOR_VALVE: "valve (vendor)",
    0x33: "memory access (vendor)",
}
REPLY_BIT: Final = 0x80
ABNORMAL_BIT: Final = 0x40
ABNORMAL_DATA_BYTES: Final = 3  # SER ST0 ST1
ADDRESS_DATA_BYTES: Final = 10  # DI DI SER A0-A6; most meters answer with DI DI SER alone, their address in the header


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame without preamble. `address` is written as on the meter: 14 digits, the wire's last byte first."""

    meter_type: int
    address: str
    control: int
    data: bytes

    def encode(self) -> bytes:
        """Return the frame from 68 to 16."""
        assert len(self.data) <= DATA_BYTES_MAX
        head = bytes((START, self.meter_type)) + address_bytes(self.address)
        body = head + bytes((self.control, len(self.data))) + self.data
        return body + bytes((checksum(body), END))

    @property
    def is_reply(self) -> bool:
        """Whether a meter sent it."""
        return bool(self.control & REPLY_BIT)

    @property
    def is_abnormal(self) -> bool:
        """Whether it says that the meter refuses."""
        return self.is_reply and bool(self.control & ABNORMAL_BIT)

    @property
    def request_control(self) -> int:
        """The control code of the request that it is or answers."""
        return self.control & ~(REPLY_BIT | ABNORMAL_BIT) if self.is_reply else self.control

    @property
    def identifier(self) -> bytes | None:
        """The two bytes of the data identifier in the order of the wire; None where there is none."""
        return self.data[:2] if len(self.data) >= 3 and not self.is_abnormal else None

    @property
    def serial(self) -> int | None:
        """SER, the number that an answer repeats; None where there is none."""
        if len(self.data) < ABNORMAL_DATA_BYTES:
            return None
        return self.data[0] if self.is_abnormal else self.data[2]

    @property
    def content(self) -> bytes:
        """What follows SER: the data proper, or ST0 and ST1 of an abnormal answer."""
        return self.data[1:] if self.is_abnormal else self.data[3:]


def checksum(data: bytes | bytearray) -> int:
    """Return the sum of all bytes, modulo 256."""
    return sum(data) & 0xFF


def address_bytes(address: str) -> bytes:
    """Return the seven bytes of an address as they travel: the low byte first."""
    return bytes.fromhex(address)[::-1]


def parse_frame(data: bytes | bytearray, start: int = 0) -> Frame | None:
    """Return the frame that begins exactly there, or None where none is complete and sound."""
    if len(data) < start + OVERHEAD_BYTES or data[start] != START:
        return None
    length = data[start + HEADER_BYTES - 1]
    end = start + OVERHEAD_BYTES + length
    if length > DATA_BYTES_MAX or len(data) < end or data[end - 1] != END:
        return None
    if checksum(data[start : end - 2]) != data[end - 2]:
        return None
    return Frame(
        meter_type=data[start + 1],
        address=data[start + 2 : start + 9][::-1].hex().upper(),
        control=data[start + 9],
        data=bytes(data[start + HEADER_BYTES : end - 2]),
    )


def find_frames(data: bytes | bytearray) -> Iterator[tuple[int, Frame]]:
    """Yield every sound frame in data with its offset, whatever stands before, between and after them."""
    start = data.find(START)
    while start >= 0:
        frame = parse_frame(data, start)
        if frame:
            yield start, frame
        start = data.find(START, start + (OVERHEAD_BYTES + len(frame.data) if frame else 1))


def same_family(asked: int, answered: int) -> bool:
    """Tell whether a meter of type `answered` may answer a request for type `asked`.

    Meters answer with their exact type (11 when asked as 10) and some with AA. A family is one high digit, 1 to 4.
    """
    if asked == answered or ANY_TYPE in (asked, answered):
        return True
    return asked >> 4 == answered >> 4 and 1 <= asked >> 4 <= 4 and max(asked & 0xF, answered & 0xF) <= 9


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request and what answers it: an answer with one of the given numbers of data bytes (L), or a refusal.

    `lead` goes out before the frame: a radio modem's header and the preamble.
    """

    frame: Frame
    answer_lengths: tuple[int, ...]
    lead: bytes = bytes([PREAMBLE] * 4)

    def __post_init__(self) -> None:
        if self.frame.is_reply or self.frame.identifier is None:
            raise UsageError("a request has a data identifier, a serial number, and bit 7 of its control code clear")

    def encode(self) -> bytes:
        """Return what goes out on the line."""
        return self.lead + self.frame.encode()

    def reader(self) -> "AnswerReader":
        """Return a fresh reader for the answer."""
        return AnswerReader(self)

    @property
    def response_bytes(self) -> int:
        """The length of the longest frame that answers, with its preamble."""
        return PREAMBLE_BYTES_SEEN + OVERHEAD_BYTES + max(*self.answer_lengths, ABNORMAL_DATA_BYTES)

    def header_mismatch(self, header: bytes | bytearray) -> str | None:
        """Say why the frame with these eleven first bytes does not answer; None where it may."""
        asked = self.frame
        address, control, length = header[2:9][::-1].hex().upper(), header[9], header[10]
        if not control & REPLY_BIT:
            return f"a request of another master ({CONTROL_NAMES.get(control, f'control {control:02X}')} to {address})"
        # Whoever is asked for its address may keep the AA there and give it in the data instead.
        nameless = address == BROADCAST and asked.control == READ_ADDRESS and length == ADDRESS_DATA_BYTES
        if asked.address == BROADCAST and not (address.isdecimal() or nameless):
            return f"address {address}, which is no meter's"
        if asked.address not in (BROADCAST, address):
            return f"meter {address}, asked was {asked.address}"
        if not same_family(asked.meter_type, header[1]):
            return f"a meter of type {header[1]:02X}, asked was type {asked.meter_type:02X}"
        normal = asked.control | REPLY_BIT
        if control not in (normal, normal | ABNORMAL_BIT):
            return f"control {control:02X}, expected was {normal:02X} or {normal | ABNORMAL_BIT:02X}"
        lengths = self.answer_lengths if control == normal else (ABNORMAL_DATA_BYTES,)
        if length not in lengths:
            wanted = " or ".join(f"{number:02X}" for number in lengths)
            return f"{length:02X} bytes of data (L), the profile expects {wanted}"
        return None

    def mismatch(self, frame: Frame) -> str | None:
        """Say why a sound frame does not answer this request; None where it does."""
        fault = self.header_mismatch(frame.encode()[:HEADER_BYTES])
        if fault:
            return fault
        asked = self.frame
        if frame.serial != asked.serial:
            return f"serial number (SER) {frame.serial:02X}, asked was {asked.serial:02X}: a late answer"
        assert asked.identifier is not None
        # Both orders of the data identifier are in the field; a meter may even answer in the other one.
        if not frame.is_abnormal and frame.identifier not in (asked.identifier, asked.identifier[::-1]):
            return f"data {frame.data[:2].hex(' ').upper()}, asked was {asked.identifier.hex(' ').upper()}"
        return None


class AnswerReader(BufferedReader):
    """Finds the answer to one request (normal or abnormal, from 68 to 16), whatever noise stands around it."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.encode())
        self._request = request

    def _stranger(self, heard: bytearray) -> str | None:
        for _, frame in find_frames(heard):
            if frame != self._request.frame:
                return self._request.mismatch(frame) or "a frame within a damaged one"
        return None

    def _search(self) -> bytes | None:
        while True:
            start = self._buffer.find(START, self._start)
            self._start = start if start >= 0 else len(self._buffer)
            header = self._buffer[self._start : self._start + HEADER_BYTES]
            if len(header) < HEADER_BYTES:
                return None
            # One of four things stands here.
            if self._request.header_mismatch(header) is None:
                end = self._start + OVERHEAD_BYTES + header[-1]
                # 1. An answer of which bytes are still to come; what looks like a frame in it is its content.
                if len(self._buffer) < end:
                    return None
                # 2. The answer.
                frame = parse_frame(self._buffer, self._start)
                if frame and self._request.mismatch(frame) is None:
                    return bytes(self._buffer[self._start : end])
            # 3. An answer that is damaged or to something else, or 4. noise, an echo, another meter: look on.
            self._start += 1


class RequestReader:
    """The meter's side: finds requests to any meter among the bytes on the line."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Frame | None:
        """Take bytes; return the first request in them, else None. What stands before it is dropped.

        What stands behind it is kept: `feed(b"")` returns the next one. Answers of meters are passed over.
        """
        self._buffer += data
        found: Frame | None = None
        keep_from: int | None = None
        start = self._buffer.find(START)
        while start >= 0:
            frame = parse_frame(self._buffer, start)
            if frame:
                keep_from = start + OVERHEAD_BYTES + len(frame.data)
                if not frame.is_reply:
                    found = frame
                    break
                start = self._buffer.find(START, keep_from)
                keep_from = None
                continue
            if keep_from is None and self._may_grow(start):
                keep_from = start
            start = self._buffer.find(START, start + 1)
        del self._buffer[: len(self._buffer) if keep_from is None else keep_from]
        return found

    def silence(self) -> None:
        """Note that the line is silent: what came before and is no frame will not become one."""
        self._buffer.clear()

    def _may_grow(self, start: int) -> bool:
        """Tell whether the bytes from there on can be the beginning of a frame."""
        length_at = start + HEADER_BYTES - 1
        if length_at >= len(self._buffer):
            return True
        length = self._buffer[length_at]
        return length <= DATA_BYTES_MAX and len(self._buffer) < start + OVERHEAD_BYTES + length


def answer(request: Frame, content: bytes, *, address: str, meter_type: int) -> Frame:
    """Return the frame in which the meter at `address` answers a request with what follows SER."""
    return Frame(
        meter_type=meter_type, address=address, control=request.control | REPLY_BIT, data=request.data[:3] + content
    )


def refusal(request: Frame, status: bytes, *, address: str, meter_type: int) -> Frame:
    """Return the frame in which the meter at `address` refuses a request with ST0 and ST1."""
    control = request.control | REPLY_BIT | ABNORMAL_BIT
    return Frame(meter_type=meter_type, address=address, control=control, data=request.data[2:3] + status)
