"""Simulated meters by wire protocol: what they hear, what they answer, and what goes wrong with them.

A new wire protocol is one class here and one line in `RESPONDERS`.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from gateway.village_file import (
    AnyFault,
    Dead,
    FlippedBit,
    Garbage,
    Late,
    MeterPlan,
    Noise,
    Refusal,
    WrongUnit,
)
from gateway.wire import Answer, Responder
from protocols import modbus, registers
from protocols.errors import UsageError

DEVICE_FAILURE: Final = 4  # the Modbus exception of a meter that cannot do what it should


class Counts(msgspec.Struct, kw_only=True):
    """What one meter did. `requests` were addressed to it, `answers` left it, `collided` of these got garbled.

    `forgotten` counts entries that the log of what it showed no longer holds.
    """

    requests: int = 0
    answers: int = 0
    collided: int = 0
    forgotten: int = 0


class SimulatedMeter:
    """One meter at work: its plan, its counts, and the chance by which its faults strike."""

    def __init__(self, plan: MeterPlan, *, chance: random.Random) -> None:
        self.plan = plan
        self.counts = Counts()
        self._chance = chance

    def shown_ml(self, wall_ms: int) -> int:
        """Return what its register shows at an instant: whole steps only."""
        step_ml = self.plan.profile.head.step_ml
        return self.plan.register.volume_ml(wall_ms) // step_ml * step_ml

    def strike(self, wall_ms: int) -> list[AnyFault]:
        """Return the faults that strike its next answer."""
        active = (fault for interval, fault in self.plan.faults if interval.holds(wall_ms))
        return [fault for fault in active if self._chance.random() < fault.rate]

    def answer(self, frame: bytes, *, faults: Sequence[AnyFault], wall_ms: int, volume_ml: int | None) -> Answer | None:
        """Return what goes on the line in place of a good frame, None where the meter keeps silent.

        Here are the faults that need no knowledge of the protocol.
        """
        delay_s, before, after = self.plan.answer_delay_s, b"", b""
        for fault in faults:
            if isinstance(fault, Dead):
                return None
            elif isinstance(fault, Late):
                delay_s += fault.late_ms / 1000
            elif isinstance(fault, Garbage):
                frame, volume_ml = self._chance.randbytes(len(frame)), None
            elif isinstance(fault, FlippedBit):
                frame, volume_ml = self._flip(frame), None
            elif isinstance(fault, Noise):
                before, after = self._chance.randbytes(fault.before), self._chance.randbytes(fault.after)
        return Answer(
            meter=self.plan.id,
            frame=frame,
            delay_s=delay_s,
            wall_ms=wall_ms,
            volume_ml=volume_ml,
            before=before,
            after=after,
        )

    def _flip(self, frame: bytes) -> bytes:
        place, bit = divmod(self._chance.randrange(8 * len(frame)), 8)
        return frame[:place] + bytes((frame[place] ^ 1 << bit,)) + frame[place + 1 :]


class ModbusResponder:
    """Modbus RTU meters: functions 3 and 4 on the registers that their profiles name; to all else they are silent."""

    def __init__(self, meters: Sequence[SimulatedMeter]) -> None:
        self._meters: dict[int, SimulatedMeter] = {meter.plan.address: meter for meter in meters}
        self._reader = modbus.RequestReader()

    def hear(self, data: bytes, *, wall_ms: int) -> list[Answer]:
        """Take bytes from the line; return the answers to the requests that they complete."""
        answers = []
        request = self._reader.feed(data)
        while request is not None:
            meter = self._meters.get(request.unit)
            answer = self._answer(meter, request, wall_ms) if meter else None
            if answer:
                answers.append(answer)
            request = self._reader.feed(b"")
        return answers

    def pause(self) -> None:
        """Note that the line was silent."""
        self._reader.silence()

    def _answer(self, meter: SimulatedMeter, request: modbus.ReadRequest, wall_ms: int) -> Answer | None:
        meter.counts.requests += 1
        faults = meter.strike(wall_ms)
        frame, volume_ml = self._good_frame(meter, request, wall_ms)
        for fault in faults:
            if isinstance(fault, Refusal):
                frame, volume_ml = modbus.encode_exception(request, fault.code), None
            elif isinstance(fault, WrongUnit):
                frame, volume_ml = modbus.add_crc(bytes((int(fault.address),)) + frame[1:-2]), None
        return meter.answer(frame, faults=faults, wall_ms=wall_ms, volume_ml=volume_ml)

    def _good_frame(self, meter: SimulatedMeter, request: modbus.ReadRequest, wall_ms: int) -> tuple[bytes, int | None]:
        """Return a healthy meter's answer, and the volume that it tells if it holds the whole total."""
        spec: registers.ModbusSpec = meter.plan.profile.spec
        asked = range(request.address, request.address + request.count)
        if request.function != spec.function:
            return modbus.encode_exception(request, modbus.ILLEGAL_FUNCTION), None
        try:
            values = registers.simulate(spec, meter.shown_ml(wall_ms))
        except UsageError:  # more than its registers hold
            return modbus.encode_exception(request, DEVICE_FAILURE), None
        if any(address not in values for address in asked):
            return modbus.encode_exception(request, modbus.ILLEGAL_DATA_ADDRESS), None
        tells_total = all(address in asked for term in spec.total for address in term.addresses)
        volume_ml = registers.measure(spec, values).volume_ml if tells_total else None
        return modbus.encode_response(request, [values[address] for address in asked]), volume_ml


RESPONDERS: Final[dict[str, Callable[[Sequence[SimulatedMeter]], Responder]]] = {
    "modbus": ModbusResponder,
}
