"""A lock on a folder: two agents on one store would send the same numbers twice. It ends with its process."""

import fcntl
import os
from pathlib import Path

from protocols.errors import ShuiwangError


class AlreadyLocked(ShuiwangError):
    """Another process holds the lock."""


class FolderLock:
    """Held from construction until `release` or the end of the process, however that comes."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises AlreadyLocked, or OSError where the folder cannot be written."""
        self._file = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise AlreadyLocked(f"{folder} is in use by another agent") from None

    def release(self) -> None:
        """Let others take it."""
        os.close(self._file)


def is_locked(folder: Path) -> bool:
    """Tell whether an agent runs on this folder."""
    try:
        FolderLock(folder).release()
    except AlreadyLocked:
        return True
    except OSError:
        return False  # no such folder, or not ours to write: nobody can be asked
    return False
