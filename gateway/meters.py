"""Reading one meter over its line: the queries of its profile, bounded repeats, and no late reply taken for an answer.

A Modbus answer does not say which request it answers. A meter (or a serial server on the way) that answers after the
timeout is therefore one answer behind, for one exchange or for ever: each request gets, in time, the answer to the one
before. What saves us is counting. Answers come in the order of the requests, and one at most to each. So:

    we begin                         our predecessor's last request may still be answered: one is outstanding, until the
                                     first decoy; nothing failed yet, so there is nothing to listen for
    a request fails                  it may still be answered: one more is outstanding
    an exception comes that the      the same: it is busy, or a gateway on the way gave up and the meter has not
    request does not explain
    a query, n outstanding           is asked until n + 1 answers came; only the last of them counts. It cannot be the
                                     answer to any of the n, so it is the answer to this query, asked in this read
    the read is complete             listen once more: whatever comes now proves that the meter may be behind. Silence
                                     proves nothing: a serial server may hold each answer back until the next request
    it was silent                    ask a decoy: another number of registers, so that no earlier request's answer fits.
                                     Its own answer in time, then silence, prove the meter in step; after PROBATION_S
                                     the failures are forgiven. An earlier answer proves it behind: no value
    the decoy is not answered        the value stands, by counting; the failures stay

    asked      Q1 ........ timeout | Q2 .......... | Q3 .......... timeout     n = 1 after Q1, so two answers are needed
    answered                       :      A1 (late):                     A2    A1 is dropped, A2 came too late: no value

Modbus TCP is counted like the rest: the transaction in an answer vouches for the gateway, which may take the meter's
answer from a buffer that is one behind. CJ/T 188 needs none of this: its answers repeat the number of the request, and
it is the meter that does so. M-Bus needs no decoy: a byte acknowledges a reset or a selection, data come as a telegram,
and neither is taken for the other. With n outstanding the reset is asked until n + 1 acknowledgements came. Whoever is
up to n behind answers the data request after them with one more of those; what is a telegram answers this very request,
and the failures are forgiven.

Where the checksum is a sum of eight bits (CJ/T 188, M-Bus, Modbus ASCII), one damage in some 250 passes it, and digits
in place of digits pass every other check. There a total counts when two answers in a row said the same, the last one of
the poll before included, or when it lies between the answers before and after it (`_between`). So a meter that stands
still is asked once, one that moved since the last poll twice, one that moves meanwhile three times.

A meter that sleeps loses the first request after a pause. That one is sent all the same and its answer not used; when
none comes it may still be answered, like any other that failed.
"""

import contextlib
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from gateway import modbus_master
from gateway.line import Line
from protocols import cjt188, cjt188_dialogue, mbus, mbus_dialogue, modbus
from protocols.errors import Garbled, MeterFault, MeterRefused, NoResponse, PortLost, WrongAnswer
from protocols.profile import Dialogue, Profile, Query
from protocols.reading import Measurement

# On a wire a reply is late by milliseconds; behind a serial server it may lie in a network as long as TCP lets a
# segment live: RFC 9293 section 3.4.1 takes two minutes.
OUTSTANDING_S_MAX: Final = 120.0
# A burst of late answers may be followed by silence and by another burst: forgiven at once, 5 of 400,000 reads on a
# simulated line of liars were an answer behind, after 5 s none. Any longer costs values on a noisy line that is polled
# every few seconds (docs/decisions/0001).
PROBATION_S: Final = 5.0
# More failures than this within two minutes, and the meter needs so many good answers and one, not more.
OUTSTANDING_MAX: Final = 16
# A decoy that got no answer is not repeated before its own can no longer come. Some meters are silent to what they do
# not know, so each pause is twice as long as the one before.
DECOY_PAUSE_S: Final = OUTSTANDING_S_MAX
DECOY_PAUSE_S_MAX: Final = 86_400.0
# A line that damages four answers of five so that their checksums are right is no line.
ANSWERS_MAX: Final = 5
# What can flow within three answers, with much to spare: 1 m3 in two seconds is six times what a DN200 meter takes.
MOVES_ML_MAX: Final = 1_000_000
_REPEATABLE: Final = (NoResponse, Garbled, WrongAnswer)
# These exceptions depend on the request alone: they are the meter's answer to it, and a request that was just answered
# normally does not bring them, but the decoy does. After any other ("acknowledge", "busy", "gateway target failed to
# respond") the answer itself may still come; and it may be the held-back answer to an earlier request.
_EXPLAINED_BY_REQUEST: Final = (modbus.ILLEGAL_FUNCTION, modbus.ILLEGAL_DATA_ADDRESS, modbus.ILLEGAL_DATA_VALUE)
_NOBODY_KNOWS_WHEN: Final = float("-inf")


