"""Alert steps for tests."""

from gateway.ulid import new_ulid
from protocols.contract import AlertBody, AlertState, Kind, Level, instant


def episode_id(number):
    """The id of the n-th episode; they sort by n."""
    return new_ulid(1_790_000_000_000 + number, random_bits=lambda _: number)


def step(number, state=AlertState.OPEN, *, level=Level.YELLOW, meter="m-001", **evidence):
    """A step of the n-th episode."""
    at = instant(1_790_000_000_000 + number)
    return AlertBody(
        id=episode_id(number),
        meter=meter,
        kind=Kind.LOW_USAGE,
        state=state,
        level=level,
        since=at,
        at=at,
        historical=False,
        evidence=evidence,
    )
