"""What a scan found, and which profiles read it: the meter is read with every one that knows its kind of address."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from agent.technician import scan_questions
from agent.technician.fits import Fit, fit_of, is_decided, may_heed, ranked
from agent.technician.trace import Trace
from gateway.line import Line, LineSettings, open_port
from gateway.meters import MeterReader
from protocols.cjt188_data import DiOrder
from protocols.errors import Garbled, MeterError, MeterFault, MeterRefused, NoResponse, PortLost, ProfileError
from protocols.profile import Profile

# A meter that answered while the next one was asked is given this long by every profile.
LATE_TIMEOUT_MS: Final = 2000
# What tells most about why no profile reads a meter comes first.
_TELLING: Final = (MeterFault, MeterRefused, MeterError, Garbled, NoResponse)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One meter. `fits` are the profiles that read it, the likelier first; empty where none of ours does.

    `timeout_ms` is what it needs where its profile's is too short. `meter_type` is T of CJ/T 188 where the meter heeds
    only its own and the profiles that fit ask with another.
    """

    line: LineSettings
    protocol: str
    address: str
    fits: tuple[Fit, ...] = ()
    reason: str | None = None  # why no profile reads it
    timeout_ms: int | None = None
    meter_type: int | None = None

    @property
    def is_decided(self) -> bool:
        """Whether there is one way to read it, with a profile that is there."""
        return bool(self.fits) and is_decided(self.fits) and self.meter_type is None


class Identifier:
    """Reads meters that were found. `requests` counts what was sent."""

    def __init__(
        self,
        profiles: Sequence[Profile],
        *,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.requests = 0
        self._profiles = profiles
        self._opener = opener
        self._monotonic = monotonic
        self._pause = pause

    def identify(
        self,
        line: LineSettings,
        protocol: str,
        address: str,
        *,
        timeout_ms: int | None = None,
        meter_type: int | None = None,
    ) -> Found:
        """Read a meter with every profile of its protocol; return those that make a volume of it. Raises PortLost.

        The meter has at least `timeout_ms`; `meter_type` is the T that a CJ/T 188 meter answered with.
        """
        profiles = _in_order(self._profiles, protocol, meter_type)
        fits, reason = self._try(line, profiles, address, timeout_ms or 0)
        heeds = None
        if not fits and meter_type in scan_questions.OTHER_WATER:
            own = [_with_type(profile, meter_type) for profile in profiles]
            others = [profile for profile, asked in zip(own, profiles, strict=True) if profile != asked]
            fits, own_reason = self._try(line, others, address, timeout_ms or 0)
            reason, heeds = own_reason or reason, meter_type if fits else None
        likely = ranked(fits)
        usual_ms = next((one.timing.timeout_ms for one in profiles if likely and one.name == likely[0].profile), 0)
        return Found(
            line=line,
            protocol=protocol,
            address=address,
            fits=likely,
            reason=None if likely else reason,
            timeout_ms=timeout_ms if timeout_ms and timeout_ms > usual_ms else None,
            meter_type=heeds,
        )

    def _try(
        self, line: LineSettings, profiles: Sequence[Profile], address: str, timeout_ms: int
    ) -> tuple[list[Fit], str | None]:
        """Return what fits, and else the most telling reason why nothing does."""
        fits: list[Fit] = []
        reasons: list[tuple[int, str]] = []
        silent: set[tuple[int, DiOrder]] = set()  # how a CJ/T 188 meter was asked that did not answer
        trace = Trace(opener=self._opener, monotonic=self._monotonic)
        port = Line(line, opener=trace.opener, monotonic=self._monotonic, pause=self._pause)
        try:
            for profile in profiles:
                reader = _reader(profile, line, address, timeout_ms)
                if reader is None or _is_deaf(profile, silent):
                    continue
                try:
                    measurement = reader.read(port)
                except PortLost:
                    raise
                except MeterError as error:
                    reasons.append((_rank(error), f"{profile.name}: {error}"))
                    if isinstance(error, NoResponse) and profile.head.protocol == "cjt188":
                        silent.add((profile.spec.meter_type, profile.spec.di_order))
                else:
                    heard = b"".join(frame.data for frame in trace.frames if frame.direction == "rx")
                    fit = fit_of(profile, measurement, heard)
                    if fit is None:
                        reasons.append((0, _nothing_speaks_for(profile)))
                    else:
                        fits.append(fit)
                finally:
                    self.requests += sum(frame.direction == "tx" for frame in trace.take())
        finally:
            port.close()
        return fits, min(reasons, key=lambda one: one[0])[1] if reasons else _unnameable(address)


def _rank(error: MeterError) -> int:
    return next(rank for rank, kind in enumerate(_TELLING) if kind in type(error).__mro__)


def _nothing_speaks_for(profile: Profile) -> str:
    return (
        f"{profile.name} would make a volume of it, but it holds neither a unit code nor a date that"
        " speaks for that layout 应答中没有单位码或日期可证明此布局"
    )


def _unnameable(address: str) -> str | None:
    if address.isdecimal():
        return None
    return (
        f"the configuration knows M-Bus numbers of digits only, and {address[:8]} has letters: have it given a primary"
        " address 表号含字母：请设一级地址"
    )


def _in_order(profiles: Sequence[Profile], protocol: str, meter_type: int | None) -> list[Profile]:
    """Return a protocol's profiles, the best proven first, those that find things out by trying last."""

    def key(profile: Profile) -> tuple[bool, int, str]:
        captures = sum(case.evidence in {"capture", "field"} for case in profile.cases)
        is_probing = getattr(profile.spec, "di_order", None) is DiOrder.PROBE
        return is_probing, -captures, profile.name

    return sorted((one for one in profiles if one.head.protocol == protocol and may_heed(one, meter_type)), key=key)


def _with_type(profile: Profile, meter_type: int) -> Profile:
    return msgspec.structs.replace(profile, spec=msgspec.structs.replace(profile.spec, meter_type=meter_type))


def _is_deaf(profile: Profile, silent: set[tuple[int, DiOrder]]) -> bool:
    """Tell whether a CJ/T 188 meter was silent to both orders of what a profile would ask."""
    asked = getattr(profile.spec, "meter_type", None)
    return asked is not None and all((asked, order) in silent for order in scan_questions.ORDERS)


def _reader(profile: Profile, line: LineSettings, address: str, timeout_ms: int) -> MeterReader | None:
    try:
        parsed = profile.parse_address(address, framing=line.framing)
    except ProfileError:
        return None
    return MeterReader(
        profile=profile, address=parsed, timeout_ms=max(timeout_ms, profile.timing.timeout_ms), retries=0
    )
