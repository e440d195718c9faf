"""Simulated meters by wire protocol: what they hear, what they answer, and what goes wrong with them.

A new wire protocol is one class here and one line in `RESPONDERS`.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from gateway.village_faults import AnyFault, Dead, FlippedBit, Garbage, Late, Noise, Refusal, WrongUnit
from gateway.village_file import MeterPlan, ValveKind
from gateway.wire import Answer, Responder
from protocols import cjt188, cjt188_data, cjt188_dialogue, mbus, mbus_data, mbus_dialogue, modbus, registers
from protocols.errors import UsageError

DEVICE_FAILURE: Final = 4  # the Modbus exception of a meter that cannot do what it should
_SIMULATED_MAKER: Final = 0x4D17  # "SHW"


class Counts(msgspec.Struct, kw_only=True):
    """What one meter did. `requests` were addressed to it, `answers` left it, `collided` of these got garbled.

    `forgotten` counts entries that the log of what it showed no longer holds.
    """

    requests: int = 0
    answers: int = 0
    collided: int = 0
    forgotten: int = 0


class SimulatedValve:
    """A valve that takes its time: until it has arrived, its meter reports where it was. It begins open.

    The water of the home does not follow it: what a register shows is the village file's business.
    """

    def __init__(self, plan: MeterPlan) -> None:
        self._plan = plan
        self._is_open = True
        self._moved: tuple[int, bool] | None = None  # when it arrives, and where

    def send(self, *, to_open: bool, wall_ms: int) -> None:
        """Take a command."""
        if self._plan.valve is not ValveKind.STUCK:
            self._is_open = self.is_open(wall_ms)
            self._moved = wall_ms + self._plan.valve_moves_ms, to_open

    def is_open(self, wall_ms: int) -> bool:
        """Return where it is at an instant."""
        if self._moved is not None and wall_ms >= self._moved[0]:
            return self._moved[1]
        return self._is_open


class SimulatedMeter:
    """One meter at work: its plan, its counts, and the chance by which its faults strike."""

    def __init__(self, plan: MeterPlan, *, chance: random.Random) -> None:
        self.plan = plan
        self.counts = Counts()
        self.valve = SimulatedValve(plan)
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


class Cjt188Responder:
    """CJ/T 188 meters: they tell their current total, their address and the totals of settlement days that the village
    file lists, and refuse everything else, writes included.

    Where the profile names valve commands the meter has a valve that takes them, in its own name alone.
    To the address AAAAAAAAAAAAAA all of them answer, and therefore collide where the line has more than one.
    """

    def __init__(self, meters: Sequence[SimulatedMeter]) -> None:
        self._meters = list(meters)
        self._reader = cjt188.RequestReader()

    def hear(self, data: bytes, *, wall_ms: int) -> list[Answer]:
        """Take bytes from the line; return the answers to the requests that they complete."""
        answers = []
        request = self._reader.feed(data)
        while request is not None:
            for meter in self._meters:
                answer = self._answer(meter, request, wall_ms)
                if answer:
                    answers.append(answer)
            request = self._reader.feed(b"")
        return answers

    def pause(self) -> None:
        """Note that the line was silent."""
        self._reader.silence()

    def _answer(self, meter: SimulatedMeter, request: cjt188.Frame, wall_ms: int) -> Answer | None:
        good = self._good_answer(meter, request, wall_ms)
        if good is None:  # another meter is meant
            return None
        meter.counts.requests += 1
        lead, frame, volume_ml = good
        faults = meter.strike(wall_ms)
        to_open = cjt188_dialogue.valve_asked(meter.plan.profile.spec, request)
        if (
            to_open is not None
            and not frame.is_abnormal
            and not any(isinstance(fault, Dead | Refusal) for fault in faults)
        ):
            meter.valve.send(to_open=to_open, wall_ms=wall_ms)
            if meter.plan.valve is ValveKind.MUTE:
                return None
        for fault in faults:
            if isinstance(fault, Refusal):
                status = bytes((fault.code, 0))
                address, meter_type = frame.address, frame.meter_type
                frame, volume_ml = cjt188.refusal(request, status, address=address, meter_type=meter_type), None
            elif isinstance(fault, WrongUnit):
                other = cjt188_dialogue.parse_address(fault.address).address
                frame, volume_ml = msgspec.structs.replace(frame, address=other), None
        return meter.answer(lead + frame.encode(), faults=faults, wall_ms=wall_ms, volume_ml=volume_ml)

    def _good_answer(
        self, meter: SimulatedMeter, request: cjt188.Frame, wall_ms: int
    ) -> tuple[bytes, cjt188.Frame, int | None] | None:
        """Return a healthy meter's preamble and frame, and the volume that the frame tells; None where it is silent."""
        spec: cjt188_data.Cjt188Spec = meter.plan.profile.spec
        address, settled_ml = meter.plan.address.address, meter.plan.settled_ml
        shown_ml = meter.shown_ml(wall_ms)
        totals_ml = {cjt188_data.CURRENT: shown_ml} | {month: total or 0 for month, total in settled_ml.items()}
        status = cjt188_data.status_of(spec, () if meter.valve.is_open(wall_ms) else ("valve_closed",))
        last_ml = totals_ml.get(cjt188_data.SETTLED_MONTHS[0], 0)
        try:
            current = cjt188_data.encode(spec, spec.fields, total_ml=shown_ml, settled_ml=last_ml, status=status)
            sent = cjt188_dialogue.respond(spec, request, address=address, totals_ml=totals_ml, status=status)
        except UsageError:  # more than its digits hold
            sent = cjt188_dialogue.respond(spec, request, address=address, totals_ml={}, status=status)
        if sent is None:
            return None
        start, frame = next(cjt188.find_frames(sent))
        if frame.is_abnormal or request.control != cjt188.READ_DATA:
            return sent[:start], frame, None
        wire = request.data[:2]
        (identifier,) = {int.from_bytes(wire, "big"), int.from_bytes(wire, "little")} & totals_ml.keys()
        if identifier == cjt188_data.CURRENT:
            frame = msgspec.structs.replace(frame, data=frame.data[:3] + current)
            return sent[:start], frame, cjt188_data.decode(spec, spec.fields, current).total_ml
        if settled_ml[identifier] is None:
            frame = msgspec.structs.replace(frame, data=frame.data[:3] + b"\xff" * len(frame.content))
        return sent[:start], frame, None


