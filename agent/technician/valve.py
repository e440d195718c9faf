"""One meter's valve: one frame that writes, sent once, and then only reading until the meter says where the valve is.

    look      read the meter: it answers, and says where its valve is       it does not: nothing is sent
    command   one frame, once. Whatever becomes of it, it is not repeated   no answer: the valve may move all the same
    watch     read again and again until two readings in a row say that the valve is where it was sent (a checksum of 8
              bits lets one damaged frame in 256 pass), or the time is up: then it is not confirmed

Who calls `move` has been told in words which valve goes where (`agent.technician.valve_words`). Nothing else of ours
writes to a meter (`tests/agent/test_reads_only.py`).
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from agent.technician.meter_line import MeterLine
from agent.technician.reading import REPEATABLE, Plan
from agent.technician.trace import Frame
from gateway.clock import Clock
from gateway.line import LineSettings, open_port
from protocols import cjt188_data, cjt188_dialogue
from protocols.cjt188_data import Cjt188Spec
from protocols.cjt188_dialogue import Position
from protocols.errors import MeterError

# Valves take from two seconds to a minute; asking more often than this only keeps the line busy.
LOOK_EVERY_S: Final = 2.0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one reading said: a volume (None: the meter left it empty), flags, and where the valve is; or an error."""

    at_ms: int
    position: Position = Position.UNKNOWN
    volume_ml: int | None = None
    flags: tuple[str, ...] = ()
    status: bytes | None = None
    error: MeterError | None = None


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the one frame that writes, preamble included. `is_sent`: it went out, or may have.

    `status` is ST0 and ST1 of the meter's answer; without it `reason` and `text` say why there is none.
    """

    at_ms: int
    is_sent: bool
    frame: bytes | None = None
    status: bytes | None = None
    reason: str | None = None
    text: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What moving a valve came to. `before` is the look that it began with; without `command` nothing was tried."""

    plan: Plan
    target: Position
    wall_ms: int
    took_ms: int
    frames: tuple[Frame, ...]
    before: Look
    command: Command | None = None
    after: tuple[Look, ...] = ()
    is_interrupted: bool = False

    @property
    def is_sent(self) -> bool:
        """Whether the command went out, or may have."""
        return self.command is not None and self.command.is_sent

    @property
    def position(self) -> Position:
        """Where the meter last said that the valve is, after the command.

        A reading says so. The answer to the command counts only where readings of such a meter cannot tell: an answer
        may be given before anything moved.
        """
        if not self.is_sent or self.command is None:
            return Position.UNKNOWN
        for look in reversed(self.after):
            if look.error is None:
                if look.status is not None:
                    return look.position
                return cjt188_dialogue.valve_position(self.plan.profile.spec, self.command.status)
        return Position.UNKNOWN

    @property
    def is_confirmed(self) -> bool:
        """Whether the meter says that the valve is where it was sent, in two readings one after the other.

        Where readings cannot tell, the answer to the command is all there is.
        """
        if self.position is not self.target:
            return False
        good = [look for look in self.after if look.error is None]
        return good[-1].status is None or _is_settled(good, self.target)


Progress = Callable[[Literal["look", "command", "watch"], Look | None, float], None]


def _is_settled(looks: Sequence[Look], target: Position) -> bool:
    """Tell whether the last two readings say the same: there."""
    return len(looks) >= 2 and {look.position for look in looks[-2:]} == {target}


def _note_nothing(_frame: bytes) -> None:
    """Note nowhere what is about to be sent."""


def _tell_nobody(_stage: str, _look: Look | None, _elapsed_s: float) -> None:
    """Report progress to nobody."""


