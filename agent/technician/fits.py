"""Which of our profiles make a volume of what a meter says. Several may, and the bytes seldom say which is right.

What the answer itself vouches for comes first: unit codes and dates of CJ/T 188 are where one layout has them and
another has digits. A layout for which nothing speaks is no fit at all. Only then, and only for the order in which fits
are shown, it counts that registers which a meter does not have mostly read 0. Whether anything is chosen without a
person looking at the dial is another question: `is_decided`.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from agent.technician import explain_cjt188
from protocols import cjt188, modbus, registers
from protocols import profile as profiles
from protocols.errors import MeterError, ShuiwangError
from protocols.profile import Profile
from protocols.reading import Measurement

# Five digits of cubic metres: beyond them a house meter begins at 0 again. A register map that is not this meter's
# mostly gives far more.
PLAUSIBLE_ML_MAX: Final = 99_999_999_999
COLD_WATER: Final = 0x10  # T of CJ/T 188 by which nearly every water meter lets itself be asked


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """One profile, and what the meter shows if it is the right one. `certainty`: how much in the answer speaks for it.

    `way` is how the profile reads such an answer: fits with the same way will always show the same.
    """

    profile: str
    volume_ml: int
    flags: tuple[str, ...] = ()
    certainty: int = 0
    way: str = ""

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """Sorts the likelier first: what speaks for itself, then what is not the 0 of registers that are not there."""
        return self.volume_ml > PLAUSIBLE_ML_MAX, -self.certainty, self.volume_ml == 0


def fit_of(profile: Profile, measurement: Measurement, answers: bytes) -> Fit | None:
    """Return what a reading comes to; None where nothing in the answers (as heard) speaks for the profile's layout."""
    certainty, way = 0, f"{profile.spec}"
    if profile.head.protocol == "cjt188":
        reading = _reading_in(answers)
        if reading is None or not may_heed(profile, reading.meter_type):
            return None
        certainty = explain_cjt188.certainty(profile.spec, reading.content)
        if not certainty:
            return None
        way = explain_cjt188.way(profile.spec, reading.content)
    elif profile.head.protocol == "mbus":
        way = ""  # the telegram says what it means
    return Fit(
        profile=profile.name,
        volume_ml=measurement.volume_ml,
        flags=measurement.flags,
        certainty=certainty,
        way=way,
    )


def may_heed(profile: Profile, meter_type: int | None) -> bool:
    """Tell whether a CJ/T 188 meter that answers with this type may need a profile that asks for its own.

    Whoever answers with 10 is asked for 10. None: the type is not known, or there is none.
    """
    asked = getattr(profile.spec, "meter_type", None)
    return meter_type in (None, cjt188.ANY_TYPE) or asked in (None, COLD_WATER, cjt188.ANY_TYPE, meter_type)


def ranked(fits: Iterable[Fit]) -> tuple[Fit, ...]:
    """Return the fits that can be a water meter's reading, the likelier first."""
    return tuple(sorted((fit for fit in fits if fit.volume_ml <= PLAUSIBLE_ML_MAX), key=lambda fit: fit.rank))


def is_decided(fits: Sequence[Fit]) -> bool:
    """Tell whether it makes no difference which of the fits is taken.

    Profiles that agree on a volume read the same thing; that two agree on 0 says nothing, unless they read it in the
    same way.
    """
    if any(fit.volume_ml for fit in fits):
        return len({fit.volume_ml for fit in fits}) == 1
    return len({fit.way for fit in fits}) == 1


def built_in() -> list[Profile]:
    """Return the profiles that come with shuiwang."""
    return [profiles.load(name) for name in profiles.built_in_names()]


class _Reading(msgspec.Struct, kw_only=True):
    """What one reading of a Modbus unit has brought so far. Each answer is by itself, because it is a moment."""

    begun_ms: float
    asked: list[range] = []
    repeatable: bytes = b""  # the last request while it is unanswered: to send it again begins no new reading
    answered_by: int | None = None
    answers: list[dict[int, int]] = []


