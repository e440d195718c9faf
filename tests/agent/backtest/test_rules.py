"""Rule sets as they are given on the command line."""

import pytest

from agent.backtest.problems import InputProblem
from agent.backtest.rules import DEFAULT, RuleSet, parse_rules
from agent.detection.limit import COST_H


def test_the_default_is_the_county_s_rule_with_our_red_and_fixed_ones():
    assert parse_rules([]) == DEFAULT
    assert DEFAULT[0] == RuleSet(name="home", window_ms=12 * 3_600_000, threshold_ml=100_000, cost_h=COST_H)
    assert [rule.fixed_h for rule in DEFAULT] == [None, 12, 16]


def test_every_key():
    (rule,) = parse_rules(["x = window_h:24, threshold_m3:0.0105 ,red_cost_h:400,red_after_h:12"])
    assert rule == RuleSet(name="x", window_ms=24 * 3_600_000, threshold_ml=10_500, cost_h=400, cold_h=12)
    assert parse_rules(["y=red:off", "z=fixed_h:20"]) == (RuleSet(name="y", red=False), RuleSet(name="z", fixed_h=20))
    assert parse_rules(["plain="])[0] == RuleSet(name="plain")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("window_h:12", "NAME=key:value"),
        ("a=hours:12", "'hours' is no key"),
        ("a=window_h:0", "more than 0"),
        ("a=window_h:169", "at most 168"),
        ("a=window_h:nan", "more than 0"),
        ("a=threshold_m3:0.1,5", "'5' is no key"),
        ("a=threshold_m3:0.0000001", "millilitre"),
        ("a=threshold_m3:some", "is no number"),
        ("a=red_cost_h:49", "50 to 8000"),
        ("a=fixed_h:25", "6 to 24"),
        ("a=red:yes", "home or off"),
        ("a=window_h:12,window_h:13", "given twice"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(InputProblem, match=message):
        parse_rules([text])


def test_two_of_one_name_are_refused():
    with pytest.raises(InputProblem, match="two rule sets are called 'a'"):
        parse_rules(["a=", "a=red:off"])


def test_a_fixed_limit_never_learns(life):
    watch, own = RuleSet(name="f", fixed_h=13).watch(), RuleSet(name="o").watch()
    home = life(days=40)
    for reading in zip(home.times, home.hours, home.values, strict=True):
        watch.feed(*reading)
        own.feed(*reading)
        assert watch.limit.limit_h == 13
    assert own.limit.learned
    assert own.limit.limit_h != 16


def test_rule_sets_say_themselves_in_words():
    assert [
        rule.in_words for rule in parse_rules(["a=threshold_m3:0.010", "b=fixed_h:14", "c=window_h:24,red:off"])
    ] == [
        "yellow: less than 0.01 m³ in 12 h; red: no real use for longer than the home's own limit (red_cost_h 1500)",
        "yellow: less than 0.1 m³ in 12 h; red: no real use for 14 h in any home",
        "yellow: less than 0.1 m³ in 24 h; no red",
    ]
