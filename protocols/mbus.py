"""M-Bus frames (EN 13757-2), addresses and identities, both sides of the line, sans I/O.

    10 | C | A | CS | 16                            short: the master resets a link, or asks for data
    68 | L | L | 68 | C | A | CI | data | CS | 16   long: the master selects a meter, the meter sends data
    E5                                              the meter acknowledges

L counts the bytes from C to the one before CS; CS is their sum modulo 256. Eight bits of checksum let one damaged frame
in 256 pass, so a frame is an answer only when length, start, stop, direction and address fit the request as well; after
a selection the identity in the data must be the one that was selected.

A reader is fed bytes as they come; `close()` is called when the time is up and says what went wrong. What the data of a
frame mean: `mbus_data`. Who is asked what, and in which order: `mbus_dialogue`.
"""

import itertools
from collections.abc import Iterator
from typing import Final

import msgspec

from protocols.answer import BufferedReader
from protocols.errors import UsageError

SHORT_START: Final = 0x10
LONG_START: Final = 0x68
END: Final = 0x16
ACKNOWLEDGEMENT: Final = 0xE5
SHORT_BYTES: Final = 5
LONG_OVERHEAD_BYTES: Final = 6  # 68 L L 68 and CS 16
LENGTH_MIN: Final = 3  # C A CI
FRAME_BYTES_MAX: Final = LONG_OVERHEAD_BYTES + 0xFF
HEADER_BYTES: Final = 6  # 68 L L 68 C A: what shows whether a frame can be an answer

# C, master to meter.
RESET_LINK: Final = 0x40  # SND_NKE
SEND_DATA: Final = 0x53  # SND_UD
REQUEST_DATA: Final = 0x5B  # REQ_UD2
FRAME_COUNT_BIT: Final = 0x20  # FCB: turned over with every new request, so that a meter can tell a repeated one
# C, meter to master: RSP_UD. ACD (alarm data waiting) and DFC (no more, please) may be set.
RESPOND_DATA: Final = 0x08
RESPOND_FLAGS: Final = 0x30
CONTROL_NAMES: Final = {RESET_LINK: "SND_NKE", SEND_DATA: "SND_UD", REQUEST_DATA: "REQ_UD2"}

PRIMARY_MAX: Final = 250  # 0 is a meter that nobody has configured
SELECTED: Final = 253  # whoever was selected by its identity
ANY_METER: Final = 254  # every meter answers: for one meter on a bench
BROADCAST: Final = 255

