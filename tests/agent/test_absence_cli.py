"""`shuiwang absence` as people meet it: what it refuses and how, what it keeps for a stopped service, what it shows."""

import datetime
import json
import threading
import time
import zoneinfo

import pytest
from partners.memories import absence
from typer.testing import CliRunner

from agent import absence_cli, command_folder
from agent.exit_codes import ExitCode
from agent.service import STORE_NAME
from gateway.lock import FolderLock
from gateway.store import Store
from protocols import contract
from protocols.absence import local_time
from protocols.contract import AbsenceCommand, Daily, Ending, PresentCommand, Refusal, Reply

CONFIG = """
[gateway]
id = "g-1"
county = "shenxian"
data_dir = "data"
timezone = "Asia/Shanghai"

[broker]
url = "mqtt://127.0.0.1:1"

[[bus]]
name = "b"
port = "/dev/null"
"""
METER = '\n[[meter]]\nid = "{id}"\nbus = "b"\nprofile = "usw-dn15-40"\naddress = "{address}"\n'
SHANGHAI = zoneinfo.ZoneInfo("Asia/Shanghai")
DAY_MS = 86_400_000


def day(ahead):
    return f"{datetime.datetime.now(SHANGHAI) + datetime.timedelta(days=ahead):%Y-%m-%d}"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "shuiwang.toml"
    meters = METER.format(id="m-001", address="1") + METER.format(id="m-002", address="2")
    path.write_text(CONFIG + meters, encoding="utf-8")
    (tmp_path / "data").mkdir()
    return path


@pytest.fixture
def run(config):
    def run(*arguments):
        return CliRunner().invoke(absence_cli.app, ["absence", *arguments, "-c", str(config)])

    return run


def kept(config):
    """The commands that wait for the service."""
    data_dir = config.parent / "data"
    return [contract.decode(contract.Leaf.COMMAND, payload) for payload in command_folder.waiting(data_dir)]


class Service:
    """Answers one command, as a running service would."""

    def __init__(self, data_dir, **answer):
        self._data_dir = data_dir
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)

    def _serve(self):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not (found := command_folder.waiting(self._data_dir)):
            time.sleep(0.01)
        command_id = contract.decode_command_id(found[0])
        reply = Reply(schema=contract.REPLY_SCHEMA, id=command_id, at=contract.instant(0), **self._answer)
        command_folder._put(self._data_dir / "commands", f"{command_id}.reply.json", contract.encode(reply))

    def __enter__(self):
        self._lock = FolderLock(self._data_dir)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()
        self._lock.release()


# -- a stopped service ------------------------------------------------------------------------------------------------


def test_what_is_said_to_a_stopped_service_is_kept_for_its_start(run, config):
    done = run("add", "m-001", "--until", day(5), "--by", "village-assistant")
    assert done.exit_code == ExitCode.OK
    assert "下次启动时生效" in done.stdout
    assert "takes effect at its next start" in done.stdout
    (command,) = kept(config)
    assert isinstance(command, AbsenceCommand)
    assert (command.meter, command.declared_by, command.start, command.daily) == (
        "m-001",
        "village-assistant",
        None,
        None,
    )
    assert contract.wall_ms(command.until) == local_time(day(5), zone=SHANGHAI, is_end=True)
    assert command.deadline == command.until, "there is no use in it later"


def test_times_are_local_and_quiet_hours_come_along(run, config):
    start, until = f"{day(2)} 08:00", f"{day(40)} 18:30"
    assert run("add", "m-001", "--from", start, "--until", until, "--quiet", "22:00-06:00").exit_code == 0
    (command,) = kept(config)
    assert contract.wall_ms(command.start) == local_time(start, zone=SHANGHAI, is_end=False)
    assert contract.wall_ms(command.until) == local_time(until, zone=SHANGHAI, is_end=True)
    assert command.daily == Daily(start="22:00", end="06:00")
    ahead_ms = contract.wall_ms(command.deadline) - time.time_ns() // 1_000_000
    assert 6.9 * DAY_MS < ahead_ms < 7 * DAY_MS, "a stopped service has a week to be started"


