"""The check-up: each thing that can be wrong with a line or a gateway is named, with what to check next."""

import errno
import io
import json
import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import trustme
from partners import pymodbus_meters
from partners.mosquitto import Mosquitto
from partners.overheard_line import tapped, village
from partners.processes import find
from readings import at, shows, silent
from rich.console import Console

from agent import config as configuration
from agent.exit_codes import ExitCode
from agent.service import STORE_NAME
from agent.technician import (
    checkup_broker,
    checkup_gateway,
    checkup_meters,
    checkup_port,
    field_doctor,
    views_doctor,
)
from agent.technician.doctor import Doctor, exit_code
from agent.technician.finding import Finding
from agent.technician.words import Words
from gateway.clock import SystemClock
from gateway.line import LineSettings
from gateway.lock import FolderLock
from gateway.store import Store
from protocols.reading import ClockTrust, Moment

CONFIG = """
[gateway]
id = "g-1"
county = "shenxian"
data_dir = "data"
[broker]
url = "{url}"
{broker}
[[bus]]
name = "rs485-1"
port = "{port}"
{bus}
"""
METER = """
[[meter]]
id = "m-{address}"
bus = "rs485-1"
profile = "usw-dn15-40"
address = "{address}"
timeout_ms = {timeout_ms}
"""
NOW = Moment(wall_ms=1_800_000_000_000, trust=ClockTrust.SYNCED, uncertainty_ms=3, boot_id="b", boottime_ms=0)
PORT = LineSettings(name="b", port="/dev/ttyUSB7")


def write_config(
    folder, *, port="/dev/no-such-port", url="mqtt://127.0.0.1:1", broker="", bus="", addresses=(3,), timeout_ms=150
):
    path = folder / "shuiwang.toml"
    meters = "".join(METER.format(address=address, timeout_ms=timeout_ms) for address in addresses)
    path.write_text(CONFIG.format(port=port, url=url, broker=broker, bus=bus) + meters, encoding="utf-8")
    return path


def loaded(folder, **options):
    return configuration.load(write_config(folder, **options))


def shuiwang(*arguments, **options):
    command = [sys.executable, "-m", "agent.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False, **options)


def examine(config, **options):
    doctor = Doctor(SystemClock(), **{"reads": 3, "listen_s": 0.2, **options})
    return {(one.topic, one.data.get("meter", "")): one for one in doctor.examine_gateway(config)}


# -- the port ---------------------------------------------------------------------------------------------------------


def refuse(error):
    def opener(_):
        raise error

    return opener


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), "There is no such port"),
        (PermissionError(errno.EACCES, "Permission denied"), "dialout"),
        (OSError(errno.EAGAIN, "Could not exclusively lock port"), "If it is the service"),
    ],
)
def test_a_port_that_cannot_be_opened_says_why_and_what_to_do(error, says):
    (finding,) = checkup_port.device(PORT, opener=refuse(error))
    assert (finding.level, finding.code) == ("bad", ExitCode.PORT)
    assert says.lower() in " ".join(step.en for step in finding.next).lower()


def fake_sys(folder, driver="ftdi_sio", latency="16"):
    """A /sys as the kernel shows it for one USB adapter."""
    usb = folder / "devices" / "usb1" / "1-2"
    interface = usb / "1-2:1.0" / "ttyUSB7"
    interface.mkdir(parents=True)
    for name, text in (("idVendor", "0403"), ("idProduct", "6001"), ("manufacturer", "FTDI"), ("product", "FT232R")):
        (usb / name).write_text(text + "\n", encoding="ascii")
    (folder / "drivers" / driver).mkdir(parents=True)
    (interface / "driver").symlink_to(folder / "drivers" / driver)
    if latency:
        (interface / "latency_timer").write_text(latency + "\n", encoding="ascii")
    tty = folder / "class" / "tty" / "ttyUSB7"
    tty.mkdir(parents=True)
    (tty / "device").symlink_to(interface)
    return folder


