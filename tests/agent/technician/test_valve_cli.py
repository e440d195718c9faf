"""`shuiwang valve` as a process, against simulated meters on a pty; somebody types, or nobody does."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import time

import msgspec
import pytest
from partners.processes import Running, run_shuiwang, shuiwang

from agent.exit_codes import ExitCode
from gateway.clock import SystemClock
from gateway.lock import FolderLock
from gateway.simulator import Village
from gateway.village_file import parse

METER = "00002020120218"
HOME = """
[line]
baudrate = 9600

[[meter]]
id = "cjt"
profile = "{profile}"
address = "{address}"
start_m3 = "12.34"
since = 2090-01-01T00:00:00
usage = []
valve_moves_ms = 300
{more}
"""
CONFIG = """
[gateway]
id = "g-1"
county = "shenxian"
data_dir = "{folder}"

[broker]
url = "mqtt://127.0.0.1:1"

[[bus]]
name = "rs485-1"
port = "{port}"
baudrate = 9600

[[meter]]
id = "m-001"
bus = "rs485-1"
profile = "cjt188-water-valve"
address = "{address}"
"""


def village(more="", *, name="cjt188-water-valve"):
    return Village(parse(HOME.format(profile=name, address=METER, more=more), where="test"), clock=SystemClock())


def valve_of(running):
    return running._meters["cjt"].valve


def is_open(running):
    return valve_of(running).is_open(SystemClock().now().wall_ms)


def on(port, *more, name="cjt188-water-valve"):
    line = ["--baudrate", "9600", "--parity", "N", "--timeout-ms", "200"]
    return ["--port", port, "--profile", name, "--address", METER, *line, *more]


def run(*arguments, **options):
    return run_shuiwang("valve", *arguments, **options)


def told(*arguments):
    done = run(*arguments, "--json")
    return done.returncode, msgspec.json.decode(done.stdout)


class TestCommand:
    def test_status_moves_nothing(self):
        with village() as running:
            done = run("status", *on(running.port))
            assert done.returncode == ExitCode.OK, done.stderr
            assert "open 开  12.34 m³  ST 00 00" in done.stdout
            code, json = told("status", *on(running.port))
            assert (code, json["position"], json["volume_ml"], json["error"]) == (0, "open", 12_340_000, None)
            assert valve_of(running)._moved is None

    @pytest.mark.parametrize(("name", "control"), [("cjt188-water-valve", "04"), ("cjt188-water-valve-2a", "2A")])
    def test_closed_and_opened_again(self, name, control):
        with village(name=name) as running:
            code, json = told("close", *on(running.port, "--confirm", f"close {METER}", name=name))
            assert (code, json["sent"], json["confirmed"], json["position"]) == (0, True, True, "closed")
            assert (json["before"]["position"], json["action"]) == ("open", "close")
            assert not is_open(running)
            sent = [frame["hex"] for frame in json["frames"] if frame["direction"] == "tx"]
            writes = [text for text in sent if text.split("10 18 02 12 20 20 00 00 ")[1][:2] == control]
            assert [text for text in sent if "A0 17" in text] == writes
            assert len(writes) == 1
            done = run("open", *on(running.port, "--confirm", f"开阀 {METER}", name=name))
            assert done.returncode == ExitCode.OK
            assert "confirmed 已确认" in done.stdout
            assert "before 之前  closed 关" in done.stdout
            assert "valve_asked by=" in done.stderr
            assert "valve_moved by=" in done.stderr
            assert is_open(running)

    @pytest.mark.parametrize("words", [None, "", "close", "yes", f"open {METER}", f"close {METER[:-1]}9"], ids=str)
    def test_without_the_words_nothing_reaches_the_line(self, words):
        with village() as running:
            done = run("close", *on(running.port, *([] if words is None else ["--confirm", words])))
            assert done.returncode == ExitCode.USAGE
            assert "nothing was sent 未发送任何命令" in done.stderr
            assert f"close {METER}" in done.stderr
            assert f"关阀 {METER}" in done.stderr
            assert running.counts("cjt").requests == 0
            assert is_open(running)

    def test_there_is_no_yes(self):
        for option in ("--yes", "-y", "--force"):
            assert run("close", *on("/dev/nowhere", option)).returncode == ExitCode.USAGE
        text = run("--help").stdout
        assert "--yes" not in text
        assert "Closing cuts off a home's water" in text

    @pytest.mark.parametrize("name", ["cjt188-water", "cjt188-water-probe"])
    def test_a_profile_that_names_no_valve_is_refused_with_what_to_do(self, name):
        with village() as running:
            done = run("close", *on(running.port, "--confirm", f"close {METER}", name=name))
            assert done.returncode == ExitCode.CONFIGURATION
            assert "names no valve commands" in done.stderr
            assert "没有写明阀门命令" in done.stderr
            assert "cjt188-water-valve" in done.stderr
            assert running.counts("cjt").requests == 0

    def test_a_meter_that_does_not_answer_is_sent_nothing(self):
        with village('[[meter.fault]]\nkind = "dead"\n') as running:
            code, json = told("close", *on(running.port, "--confirm", f"close {METER}"))
            assert code == ExitCode.NO_READING
            assert (json["sent"], json["command"], json["before"]["error"]["reason"]) == (False, None, "no_response")
            assert json["check_next"]
            assert is_open(running)

    def test_a_port_that_is_not_there(self):
        done = run("close", *on("/dev/nowhere", "--confirm", f"close {METER}"))
        assert done.returncode == ExitCode.PORT
        assert "nothing was sent" in done.stdout

    @pytest.mark.parametrize(
        ("more", "code", "reason", "position"),
        [
            ('valve = "stuck"', ExitCode.VALVE_UNCONFIRMED, None, "open"),
            ('valve = "mute"', ExitCode.OK, "no_response", "closed"),
        ],
    )
    def test_what_the_meter_says_is_what_is_told(self, more, code, reason, position):
        with village(more) as running:
            done, json = told("close", *on(running.port, "--confirm", f"close {METER}", "--wait", "3"))
            assert (done, json["position"]) == (code, position)
            error = json["command"]["error"]
            assert (error and error["reason"]) == reason
            assert sum("A0 17" in frame["hex"] for frame in json["frames"] if frame["direction"] == "tx") == 1

    def test_not_confirmed_says_go_and_look(self):
        with village('valve = "stuck"') as running:
            done = run("close", *on(running.port, "--confirm", f"close {METER}", "--wait", "0"))
        assert done.returncode == ExitCode.VALVE_UNCONFIRMED
        assert "not confirmed 未确认" in done.stdout
        assert "open a tap" in done.stdout
        assert "开一个龙头" in done.stdout

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_while_it_moves_tells_what_was_sent(self, number, tmp_path):
        with village('valve = "stuck"') as running:
            command = shuiwang("valve", "close", *on(running.port, "--confirm", f"close {METER}", "--json"))
            with Running(tmp_path / "log", *command, stdin=subprocess.DEVNULL) as process:
                deadline = time.monotonic() + 20
                while running.counts("cjt").requests < 4 and time.monotonic() < deadline:
                    time.sleep(0.05)
                process.process.send_signal(number)
                process.process.send_signal(number)
                assert process.process.wait(10) == ExitCode.VALVE_UNCONFIRMED
            assert "Traceback" not in process.text
            assert '"interrupted": true' in process.text
            assert "valve_unconfirmed by=" in process.text


class TestConfiguration:
    @pytest.fixture
    def running(self):
        with village() as running:
            yield running

    @pytest.fixture
    def config(self, running, tmp_path):
        file = tmp_path / "shuiwang.toml"
        file.write_text(CONFIG.format(folder=tmp_path, port=running.port, address=METER), encoding="utf-8")
        return str(file)

    def test_while_the_service_runs_nothing_is_sent(self, config, running, tmp_path):
        lock = FolderLock(tmp_path)
        try:
            for action, more in (("close", ["--confirm", f"close {METER}"]), ("status", [])):
                done = run(action, "-c", config, "m-001", *more)
                assert done.returncode == ExitCode.PORT
                assert "the service runs" in done.stderr
                assert "systemctl stop shuiwang" in done.stderr
        finally:
            lock.release()
        assert running.counts("cjt").requests == 0

    def test_who_did_what_is_kept_beside_the_store(self, config, tmp_path):
        assert run("close", "-c", config, "m-001", "--confirm", "close the valve").returncode == ExitCode.USAGE
        assert run("close", "-c", config, "m-001", "--confirm", f"close {METER}").returncode == ExitCode.OK
        lines = [msgspec.json.decode(line) for line in (tmp_path / "valve.jsonl").read_bytes().splitlines()]
        assert [line["event"] for line in lines] == ["valve_declined", "valve_asked", "valve_sending", "valve_moved"]
        assert {(line["meter"], line["address"], line["action"]) for line in lines} == {("m-001", METER, "close")}
        assert lines[0]["said"] == "close the valve"
        assert (lines[3]["before"], lines[3]["position"], lines[3]["answer"]) == ("open", "closed", "00 00")
        assert "A0 17" in lines[2]["frame"]
        assert lines[2]["frame"] == lines[3]["frame"]
        assert all(line["by"] and line["at"] for line in lines)

    def test_what_cannot_be_recorded_is_not_closed_but_opened(self, config, running, tmp_path):
        (tmp_path / "valve.jsonl").mkdir()
        done = run("close", "-c", config, "m-001", "--confirm", f"close {METER}")
        assert done.returncode == ExitCode.STORE
        assert "nothing was sent" in done.stderr
        assert running.counts("cjt").requests == 0
        done = run("open", "-c", config, "m-001", "--confirm", f"open {METER}")
        assert done.returncode == ExitCode.OK
        assert "cannot be written" in done.stderr


class TestTerminal:
    """Somebody types, on a real pty."""

    @contextlib.contextmanager
    def typed(self, *arguments):
        near, far = pty.openpty()
        process = subprocess.Popen(
            shuiwang("valve", *arguments), stdin=far, stdout=far, stderr=far, close_fds=True, start_new_session=True
        )
        os.close(far)
        try:
            yield near, process
        finally:
            process.kill()
            process.wait()
            os.close(near)

    def see(self, near, pattern, *, timeout_s=25):
        seen, deadline = "", time.monotonic() + timeout_s
        while not re.search(pattern, seen):
            assert time.monotonic() < deadline, seen
            try:
                seen += os.read(near, 4096).decode(errors="replace")
            except OSError:  # the far end is closed
                assert re.search(pattern, seen), seen
        return seen

    def test_it_shows_the_meter_and_what_closing_means_and_waits_for_the_words(self):
        with village() as running, self.typed("close", *on(running.port)) as (near, process):
            seen = self.see(near, r"Type[^\n]*\n(.|\n)*> ")
            assert "all water" in seen
            assert "Nothing has been sent yet" in seen
            assert "12.34 m³" in seen
            time.sleep(0.3)
            assert valve_of(running)._moved is None, "nothing moves before the words"
            os.write(near, f"关阀 {METER}\n".encode())
            assert "closed 关" in self.see(near, "confirmed 已确认(.|\n)*after 之后[^\n]*ST")
            assert process.wait(10) == ExitCode.OK
            assert not is_open(running)

    @pytest.mark.parametrize("answer", [b"y\n", b"\n", b"\x04", b"\x03"], ids=["y", "return", "ctrl-d", "ctrl-c"])
    def test_anything_else_sends_nothing(self, answer):
        with village() as running, self.typed("close", *on(running.port)) as (near, process):
            self.see(near, r"Type[^\n]*\n(.|\n)*> ")
            if answer == b"\x03":
                process.send_signal(signal.SIGINT)
            else:
                os.write(near, answer)
            self.see(near, "nothing was sent")
            assert process.wait(10) == (ExitCode.NO_READING if answer == b"\x03" else ExitCode.USAGE)
            assert valve_of(running)._moved is None

    def test_a_meter_that_does_not_answer_is_not_even_asked_for(self):
        with village('[[meter.fault]]\nkind = "dead"\n') as running:
            with self.typed("close", *on(running.port)) as (near, process):
                seen = self.see(near, "读不到表")
                assert process.wait(10) == ExitCode.NO_READING
            assert "Type" not in seen