def test_the_end_of_an_absence_is_a_command_too(run, config):
    done = run("end", "m-002", "--json")
    assert done.exit_code == ExitCode.OK
    outcome = json.loads(done.stdout)
    assert (outcome["service_running"], outcome["reply"]) == (False, None)
    (command,) = kept(config)
    assert isinstance(command, PresentCommand)
    assert outcome["command"]["id"] == command.id


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "m-001"], "always has an end: add --until"),
        (["add", "m-001", "--until", "2026-01-01"], "over already"),
        (["add", "m-001", "--until", day(92)], "more than 90 days ahead"),
        (["add", "m-001", "--until", "9999-12-31"], "more than 90 days ahead"),
        (["add", "m-001", "--until", "9999-12-31 23:59"], "more than 90 days ahead"),
        (["add", "m-001", "--until", "0001-01-01"], "lies before"),
        (["add", "m-001", "--until", day(5), "--from", "9999-12-31 23:59"], "is not before --until"),
        (["add", "m-001", "--until", day(5), "--from", "0001-01-01"], "--from '0001-01-01': lies before"),
        (["add", "m-001", "--until", "soon"], "write 2026-12-01"),
        (["add", "m-001", "--until", day(5), "--from", day(6)], "is not before --until"),
        (["add", "m-001", "--until", day(5), "--from", "monday"], "--from 'monday'"),
        (["add", "m-001", "--until", day(5), "--quiet", "22-6"], "22:00-06:00"),
        (["add", "m-001", "--until", day(5), "--by", "王丽"], "declared_by"),
        (["add", "m-01", "--until", day(5)], "did you mean m-001?"),
        (["add", "zzz", "--until", day(5)], "it has m-001, m-002"),
        (["end", "m-003"], "has no meter 'm-003'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(run, config, arguments, says):
    done = run(*arguments)
    assert done.exit_code == ExitCode.USAGE
    assert says in done.stderr
    assert done.stdout == ""
    assert kept(config) == []


def test_ninety_days_are_enough_and_allowed(run, config):
    assert run("add", "m-001", "--until", day(89)).exit_code == ExitCode.OK
    assert len(kept(config)) == 1


def test_a_wrong_configuration_and_a_missing_folder_say_so(run, config):
    (config.parent / "data").rmdir()
    done = run("add", "m-001", "--until", day(5))
    assert done.exit_code == ExitCode.STORE
    assert "start the service once" in done.stderr
    config.write_text("[gateway]\n", encoding="utf-8")
    assert run("list").exit_code == ExitCode.CONFIGURATION


# -- a running service ------------------------------------------------------------------------------------------------


def test_a_running_service_answers_at_once(run, config):
    with Service(config.parent / "data", done=True, text={"zh": "已登记", "en": "declared"}):
        done = run("add", "m-001", "--until", day(5))
    assert (done.exit_code, done.stdout) == (ExitCode.OK, "已登记\ndeclared\n")


def test_a_refusal_is_told_on_stderr_with_its_exit_code(run, config):
    text = {"zh": "时钟未校准", "en": "the clock is not synchronised"}
    with Service(config.parent / "data", done=False, reason=Refusal.CLOCK_UNSYNCED.value, text=text):
        done = run("add", "m-001", "--until", day(5))
    assert (done.exit_code, done.stdout) == (ExitCode.NOT_DONE, "")
    assert "the clock is not synchronised" in done.stderr


def test_a_service_that_does_not_answer_is_waited_for_so_long_and_no_longer(run, config):
    lock = FolderLock(config.parent / "data")
    began_s = time.monotonic()
    done = run("add", "m-001", "--until", day(5), "--wait", "0.5")
    lock.release()
    assert 0.5 <= time.monotonic() - began_s < 5
    assert done.exit_code == ExitCode.NOT_DONE
    assert "no answer from the service within 0.5 s" in done.stderr
    assert len(kept(config)) == 1, "it is done when the service gets to it"


# -- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_shows_who_is_away_what_ended_and_what_waits(run, config):
    now_ms = time.time_ns() // 1_000_000
    span = {"start_ms": now_ms - DAY_MS, "until_ms": now_ms + DAY_MS}
    store = Store(config.parent / "data" / STORE_NAME, new_epoch="0" * 26, reserve_bytes=0)
    store.put_absence(
        absence(1, **span),
        absence(2, "m-002", daily=Daily(start="22:00", end="06:00"), **span),
        absence(3, start_ms=now_ms + DAY_MS, until_ms=now_ms + 2 * DAY_MS),
        absence(4, start_ms=now_ms - 2 * DAY_MS, until_ms=now_ms - DAY_MS),
        absence(5, **span).ended(Ending.USE, at_ms=now_ms),
    )
    store.close()
    run("add", "m-002", "--until", day(5))
    done = run("list", "--json")
    assert done.exit_code == ExitCode.OK
    rows = json.loads(done.stdout)
    assert [row["state"] for row in rows] == [
        "stands",
        "stands",
        "to_come",
        "ended_by_time",
        "ended_by_use",
        "waits_for_service",
    ]
    assert rows[1]["quiet_hours"] == "22:00-06:00"
    text = run("list").stdout
    for piece in ("生效", "未开始", "已到期", "已用水", "等待服务", "quiet hours", "m-002"):
        assert piece in text, text


def test_nobody_away_is_said(run):
    assert run("list").stdout == "没有外出登记 nobody is away\n"
    assert json.loads(run("list", "--json").stdout) == []


def test_a_store_that_cannot_be_read_says_so(run, config):
    (config.parent / "data" / STORE_NAME).write_bytes(b"no database" * 100)
    done = run("list")
    assert done.exit_code == ExitCode.STORE
    assert "not a database" in done.stderr


@pytest.mark.parametrize("ending", Ending)
def test_every_end_has_its_words(ending):
    assert f"ended_by_{ending}" in absence_cli._STATE_TEXT
