"""Columns: found by name, never guessed."""

import pytest

from agent.backtest.columns import Columns, Layout, layout, parse_columns
from agent.backtest.problems import InputProblem


def test_a_name_says_what_its_litres_are():
    header = ["timestamp", "meter", "litres_cum"]
    assert layout(header, place="f", columns=None, values=None) == Layout(0, 1, 2, "cumulative")
    header = ["meter", "other", "litres_interval", "timestamp"]
    assert layout(header, place="f", columns=None, values=None) == Layout(3, 0, 2, "interval")


def test_plain_litres_are_not_guessed():
    header = ["timestamp", "meter", "litres"]
    with pytest.raises(InputProblem, match="--values cumulative or --values interval"):
        layout(header, place="f.csv", columns=None, values=None)
    assert layout(header, place="f", columns=None, values="interval").values == "interval"


def test_a_name_and_an_option_that_contradict_each_other_are_refused():
    with pytest.raises(InputProblem, match="says cumulative, --values says interval"):
        layout(["timestamp", "meter", "litres_cum"], place="f", columns=None, values="interval")


def test_other_names():
    columns = parse_columns("timestamp_local, household ,litres_cum")
    assert columns == Columns("timestamp_local", "household", "litres_cum")
    found = layout(["household", "timestamp_local", "litres_cum"], place="f", columns=columns, values=None)
    assert found == Layout(1, 0, 2, "cumulative")


def test_no_column_of_meters_means_a_home_per_file():
    assert layout(["t", "v"], place="f", columns=parse_columns("t,,v"), values="interval") == Layout(
        0, None, 1, "interval"
    )


@pytest.mark.parametrize("text", ["a,b", "a,b,c,d", ",b,c", "a,b,", ""])
def test_columns_that_are_not_three(text):
    with pytest.raises(InputProblem, match="TIMESTAMP,METER,LITRES"):
        parse_columns(text)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["timestamp", "litres"], "'meter' is missing"),
        ([], "'timestamp' is missing"),
        (["timestamp", "meter", "meter", "litres"], "'meter' is there twice"),
        (["timestamp", "meter", "litres", "litres_cum"], "both hold litres"),
    ],
)
def test_a_header_that_does_not_fit(header, message):
    with pytest.raises(InputProblem, match=message):
        layout(header, place="f.csv", columns=None, values="interval")