SELECT: Final = 0x52  # CI of a selection
IDENTITY_BYTES: Final = 8
WILD_NUMBER: Final = "F" * 8
WILD_MANUFACTURER: Final = 0xFFFF
WILD_BYTE: Final = 0xFF
# CI of telegrams that say whose they are: variable structure (72, high byte first: 76), fixed structure (73, 77).
VARIABLE: Final = (0x72, 0x76)
FIXED: Final = (0x73, 0x77)
HIGH_BYTE_FIRST: Final = (0x76, 0x77)  # "mode 2"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a meter is, also known as its secondary address. F stands for any digit, FF and FFFF for any value.

    `number` are the eight digits on the meter, `medium` what it measures (07 water).
    """

    number: str = WILD_NUMBER
    manufacturer: int = WILD_MANUFACTURER
    version: int = WILD_BYTE
    medium: int = WILD_BYTE

    def __str__(self) -> str:
        """The number, or where more is known the 16 digits that other M-Bus tools show as well."""
        text = self.encode().hex().upper()
        return self.number + (text[8:] if text[8:] != "FF" * 4 else "")

    @property
    def manufacturer_name(self) -> str:
        """Three letters, five bits each (EN 61107 manufacturer code)."""
        return "".join(chr(0x40 + (self.manufacturer >> shift & 0x1F)) for shift in (10, 5, 0))

    def encode(self) -> bytes:
        """Return the eight bytes as a selection and the header of a telegram hold them, low byte first."""
        number, manufacturer = bytes.fromhex(self.number)[::-1], self.manufacturer.to_bytes(2, "little")
        return number + manufacturer + bytes((self.version, self.medium))

    def is_selected_by(self, mask: "Identity") -> bool:
        """Tell whether a selection with this mask means this meter. What a telegram does not say may be anything.

        Either byte of the maker may be FF for any (ABB A43 manual, 10.2.3.1; Elvaco CMeX50 manual, 6.3.14).
        """
        return (
            all(wanted in ("F", digit) for wanted, digit in zip(mask.number, self.number, strict=True))
            and _fits(mask.manufacturer >> 8, self.manufacturer >> 8, wild=WILD_BYTE)
            and _fits(mask.manufacturer & 0xFF, self.manufacturer & 0xFF, wild=WILD_BYTE)
            and _fits(mask.version, self.version, wild=WILD_BYTE)
            and _fits(mask.medium, self.medium, wild=WILD_BYTE)
        )


def _fits(wanted: int, actual: int, *, wild: int) -> bool:
    return wild in (wanted, actual) or wanted == actual


def decode_identity(data: bytes, *, high_byte_first: bool = False) -> Identity:
    """Return the identity in eight bytes; its multi-byte fields travel low byte first, in mode 2 high byte first."""
    assert len(data) == IDENTITY_BYTES
    order = 1 if high_byte_first else -1
    return Identity(
        number=data[:4][::order].hex().upper(),
        manufacturer=int.from_bytes(data[4:6], "big" if high_byte_first else "little"),
        version=data[6],
        medium=data[7],
    )


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame. A short frame has no CI; its `data` are empty."""

    control: int
    address: int
    ci: int | None = None
    data: bytes = b""

    def encode(self) -> bytes:
        """Return the frame from 10 or 68 to 16."""
        body = bytes((self.control, self.address))
        if self.ci is None:
            assert not self.data
            return bytes((SHORT_START,)) + body + bytes((checksum(body), END))
        body += bytes((self.ci,)) + self.data
        assert len(body) <= 0xFF
        return bytes((LONG_START, len(body), len(body), LONG_START)) + body + bytes((checksum(body), END))

    @property
    def function(self) -> int:
        """The control code without the bits that differ from frame to frame (FCB; of an answer ACD and DFC)."""
        return self.control & ~(FRAME_COUNT_BIT if self.is_request else RESPOND_FLAGS)

    @property
    def is_request(self) -> bool:
        """Whether a master sent it."""
        return bool(self.control & RESET_LINK)

    @property
    def identity(self) -> Identity | None:
        """Whose telegram it is; None where it does not say. The fixed structure gives the number alone."""
        if self.ci in VARIABLE and len(self.data) >= IDENTITY_BYTES:
            return decode_identity(self.data[:IDENTITY_BYTES], high_byte_first=self.ci in HIGH_BYTE_FIRST)
        if self.ci in FIXED and len(self.data) >= 4:
            padded = self.data[:4] + b"\xff" * 4
            return decode_identity(padded, high_byte_first=self.ci in HIGH_BYTE_FIRST)
        return None


def checksum(data: bytes | bytearray) -> int:
    """Return the sum of all bytes, modulo 256."""
    return sum(data) & 0xFF


def parse_frame(data: bytes | bytearray, start: int = 0) -> Frame | None:
    """Return the short or long frame that begins exactly there, or None where none is complete and sound."""
    if len(data) < start + SHORT_BYTES:
        return None
    if data[start] == SHORT_START:
        length, body_at = 2, start + 1
    elif data[start] == LONG_START and data[start + 3] == LONG_START and data[start + 1] == data[start + 2]:
        length, body_at = data[start + 1], start + 4
        if length < LENGTH_MIN:
            return None
    else:
        return None
    body = data[body_at : body_at + length]
    tail = data[body_at + length : body_at + length + 2]
    if tail != bytes((checksum(body), END)):
        return None
    if length == 2:
        return Frame(control=body[0], address=body[1])
    return Frame(control=body[0], address=body[1], ci=body[2], data=bytes(body[3:]))


