"""How far it is, on stderr, once it takes longer than two seconds."""

import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

PATIENCE_S: Final = 2.0
TERMINAL_EVERY_S: Final = 0.2
LOG_EVERY_S: Final = 10.0


class Progress:
    """One line that is renewed on a terminal, a line now and then elsewhere."""

    def __init__(self, stream: TextIO | None = None, *, now_s: Callable[[], float] = time.monotonic) -> None:
        """`now_s` tells elapsed time in seconds."""
        self._stream = stream or sys.stderr
        self._now_s = now_s
        self._next_s = now_s() + PATIENCE_S
        self._every_s = TERMINAL_EVERY_S if self._stream.isatty() else LOG_EVERY_S
        self._shown = False

    def say(self, text: str) -> None:
        """Show `text` if it is time for it."""
        if self._now_s() < self._next_s:
            return
        self._next_s = self._now_s() + self._every_s
        self._shown = True
        self._stream.write(f"\r\x1b[2K{text}" if self._stream.isatty() else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Take the line away."""
        if self._shown and self._stream.isatty():
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
