"""Who is away: at most one absence and one set of quiet hours a meter, each with an end, and what ends it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from partners.memories import DAY_MS, START_MS, absence

from agent.absences import ENDED_PER_METER_MAX, TOLD_MS, Absences, is_within, minute_of_day
from protocols import contract
from protocols.contract import ABSENCES_MAX, Daily, Ending, Leaf, State

NIGHT = Daily(start="22:00", end="06:00")
NOON = Daily(start="12:00", end="14:00")
UNTIL_MS = START_MS + 10 * DAY_MS


def test_somebody_is_away_from_the_beginning_and_before_the_end():
    absences = Absences([absence(1)])
    assert absences.excuse("m-001", START_MS - 1) is None
    assert absences.excuse("m-001", START_MS) == UNTIL_MS
    assert absences.excuse("m-001", UNTIL_MS - 1) == UNTIL_MS
    assert absences.excuse("m-001", UNTIL_MS) is None
    assert absences.excuse("m-002", START_MS) is None
    assert not absences.quiet("m-001", START_MS, 23 * 60), "an absence is no quiet hour"


def test_quiet_hours_excuse_no_absence():
    absences = Absences([absence(1, daily=NIGHT)])
    assert absences.excuse("m-001", START_MS) is None
    assert absences.quiet("m-001", START_MS, 22 * 60)
    assert not absences.quiet("m-001", START_MS, 12 * 60)
    assert not absences.quiet("m-001", UNTIL_MS, 22 * 60), "they end, too"
    assert not absences.quiet("m-001", START_MS - 1, 22 * 60)


@pytest.mark.parametrize(
    ("daily", "inside", "outside"),
    [
        (NIGHT, ["22:00", "23:59", "00:00", "05:59"], ["06:00", "21:59", "12:00"]),
        (NOON, ["12:00", "13:59"], ["11:59", "14:00", "00:00"]),
        (Daily(start="00:00", end="23:59"), ["00:00", "23:58"], ["23:59"]),
        (Daily(start="23:59", end="00:00"), ["23:59"], ["00:00", "23:58"]),
    ],
)
def test_daily_hours_may_reach_over_midnight(daily, inside, outside):
    assert all(is_within(daily, minute_of_day(time)) for time in inside)
    assert not any(is_within(daily, minute_of_day(time)) for time in outside)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_every_minute_lies_in_some_hours_or_in_the_others(start, end, minute):
    if start != end:

        def hours(one, other):
            return Daily(start=f"{one // 60:02}:{one % 60:02}", end=f"{other // 60:02}:{other % 60:02}")

        assert is_within(hours(start, end), minute) != is_within(hours(end, start), minute)


def test_a_newer_absence_takes_the_place_of_the_earlier_and_quiet_hours_of_theirs():
    absences = Absences()
    for first in (absence(1), absence(2, daily=NIGHT), absence(3, "m-002")):
        assert absences.declare(first) == (first, [first])
    shorter, noon = absence(4, until_ms=START_MS + DAY_MS), absence(5, daily=NOON)
    replaced = absence(1).ended(Ending.REPLACED, at_ms=START_MS + 4)
    assert absences.declare(shorter) == (shorter, [replaced, shorter])
    assert absences.excuse("m-001", START_MS + 5) == START_MS + DAY_MS
    replaced = absence(2, daily=NIGHT).ended(Ending.REPLACED, at_ms=START_MS + 5)
    assert absences.declare(noon) == (noon, [replaced, noon])
    assert absences.quiet("m-001", START_MS + 6, 13 * 60)
    assert not absences.quiet("m-001", START_MS + 6, 23 * 60)


def test_the_same_declaration_again_changes_nothing():
    absences = Absences()
    absences.declare(absence(1))
    assert absences.declare(absence(1)) == (absence(1), [])
    assert absences.excuse("m-001", START_MS) == UNTIL_MS


def test_a_declaration_that_ended_is_not_opened_by_its_repetition():
    absences = Absences()
    absences.declare(absence(1))
    ended = absences.end("m-001", START_MS + 5, by=Ending.COMMAND)
    assert absences.declare(absence(1, start_ms=START_MS + 9)) == (ended, [])
    assert absences.excuse("m-001", START_MS + 9) is None


def used(absences, after_ms, wall_ms, *, is_dated=True):
    return absences.end_by_use("m-001", wall_ms, after_ms=after_ms, is_dated=is_dated)


def test_water_ends_an_absence_that_has_begun_and_no_quiet_hours():
    absences = Absences([absence(1, start_ms=START_MS + DAY_MS), absence(2, daily=NIGHT)])
    assert used(absences, START_MS - 5, START_MS) is None, "it has not begun"
    used_ms = START_MS + 2 * DAY_MS
    ended = used(absences, used_ms - 5, used_ms)
    assert (ended.id, ended.ended_ms, ended.ended_by) == (absence(1).id, used_ms, Ending.USE)
    assert absences.excuse("m-001", used_ms + 1) is None
    assert used(absences, used_ms, used_ms + 1) is None
    assert absences.quiet("m-001", used_ms, 23 * 60)


def test_water_that_may_have_run_before_an_absence_began_does_not_end_it():
    absences = Absences([absence(1)])
    assert used(absences, START_MS - 1, START_MS + 1) is None
    assert absences.excuse("m-001", START_MS + 2) == UNTIL_MS
    assert used(absences, START_MS, START_MS + 2).ended_ms == START_MS + 2


def test_water_that_is_used_while_nobody_knows_the_time_ends_what_may_have_begun():
    """The reading lies after everything that a synced clock ever dated, whatever the clock says now."""
    absences = Absences([absence(1)])
    absences.heed(START_MS + DAY_MS)
    ended = used(absences, 0, 5, is_dated=False)
    assert (ended.ended_by, ended.ended_ms) == (Ending.USE, START_MS + DAY_MS)
    assert absences.excuse("m-001", START_MS + DAY_MS) == UNTIL_MS, "the past stays as it was"
    assert absences.excuse("m-001", START_MS + DAY_MS + 1) is None


def test_water_that_is_used_while_nobody_knows_the_time_ends_nothing_that_is_to_come():
    absences = Absences([absence(1, start_ms=START_MS + 5 * DAY_MS)])
    absences.heed(START_MS + DAY_MS)
    assert used(absences, 0, START_MS + 2 * DAY_MS, is_dated=False) is None
    assert used(absences, 0, START_MS + 6 * DAY_MS, is_dated=False).ended_ms == START_MS + DAY_MS, "it may have begun"


@pytest.mark.parametrize("is_dated", [True, False])
def test_water_that_is_used_when_an_absence_is_over_does_not_end_it_once_more(is_dated):
    """It ended by its time, whoever asks later, though nobody has written that down yet."""
    absences = Absences([absence(1)])
    absences.heed(UNTIL_MS + 5)
    assert used(absences, UNTIL_MS + 3, UNTIL_MS + 5, is_dated=is_dated) is None
    assert absences.expire(UNTIL_MS + 5) == [absence(1).ended(Ending.TIME, at_ms=UNTIL_MS)]


def test_an_absence_of_which_no_synced_reading_is_left_ends_where_it_was_declared():
    absences = Absences([absence(7)])
    assert used(absences, 0, 5, is_dated=False).ended_ms == START_MS + 7


def test_the_past_stays_as_it_was():
    """A rebuild from stored readings sees the absence that stood then, the reading that ended it included."""
    absences = Absences([absence(1)])
    used_ms = START_MS + DAY_MS
    used(absences, used_ms - 1, used_ms)
    again = Absences([one for of_meter in absences._of_meter.values() for one in of_meter])
    for known in (absences, again):
        assert known.excuse("m-001", used_ms - 1) == UNTIL_MS
        assert known.excuse("m-001", used_ms) == UNTIL_MS
        assert known.excuse("m-001", used_ms + 1) is None


def test_a_command_ends_the_absence_then_the_quiet_hours_then_nothing():
    absences = Absences([absence(1, start_ms=START_MS + DAY_MS), absence(2, daily=NIGHT)])
    ended = [absences.end("m-001", START_MS, by=Ending.COMMAND) for _ in range(3)]
    assert [one and one.daily for one in ended] == [None, NIGHT, None]
    assert ended[0].ended_by is Ending.COMMAND, "one that is to come, too"
    assert ended[2] is None


def test_a_command_of_which_nobody_knows_the_time_ends_an_absence_where_the_time_was_last_known():
    """Neither in a past that somebody was away in, nor (a clock that runs ahead) some day in the future."""
    for wall_ms in (0, UNTIL_MS + 900 * DAY_MS):
        absences = Absences([absence(1)])
        absences.heed(START_MS + 3 * DAY_MS)
        ended = absences.end("m-001", wall_ms, by=Ending.COMMAND, is_dated=False)
        assert ended.ended_ms == START_MS + 3 * DAY_MS
        assert absences.excuse("m-001", START_MS + 3 * DAY_MS) == UNTIL_MS
        assert absences.excuse("m-001", START_MS + 3 * DAY_MS + 1) is None


def test_a_synced_clock_that_was_set_back_is_believed():
    """The newest word counts, not the highest: else an absence would stand until a day that was never."""
    absences = Absences([absence(1)])
    absences.heed(UNTIL_MS - 1)
    absences.heed(START_MS + 5)
    assert absences.end("m-001", 0, by=Ending.COMMAND, is_dated=False).ended_ms == START_MS + 5


def test_time_ends_all_of_them_once():
    absences = Absences([absence(1), absence(2, daily=NIGHT), absence(3, "m-002", until_ms=UNTIL_MS + 1)])
    assert absences.expire(UNTIL_MS - 1) == []
    assert absences.expire(UNTIL_MS) == [
        absence(1).ended(Ending.TIME, at_ms=UNTIL_MS),
        absence(2, daily=NIGHT).ended(Ending.TIME, at_ms=UNTIL_MS),
    ]
    assert absences.expire(UNTIL_MS) == []
    assert absences.end("m-001", UNTIL_MS, by=Ending.COMMAND) is None


def test_what_is_over_is_not_ended_by_anything_else_and_a_new_one_says_so():
    absences = Absences([absence(1)])
    assert absences.end("m-001", UNTIL_MS, by=Ending.COMMAND) is None
    later = absence(UNTIL_MS - START_MS + 5, start_ms=UNTIL_MS + 5, until_ms=UNTIL_MS + DAY_MS)
    assert absences.declare(later) == (later, [absence(1).ended(Ending.TIME, at_ms=UNTIL_MS), later])


def test_the_county_is_told_what_stands_and_what_ended_lately():
    absences = Absences([absence(1), absence(2, "m-002", start_ms=START_MS + DAY_MS)])
    used(absences, START_MS + 4, START_MS + 5)
    assert [(one.meter, one.ended_by) for one in absences.notices(START_MS + 6)] == [
        ("m-001", Ending.USE),
        ("m-002", None),
    ]
    assert [one.meter for one in absences.notices(START_MS + 5 + TOLD_MS)] == ["m-002"]
    assert [(one.meter, one.ended_by) for one in absences.notices(UNTIL_MS)] == [("m-002", Ending.TIME)]


def test_a_birth_names_everybody_who_is_away_and_as_many_of_the_others_as_the_contract_allows():
    absences, number = Absences(), 0
    meters = [f"m-{meter:03}" for meter in range(1, 201)]
    for _day in range(7):
        for meter in meters:
            number += 1
            absences.declare(absence(number, meter, daily=NIGHT))
    for meter in meters:
        number += 1
        absences.declare(absence(number, meter))
    told = absences.notices(START_MS + number)
    assert len(told) == ABSENCES_MAX
    assert sum(1 for one in told if one.ended_by is None) == 2 * len(meters)
    assert sorted(told, key=lambda one: (one.meter, one.start)) == list(told)
    ended = [one.ended_at for one in told if one.ended_by]
    assert min(ended) == contract.instant(START_MS + 7 * 200 - (ABSENCES_MAX - 400) + 1), "the newest of them"
    birth = State(schema=contract.STATE_SCHEMA, online=True, absences=told)
    assert contract.decode(Leaf.STATE, contract.encode(birth)) == birth


def test_what_ended_is_bounded_and_what_stands_stays():
    absences = Absences([absence(0, daily=NIGHT)])
    for number in range(1, 100):
        absences.declare(absence(number))
        absences.end("m-001", START_MS + number, by=Ending.COMMAND)
    assert len(absences._of_meter["m-001"]) <= ENDED_PER_METER_MAX + 2
    assert absences.quiet("m-001", START_MS + 100, 23 * 60)


def test_what_cannot_be_stored_never_was():
    absences = Absences([absence(1)])
    for change in (
        lambda: absences.declare(absence(2)),
        lambda: absences.declare(absence(3, daily=NIGHT)),
        lambda: absences.end("m-001", START_MS, by=Ending.COMMAND),
    ):
        with pytest.raises(OSError), absences.unless_failing("m-001"):
            change()
            raise OSError
        assert absences.excuse("m-001", START_MS + 1) == UNTIL_MS
        assert [one.id for one in absences._of_meter["m-001"]] == [absence(1).id]
        assert not absences.quiet("m-001", START_MS + 5, 23 * 60)
    with absences.unless_failing("m-001"):
        absences.end("m-001", START_MS, by=Ending.COMMAND)
    assert absences.excuse("m-001", START_MS + 1) is None