class Guesser:
    """Says what overheard answers mean. It keeps the registers of one reading: a volume may need two answers.

    The rule is that of `protocols.registers`, which reads each block once and what belongs together in one request,
    because two requests are two moments. So whoever asks a unit for a register again has begun another reading, of
    which nothing is known yet; and one number, and all terms of a total, must come in one answer.
    """

    # A master reads a meter in seconds, also over several requests with repeats. What comes later is another reading.
    READING_MS_MAX: Final = 60_000.0

    def __init__(self, candidates: Sequence[Profile]) -> None:
        self._candidates = candidates
        self._readings: dict[tuple[int, int], _Reading] = {}  # of a unit and a function

    def asked(self, protocol: str, request: bytes, *, at_ms: float) -> None:
        """Note a request (a whole, sound frame), also one that nobody answers."""
        if protocol != "modbus" or request[1] not in modbus.READ_FUNCTIONS:
            return
        wanted = _wanted(request)
        reading = self._readings.get((request[0], request[1]))
        is_repeat = reading is not None and reading.repeatable == request
        is_again = reading is not None and any(wanted.start < o.stop and o.start < wanted.stop for o in reading.asked)
        is_on_time = reading is not None and 0 <= at_ms - reading.begun_ms <= self.READING_MS_MAX
        if reading is None or not is_on_time or (is_again and not is_repeat):
            reading = self._readings[request[0], request[1]] = _Reading(begun_ms=at_ms)
        if not is_repeat:
            reading.asked.append(wanted)
        reading.repeatable = request

    def fits(self, protocol: str, request: bytes, answer: bytes) -> tuple[Fit, ...]:
        """Return the profiles that read this answer as a volume, the likelier first.

        Both are whole, sound frames, the answer belongs to the request, and the request was noted with `asked`.
        """
        candidates = [profile for profile in self._candidates if profile.head.protocol == protocol]
        if protocol == "modbus":
            return ranked(self._modbus(candidates, request, answer))
        return ranked(_by_exchange(candidates, request, answer))

    def _modbus(self, candidates: Sequence[Profile], request: bytes, answer: bytes) -> Iterable[Fit]:
        reading = self._readings.get((request[0], request[1]))
        if reading is None:
            return
        if reading.answered_by != answer[0]:  # a request to unit 0 is to whoever is there
            reading.answered_by, reading.answers = answer[0], []
        told = dict(zip(_wanted(request), modbus.decode_response(answer), strict=True))
        reading.answers.append(told)
        reading.repeatable = b""
        known = {register: value for one in reading.answers for register, value in one.items()}
        for profile in candidates:
            spec: registers.ModbusSpec = profile.spec
            needed = {address for block in spec.read for address in block.addresses}
            if spec.function != request[1] or not needed & told.keys() or not needed <= known.keys():
                continue
            if not all(any(group <= one.keys() for one in reading.answers) for group in _together(spec)):
                continue
            try:
                measurement = registers.measure(spec, known)
            except MeterError:
                continue
            yield Fit(profile=profile.name, volume_ml=measurement.volume_ml, flags=measurement.flags)


def _wanted(request: bytes) -> range:
    """Return the registers that a request to read them asks for."""
    address = int.from_bytes(request[2:4], "big")
    return range(address, address + int.from_bytes(request[4:6], "big"))


def _together(spec: registers.ModbusSpec) -> list[set[int]]:
    """Return the registers of which each group is worth something in one answer only."""
    return [*(set(field.addresses) for field in spec.fields), {a for term in spec.total for a in term.addresses}]


def _by_exchange(candidates: Sequence[Profile], request: bytes, answer: bytes) -> Iterable[Fit]:
    for profile in candidates:
        try:
            measurement = profile.protocol.decode_case(profile.spec, [(request, answer)])
        except ShuiwangError:
            continue
        fit = fit_of(profile, measurement, answer)
        if fit is not None:
            yield fit


def _reading_in(answers: bytes) -> cjt188.Frame | None:
    """Return the last answer among some bytes that is a CJ/T 188 reading."""
    frames = [frame for _, frame in cjt188.find_frames(answers)]
    readings = [frame for frame in frames if frame.is_reply and frame.request_control == cjt188.READ_DATA]
    return readings[-1] if readings else None
