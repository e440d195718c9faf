"""What a check-up finds."""

from typing import Any, Literal

import msgspec

from agent.exit_codes import ExitCode
from agent.technician.words import Words

Level = Literal["ok", "note", "warn", "bad"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: what was found, and what to check next.

    `code` is the exit code of the command where this is the first bad finding.
    """

    topic: str
    level: Level
    says: Words
    next: tuple[Words, ...] = ()
    data: dict[str, Any] = {}
    code: ExitCode = ExitCode.OK
