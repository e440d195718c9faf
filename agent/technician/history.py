"""What a CJ/T 188 meter itself remembers: totals of settlement days, frozen ones. Sends requests to read, no others.

    address    only where whatever meter is on the line is meant (AAAAAAAAAAAAAA): which one is it? From there on it is
               asked by its own name, so that no second meter can speak for it
    records    one after the other; each is asked until it was said twice alike, as the service does with the current
               total (`gateway.meters`): eight bits of checksum let one damaged answer in 256 pass, and no dial shows
               what the total was a year ago. A current total that turns meanwhile counts when it lies between the
               answers before and after it

A record that the meter refuses, leaves empty or does not answer is missing with its reason, and the others are asked
all the same. Only a lost port, a meter that does not even answer for its current total, and SILENT_MAX records in a row
without an answer end it: what is left then is not asked.
"""

import copy
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from agent.technician.history_records import older
from agent.technician.meter_line import MeterLine
from agent.technician.reading import REPEATABLE, Plan
from agent.technician.trace import Frame
from gateway.clock import Clock
from gateway.line import LineSettings, open_port
from gateway.meters import ANSWERS_MAX, is_turning
from protocols import cjt188_dialogue
from protocols.cjt188 import BROADCAST
from protocols.cjt188_data import CURRENT, Cjt188Spec, Record
from protocols.cjt188_dialogue import Identity
from protocols.errors import Garbled, MeterError, MeterFault, PortLost

