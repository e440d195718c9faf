"""What many meters say together: a bus has failed, the supply is off; and that a meter is silent.

Runs on the gateway only (floats, dicts); pure, and without a clock. The single alerts are never dropped because of what
is found here: a condition of the group is attached to them as a suspicion.

* Supply outage: `agent.detection.supply`.
* Bus fault: at least three meters of one bus, and at least half of them, lost their values at the same time, and have
  had none for half of what makes a meter silent. On a bus with one or two meters there is no such suspicion: a dead
  meter or two look like a dead bus, and each speaks for itself.
* Meter silent: no value in `silent_ms` of asking, and in at least six polls. While we did not ask ourselves, no time
  passes here.
"""

from typing import Final, NamedTuple

from agent.detection.supply import HOUR_MS, LIMIT, MINUTE_MS, NEVER, Figures, Habits, Home, Supply

SUPPLY_OUTAGE, BUS_FAULT, METER_SILENT = "supply_outage", "bus_fault", "meter_silent"
# A quarter of the county's window, and longer than a power cut or a technician's visit mostly lasts. Six polls, as a
# meter that is asked hourly may well miss three.
SILENT_MS: Final = 3 * HOUR_MS
SILENT_POLLS: Final = 6
ASK_POLLS_MAX: Final = 3
ASK_MS_MAX: Final = 90 * MINUTE_MS  # a failing meter is asked every 30 min at least; three times that is our own gap
LOST_ONE_IN: Final = 2
BUS_METERS_MIN: Final = 3
BUS_ONE_IN: Final = 2
TOGETHER_MS: Final = 10 * MINUTE_MS  # water in a junction box takes the meters one after the other


class Change(NamedTuple):
    """A condition that begins to stand, or ends. `figures` explain it.

    supply_outage  since the last draw before. `meters`: who took part. At the beginning still_min, homes, usual_draws
                   (readings with a draw that were to be expected of them since), leaks_stopped, other_source (homes
                   that drew all the same), surprise, limit; at the end lasted_min, homes, drew (homes that drew again).
    bus_fault      since the first poll without a value. `meters`: who fell silent then. meters, of (the meters on the
                   bus), silent_min.
    meter_silent   since the first poll without a value. silent_min, polls (without a value, one after the other).
    """

    kind: str
    subject: str | None  # the meter or the bus; None: the whole gateway
    stands: bool
    since_ms: int
    meters: tuple[str, ...]
    figures: Figures


class Suspicion(NamedTuple):
    """What may explain that a meter is silent or still, and since when."""

    kind: str
    since_ms: int


