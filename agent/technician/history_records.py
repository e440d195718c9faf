"""Which totals a CJ/T 188 meter can remember: what they are called on the command line, and which one is older."""

import enum
import re
from collections.abc import Iterator
from typing import Final

from protocols.cjt188_data import CURRENT, FREEZES, HISTORY, SETTLED_MONTHS
from protocols.errors import ShuiwangError

# Today's total first: from it and the last settled one follows what was used since.
USUAL: Final = (CURRENT, *SETTLED_MONTHS)
_COMMANDED_FREEZES: Final = 0xD400
_KNOWN: Final = (
    "901F (now 当前), D120-D12B (months 月结算), D200-D2FF (settlements 历史结算),"
    " D300-D3FF (timed freezes 定时冻结), D400-D4FF (commanded freezes 命令冻结)"
)


class Kind(enum.StrEnum):
    """What a data identifier asks for."""

    CURRENT = "current"
    SETTLED_MONTH = "settled_month"
    SETTLEMENT = "settlement"  # 2018
    TIMED_FREEZE = "timed_freeze"  # 2018
    COMMANDED_FREEZE = "commanded_freeze"  # 2018


class UnknownRecord(ShuiwangError):
    """A text names no record that we can read; the message says which there are."""


def kind_of(identifier: int) -> Kind | None:
    """Return what an identifier asks for; None for one that holds no total."""
    if identifier == CURRENT:
        return Kind.CURRENT
    if identifier in SETTLED_MONTHS:
        return Kind.SETTLED_MONTH
    if identifier in HISTORY:
        return Kind.SETTLEMENT
    if identifier in FREEZES:
        return Kind.COMMANDED_FREEZE if identifier >= _COMMANDED_FREEZES else Kind.TIMED_FREEZE
    return None


def settlements_ago(identifier: int) -> int | None:
    """Return how many settlement days lie between a settled total and today, that day included: 1 for D120 and D200."""
    for settled in (SETTLED_MONTHS, HISTORY):
        if identifier in settled:
            return settled.index(identifier) + 1
    return None


def older(identifier: int) -> Iterator[int]:
    """Yield the settled totals that are older than this one, the nearest first.

    None are older than a freeze: what a freeze's number says of its day the published summaries leave open.
    """
    if identifier == CURRENT:
        yield from (*SETTLED_MONTHS, *HISTORY)
    for settled in (SETTLED_MONTHS, HISTORY):
        if identifier in settled:
            yield from settled[settled.index(identifier) + 1 :]


def parse_records(text: str) -> tuple[int, ...]:
    """Return the identifiers in a text such as `D120,D200-D20B`, each once, in its order.

    Raises UnknownRecord for anything that is no identifier of a total.
    """
    found: list[int] = []
    for part in re.split(r"[\s,;，；、]+", text.strip()):
        match = re.fullmatch(r"(?:0x)?([0-9A-F]{4})(?:(?:-|\.\.)(?:0x)?([0-9A-F]{4}))?", part, re.IGNORECASE)
        if not match:
            raise UnknownRecord(
                f"--records {part[:20]!r}: not of the form D120 or D120-D12B 格式不对; there are {_KNOWN}"
            )
        first, last = int(match[1], 16), int(match[2] or match[1], 16)
        for end in (first, last):
            if kind_of(end) is None:
                raise UnknownRecord(
                    f"--records {part}: {end:04X} holds no total 不是水量记录; there are 可用: {_KNOWN}"
                )
        if kind_of(first) is not kind_of(last) or last < first:
            raise UnknownRecord(
                f"--records {part}: a range goes up within one kind 范围须同类且递增; there are {_KNOWN}"
            )
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))
