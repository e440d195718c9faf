"""docs/backtest.md names options, keys and columns that exist, and its sample of readings is one that can be read."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import typer.testing

from agent.backtest import cli
from agent.backtest.rules import parse_rules

DOCUMENT = (Path(__file__).parents[3] / "docs" / "backtest.md").read_text(encoding="utf-8")
GROUP = typer.main.get_command(cli.app)
COMMANDS = re.findall(r"^shuiwang ((?:backtest|advise) .*)$", DOCUMENT, re.MULTILINE)


def options_of(command):
    return {name for parameter in GROUP.get_command(None, command).params for name in parameter.opts}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line):
    command, *arguments = shlex.split(line)
    context = GROUP.get_command(None, command).make_context(command, arguments, resilient_parsing=False)
    assert parse_rules(context.params.get("rules") or [])


def test_there_are_commands_to_test():
    assert {line.split()[0] for line in COMMANDS} == {"backtest", "advise"}
    assert len(COMMANDS) >= 6


def test_every_option_is_documented_and_exists():
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", DOCUMENT))
    known = options_of("backtest") | options_of("advise")
    assert named - {"--nthreads", "--nworkers"} <= known
    assert {name for name in options_of("backtest") if name.startswith("--")} - {"--help", "--meter"} <= named


def test_the_keys_of_rule_sets_are_those_of_the_table():
    keys = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", DOCUMENT.partition("## Rule sets")[2], re.MULTILINE)
    values = {
        "window_h": "8",
        "threshold_m3": "0.02",
        "red_cost_h": "300",
        "red_after_h": "12",
        "fixed_h": "9",
        "red": "off",
    }
    assert {key for pair in keys for key in pair if key} == set(values)
    (rule,) = parse_rules(["all=" + ",".join(f"{key}:{value}" for key, value in values.items())])
    assert (rule.cost_h, rule.cold_h, rule.fixed_h, rule.red) == (300, 12, 9, False)


def test_the_sample_can_be_read(tmp_path):
    (sample,) = re.findall(r"```csv\n(.*?)```", DOCUMENT, re.DOTALL)
    path = tmp_path / "sample.csv"
    path.write_text(sample, encoding="utf-8")
    arguments = ["backtest", str(path), "--timezone", "Asia/Shanghai", "--jobs", "1"]
    done = typer.testing.CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.stderr
    assert "2 homes, 3 readings" in done.stdout