def test_an_adapter_is_known_by_its_chip_its_latency_and_its_stable_name(tmp_path):
    by_id = tmp_path / "by-id"
    by_id.mkdir()
    (by_id / "usb-FTDI_FT232R").symlink_to("/dev/ttyUSB7")
    finding = checkup_port.adapter("/dev/ttyUSB7", sys_root=fake_sys(tmp_path / "sys"), by_id=by_id)
    assert (finding.level, finding.data["driver"], finding.data["idVendor"], finding.data["latency_timer_ms"]) == (
        "note", "ftdi_sio", "0403", 16,
    )  # fmt: skip
    steps = " ".join(step.en for step in finding.next)
    assert str(by_id / "usb-FTDI_FT232R") in steps
    assert "15 ms faster" in steps


def test_an_adapter_that_is_well_needs_no_advice(tmp_path):
    root = fake_sys(tmp_path, driver="ch341", latency="")
    finding = checkup_port.adapter("/dev/ttyUSB7", sys_root=root, by_id=tmp_path / "absent")
    assert (finding.level, finding.next, "CH340" in finding.says.en) == ("ok", (), True)


@pytest.mark.parametrize(
    ("port", "kind"), [("socket://h:1", "network"), ("/dev/pts/0", "pty"), ("/dev/ttyS99", "board")]
)
def test_what_is_no_usb_adapter_is_said_so(tmp_path, port, kind):
    assert checkup_port.adapter(port, sys_root=tmp_path, by_id=tmp_path).data["kind"] == kind


class Talking:
    """A port on which bytes come unasked, and whose writes may come back."""

    def __init__(self, heard=b"", *, echo=False):
        self.heard, self.echo = heard, echo

    @property
    def in_waiting(self):
        return len(self.heard)

    def read(self, size):
        data, self.heard = self.heard[:size], self.heard[size:]
        now[0] += 0.02
        return data

    def write(self, data):
        self.heard += data if self.echo else b""

    def close(self):
        pass


now = [0.0]


@pytest.mark.parametrize(
    ("heard", "level", "says"),
    [
        (b"", "ok", "quiet"),
        (b"\x00\xff\x00\x00" * 5, "warn", "no bias"),
        (b"\x13\x57\x9b\xdf" * 5, "warn", "another speed"),
        (bytes.fromhex("11 03 02 04 00 04 06 E0"), "bad", "modbus 17"),
    ],
)
def test_what_is_heard_in_silence_tells_bias_noise_and_other_masters(heard, level, says):
    finding = checkup_port.silence(PORT, seconds=0.5, opener=lambda _: Talking(heard), monotonic=lambda: now[0])
    assert (finding.level, says in finding.says.en) == (level, True), finding.says.en
    assert bool(finding.next) == (level != "ok")


@pytest.mark.parametrize(
    ("heard", "echo", "level"), [(b"", False, "ok"), (b"", True, "note"), (b"\x81\x82\x83", False, "warn")]
)
def test_an_echo_is_recognised(heard, echo, level):
    finding = checkup_port.echo(PORT, opener=lambda _: Talking(heard, echo=echo), monotonic=lambda: now[0])
    assert (finding.level, finding.data["echo"]) == (level, echo)


# -- meters -----------------------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_modbus_tcp_is_no_line_that_is_noisy_or_echoes(tmp_path):
    with pymodbus_meters.over_tcp({3: 802_609_751}) as port:
        line = LineSettings(name="b", port=port, framing="tcp")
        findings = list(Doctor(SystemClock(), listen_s=30).examine_port(line))  # 30 s: it must not listen at all
        config = loaded(tmp_path, port=port, bus='framing = "tcp"', addresses=(3, 9))
        meters = [one for (topic, _), one in examine(config, listen_s=30).items() if topic == "meter"]
    assert [one.topic for one in findings] == ["port", "adapter", "meters", "clock"]
    assert findings[1].data == {"kind": "modbus_tcp"}
    assert [(one.level, one.data["values"]) for one in meters] == [("ok", 3), ("bad", 0)]