class MbusResponder:
    """M-Bus meters: by primary address, by identity, and all of them at address 254.

    A meter's number is its configured identity, or its primary address with zeros in front.
    """

    def __init__(self, meters: Sequence[SimulatedMeter]) -> None:
        self._reader = mbus.RequestReader()
        self._meters = [(meter, self._slave(meter)) for meter in meters]
        self._wall_ms = 0

    def hear(self, data: bytes, *, wall_ms: int) -> list[Answer]:
        """Take bytes from the line; return the answers to the requests that they complete."""
        self._wall_ms = wall_ms
        answers = []
        request = self._reader.feed(data)
        while request is not None:
            for meter, slave in self._meters:
                frame = slave.answer(request)  # also those who are not meant must hear a selection
                answer = self._answer(meter, frame) if frame else None
                if answer:
                    answers.append(answer)
            request = self._reader.feed(b"")
        return answers

    def pause(self) -> None:
        """Note that the line was silent."""
        self._reader.silence()

    def _slave(self, meter: SimulatedMeter) -> mbus_dialogue.Slave:
        station: mbus_dialogue.Station = meter.plan.address
        spec = _finest_first(meter.plan.profile.spec, meter.plan.profile.head.step_ml)
        wild = station.identity or mbus.Identity()
        identity = mbus.Identity(
            number=f"{station.primary:08d}" if station.primary is not None else wild.number,
            manufacturer=_SIMULATED_MAKER if wild.manufacturer == mbus.WILD_MANUFACTURER else wild.manufacturer,
            version=1 if wild.version == mbus.WILD_BYTE else wild.version,
            medium=_medium_of(spec) if wild.medium == mbus.WILD_BYTE else wild.medium,
        )

        accesses = itertools.count(1)

        def telegrams() -> list[bytes]:
            volume_ml = meter.shown_ml(self._wall_ms)
            try:
                return [mbus_dialogue.total_telegram(spec, identity, volume_ml, access=next(accesses))]
            except UsageError:  # more than its digits hold
                return [bytes((mbus_data.ERROR_REPORT, 0))]

        return mbus_dialogue.Slave(identity=identity, telegrams=telegrams, primary=station.primary or 0)

    def _answer(self, meter: SimulatedMeter, sent: bytes) -> Answer | None:
        meter.counts.requests += 1
        faults = meter.strike(self._wall_ms)
        frame = mbus.parse_frame(sent)
        volume_ml = None
        if frame is not None and frame.ci in (*mbus_data.LONG_HEADER, mbus_data.SHORT_HEADER):
            telegram = mbus_data.decode(meter.plan.profile.spec, frame)
            volume_ml = mbus_data.measurement_of(meter.plan.profile.spec, [telegram]).volume_ml
        for fault in faults if frame is not None else ():
            assert frame is not None
            if isinstance(fault, Refusal):
                report = msgspec.structs.replace(frame, ci=mbus_data.ERROR_REPORT, data=bytes((fault.code,)))
                sent, volume_ml = report.encode(), None
            elif isinstance(fault, WrongUnit):
                other = mbus_dialogue.parse_address(fault.address)
                sent, volume_ml = msgspec.structs.replace(frame, address=other.primary or 0).encode(), None
        return meter.answer(sent, faults=faults, wall_ms=self._wall_ms, volume_ml=volume_ml)


def _medium_of(spec: mbus_data.MbusSpec) -> int:
    """Return what a simulated meter measures: the first that the profile names, else water."""
    return next((medium for medium in spec.media if isinstance(medium, int)), 0x07)


def _finest_first(spec: mbus_data.MbusSpec, step_ml: int) -> mbus_data.MbusSpec:
    """Return a spec whose first VIF counts in the meter's step: eight digits of millilitres end at 100 m3."""
    vif = f"{0x10 + len(str(step_ml)) - 1:02X}"
    if vif not in spec.vif:
        return spec
    rest = tuple(other for other in spec.vif if other != vif)
    return msgspec.structs.replace(spec, vif=(vif, *rest))


RESPONDERS: Final[dict[str, Callable[[Sequence[SimulatedMeter]], Responder]]] = {
    "modbus": ModbusResponder,
    "cjt188": Cjt188Responder,
    "mbus": MbusResponder,
}
