"""Reading one meter over its line: the queries of its profile, bounded repeats, and no late reply taken for an answer.

A Modbus answer does not say which request it answers. After a failed exchange the next answer may therefore be the
reply to the failed one, come late. So after a failure a value counts only when a second exchange, at once, answers in
time as well and shows the same register or a little more.
"""

from typing import Any, Final

from gateway import modbus_master
from gateway.line import Line
from protocols import modbus
from protocols.errors import Garbled, MeterError, NoResponse, WrongAnswer
from protocols.profile import Dialogue, Profile, Query
from protocols.reading import Measurement

# What can run through a DN40 meter (overload flow 20 m3/h, GB/T 778.1) in the 20 s that two slow exchanges last.
CONFIRM_ML_MAX: Final = 120_000
_REPEATABLE: Final = (NoResponse, Garbled, WrongAnswer)


class MeterReader:
    """One meter on a line. Used by the line's owner thread alone."""

    def __init__(self, *, profile: Profile, address: Any, timeout_ms: int, retries: int) -> None:
        self._profile = profile
        self._address = address
        self._timeout_ms = timeout_ms
        self._retries = retries
        self._late_reply_possible = False
        self._answered_last = True

    def read(self, line: Line) -> Measurement:
        """Return what the meter shows. Raises the MeterError that the last attempt ended with.

        A meter that did not answer last time gets one attempt, so that it costs the others little.
        """
        attempts = 1 + self._retries if self._answered_last else 1
        self._answered_last = False
        error: MeterError | None = None
        for _ in range(attempts):
            try:
                measurement = self._read_confirmed(line)
            except _REPEATABLE as failure:
                error = failure
                self._late_reply_possible = True
            else:
                self._answered_last = True
                return measurement
        assert error is not None
        raise error

    def _read_confirmed(self, line: Line) -> Measurement:
        first = self._read_once(line)
        if not self._late_reply_possible:
            return first
        try:
            second = self._read_once(line)
        except NoResponse as error:
            raise WrongAnswer(
                "an answer came, but to an earlier request: the meter is slower than timeout_ms"
            ) from error
        if not 0 <= second.volume_ml - first.volume_ml <= CONFIRM_ML_MAX:
            raise WrongAnswer(f"two answers in a row disagree: {first.volume_ml} mL, then {second.volume_ml} mL")
        self._late_reply_possible = False
        return second

    def _read_once(self, line: Line) -> Measurement:
        dialogue: Dialogue = self._profile.protocol.dialogue(self._profile.spec, self._address)
        try:
            query = next(dialogue)
            while True:
                query = dialogue.send(self._exchange(line, query))
        except StopIteration as end:
            measurement: Measurement = end.value
            return measurement

    def _exchange(self, line: Line, query: Query) -> bytes:
        if isinstance(query, modbus.ReadRequest):
            return modbus_master.exchange(line, query, timeout_ms=self._timeout_ms)
        return line.exchange(query, timeout_ms=self._timeout_ms)