class ValveStation:
    """A meter with a valve on an open line. All methods run on one thread; none raises MeterError."""

    def __init__(
        self,
        plan: Plan,
        *,
        clock: Clock,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """The plan's meter speaks CJ/T 188 (`valve_words.obstacle` has said so)."""
        self.plan = plan
        self._spec: Cjt188Spec = plan.profile.spec
        self._meter: cjt188_dialogue.Station = plan.address
        self._clock = clock
        self._monotonic = monotonic
        self._pause = pause
        self._line = MeterLine(plan, opener=opener, monotonic=monotonic, pause=pause, chance=chance)
        self._command_bytes: bytes | None = None  # the one frame that writes, once it is about to go out

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Everything that went over the wire, both ways."""
        return self._line.frames

    @property
    def has_begun(self) -> bool:
        """Whether the command may have gone out."""
        return self._command_bytes is not None

    def look(self) -> Look:
        """Read the meter once, repeated as often as the plan says: reading is harmless."""
        at_ms = self._line.now_ms()
        error: MeterError | None = None
        for _ in range(1 + self.plan.retries):
            try:
                record = self._line.run(cjt188_dialogue.read(self._spec, self._meter, cjt188_data.CURRENT))
            except MeterError as failure:
                error = failure
                if not isinstance(failure, REPEATABLE):
                    break
            else:
                return Look(
                    at_ms=at_ms,
                    position=cjt188_dialogue.valve_position(self._spec, record.status),
                    volume_ml=record.total_ml,
                    flags=record.flags,
                    status=record.status,
                )
        return Look(at_ms=at_ms, error=error)

    def move(
        self,
        target: Position,
        *,
        limit_s: float,
        progress: Progress = _tell_nobody,
        note: Callable[[bytes], None] = _note_nothing,
    ) -> Report:
        """Look, send the valve to `target` (open or closed) once, and look again until it is there or `limit_s` is up.

        Nothing is sent where the first look fails. `note` is given the command's bytes before they go out. A
        KeyboardInterrupt after the command ends the watch, not the report: what was sent is told.
        """
        assert target in {Position.OPEN, Position.CLOSED}
        wall_ms = self._clock.now().wall_ms
        progress("look", None, 0.0)
        before = self.look()
        command: Command | None = None
        after: list[Look] = []
        is_interrupted = False
        if before.error is None:
            progress("command", before, 0.0)
            at_ms, is_interrupted = self._line.now_ms(), True
            try:
                command = self._command(is_open=target is Position.OPEN, note=note)
                if command.is_sent:
                    self._watch(
                        target, after, limit_s=0.0 if command.reason == "refused" else limit_s, progress=progress
                    )
                is_interrupted = False
            except KeyboardInterrupt:
                command = command or self._unanswered(at_ms, "interrupted", "stopped before an answer came")
        return Report(
            plan=self.plan,
            target=target,
            wall_ms=wall_ms,
            took_ms=self._line.now_ms(),
            frames=self.frames,
            before=before,
            command=command,
            after=tuple(after),
            is_interrupted=is_interrupted,
        )

    def close(self) -> None:
        """Let go of the port."""
        self._line.close()

    def _command(self, *, is_open: bool, note: Callable[[bytes], None]) -> Command:
        """Send the one frame that writes, once. A late answer cannot be taken for another's: SER tells them apart."""
        at_ms = self._line.now_ms()
        try:
            if self._line.is_asleep:
                self._line.wake(next(cjt188_dialogue.read(self._spec, self._meter, cjt188_data.CURRENT)))
            at_ms = self._line.now_ms()
            request = cjt188_dialogue.valve_request(self._spec, self._meter, is_open=is_open)
            note(request.encode())
            self._command_bytes = request.encode()
            status = cjt188_dialogue.valve_answer(self._line.ask(request))
        except MeterError as error:
            return self._unanswered(at_ms, error.reason, str(error))
        self._meter.understood()
        return Command(at_ms=at_ms, is_sent=True, frame=self._command_bytes, status=status)

    def _unanswered(self, at_ms: int, reason: str, text: str) -> Command:
        """Return what is known of a command without a good answer; the wire's own record says whether it went out."""
        seen = any(frame.direction == "tx" and frame.data == self._command_bytes for frame in self.frames)
        # A line that babbles fills the record: what it no longer holds may have been the command.
        is_sent = seen or (self._command_bytes is not None and self._line.bytes_forgotten > 0)
        return Command(at_ms=at_ms, is_sent=is_sent, frame=self._command_bytes, reason=reason, text=text)

    def _watch(self, target: Position, looks: list[Look], *, limit_s: float, progress: Progress) -> None:
        """Look until the valve is where it was sent or the time is up; at least once, and twice where it is there."""
        began_s = self._monotonic()
        while True:
            look = self.look()
            looks.append(look)
            elapsed_s = self._monotonic() - began_s
            progress("watch", look, elapsed_s)
            if _is_settled(looks, target):
                return
            if look.position is target:
                continue  # a second reading has to say so too, and the water waits for neither
            if elapsed_s >= limit_s:
                return
            if look.error is None and look.position is Position.UNKNOWN:
                return  # such readings will never tell
            self._pause(min(LOOK_EVERY_S, limit_s - elapsed_s))
