"""The lifecycle of an alert: what the tables allow, and that docs/alerts.md says what the code does."""

import datetime
import importlib
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from partners.alert_stories import STORIES

from agent.alerts import (
    LOW_USAGE_STEPS,
    OTHER_STEPS,
    REMIND_ACKNOWLEDGED_MS,
    REMIND_MS,
    is_acknowledged,
    low_usage_signals,
    next_step,
    take,
)
from agent.command_texts import Words
from agent.detection.register import MEANING
from agent.detection.window import ENOUGH, LOW, UNSURE
from agent.settings import duration_in_words, volume_in_words
from county.command_cli import acknowledge
from protocols.contract import AlertState, Kind, Level, Result, Transition, instant

DOCUMENT = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text(encoding="utf-8")
SIGNALS = sorted({signal for _, signal in (*LOW_USAGE_STEPS, *OTHER_STEPS)})
NOT_RAISED = {Kind.STORAGE_DEGRADED, Kind.CLOCK_UNTRUSTED}
REMOVED = "the meter is no longer in the gateway's configuration"


@pytest.fixture(scope="module")
def stories():
    return {name: story() for name, story in STORIES.items()}


@pytest.fixture(scope="module")
def told(stories):
    return [step for story in stories.values() for step in story.steps]


def section(heading):
    """The text below a heading, up to the next one of its level or above."""
    level = heading.split()[0]
    lines = DOCUMENT[DOCUMENT.index(f"\n{heading}\n") + len(heading) + 2 :].splitlines()
    ends = [i for i, line in enumerate(lines) if re.match(rf"#{{1,{len(level)}}} ", line)]
    return "\n".join(lines[: ends[0]] if ends else lines)


def rows(heading):
    """The rows of the first table below a heading, without its head; cells without backticks."""
    found = re.search(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n?)+)", section(heading), re.MULTILINE)
    assert found, heading
    cells = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in found[1].splitlines()]
    return [[re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in row] for row in cells]


# -- the tables --------------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(sorted(set(Kind) - NOT_RAISED)),
    signals=st.lists(st.sampled_from([*SIGNALS, UNSURE]), max_size=60),
)
def test_whatever_is_shown_an_episode_begins_ends_and_keeps_its_id(kind, signals):
    episode, steps, ids = None, [], iter(range(1000))
    for number, signal in enumerate(signals):
        step = next_step(kind, "m-1", episode and episode.level, signal)
        if step is None:
            continue
        episode = take(
            step,
            episode,
            since=instant(number),
            wall_ms=number,
            evidence={"n": number},
            new_id=lambda: f"01ARZ3NDEKTSV4RRFFQ69G{next(ids):04d}",
            words=lambda step, body: {"zh": body.id, "en": str(step.signal)},
        )
        steps.append(episode)
        if episode.state is AlertState.CLEARED:
            episode = None
    by_id = {}
    for step in steps:
        by_id.setdefault(step.id, []).append(step)
    assert list(by_id) == sorted(by_id), "one after the other"
    for steps_of_one in by_id.values():
        transitions = [step.transition for step in steps_of_one]
        assert transitions.count(Transition.OPENED) == transitions.index(Transition.OPENED) + 1 == 1
        assert Transition.CLEARED not in transitions[:-1]
        assert len({step.since for step in steps_of_one}) == 1
        levels = [step.level for step in steps_of_one]
        assert levels == sorted(levels, reverse=True), "yellow before red, never back"
        for before, after in itertools.pairwise(steps_of_one):
            if after.transition is Transition.REMINDED:
                assert (before.state, before.level) == (after.state, after.level)
        if kind is not Kind.LOW_USAGE:
            assert set(levels) == {Level.YELLOW}


@pytest.mark.parametrize("kind", sorted(set(Kind) - NOT_RAISED))
@pytest.mark.parametrize("level", [None, *Level])
def test_what_is_unsure_changes_nothing(kind, level):
    assert next_step(kind, "m-1", level, UNSURE) is None


@pytest.mark.parametrize("low", [LOW, ENOUGH, UNSURE])
@pytest.mark.parametrize("red", ["", "limit", "day"])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("remind", [False, True])
class TestSignals:
    def test_an_absence_silences_everything_else(self, low, red, used, remind):
        for quiet in (False, True):
            assert low_usage_signals(low=low, red=red, used=used, away=True, quiet=quiet, remind=remind) == ("away",)

    def test_quiet_hours_hold_back_what_would_begin_but_neither_an_end_nor_a_day_without_use(
        self, low, red, used, remind
    ):
        loud, quiet = (
            list(low_usage_signals(low=low, red=red, used=used, away=False, quiet=quiet, remind=remind))
            for quiet in (False, True)
        )
        held_back = {LOW} | ({"red"} if red != "day" else set())
        assert quiet == [signal for signal in loud if signal not in held_back]

    def test_use_is_heeded_first_and_nobody_is_reminded_of_a_home_that_uses_water(self, low, red, used, remind):
        signals = list(low_usage_signals(low=low, red=red, used=used, away=False, quiet=False, remind=remind))
        assert signals[0] == "used" if used else "used" not in signals
        assert ("still_red" in signals) == (remind and not used)
        assert ("red" in signals) == bool(red)
        assert signals[-1] == low


