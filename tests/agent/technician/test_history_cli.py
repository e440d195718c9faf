"""`shuiwang history` as a process, against simulated meters on a pty: tables, JSON, failures, Ctrl-C."""

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

METER, ANY = "00002020120218", "A" * 14
SETTLED = ["120.50", "118.25", "refused", "110.00", "empty", "100.00"]
HOME = """
[line]
baudrate = 9600

[[meter]]
id = "cjt"
profile = "{profile}"
address = "{address}"
start_m3 = "123.45"
since = 2090-01-01T00:00:00
usage = []
settled_m3 = {settled}
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
profile = "cjt188-water"
address = "{address}"
timeout_ms = 200
"""


def village(more="", *, settled=SETTLED):
    text = HOME.format(profile="cjt188-water", address=METER, settled=settled, more=more)
    return Village(parse(text, where="test"), clock=SystemClock())


@pytest.fixture
def meters():
    with village() as running:
        yield running


def on(port, *more, name="cjt188-water", address=METER):
    line = ["--baudrate", "9600", "--parity", "N", "--timeout-ms", "200"]
    return ["--port", port, "--profile", name, "--address", address, *line, *more]


def run(*arguments):
    return run_shuiwang("history", *arguments)


def told(*arguments):
    done = run(*arguments, "--json")
    return done.returncode, msgspec.json.decode(done.stdout)


class TestCommand:
    def test_twelve_months_as_the_meter_keeps_them(self, meters):
        done = run(*on(meters.port))
        assert done.returncode == ExitCode.OK, done.stderr
        assert done.stderr == ""
        text = " ".join(done.stdout.split())
        for row in (
            "now 当前 901F 123.45 2.95 ",
            "1 month ago 上1月 D120 120.50 2.25 ",
            "2 months ago 上2月 D121 118.25 8.25 since 自 D123",
            "3 months ago 上3月 D122 — refused 表拒绝",
            "4 months ago 上4月 D123 110.00 10.00 since 自 D125",
            "5 months ago 上5月 D124 — empty 表内为空",
            "6 months ago 上6月 D125 100.00 —",
            "12 months ago 上12月 D12B — refused 表拒绝",
            "refused 表拒绝 D122, D126-D12B: abnormal answer",
            "empty 表内为空 D124: filled with FF or 99: nothing is kept there 全填 FF",
        ):
            assert row in text, done.stdout
        assert "5 of 13, each said twice alike 两次读数一致" in done.stdout
        assert "\x1b" not in done.stdout

    def test_json_says_the_same(self, meters):
        code, json = told(*on(meters.port))
        assert code == ExitCode.OK
        records = {record["identifier"]: record for record in json["records"]}
        assert len(records) == 13
        assert {name: record["total_ml"] for name, record in records.items() if record["total_ml"] is not None} == {
            "901F": 123_450_000,
            "D120": 120_500_000,
            "D121": 118_250_000,
            "D123": 110_000_000,
            "D125": 100_000_000,
        }
        assert (records["D122"]["reason"], records["D124"]["reason"]) == ("refused", "empty")
        assert (records["901F"]["settled_ml"], records["901F"]["status"]) == (120_500_000, "00 00")
        assert (json["meter"], json["answered_by"], json["error"], json["interrupted"]) == (METER, None, None, False)

    def test_chosen_records(self, meters):
        code, json = told(*on(meters.port, "--records", "D123,D120-D121"))
        assert code == ExitCode.OK
        assert [(record["identifier"], record["total_m3"]) for record in json["records"]] == [
            ("D123", "110.00"),
            ("D120", "120.50"),
            ("D121", "118.25"),
        ]

    def test_whoever_is_on_the_line_says_its_name_first(self, meters):
        done = run(*on(meters.port, "--records", "D120", "--frames", address=ANY))
        assert done.returncode == ExitCode.OK, done.stderr
        assert f"the meter on this line 线上的表: {METER}" in done.stdout
        assert done.stdout.index("81 0A") < done.stdout.index("D1 20")
        assert "120.50" in done.stdout

    def test_a_noisy_line_costs_time_and_no_value(self):
        with village('[[meter.fault]]\nkind = "flip_bit"\nrate = 0.4\n') as running:
            code, json = told(*on(running.port, "--retries", "5"))
        assert code == ExitCode.OK
        totals = {record["identifier"]: record["total_ml"] for record in json["records"]}
        assert (totals["D120"], totals["D123"], totals["D125"]) == (120_500_000, 110_000_000, 100_000_000)
        assert sum(len(record["frames"]) for record in json["records"]) > 2 * 19, "19 answers would do on a good line"

    def test_a_dead_meter(self):
        with village('[[meter.fault]]\nkind = "dead"\n') as running:
            done = run(*on(running.port, "--retries", "0"))
            code, json = told(*on(running.port, "--retries", "0"))
        assert done.returncode == code == ExitCode.NO_READING
        for words in ("no answer 无应答", "nothing else was asked", "其余未问", "Is the meter powered?", "水表有电吗"):
            assert words in done.stdout
        assert [record["reason"] for record in json["records"]] == ["no_response"] + ["not_asked"] * 12
        assert json["error"]["reason"] == "no_response"
        assert json["check_next"][0].keys() == {"zh", "en"}

    def test_a_meter_that_keeps_nothing(self):
        with village(settled=[]) as running:
            done = run(*on(running.port))
        assert done.returncode == ExitCode.NO_READING
        assert "does not give these" in done.stdout
        assert "--records D200-D20B" in done.stdout
        assert "123.45" in done.stdout

    @pytest.mark.parametrize("address", [METER, ANY])
    def test_a_port_that_is_not_there(self, address):
        done = run(*on("/dev/nowhere", address=address))
        assert done.returncode == ExitCode.PORT
        assert "There is no such port" in done.stderr
        assert "没有这个串口" in done.stderr
        assert "single meter" not in done.stderr
        assert done.stdout == ""

    @pytest.mark.parametrize(
        ("name", "address", "words"),
        [
            ("usw-dn15-40", "17", ["speaks Modbus", "是 Modbus 表", "CJ/T 188 meters only", "shuiwang advise"]),
            ("mbus-water", "5", ["speaks M-Bus", "是 M-Bus 表", "CJ/T 188 meters only", "shuiwang decode"]),
            ("rd-w10", METER, ["has a form of its own", "不猜", "shuiwang advise"]),
        ],
    )
    def test_meters_whose_memory_is_not_read_are_told_so(self, name, address, words):
        done = run(*on("/dev/nowhere", name=name, address=address))
        assert done.returncode == ExitCode.CONFIGURATION
        assert [word for word in words if word not in done.stderr] == []

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--records", "A017"], "A017 holds no total 不是水量记录"),
            (["--records", "last"], "not of the form D120"),
            (["--records", ""], "not of the form D120"),
        ],
    )
    def test_what_is_no_record_is_asked_of_nobody(self, meters, more, words):
        done = run(*on(meters.port, *more))
        assert done.returncode == ExitCode.USAGE
        assert words in done.stderr
        assert "D300-D3FF (timed freezes 定时冻结)" in done.stderr
        assert meters.counts("cjt").requests == 0

    def test_the_help_teaches(self):
        text = run("--help").stdout
        for words in ("Never writes", "历史结算", "AAAAAAAAAAAAAA", "D200-D20B,D300", "never as 0"):
            assert words in text


