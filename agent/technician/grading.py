"""How far a profile can be trusted, computed from the evidence inside it: whoever writes the file vouches for that.

bronze      its frames were printed by the maker or constructed: the arithmetic is right, the register map may not be
silver      at least one frame with a volume came from a real meter
gold        and so did one that must be refused, or that reports a fault
platinum    and a technician compared a meter's dial with the reading, at a place and on a day that it names
"""

import enum
from collections import Counter
from typing import Final

import msgspec

from agent.technician.words import Words
from protocols.profile import Case, Profile

# Frames that a real meter sent; a field check is a capture with the dial beside it.
_REAL: Final = ("capture", "field")


class Grade(enum.StrEnum):
    """The grades, the lowest first."""

    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"
    PLATINUM = "platinum"


GRADES: Final = {
    Grade.BRONZE: Words("铜", "bronze"),
    Grade.SILVER: Words("银", "silver"),
    Grade.GOLD: Words("金", "gold"),
    Grade.PLATINUM: Words("铂金", "platinum"),
}
# What the next grade asks for.
MISSING: Final = {
    Grade.BRONZE: Words(
        "缺实采帧：用 `shuiwang read --json` 采一次", "no real capture yet: `shuiwang read --json` makes one"
    ),
    Grade.SILVER: Words("缺故障实采帧（必须被拒绝的帧）", "no captured fault yet: a frame that must be refused"),
    Grade.GOLD: Words("缺现场核对（表盘读数、日期、地点）", "no field check yet: dial, date and place"),
    Grade.PLATINUM: Words("齐全", "complete"),
}


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """How many tests of each kind a profile has, and the grade that they earn. `faults` counts captured ones."""

    grade: Grade
    constructed: int
    manual: int
    capture: int
    field: int
    faults: int


def evidence_of(profile: Profile) -> Evidence:
    """Return the evidence in a profile; all of it was proven when the profile was loaded."""
    count = Counter(case.evidence for case in profile.cases)
    return Evidence(
        grade=_grade(profile.cases),
        constructed=count["constructed"],
        manual=count["manual"],
        capture=count["capture"],
        field=count["field"],
        faults=sum(1 for case in profile.cases if case.fault and case.evidence in _REAL),
    )


def _grade(cases: tuple[Case, ...]) -> Grade:
    real = [case for case in cases if case.evidence in _REAL]
    if not any(case.volume_ml is not None and case.fault is None for case in real):
        return Grade.BRONZE
    if not any(case.fault for case in real):
        return Grade.SILVER
    if not any(case.evidence == "field" and case.volume_ml is not None for case in real):
        return Grade.GOLD
    return Grade.PLATINUM
