"""A grade is earned by evidence; each step needs exactly what it says."""

import datetime

import pytest

from agent.technician.grading import Grade, evidence_of
from protocols import profile
from protocols.profile import Case, Exchange

XINTAI = profile.load("xintai")
EXCHANGE = (Exchange(request="00", response="00"),)


def case(evidence, *, volume_ml=1, fault=None):
    day, place = (datetime.date(2026, 11, 21), "g-0371522") if evidence == "field" else (None, "")
    return Case(
        exchange=EXCHANGE, source="x", evidence=evidence, volume_ml=volume_ml, fault=fault, date=day, place=place
    )


REFUSED = {"volume_ml": None, "fault": "garbled"}
LADDER = {
    "constructed only": ([case("constructed")], Grade.BRONZE),
    "manual too": ([case("constructed"), case("manual")], Grade.BRONZE),
    "a fault that somebody built": ([case("manual"), case("constructed", **REFUSED)], Grade.BRONZE),
    "a captured fault alone": ([case("constructed"), case("capture", **REFUSED)], Grade.BRONZE),
    "a capture": ([case("capture")], Grade.SILVER),
    "a capture and a built fault": ([case("capture"), case("constructed", **REFUSED)], Grade.SILVER),
    "a field check without fault": ([case("field")], Grade.SILVER),
    "a capture and a captured fault": ([case("capture"), case("capture", **REFUSED)], Grade.GOLD),
    "a captured flag": ([case("capture"), case("capture", fault="battery_low")], Grade.GOLD),
    "everything": ([case("field"), case("capture", **REFUSED)], Grade.PLATINUM),
}


@pytest.mark.parametrize(("cases", "grade"), LADDER.values(), ids=LADDER)
def test_the_ladder(cases, grade):
    graded = profile.Profile(
        head=XINTAI.head, line=XINTAI.line, timing=XINTAI.timing, spec=XINTAI.spec, cases=tuple(cases)
    )
    assert evidence_of(graded).grade is grade


def test_the_profiles_that_come_with_shuiwang_earn_what_their_files_hold():
    for name in profile.built_in_names():
        loaded = profile.load(name)
        evidence = evidence_of(loaded)
        counts = evidence.constructed + evidence.manual + evidence.capture + evidence.field
        assert counts == len(loaded.cases)
        assert (evidence.grade is Grade.BRONZE) == (evidence.capture + evidence.field == 0)
