"""The command line as its users meet it: help, exit codes, JSON, and documents that agree with it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from partners.processes import run_shuiwang
from readings import shows, silent

from agent import cli
from agent.exit_codes import ExitCode
from gateway.store import Store

ROOT = Path(__file__).parents[2]
CONFIG = """
[gateway]
id = "g-1"
county = "shenxian"
data_dir = "data"

[broker]
url = "mqtt://127.0.0.1:1"

[[bus]]
name = "rs485-1"
port = "/dev/null"
"""
METER = """
[[meter]]
id = "{id}"
bus = "rs485-1"
profile = "usw-dn15-40"
address = "{address}"
"""
GROUP = typer.main.get_command(cli.app)
COMMANDS = sorted(GROUP.list_commands(None))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "shuiwang.toml"
    path.write_text(
        CONFIG + METER.format(id="m-1", address="1") + METER.format(id="m-2", address="2"), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_and_has_help(command):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`shuiwang {command}" in readme
    assert GROUP.get_command(None, command).help


def test_the_readme_names_no_command_that_does_not_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`shuiwang ([a-z]+)", readme)) <= set(COMMANDS)


def test_the_readme_lists_the_exit_codes_as_they_are():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", readme, re.MULTILINE)
    assert table == [(str(code.value), code.name, code.meaning) for code in ExitCode]


def options_with_numbers(command, *names):
    for parameter in command.params:
        if "float" in parameter.type.name:
            yield [*names], parameter
    for name in getattr(command, "list_commands", lambda _: [])(None):
        yield from options_with_numbers(command.get_command(None, name), *names, name)


@pytest.mark.parametrize(
    ("names", "option"),
    list(options_with_numbers(GROUP)),
    ids=lambda value: "-".join(value) if isinstance(value, list) else value.name,
)
def test_no_option_takes_a_number_that_is_none(names, option):
    """Every range lets `nan` pass, and nothing ever ends that waits for it."""
    for text in ("nan", "-nan", "inf", "NaN"):
        with pytest.raises(Exception, match=r"no number of seconds|not in the range"):
            option.type_cast_value(None, text)
            option.callback(None, option, option.type_cast_value(None, text))


def test_there_are_options_with_numbers():
    assert len(list(options_with_numbers(GROUP))) >= 7, "the test above looks at nothing"


@pytest.mark.parametrize("arguments", [["--watch=nan"], ["--watch", "nan"], ["-w", "inf"]])
def test_watching_every_nan_seconds_is_refused(arguments):
    done = run_shuiwang("read", "--port", "/dev/null", "--profile", "xintai", "--address", "1", *arguments)
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["110302040004E206E0"], ["110302040004E206E0", "--json"], ["1103"]])
def test_a_full_disk_behind_stdout_is_one_line(arguments):
    with Path("/dev/full").open("w") as full:
        done = run_shuiwang("decode", *arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.stderr == "the output cannot be written 无法输出: No space left on device\n"
    assert done.returncode in {ExitCode.USAGE, ExitCode.NO_READING}


@pytest.mark.parametrize(
    "arguments",
    [
        ["profiles"],
        ["profiles", "--json"],
        ["--help"],
        ["decode", "110302040004E206E0"],
        ["decode", "110302040004E206E0", "--json"],
        ["simulate", "docs/village.example.toml"],
    ],
)
def test_a_reader_that_goes_away_is_no_bug(arguments):
    """As with `| head -1`: whoever read had enough; nothing is said, and no traceback sends anybody to look."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = run_shuiwang(*arguments, capture_output=False, stdout=closed, stderr=subprocess.PIPE)
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
    assert done.returncode == ExitCode.OUTPUT_CLOSED


def test_a_terminal_without_chinese_still_says_it():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    for arguments in (["decode", "11 03 02 04 00 04 06 E0"], ["profiles"], ["--help"], ["profiles", "--json"]):
        done = run_shuiwang(*arguments, text=False, env=environment)
        assert (done.returncode, done.stderr) == (0, b""), arguments
    assert len(json.loads(done.stdout)) > 20


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["record", "--port", "/dev/null", "--to", "/nosuch/x"], "/nosuch/x: cannot be made"),
        (["scan", "--port", "/dev/null", "--write", "/nosuch/x"], "/nosuch is no folder"),
        (["read", "--port", "socket://", "--profile", "xintai", "--address", "1"], "lacks a host or a port number"),
        (["scan", "--port", "socket://h"], "lacks a host or a port number"),
        (["sniff", "--port", "rfc2217://:1"], "lacks a host or a port number"),
        (["doctor", "--port", "SOCKET://h:99999"], "lacks a host or a port number"),
        (["read", "--port", "/dev/null", "--profile", "/dev/zero", "--address", "1"], "/dev/zero: cannot be read"),
    ],
)
def test_what_cannot_work_is_said_at_once_in_one_line(arguments, says):
    done = run_shuiwang(*arguments)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode in {ExitCode.USAGE, ExitCode.CONFIGURATION}


def test_links_in_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"`?make ([a-z-]+)", (ROOT / document).read_text(encoding="utf-8")):
            assert f"\n{target}:" in makefile, target


def test_a_missing_configuration_is_one_line_and_exit_code_3(tmp_path):
    result = run_shuiwang("run", "-c", tmp_path / "none.toml")
    assert result.returncode == ExitCode.CONFIGURATION
    assert "none.toml" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_check_says_what_the_configuration_means(config):
    result = run_shuiwang("check", "-c", config)
    assert result.returncode == 0
    assert "less than 0.1 m³ in 12 h" in result.stdout
    assert json.loads(run_shuiwang("check", "-c", config, "--json").stdout)["meters"] == 2


def test_status_before_the_first_run_says_so(config):
    result = run_shuiwang("status", "-c", config)
    assert result.returncode == ExitCode.STORE
    assert "has not run" in result.stderr


def test_status_tells_the_living_from_the_dead(config):
    (config.parent / "data").mkdir()
    store = Store(config.parent / "data" / "shuiwang.db", new_epoch="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    store.commit([shows("m-1", 1, 123.456), silent("m-2", 1)], [])
    store.close()
    report = json.loads(run_shuiwang("status", "-c", config, "--json").stdout)
    assert [(meter["meter"], meter["state"], meter["volume_ml"]) for meter in report["meters"]] == [
        ("m-1", "stale", 123_456),
        ("m-2", "never", None),
    ]
    assert report["running"] is False
    assert report["outbox"]["telemetry"] == {"waiting": 1, "last_seq": 1, "acked_seq": 0, "acked_at": None}
    text = run_shuiwang("status", "-c", config).stdout
    assert "0.123" in text
    assert "no answer" in text
    assert "\x1b" not in text, "colours only on a terminal"


def test_an_impossible_fast_clock_is_a_usage_error(config):
    assert run_shuiwang("run", "-c", config, "--fast-clock", "0@0:0").returncode == ExitCode.USAGE


def test_the_service_needs_no_library_of_the_demo_or_the_tests():
    """A gateway has the runtime dependencies only."""
    code = (
        "import sys\n"
        "for name in ('amqtt', 'pytest', 'hypothesis', 'pymodbus', 'apsw'): sys.modules[name] = None\n"
        "import agent.cli, agent.service, agent.config, agent.status, agent.views, gateway.simulator, county.cli\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, cwd=ROOT)
