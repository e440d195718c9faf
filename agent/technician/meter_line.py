"""One CJ/T 188 meter on an open line: dialogues run, it is woken where it sleeps, and every byte is remembered."""

import random
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from agent.technician.reading import REPEATABLE, Plan
from agent.technician.trace import Frame, Trace
from gateway.line import Line, LineSettings, open_port
from protocols import cjt188_dialogue
from protocols.cjt188 import Request

Result = TypeVar("Result")


class MeterLine:
    """A meter's line. All methods run on one thread."""

    def __init__(
        self,
        plan: Plan,
        *,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` is from 0 up to 1: a late answer to the process before us must not name our request's number."""
        self._plan = plan
        self._trace = Trace(opener=opener, monotonic=monotonic)
        self._line = Line(plan.line, opener=self._trace.opener, monotonic=monotonic, pause=pause)
        self._awake_at_s = float("-inf")  # when the meter last answered
        meter: cjt188_dialogue.Station = plan.address
        meter.count_from(int(chance() * 0x100))

    @property
    def frames(self) -> tuple[Frame, ...]:
        """What went over the wire, both ways, since it was last taken."""
        return tuple(self._trace.frames)

    @property
    def bytes_forgotten(self) -> int:
        """How many of the bytes on the wire `frames` no longer holds: a line that babbles fills it."""
        return self._trace.bytes_forgotten

    def now_ms(self) -> int:
        """Return the milliseconds since this began; the frames count from there as well."""
        return self._trace.now_ms()

    def take_frames(self) -> tuple[Frame, ...]:
        """Return what went over the wire since this was last asked."""
        return tuple(self._trace.take())

    def run(self, dialogue: Generator[Request, bytes, Result]) -> Result:
        """Return what a dialogue comes to: nothing is repeated. Raises MeterError."""
        query = next(dialogue)
        if self.is_asleep:
            self.wake(query)
        while True:
            frame = self.ask(query)
            try:
                query = dialogue.send(frame)
            except StopIteration as end:
                result: Result = end.value
                return result

    @property
    def is_asleep(self) -> bool:
        """Whether the meter will lose the next request."""
        wake_up = self._plan.profile.timing.wake_up
        return wake_up is not None and self._line.now_s() - self._awake_at_s >= wake_up.sleeps_after_ms / 1000

    def wake(self, query: Request) -> None:
        """Send a meter that sleeps the request that it will lose: one to read, never a command. Raises PortLost."""
        wake_up = self._plan.profile.timing.wake_up
        assert wake_up is not None
        try:
            # Waiting is half of the time until the next request; the line's silence after a failure is the other half.
            self._line.exchange(query, timeout_ms=(wake_up.takes_ms + 1) // 2)
        except REPEATABLE:
            pass  # as expected

    def ask(self, query: Request) -> bytes:
        """Send a request, once; return the frame that answers it. Raises MeterError."""
        self._line.rest(self._plan.profile.timing.turnaround_ms / 1000)
        frame = self._line.exchange(query, timeout_ms=self._plan.timeout_ms)
        self._awake_at_s = self._line.now_s()
        return frame

    def close(self) -> None:
        """Let go of the port."""
        self._line.close()
