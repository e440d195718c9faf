"""Playing a capture against our decoder as it is now: what each exchange means, and whether it still comes out so.

A capture of our own readings is played in virtual time: the same line guard asks, and what was recorded behind each of
its requests comes as long after it as it did then. A passive capture is fed to the sniffer again.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from agent.technician.capture import Capture, CaptureError, Event, Meter, outcome_code, profile_of
from agent.technician.cutting import cut
from agent.technician.fits import Guesser, built_in
from agent.technician.reading import Plan, Report, Station
from agent.technician.recording import outcome_of, outcome_of_report
from agent.technician.sniffing import Heard, Sniffer
from gateway.line import READ_S, LineSettings
from protocols import cjt188
from protocols.errors import ProfileError
from protocols.profile import Profile
from protocols.reading import ClockTrust, Moment

NEVER: Final = Moment(wall_ms=0, trust=ClockTrust.UNSYNCED, uncertainty_ms=None, boot_id="capture", boottime_ms=0)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One exchange (passive) or reading (active): what was recorded and what comes out now.

    `recorded` is None where the capture says nothing of it; `request_differs` tells that we would ask otherwise today.
    """

    at_ms: int
    station: str
    recorded: str | None
    now: str | None
    is_same: bool | None  # None: nothing to compare with
    request_differs: bool = False
    report: Report | None = None
    heard: Heard | None = None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that came out of a capture."""

    outcomes: tuple[Outcome, ...]
    heard: tuple[Heard, ...]

    @property
    def differing(self) -> int:
        """How many outcomes are not what was recorded."""
        return sum(outcome.is_same is False for outcome in self.outcomes)

    @property
    def compared(self) -> int:
        """How many outcomes had something to be compared with."""
        return sum(outcome.is_same is not None for outcome in self.outcomes)


def replay(capture: Capture, *, profile: Profile | None = None) -> Replay:
    """Play a capture; `profile` reads every meter in place of the ones that the capture names (nothing is compared).

    Raises CaptureError for a meter or profile that is not there, or an address that the profile cannot have.
    """
    sniffer = Sniffer(
        byte_ms=capture.line.byte_s * 1000,
        source="tcp" if capture.line.framing == "tcp" else "line",
        guesser=Guesser(_candidates(capture, profile)),
    )
    heard = tuple(_overhear(capture, sniffer))
    if capture.is_active:
        return Replay(outcomes=tuple(_read_again(capture, profile)), heard=heard)
    return Replay(outcomes=tuple(_compare_passive(capture, heard, profile)), heard=heard)


def _candidates(capture: Capture, profile: Profile | None) -> list[Profile]:
    if profile is not None:
        return [profile]
    named = [profile_of(capture.meters, address, folder=capture.folder) for address in capture.meters]
    extra = [one for one in named if one is not None]
    return [*extra, *(one for one in built_in() if one.name not in {other.name for other in extra})]


def _overhear(capture: Capture, sniffer: Sniffer) -> Iterator[Heard]:
    """Yield what a sniffer makes of all bytes, whoever sent them."""
    now_ms, sent = 0.0, b""
    for event in capture.events:
        if not event.data:
            continue
        is_echo = capture.is_active and event.mark == "<<" and event.data.startswith(sent)
        heard = event.data[len(sent) :] if is_echo else event.data  # our own request is not asked twice
        sent = event.data if event.mark == ">>" else b""
        if heard:
            now_ms = max(now_ms, event.at_ms + len(event.data) * sniffer.byte_ms)
            yield from sniffer.feed(now_ms, heard)
    yield from sniffer.finish()


def _compare_passive(capture: Capture, heard: tuple[Heard, ...], profile: Profile | None) -> Iterator[Outcome]:
    recorded: dict[str, deque[str]] = {}
    for event in capture.events:
        if event.mark == "==":
            recorded.setdefault(event.text.partition(": ")[0], deque()).append(event.text)
    used = {
        address: profile or profile_of(capture.meters, address, folder=capture.folder) for address in capture.meters
    }
    for one in heard:
        known = used.get(one.station, profile)
        now = outcome_of(one, known.name if known else None)
        if now is None:
            continue
        waiting = recorded.get(one.station)
        text = waiting.popleft() if waiting else None
        yield _outcome(one.at_ms, one.station, text, f"{one.station}: {now}", is_compared=profile is None, heard=one)
    for station, rest in recorded.items():  # recorded then, and not heard any more
        for text in rest:
            yield _outcome(0, station, text, None, is_compared=profile is None)


def _outcome(
    at_ms: float, station: str, recorded: str | None, now: str | None, *, is_compared: bool, **extra: Any
) -> Outcome:
    same = None
    if is_compared and recorded is not None:
        same = now is not None and outcome_code(recorded) == outcome_code(now)
    return Outcome(at_ms=round(at_ms), station=station, recorded=recorded, now=now, is_same=same, **extra)


def _read_again(capture: Capture, profile: Profile | None) -> Iterator[Outcome]:
    clock = _VirtualClock()
    stations: dict[str, tuple[Station, _PlayedPort]] = {}
    for number, event in enumerate(capture.events):
        if event.mark != "read":
            continue
        rest = capture.events[number + 1 :]
        end = next((index for index, other in enumerate(rest) if other.mark == "read"), len(rest))
        session = rest[:end]
        if event.text not in stations:
            stations[event.text] = _station(capture, event.text, profile, clock)
        station, port = stations[event.text]
        clock.now_s = max(clock.now_s, event.at_ms / 1000)
        port.load(session)
        report = station.read()
        now = f"{event.text}: {outcome_of_report(report)}"
        recorded = next((other.text for other in session if other.mark == "=="), None)
        yield _outcome(
            event.at_ms,
            event.text,
            recorded,
            now,
            is_compared=profile is None,
            request_differs=port.differs,
            report=report,
        )


def _station(
    capture: Capture, address: str, profile: Profile | None, clock: "_VirtualClock"
) -> tuple[Station, "_PlayedPort"]:
    used = profile or profile_of(capture.meters, address, folder=capture.folder)
    if used is None:
        raise CaptureError(
            f"{capture.where}: reads meter {address!r}, but has no line such as 'meter {address[:20]} cjt188-water'"
            " 缺少该表的 meter 行; or give --profile"
        )
    meter = capture.meters.get(address) or Meter(address=address, profile=used.name)
    try:
        parsed = used.parse_address(address, framing=capture.line.framing)
    except ProfileError as error:
        raise CaptureError(f"{capture.where}: {address!r} is no address for {used.name}: {error}") from error
    port = _PlayedPort(clock, is_tcp=capture.line.framing == "tcp")
    plan = Plan(
        meter=address,
        line=capture.line,
        profile=used,
        address=parsed,
        address_text=address,
        timeout_ms=used.timing.timeout_ms if meter.timeout_ms is None else max(1, meter.timeout_ms),
        retries=used.timing.retries if meter.retries is None else meter.retries,
    )
    station = Station(
        plan,
        clock=clock,
        opener=port.open,
        monotonic=clock.monotonic,
        pause=clock.pause,
        is_in_step=not meter.new,
        chance=lambda: _first_serial(capture, address) / 0x100,
    )
    return station, port


def _first_serial(capture: Capture, address: str) -> int:
    """Return the SER with which a CJ/T 188 meter was asked first; 0 for every other meter."""
    for event in capture.events:
        for _, frame in cjt188.find_frames(event.data) if event.mark == ">>" else ():
            if not frame.is_reply and address.endswith(frame.address):
                return frame.serial or 0
    return 0


class _VirtualClock:
    """Seconds that pass when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds

    def now(self) -> Moment:
        return NEVER

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class _Request(msgspec.Struct, frozen=True):
    at_ms: int
    data: bytes
    answers: list[tuple[int, bytes]]  # milliseconds after it