def test_the_echo_of_an_ascii_line_is_looked_for_in_ascii():
    sent = []

    class Wire(Talking):
        def write(self, data):
            sent.append(data)
            super().write(data)

    line = LineSettings(name="b", port="p", framing="ascii")
    finding = checkup_port.echo(line, opener=lambda _: Wire(echo=True), monotonic=lambda: now[0])
    assert (finding.level, finding.data["echo"]) == ("note", True)
    assert sent == [b":F7030000000105\r\n"]


@pytest.mark.e2e
def test_every_meter_has_its_rate_its_times_and_its_causes(tmp_path):
    flip = '[[meter.fault]]\nkind = "flip_bit"\nrate = 0.5\n'
    late = '[[meter.fault]]\nkind = "late"\nlate_ms = 220\n'
    meters = [("usw-dn15-40", "3", "802.609751"), ("usw-dn15-40", "4", "1", flip), ("usw-dn15-40", "5", "1", late)]
    with village(*meters) as line:
        config = loaded(tmp_path, port=line.port, addresses=(3, 4, 5, 6))
        findings = examine(config, reads=6)
    good, garbled, slow, absent = (findings["meter", f"m-{address}"] for address in (3, 4, 5, 6))
    assert (good.level, good.data["rate"], good.data["volume_ml"]) == ("ok", 1.0, 802_609_751)
    latency = good.data["latency_ms"]
    assert 0 <= latency["min"] <= latency["median"] <= latency["max"] < 100
    assert garbled.level in {"warn", "bad"}
    assert garbled.data["causes"].keys() <= {"garbled", "wrong_answer", "no_response"}
    assert garbled.data["causes"]["garbled"]
    assert slow.data["late"] >= 1
    assert any("timeout_ms" in step.en for step in slow.next)
    assert (absent.level, absent.code, absent.data["causes"]) == ("bad", ExitCode.NO_READING, {"no_response": 3})
    assert any("powered" in step.en for step in absent.next)
    assert exit_code(findings.values()) is ExitCode.NO_READING


@pytest.mark.e2e
def test_an_echoing_adapter_is_noticed_and_does_not_hide_that_a_meter_is_silent(tmp_path):
    with village(("usw-dn15-40", "3", "1"), line="baudrate = 9600\necho = true") as line:
        findings = examine(loaded(tmp_path, port=line.port, addresses=(3, 4)))
    assert findings["echo", ""].data["echo"]
    assert findings["meter", "m-3"].level == "ok"
    assert findings["meter", "m-4"].data["causes"] == {"no_response": 3}
    assert any("Only our own request was heard" in step.en for step in findings["meter", "m-4"].next)


@pytest.mark.e2e
def test_into_a_line_with_another_master_nothing_is_asked(tmp_path):
    poll = [
        find("mbpoll"),
        "-m",
        "rtu",
        "-b",
        "9600",
        "-P",
        "none",
        "-0",
        "-r",
        "516",
        "-c",
        "4",
        "-t",
        "4:hex",
        "-a",
        "3",
    ]
    with village(("usw-dn15-40", "3", "1")) as line, tapped(tmp_path, line.port) as (master, tap):
        polling = subprocess.Popen([*poll, "-l", "300", master], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            findings = examine(loaded(tmp_path, port=tap), listen_s=1.5)
        finally:
            polling.kill()
            polling.wait()
    assert findings["silence", ""].level == "bad"
    assert not [key for key in findings if key[0] == "meter"]


# -- clock, disk, store -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "ok"),
        ({"trust": ClockTrust.UNSYNCED, "uncertainty_ms": None}, "warn"),
        ({"uncertainty_ms": 16_000}, "warn"),
        ({"wall_ms": 0}, "warn"),
    ],
)
def test_the_clock(changes, level):
    import msgspec

    finding = checkup_gateway.clock(msgspec.structs.replace(NOW, **changes))
    assert (finding.level, bool(finding.next)) == (level, level != "ok")


