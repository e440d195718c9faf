"""A store as somebody looks at it who is not its owner: read beside the running service, nothing is changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from gateway.store import Store
from gateway.store_file import translated
from gateway.store_rows import READING_SQL, decode_reading
from protocols.contract import Stream
from protocols.reading import Reading

# For each meter from the reading after which its home's habits were last kept; all of them where nothing was kept.
_SINCE_LEARNED_SQL: Final = f"""
    with kept (kept_meter, kept_id) as (select reading.meter, max(reading.id) from learned
        join boot on boot.boot_id = learned.boot_id
        join reading on reading.meter = learned.meter and reading.boot = boot.id
            and reading.boottime_ms = learned.boottime_ms
        group by reading.meter)
    {READING_SQL} left join kept on kept_meter = meter
    where reading.id >= coalesce(kept_id, 0) order by reading.id"""


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    """A message that the county has stored as it came, and could not read; why, in its own words."""

    epoch: str
    stream: Stream
    seq: int
    reason: str


class StoreView(Store):
    """A store that is only looked at."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises StoreError where there is none, or it cannot be read."""
        super().__init__(path, read_only=True)

    def since_learned(self) -> Iterator[Reading]:
        """Yield each meter's readings from the one on after which it was kept what was learned. Raises StoreError."""
        with translated("the readings cannot be read"):
            for row in self._db.query(_SINCE_LEARNED_SQL):
                yield decode_reading(row)

    def set_aside(self, *, newest: int) -> list[SetAside]:
        """Return the newest messages that the county did not understand, newest first. Raises StoreError."""
        with translated("what was set aside cannot be read"):
            sql = "select epoch, stream, seq, reason from set_aside order by id desc limit ?"
            return [
                SetAside(epoch=epoch, stream=Stream(stream), seq=seq, reason=reason)
                for epoch, stream, seq, reason in self._db.execute(sql, [newest])
            ]
