"""What the decoder says of the bytes that it was given: pieces, each a frame or noise, and the fields of each."""

from typing import Final, Literal

import msgspec

from agent.technician.hextext import Direction
from agent.technician.words import Words

Kind = Literal["request", "answer", "refusal", "acknowledgement", "damaged", "truncated", "noise"]


DAMAGED: Final = Words("校验错：此帧内容一概不可信", "Wrong checksum: nothing in this frame can be trusted")


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes `start` to before `end` of a frame, what they are, and what they say."""

    start: int
    end: int
    name: Words
    value: str


class Checksum(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the frame and what would be right, in the order of the wire."""

    found: str
    right: str

    @property
    def is_right(self) -> bool:
        """Whether they are the same."""
        return self.found == self.right


class Meaning(msgspec.Struct, frozen=True, kw_only=True):
    """One volume that a frame may mean; `how` its bytes are read then, and which built-in profiles read them so."""

    how: str
    volume_ml: int
    profiles: tuple[str, ...] = ()


class Piece(msgspec.Struct, kw_only=True):
    """Bytes `start` to before `end` of the input (of all chunks, one after the other)."""

    start: int
    end: int
    data: bytes
    kind: Kind
    title: Words
    protocol: str = ""  # modbus, cjt188, mbus; empty for noise
    framing: str | None = None  # of Modbus: rtu, ascii, tcp
    plain: bytes = b""  # what the protocol's own module understands: Modbus as an RTU frame, else the bytes
    direction: Direction | None = None
    fields: list[Field] = []
    checksum: Checksum | None = None
    notes: list[Words] = []
    meanings: list[Meaning] = []
    # What `registers_of` or a layout found, for those who go on from here.
    registers: dict[int, int] = {}


class FieldList:
    """Builds the fields of one frame from left to right."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.fields: list[Field] = []
        self.at = 0

    def add(self, size: int, name: Words, value: str) -> None:
        """Add the next `size` bytes; fewer where the frame ends before."""
        end = min(self.at + size, len(self.frame))
        if end > self.at:
            self.fields.append(Field(start=self.at, end=end, name=name, value=value))
        self.at = end

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes without going on."""
        return self.frame[self.at : self.at + size]
