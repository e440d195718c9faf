"""`shuiwang read` as a process, against simulated meters of three protocols on a pty: values, failures, Ctrl-C."""

import signal
import subprocess
import sys
import time

import msgspec
import pytest
from partners import pymodbus_meters
from partners.processes import Running, run_shuiwang, shuiwang

from agent.exit_codes import ExitCode
from agent.technician import advice, reading, words
from agent.technician.reading import Plan, Station
from agent.technician.watching import Watch
from gateway.clock import SystemClock
from gateway.line import LineSettings
from gateway.lock import FolderLock
from gateway.simulator import Village
from gateway.village_file import parse
from protocols import errors, flags, profile
from protocols.errors import NoResponse
from protocols.reading import Measurement

METERS = """
[line]
baudrate = 9600

[[meter]]
id = "usw"
profile = "usw-dn15-40"
address = "17"
start_m3 = "127.113"
since = 2090-01-01T00:00:00
usage = []

[[meter]]
id = "cjt"
profile = "cjt188-water"
address = "00002020120218"
start_m3 = "12.34"
since = 2090-01-01T00:00:00
usage = []

[[meter]]
id = "mbus"
profile = "mbus-water"
address = "5"
start_m3 = "7.654"
since = 2090-01-01T00:00:00
usage = []
"""
FAULT = """
[[meter]]
id = "bad"
profile = "xintai"
address = "18"
start_m3 = "1"
usage = []

[[meter.fault]]
kind = "{kind}"
"""


def village(text):
    return Village(parse(text, where="test"), clock=SystemClock())


@pytest.fixture
def meters():
    with village(METERS) as running:
        yield running


def read(*arguments):
    return run_shuiwang("read", *arguments)


# Where an answer is due there is time for it: on a busy machine the simulated meters may stand still for 0.2 s, and a
# reading is up to seven exchanges (M-Bus). Where none is due nobody waits for long.
PATIENT_MS = 5000
HASTY_MS = 150


def on(port, name, address, *more, timeout_ms=PATIENT_MS):
    where = ["--port", port, "--profile", name, "--address", address, "--baudrate", "9600"]
    return [*where, "--timeout-ms", str(timeout_ms), *more]


class TestValue:
    @pytest.mark.parametrize(
        ("name", "address", "volume_ml", "text"),
        [
            ("usw-dn15-40", "17", 127_113_000, "127.113000 m³"),
            ("cjt188-water", "00002020120218", 12_340_000, "12.34 m³"),
            ("mbus-water", "5", 7_654_000, "7.654 m³"),
        ],
    )
    def test_of_each_protocol_with_its_frames(self, meters, name, address, volume_ml, text):
        done = read(*on(meters.port, name, address, "--parity", "N"))
        assert done.returncode == ExitCode.OK, done.stderr + done.stdout
        assert text in done.stdout
        assert f"{volume_ml:,} mL".replace(",", " ") in done.stdout
        assert "ok 正常" in done.stdout
        assert ">>" in done.stdout
        assert "<<" in done.stdout
        assert "\x1b" not in done.stdout

    def test_json_is_the_same_with_every_byte(self, meters):
        done = read(*on(meters.port, "usw-dn15-40", "17", "--json"))
        told = msgspec.json.decode(done.stdout)
        assert told["volume_ml"] == 127_113_000
        assert told["volume_m3"] == "127.113000"
        assert told["quality"] == "ok"
        assert [frame["direction"] for frame in told["frames"]] == ["tx", "rx"] * 3, "asked twice, and the decoy"
        assert told["frames"][0]["hex"] == "11 03 02 04 00 04 06 E0"
        assert told["frames"][0]["at_ms"] <= told["frames"][1]["at_ms"] <= told["took_ms"]
        assert told["attempts"] == [{"at_ms": 0, "took_ms": told["took_ms"], "reason": None, "text": None}] or (
            len(told["attempts"]) == 1 and told["attempts"][0]["reason"] is None
        )

    def test_nothing_is_ever_sent_but_requests_to_read(self, meters):
        """Function 3 of Modbus, control 01 of CJ/T 188, SND_NKE and REQ_UD2 of M-Bus."""
        for name, address in (("usw-dn15-40", "17"), ("cjt188-water", "00002020120218"), ("mbus-water", "5")):
            told = msgspec.json.decode(read(*on(meters.port, name, address, "--parity", "N", "--json")).stdout)
            sent = [bytes.fromhex(frame["hex"]) for frame in told["frames"] if frame["direction"] == "tx"]
            assert sent
            for frame in (data.lstrip(b"\xfe") for data in sent):
                is_modbus_read = frame[0] == 17 and frame[1] == 3
                is_cjt188_read = frame[0] == 0x68 and frame[9] == 1
                is_mbus_read = frame[0] == 0x10 and frame[1] in {0x40, 0x5B, 0x7B}
                assert is_modbus_read or is_cjt188_read or is_mbus_read, frame.hex(" ")


