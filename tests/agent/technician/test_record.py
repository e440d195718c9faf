"""Captures: written while a line works, replayed to the same outcome, told apart when the decoder changes."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from partners import pymodbus_meters
from partners.overheard_line import tapped, village
from partners.processes import REPOSITORY, find

from agent.technician import capture, modbus_wire, replaying
from agent.technician.capture import CaptureError, Writer, outcome_code
from agent.technician.recording import BURST_S, PassiveRecorder
from agent.technician.trace import Trace
from gateway.line import LineSettings
from protocols import modbus, profile

LINE = LineSettings(name="t", port="t", baudrate=9600)
REQUEST, ANSWER = "11 03 02 04 00 04 06 E0", "11 03 08 00 00 00 00 00 01 F0 89 15 71"
HEAD = "line 9600\nframe 8N1\nmeter 17 usw-dn15-40 timeout_ms=100 retries=0\n"
ACTIVE = f"{HEAD}+0000 read 17\n+0100 >> {REQUEST}\n+0130 << {ANSWER}\n+0150 == 17: 127113 mL\n"


def shuiwang(*arguments, **options):
    command = [sys.executable, "-m", "agent.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, **options)


def replay(text, **options):
    return replaying.replay(capture.parse(text, where="capture"), **options)


def outcomes(text, **options):
    return [(outcome.now, outcome.is_same) for outcome in replay(text, **options).outcomes]


def test_an_active_capture_comes_out_as_recorded():
    assert outcomes(ACTIVE) == [("17: 127113 mL", True)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no_response"),
        ("+0130 << 11 03 08 00 00 00 00 00 01 F0 88 15 71\n", "garbled"),
        ("+0130 << 12 03 08 00 00 00 00 00 01 F0 89 51 30\n", "garbled"),
        ("+0130 << 11 83 02 C1 34\n", "refused"),
        (f"+0450 << {ANSWER}\n", "no_response"),
    ],
)
def test_an_active_capture_of_a_failure_fails_in_the_same_way(answer, reason):
    text = f"{HEAD}+0000 read 17\n+0100 >> {REQUEST}\n{answer}+0900 == 17: {reason}: whatever it said then\n"
    assert [same for _, same in outcomes(text)] == [True]
    assert [same for _, same in outcomes(text.replace(f": {reason}:", ": 127113 mL:"))] == [False]


def test_a_changed_outcome_is_found_and_shown(tmp_path):
    file = tmp_path / "capture.txt"
    file.write_text(ACTIVE.replace("127113 mL", "127114 mL"), encoding="utf-8")
    done = shuiwang("replay", file)
    assert done.returncode == 10
    assert "127114 mL" in done.stdout
    assert "不一致" in done.stdout
    assert outcomes(ACTIVE.replace("127113 mL", "garbled: noise")) == [("17: 127113 mL", False)]


def test_time_between_request_and_answer_is_kept_not_the_time_of_day():
    """An answer that came in time then comes in time now, however our own pauses have changed since."""
    shifted = ACTIVE.replace("+0100", "+9100").replace("+0130", "+9130").replace("+0150", "+9150")
    assert outcomes(shifted) == [("17: 127113 mL", True)]


def test_a_late_answer_to_the_reading_before_comes_late_again():
    late = ANSWER.replace("01 F0 89 15 71", "00 00 05 01 14")  # 5 mL
    assert bytes.fromhex(late) == modbus.add_crc(bytes.fromhex(late)[:-2])
    text = (
        f"{HEAD}+0000 read 17\n+0100 >> {REQUEST}\n+0220 == 17: no_response: no answer\n"
        f"+0220 read 17\n+0230 << {late}\n+0330 >> {REQUEST}\n+0360 << {ANSWER}\n+0365 >> {REQUEST}\n"
        f"+0395 << {ANSWER}\n+0600 == 17: 127113 mL\n"
    )
    assert [same for _, same in outcomes(text)] == [True, True]
    # The same bytes without the second answer: then the first might be the late one, and there is no value.
    assert [same for _, same in outcomes(text.replace(f"+0395 << {ANSWER}\n", ""))] == [True, False]


def test_a_request_that_we_would_no_longer_send_is_told():
    other = ACTIVE.replace(REQUEST, "11 03 02 00 00 04 47 21")
    (outcome,) = replay(other).outcomes
    assert outcome.request_differs
    assert not replay(ACTIVE).outcomes[0].request_differs


def in_framing(framing, *, transaction=700):
    """The active capture as it would be in another framing."""
    text = HEAD.replace("frame 8N1", f"frame 8N1\nframing {framing}") + "+0000 read 17\n"
    times, frames = (("+0100 >>", "+0130 <<"), ("+0170 >>", "+0200 <<")), (REQUEST, ANSWER)
    for pair in times[: 1 if framing == "tcp" else 2]:  # an 8-bit checksum is not believed at once
        for mark, frame in zip(pair, frames, strict=True):
            wire = modbus_wire.encode(bytes.fromhex(frame), framing, transaction=transaction)
            text += f"{mark} {wire.hex(' ')}\n"
    return text + "+0250 == 17: 127113 mL\n"


@pytest.mark.parametrize("framing", ["ascii", "tcp"])
def test_every_framing_is_replayed(framing):
    text = in_framing(framing)
    assert outcomes(text) == [("17: 127113 mL", True)]
    result = replay(text)
    assert {one.framing for one in result.heard} == {framing}
    assert result.heard[1].fits[0].volume_ml == 127_113
    assert outcomes(text.replace("127113 mL", "127114 mL")) == [("17: 127113 mL", False)]


def test_the_number_of_a_tcp_request_is_another_in_every_run_and_no_difference():
    for transaction in (0, 700, 65_535):
        (outcome,) = replay(in_framing("tcp", transaction=transaction)).outcomes
        assert (outcome.is_same, outcome.request_differs) == (True, False)


def test_an_answer_to_another_tcp_request_stays_one():
    """Only the number of the recorded request becomes ours; a late answer keeps its own, and is no value."""
    text = in_framing("tcp", transaction=700)
    answer = modbus_wire.encode(bytes.fromhex(ANSWER), "tcp", transaction=700).hex(" ")
    late = text.replace(f"<< {answer}", "<< 02 BB " + answer[6:])
    ((now, same),) = outcomes(late)
    assert (now.split(": ")[1], same) == ("wrong_answer", False)


@pytest.mark.parametrize("settings", [{"framing": "ascii", "data_bits": 7, "parity": "E"}, {"framing": "tcp"}, {}])
def test_a_capture_says_how_modbus_travelled(tmp_path, settings):
    file = tmp_path / "capture.txt"
    line = LineSettings(name="t", port="t", baudrate=9600, **settings)
    with Writer(file, line, remark="test") as writer:
        writer.event(0, ">>", b"x")
    loaded = capture.load(file).line
    assert msgspec.structs.replace(loaded, name="t", port="t") == line
    assert ("framing" in file.read_text(encoding="utf-8")) == bool(settings)


@pytest.mark.e2e
@pytest.mark.parametrize("framing", ["ascii", "tcp"])
def test_readings_of_pymodbus_meters_are_recorded_and_replayed(tmp_path, framing):
    file = tmp_path / "capture.txt"
    meters = {3: 802_609_751}
    served = pymodbus_meters.over_tcp(meters) if framing == "tcp" else pymodbus_meters.ascii_on_a_pty(tmp_path, meters)
    with served as port:
        done = shuiwang("record", "--port", port, "--framing", framing, "--to", file, "--read", "usw-dn15-40:3",
                        "--read", "usw-dn15-40:9", "--times", 2, "--every", 0, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["values"] == 2
    replayed = json.loads(shuiwang("replay", file, "--json").stdout)
    assert [outcome["same"] for outcome in replayed["outcomes"]] == [True] * 4
    assert {frame["framing"] for frame in replayed["frames"]} == {framing}
    assert replayed["outcomes"][0]["now"] == "3: 802609751 mL"


def test_another_profile_reads_it_otherwise_and_nothing_is_compared():
    assert outcomes(ACTIVE, profile=profile.load("usw-dn15-40")) == [("17: 127113 mL", None)]
    ((now, same),) = outcomes(ACTIVE, profile=profile.load("xintai"))
    assert same is None
    assert "mL" not in now


def test_passive_frames_become_outcomes_and_come_out_the_same(tmp_path):
    file = tmp_path / "capture.txt"
    broken = bytes.fromhex(ANSWER)[:-1] + b"\x00"
    with Writer(file, LINE, remark="test") as writer:
        recorder = PassiveRecorder(writer, LINE)
        for number, answer in enumerate([bytes.fromhex(ANSWER), broken, b"", bytes.fromhex("11 83 02 C1 34")]):
            recorder.feed(1000 * number, bytes.fromhex(REQUEST))
            if answer:
                recorder.feed(1000 * number + 50, answer)
            recorder.feed(1000 * number + 500, b"")
        recorder.finish()
    text = file.read_text(encoding="utf-8")
    assert [line.split(" == ")[1] for line in text.splitlines() if " == " in line] == [
        "17: 127113 mL", "17: garbled", "17: refused",
    ]  # fmt: skip
    result = replaying.replay(capture.load(file))
    assert [outcome.is_same for outcome in result.outcomes] == [True] * 3
    without_one = replay("".join(line for line in text.splitlines(True) if ANSWER not in line))
    assert without_one.differing, "an answer that is gone must not go unnoticed"


def test_a_capture_is_never_overwritten(tmp_path):
    file = tmp_path / "capture.txt"
    file.write_text("precious", encoding="utf-8")
    with pytest.raises(FileExistsError):
        Writer(file, LINE, remark="test")
    for arguments in (["--read", "usw-dn15-40:17"], []):
        done = shuiwang(
            "record", "--port", "/dev/null", "--to", file, "--seconds" if not arguments else "--times", 1, *arguments
        )
        assert done.returncode == 2, done.stderr
        assert "not overwritten" in done.stderr
    assert file.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 9600"),
        ("line 9600\n", "no bytes"),
        ("hello\n", ":1: 'hello' is no line of a capture"),
        ("line 9600\n+1 >> 1\n", ":2: '1' is not hexadecimal"),
        ("line 9600\n+1 !! gone until 5\n+1 >> 11\n", "belongs into a dialogue"),
        ("line 0\n+1 >> 11\n", "no line of a capture"),
        (ACTIVE.replace("usw-dn15-40", "no-such-profile"), "no-such-profile"),
        (ACTIVE.replace("meter 17", "meter 18"), "reads meter '17', but has no line"),
        (ACTIVE.replace("17", "999").replace("999 usw", "999 usw"), "is no address for usw-dn15-40"),
    ],
)
def test_what_is_no_capture_is_told_with_its_line(text, says):
    with pytest.raises(CaptureError) as error:
        replay(text)
    assert says in str(error.value)
    assert str(error.value).startswith(("capture", "meter"))


@given(st.text(max_size=300))
@example("+999999999999 read \n+0 << 00\nline 9600")
@example("line 9999999\nframe 8N1\n+000000000000 << " + "FE" * 100)
def test_hostile_captures_end_in_our_own_error(text):
    for hostile in (text, HEAD + text, ACTIVE + text):
        try:
            replay(hostile)
        except CaptureError:
            pass


def test_a_file_that_cannot_be_read_is_a_capture_error(tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00line")
    for file in (binary, tmp_path, tmp_path / "absent"):
        done = shuiwang("replay", file)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_bytes_close_together_are_one_line_of_a_capture():
    now_s = [0.0]
    trace = Trace(burst_s=BURST_S, monotonic=lambda: now_s[0])
    late_s = 0.015 + BURST_S + 0.001
    for at_s, direction, data in ((0, "tx", b"a"), (0.005, "rx", b"b"), (0.015, "rx", b"c"), (late_s, "rx", b"d")):
        now_s[0] = at_s
        trace.add(direction, data)
    trace.add("rx", b"")
    assert [(frame.mark, frame.data) for frame in trace.take()] == [(">>", b"a"), ("<<", b"bc"), ("<<", b"d")]
    assert trace.take() == []
    assert trace.now_ms() == round(late_s * 1000), "the clock goes on"


def test_outcomes_are_compared_without_their_wording():
    assert outcome_code("17: garbled: 3 bytes: 01") == outcome_code("17: garbled") == "garbled"
    assert outcome_code("17: 12 mL") == "12 mL"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("meter", "line"),
    [
        (("usw-dn15-40", "3", "802.609751"), "baudrate = 9600"),
        (("usw-dn15-40", "3", "802.609751"), "baudrate = 9600\necho = true"),
        (("cjt188-water-probe", "00000805000001", "77.12"), "baudrate = 2400\nparity = 'E'"),
        (("mbus-water", "5", "9.001"), "baudrate = 2400\nparity = 'E'"),
    ],
)
def test_real_readings_recorded_over_a_port_replay_to_the_same(tmp_path, meter, line):
    file = tmp_path / "capture.txt"
    name, address, m3 = meter
    with village(meter, line=line) as meters:
        done = shuiwang("record", "--port", meters.port, "--to", file, "--read", f"{name}:{address}", "--times", 2,
                        "--every", 0, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["values"] == 2
    result = replaying.replay(capture.load(file))
    assert [(outcome.now, outcome.is_same, outcome.request_differs) for outcome in result.outcomes] == [
        (f"{address}: {round(float(m3) * 10**6)} mL", True, False)
    ] * 2
    assert shuiwang("replay", file).returncode == 0


@pytest.mark.e2e
def test_a_silent_meter_is_recorded_too(tmp_path):
    file = tmp_path / "capture.txt"
    with village(("usw-dn15-40", "3", "1")) as meters:
        done = shuiwang("record", "--port", meters.port, "--to", file, "--read", "usw-dn15-40:4", "--times", 1)
    assert done.returncode == 9
    assert replaying.replay(capture.load(file)).outcomes[0].is_same
    assert "4: no_response" in file.read_text(encoding="utf-8")


@pytest.mark.e2e
def test_a_foreign_masters_readings_are_recorded_from_a_tap(tmp_path):
    file = tmp_path / "capture.txt"
    poll = [find("mbpoll"), "-m", "rtu", "-b", "9600", "-P", "none", "-0", "-r", "516", "-c", "4", "-t", "4:hex", "-1"]
    with village(("usw-dn15-40", "3", "802.609751")) as meters, tapped(tmp_path, meters.port) as (master, tap):
        asking = threading.Timer(
            1.5, lambda: subprocess.run([*poll, "-q", "-a", "3", master], capture_output=True, check=False)
        )
        asking.start()
        done = shuiwang("record", "--port", tap, "--to", file, "--baudrate", 9600, "--seconds", 4)
        asking.join()
    assert done.returncode == 0, done.stderr
    text = file.read_text(encoding="utf-8")
    assert "meter 3 " in text
    assert "== 3: 802609751 mL" in text
    assert shuiwang("replay", file).returncode == 0


OWN = (REPOSITORY / "protocols/profiles/usw-dn15-40.toml").read_text(encoding="utf-8").replace(
    'name = "usw-dn15-40"', 'name = "my-usw"'
)  # fmt: skip


def own_profile(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OWN, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("profile_", "capture_", "written"),
    [
        ("my.toml", "c.txt", "./my.toml"),
        ("profiles/my.toml", "c.txt", "profiles/my.toml"),
        ("my.toml", "pits/7/c.txt", "../../my.toml"),
        ("my meters/usw 1.toml", "c.txt", '"my meters/usw 1.toml"'),
        ("profiles/usw", "profiles/c.txt", "./usw"),
    ],
)
@pytest.mark.parametrize("moved", ["", "all", "into one folder"])
def test_a_meter_of_ones_own_is_replayed_and_compared(tmp_path, monkeypatch, profile_, capture_, written, moved):
    """Also after capture and profile went to another place together."""
    home = tmp_path / "home"
    own_profile(home / profile_)
    (home / capture_).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(home)
    named = capture.reference(f"./{profile_}", capture=Path(capture_))
    with Writer(Path(capture_), LINE, remark="test") as writer:
        writer.meter("17", named, timeout_ms=100, retries=0)
        writer.put(ACTIVE.removeprefix(HEAD).rstrip())
    assert f"\nmeter 17 {written} timeout_ms=100 retries=0\n" in Path(capture_).read_text(encoding="utf-8")
    monkeypatch.chdir("/")
    file = home / capture_
    if moved == "all":
        file = home.rename(tmp_path / "elsewhere") / capture_
    elif moved:
        (tmp_path / "one").mkdir()
        (home / profile_).rename(tmp_path / "one" / Path(profile_).name)
        file = file.rename(tmp_path / "one" / "c.txt")
    result = replaying.replay(capture.load(file))
    assert [(outcome.now, outcome.is_same) for outcome in result.outcomes] == [("17: 127113 mL", True)]


def test_the_way_to_a_profile_holds_behind_a_symbolic_link(tmp_path):
    own_profile(tmp_path / "real/deep/my.toml")
    (tmp_path / "real/deep/captures").mkdir()
    (tmp_path / "short").symlink_to(tmp_path / "real/deep/captures")
    named = capture.reference(str(tmp_path / "real/deep/my.toml"), capture=tmp_path / "short/c.txt")
    assert named == "../my.toml"
    assert capture.Meter(address="17", profile=named).load(folder=tmp_path / "short").name == "my-usw"


def test_a_built_in_profile_keeps_its_name():
    assert capture.reference("usw-dn15-40", capture=Path("/somewhere/c.txt")) == "usw-dn15-40"


@pytest.mark.parametrize("name", ['a"b.toml', "a\nb.toml"])
def test_a_name_that_no_line_can_hold_is_refused(tmp_path, name):
    with pytest.raises(CaptureError, match="rename it"):
        capture.reference(str(tmp_path / name), capture=tmp_path / "c.txt")


def test_a_profile_that_is_not_there_any_more_is_asked_for():
    for profile_ in ("./my.toml", "./" + "x" * 300 + ".toml"):
        with pytest.raises(CaptureError, match="beside the capture"):
            replay(ACTIVE.replace("usw-dn15-40", profile_))


def test_overheard_meters_of_ones_own_are_compared_too(tmp_path):
    own_profile(tmp_path / "my.toml")
    own = profile.load(str(tmp_path / "my.toml"))
    with Writer(tmp_path / "c.txt", LINE, remark="test") as writer:
        recorder = PassiveRecorder(writer, LINE, profile=own, named="./my.toml")
        recorder.feed(0, bytes.fromhex(REQUEST))
        recorder.feed(50, bytes.fromhex(ANSWER))
        recorder.finish()
    assert "meter 17 ./my.toml\n" in (tmp_path / "c.txt").read_text(encoding="utf-8")
    loaded = capture.load(tmp_path / "c.txt")
    assert [(outcome.now, outcome.is_same) for outcome in replaying.replay(loaded).outcomes] == [
        ("17: 127113 mL", True)
    ]
    (outcome,) = replaying.replay(loaded, profile=profile.load("usw-dn15-40")).outcomes
    assert (outcome.now, outcome.is_same) == ("17: 127113 mL", None)


@pytest.mark.e2e
def test_a_meter_of_ones_own_becomes_a_test_case(tmp_path):
    own_profile(tmp_path / "my.toml")
    file = tmp_path / "capture.txt"
    with village(("usw-dn15-40", "3", "802.609751")) as meters:
        done = shuiwang("record", "--port", meters.port, "--to", "capture.txt", "--read", "./my.toml:3", "--times", 2,
                        "--every", 0, "--json", cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    replayed = shuiwang("replay", file, "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["compared"] == 2
    file.write_text(file.read_text(encoding="utf-8").replace("802609751 mL", "802609752 mL"), encoding="utf-8")
    assert shuiwang("replay", file).returncode == 10


def test_one_address_is_one_model(tmp_path):
    done = shuiwang("record", "--port", "/dev/no-such-port", "--to", tmp_path / "c.txt",
                    "--read", "usw-dn15-40:17", "--read", "xintai:17", "--baudrate", 9600)  # fmt: skip
    assert done.returncode == 2
    assert "one model only" in done.stderr


def test_a_meter_that_answers_to_any_address_is_read_by_record_as_by_read(tmp_path):
    done = shuiwang("record", "--port", "/dev/no-such-port", "--to", tmp_path / "c.txt", "--read", "usw-dn15-40:0")
    assert done.returncode == 6, done.stderr
    request = modbus.add_crc(bytes.fromhex(REQUEST)[:-2].replace(b"\x11", b"\x00", 1)).hex(" ")
    text = ACTIVE.replace("meter 17", "meter 0").replace("read 17", "read 0").replace("== 17", "== 0")
    assert outcomes(text.replace(REQUEST, request)) == [("0: 127113 mL", True)]


@pytest.mark.parametrize("given_", ["usw-dn15-40", ":17", "usw-dn15-40:", "no-such:17", "usw-dn15-40:999", ":"])
def test_a_meter_that_cannot_be_is_told_before_anything_is_opened(tmp_path, given_):
    done = shuiwang("record", "--port", "/dev/no-such-port", "--to", tmp_path / "c.txt", "--read", given_)
    assert done.returncode in {2, 3}
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c.txt").exists()


def test_a_port_that_is_not_there_leaves_no_file(tmp_path):
    for more in (["--read", "usw-dn15-40:17"], ["--seconds", "1"]):
        done = shuiwang("record", "--port", "/dev/no-such-port", "--to", tmp_path / "c.txt", *more)
        assert done.returncode == 6, done.stderr
        assert not Path(tmp_path / "c.txt").exists()
