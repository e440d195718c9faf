"""A bus: one serial line and the thread that owns it, as the asyncio side sees it."""

from collections.abc import Callable
from typing import Any, Final

from gateway.line import Line, LineSettings, open_port
from gateway.meters import MeterReader
from gateway.owner import OwnerThread
from protocols.reading import Measurement

# A service that restarts does not know what its predecessor asked last. Meters answer within a second (the slowest of
# the profiles: ABB AquaMaster, one second to wake); what comes later than this is counted as any late reply is.
FIRST_SILENCE_S: Final = 2.0


class Bus:
    """Reads meters one at a time; callers queue up in the order they asked."""

    def __init__(self, settings: LineSettings, *, opener: Callable[[LineSettings], Any] = open_port) -> None:
        self.settings = settings
        self._line = Line(settings, opener=opener, first_silence_s=FIRST_SILENCE_S)
        self._owner = OwnerThread(f"bus-{settings.name}")

    async def read(self, meter: MeterReader) -> Measurement:
        """Return what the meter shows. Raises MeterError."""
        return await self._owner.run(lambda: meter.read(self._line))

    def close(self) -> None:
        """Wait for the exchange under way (bounded by its timeouts), then close the port and end the thread."""
        self._owner.stop()
        self._line.close()
