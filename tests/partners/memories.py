"""What a store remembers besides readings and alerts, for tests."""

from partners.episodes import episode_id

from gateway.store import Learned
from protocols import contract
from protocols.absence import Absence
from protocols.contract import Reply

START_MS = 1_790_000_000_000
DAY_MS = 86_400_000


def learned(meter, state=b"learned", **changes):
    """What a detector might have dumped."""
    place = {"boot_id": "boot-1", "boottime_ms": 3_600_000, "position_ms": 3_600_000} | changes
    return Learned(meter=meter, state=state, **place)


def absence(number, meter="m-001", *, start_ms=START_MS, until_ms=START_MS + 10 * DAY_MS, **more):
    """The n-th absence: ten days from the start of the tests' clock."""
    return Absence(
        id=episode_id(number),
        meter=meter,
        start_ms=start_ms,
        until_ms=until_ms,
        declared_by="technician",
        declared_ms=START_MS + number,
        **more,
    )


def reply(number):
    """What was answered to the n-th command."""
    return Reply(
        schema=contract.REPLY_SCHEMA,
        id=episode_id(number),
        at=contract.instant(START_MS),
        done=True,
        text={"zh": "好", "en": "done"},
    )
