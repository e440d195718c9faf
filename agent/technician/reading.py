"""Reading one meter now, with everything that proves the value: attempts, frames, times. Never writes to a meter."""

import random
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from agent.settings import Config, MeterSettings
from agent.technician.lines import line_text
from agent.technician.trace import Frame, Trace
from gateway.clock import Clock
from gateway.line import Line, LineSettings, open_port
from gateway.meters import MeterReader
from protocols import cjt188, cjt188_dialogue
from protocols.errors import Garbled, MeterError, NoResponse, ShuiwangError, WrongAnswer
from protocols.profile import Profile
from protocols.reading import Measurement

REPEATABLE: Final = (NoResponse, Garbled, WrongAnswer)
ML_PER_L: Final = 1000
S_PER_H: Final = 3600


class NoSuchMeter(ShuiwangError):
    """The command line names a meter that the configuration does not have."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which meter is read, over which line, and how patiently."""

    meter: str
    line: LineSettings
    profile: Profile
    address: Any
    address_text: str
    timeout_ms: int
    retries: int

    @property
    def line_text(self) -> str:
        """The line's settings as technicians write them: `2400 8E1`."""
        return line_text(self.line)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try: when it began and what became of it; `reason` is None where it gave the value."""

    at_ms: int
    took_ms: int
    reason: str | None = None
    text: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one reading came to. Exactly one of `measurement` and `error` is there."""

    plan: Plan
    wall_ms: int
    took_ms: int
    attempts: tuple[Attempt, ...]
    frames: tuple[Frame, ...]
    measurement: Measurement | None = None
    error: MeterError | None = None

    @property
    def quality(self) -> str:
        """`ok`, `suspect` or `missing`, as the service would store it."""
        if self.measurement is None:
            return "missing"
        return "suspect" if self.measurement.is_doubtful else "ok"

    @property
    def answered_by(self) -> str | None:
        """The number of the CJ/T 188 meter that answered, where whatever meter is on the line was asked.

        Where several spoke, all of them: the value may be anybody's.
        """
        asked = self.plan.address
        if not isinstance(asked, cjt188_dialogue.Station) or asked.address != cjt188.BROADCAST:
            return None
        heard = b"".join(frame.data for frame in self.frames if frame.direction == "rx")
        named = {frame.address for _, frame in cjt188.find_frames(heard) if frame.is_reply}
        return ", ".join(sorted(named)) or None

    @property
    def answer_ms(self) -> int | None:
        """From the last bit of the last request to the first byte of what was heard then; None where nothing was."""
        for index in range(len(self.frames) - 1, 0, -1):
            asked, answered = self.frames[index - 1], self.frames[index]
            if asked.direction == "tx" and answered.direction == "rx":
                is_tcp = self.plan.line.framing == "tcp"  # there the bytes are sent at once
                sent_ms = 0 if is_tcp else len(asked.data) * self.plan.line.byte_s * 1000
                return max(0, round(answered.at_ms - asked.at_ms - sent_ms))
        return None


class Station:
    """A meter on an open line; keep it between readings, it remembers which late answers may still come."""

    def __init__(
        self,
        plan: Plan,
        *,
        clock: Clock,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        is_in_step: bool = False,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`is_in_step` and `chance` are those of MeterReader: a replay has them from the capture."""
        self.plan = plan
        self._clock = clock
        self._trace = Trace(opener=opener, monotonic=monotonic)
        self._line = Line(plan.line, opener=self._trace.opener, monotonic=monotonic, pause=pause)
        # Repeats are ours, so that each attempt can be told.
        self._reader = MeterReader(
            profile=plan.profile,
            address=plan.address,
            timeout_ms=plan.timeout_ms,
            retries=0,
            is_in_step=is_in_step,
            chance=chance,
        )

    def read(self) -> Report:
        """Read the meter once, repeating as often as the plan says. Never raises MeterError: it is in the report."""
        self._trace.restart()
        wall_ms = self._clock.now().wall_ms
        attempts: list[Attempt] = []
        measurement: Measurement | None = None
        error: MeterError | None = None
        for _ in range(1 + self.plan.retries):
            at_ms = self._trace.now_ms()
            try:
                measurement, error = self._reader.read(self._line), None
            except MeterError as failure:
                error = failure
            attempts.append(
                Attempt(
                    at_ms=at_ms,
                    took_ms=self._trace.now_ms() - at_ms,
                    reason=error.reason if error else None,
                    text=str(error) if error else None,
                )
            )
            if not isinstance(error, REPEATABLE):
                break
        return Report(
            plan=self.plan,
            wall_ms=wall_ms,
            took_ms=self._trace.now_ms(),
            attempts=tuple(attempts),
            frames=tuple(self._trace.frames),
            measurement=measurement,
            error=error,
        )

    def close(self) -> None:
        """Let go of the port."""
        self._line.close()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two readings; `flow_error_l_h` is what one step of the meter makes over that time."""

    volume_ml: int
    elapsed_s: float
    flow_l_h: float
    flow_error_l_h: float


def change(earlier: tuple[float, int], later: tuple[float, int], *, step_ml: int) -> Change | None:
    """Return the change between two (seconds, millilitres), None where no time went by."""
    elapsed_s = later[0] - earlier[0]
    if elapsed_s <= 0:
        return None
    difference_ml = later[1] - earlier[1]
    per_h = S_PER_H / elapsed_s / ML_PER_L
    return Change(
        volume_ml=difference_ml,
        elapsed_s=elapsed_s,
        flow_l_h=difference_ml * per_h,
        flow_error_l_h=step_ml * per_h,
    )


def plan_from_config(config: Config, wanted: str | None) -> Plan:
    """Return the plan for a configured meter, by its id or else by its address; without either the only one.

    Raises NoSuchMeter which lists what there is.
    """
    meter = _find(config.meters, wanted)
    line = next(bus for bus in config.buses if bus.name == meter.bus)
    return Plan(
        meter=meter.id,
        line=line,
        profile=meter.profile,
        address=meter.address,
        address_text=meter.address_text,
        timeout_ms=meter.timeout_ms,
        retries=meter.retries,
    )


def _find(meters: tuple[MeterSettings, ...], wanted: str | None) -> MeterSettings:
    if wanted is None:
        found = list(meters)
    else:
        found = [meter for meter in meters if meter.id == wanted]
        found = found or [meter for meter in meters if meter.address_text == wanted]
    if len(found) == 1:
        return found[0]
    known = ", ".join(meter.id for meter in meters[:20]) + (", …" if len(meters) > 20 else "")
    if wanted is None:
        raise NoSuchMeter(f"say which meter 请指明表号: {known}")
    if found:
        raise NoSuchMeter(f"address {wanted!r} is on several buses; give the id 地址重复，请用表号: {known}")
    raise NoSuchMeter(f"the configuration has no meter {wanted!r} 配置中没有此表; it has {known}")
