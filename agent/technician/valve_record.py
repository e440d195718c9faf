"""Who moved which valve when, and what the meter said: a log line and a line in a file beside the store."""

import logging
import os
import pwd
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.clock import Clock
from protocols.contract import instant

log = logging.getLogger(__name__)

FILE: Final = "valve.jsonl"
# About two thousand attempts; the file before is kept once, as valve.jsonl.1.
FILE_BYTES_MAX: Final = 1024 * 1024


class ValveRecord:
    """Writes one line for each event; `always` is what every line says (meter, address, port, …)."""

    def __init__(self, folder: Path | None, *, clock: Clock, always: dict[str, Any]) -> None:
        """`folder` is the gateway's data_dir; where there is none (yet), the log line is all."""
        self._file = folder / FILE if folder is not None and folder.is_dir() else None
        self._clock = clock
        self._always = always

    def write(self, event: str, **fields: Any) -> None:
        """Log an event and append it to the file, synced to disk. Raises OSError where the file cannot be written."""
        told = {"by": whoever(), **self._always, **fields}
        text = " ".join(f"{key}={msgspec.json.encode(value).decode()}" for key, value in told.items())
        log.info("%s %s", event, text)
        if self._file is None:
            return
        line = {"at": instant(self._clock.now().wall_ms), "event": event, **told}
        self._make_room(self._file)
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _make_room(file: Path) -> None:
        if file.exists() and file.stat().st_size > FILE_BYTES_MAX:
            file.replace(file.with_name(f"{file.name}.1"))


def whoever() -> str:
    """Return who runs this, and who became that by sudo: `root (sudo zhang)`."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    sudo = os.environ.get("SUDO_USER")
    return f"{name} (sudo {sudo})" if sudo else name