class VillageWatch:
    """Feed it every reading of a gateway; it says when a condition of the group, or a meter's silence, begins or ends.

    Clear `learns` while feeding stored readings again from which a loaded state has learned already.
    """

    def __init__(
        self,
        *,
        buses: dict[str, list[str]],
        poll_every_ms: dict[str, int],
        silent_ms: int = SILENT_MS,
        limit: float = LIMIT,
    ) -> None:
        """`buses` names the meters of each bus, `poll_every_ms` has an entry for each meter."""
        self.learns = True
        self._silent_ms = silent_ms
        self._habits = Habits()
        self._supply = Supply(self._habits, limit=limit)
        self._meters: dict[str, _Meter] = {}
        for name, meters in buses.items():
            bus = _Bus(name)
            for meter in meters:
                self._meters[meter] = _Meter(meter, bus, poll_every_ms=poll_every_ms[meter])
                bus.meters.append(self._meters[meter])

    def feed(self, meter: str, time_ms: int, hour: int, *, used_ml: int | None, leak_ml_h: int = 0) -> list[Change]:
        """Take a reading: what was drawn since the value before it; None where there is no value to trust.

        `time_ms` rises for each meter; between meters it may differ by seconds. `hour` is the local hour of day.
        `leak_ml_h` is the leak known to run in this home. A first value has drawn nothing. Raise KeyError on a meter
        that is on no bus.
        """
        state = self._meters[meter]
        if used_ml is None:
            return self._miss(state, time_ms)
        changes = self._answer(state, time_ms) if state.missed else []
        outage = self._supply.feed(state, time_ms, hour, used_ml=used_ml, leak_ml_h=leak_ml_h, learns=self.learns)
        state.read_ms = state.asked_ms = time_ms
        if outage:
            changes.append(Change(SUPPLY_OUTAGE, None, *outage))
        return changes

    def suspicion(self, meter: str) -> Suspicion | None:
        """Return the group condition that covers this meter now; a bus fault where it has no value."""
        state = self._meters[meter]
        if state.bus.faulty and state in state.bus.faulty:
            return Suspicion(BUS_FAULT, state.bus.since_ms)
        if self._supply.covers(state):
            return Suspicion(SUPPLY_OUTAGE, self._supply.since_ms)
        return None

    def dump(self) -> bytes:
        """Return what was learned of the village's hours; the rest comes back by feeding the readings of three days."""
        return self._habits.dump()

    def load(self, state: bytes) -> None:
        """Take over what `dump` returned. Raise ValueError on any other state: the village is then learned anew."""
        self._habits.load(state)

    def _miss(self, state: "_Meter", time_ms: int) -> list[Change]:
        """Note a poll without a value."""
        if state.missed == 0:
            state.missing_ms, state.silent_for_ms = time_ms, 0
        step_ms = time_ms - state.asked_ms if state.asked_ms != NEVER else 0
        if step_ms <= state.ask_ms_max:  # else it was we who did not ask
            state.silent_for_ms += step_ms
        state.missed += 1
        state.asked_ms = time_ms
        changes = []
        if not state.lost and state.is_silent(self._silent_ms // LOST_ONE_IN, SILENT_POLLS // LOST_ONE_IN):
            state.lost = True
            changes += state.bus.lose(state)
        if not state.silent and state.is_silent(self._silent_ms, SILENT_POLLS):
            state.silent = True
            changes.append(state.silence(stands=True))
        return changes

    def _answer(self, state: "_Meter", time_ms: int) -> list[Change]:
        """Note that a meter has a value again."""
        if time_ms - state.asked_ms <= state.ask_ms_max:
            state.silent_for_ms += time_ms - state.asked_ms
        changes = [state.silence(stands=False)] if state.silent else []
        changes += state.bus.find(state)
        state.missed, state.lost, state.silent = 0, False, False
        return changes


class _Meter(Home):
    """What is remembered of one meter, besides its home's draws."""

    __slots__ = ("ask_ms_max", "asked_ms", "bus", "lost", "missed", "missing_ms", "silent", "silent_for_ms")

    def __init__(self, name: str, bus: "_Bus", *, poll_every_ms: int) -> None:
        super().__init__(name, poll_every_ms=poll_every_ms)
        self.bus = bus
        self.ask_ms_max = max(ASK_POLLS_MAX * poll_every_ms, ASK_MS_MAX)
        self.asked_ms = NEVER
        # Without a value: how many polls, since when, for how long as far as was asked; whether that is long enough for
        # its bus, and for itself.
        self.missed = self.missing_ms = self.silent_for_ms = 0
        self.lost = self.silent = False

    def is_silent(self, silent_ms: int, polls: int) -> bool:
        return self.silent_for_ms >= silent_ms and self.missed >= polls

    def silence(self, *, stands: bool) -> Change:
        figures: Figures = {"silent_min": self.silent_for_ms // MINUTE_MS, "polls": self.missed}
        return Change(METER_SILENT, self.name, stands, self.missing_ms, (self.name,), figures)


class _Bus:
    """The meters of one bus, and those that fell silent together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.meters: list[_Meter] = []
        self.faulty: list[_Meter] = []
        self.since_ms = 0

    def lose(self, state: _Meter) -> list[Change]:
        """A meter has been without a value for long enough to count."""
        if self.faulty:
            if state not in self.faulty and _began_together(state, self.since_ms):
                self.faulty.append(state)
            return []
        # Where any set of the silences began together, it did so at the earliest beginning of one of them.
        missing = [meter for meter in self.meters if meter.missed]
        together: list[_Meter] = []
        for first in missing:
            candidates = [meter for meter in missing if _began_together(meter, first.missing_ms)]
            if sum(meter.lost for meter in candidates) > sum(meter.lost for meter in together):
                together = candidates
        if not self._suffice(sum(meter.lost for meter in together)):
            return []
        self.faulty = together
        self.since_ms = min(meter.missing_ms for meter in together)
        return [self._change(together, stands=True)]

    def find(self, state: _Meter) -> list[Change]:
        """A meter has a value again."""
        if state not in self.faulty:
            return []
        left = [meter for meter in self.faulty if meter is not state]
        if self._suffice(len(left)):
            self.faulty = left
            return []
        change = self._change(self.faulty, stands=False)
        self.faulty = []
        return [change]

    def _suffice(self, meters: int) -> bool:
        return meters >= BUS_METERS_MIN and meters * BUS_ONE_IN >= len(self.meters)

    def _change(self, meters: list[_Meter], *, stands: bool) -> Change:
        longest_min = max(meter.silent_for_ms for meter in meters) // MINUTE_MS
        figures: Figures = {"meters": len(meters), "of": len(self.meters), "silent_min": longest_min}
        return Change(BUS_FAULT, self.name, stands, self.since_ms, tuple(meter.name for meter in meters), figures)


def _began_together(meter: _Meter, fault_ms: int) -> bool:
    """Tell whether a meter can have fallen silent at that moment: after its last value, before its first poll without.

    Where there was no value before, only the first poll without one tells.
    """
    from_ms = meter.read_ms if meter.read_ms != NEVER else meter.missing_ms - meter.gap_ms
    return from_ms - TOGETHER_MS <= fault_ms <= meter.missing_ms + TOGETHER_MS