class TestModbusFramings:
    @pytest.mark.e2e
    def test_a_meter_in_ascii_is_read_as_text(self, tmp_path):
        with pymodbus_meters.ascii_on_a_pty(tmp_path, {3: 802_609_751}) as port:
            options = ["--framing", "ascii", "--data-bits", "7", "--parity", "E"]
            done = read(*on(port, "usw-dn15-40", "3", *options))
            told = read(*on(port, "usw-dn15-40", "3", *options, "--json"))
            silent = read(*on(port, "usw-dn15-40", "9", *options, "--retries", "0", timeout_ms=HASTY_MS))
        assert done.returncode == 0, done.stderr
        for text in ("802.609751 m³", "9600 7E1", ">> :030302040004F0 CR LF"):
            assert text in done.stdout
        assert msgspec.json.decode(told.stdout)["volume_ml"] == 802_609_751
        assert silent.returncode == ExitCode.NO_READING
        assert "7E1" in silent.stdout

    @pytest.mark.e2e
    def test_a_meter_of_modbus_tcp_is_read_and_rtu_over_tcp_is_told_from_it(self):
        with pymodbus_meters.over_tcp({3: 802_609_751}) as port:
            done = read(*on(port, "usw-dn15-40", "3", "--framing", "tcp"))
            wrong = read(*on(port, "usw-dn15-40", "3", "--retries", "0", timeout_ms=HASTY_MS))
        assert done.returncode == 0, done.stderr
        assert "802.609751 m³" in done.stdout
        assert "Modbus TCP" in done.stdout
        assert wrong.returncode == ExitCode.NO_READING
        assert "--framing tcp" in wrong.stdout

    @pytest.mark.e2e
    def test_the_device_at_the_end_of_the_connection_is_read_itself(self):
        with pymodbus_meters.over_tcp({255: 802_609_751}) as port:
            done = read(*on(port, "usw-dn15-40", "255", "--framing", "tcp"))
            refused = read(*on(port, "usw-dn15-40", "255"))
        assert done.returncode == 0, done.stderr
        assert "802.609751 m³" in done.stdout
        assert refused.returncode == ExitCode.USAGE
        assert 'exists where the framing is "tcp" only' in refused.stderr


class TestFailure:
    def test_silence_is_told_with_what_to_check(self, meters):
        done = read(*on(meters.port, "usw-dn15-40", "99", timeout_ms=HASTY_MS))
        assert done.returncode == ExitCode.NO_READING
        assert "no answer 无应答" in done.stdout
        assert "2 attempts" in done.stdout
        assert "Are A and B swapped?" in done.stdout
        assert "地址 99" in done.stdout
        assert "m³" not in done.stdout

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("garbage", "garbled 乱码"),
            ('exception"\ncode = 2\nrate = 1.0 #', "refused 表拒绝"),
            ('wrong_unit"\naddress = "19" #', "wrong answer 错答"),
        ],
        ids=["garbage", "exception", "wrong_unit"],
    )
    def test_each_has_its_word_and_no_value(self, kind, words):
        with village("[line]\nbaudrate = 9600\n" + FAULT.format(kind=kind)) as running:
            # What is no answer is only called so when the time for one is over.
            done = read(*on(running.port, "xintai", "18", timeout_ms=500))
            told = msgspec.json.decode(read(*on(running.port, "xintai", "18", "--json", timeout_ms=500)).stdout)
        assert done.returncode == ExitCode.NO_READING
        assert words in done.stdout
        assert "m³" not in done.stdout
        assert told["volume_ml"] is None
        assert told["quality"] == "missing"
        assert told["check_next"]

    def test_a_port_that_is_not_there(self):
        done = read(*on("/dev/nowhere", "xintai", "1"))
        assert done.returncode == ExitCode.PORT
        assert "There is no such port" in done.stderr
        assert "没有这个串口" in done.stderr

    def test_a_port_that_another_program_holds(self, meters, tmp_path):
        holder = Running(
            tmp_path / "holder.log", *shuiwang("read", *on(meters.port, "usw-dn15-40", "17", "--watch", "1"))
        )
        with holder:
            holder.wait_for("127.113000")
            done = read(*on(meters.port, "usw-dn15-40", "17"))
        assert done.returncode == ExitCode.PORT
        assert f"(pid {holder.process.pid})" in done.stderr
        assert "systemctl stop shuiwang" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            ([], ExitCode.USAGE, "give --port, --profile, --address"),
            (["m-001"], ExitCode.USAGE, "needs -c FILE"),
            (on("/dev/x", "xintai", "500"), ExitCode.USAGE, "a Modbus address"),
            (on("/dev/x", "xintia", "1"), ExitCode.CONFIGURATION, "did you mean 'xintai'"),
            (on("/dev/x", "xintai", "1", "--parity", "X"), ExitCode.USAGE, "N (none"),
            (on("/dev/x", "xintai", "1", "--framing", "udp"), ExitCode.USAGE, "rtu, ascii or tcp"),
            (on("/dev/x", "xintai", "1", "--framing", "tcp"), ExitCode.USAGE, "socket://"),
            (on("/dev/x", "xintai", "1", "--data-bits", "7"), ExitCode.USAGE, "--framing ascii"),
            (on("/dev/x", "mbus-water", "1", "--framing", "ascii"), ExitCode.USAGE, "does not speak Modbus"),
            (["-c", "/nowhere.toml", "m-001"], ExitCode.CONFIGURATION, "/nowhere.toml"),
        ],
    )
    def test_what_cannot_be_meant(self, arguments, code, words):
        done = read(*arguments)
        assert done.returncode == code
        assert words in done.stderr
        assert "Traceback" not in done.stderr