class TestReadSaysWhoAnswered:
    def test_where_any_meter_was_asked(self, meters):
        done = run_shuiwang("read", *on(meters.port, address=ANY))
        json = msgspec.json.decode(run_shuiwang("read", *on(meters.port, "--json", address=ANY)).stdout)
        assert done.returncode == ExitCode.OK, done.stderr
        assert f"the meter on this line 线上的表: {METER}" in done.stdout
        assert (json["address"], json["answered_by"]) == (ANY, METER)

    def test_and_not_where_one_was_named(self, meters):
        done = run_shuiwang("read", *on(meters.port))
        json = msgspec.json.decode(run_shuiwang("read", *on(meters.port, "--json")).stdout)
        assert "线上的表" not in done.stdout
        assert json["answered_by"] is None


class TestConfiguration:
    @pytest.fixture
    def config(self, meters, tmp_path):
        file = tmp_path / "shuiwang.toml"
        file.write_text(CONFIG.format(folder=tmp_path, port=meters.port, address=METER), encoding="utf-8")
        return str(file)

    def test_a_meter_by_its_id(self, config):
        done = run("-c", config, "m-001", "--records", "D120")
        assert done.returncode == ExitCode.OK, done.stderr
        assert "m-001  /dev/pts" in done.stdout
        assert f"address 地址 {METER}" in done.stdout
        assert "120.50" in done.stdout

    def test_while_the_service_runs_nothing_is_sent(self, config, meters, tmp_path):
        lock = FolderLock(tmp_path)
        try:
            done = run("-c", config, "m-001")
        finally:
            lock.release()
        assert done.returncode == ExitCode.PORT
        assert "the service runs" in done.stderr
        assert meters.counts("cjt").requests == 0


class TestTerminal:
    def test_it_says_how_far_it_is_and_then_shows_the_table(self, meters):
        near, far = pty.openpty()
        command = shuiwang("history", *on(meters.port))
        process = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, start_new_session=True)
        os.close(far)
        seen, deadline = "", time.monotonic() + 25
        while "said twice alike" not in seen and time.monotonic() < deadline:
            try:
                seen += os.read(near, 4096).decode(errors="replace")
            except OSError:  # the far end is closed
                break
        assert process.wait(10) == ExitCode.OK
        os.close(near)
        assert re.search(r"reading 正在读 /dev/pts/\d+  D12\w  \d+/13", seen)
        assert "120.50" in seen

    def test_ctrl_c_shows_what_was_said(self, meters, tmp_path):
        slow = ["--records", "D120-D12B,D200-D2FF"]
        with Running(tmp_path / "log", *shuiwang("history", *on(meters.port, *slow)), stdin=subprocess.DEVNULL) as done:
            deadline = time.monotonic() + 20
            while meters.counts("cjt").requests < 6 and time.monotonic() < deadline:
                time.sleep(0.02)
            done.process.send_signal(signal.SIGINT)
            assert done.process.wait(10) == ExitCode.OK
        assert "stopped: the rest was not asked 已中断，其余未问" in done.text
        assert "120.50" in done.text
        assert "not asked 未问" in done.text
        assert "Traceback" not in done.text
