"""Commands over the whole way: `shuiwang-county command` and `shuiwang absence`, mosquitto, `shuiwang run`, a meter."""

import datetime
import json
import sqlite3
import subprocess
import sys
import time

import pytest
from partners.mosquitto import Mosquitto
from partners.processes import Running, run_shuiwang, shuiwang

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

NOW_MS = time.time_ns() // 1_000_000


class Office:
    """The county: its receiver, and an operator who gives commands."""

    def __init__(self, world, *login):
        self.file = world.folder / "county.db"
        broker = ["--broker", f"mqtt://127.0.0.1:{world.broker.port}", *login]
        county = [sys.executable, "-m", "county.cli"]
        self.receiver = Running(world.folder / "county.log", *county, "receive", *broker, "--db", self.file, "--json")
        self._command = [*county, "command", *broker, "--county", "shenxian", "--json"]

    def asks(self, *command, gateway="g-0371522", wait="20"):
        """Give a command; return the exit code and the reply."""
        done = subprocess.run(
            [*self._command, "--gateway", gateway, "--wait", wait, "--timezone", "Asia/Shanghai", *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr

    def rows(self, sql):
        with sqlite3.connect(self.file) as database:
            return database.execute(sql).fetchall()

    def shows(self):
        done = subprocess.run(
            [sys.executable, "-m", "county.cli", "show", "--db", self.file, "--json"],
            capture_output=True,
            check=True,
        )
        return json.loads(done.stdout)


@pytest.fixture
def office(world):
    office = Office(world)
    with office.receiver:
        yield office


def start(world, *units, **options):
    """An agent whose clock is synchronised, whatever this machine's is."""
    world.configure(units, **options)
    log = world.folder / f"agent-{time.monotonic_ns()}.log"
    arguments = shuiwang("run", "-c", world.config, "--fast-clock", f"1@{NOW_MS}:{NOW_MS}")
    return world._stack.enter_context(Running(log, *arguments))


def absence(world, *arguments):
    done = run_shuiwang("absence", *arguments, "-c", world.config)
    return done.returncode, done.stdout, done.stderr


def day(ahead):
    return f"{datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=ahead):%Y-%m-%d}"


def test_a_county_says_who_is_away_and_sees_water_end_it(world, office, soon):
    line = world.meters(17)
    line.show(17, 500_000)
    agent = start(world, 17)
    agent.wait_for("broker_connected")
    code, reply = office.asks("absence", "m-017", "--until", day(10))
    assert (code, reply["done"]) == (0, True), reply
    assert "登记为外出" in reply["text"]["zh"]
    soon(lambda: office.shows()["away"], what="the state that names it")
    (away,) = office.shows()["away"]
    assert (away["absence"]["meter"], "ended_by" in away["absence"]) == ("m-017", False)
    soon(line.served, what="a reading")
    time.sleep(1)
    line.show(17, 700_000)
    ended = soon(
        lambda: [one for one in office.shows()["away"] if one["absence"].get("ended_by") == "use"],
        what="its end by use",
    )
    assert len(ended) == 1
    assert agent.stop() == 0
    assert [row[:2] for row in office.rows("SELECT do, done FROM commands")] == [("absence", 1)]


def test_a_meter_is_read_now_and_what_cannot_be_done_is_refused_in_words(world, office):
    line = world.meters(17)
    line.show(17, 123_456_000)
    start(world, 17).wait_for("broker_connected")
    code, reply = office.asks("read-now", "m-017")
    assert (code, reply["reading"]["volume_ml"], reply["reading"]["quality"]) == (0, 123_456_000, "ok")
    code, reply = office.asks("read-now", "m-018")
    assert (code, reply["reason"]) == (6, "unknown_meter")
    assert "m-017" in reply["text"]["en"], "a suggestion"
    code, reply = office.asks("acknowledge", "0" * 26)
    assert (code, reply["reason"]) == (6, "unknown_alert")
    code, said = office.asks("present", "m-017", gateway="g-none", wait="1")
    assert code == 7
    assert "no gateway of that name" in said


def test_what_a_visit_found_is_kept_at_both_ends(world, office, soon):
    world.meters(17).show(17, 500_000)
    agent = start(world, 17, window_h=0.001)
    soon(lambda: office.file.exists() and office.shows()["alerts"], what="the alert", timeout_s=40)
    (alert,) = office.shows()["alerts"]
    assert office.asks("acknowledge", alert["id"])[0] == 0
    assert office.asks("resolve", alert["id"], "--result", "fine")[0] == 0
    code, said = office.asks("resolve", alert["id"], "--result", "false")
    assert code == 3
    assert "why" in said
    asked = soon(lambda: [one for one in office.shows()["asked"] if one["result"]], what="what was found")
    assert (asked[0]["result"], asked[0]["done"], asked[0]["meter"]) == ("fine", True, "m-017")
    (kept,) = [one for one in world.status()["open_alerts"] if one["id"] == alert["id"]]
    assert kept["evidence"]["county"]["result"] == "fine"
    assert {"acknowledged_at", "visited_at"} <= set(kept["evidence"]["county"])
    assert agent.stop() == 0


def test_an_absence_is_declared_on_the_gateway_while_the_service_runs_and_while_it_does_not(world, soon):
    world.meters(17).show(17, 500_000)
    agent = start(world, 17)
    agent.wait_for("broker_connected")
    code, said, _ = absence(world, "add", "m-017", "--until", day(5), "--by", "village-assistant")
    assert code == 0
    assert "登记为外出" in said
    assert "nobody is expected" in said
    code, said, _ = absence(world, "add", "m-017", "--quiet", "22:00-06:00", "--until", day(20), "--json")
    assert json.loads(said)["reply"]["done"] is True
    code, said, _ = absence(world, "list", "--json")
    assert [(one["state"], one["quiet_hours"]) for one in json.loads(said)] == [
        ("stands", None),
        ("stands", "22:00-06:00"),
    ]
    assert agent.stop() == 0

    code, said, _ = absence(world, "end", "m-017")
    assert code == 0
    assert "takes effect at its next start" in said
    agent = start(world, 17)
    agent.wait_for("broker_connected")

    def states():
        return [one["state"] for one in json.loads(absence(world, "list", "--json")[1])]

    soon(lambda: states() == ["ended_by_command", "stands"], what="what was said while it was stopped")
    code, said, _ = absence(world, "end", "m-017")
    assert "安静时段已取消" in said
    code, said, _ = absence(world, "list")
    assert "已结束" in said
    assert agent.stop() == 0


# As docs/contract.md says it; the user name stands for the common name of a certificate.
ACL = """
pattern write shuiwang/v1/+/%u/#
pattern read shuiwang/v1/+/%u/ack
pattern read shuiwang/v1/+/%u/command

user county
topic read shuiwang/v1/+/+/state
topic read shuiwang/v1/+/+/telemetry
topic read shuiwang/v1/+/+/alert
topic read shuiwang/v1/+/+/reply
topic read shuiwang/v1/+/+/command
topic write shuiwang/v1/+/+/ack
topic write shuiwang/v1/+/+/command
"""


def test_commands_come_through_the_access_rules_of_the_reference(world, soon):
    world.broker.stop()
    users = {"g-0371522": "a", "g-2": "b", "county": "c"}
    world.broker = world._stack.enter_context(Mosquitto(world.folder / "strict", users=users, acl=ACL))
    for user, password in users.items():
        (world.folder / user).write_text(password, encoding="utf-8")
    world.meters(17).show(17, 1_000_000)
    login = f'username = "g-0371522"\npassword_file = "{world.folder}/g-0371522"'
    agent = start(world, 17, broker=login)
    agent.wait_for("broker_connected")
    assert "subscription_refused" not in agent.text
    office = Office(world, "--username", "county", "--password-file", str(world.folder / "county"))
    with office.receiver:
        office.receiver.wait_for("broker_connected")
        code, reply = office.asks("absence", "m-017", "--until", day(3))
        assert (code, reply["done"]) == (0, True)
        soon(
            lambda: office.rows("SELECT * FROM commands WHERE done = 1 AND do = 'absence'"), what="what was heard of it"
        )
        assert office.shows()["away"]
    neighbour = Office(world, "--username", "g-2", "--password-file", str(world.folder / "g-2"))
    neighbour.receiver.kill()
    code, _ = neighbour.asks("present", "m-017", wait="1")
    assert code != 0, "another gateway brings nobody back"
    assert "ended_by" not in office.shows()["away"][0]["absence"]
    assert agent.stop() == 0
