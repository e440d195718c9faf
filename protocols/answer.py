"""What finding an answer in CJ/T 188 and in M-Bus has in common: a bounded buffer, and words for what came instead."""

from typing import Final, NoReturn

from protocols.errors import DUMP_BYTES_MAX, Garbled, NoResponse, WrongAnswer

# Everything that a slow, noisy line can put before and after one frame; more is no frame but a babbling device.
BUFFER_BYTES_MAX: Final = 1024


class BufferedReader:
    """Collects the bytes that come back to one request until its answer is among them."""

    def __init__(self, sent: bytes) -> None:
        """`sent` is the request as it went out, which some transceivers let us hear again."""
        self._sent = sent
        self._buffer = bytearray()
        self._start = 0  # no answer begins before it: nothing is checked twice, however slowly a device babbles

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return the answer once it is complete, else None.

        Raises Garbled when more bytes come than any frame with noise around it can have.
        """
        room = BUFFER_BYTES_MAX - len(self._buffer)
        self._buffer += data[:room]
        answer = self._search()
        if answer is None and len(data) > room:
            raise Garbled(f"more than {BUFFER_BYTES_MAX} bytes and no answer among them: a device babbles")
        return answer

    def close(self) -> NoReturn:
        """Say, when the time is up, why there is no answer: raises NoResponse, WrongAnswer or Garbled.

        Our own request, heard again, counts as silence.
        """
        heard = self._buffer.replace(self._sent, b"", 1)
        if not heard:
            raise NoResponse("no answer" if not self._buffer else "no answer, only our own request (echo)")
        stranger = self._stranger(heard)
        if stranger:
            raise WrongAnswer(f"answered by {stranger}")
        raise Garbled(f"{len(heard)} bytes, no valid frame: {heard[:DUMP_BYTES_MAX].hex(' ').upper()}")

    def _search(self) -> bytes | None:
        """Return the answer in the buffer from `_start` on, None where it is not complete."""
        raise NotImplementedError

    def _stranger(self, heard: bytearray) -> str | None:
        """Say what was heard that is sound and does not answer the request; None where nothing is."""
        raise NotImplementedError
