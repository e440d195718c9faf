"""The receiver as a process: real mosquitto, real SQLite, kill -9, full disk, exit codes."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import aiomqtt
import pytest
import trustme
from partners.mosquitto import Mosquitto
from partners.processes import free_port
from samples import COUNTY, EPISODE, GATEWAY, alert, birth, leaf_of, telemetry, will

from county.errors import ExitCode
from protocols import contract
from protocols.contract import Leaf

ROOT = Path(__file__).resolve().parents[2]
ACK_TOPIC = contract.topic(COUNTY, GATEWAY, Leaf.ACK)
PATIENCE_S = 20.0

pytestmark = pytest.mark.e2e


def command(*arguments):
    return [sys.executable, "-m", "county.cli", *map(str, arguments)]


def run(*arguments):
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


class ReceiverProcess:
    """`shuiwang-county receive` in a process of its own."""

    def __init__(self, url, folder, *options):
        self.file = folder / "county.db"
        self.stdout = folder / "stdout"
        self.stderr = folder / "stderr"
        self._command = command("receive", "--broker", url, "--db", self.file, "--timezone", "Asia/Shanghai", *options)
        self._process = None

    def start(self):
        with self.stdout.open("ab") as stdout, self.stderr.open("ab") as stderr:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=stdout, stderr=stderr)

    def end(self, number):
        """Send a signal and return the exit code."""
        self._process.send_signal(number)
        return self._process.wait(timeout=PATIENCE_S)

    def wait(self):
        return self._process.wait(timeout=PATIENCE_S)

    async def says(self, text, *, where="stdout"):
        deadline = time.monotonic() + PATIENCE_S
        while text not in (said := getattr(self, where).read_text()):
            assert time.monotonic() < deadline, f"{text!r} not in {said!r}; stderr: {self.stderr.read_text()}"
            assert self._process.poll() is None, self.stderr.read_text()
            await asyncio.sleep(0.02)

    def rows(self, sql):
        with contextlib.closing(sqlite3.connect(self.file)) as database:
            return database.execute(sql).fetchall()


@pytest.fixture
def receive(tmp_path, mosquitto):
    """Starts receivers at the mosquitto, and ends them."""
    started = []

    def start(*options, url=mosquitto.url):
        process = ReceiverProcess(url, tmp_path, *options)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process._process.poll() is None:
            process._process.kill()
            process._process.wait()


async def publish(client, *messages, retain=False):
    for message in messages:
        topic = contract.topic(COUNTY, GATEWAY, leaf_of(message))
        await client.publish(topic, contract.encode(message), qos=1, retain=retain)


async def next_ack(client):
    async with asyncio.timeout(PATIENCE_S):
        return contract.decode(Leaf.ACK, (await anext(client.messages)).payload)


def gateway(mosquitto, **options):
    return aiomqtt.Client("127.0.0.1", mosquitto.port, **options)


async def test_an_alert_is_stored_told_and_acknowledged_and_sigterm_ends_it_cleanly(receive, mosquitto):
    receiver = receive()
    await receiver.says("broker_connected protocol=V5", where="stderr")
    async with gateway(mosquitto) as client:
        await client.subscribe(ACK_TOPIC, qos=1)
        await publish(client, alert(1))
        assert (await next_ack(client)).alert_up_to == 1
        await publish(client, will(), retain=True)
        await receiver.says("GATEWAY OFFLINE  g-1 (shenxian)  connection lost")
    assert "新警 OPEN  用水过少 low usage  m-001 @ g-1" in receiver.stdout.read_text()
    shown = json.loads(run("show", "--db", receiver.file, "--json").stdout)
    assert [one["id"] for one in shown["alerts"]] == [EPISODE]
    assert receiver.end(signal.SIGTERM) == ExitCode.OK
    assert "Traceback" not in receiver.stderr.read_text()
    receiver.start()
    await receiver.says("[未解除 still open]")
    assert receiver.end(signal.SIGINT) == ExitCode.OK


async def test_json_lines_and_the_end_by_silence(receive, mosquitto):
    receiver = receive("--json", "--once-idle", "2", "--county", COUNTY)
    await receiver.says("broker_connected", where="stderr")
    async with gateway(mosquitto) as client:
        await publish(client, birth(), alert(1), telemetry(1))
    assert receiver.wait() == ExitCode.OK
    events = [json.loads(line) for line in receiver.stdout.read_text().splitlines()]
    assert [event["event"] for event in events] == ["gateway", "alert"]
    assert receiver.rows("SELECT count(*) FROM readings") == [(2,)]


async def test_a_broker_that_restarts_is_found_again_and_nothing_is_lost(receive, mosquitto):
    receiver = receive()
    await receiver.says("broker_connected", where="stderr")
    mosquitto.stop()
    await receiver.says("broker_lost", where="stderr")
    mosquitto.start()
    async with gateway(mosquitto) as client:
        await client.subscribe(ACK_TOPIC, qos=1)
        await publish(client, alert(1), birth())
        while (await next_ack(client)).alert_up_to != 1:
            pass


async def test_whatever_was_acknowledged_before_kill_9_is_in_the_database(receive, mosquitto):
    """The gateway of this test sends until everything is acknowledged, while the receiver is killed again and again."""
    wanted = 120
    chance = random.Random(7)
    receiver = receive()
    async with gateway(mosquitto, identifier="gateway", clean_session=False) as client:
        await client.subscribe(ACK_TOPIC, qos=1)
        acknowledged, deaths = 0, 0
        while acknowledged < wanted:
            for seq in range(acknowledged + 1, min(acknowledged + 12, wanted) + 1):
                await publish(client, alert(seq, episode=f"{seq:026d}"))
            if deaths < 5 and chance.random() < 0.5:
                # At once, in the middle of whatever it does with these.
                await asyncio.sleep(chance.random() * 0.05)
                receiver.end(signal.SIGKILL)
                deaths += 1
                stored = receiver.rows("SELECT seq FROM alert_steps ORDER BY seq") if acknowledged else []
                assert [seq for (seq,) in stored[:acknowledged]] == list(range(1, acknowledged + 1))
                receiver.start()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    while acknowledged < wanted:
                        message = await anext(client.messages)
                        acknowledged = max(acknowledged, contract.decode(Leaf.ACK, message.payload).alert_up_to)
                        if not len(client.messages):
                            break
        receiver.end(signal.SIGKILL)
    assert deaths >= 3
    assert receiver.rows("SELECT seq FROM messages ORDER BY seq") == [(seq,) for seq in range(1, wanted + 1)]
    assert receiver.rows("SELECT count(*) FROM alerts") == [(wanted,)]
    assert receiver.rows("PRAGMA integrity_check") == [("ok",)]


async def test_a_database_that_cannot_be_written_stops_the_acks_and_nothing_else(receive, mosquitto):
    receiver = receive()
    await receiver.says("broker_connected", where="stderr")
    async with gateway(mosquitto) as client:
        await client.subscribe(ACK_TOPIC, qos=1)
        with contextlib.closing(sqlite3.connect(receiver.file, isolation_level=None)) as other:
            # A table taken away is an error like any other of SQLite's, and comes back as quickly as a lock.
            other.execute("ALTER TABLE alert_steps RENAME TO elsewhere")
            await publish(client, alert(1))
            await receiver.says("store_failed", where="stderr")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(client.messages)
            other.execute("ALTER TABLE elsewhere RENAME TO alert_steps")
        assert (await next_ack(client)).alert_up_to == 1
    await receiver.says("store_works_again", where="stderr")
    assert receiver.rows("SELECT count(*) FROM alert_steps") == [(1,)]
    assert receiver.stderr.read_text().count("store_failed") == 1


async def test_tls_with_certificates_of_both_sides(tmp_path, receive):
    authority = trustme.CA()
    server, ours = authority.issue_cert("localhost"), authority.issue_cert("county@example.org", common_name="county")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "ours.pem")
    ours.private_key_pem.write_to_path(tmp_path / "ours.key")
    folder = tmp_path / "tls"
    folder.mkdir()
    broker = Mosquitto(
        folder,
        extra=f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/server.pem\nkeyfile {tmp_path}/server.key\n"
        "require_certificate true\nuse_identity_as_username true\n",
    )
    broker.start()
    url = f"mqtts://localhost:{broker.port}"
    files = (
        "--ca-file",
        tmp_path / "ca.pem",
        "--cert-file",
        tmp_path / "ours.pem",
        "--key-file",
        tmp_path / "ours.key",
    )
    try:
        receiver = receive(*files, url=url)
        await receiver.says("broker_connected protocol=V5", where="stderr")
        assert receiver.end(signal.SIGTERM) == ExitCode.OK
        stranger = run("receive", "--broker", url, "--db", tmp_path / "x.db", "--once-idle", "1")
        assert stranger.returncode == ExitCode.BROKER
        assert "certificate verify failed" in stranger.stderr
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("receive", "--broker", "nonsense", "--db", "{}/x.db"), ExitCode.CONFIGURATION, "is not mqtt://"),
        (("receive", "--broker", "mqtt://h", "--db", "{}/x.db", "--county", "A B"), ExitCode.CONFIGURATION, "--county"),
        (
            ("receive", "--broker", "mqtt://h", "--db", "{}/x", "--timezone", "Nowhere/X"),
            ExitCode.CONFIGURATION,
            "zone",
        ),
        (("receive", "--broker", "mqtt://h", "--db", "{}/none/x.db"), ExitCode.DATABASE, "folder must exist"),
        (("receive", "--broker", "mqtt://h"), ExitCode.USAGE, "--db"),
        (("show", "--db", "{}/none.db"), ExitCode.DATABASE, "no such file"),
        (("--help",), ExitCode.OK, ""),
    ],
)
def test_errors_are_one_line_with_a_remedy_and_a_documented_code(tmp_path, arguments, code, says):
    ended = run(*(str(argument).replace("{}", str(tmp_path)) for argument in arguments))
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    if code not in (ExitCode.OK, ExitCode.USAGE):
        assert ended.stdout == ""
        assert ended.stderr.startswith("shuiwang-county: ")


def test_silence_without_a_broker_is_an_error(tmp_path):
    url = f"mqtt://127.0.0.1:{free_port()}"
    ended = run("receive", "--broker", url, "--db", tmp_path / "x.db", "--once-idle", "0.5")
    assert ended.returncode == ExitCode.BROKER
    assert "Check that the broker runs" in ended.stderr


def test_every_exit_code_is_in_the_reference():
    document = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
    codes = document.partition("| exit code | meaning |")[2]
    assert [int(line.split("|")[1]) for line in codes.splitlines()[2:] if line.startswith("| ")] == list(ExitCode)


def test_the_receiver_needs_nothing_of_the_gateway():
    code = "import sys, county.cli; print([name for name in sys.modules if name.split('.')[0] in ('agent', 'gateway')])"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ
    )
    assert ended.stdout.strip() == "[]"
