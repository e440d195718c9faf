"""`shuiwang status`: what is polled, what is stale, what waits for the county; read beside the running service."""

from typing import Final

import msgspec

from agent.service import STORE_NAME
from agent.settings import Config, MeterSettings
from gateway.clock import Clock
from gateway.lock import is_locked
from gateway.store import Store, StoreError
from protocols.contract import AlertBody, Stream, instant
from protocols.reading import Reading

# A meter whose last value is older than so many polls is stale.
STALE_POLLS: Final = 3


class MeterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One meter: its last value, what the last poll brought, and whether that is too long ago."""

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
    store_bytes: int


def status(config: Config, clock: Clock) -> Status:
    """Return how the agent of a configuration is. Raises StoreError for a store that cannot be read."""
    path = config.gateway.data_dir / STORE_NAME
    now_ms = clock.now().wall_ms
    if not path.exists():
        raise StoreError(f"there is no store at {path}: the agent has not run with this configuration yet")
    store = Store(path, read_only=True)
    try:
        last, values = store.last_readings(), store.last_values()
        return Status(
            gateway=config.gateway.id,
            timezone=config.gateway.timezone,
            at=instant(now_ms),
            running=is_locked(config.gateway.data_dir),
            epoch=store.epoch,
            meters=tuple(_meter(meter, last.get(meter.id), values.get(meter.id), now_ms) for meter in config.meters),
            outbox={stream.value: _stream(store, stream) for stream in Stream},
            open_alerts=tuple(store.open_episodes()),
            not_understood=store.set_aside_count(),
            store_bytes=store.bytes_used(),
        )
    finally:
        store.close()


def _meter(meter: MeterSettings, last: Reading | None, value: Reading | None, now_ms: int) -> MeterStatus:
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
    )


def _stream(store: Store, stream: Stream) -> StreamReport:
    numbers = store.status(stream)
    return StreamReport(
        waiting=numbers.last_seq - numbers.acked_seq,
        last_seq=numbers.last_seq,
        acked_seq=numbers.acked_seq,
        acked_at=None if numbers.acked_wall_ms is None else instant(numbers.acked_wall_ms),
    )