# -- the document ------------------------------------------------------------------------------------------------------


def shown(table):
    return [
        [str(level or "–"), signal, str(transition), str(after)]
        for (level, signal), (transition, after) in table.items()
    ]


def test_the_documents_tables_of_steps_are_those_of_the_code():
    assert rows("### Steps of `low_usage`") == shown(LOW_USAGE_STEPS)
    assert rows("### Steps of the other kinds") == shown(OTHER_STEPS)


def test_every_signal_is_explained_in_the_order_in_which_it_is_heeded():
    explained = [signal for signal, _ in rows("### What a reading shows")]
    assert sorted(explained) == SIGNALS
    heeded = ["away", "used", "red", "still_red", "low"]
    assert [signal for signal in explained if signal in heeded] == heeded
    every = low_usage_signals(low=LOW, red="day", used=True, away=False, quiet=False, remind=False)
    assert list(every) == ["used", "red", "low"]


def test_every_kind_is_in_the_document_and_those_that_are_never_raised_say_so(told):
    kinds = {row[0]: row[1] for row in rows("## The kinds")}
    assert set(kinds) == set(Kind)
    assert {kind for kind, raised in kinds.items() if raised.startswith("never")} == NOT_RAISED
    assert {step.kind for step in told} == set(Kind) - NOT_RAISED


def test_the_stories_take_every_step_of_the_tables(stories):
    """Else the two tests below would not see every key and every word."""
    taken = set()
    for story in stories.values():
        levels = {}
        for step in story.steps:
            signal = step.evidence.get("reason", "")
            signal = "still_red" if step.transition is Transition.REMINDED else signal
            signal = "red" if signal in {"limit", "day"} else signal
            taken.add((step.kind, levels.get(step.id), signal, step.transition))
            levels[step.id] = step.level
    low_usage = {(level, signal, transition) for kind, level, signal, transition in taken if kind is Kind.LOW_USAGE}
    expected = {(level, signal, transition) for (level, signal), (transition, _) in LOW_USAGE_STEPS.items()}
    assert low_usage - {(Level.YELLOW, REMOVED, Transition.CLEARED)} == expected
    others = {(kind, transition) for kind, _, _, transition in taken if kind is not Kind.LOW_USAGE}
    kinds = set(Kind) - NOT_RAISED - {Kind.LOW_USAGE}
    assert others == {(kind, step) for kind in kinds for step in (Transition.OPENED, Transition.CLEARED)}


UNITS = {
    "mL": lambda value: isinstance(value, int) and value >= 0,
    "mL/h": lambda value: isinstance(value, int) and value >= 0,
    "h": lambda value: isinstance(value, int | float) and value >= 0,
    "min": lambda value: isinstance(value, int) and value >= 0,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "time": lambda value: value.endswith("Z") and datetime.datetime.fromisoformat(value),
    "text": lambda value: isinstance(value, str) and value,
    "name": lambda value: isinstance(value, str) and value,
    "names": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "object": lambda value: isinstance(value, dict) and value,
    "yes/no": lambda value: isinstance(value, bool),
}
ENDINGS = {"_ml": "mL", "_ml_h": "mL/h", "_h": "h", "_min": "min"}


def documented_keys(kind):
    return {key: unit for key, unit, _ in rows(f"### `{kind}`")}


def test_every_key_of_the_evidence_is_documented_and_every_documented_one_is_sent(told):
    common = {key: unit for key, unit, _ in rows("### any kind")}
    for kind in set(Kind) - NOT_RAISED:
        sent = {key for step in told if step.kind is kind for key in step.evidence}
        assert sent - common.keys() == documented_keys(kind).keys() - common.keys(), kind
    assert {key for step in told for key in step.evidence} >= common.keys()


def test_every_value_of_the_evidence_is_of_its_documented_unit(told):
    common = {key: unit for key, unit, _ in rows("### any kind")}
    for step in told:
        units = common | documented_keys(step.kind)
        for key, value in step.evidence.items():
            null_is_documented = f"`{key}`" in section(f"### `{step.kind}`") and value is None
            assert null_is_documented or UNITS[units[key]](value), (step.kind, key, value)


def test_a_keys_name_ends_in_its_unit():
    for kind in set(Kind) - NOT_RAISED:
        for key, unit in documented_keys(kind).items():
            ending = max((end for end in ENDINGS if key.endswith(end)), key=len, default="")
            assert ENDINGS.get(ending, unit) == unit, (kind, key)
            assert bool(ending) == (unit in ENDINGS.values()), (kind, key)


