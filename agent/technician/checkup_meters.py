"""Each meter on a line: how often it answers, how fast, and what goes wrong when it does not."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from agent.exit_codes import ExitCode
from agent.technician import advice
from agent.technician.finding import Finding
from agent.technician.reading import Plan, Report, Station
from agent.technician.words import REASONS, Words, cubic_metres, word
from gateway.clock import Clock
from gateway.line import READ_S, LineSettings, open_port
from protocols.errors import NoResponse

# A meter that has been silent so often in a row will not begin to speak; asking on would only take time.
SILENCES_MAX: Final = 3
# An answer that takes more of its timeout is one that will be missed now and then.
SLOW_SHARE: Final = 0.7
# One answer to an earlier request was late, which happens. Where each read gets one, in time, somebody holds them back.
EARLIER_ANSWERS_MIN: Final = 2


class Health(msgspec.Struct, kw_only=True):
    """What some reads of one meter came to.

    `late` are answers that came after their timeout; `earlier` are reads that got the answer to an earlier request.
    """

    reads: int = 0
    values: int = 0
    latencies_ms: list[int] = []
    causes: Counter[str] = msgspec.field(default_factory=Counter)
    late: int = 0
    earlier: int = 0
    echoes: int = 0
    falls: int = 0
    volume_ml: int | None = None
    last_failure: Report | None = None
    _failed: bool = False

    @property
    def is_behind(self) -> bool:
        """Whether the meter, or a server or gateway on the way, is one answer behind for ever: in time, and wrong.

        Such a meter gives no value. One that does is late at times, and one whose answers come late is slow.
        """
        return not self.values and not self.late and self.earlier >= EARLIER_ANSWERS_MIN

    def add(self, report: Report) -> None:
        """Count one read (without repeats)."""
        self.reads += 1
        self.late += late_answers(report) + (self._failed and has_early_bytes(report))
        self.earlier += advice.got_earlier_answer(report)
        self._failed = report.measurement is None
        echoes = has_echo(report)
        self.echoes += echoes
        if is_only_echo(report):  # the meter itself said nothing
            report = msgspec.structs.replace(report, error=NoResponse("no answer, only our own request (echo)"))
        if report.measurement is None:
            assert report.error is not None
            self.causes[report.error.reason] += 1
            self.last_failure = report
            return
        self.values += 1
        if self.volume_ml is not None and report.measurement.volume_ml < self.volume_ml:
            self.falls += 1
        self.volume_ml = report.measurement.volume_ml
        if report.answer_ms is not None and not echoes:  # behind an echo nobody sees when the answer began
            self.latencies_ms.append(report.answer_ms)


def examine(
    plans: Sequence[Plan],
    *,
    reads: int,
    clock: Clock,
    opener: Callable[[LineSettings], Any] = open_port,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Finding]:
    """Read each meter of a line so many times; yield what came of it, then whether the adapter hears itself."""
    echoes = 0
    for plan in plans:
        health = measure(plan, reads=reads, clock=clock, opener=opener, monotonic=monotonic)
        echoes += health.echoes
        yield finding(plan, health)
    if echoes:
        says = Words(
            "适配器回显自己发出的请求：水望会跳过它", "the adapter hears itself: shuiwang passes over the echo"
        )
        yield Finding(topic="echo", level="note", says=says, data={"echo": True})


def measure(
    plan: Plan,
    *,
    reads: int,
    clock: Clock,
    opener: Callable[[LineSettings], Any] = open_port,
    monotonic: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Health:
    """Read one meter so many times, each time with a single attempt; fewer where it stays silent."""
    once = msgspec.structs.replace(plan, retries=0)
    health, silences = Health(), 0
    station = Station(once, clock=clock, opener=opener, monotonic=monotonic, pause=pause)
    try:
        while health.reads < reads and silences < SILENCES_MAX:
            report = station.read()
            health.add(report)
            is_silent = report.error is not None and report.error.reason in {"no_response", "port_lost"}
            silences = silences + 1 if is_silent else 0
    finally:
        station.close()
    return health


def finding(plan: Plan, health: Health) -> Finding:
    """Return what a technician should know of a meter."""
    name = f"{plan.meter} ({plan.profile.name} {plan.address_text})" if plan.meter != plan.address_text else plan.meter
    rate = health.values / health.reads if health.reads else 0.0
    times = _latency(health.latencies_ms)
    shows = "" if health.volume_ml is None else f", {cubic_metres(health.volume_ml, step_ml=1000)} m³"
    causes_zh = "、".join(f"{word(REASONS, cause).zh} {count}" for cause, count in health.causes.items())
    causes_en = ", ".join(f"{count} {word(REASONS, cause).en}" for cause, count in health.causes.items())
    if health.is_behind:
        causes_zh += "；始终慢一拍：每次收到的都是更早请求的应答（多为串口服务器或网关）"
        causes_en += (
            "; always one answer behind: each request gets the answer to an earlier one (serial server, gateway?)"
        )
    timing = f", {times[0]}/{times[1]}/{times[2]} ms" if times else ""
    says = Words(
        f"{name}：{health.reads} 次读到 {health.values} 次{timing}{shows}" + (f"；{causes_zh}" if causes_zh else ""),
        f"{name}: {health.values} of {health.reads} reads{timing}{shows}" + (f"; {causes_en}" if causes_en else ""),
    )
    steps = _steps(plan, health, times)
    level = "bad" if not health.values else "warn" if health.causes or health.falls or health.late else "ok"
    if level == "ok" and steps:
        level = "note"
    return Finding(
        topic="meter",
        level=level,  # type: ignore[arg-type] # one of the four
        says=says,
        next=tuple(steps),
        data={
            "meter": plan.meter,
            "address": plan.address_text,
            "profile": plan.profile.name,
            "reads": health.reads,
            "values": health.values,
            "rate": round(rate, 3),
            "latency_ms": None if times is None else dict(zip(("min", "median", "max"), times, strict=True)),
            "causes": dict(health.causes),
            "late": health.late,
            "is_behind": health.is_behind,
            "falls": health.falls,
            "volume_ml": health.volume_ml,
        },
        code=ExitCode.OK if health.values else ExitCode.NO_READING,
    )


def late_answers(report: Report) -> int:
    """Return how many bursts began after the timeout of the request before them: answers that were given up on.

    A burst within one blocking read of the deadline still counts as in time, as it does for the line guard.
    """
    late, asked_ms = 0, None
    for frame in report.frames:
        if frame.direction == "tx":
            asked_ms = frame.at_ms + len(frame.data) * report.plan.line.byte_s * 1000
        elif asked_ms is not None and frame.at_ms - asked_ms > report.plan.timeout_ms + READ_S * 1000:
            late += 1
    return late


def has_early_bytes(report: Report) -> bool:
    """Tell whether bytes came before anything was asked: after a failed read, its answer."""
    return bool(report.frames) and report.frames[0].direction == "rx"


def has_echo(report: Report) -> bool:
    """Tell whether the adapter handed us our own request."""
    pairs = zip(report.frames, report.frames[1:], strict=False)
    return any(
        sent.direction == "tx" and heard.direction == "rx" and heard.data.startswith(sent.data) for sent, heard in pairs
    )


def is_only_echo(report: Report) -> bool:
    """Tell whether all that was heard is what we had sent."""
    sent = b"".join(frame.data for frame in report.frames if frame.direction == "tx")
    heard = b"".join(frame.data for frame in report.frames if frame.direction == "rx")
    return report.measurement is None and bool(heard) and heard == sent


def _latency(latencies_ms: list[int]) -> tuple[int, int, int] | None:
    if not latencies_ms:
        return None
    return min(latencies_ms), round(statistics.median(latencies_ms)), max(latencies_ms)


def _steps(plan: Plan, health: Health, times: tuple[int, int, int] | None) -> list[Words]:
    steps: list[Words] = []
    if health.late:
        steps.append(
            Words(
                f"{health.late} 次应答迟于 timeout_ms = {plan.timeout_ms}：把它调大",
                f"{health.late} answers came after timeout_ms = {plan.timeout_ms}: make it longer",
            )
        )
    elif times and times[2] > SLOW_SHARE * plan.timeout_ms:
        steps.append(
            Words(
                f"最慢 {times[2]} ms，接近 timeout_ms = {plan.timeout_ms}：建议调大",
                f"The slowest took {times[2]} ms, close to timeout_ms = {plan.timeout_ms}: make it longer",
            )
        )
    if health.falls:
        steps.append(
            Words(
                "读数会倒退：两块表同一地址，或型号不对",
                "The total fell between two reads: two meters with one address, or the wrong profile",
            )
        )
    if health.is_behind:
        return [*steps, *advice.behind(plan)]
    if health.last_failure is not None:
        steps += [step for step in advice.after(health.last_failure) if step not in steps]
    return steps