class MeterReader:
    """One meter on a line. Used by the line's owner thread alone."""

    def __init__(
        self,
        *,
        profile: Profile,
        address: Any,
        timeout_ms: int,
        retries: int,
        is_in_step: bool = False,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`is_in_step` says that nothing of anybody before us can still come: for replays, which know.

        `chance` is from 0 up to 1: a new process must not number its requests as the one before did.
        """
        self._profile = profile
        self._address = address
        self._timeout_ms = timeout_ms
        self._retries = retries
        # When requests failed. Who was here before us may have left one, and a serial server be one behind since then.
        self._outstanding: deque[float] = deque(maxlen=OUTSTANDING_MAX)
        if isinstance(address, cjt188_dialogue.Station):
            address.count_from(int(chance() * 0x100))
        elif not is_in_step:
            self._outstanding.append(_NOBODY_KNOWS_WHEN)
        if isinstance(address, mbus_dialogue.Station):
            address.is_doubted = not is_in_step
        self._forgiven_at: float | None = None  # when those before a good read count no more
        self._port_is_lost = False
        self._decoy_at = float("-inf")  # no decoy before
        self._decoy_pause_s = DECOY_PAUSE_S
        self._awake_at = float("-inf")  # when the meter last answered
        self._answered_last = True
        self._last: Measurement | None = None  # what the meter said last, whether it counted or not

    def read(self, line: Line) -> Measurement:
        """Return what the meter shows. Raises the MeterError that the last attempt ended with.

        A meter that did not answer last time gets one attempt, so that it costs the others little.
        """
        attempts = 1 + self._retries if self._answered_last else 1
        self._answered_last = False
        fresh: list[Measurement] = []
        while True:
            try:
                measurement = self._read_once(line)
            except _REPEATABLE:
                attempts -= 1
                if not attempts:
                    raise
                continue
            except (MeterRefused, MeterFault):
                self._answered_last = True
                raise
            self._answered_last = True
            is_confirmed, self._last = measurement == self._last, measurement
            fresh.append(measurement)
            if is_confirmed or not self._has_short_checksum(line):
                return measurement
            if between := _between(fresh[-3:]):
                return between
            if len(fresh) == ANSWERS_MAX:
                raise Garbled(
                    f"{len(fresh)} answers, no two alike: the line damages them in ways that no checksum sees"
                )

    def _read_once(self, line: Line) -> Measurement:
        dialogue: Dialogue = self._profile.protocol.dialogue(self._profile.spec, self._address)
        query = next(dialogue)
        asked: list[modbus.ReadRequest] = []
        self._wake(line, query)
        while True:
            if isinstance(query, modbus.ReadRequest):
                asked.append(query)
            frame = self._exchange(line, query)
            self._awake_at = line.now_s()
            try:
                query = dialogue.send(frame)
            except StopIteration as end:
                measurement: Measurement = end.value
                break
        if self._outstanding:
            self._prove_in_step(line, asked)
        return measurement

    def _wake(self, line: Line, query: Query) -> None:
        """Send a meter that may sleep the request that it will lose."""
        wake_up = self._profile.timing.wake_up
        if wake_up is None or line.now_s() - self._awake_at < wake_up.sleeps_after_ms / 1000:
            return
        try:
            # Waiting is half of the time until the next request; the line's silence after a failure is the other half.
            with self._account(line, query):
                self._ask(line, query, timeout_ms=(wake_up.takes_ms + 1) // 2)
        except _REPEATABLE:
            pass  # as expected

    def _exchange(self, line: Line, query: Query) -> bytes:
        with self._account(line, query):
            if _is_named_in_answer(query):
                return self._ask(line, query, timeout_ms=self._timeout_ms)
            if not isinstance(query, mbus.Request) or not query.wants_data:
                return self._fresh_answer(line, query)
            frame = self._ask(line, query, timeout_ms=self._timeout_ms)
            self._outstanding.clear()  # behind so many acknowledgements only its own answer can stand
            return frame

    def _ask(self, line: Line, query: Query, *, timeout_ms: int) -> bytes:
        line.rest(self._profile.timing.turnaround_ms / 1000)
        if not isinstance(query, modbus.ReadRequest):
            return line.exchange(query, timeout_ms=timeout_ms)
        frame = modbus_master.exchange(line, query, timeout_ms=timeout_ms)
        if _leaves_open(query, frame):
            self._note_failure(line)
        return frame

    @contextlib.contextmanager
    def _account(self, line: Line, query: Query) -> Iterator[None]:
        """Note a request that failed and may still be answered, where its answer would not say to what."""
        try:
            yield
            self._port_is_lost = False
        except (*_REPEATABLE, PortLost) as error:
            # As the port is lost that one request may have left; while it is away no other does.
            was_lost, self._port_is_lost = self._port_is_lost, isinstance(error, PortLost)
            is_new = not (was_lost and self._port_is_lost)
            if is_new and not _is_named_in_answer(query):
                self._note_failure(line)
            raise

    def _note_failure(self, line: Line) -> None:
        self._outstanding.append(line.now_s())
        self._forgiven_at = None
        self._decoy_at = min(self._decoy_at, line.now_s() + DECOY_PAUSE_S)  # there is something new to prove

    def _fresh_answer(self, line: Line, request: Query) -> bytes:
        """Return an answer that cannot belong to an earlier request."""
        if self._forgiven_at is not None and line.now_s() >= self._forgiven_at:
            self._outstanding.clear()
            self._forgiven_at = None
        self._age(line)
        outstanding = len(self._outstanding)
        frame = self._ask(line, request, timeout_ms=self._timeout_ms)
        for _ in range(outstanding):
            if _leaves_open(request, frame):
                break
            try:
                frame = self._ask(line, request, timeout_ms=self._timeout_ms)
            except NoResponse as error:
                raise WrongAnswer(
                    "an answer came, perhaps to an earlier request, and then no other: when this stays so, the meter"
                    " is slower than timeout_ms"
                ) from error
        return frame

    def _age(self, line: Line) -> None:
        """Make one of those that are too old to be on their way: a serial server may hold an answer back for ever."""
        is_old = False
        while self._outstanding and line.now_s() - self._outstanding[0] > OUTSTANDING_S_MAX:
            self._outstanding.popleft()
            is_old = True
        if is_old:
            self._outstanding.appendleft(_NOBODY_KNOWS_WHEN)

    def _has_short_checksum(self, line: Line) -> bool:
        return self._profile.head.protocol != "modbus" or modbus_master.has_short_checksum(line)

    def _prove_in_step(self, line: Line, asked: list[modbus.ReadRequest]) -> None:
        """Have the failures forgiven if the meter is in step. Raises WrongAnswer where it is not."""
        if list(self._outstanding) == [_NOBODY_KNOWS_WHEN]:
            # Nothing failed lately: nothing is late, and what may be held back gets in the decoy's way at once.
            if self._answers_decoy(line, asked):
                self._outstanding.clear()
            return
        self._expect_silence(line, asked[-1])
        if self._forgiven_at is None and self._answers_decoy(line, asked):
            self._forgiven_at = line.now_s() + PROBATION_S

    def _expect_silence(self, line: Line, request: modbus.ReadRequest) -> None:
        if modbus_master.hears_anything(line, request, timeout_ms=self._timeout_ms):
            raise WrongAnswer("an answer, or noise, came that nobody waited for: the meter is slower than timeout_ms")

    def _answers_decoy(self, line: Line, asked: list[modbus.ReadRequest]) -> bool:
        """Tell whether a decoy proves the meter in step; where there is no telling, the value stands by counting."""
        decoy = _decoy(asked)
        if decoy is None or line.now_s() < self._decoy_at:
            return False
        try:
            with self._account(line, decoy):
                frame = self._ask(line, decoy, timeout_ms=self._timeout_ms)
        except NoResponse:
            self._put_off_decoy(line)
            return False
        except WrongAnswer as error:
            raise WrongAnswer(
                "asked for another number of registers, it gave the answer to an earlier request: the meter, or a"
                " serial server on the way, is one answer behind"
            ) from error
        if _leaves_open(decoy, frame):
            self._put_off_decoy(line)
            return False
        self._decoy_pause_s = DECOY_PAUSE_S
        if self._outstanding[-1] != _NOBODY_KNOWS_WHEN:
            self._expect_silence(line, decoy)
        return True

    def _put_off_decoy(self, line: Line) -> None:
        self._decoy_at = line.now_s() + self._decoy_pause_s
        self._decoy_pause_s = min(2 * self._decoy_pause_s, DECOY_PAUSE_S_MAX)


def _is_named_in_answer(query: Query) -> bool:
    """Tell whether the meter says in its answer which request it answers."""
    return isinstance(query, cjt188.Request)


def _leaves_open(query: Query, frame: bytes) -> bool:
    """Tell whether a frame is an exception after which the answer to a Modbus request may still come."""
    return isinstance(query, modbus.ReadRequest) and bool(frame[1] & 0x80) and frame[2] not in _EXPLAINED_BY_REQUEST


def is_turning(totals_ml: Sequence[int]) -> bool:
    """Tell whether three totals said in a row are of a register that turns: the second lies between, all are close."""
    if len(totals_ml) != 3:
        return False
    return sorted(totals_ml)[1] == totals_ml[1] and max(totals_ml) - min(totals_ml) <= MOVES_ML_MAX


def _between(answers: list[Measurement]) -> Measurement | None:
    """Return the second of three answers while the register turns, forwards or backwards; None where not so.

    If one of the three is damaged, the second is still a total that the meter showed meanwhile: it is right itself, or
    it lies between two that are. Of the flags those stand that most of the answers have.
    """
    totals_ml = [answer.volume_ml for answer in answers]
    if not is_turning(totals_ml):
        return None
    counts = Counter(flag for answer in answers for flag in answer.flags)
    flags = tuple(sorted(flag for flag, count in counts.items() if count > 1))
    harmless = {flag for answer in answers for flag in answer.harmless}
    return Measurement(volume_ml=totals_ml[1], flags=flags, harmless=tuple(flag for flag in flags if flag in harmless))


def _decoy(asked: list[modbus.ReadRequest]) -> modbus.ReadRequest | None:
    """Return a request for a part of what was asked whose answer is as long as none of theirs; None where none is.

    An even number is preferred: some meters read whole pairs of registers only.
    """
    lengths = {request.count for request in asked}
    counts = [
        (count % 2, count, request) for request in asked for count in range(1, request.count) if count not in lengths
    ]
    if not counts:
        return None
    _, count, request = min(counts, key=lambda choice: choice[:2])
    return modbus.ReadRequest(unit=request.unit, function=request.function, address=request.address, count=count)
