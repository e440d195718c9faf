"""`shuiwang status`: what is polled, how long each home is silent, who is away, what waits for the county.

It is read from the store, beside the running service.
"""

from typing import Final

import msgspec

from agent.service import STORE_NAME
from agent.settings import Config, MeterSettings
from agent.standing import Standing, standings
from gateway.clock import Clock
from gateway.lock import is_locked
from gateway.store import StoreError
from gateway.store_view import SetAside, StoreView
from protocols.contract import AbsenceNotice, AlertBody, Stream, instant
from protocols.reading import Reading

# A meter whose last value is older than so many polls is stale.
STALE_POLLS: Final = 3
# Of what the county did not understand the newest are named; they are mostly of one kind.
SET_ASIDE_SHOWN: Final = 5


class MeterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One meter: its last value, what the last poll brought, and whether that is too long ago.

    `home` is how it stood with the rules at its last value, null where too little is stored to tell.
    """

    meter: str
    bus: str
    address: str
    profile: str
    state: str  # ok, stale, never
    volume_ml: int | None
    value_at: str | None
    value_age_s: int | None
    last_reason: str | None
    flags: tuple[str, ...]
    home: Standing | None


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of the outbox."""

    waiting: int
    last_seq: int
    acked_seq: int
    acked_at: str | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole picture; `shuiwang status --json` prints it."""

    gateway: str
    timezone: str
    at: str
    running: bool
    epoch: str | None
    meters: tuple[MeterStatus, ...]
    outbox: dict[str, StreamReport]
    open_alerts: tuple[AlertBody, ...]
    not_understood: int
    not_understood_newest: tuple[SetAside, ...]
    absences: tuple[AbsenceNotice, ...]
    store_bytes: int


def status(config: Config, clock: Clock) -> Status:
    """Return how the agent of a configuration is. Raises StoreError for a store that cannot be read."""
    path = config.gateway.data_dir / STORE_NAME
    now_ms = clock.now().wall_ms
    if not path.exists():
        raise StoreError(f"there is no store at {path}: the agent has not run with this configuration yet")
    store = StoreView(path)
    try:
        last, values, homes = store.last_readings(), store.last_values(), standings(config, store)
        return Status(
            gateway=config.gateway.id,
            timezone=config.gateway.timezone,
            at=instant(now_ms),
            running=is_locked(config.gateway.data_dir),
            epoch=store.epoch,
            meters=tuple(
                _meter(meter, last.get(meter.id), values.get(meter.id), homes.get(meter.id), now_ms)
                for meter in config.meters
            ),
            outbox={stream.value: _stream(store, stream) for stream in Stream},
            open_alerts=tuple(store.open_episodes()),
            not_understood=store.set_aside_count(),
            not_understood_newest=tuple(store.set_aside(newest=SET_ASIDE_SHOWN)),
            absences=_absences(store, now_ms),
            store_bytes=store.bytes_used(),
        )
    finally:
        store.close()


def _meter(
    meter: MeterSettings, last: Reading | None, value: Reading | None, home: Standing | None, now_ms: int
) -> MeterStatus:
    age_s = None if value is None else max(0, now_ms - value.at.wall_ms) // 1000
    state = "never" if age_s is None else "stale" if age_s > STALE_POLLS * max(1.0, meter.poll_every_s) else "ok"
    return MeterStatus(
        meter=meter.id,
        bus=meter.bus,
        address=meter.address_text,
        profile=meter.profile.name,
        state=state,
        volume_ml=value.volume_ml if value else None,
        value_at=instant(value.at.wall_ms) if value else None,
        value_age_s=age_s,
        last_reason=last.reason if last else None,
        flags=last.flags if last else (),
        home=home,
    )


def _absences(store: StoreView, now_ms: int) -> tuple[AbsenceNotice, ...]:
    """Return the absences and quiet hours that stand or are to come, the earliest first."""
    standing = [one for one in store.absences() if one.is_open and one.until_ms > now_ms]
    return tuple(one.notice() for one in sorted(standing, key=lambda one: (one.start_ms, one.meter)))


def _stream(store: StoreView, stream: Stream) -> StreamReport:
    numbers = store.status(stream)
    return StreamReport(
        waiting=numbers.last_seq - numbers.acked_seq,
        last_seq=numbers.last_seq,
        acked_seq=numbers.acked_seq,
        acked_at=None if numbers.acked_wall_ms is None else instant(numbers.acked_wall_ms),
    )
