"""Recording a line into a capture: passively, or while we read meters. Never writes to a meter."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agent.technician.capture import Writer
from agent.technician.fits import Guesser, built_in
from agent.technician.reading import Plan, Report, Station
from agent.technician.sniffing import Heard, Sniffer
from agent.technician.trace import Trace
from gateway.clock import Clock
from gateway.line import LineSettings
from protocols.profile import Profile

# Bytes that follow one another this closely are one line of a capture; FTDI adapters deliver every 16 ms.
BURST_S: Final = 0.02


class PassiveRecorder:
    """Writes what a Sniffer makes of a line. Outcomes are those of its frames, so a replay must come to the same."""

    def __init__(
        self, writer: Writer, line: LineSettings, *, profile: Profile | None = None, named: str | None = None
    ) -> None:
        """`profile` says what the meters are; without it, the first built-in one that makes a volume of the answer.

        `named` is how the capture names it, where that is not its name.
        """
        self.sniffer = Sniffer(byte_ms=line.byte_s * 1000, guesser=Guesser([profile] if profile else built_in()))
        self._writer = writer
        self._named = named
        self._profile_of: dict[str, str] = {}

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
            self._writer.meter(heard.station, self._named or name)
        return outcome_of(heard, self._profile_of.get(heard.station))


def outcome_of(heard: Heard, profile: str | None) -> str | None:
    """Return what an overheard frame came to: a volume by that profile, or a reason; None for what is no outcome."""
    if heard.latency_ms is None:  # nobody's answer
        return None
    if heard.kind == "answer":
        return next((f"{fit.volume_ml} mL" for fit in heard.fits if fit.profile == profile), None)
    return {"refusal": "refused", "damaged": "garbled"}.get(heard.kind)


def record_reads(
    plans: Sequence[Plan],
    writer: Writer,
    *,
    times: int,
    every_s: float,
    clock: Clock,
    named: Mapping[str, str] | None = None,
    tell: Callable[[Report], None] = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Read each meter so many times and write all of it; return how many readings gave a value.

    Several plans share one line. `named` says for an address how the capture names its profile, where that is not the
    profile's name. Raises OSError where the disk is full. An interruption leaves a whole capture.
    """
    trace = Trace(burst_s=BURST_S)
    values = 0
    for plan in plans:
        name = (named or {}).get(plan.address_text, plan.profile.name)
        writer.meter(plan.address_text, name, timeout_ms=plan.timeout_ms, retries=plan.retries, new=1)
    for plan in plans:  # one line, one port: each meter is read to its end, then the next
        station = Station(plan, clock=clock, opener=trace.opener)
        try:
            for number in range(times):
                if number:
                    pause(every_s)
                _write(trace, writer)  # what came unasked since
                writer.event(trace.now_ms(), "read", plan.address_text)
                report = station.read()
                _write(trace, writer)
                writer.event(trace.now_ms(), "==", f"{plan.address_text}: {outcome_of_report(report)}")
                values += report.measurement is not None
                tell(report)
        finally:
            station.close()
    return values


def _write(trace: Trace, writer: Writer) -> None:
    for frame in trace.take():
        writer.event(frame.at_ms, frame.mark, frame.data)


def outcome_of_report(report: Report) -> str:
    """Return what a reading came to, as captures write it."""
    if report.measurement is not None:
        return f"{report.measurement.volume_ml} mL"
    assert report.error is not None
    return f"{report.error.reason}: {report.error}"
