"""Which of our profiles make a volume of what a meter says. Modbus does not tell what it is, so several may."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from protocols import modbus, registers
from protocols import profile as profiles
from protocols.errors import MeterError, ShuiwangError
from protocols.profile import Profile

# Five digits of cubic metres: beyond them a house meter begins at 0 again. A register map that is not this meter's
# mostly gives far more.
PLAUSIBLE_ML_MAX: Final = 99_999_999_999


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """One profile, and what the meter shows if it is the right one."""

    profile: str
    volume_ml: int
    flags: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[bool, bool]:
        """Sorts the likelier first: a dial shows something, and not more than it has digits for."""
        return self.volume_ml > PLAUSIBLE_ML_MAX, self.volume_ml == 0


def ranked(fits: Iterable[Fit]) -> tuple[Fit, ...]:
    """Return the fits that can be a water meter's reading, the likelier first."""
    return tuple(sorted((fit for fit in fits if fit.volume_ml <= PLAUSIBLE_ML_MAX), key=lambda fit: fit.rank))


def built_in() -> list[Profile]:
    """Return the profiles that come with shuiwang."""
    return [profiles.load(name) for name in profiles.built_in_names()]


class Guesser:
    """Says what overheard answers mean. It keeps the registers of each Modbus unit: a total may need two answers."""

    def __init__(self, candidates: Sequence[Profile]) -> None:
        self._candidates = candidates
        self._registers: dict[tuple[int, int], dict[int, int]] = {}  # of a unit and a function

    def fits(self, protocol: str, request: bytes, answer: bytes) -> tuple[Fit, ...]:
        """Return the profiles that read this answer (both whole, sound frames) as a volume, the likelier first."""
        candidates = [profile for profile in self._candidates if profile.head.protocol == protocol]
        if protocol == "modbus":
            return ranked(self._modbus(candidates, request, answer))
        return ranked(_by_exchange(candidates, request, answer))

    def _modbus(self, candidates: Sequence[Profile], request: bytes, answer: bytes) -> Iterable[Fit]:
        if request[1] not in modbus.READ_FUNCTIONS:
            return
        asked = modbus.decode_request(bytes([request[0] or answer[0]]) + request[1:])
        told = registers.registers_of(asked, modbus.decode_response(answer))
        known = self._registers.setdefault((answer[0], asked.function), {})
        known |= told
        for profile in candidates:
            spec: registers.ModbusSpec = profile.spec
            needed = {address for block in spec.read for address in block.addresses}
            if spec.function != asked.function or not needed & told.keys() or not needed <= known.keys():
                continue
            try:
                measurement = registers.measure(spec, known)
            except MeterError:
                continue
            yield Fit(profile=profile.name, volume_ml=measurement.volume_ml, flags=measurement.flags)


def _by_exchange(candidates: Sequence[Profile], request: bytes, answer: bytes) -> Iterable[Fit]:
    for profile in candidates:
        try:
            measurement = profile.protocol.decode_case(profile.spec, [(request, answer)])
        except ShuiwangError:
            continue
        yield Fit(profile=profile.name, volume_ml=measurement.volume_ml, flags=measurement.flags)