class _PlayedPort:
    """A port on which the recorded bytes come as long after our requests as they came after the recorded ones."""

    def __init__(self, clock: _VirtualClock, *, is_tcp: bool) -> None:
        self.differs = False
        self._is_tcp = is_tcp
        self._transactions: dict[bytes, bytes] = {}  # of Modbus TCP: the recorded one, and ours in its place
        self._clock = clock
        self._buffer = bytearray()
        self._arrivals: list[tuple[float, bytes]] = []
        self._requests: deque[_Request] = deque()
        self._last_at_ms, self._last_s = 0, clock.now_s  # the last request: when it was recorded, when we sent it

    def load(self, session: tuple[Event, ...]) -> None:
        """Set what one reading gets to hear. Requests of the one before that we did not send are forgotten."""
        self.differs = False
        self._requests.clear()
        for event in session:
            if event.mark == ">>":
                self._requests.append(_Request(event.at_ms, event.data, []))
            elif event.mark == "<<" and self._requests:
                self._requests[-1].answers.append((event.at_ms - self._requests[-1].at_ms, event.data))
            elif event.mark == "<<":  # a late answer to the reading before
                self._arrive(event.at_ms - self._last_at_ms, event.data)

    def open(self, settings: LineSettings) -> "_PlayedPort":  # noqa: ARG002 - what an opener is given
        return self

    def close(self) -> None:
        self._buffer.clear()

    def write(self, data: bytes) -> None:
        if not self._requests:
            self.differs = True  # a request more than was recorded: nothing answers
            return
        request = self._requests.popleft()
        self.differs |= request.data[self._head :] != data[self._head :]
        if self._is_tcp:
            self._transactions[request.data[:2]] = data[:2]
        self._last_at_ms, self._last_s = request.at_ms, self._clock.now_s
        for after_ms, answer in request.answers:
            self._arrive(after_ms, answer)

    @property
    def _head(self) -> int:
        """How many bytes of a request are no request but its number, which is another one in every run."""
        return 2 if self._is_tcp else 0

    @property
    def in_waiting(self) -> int:
        self._deliver()
        return len(self._buffer)

    def read(self, size: int) -> bytes:
        self._deliver()
        if not self._buffer:
            until_s = self._clock.now_s + READ_S
            next_s = self._arrivals[0][0] if self._arrivals else until_s
            self._clock.now_s = max(self._clock.now_s, min(next_s, until_s))
            self._deliver()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _arrive(self, after_ms: int, data: bytes) -> None:
        """Let bytes come so long after the last request."""
        if self._is_tcp:
            frames = cut(data, source="tcp")
            data = b"".join(
                self._transactions.get(data[one.start : one.start + 2], data[one.start : one.start + 2])
                + data[one.start + 2 : one.end]
                for one in frames
            )
        self._arrivals.append((self._last_s + max(0, after_ms) / 1000, data))
        self._arrivals.sort(key=lambda arrival: arrival[0])

    def _deliver(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self._clock.now_s:
            self._buffer += self._arrivals.pop(0)[1]