CONFIG = """
[gateway]
id = "g-1"
county = "shenxian"
data_dir = "{folder}"

[broker]
url = "mqtt://127.0.0.1:1883"

[[bus]]
name = "line"
port = "{port}"

[[meter]]
id = "m-001"
bus = "line"
profile = "usw-dn15-40"
address = "17"
timeout_ms = 5000

[[meter]]
id = "m-002"
bus = "line"
profile = "usw-dn15-40"
address = "18"
timeout_ms = 5000
"""


class TestConfiguration:
    @pytest.fixture
    def config(self, meters, tmp_path):
        file = tmp_path / "shuiwang.toml"
        file.write_text(CONFIG.format(folder=tmp_path, port=meters.port), encoding="utf-8")
        return file

    @pytest.mark.parametrize("wanted", ["m-001", "17"])
    def test_a_meter_by_its_id_or_its_address(self, config, wanted):
        done = read("-c", str(config), wanted)
        assert done.returncode == ExitCode.OK, done.stderr
        assert "m-001" in done.stdout
        assert "127.113000 m³" in done.stdout

    def test_an_unknown_meter_and_none(self, config):
        for arguments, expected in ((["m-009"], "has no meter 'm-009'"), ([], "say which meter")):
            done = read("-c", str(config), *arguments)
            assert done.returncode == ExitCode.USAGE
            assert expected in done.stderr
            assert "m-001, m-002" in done.stderr

    def test_options_that_the_configuration_knows(self, config):
        done = read("-c", str(config), "m-001", "--port", "/dev/x")
        assert done.returncode == ExitCode.USAGE

    def test_while_the_service_runs_nothing_is_sent(self, config, meters, tmp_path):
        """Two masters on one line garble each other, also where the port cannot be locked."""
        lock = FolderLock(tmp_path)
        try:
            done = read("-c", str(config), "m-001")
        finally:
            lock.release()
        assert done.returncode == ExitCode.PORT
        assert "the service runs" in done.stderr
        assert "systemctl stop shuiwang" in done.stderr
        assert meters.counts("usw").requests == 0


