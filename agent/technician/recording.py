"""Recording a line into a capture: passively, or while we read meters. Never writes to a meter."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from agent.technician.capture import Writer
from agent.technician.fits import Guesser, built_in
from agent.technician.reading import Plan, Report, Station
from agent.technician.sniffing import Heard, Sniffer
from gateway.clock import Clock
from gateway.line import LineSettings, open_port
from protocols.profile import Profile

# Bytes that follow one another this closely are one line of a capture; FTDI adapters deliver every 16 ms.
BURST_MS: Final = 20.0


class PassiveRecorder:
    """Writes what a Sniffer makes of a line. Outcomes are those of its frames, so a replay must come to the same."""

    def __init__(self, writer: Writer, line: LineSettings, *, profile: Profile | None = None) -> None:
        """`profile` says what the meters are; without it, the first built-in one that makes a volume of the answer."""
        self.sniffer = Sniffer(byte_ms=line.byte_s * 1000, guesser=Guesser([profile] if profile else built_in()))
        self._writer = writer
        self._profile_of: dict[str, str] = {}
        self._waiting = ""  # the station of the request that is not answered yet

    def feed(self, at_ms: float, data: bytes) -> list[Heard]:
        """Take bytes (or none, as time goes by); return what they mean. Raises OSError where the disk is full."""
        heard = self.sniffer.feed(at_ms, data) if data else self.sniffer.tick(at_ms)
        for one in heard:
            self._write(one)
        return heard

    def finish(self) -> list[Heard]:
        """Write what is left."""
        heard = self.sniffer.finish()
        for one in heard:
            self._write(one)
        return heard

    def _write(self, heard: Heard) -> None:
        outcome = self._outcome(heard)
        self._writer.event(heard.at_ms, ">>" if heard.kind == "request" else "<<", heard.lead + heard.data)
        if outcome:
            self._writer.event(heard.until_ms, "==", f"{heard.station}: {outcome}")

    def _outcome(self, heard: Heard) -> str | None:
        if heard.kind == "answer" and heard.fits:
            name = self._profile_of.setdefault(heard.station, heard.fits[0].profile)
            self._writer.meter(heard.station, name)
        return outcome_of(heard, self._profile_of.get(heard.station))


def outcome_of(heard: Heard, profile: str | None) -> str | None:
    """Return what an overheard frame came to: a volume by that profile, or a reason; None for what is no outcome."""
    if heard.latency_ms is None:  # nobody's answer
        return None
    if heard.kind == "answer":
        return next((f"{fit.volume_ml} mL" for fit in heard.fits if fit.profile == profile), None)
    return {"refusal": "refused", "damaged": "garbled"}.get(heard.kind)


class Tape:
    """Remembers what goes over a port, burst by burst. Hand `opener` to whoever opens it."""

    def __init__(
        self,
        *,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bursts: list[tuple[float, Literal[">>", "<<"], bytes]] = []
        self._opener = opener
        self._monotonic = monotonic
        self._began_s = monotonic()
        self._until_ms = 0.0

    def opener(self, settings: LineSettings) -> Any:
        """Open the port and return one that remembers. Raises what the real opener raises."""
        return _TapedPort(self._opener(settings), self)

    def now_ms(self) -> float:
        """Return the milliseconds since the tape was made."""
        return (self._monotonic() - self._began_s) * 1000

    def take(self) -> list[tuple[float, Literal[">>", "<<"], bytes]]:
        """Return what was remembered, and forget it."""
        taken, self.bursts = self.bursts, []
        return taken

    def add(self, mark: Literal[">>", "<<"], data: bytes) -> None:
        """Note bytes that went or came just now."""
        now_ms = self.now_ms()
        if self.bursts and self.bursts[-1][1] == mark == "<<" and now_ms - self._until_ms <= BURST_MS:
            at_ms, _, earlier = self.bursts[-1]
            self.bursts[-1] = at_ms, mark, earlier + data
        elif data:
            self.bursts.append((now_ms, mark, data))
        if data:
            self._until_ms = now_ms


class _TapedPort:
    """A serial port as `Line` sees it; everything but reading and writing is the real one's business."""

    def __init__(self, port: Any, tape: Tape) -> None:
        self._port = port
        self._tape = tape

    def read(self, size: int = 1) -> bytes:
        data: bytes = self._port.read(size)
        self._tape.add("<<", data)
        return data

    def write(self, data: bytes) -> Any:
        self._tape.add(">>", bytes(data))
        return self._port.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


def record_reads(
    plans: Sequence[Plan],
    writer: Writer,
    *,
    times: int,
    every_s: float,
    clock: Clock,
    tell: Callable[[Report], None] = lambda _: None,
    tape: Tape | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Read each meter so many times and write all of it; return how many readings gave a value.

    Several plans share one line. Raises OSError where the disk is full. An interruption leaves a whole capture.
    """
    tape = tape or Tape()
    values = 0
    for plan in plans:
        writer.meter(plan.address_text, plan.profile.name, timeout_ms=plan.timeout_ms, retries=plan.retries)
    for plan in plans:  # one line, one port: each meter is read to its end, then the next
        station = Station(plan, clock=clock, opener=tape.opener)
        try:
            for number in range(times):
                if number:
                    pause(every_s)
                for burst in tape.take():  # what came unasked since
                    writer.event(*burst)
                writer.event(tape.now_ms(), "read", plan.address_text)
                report = station.read()
                for burst in tape.take():
                    writer.event(*burst)
                writer.event(tape.now_ms(), "==", f"{plan.address_text}: {outcome_of_report(report)}")
                values += report.measurement is not None
                tell(report)
        finally:
            station.close()
    return values


def outcome_of_report(report: Report) -> str:
    """Return what a reading came to, as captures write it."""
    if report.measurement is not None:
        return f"{report.measurement.volume_ml} mL"
    assert report.error is not None
    return f"{report.error.reason}: {report.error}"