@pytest.mark.parametrize(
    ("free_mib", "flag", "level", "code"),
    [(10_000, 0, "ok", ExitCode.OK), (200, 0, "warn", ExitCode.OK), (10, 0, "bad", ExitCode.STORE),
     (10_000, os.ST_RDONLY, "bad", ExitCode.STORE)],
)  # fmt: skip
def test_the_disk(tmp_path, monkeypatch, free_mib, flag, level, code):
    space = SimpleNamespace(
        f_bavail=free_mib, f_frsize=1024 * 1024, f_blocks=20_000, f_favail=5, f_files=9, f_flag=flag
    )
    monkeypatch.setattr(checkup_gateway.os, "statvfs", lambda _: space)
    (finding,) = checkup_gateway.disk(loaded(tmp_path))
    assert (finding.level, finding.code) == (level, code)


def make_store(folder, readings=3):
    (folder / "data").mkdir()
    store = Store(folder / "data" / STORE_NAME, new_epoch="01ARZ3NDEKTSV4RRFFQ69G5FAV", reserve_bytes=0)
    store.commit([shows("m-3", number, 1 + number) for number in range(readings)], [])
    store.close()
    return folder / "data" / STORE_NAME


def test_a_sound_store_says_what_waits(tmp_path):
    make_store(tmp_path)
    (finding,) = checkup_gateway.store(loaded(tmp_path), SystemClock())
    assert (finding.level, finding.data["waiting"]["telemetry"]) == ("ok", 1)


def test_no_store_yet_is_no_fault(tmp_path):
    (finding,) = checkup_gateway.store(loaded(tmp_path), SystemClock())
    assert finding.level == "note"


