"""`shuiwang-county command`: what it makes of its options, what it refuses, and its exit codes."""

import datetime
import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from county import command_cli
from county.cli import app
from county.command import Asking
from county.errors import ConfigurationError, ExitCode, NoReply
from protocols import contract
from protocols.contract import Leaf, Reply

ALERT = "01KAM4D2Q80000000000000000"
BROKER = ["--broker", "mqtt://127.0.0.1:1", "--county", "shenxian", "--gateway", "g-1", "--timezone", "Asia/Shanghai"]
DAY = f"{datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=5):%Y-%m-%d}"


@pytest.fixture
def asked(monkeypatch):
    """Who is asked what, in place of a broker; `asked.reply` is what comes back."""

    class Asked(list):
        pass

    asked = Asked()
    asked.reply = {"done": True, "text": {"zh": "已登记", "en": "declared"}}

    async def ask(self, command, *, wait_s):
        asked.append((self._county, self._gateway, wait_s, json.loads(contract.encode(command))))
        if asked.reply is None:
            raise NoReply("no reply")
        return Reply(schema=contract.REPLY_SCHEMA, id=command.id, at=contract.instant(0), **asked.reply)

    monkeypatch.setattr(Asking, "ask", ask)
    return asked


def run(*arguments, options=BROKER):
    return CliRunner().invoke(app, ["command", *options, *arguments])


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["absence", "m-001", "--until", DAY], {"do": "absence", "meter": "m-001", "declared_by": "duty-officer"}),
        (
            ["absence", "m-001", "--until", DAY, "--quiet", "22:00-06:00", "--by", "village-assistant"],
            {"daily": {"from": "22:00", "to": "06:00"}, "declared_by": "village-assistant"},
        ),
        (["absence", "m-001", "--until", DAY, "--from", "2026-01-01"], {"from": "2025-12-31T16:00:00.000Z"}),
        (["present", "m-001"], {"do": "present", "meter": "m-001"}),
        (["acknowledge", ALERT], {"do": "acknowledge", "alert": ALERT}),
        (["resolve", ALERT, "--result", "fine"], {"do": "resolve", "alert": ALERT, "result": "fine"}),
        (["resolve", ALERT, "--result", "false", "--why", "at a neighbour's"], {"why": "at a neighbour's"}),
        (["read-now", "m-001"], {"do": "read_now", "meter": "m-001"}),
    ],
)
def test_each_command_is_what_the_options_say(asked, arguments, fields):
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (ExitCode.OK, "已登记\ndeclared\n")
    ((county, gateway, wait_s, command),) = asked
    assert (county, gateway) == ("shenxian", "g-1")
    assert wait_s == (command_cli.READ_NOW_WAIT_S if arguments[0] == "read-now" else command_cli.WAIT_S)
    assert command.items() >= fields.items()
    contract.decode(Leaf.COMMAND, json.dumps(command).encode())
    ahead_s = contract.wall_ms(command["deadline"]) / 1000 - time.time()
    assert wait_s - 10 < ahead_s <= wait_s, "after we have given up nobody does it any more"


def test_a_day_is_meant_to_its_end_in_the_time_zone_given(asked):
    run("absence", "m-001", "--until", DAY)
    assert asked[0][3]["until"] == f"{DAY}T16:00:00.000Z"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absence", "m-001", "--until", "9999-12-31"], "more than 90 days ahead"),
        (["absence", "m-001", "--until", "9999-12-31 23:59"], "more than 90 days ahead"),
        (["absence", "m-001", "--until", DAY, "--from", "0001-01-01"], "'0001-01-01': lies before"),
        (["absence", "m-001", "--until", "soon"], "write 2026-12-01"),
        (["absence", "m-001", "--until", DAY, "--from", "2099-01-01"], "must be later than"),
        (["absence", "m-001", "--until", DAY, "--quiet", "22"], "22:00-06:00"),
        (["absence", "m-001", "--until", DAY, "--by", "Li Wei"], "declared_by"),
        (["absence", "M1", "--until", DAY], r"\$\.meter"),
        (["resolve", ALERT, "--result", "false"], "`why` must say"),
        (["resolve", ALERT, "--result", "fine", "--why", "x" * 501], r"\$\.why"),
        (["acknowledge", "5"], r"\$\.alert"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(asked, arguments, says):
    done = run(*arguments)
    assert isinstance(done.exception, ConfigurationError)
    with pytest.raises(ConfigurationError, match=says):
        raise done.exception
    assert asked == []


def test_a_command_goes_to_one_gateway(asked):
    done = run("present", "m-001", options=[*BROKER[:4], "--gateway", "+"])
    assert isinstance(done.exception, ConfigurationError)
    assert asked == []


def test_a_refusal_is_told_on_stderr_with_its_exit_code(asked):
    asked.reply = {"done": False, "reason": "late", "text": {"zh": "已过期", "en": "too \x1b[31mlate"}}
    done = run("present", "m-001")
    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert done.stderr == "已过期\ntoo \N{REPLACEMENT CHARACTER}[31mlate\n", "what a gateway sends colours nothing"
    asked.reply = {"done": False, "reason": "late"}
    assert run("present", "m-001").stderr == "refused: late\n"


def test_no_reply_has_its_exit_code(asked):
    asked.reply = None
    assert run("present", "m-001").exception.exit_code == ExitCode.NO_REPLY


def test_programs_get_the_reply_as_it_came(asked):
    done = run("read-now", "m-001", options=[*BROKER, "--json", "--wait", "5"])
    reply = contract.decode(Leaf.REPLY, done.stdout.encode())
    assert reply.id == asked[0][3]["id"]
    assert asked[0][2] == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["receive", "--once-idle", "nan"],
        ["command", "--county", "c", "--gateway", "g", "--wait", "nan", "present", "m-1"],
    ],
)
def test_a_number_that_is_none_is_refused(arguments, tmp_path):
    broker = ["--broker", "mqtt://127.0.0.1:1"]
    first, *rest = arguments
    extra = ["--db", str(tmp_path / "c.db")] if first == "receive" else []
    done = subprocess.run(
        [sys.executable, "-m", "county.cli", first, *broker, *extra, *rest], capture_output=True, text=True, check=False
    )
    assert done.returncode in {2, ExitCode.CONFIGURATION}
    assert "Traceback" not in done.stderr
    assert "nan" in done.stderr
