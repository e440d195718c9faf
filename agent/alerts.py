"""The lifecycle of an alert, as tables; whatever raises, escalates, reminds of or ends an alert does so here.

1. An episode begins with `opened` and ends with `cleared`; all its steps carry one id. One per episode, not per poll.
2. What a table does not name for an episode changes nothing: what is unsure waits.
3. A low_usage is yellow while the county's rule holds, and red once the home itself is silent for too long. Yellow ends
   with enough use. Red ends with real use; where the county's rule still holds then, a new yellow episode begins.
4. Red is repeated every `REMIND_MS`. Once somebody at the county has taken it in hand, or has been at the door, it is
   repeated every `REMIND_ACKNOWLEDGED_MS` as long as no water runs: somebody who was well yesterday may fall today.
   What was said of it while it was yellow is no answer to the red one, however late it comes.
5. A declared absence ends a low_usage, the removal of its meter any alert. Quiet hours hold back what would begin or
   escalate, but for 24 hours without any use.
6. Every step carries the figures that led to it, a reason, and both in words (`agent.explanations`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from agent.detection.watch import ENDS, STANDS
from agent.detection.window import ENOUGH, LOW
from protocols.contract import AlertBody, AlertState, Kind, Level, Result, Transition, instant, wall_ms
from protocols.ulid import ulid

YELLOW, RED = Level.YELLOW, Level.RED
COUNTY, COUNTY_BEFORE = "county", "county_before"  # in the evidence: what the county said, and said before it was red
ESCALATED_AT: Final = "escalated_at"  # in the evidence: when it turned red, where a synced clock says so
USED, AWAY, STILL_RED = "used", "away", "still_red"
REMIND_MS: Final = 6 * 3_600_000
REMIND_ACKNOWLEDGED_MS: Final = 24 * 3_600_000

# level of the standing episode (None: there is none), what a reading shows -> what follows, and the level then
LOW_USAGE_STEPS: Final[dict[tuple[Level | None, str], tuple[Transition, Level]]] = {
    (None, LOW): (Transition.OPENED, YELLOW),
    (None, RED): (Transition.OPENED, RED),
    (YELLOW, RED): (Transition.ESCALATED, RED),
    (YELLOW, ENOUGH): (Transition.CLEARED, YELLOW),
    (YELLOW, AWAY): (Transition.CLEARED, YELLOW),
    (RED, USED): (Transition.CLEARED, RED),
    (RED, AWAY): (Transition.CLEARED, RED),
    (RED, STILL_RED): (Transition.REMINDED, RED),
}
# leak, burst, reverse_flow, meter_silent, supply_outage, bus_fault
OTHER_STEPS: Final[dict[tuple[Level | None, str], tuple[Transition, Level]]] = {
    (None, STANDS): (Transition.OPENED, YELLOW),
    (YELLOW, ENDS): (Transition.CLEARED, YELLOW),
}
_STATE_AFTER: Final = {
    Transition.OPENED: AlertState.OPEN,
    Transition.ESCALATED: AlertState.ESCALATED,
    Transition.CLEARED: AlertState.CLEARED,
}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a table says should follow: a transition of one episode."""

    kind: Kind
    meter: str | None
    transition: Transition
    level: Level
    signal: str  # what led to it


def next_step(kind: Kind, meter: str | None, level: Level | None, signal: str) -> Step | None:
    """Return what a signal leads to where an episode of `level` stands, None where nothing changes."""
    table = LOW_USAGE_STEPS if kind is Kind.LOW_USAGE else OTHER_STEPS
    found = table.get((level, signal))
    return found and Step(kind=kind, meter=meter, transition=found[0], level=found[1], signal=signal)


def take(
    step: Step,
    episode: AlertBody | None,
    *,
    since: str,
    wall_ms: int,
    evidence: dict[str, Any],
    new_id: Callable[[], str],
    words: Callable[[Step, AlertBody], dict[str, str]],
) -> AlertBody:
    """Return the episode after a step. What the county has said of it stays with it."""
    if episode is not None:
        evidence = {**evidence, **_said(episode, is_escalated=step.transition is Transition.ESCALATED)}
    body = AlertBody(
        id=episode.id if episode else new_id(),
        meter=step.meter,
        kind=step.kind,
        state=_STATE_AFTER.get(step.transition) or (episode.state if episode else AlertState.OPEN),
        level=step.level,
        since=episode.since if episode else since,
        at=instant(wall_ms),
        historical=False,
        evidence=evidence,
        transition=step.transition,
    )
    return msgspec.structs.replace(body, text=words(step, body))


def _said(episode: AlertBody, *, is_escalated: bool) -> dict[str, Any]:
    """Return what the county has said of an episode as a step passes it on; set aside where the alert turns red."""
    said = {key: episode.evidence[key] for key in (COUNTY, COUNTY_BEFORE, ESCALATED_AT) if key in episode.evidence}
    return {COUNTY_BEFORE: said[COUNTY]} if is_escalated and COUNTY in said else said


def is_acknowledged(episode: AlertBody) -> bool:
    """Tell whether somebody at the county has taken the alert in hand, as urgent as it is now."""
    return COUNTY in episode.evidence


def is_made_before_red(episode: AlertBody, command_id: str) -> bool:
    """Tell whether a command was made (its id, a ULID, says when) before the alert turned red: it means the yellow one.

    Where no synced clock dates the escalation nobody knows; then it means the alert as it is.
    """
    escalated_at = episode.evidence.get(ESCALATED_AT)
    return escalated_at is not None and command_id < ulid(wall_ms(escalated_at), random=0)


def with_said(episode: AlertBody, county: Mapping[str, Any], *, command_id: str | None = None) -> AlertBody:
    """Return an episode with what the county says of it, set aside where the command is older than the red alert."""
    key = COUNTY_BEFORE if command_id is not None and is_made_before_red(episode, command_id) else COUNTY
    said = {**episode.evidence.get(key, {}), **county}
    return msgspec.structs.replace(episode, evidence={**episode.evidence, key: said})


def was_helped(episode: AlertBody) -> bool:
    """Tell whether somebody was found in need of help, as urgent as the alert is now."""
    return bool(episode.evidence.get(COUNTY, {}).get("result") == Result.HELPED)


def helped_at(episode: AlertBody) -> set[str | None]:
    """Return when it was said (None: unknown) that somebody was helped, of the alert now or while it was yellow."""
    said = [episode.evidence.get(key, {}) for key in (COUNTY, COUNTY_BEFORE)]
    return {one.get("visited_at") for one in said if one.get("result") == Result.HELPED}


def low_usage_signals(*, low: str, red: str, used: bool, away: bool, quiet: bool, remind: bool) -> Sequence[str]:
    """Return what a reading shows, in the order in which it is to be heeded."""
    if away:
        return (AWAY,)
    signals = [USED] if used else []
    if red and (not quiet or red == "day"):
        signals.append(RED)
    if remind and not used:
        signals.append(STILL_RED)
    if low != LOW or not quiet:
        signals.append(low)
    return signals