@pytest.mark.parametrize("damage", ["header", "middle", "text"])
def test_a_damaged_store_is_found_and_never_touched(tmp_path, damage):
    path = make_store(tmp_path, readings=400)
    data = bytearray(path.read_bytes())
    at = {"header": 0, "middle": len(data) // 2 // 4096 * 4096, "text": 0}[damage]
    data[at : at + 2000] = b"\xa5" * 2000
    path.write_bytes(b"this is no database" if damage == "text" else bytes(data))
    before = path.read_bytes()
    *_, finding = checkup_gateway.store(loaded(tmp_path), SystemClock())
    assert (finding.level, finding.code) == ("bad", ExitCode.STORE), finding
    assert path.read_bytes() == before


def test_stores_that_were_set_aside_are_told(tmp_path):
    path = make_store(tmp_path)
    path.with_name(path.name + ".damaged-01ARZ3NDEKTSV4RRFFQ69G5FAV").write_bytes(b"x")
    first, _ = checkup_gateway.store(loaded(tmp_path), SystemClock())
    assert (first.level, len(first.data["set_aside"])) == ("warn", 1)


def test_while_the_service_runs_its_lines_are_left_alone_and_its_store_is_asked(tmp_path):
    make_store(tmp_path)
    lock = FolderLock(tmp_path / "data")
    try:
        findings = examine(loaded(tmp_path, addresses=(3, 4)), opener=refuse(AssertionError("the line was touched")))
    finally:
        lock.release()
    assert findings["service", ""].data == {"running": True}
    assert findings["meter", "m-3"].data["volume_ml"] == 3000
    assert findings["meter", "m-4"].level == "bad"


def test_a_meter_of_which_only_wrong_answers_are_stored_may_be_one_behind(tmp_path):
    (tmp_path / "data").mkdir()
    store = Store(tmp_path / "data" / STORE_NAME, new_epoch="01ARZ3NDEKTSV4RRFFQ69G5FAV", reserve_bytes=0)
    wrong = [silent(meter, 3, "wrong_answer") for meter in ("m-3", "m-4")]
    store.commit([shows("m-4", 2.99, 5), *wrong, silent("m-5", 3)], [])
    store.close()
    now = SimpleNamespace(now=lambda: at(3))
    found = list(checkup_gateway.meters_by_store(loaded(tmp_path, addresses=(3, 4, 5)), now))
    assert [one.level for one in found] == ["bad", "warn", "bad"], found
    assert "one answer behind" in found[0].next[0].en
    assert not [step for one in found[1:] for step in one.next if "behind" in step.en]


# -- the broker -------------------------------------------------------------------------------------------------------


def broker_findings(folder, **options):
    return list(checkup_broker.examine(loaded(folder, **options), now_ms=SystemClock().now().wall_ms, timeout_s=5))


@pytest.mark.e2e
def test_a_broker_that_is_there_is_reached_step_by_step(tmp_path):
    with Mosquitto(tmp_path / "broker") as broker:
        (finding,) = broker_findings(tmp_path, url=broker.url)
        log = broker.log.read_text(encoding="utf-8")
    assert (finding.level, list(finding.data["times_ms"])) == ("ok", ["tcp", "mqtt"])
    assert "g-1-doctor" in log
    assert "as g-1 " not in log, "the running service would have been thrown out"


@pytest.mark.e2e
def test_a_broker_that_knows_us_not_refuses_us(tmp_path):
    (tmp_path / "password").write_text("wrong", encoding="utf-8")
    (tmp_path / "password").chmod(0o600)
    with Mosquitto(tmp_path / "broker", allow_anonymous=False) as broker:
        (finding,) = broker_findings(tmp_path, url=broker.url, broker='username = "u"\npassword_file = "password"')
    assert (finding.level, finding.code, finding.data["step"]) == ("bad", ExitCode.BROKER, "mqtt")
    assert "refuses" in finding.says.en


@pytest.mark.e2e
@pytest.mark.parametrize("authority", ["right", "wrong"])
def test_tls_is_checked_with_its_authority(tmp_path, authority):
    right, wrong = trustme.CA(), trustme.CA()
    served = right.issue_cert("localhost")
    served.private_key_pem.write_to_path(tmp_path / "key.pem")
    served.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (right if authority == "right" else wrong).cert_pem.write_to_path(tmp_path / "ca.pem")
    with Mosquitto(tmp_path / "broker", extra=f"certfile {tmp_path}/cert.pem\nkeyfile {tmp_path}/key.pem\n") as broker:
        findings = broker_findings(tmp_path, url=f"mqtts://localhost:{broker.port}", broker='ca_file = "ca.pem"')
    last = findings[-1]
    if authority == "right":
        assert (last.level, list(last.data["times_ms"])) == ("ok", ["tcp", "tls", "mqtt"])
    else:
        assert (last.level, last.code, last.data["step"]) == ("bad", ExitCode.BROKER, "tls")
        assert any("ca_file" in step.en for step in last.next)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20"])
def test_what_is_no_broker_is_told(tmp_path, answer):
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    (finding,) = broker_findings(tmp_path, url=f"mqtt://127.0.0.1:{listener.getsockname()[1]}")
    thread.join()
    listener.close()
    assert (finding.level, finding.data["step"]) == ("bad", "mqtt")


def test_a_broker_that_is_not_there_or_has_no_name(tmp_path):
    (finding,) = broker_findings(tmp_path, url="mqtt://127.0.0.1:1")
    assert (finding.code, finding.data["step"]) == (ExitCode.BROKER, "tcp")
    assert "nobody listens" in finding.next[0].en
    (finding,) = broker_findings(tmp_path, url="mqtt://no-such-host.invalid:1883")
    assert finding.code is ExitCode.BROKER


def test_a_connect_is_what_the_standard_says():
    packet = checkup_broker.connect_packet(client_id="g", username="u", password="p" * 200)
    size = (packet[1] & 0x7F) + (packet[2] << 7)
    assert packet[0] == 0x10
    assert size == len(packet) - 3 == 10 + 3 + 3 + 202
    assert packet[3:11] == b"\x00\x04MQTT\x04\xc2"


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_code_is_that_of_the_first_thing_that_is_wrong():
    def finding(level, code):
        return Finding(topic="port", level=level, says=Words("", ""), code=code)

    assert exit_code([]) is ExitCode.OK
    assert (
        exit_code([finding("warn", ExitCode.OK), finding("bad", ExitCode.STORE), finding("bad", ExitCode.BROKER)]) == 5
    )


@pytest.mark.parametrize("level", ["ok", "note", "warn", "bad"])
@pytest.mark.parametrize("width", [80, 100])
def test_a_finding_fits_the_terminal_in_both_languages(level, width):
    console = Console(file=io.StringIO(), width=width)
    says = Words("水表 " + "很长 " * 40, "meter " + "quite long " * 30)
    console.print(views_doctor.render(Finding(topic="meter", level=level, says=says, next=(says,))))
    lines = console.file.getvalue().splitlines()
    assert all(console.measure(line).maximum <= width for line in lines)
    assert {"很长", "quite"} <= set(" ".join(lines).split())


@pytest.mark.e2e
def test_the_command_prints_json_and_ends_with_the_gravest_code(tmp_path):
    with village(("usw-dn15-40", "3", "802.609751")) as line, Mosquitto(tmp_path / "broker") as broker:
        path = write_config(tmp_path, port=line.port, url=broker.url)
        done = shuiwang("doctor", "-c", path, "--json", "--listen", 0.2, "--reads", 2)
        text = shuiwang("doctor", "-c", path, "--listen", 0.2, "--reads", 2)
        alone = shuiwang("doctor", "--port", line.port, "--listen", 0.2, "--json")
    result = json.loads(done.stdout)
    assert (done.returncode, result["exit_code"], result["complete"]) == (0, 0, True), done.stdout
    topics = [finding["topic"] for finding in result["findings"]]
    assert topics == ["port", "adapter", "silence", "meter", "clock", "disk", "store", "broker"]
    assert "802.609751 m³" in text.stdout
    assert [finding["topic"] for finding in json.loads(alone.stdout)["findings"]][:4] == [
        "port", "adapter", "silence", "echo",
    ]  # fmt: skip
    gone = shuiwang("doctor", "-c", path, "--listen", 0.2, "--json")
    assert gone.returncode == 6
    assert {finding["topic"] for finding in json.loads(gone.stdout)["findings"] if finding["level"] == "bad"} == {
        "port", "broker",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["-c", "x", "--port", "y"], 2), (["-c", "no-such-file"], 3), (["--port", "/dev/no-such-port"], 6),
     (["--port", "/dev/null"], 6), (["--port", "p", "--parity", "Q"], 2)],
)  # fmt: skip
def test_what_cannot_be_examined_ends_with_its_code_and_no_traceback(arguments, code):
    done = shuiwang("doctor", *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


@pytest.mark.parametrize(("level", "code"), [("ok", ExitCode.INTERRUPTED), ("bad", ExitCode.PORT)])
def test_a_check_up_that_is_stopped_is_neither_whole_nor_well(monkeypatch, capsys, level, code):
    """Ctrl-C after the first finding: what was not looked at may be what is wrong."""

    def stopped(doctor, line):
        yield Finding(topic="port", level=level, says=Words("串口", "port"), code=ExitCode.PORT)
        raise KeyboardInterrupt

    monkeypatch.setattr(Doctor, "examine_port", stopped)
    for as_json in (True, False):
        assert field_doctor.examine(None, PORT, reads=1, listen_s=0.1, as_json=as_json) is code
        told = capsys.readouterr()
        assert "stopped before the end 已中断" in told.err
        if as_json:
            result = json.loads(told.out)
            assert (result["exit_code"], result["complete"], len(result["findings"])) == (code, False, 1)
        else:
            assert "all well" not in told.out


def test_a_late_answer_is_counted_by_its_time():
    def frame(direction, at_ms, data):
        return SimpleNamespace(direction=direction, at_ms=at_ms, data=data)

    plan = SimpleNamespace(timeout_ms=100, line=LineSettings(name="l", port="p", baudrate=9600))
    request, answer = frame("tx", 0, b"x" * 8), b"y"
    for at_ms, late in ((50, 0), (107, 0), (109, 0), (130, 1)):
        report = SimpleNamespace(plan=plan, frames=(request, frame("rx", at_ms, answer)))
        assert checkup_meters.late_answers(report) == late, at_ms