def find_frames(data: bytes | bytearray) -> Iterator[tuple[int, Frame]]:
    """Yield every sound frame in data with its offset, whatever stands before, between and after them."""
    start = 0
    while start < len(data):
        frame = parse_frame(data, start) if data[start] in (SHORT_START, LONG_START) else None
        if frame:
            yield start, frame
        start += len(frame.encode()) if frame else 1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request and what answers it: data where the frame asks for data, else an acknowledgement.

    `identity` is whoever was selected before: only its data answer.
    """

    frame: Frame
    identity: Identity | None = None

    def __post_init__(self) -> None:
        if self.frame.function not in CONTROL_NAMES:
            raise UsageError(f"control {self.frame.control:02X} is no request of a master")
        if self.frame.address not in range(PRIMARY_MAX + 1) and self.frame.address != SELECTED:
            raise UsageError(f"address {self.frame.address} is no single meter's")

    def encode(self) -> bytes:
        """Return what goes out on the line."""
        return self.frame.encode()

    def reader(self) -> "AnswerReader":
        """Return a fresh reader for the answer."""
        return AnswerReader(self)

    @property
    def wants_data(self) -> bool:
        """Whether data answer it, and not an acknowledgement."""
        return self.frame.function == REQUEST_DATA

    @property
    def response_bytes(self) -> int:
        """The length of the longest frame that answers."""
        return FRAME_BYTES_MAX if self.wants_data else 1

    def mismatch(self, frame: Frame) -> str | None:
        """Say why a sound frame does not answer this request; None where it does."""
        if not self.wants_data:
            return f"meter {frame.address} with data, where an acknowledgement (E5) was due: a late answer"
        return self.header_mismatch(frame.control, frame.address) or self._identity_mismatch(frame)

    def header_mismatch(self, control: int, address: int) -> str | None:
        """Say why a long frame with these bytes does not answer a request for data; None where it may."""
        if control & ~RESPOND_FLAGS != RESPOND_DATA:
            return f"control {control:02X}, which is no answer of a meter"
        if self.frame.address == SELECTED:  # the meter answers with its primary address or with FD
            return None if address <= PRIMARY_MAX or address == SELECTED else f"address {address}, no meter's"
        if address != self.frame.address:
            return f"meter {address}, asked was {self.frame.address}"
        return None

    def _identity_mismatch(self, frame: Frame) -> str | None:
        if frame.ci is None:
            return "a short frame, which holds no data"
        # Reports of errors and alarms (70, 71) name nobody; they never hold a value.
        if self.identity is None or frame.ci in (0x70, 0x71):
            return None
        if frame.identity is None:
            return f"a telegram (CI {frame.ci:02X}) that does not say whose it is, asked was {self.identity}"
        if not frame.identity.is_selected_by(self.identity):
            return f"meter {frame.identity}, asked was {self.identity}"
        return None


class AnswerReader(BufferedReader):
    """Finds the answer to one request (E5, or the frame from 68 to 16), whatever noise stands around it.

    An acknowledgement is a single byte that any noise may hold, and any data. It counts only before the first start of
    a frame, or right behind what is left of our own request, whose first bytes transceivers that listen while they send
    may lose. For the same reason data do not count behind one: then the meter is an answer behind.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request.encode())
        self._request = request
        self._frame_seen = False
        self._acknowledged = False

    def _stranger(self, heard: bytearray) -> str | None:
        if self._acknowledged:
            return "an acknowledgement (E5), where data were due: a late answer"
        for _, frame in find_frames(heard):
            if frame != self._request.frame:
                return self._request.mismatch(frame) or "a frame within a damaged one"
        return None

    def _search(self) -> bytes | None:
        while self._start < len(self._buffer):
            # One of five things stands here.
            here = self._buffer[self._start : self._start + len(self._sent)]
            # 1. Our own request: some transceivers listen while they send.
            if here == self._sent[: len(here)]:
                if len(here) < len(self._sent):
                    return None
                self._start += len(self._sent)
                continue
            # 2. An acknowledgement, or such a byte of our own request, whose beginning was lost.
            if here[0] == ACKNOWLEDGEMENT and (not self._frame_seen or self._is_behind_echo()):
                is_own = self._is_of_echo()
                if is_own is None:
                    return None
                if not is_own and not self._request.wants_data:
                    return bytes((ACKNOWLEDGEMENT,))
                self._acknowledged |= not is_own
            self._frame_seen |= here[0] in (SHORT_START, LONG_START)
            # 3. An answer of which bytes are still to come; what looks like a frame in it is its content.
            if here[0] == LONG_START and self._request.wants_data and not self._acknowledged:
                end = self._end_of_answer(self._start)
                if end is not None and end > len(self._buffer):
                    return None
                # 4. The answer.
                frame = parse_frame(self._buffer, self._start) if end else None
                if frame and self._request.mismatch(frame) is None:
                    return bytes(self._buffer[self._start : end])
            # 5. Noise, or a frame that is damaged or to something else: look on.
            self._start += 1
        return None

    def _is_behind_echo(self) -> bool:
        """Tell whether all that was heard so far is the end of our own request, its first bytes lost or damaged."""
        heard, common = self._buffer[: self._start], self._in_common(len(self._sent))
        return common > 0 and len(heard) <= len(self._sent) and not {SHORT_START, LONG_START} & {*heard[:-common]}

    def _is_of_echo(self) -> bool | None:
        """Tell whether our own request goes on with the byte at `_start`, and behind it; None: not known yet."""
        for place in range(self._start, len(self._sent)):
            if self._sent[place] == ACKNOWLEDGEMENT and self._in_common(place):
                rest = self._sent[place + 1 :]
                heard = self._buffer[self._start + 1 :][: len(rest)]
                if heard == rest[: len(heard)]:
                    return None if len(heard) < len(rest) else True
        return False

    def _in_common(self, place: int) -> int:
        """Return how many bytes right before `_start` are those of our own request right before a place in it."""
        pairs = zip(self._buffer[: self._start][::-1], self._sent[:place][::-1], strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _end_of_answer(self, start: int) -> int | None:
        """Return where the answer that may begin there ends, as far as is known; None where none begins."""
        header = self._buffer[start : start + HEADER_BYTES]
        length = header[1] if len(header) > 1 else LENGTH_MIN
        if length < LENGTH_MIN or header[2:4] != bytes((length, LONG_START))[: max(0, len(header) - 2)]:
            return None
        if len(header) == HEADER_BYTES and self._request.header_mismatch(header[4], header[5]):
            return None
        return start + LONG_OVERHEAD_BYTES + length


class RequestReader:
    """The meter's side: finds the requests of a master among the bytes on the line."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Frame | None:
        """Take bytes; return the first request in them, else None. What stands before it is dropped.

        What stands behind it is kept: `feed(b"")` returns the next one. Answers of meters are passed over.
        """
        self._buffer += data
        keep_from: int | None = None
        start = 0
        while start < len(self._buffer):
            frame = parse_frame(self._buffer, start)
            if frame and frame.is_request:
                del self._buffer[: start + len(frame.encode())]
                return frame
            if frame:
                start += len(frame.encode())
                keep_from = None
                continue
            if keep_from is None and self._may_grow(start):
                keep_from = start
            start += 1
        del self._buffer[: len(self._buffer) if keep_from is None else keep_from]
        return None

    def silence(self) -> None:
        """Note that the line is silent: what came before and is no frame will not become one."""
        self._buffer.clear()

    def _may_grow(self, start: int) -> bool:
        """Tell whether the bytes from there on can be the beginning of a frame."""
        here = self._buffer[start : start + 4]
        if here[0] == SHORT_START:
            return len(self._buffer) < start + SHORT_BYTES
        if here[0] != LONG_START:
            return False
        if len(here) < 4:
            return len(here) < 3 or here[1] == here[2]
        return (
            here[1] == here[2] and here[3] == LONG_START and len(self._buffer) < start + LONG_OVERHEAD_BYTES + here[1]
        )


def reset_link(address: int) -> Request:
    """Return the request that makes a meter forget the last frame count bit; it acknowledges."""
    return Request(frame=Frame(control=RESET_LINK, address=address))


def select(identity: Identity) -> Request:
    """Return the request that selects the meters with an identity and deselects all others; the former acknowledge."""
    return Request(frame=Frame(control=SEND_DATA, address=SELECTED, ci=SELECT, data=identity.encode()))


def request_data(address: int, *, frame_count_bit: bool, identity: Identity | None = None) -> Request:
    """Return the request for a telegram; FCB and FCV are bits 5 and 4 of the control code."""
    control = REQUEST_DATA | (FRAME_COUNT_BIT if frame_count_bit else 0)
    return Request(frame=Frame(control=control, address=address), identity=identity)
