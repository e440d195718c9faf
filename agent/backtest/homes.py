"""The readings of one home, compact in memory: 17 bytes each."""

from array import array
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Final

from agent.backtest.columns import INTERVAL
from agent.backtest.moments import BadTime, LocalClock
from agent.backtest.problems import BadRows, brief
from agent.backtest.tables import Row

LITRE_ML: Final = 1_000
# A register of ten digits of m3; what comes from a broken export should not pass for a volume.
VOLUME_ML_MAX: Final = 10**16
LONG_AGO_MS: Final = -1 << 62


class Home:
    """Readings of one meter, oldest first: times (ms since 1970, UTC), local hours of day, register in millilitres."""

    def __init__(self, meter: str) -> None:
        self.meter = meter
        self.times = array("q")
        self.hours = bytearray()
        self.values = array("q")
        self.missing = 0  # rows without a value: the meter was not read

    def __len__(self) -> int:
        return len(self.times)

    @property
    def interval_ms(self) -> int:
        """How long it usually is from one reading to the next: the median; an hour where nothing is known."""
        gaps = sorted(later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False))
        gaps = [gap for gap in gaps if gap > 0]
        return gaps[len(gaps) // 2] if gaps else 3_600_000


def gather(
    rows: Iterable[Row], *, clock: LocalClock, values: str, bad: BadRows, place: Callable[[int], str]
) -> list[Home]:
    """Return the homes whose rows these are, in the order in which they first appear; `place` says where a row stands.

    An empty value of a register is a reading that is missing; of an interval it is a bad row, because the use that it
    hides is lost. Raises InputProblem for a bad row unless those are counted.
    """
    homes: dict[str, Home] = {}
    for number, meter, timestamp, litres in rows:
        home = homes.get(meter)
        if home is None:
            if not meter:
                bad.add(place(number), "the row names no meter")
                continue
            home = homes[meter] = Home(meter)
        before_ms = home.times[-1] if home.times else LONG_AGO_MS
        if not litres and values != INTERVAL:
            home.missing += 1
            continue
        try:
            time_ms = clock.read(timestamp, after_ms=before_ms)
            value_ml = millilitres(litres)
        except (BadTime, BadVolume) as error:
            bad.add(place(number), str(error))
            continue
        if time_ms < before_ms:
            bad.add(
                place(number),
                f"meter {brief(meter)} goes back in time, from {clock.local(before_ms)} to {brief(timestamp)}: the rows"
                " of a meter must be sorted by time (and --timezone be that of the file)",
            )
            continue
        if values == INTERVAL:
            value_ml += home.values[-1] if home.values else 0
        elif value_ml < 0:
            bad.add(
                place(number),
                f"a register of {brief(litres)} L: no register is below 0. For use since the row before:"
                " --values interval",
            )
            continue
        home.times.append(time_ms)
        home.hours.append(clock.hour(time_ms))
        home.values.append(value_ml)
    return list(homes.values())


class BadVolume(ValueError):
    """A text that is no volume."""


def millilitres(litres: str) -> int:
    """Return litres in millilitres, exactly, rounded to whole ones. Raises BadVolume."""
    if litres.isdecimal() and len(litres) < 13:
        return int(litres) * LITRE_ML
    try:
        volume = Decimal(litres.strip()) * LITRE_ML
    except InvalidOperation:
        raise BadVolume(f"{brief(litres)!r} is no number of litres") from None
    if not volume.is_finite() or abs(volume) > VOLUME_ML_MAX:
        raise BadVolume(f"{brief(litres)!r} is no number of litres that a meter can show")
    return int(volume.to_integral_value())