# Some meters are silent to what they do not know. After this many in a row the rest, which is older still, would only
# cost a timeout each: thirteen take half a minute at a timeout of 1 s.
SILENT_MAX: Final = 3
Said = TypeVar("Said")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One record: what the meter said twice alike, or why there is nothing; and the frames that prove it."""

    identifier: int
    at_ms: int = 0
    took_ms: int = 0
    is_asked: bool = True
    record: Record | None = None
    error: MeterError | None = None
    frames: tuple[Frame, ...] = ()

    @property
    def total_ml(self) -> int | None:
        """The total, None where there is none."""
        return self.record.total_ml if self.record else None

    @property
    def reason(self) -> str | None:
        """Why there is no total: the reason of a MeterError, `empty` or `not_asked`; None where there is one."""
        if not self.is_asked:
            return "not_asked"
        if self.error is not None:
            return self.error.reason
        return "empty" if self.total_ml is None else None

    @property
    def is_unanswered(self) -> bool:
        """Whether nothing came that answers it."""
        return isinstance(self.error, REPEATABLE)


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """The exact difference between a total and an older one, that of `since`. Below 0: the register fell.

    `is_next`: none lies between the two, so that it is the use of one settlement period.
    """

    volume_ml: int
    since: int
    is_next: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What asking a meter for its records came to, in the order in which they were wanted.

    `answered_by` is who the meter says that it is, where any was asked. `error` ended it before all were asked.
    """

    plan: Plan
    wall_ms: int
    took_ms: int
    entries: tuple[Entry, ...]
    answered_by: str | None = None
    address_frames: tuple[Frame, ...] = ()
    error: MeterError | None = None
    is_interrupted: bool = False

    @property
    def current(self) -> Entry | None:
        """The entry with the current total, which alone has the meter's status; None where it was not said."""
        return next((entry for entry in self.entries if entry.identifier == CURRENT and entry.record), None)

    @property
    def remembers(self) -> bool:
        """Whether there is a total of those that were wanted; the current one counts only where no other was."""
        wanted = [entry for entry in self.entries if entry.identifier != CURRENT] or list(self.entries)
        return any(entry.total_ml is not None for entry in wanted)

    @property
    def has_spoken(self) -> bool:
        """Whether the meter answered for any of them, if only to refuse it."""
        return any(entry.record is not None or entry.reason == "refused" for entry in self.entries)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Everything that went over the wire, both ways."""
        return sum((entry.frames for entry in self.entries), self.address_frames)

    def use_of(self, entry: Entry) -> Use | None:
        """Return what was used up to a settlement day (or now) since the nearest older one that is known."""
        totals = {other.identifier: other.total_ml for other in self.entries}
        for place, identifier in enumerate(older(entry.identifier)):
            before_ml = totals.get(identifier)
            if entry.total_ml is not None and before_ml is not None:
                return Use(volume_ml=entry.total_ml - before_ml, since=identifier, is_next=place == 0)
        return None


Progress = Callable[[int | None, int], None]


def _tell_nobody(_identifier: int | None, _done: int) -> None:
    """Report progress to nobody."""


class HistoryStation:
    """A meter with a memory on an open line. All methods run on one thread; none raises MeterError."""

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
        """The plan's meter speaks CJ/T 188 (`history_words.obstacle` has said so)."""
        self.plan = plan
        self._spec: Cjt188Spec = plan.profile.spec
        self._meter: cjt188_dialogue.Station = plan.address
        self._clock = clock
        self._line = MeterLine(plan, opener=opener, monotonic=monotonic, pause=pause, chance=chance)

    def read(self, identifiers: Sequence[int], *, progress: Progress = _tell_nobody) -> Report:
        """Ask for records. `progress` is told which one comes (None: the address), and how many are done.

        A KeyboardInterrupt ends the asking, not the report.
        """
        wall_ms = self._clock.now().wall_ms
        entries: list[Entry] = []
        answered_by: str | None = None
        address_frames: tuple[Frame, ...] = ()
        error: MeterError | None = None
        is_interrupted = False
        try:
            if self._meter.address == BROADCAST:
                progress(None, 0)
                answered_by = self._identify()
                address_frames = self._line.take_frames()
            for identifier in identifiers:
                progress(identifier, len(entries))
                is_silent = bool(entries) and entries[-1].is_unanswered
                entries.append(self._entry(identifier, attempts=1 if is_silent else 1 + self.plan.retries))
                error = _end_of(entries)
                if error is not None:
                    break
        except MeterError as failure:  # the address; a record's failure is in its entry
            error, address_frames = failure, self._line.take_frames()
        except KeyboardInterrupt:
            is_interrupted = True
        # Where somebody stopped it, the first one has the frames so far.
        left = identifiers[len(entries) :]
        entries += [Entry(identifier=one, is_asked=False, frames=self._line.take_frames()) for one in left]
        return Report(
            plan=self.plan,
            wall_ms=wall_ms,
            took_ms=self._line.now_ms(),
            entries=tuple(entries),
            answered_by=answered_by,
            address_frames=address_frames,
            error=error,
            is_interrupted=is_interrupted,
        )

    def close(self) -> None:
        """Let go of the port."""
        self._line.close()

    def _identify(self) -> str:
        """Ask the one meter on the line for its address, and ask it by that from now on. Raises MeterError."""
        identity: Identity = self._believed(
            lambda: self._line.run(cjt188_dialogue.read_address(self._spec, self._meter)),
            _alike,
            attempts=1 + self.plan.retries,
        )
        self._meter = copy.copy(self._meter)  # the plan's own stays what it is; this one counts on from there
        self._meter.address = identity.address
        return identity.address

    def _entry(self, identifier: int, *, attempts: int) -> Entry:
        at_ms = self._line.now_ms()
        record: Record | None = None
        error: MeterError | None = None
        try:
            record = self._believed(
                lambda: self._line.run(cjt188_dialogue.read(self._spec, self._meter, identifier)),
                _alike_but_for_time if identifier == CURRENT else _alike,
                attempts=attempts,
            )
        except MeterError as failure:
            error = failure
        return Entry(
            identifier=identifier,
            at_ms=at_ms,
            took_ms=self._line.now_ms() - at_ms,
            record=record,
            error=error,
            frames=self._line.take_frames(),
        )

    def _believed(
        self, ask: Callable[[], Said], agreed: Callable[[Sequence[Said]], Said | None], *, attempts: int
    ) -> Said:
        """Ask until the answers agree. Raises the MeterError of the last of `attempts` failures.

        What is no digit may have been damaged on the way, as what is no frame: both are asked again.
        """
        said: list[Said] = []
        while len(said) < ANSWERS_MAX:
            try:
                said.append(ask())
            except (*REPEATABLE, MeterFault):
                attempts -= 1
                if attempts <= 0:
                    raise
                continue
            told = agreed(said)
            if told is not None:
                return told
        raise Garbled(f"{ANSWERS_MAX} answers, no two alike: the line damages them in ways that no checksum sees")


def _end_of(entries: Sequence[Entry]) -> MeterError | None:
    """Return what ends the asking; None where it goes on."""
    last = entries[-1]
    is_deaf = last.is_unanswered and last.identifier == CURRENT
    is_silent = len(entries) >= SILENT_MAX and all(entry.is_unanswered for entry in entries[-SILENT_MAX:])
    return last.error if is_deaf or is_silent or isinstance(last.error, PortLost) else None


def _alike(said: Sequence[Any]) -> Any:
    """Return the last answer if the one before said the same, else None."""
    return said[-1] if len(said) > 1 and said[-1] == said[-2] else None


def _alike_but_for_time(said: Sequence[Record]) -> Record | None:
    """Return the last current reading if the one before said the same, or the middle one of three while it turns.

    The clock goes on meanwhile; it proves nothing. That of the answer which counts is shown, said once. The same holds
    for what stands in place of a settled total that nobody can read.
    """
    still = [msgspec.structs.replace(record, clock=None, clock_state=None, settled_fault=None) for record in said]
    if _alike(still) is not None:
        return said[-1]
    totals_ml = [record.total_ml for record in said[-3:] if record.total_ml is not None]
    others = {(record.settled_ml, record.status) for record in said[-3:]}
    return said[-2] if len(others) == 1 and is_turning(totals_ml) else None
