"""A simulated RS-485 line: bytes take their time, and two senders at once garble each other. Sans I/O.

    master   request|
                    |<- delay ->|
    meter                       |answer, byte by byte
             ^ first byte       ^                   ^ not before: request + delay + answer at the line's pace

It knows bytes, meters' names and seconds, and no protocol: a responder turns bytes into answers, whoever owns the
wire says what time it is. The model of a collision is simple: a request that overlaps with an answer is lost, the
rest of the answer becomes random bytes of the same length; of two answers that overlap, both become random.
"""

import random
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

# Bytes are handed over in bursts of about this length, as a UART with a FIFO does; fewer bursts, less CPU.
BURST_S: Final = 0.004
# A pause that ends a frame is 3.5 characters on a line (Modbus Serial Line 2.5.1.1). A client's write may be torn
# apart by the scheduler, which a UART's is not; hence the allowance.
PAUSE_CHARACTERS: Final = 3.5
SCHEDULER_ALLOWANCE_S: Final = 0.02


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a meter sends back.

    `volume_ml` is what the frame says to who reads it, None where it says no volume or another meter's name;
    `before` and `after` are noise around it, `delay_s` runs from the request's last byte to the first of all this.
    """

    meter: str
    frame: bytes
    delay_s: float
    wall_ms: int
    volume_ml: int | None = None
    before: bytes = b""
    after: bytes = b""


class Responder(Protocol):
    """The meters of one wire protocol: bytes in, answers out."""

    def hear(self, data: bytes, *, wall_ms: int) -> Sequence[Answer]:
        """Take bytes from the line; return the answers to the requests that they complete."""
        ...

    def pause(self) -> None:
        """Note that the line was silent: what came before and is no frame will not become one."""
        ...


class Delivery(NamedTuple):
    """What has left the wire: bytes for the master, and the answers whose last byte is among them.

    `whole` says for each answer whether it got through without a collision.
    """

    data: bytes
    answers: list[tuple[Answer, bool]]


class _Transmission:
    """Bytes that occupy the line from `start_s` on. An echo has no answer."""

    def __init__(self, data: bytes, *, start_s: float, byte_s: float, answer: Answer | None) -> None:
        self.data = bytearray(data)
        self.start_s = start_s
        self.end_s = start_s + len(data) * byte_s
        self.answer = answer
        self.frame_end = len(data) - len(answer.after) if answer else 0
        self.sent = 0
        self.whole = True

    def overlaps(self, start_s: float, end_s: float) -> bool:
        return self.start_s < end_s and start_s < self.end_s

    def garble(self, chance: random.Random) -> None:
        if self.sent < self.frame_end:
            self.whole = False
        for index in range(self.sent, len(self.data)):
            self.data[index] ^= chance.randrange(1, 256)


class Wire:
    """One half-duplex line. Every method takes the time, in seconds of any clock that does not step."""

    def __init__(self, *, byte_s: float, echo: bool, chance: random.Random) -> None:
        self.collisions = 0
        self._byte_s = byte_s
        self._burst = max(1, int(BURST_S / byte_s))
        self._echo = echo
        self._chance = chance
        self._on_line: list[_Transmission] = []
        self._request_end_s = float("-inf")

    @property
    def free_s(self) -> float:
        """When the line has carried what the master sent; its driver keeps what it sends before that."""
        return self._request_end_s

    def paused(self, *, now_s: float) -> bool:
        """Tell whether the master has been silent long enough to end a frame."""
        return now_s > self._request_end_s + PAUSE_CHARACTERS * self._byte_s + SCHEDULER_ALLOWANCE_S

    def receive(self, data: bytes, *, now_s: float) -> bool:
        """Take bytes from the master; tell whether the meters can hear them, or they collided with an answer."""
        start_s = max(now_s, self._request_end_s)
        self._request_end_s = start_s + len(data) * self._byte_s
        collided = self._garble_overlapping(start_s, self._request_end_s)
        if self._echo:
            echo = _Transmission(data, start_s=start_s, byte_s=self._byte_s, answer=None)
            if collided:
                echo.garble(self._chance)
            self._on_line.append(echo)
        return not collided

    def send(self, answer: Answer) -> None:
        """Let a meter answer what the line has carried last."""
        data = answer.before + answer.frame + answer.after
        start_s = self._request_end_s + answer.delay_s
        transmission = _Transmission(data, start_s=start_s, byte_s=self._byte_s, answer=answer)
        if self._garble_overlapping(start_s, transmission.end_s):
            transmission.garble(self._chance)
        self._on_line.append(transmission)

    def due(self, *, now_s: float) -> Delivery:
        """Return what has left the wire by now and was not returned before; never a byte before its time."""
        data, answers = bytearray(), []
        for transmission in self._on_line:
            # Rounded towards "not yet"; the nanosecond keeps `next_s` itself from falling short.
            complete = int((now_s - transmission.start_s + 1e-9) / self._byte_s) if now_s >= transmission.start_s else 0
            complete = min(complete, len(transmission.data))
            answer, before = transmission.answer, transmission.sent
            if complete > before:
                data += transmission.data[before:complete]
                transmission.sent = complete
                if answer and before < transmission.frame_end <= complete:
                    answers.append((answer, transmission.whole))
        self._on_line = [t for t in self._on_line if t.sent < len(t.data)]
        return Delivery(bytes(data), answers)

    @property
    def next_s(self) -> float | None:
        """When the next burst is due; None while the line is silent."""
        ends = (t.start_s + min(t.sent + self._burst, len(t.data)) * self._byte_s for t in self._on_line)
        return min(ends, default=None)

    def _garble_overlapping(self, start_s: float, end_s: float) -> bool:
        """Garble every answer on the line within a stretch of time; tell whether there was one."""
        collided = False
        for transmission in self._on_line:
            if transmission.answer and transmission.overlaps(start_s, end_s):
                transmission.garble(self._chance)
                collided = True
        self.collisions += collided
        return collided
