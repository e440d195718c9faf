"""What can be wrong with readings or options: said in one line, with the place."""

import importlib.util
from typing import Final

from protocols.errors import ShuiwangError

# Bad rows that are kept word for word when they are counted instead of refused.
BAD_ROWS_SHOWN: Final = 5
# The longest value that is told whole: more than any time or register has, and one line stays one line.
SHOWN_CHARACTERS: Final = 60
EXTRA: Final = "pip install 'shuiwang[backtest]'"


class InputProblem(ShuiwangError):
    """A file, a row or an option that cannot be used; the message says where, what and what would be right."""


class BadRows:
    """Refuses the first bad row, or counts them all and keeps a few for the report."""

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self.count = 0
        self.first: list[str] = []

    def add(self, place: str, message: str) -> None:
        """Note a bad row. Raises InputProblem unless bad rows are skipped."""
        if not self._skip:
            raise InputProblem(f"{place}: {message}. --skip-bad counts such rows and goes on")
        self.count += 1
        if len(self.first) < BAD_ROWS_SHOWN:
            self.first.append(f"{place}: {message}")

    def merge(self, other: "BadRows") -> None:
        """Add what another part of the work has counted."""
        self.count += other.count
        self.first = [*self.first, *other.first][:BAD_ROWS_SHOWN]


def brief(text: str) -> str:
    """Return a text of a file as a message tells it: shortened where it is long."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text):,} characters)"


def require(module: str, purpose: str) -> None:
    """Raise InputProblem, with what to install, where a library of the `backtest` extra is missing."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise InputProblem(f"{purpose} needs {module}, which is not installed: {EXTRA}")
