"""An ear on a line: opens a port, never writes to it, and hands out what comes with its time."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from gateway.line import LineSettings, open_port
from protocols.errors import PortLost


class Ear:
    """One open port. Times are milliseconds since it was opened."""

    def __init__(
        self,
        settings: LineSettings,
        *,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the port. Raises PortLost."""
        self.settings = settings
        self._monotonic = monotonic
        try:
            self._port = opener(settings)
        except (OSError, ValueError) as error:
            raise PortLost(f"{settings.port}: {error}") from error
        self._began_s = monotonic()

    @property
    def byte_ms(self) -> float:
        """The time of one byte on the wire."""
        return self.settings.byte_s * 1000

    def now_ms(self) -> float:
        """Return the milliseconds since the port was opened."""
        return (self._monotonic() - self._began_s) * 1000

    def listen(self, until_ms: float | None = None) -> Iterator[tuple[float, bytes]]:
        """Yield (milliseconds, bytes) as they come, and no bytes every now and then, until that time or for ever.

        Raises PortLost when the port goes away.
        """
        while until_ms is None or self.now_ms() < until_ms:
            try:
                data: bytes = self._port.read(max(1, self._port.in_waiting))
            except (OSError, TypeError) as error:  # TypeError: pyserial's read of a port that another thread closed
                raise PortLost(f"{self.settings.port}: {error}") from error
            yield self.now_ms(), data

    def close(self) -> None:
        """Let go of the port."""
        try:
            self._port.close()
        except OSError:
            pass  # it is gone already
