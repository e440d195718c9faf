"""A lock on a folder: two agents on one store would send the same numbers twice. It ends with its process."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocols.errors import ShuiwangError

_NAME: Final = "agent.lock"


class AlreadyLocked(ShuiwangError):
    """Another process holds the lock."""


# Whoever only asks whether the folder is locked holds it for microseconds; an agent that starts then must not give up.
PATIENCE_S: Final = 0.5
PAUSE_S: Final = 0.02


class FolderLock:
    """Held from construction until `release` or the end of the process, however that comes."""

    def __init__(self, folder: Path, *, pause: Callable[[float], None] = time.sleep) -> None:
        """Take the lock. Raises AlreadyLocked, or OSError where the folder cannot be written."""
        self._file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        for attempt in range(int(PATIENCE_S / PAUSE_S)):
            if attempt:
                pause(PAUSE_S)
            if _take(self._file):
                return
        os.close(self._file)
        raise AlreadyLocked(f"{folder} is in use by another agent")

    def release(self) -> None:
        """Let others take it. May be called twice."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def is_locked(folder: Path) -> bool:
    """Tell whether an agent runs on this folder. Makes no file: it would belong to whoever asks, perhaps to root."""
    try:
        file = os.open(folder / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # no agent has ever run here, or it is not ours to read: nobody can be asked
    try:
        return not _take(file)
    finally:
        os.close(file)


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