def test_what_low_usage_gives_as_its_reason_is_documented(told):
    reasons = {step.evidence["reason"] for step in told if step.kind is Kind.LOW_USAGE}
    meaning = next(row[2] for row in rows("### `low_usage`") if row[0] == "reason")
    assert reasons - {REMOVED} == set(re.findall(r"`(\w+)`", meaning))


def test_the_parts_of_a_suspicion_and_of_what_the_county_said_are_documented(told):
    meanings = {row[0]: row[2] for row in rows("### any kind")}
    for key, parts in (("suspicion", {"kind", "since", "alert"}), ("county", set())):
        sent = {part for step in told for part in step.evidence.get(key, {})} | parts
        assert sent <= set(re.findall(r"`(\w+)`", meanings[key]))
    assert {step.evidence["suspicion"]["kind"] for step in told if "suspicion" in step.evidence} == {
        Kind.BUS_FAULT,
        Kind.SUPPLY_OUTAGE,
    }
    said = {code for row in rows("## The county's say") for code in re.findall(r"with `(\w+)`", row[0])}
    assert said == set(Result)


def test_every_reason_code_of_a_reading_is_documented_in_both_languages(stories):
    assert rows("## Reason codes of readings") == [[code, *meaning] for code, meaning in MEANING.items()]


def test_the_example_sentences_are_printed_by_the_code(told):
    sentences = {(step.text["zh"], step.text["en"]) for step in told}
    for example in rows("## What the words say"):
        assert tuple(example[1:]) in sentences, example


def in_words(name, value):
    """A constant as the document writes it, by the unit in which its name ends."""
    if name in {"DAY_MIN", "LEARN_MIN", "EARLY_MIN"}:
        return duration_in_words(60_000 * value)
    if "_MS" in name:
        return duration_in_words(value)
    if "_ML" in name:
        return volume_in_words(value)
    return f"{value:g} h" if name.endswith("_H") else f"{value:g}"


CONSTANTS = rows("## The constants")


@pytest.mark.parametrize(("value", "constant"), [row[1:3] for row in CONSTANTS])
def test_every_constant_has_the_documented_value(value, constant):
    module, _, name = constant.rpartition(".")
    assert in_words(name, getattr(importlib.import_module(module), name)) == value


def test_what_is_said_of_the_constants_elsewhere_in_the_document_agrees():
    values = {row[2].rpartition(".")[2]: row[1] for row in CONSTANTS}
    for heading, name in (
        ("## Reminders", "REMIND_MS"),
        ("## The kinds", "SILENT_MS"),
        ("## The kinds", "BURST_ML_H"),
        ("## The kinds", "BURST_ML_DAY"),
        ("## The kinds", "LEAK_AFTER_MS"),
        ("## The kinds", "LEAK_ENDS_MS"),
        ("## The kinds", "TOGETHER_MS"),
        ("## The kinds", "STILL_MS_MIN"),
        ("## What limits it", "COLD_H"),
        ("## Absences and quiet hours", "ABSENCE_DAYS_MAX"),
    ):
        assert re.search(rf"\b{re.escape(values[name])}\b", section(heading)), (heading, name)


def test_whoever_acknowledges_is_told_how_often_the_alert_is_repeated_then():
    contract_document = (Path(__file__).parents[2] / "docs" / "contract.md").read_text(encoding="utf-8")
    after_h, before_h = REMIND_ACKNOWLEDGED_MS // 3_600_000, REMIND_MS // 3_600_000
    reply = Words(datetime.UTC).acknowledged("01ARZ3NDEKTSV4RRFFQ69G0001")
    assert f"每 {after_h} 小时提醒一次" in reply["zh"]
    assert f"repeated every {after_h} h" in reply["en"]
    refused = Words(datetime.UTC).said_before_red("01ARZ3NDEKTSV4RRFFQ69G0001")
    assert f"每 {before_h} 小时提醒一次" in refused["zh"]
    assert f"repeated every {before_h} h" in refused["en"]
    (row,) = re.findall(r"^\| `acknowledge` \|.*$", contract_document, re.MULTILINE)
    (transition,) = re.findall(r"^- `transition` .*\n.*$", contract_document, re.MULTILINE)
    for text in (row, transition, acknowledge.__doc__):
        assert {f"every {before_h} h", f"every {after_h} h"} <= set(re.findall(r"every \d+ h", text)), text


def test_what_the_county_has_said_is_what_makes_an_alert_acknowledged(told):
    said = [step for step in told if "county" in step.evidence]
    assert said
    assert all(map(is_acknowledged, said))
    assert not any(is_acknowledged(step) for step in told if step not in said)
