"""What the readers of CJ/T 188 and M-Bus share: what is kept, and what is said when no answer came."""

import pytest

from protocols.answer import BUFFER_BYTES_MAX, BufferedReader
from protocols.errors import DUMP_BYTES_MAX, Garbled, NoResponse, WrongAnswer

SENT = b"\x01\x02\x03"


class Reader(BufferedReader):
    """Its answer is FF, and 7F is somebody else's."""

    def _search(self):
        return b"\xff" if b"\xff" in self._buffer else None

    def _stranger(self, heard):
        return "somebody" if b"\x7f" in heard else None


def reader_of(*pieces):
    reader = Reader(SENT)
    for piece in pieces:
        assert reader.feed(piece) is None
    return reader


def test_an_answer_in_the_last_byte_that_fits_and_none_behind_it():
    assert reader_of(bytes(BUFFER_BYTES_MAX - 1)).feed(b"\xff") == b"\xff"
    assert reader_of(bytes(BUFFER_BYTES_MAX - 1)).feed(b"\xff\0") == b"\xff"
    with pytest.raises(Garbled, match=f"more than {BUFFER_BYTES_MAX} bytes"):
        reader_of(bytes(BUFFER_BYTES_MAX)).feed(b"\xff")


@pytest.mark.parametrize(
    ("heard", "error", "text"),
    [
        (b"", NoResponse, "^no answer$"),
        (SENT, NoResponse, "only our own request"),
        (SENT + SENT, Garbled, "^3 bytes, no valid frame: 01 02 03$"),
        (SENT + b"\x7f", WrongAnswer, "^answered by somebody$"),
        (b"\0" * 100, Garbled, f"^100 bytes, no valid frame: {'00 ' * (DUMP_BYTES_MAX - 1)}00$"),
    ],
)
def test_what_is_said_when_the_time_is_up(heard, error, text):
    with pytest.raises(error, match=text):
        reader_of(*(heard[at : at + 1] for at in range(len(heard)))).close()