class TestWatch:
    def test_it_repeats_until_ctrl_c_and_sums_up(self, meters, tmp_path):
        running = Running(tmp_path / "log", *shuiwang("read", *on(meters.port, "usw-dn15-40", "17", "--watch", "0.2")))
        with running:
            running.wait_for(r"(?s)L/h.*L/h")
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(10) == ExitCode.OK
        assert "readings 次读数, 0 failed" in running.text
        assert "Traceback" not in running.text

    def test_json_gives_a_line_for_each(self, meters, tmp_path):
        command = shuiwang("read", *on(meters.port, "usw-dn15-40", "17", "--json", "--watch", "0.2"))
        running = Running(tmp_path / "log", *command)
        with running:
            running.wait_for(r"(?s)flow_l_h")
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(10) == ExitCode.OK
        lines = [msgspec.json.decode(line) for line in running.text.splitlines()]
        assert {line["volume_ml"] for line in lines} == {127_113_000}
        assert lines[1]["difference_ml"] == 0

    def test_a_watch_without_any_value_says_so(self, meters, tmp_path):
        command = shuiwang("read", *on(meters.port, "usw-dn15-40", "99", "--watch", timeout_ms=HASTY_MS))
        running = Running(tmp_path / "log", *command)
        with running:
            running.wait_for("no answer")
            time.sleep(0.3)
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(10) == ExitCode.NO_READING

    def test_flow_is_the_difference_over_the_time(self):
        shown = iter([(0.0, 1000), (10.0, 2000), (20.0, None), (40.0, 5000)])
        now = [0.0]
        plan = Plan(
            meter="x",
            line=LineSettings(name="x", port="x"),
            profile=profile.load("usw-dn15-40"),
            address=1,
            address_text="1",
            timeout_ms=10,
            retries=0,
        )

        class Fake:
            def __init__(self):
                self.plan = plan

            def read(self):
                now[0], volume_ml = next(shown)
                value = None if volume_ml is None else Measurement(volume_ml=volume_ml)
                error = NoResponse("no answer") if value is None else None
                return reading.Report(
                    plan=plan, wall_ms=0, took_ms=0, attempts=(), frames=(), measurement=value, error=error
                )

        watch = Watch(Fake(), every_s=1, monotonic=lambda: now[0], pause=lambda seconds: None)
        reports = watch.reports()
        changes = [next(reports)[1:] for _ in range(4)]
        assert changes[0] == (None, None)
        assert changes[1][0].flow_l_h == pytest.approx(360)  # 1 L in 10 s
        assert changes[2] == (None, None)
        assert changes[3][0].flow_l_h == pytest.approx(360)  # 3 L in 30 s: since the last value, not the last attempt
        assert changes[3][1].volume_ml == 4000
        assert (watch.readings, watch.missed) == (3, 1)


class TestAdvice:
    def report(self, error, heard=b"", **line):
        plan = Plan(
            meter="x",
            line=LineSettings(name="x", port="x", **line),
            profile=profile.load("cjt188-water"),
            address=None,
            address_text="1",
            timeout_ms=500,
            retries=0,
        )
        frames = (reading.Frame(direction="rx", at_ms=0, until_ms=0, data=heard),) if heard else ()
        return reading.Report(plan=plan, wall_ms=0, took_ms=0, attempts=(), frames=frames, error=error)

    def test_settings_that_differ_from_the_factory_are_named(self):
        said = [item.en for item in advice.after(self.report(NoResponse("x"), baudrate=9600))]
        assert any("used 9600 8N1, the factory setting is 2400 8E1" in text for text in said)

    def test_a_line_of_zeros_is_a_swapped_line(self):
        said = advice.after(self.report(errors.Garbled("x"), heard=b"\x00" * 20))
        assert "A and B swapped" in said[0].en

    def test_a_silent_cjt188_meter_may_heed_its_own_type_only(self):
        said = [item.en for item in advice.after(self.report(NoResponse("x")))]
        assert any("--profile cjt188-hot-water" in text for text in said)

    def test_each_piece_of_advice_fits_a_line_of_80(self):
        """So that a failure is seen whole on a small terminal."""
        from rich.cells import cell_len

        for error in (NoResponse, errors.Garbled, errors.WrongAnswer, errors.MeterRefused, errors.MeterFault):
            for said in advice.after(self.report(error("x"), heard=b"\xfe")):
                assert cell_len(said.zh) <= 77, said.zh
                assert cell_len(said.en) <= 77, said.en


def test_a_station_reports_each_attempt(meters):
    loaded = profile.load("usw-dn15-40")
    plan = Plan(
        meter="x",
        line=LineSettings(name="x", port=meters.port),
        profile=loaded,
        address=99,
        address_text="99",
        timeout_ms=50,
        retries=2,
    )
    station = Station(plan, clock=SystemClock())
    try:
        report = station.read()
    finally:
        station.close()
    assert [attempt.reason for attempt in report.attempts] == ["no_response"] * 3
    assert [frame.direction for frame in report.frames] == ["tx"] * 3
    assert report.answer_ms is None


def test_every_flag_and_reason_has_its_words():
    """A code in place of a sentence sends the technician to the manual."""
    assert set(flags.USUAL_EFFECT) <= set(words.FLAGS)
    reasons = {leaf.reason for leaf in errors.MeterError.__subclasses__()}
    assert reasons <= set(words.REASONS)


def test_the_service_imports_none_of_the_tools():
    """A gateway has 60 MiB for everything."""
    script = (
        "import sys, agent.cli, agent.service\n"
        "import typer\n"
        "group = typer.main.get_command(agent.cli.app)\n"
        "assert group.get_command(None, 'run')\n"
        "print([name for name in sys.modules if name.startswith('agent.technician')])\n"
        "assert group.get_command(None, 'read')\n"
        "print('agent.technician.cli' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["[]", "True"]
