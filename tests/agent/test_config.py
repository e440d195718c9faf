"""The configuration: what is accepted, and that what is not is explained in full.

Each folder under testcases/config is a symptom: a file as somebody wrote it and every word that is said about it. After
a change of wording, `SHUIWANG_REFRESH=1 pytest tests/agent/test_config.py` writes the folders anew, to be reviewed.
"""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent import config
from agent.config import ConfigError, DetectionSettings
from agent.config_meters import WINDOW_H_MAX
from agent.config_table import SCHEMA
from agent.settings import MS_PER_HOUR, duration_in_words, volume_in_words
from protocols import profile

CASES = Path(__file__).parent / "testcases" / "config"
EXAMPLE = Path(__file__).parents[2] / "docs" / "shuiwang.example.toml"
HEAD = '[gateway]\nid = "g-1"\ncounty = "c"\n[broker]\nurl = "mqtt://localhost"\n'
BUS = '[[bus]]\nname = "b"\nport = "/dev/ttyS1"\n'
METER = '[[meter]]\nid = "m-1"\nbus = "b"\nprofile = "xintai"\naddress = "1"\n'
# Keys without a default: the example file shows an example of them.
WITHOUT_DEFAULT = {"ca_file", "cert_file", "key_file", "username", "password_file"}


def parse(text: str, *, folder: Path = Path("/etc/shuiwang")) -> config.Config:
    return config.parse(text, path=folder / "shuiwang.toml")


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("symptom", sorted(folder.name for folder in CASES.iterdir()))
def test_every_word_about_a_symptom(symptom, monkeypatch):
    monkeypatch.chdir(CASES / symptom)
    try:
        said = "".join(f"warning: {warning}\n" for warning in config.load(Path("shuiwang.toml")).warnings)
        said = said or "accepted without a warning\n"
    except ConfigError as error:
        said = f"{error}\n"
    if os.environ.get("SHUIWANG_REFRESH"):
        Path("expected.txt").write_text(said, encoding="utf-8")
    assert said == Path("expected.txt").read_text(encoding="utf-8")


def test_every_problem_says_what_would_be_right():
    for folder in CASES.iterdir():
        for line in (folder / "expected.txt").read_text(encoding="utf-8").splitlines():
            assert line == "accepted without a warning" or " — " in line or "did you mean" in line, (folder.name, line)


# The values of a good file.


def test_a_full_file_gives_exact_settings(tmp_path):
    for name in ("ca.pem", "gateway.pem", "gateway.key", "password"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o600)
    text = """
        [gateway]
        id = "g-0371522"
        county = "shenxian"
        data_dir = "data"
        timezone = "Asia/Urumqi"
        [broker]
        url = "mqtts://MQTT.example.org"
        ca_file = "ca.pem"
        cert_file = "gateway.pem"
        key_file = "./gateway.key"
        username = "g"
        password_file = "password"
        acknowledgement = "broker"
        [[bus]]
        name = "rs485-1"
        port = "rfc2217://[fe80::1]:4001"
        baudrate = 2400
        parity = "E"
        stop_bits = 2
        [detection]
        window_h = 24.5
        [[meter]]
        id = "m-001"
        bus = "rs485-1"
        profile = "usw-dn15-40"
        address = "017"
        poll_every_s = 0.5
        timeout_ms = 800
        retries = 0
        [[meter]]
        id = "m-002"
        bus = "rs485-1"
        profile = "xintai"
        address = "18"
        [meter.detection]
        threshold_m3 = "0.012345"
    """
    result = parse(text, folder=tmp_path)
    assert result.gateway == config.GatewaySettings(
        id="g-0371522", county="shenxian", data_dir=tmp_path / "data", timezone="Asia/Urumqi"
    )
    assert result.broker == config.BrokerSettings(
        url="mqtts://MQTT.example.org",
        host="mqtt.example.org",
        port=8883,
        tls=True,
        ca_file=tmp_path / "ca.pem",
        cert_file=tmp_path / "gateway.pem",
        key_file=tmp_path / "gateway.key",
        username="g",
        password_file=tmp_path / "password",
        acknowledgement="broker",
    )
    assert result.buses == (
        config.LineSettings(name="rs485-1", port="rfc2217://[fe80::1]:4001", baudrate=2400, parity="E", stop_bits=2),
    )
    first, second = result.meters
    assert (first.address, first.address_text, first.poll_every_s) == (17, "017", 0.5)
    assert (first.timeout_ms, first.retries, first.profile.name) == (800, 0, "usw-dn15-40")
    assert first.detection == DetectionSettings(window_ms=88_200_000, threshold_ml=100_000)
    timing = profile.load("xintai").timing
    assert (second.poll_every_s, second.timeout_ms, second.retries) == (300.0, timing.timeout_ms, timing.retries)
    assert second.detection == DetectionSettings(window_ms=88_200_000, threshold_ml=12_345)
    assert {warning.key for warning in result.warnings} == {
        'bus "rs485-1": baudrate',
        'meter "m-002": detection.threshold_m3',
        'bus "rs485-1": parity',
        'bus "rs485-1": stop_bits',
    }


def test_the_framings_of_modbus():
    over_tcp = BUS.replace("/dev/ttyS1", "socket://192.168.1.20:502") + 'framing = "tcp"\n'
    in_ascii = BUS + 'framing = "ascii"\ndata_bits = 7\nparity = "E"\n'
    (tcp,), (ascii_line,) = (parse(HEAD + bus + METER).buses for bus in (over_tcp, in_ascii))
    assert (tcp.framing, tcp.data_bits) == ("tcp", 8)
    assert (ascii_line.framing, ascii_line.data_bits) == ("ascii", 7)
    (shown,) = config.summary(parse(HEAD + in_ascii + METER))["buses"]
    assert (shown["line"], shown["framing"]) == ("9600 7E1", "ascii")


def test_a_line_over_tcp_has_no_settings_that_could_differ_from_the_factory():
    over_tcp = BUS.replace("/dev/ttyS1", "socket://h:502") + 'baudrate = 300\nframing = "tcp"\n'
    assert parse(HEAD + over_tcp + METER).warnings == ()


def test_any_unit_is_an_address_for_a_meter_alone_on_its_bus():
    meter = METER.replace("xintai", "usw-dn15-40").replace('"1"', '"0"')
    assert parse(HEAD + BUS + meter).meters[0].address == 0


@pytest.mark.parametrize("address", [0, 255])
def test_the_device_itself_is_an_address_where_the_framing_is_tcp(address):
    """Messaging on TCP/IP 4.4.2."""
    over_tcp = BUS.replace("/dev/ttyS1", "socket://192.168.1.20:502")
    meter = METER.replace('"1"', f'"{address}"')
    assert parse(HEAD + over_tcp + 'framing = "tcp"\n' + meter).meters[0].address == address
    for framing in ("rtu", "ascii"):
        (problem,) = problems_of(HEAD + over_tcp + f'framing = "{framing}"\n' + meter)
        assert f'"{address}" cannot be the address of this meter' in problem
        assert ('"255" is the device itself and exists where the framing is "tcp" only' in problem) == (address == 255)


def test_an_address_is_not_judged_by_a_bus_that_is_not_there():
    meter = METER.replace('"1"', '"255"').replace('bus = "b"', 'bus = "c"')
    (problem,) = [text for text in problems_of(HEAD + BUS + meter) if "no meter is on" not in text]
    assert 'there is no bus "c"' in problem


def cjt188_meters(*addresses):
    return "".join(
        METER.replace("xintai", "cjt188-water").replace("m-1", f"m-{number}").replace('"1"', f'"{address}"')
        for number, address in enumerate(addresses, 1)
    )


@pytest.mark.parametrize(
    "others",
    [
        ["00000805000001"],
        ["0005:00000805000001"],  # a meter on the wire ignores the modem's destination, and answers whoever asks
        ["00000805000001", "00000805000002"],
    ],
)
def test_the_address_of_any_cjt188_meter_is_for_one_that_is_alone(others):
    for addresses in (["A" * 14, *others], [*others, "A" * 14]):
        (problem,) = problems_of(HEAD + BUS + cjt188_meters(*addresses))
        number = addresses.index("A" * 14) + 1
        assert f'meter "m-{number}" has the address "{"A" * 14}", which others on this bus may answer too' in problem
    with_destination = cjt188_meters(f"0005:{'A' * 14}", "00000805000001")
    assert "others on this bus may answer too" in problems_of(HEAD + BUS + with_destination)[0]


def test_the_address_of_any_cjt188_meter_beside_other_protocols_or_another_modem():
    assert parse(HEAD + BUS + cjt188_meters("A" * 14)).meters[0].address.address == "A" * 14
    assert parse(HEAD + BUS + cjt188_meters("A" * 14) + METER.replace("m-1", "m-9"))
    assert parse(HEAD + BUS + cjt188_meters(f"0005:{'A' * 14}", f"0006:{'A' * 14}"))


def test_what_is_left_out_is_the_county_rule_and_the_usual_line():
    result = parse(HEAD + BUS + METER)
    assert result.meters[0].detection == DetectionSettings(window_ms=12 * MS_PER_HOUR, threshold_ml=100_000)
    assert result.gateway.data_dir == Path("/var/lib/shuiwang")
    assert result.gateway.timezone == "Asia/Shanghai"
    assert result.buses == (config.LineSettings(name="b", port="/dev/ttyS1"),)
    assert result.broker == config.BrokerSettings(url="mqtt://localhost", host="localhost", port=1883, tls=False)


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        parse(HEAD + BUS + METER).gateway.id = "other"


@pytest.mark.parametrize(
    ("text", "millilitres"),
    [("0.1", 100_000), ("0.000001", 1), ("1.10", 1_100_000), ("1000", 10**9), ("00.3", 300_000)],
)
def test_thresholds_are_exact(text, millilitres):
    meter = METER.replace("xintai", "usw-dn15-40")
    result = parse(HEAD + BUS + meter + f'[detection]\nthreshold_m3 = "{text}"\n')
    assert result.meters[0].detection.threshold_ml == millilitres


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("12", 43_200_000), ("0.001", 3600), ("0.1", 360_000), ("1e-3", 3600), ("240", 864_000_000)],
)
def test_windows_are_exact(text, milliseconds):
    result = parse(HEAD + BUS + METER + f"poll_every_s = 0.1\n[detection]\nwindow_h = {text}\n")
    assert result.meters[0].detection.window_ms == milliseconds


def test_the_longest_window_fits_the_integers_of_small_boards():
    assert WINDOW_H_MAX * MS_PER_HOUR < 2**30


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtt://localhost:1", "localhost", 1, False),
        ("mqtts://broker.example.org:65535", "broker.example.org", 65535, True),
        ("mqtts://[2001:db8::1]", "2001:db8::1", 8883, True),
        ("MQTTS://10.0.0.1/", "10.0.0.1", 8883, True),
        ("mqtt://mqtt_broker", "mqtt_broker", 1883, False),
    ],
)
def test_broker_urls(url, host, port, tls):
    broker = parse(HEAD.replace("mqtt://localhost", url) + BUS + METER).broker
    assert (broker.host, broker.port, broker.tls) == (host, port, tls)


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://",
        "mqtt://:1883",
        "mqtt://a b",
        "mqtt://h:0",
        "mqtt://h:-1",
        "mqtt://[::1",
        "mqtt://h?x",
        "mqtt://h#x",
        "://h",
    ],
)
def test_what_is_no_broker_url(url):
    (problem,) = problems_of(HEAD.replace("mqtt://localhost", url) + BUS + METER)
    assert problem.startswith("/etc/shuiwang/shuiwang.toml:5: broker: url: ")


@pytest.mark.parametrize("url", ["mqtt://127.0.0.1", "mqtt://127.8.8.8", "mqtt://[::1]", "mqtts://example.org"])
def test_an_encrypted_or_local_broker_is_no_reason_to_warn(url):
    assert parse(HEAD.replace("mqtt://localhost", url) + BUS + METER).warnings == ()


@pytest.mark.parametrize(
    "port", ["/dev/serial/by-id/usb-FTDI", "socket://10.0.0.1:4001", "loop://", "spy:///dev/ttyS0"]
)
def test_ports(port):
    assert parse(HEAD + BUS.replace("/dev/ttyS1", port) + METER).buses[0].port == port


@pytest.mark.parametrize(
    "port", ["socket://:4001", "socket://h:0", "socket://h:65536", "rfc2217://h", "usb://1", "tty/S1"]
)
def test_what_is_no_port(port):
    (problem,) = problems_of(HEAD + BUS.replace("/dev/ttyS1", port) + METER)
    assert ':8: bus "b": port: ' in problem


def test_one_adapter_under_two_names_is_one_port(tmp_path):
    device = tmp_path / "ttyUSB0"
    device.touch()
    (tmp_path / "by-id").symlink_to(device)
    other = BUS.replace('"b"', '"b-2"')
    text = HEAD + BUS.replace("/dev/ttyS1", str(device)) + other.replace("/dev/ttyS1", str(tmp_path / "by-id")) + METER
    (problem,) = problems_of(text)
    assert 'bus "b-2": port: bus "b" on line 8 has the same port' in problem


@pytest.mark.parametrize("key", ["password_file", "key_file"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_secret_that_others_can_read_is_a_warning(tmp_path, key, mode):
    secret = tmp_path / "secret"
    secret.write_text("x")
    (tmp_path / "public").write_text("x")
    secret.chmod(mode)
    keys = f'username = "g"\n{key} = "secret"\n' + ('cert_file = "public"\n' if key == "key_file" else "")
    text = HEAD.replace("mqtt:", "mqtts:") + keys + BUS + METER
    (warning,) = parse(text, folder=tmp_path).warnings
    assert warning.key == f"broker: {key}"
    assert f"mode {mode:04o}" in warning.message
    assert f"chmod 600 {secret}" in warning.message
    secret.chmod(0o600)
    assert parse(text, folder=tmp_path).warnings == ()


def test_relative_paths_begin_at_the_folder_of_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "etc"
    folder.mkdir()
    source = Path(profile.__file__).parent / "profiles" / "xintai.toml"
    (folder / "mine.toml").write_text(
        source.read_text(encoding="utf-8").replace('"xintai"', '"mine"'), encoding="utf-8"
    )
    text = HEAD.replace("[broker]", 'data_dir = "data"\n[broker]') + BUS + METER.replace('"xintai"', '"mine.toml"')
    (folder / "shuiwang.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = config.load(Path("etc/shuiwang.toml"))
    assert result.meters[0].profile.name == "mine"
    assert result.gateway.data_dir == folder / "data"


@pytest.mark.parametrize("name", ["/", "/dev/zero", "x" * 5000 + "/y", "nowhere/"])
def test_a_profile_that_is_no_file_is_refused_without_reading_it(name):
    (problem,) = problems_of(HEAD + BUS + METER.replace('"xintai"', f'"{name}"'))
    assert 'meter "m-1": profile: ' in problem


@pytest.mark.parametrize("name", ["Asia", "../../etc/passwd", "/etc/localtime", "x" * 5000, "Asia/", "zone.tab"])
def test_what_is_no_time_zone(name):
    (problem,) = problems_of(HEAD.replace("[broker]", f'timezone = "{name}"\n[broker]') + BUS + METER)
    assert ":4: gateway: timezone: there is no time zone" in problem


@pytest.mark.parametrize(
    ("for_all", "for_one", "key"),
    [
        ('threshold_m3 = "0.01"\nwindow_h = 24', "", "detection: threshold_m3"),
        ('threshold_m3 = "0.0999"\nwindow_h = 12.5', "", "detection: threshold_m3"),
        ('threshold_m3 = "0.01"', "window_h = 24", 'meter "m-1": detection.window_h'),
        ("window_h = 24", 'threshold_m3 = "0.01"', 'meter "m-1": detection.threshold_m3'),
        ('threshold_m3 = "0.01"\nwindow_h = 12', "", None),
        ('threshold_m3 = "0.1"\nwindow_h = 24', "", None),
        ('threshold_m3 = "0.01"\nwindow_h = 24', "red_cost_h = 400", "detection: threshold_m3"),
    ],
)
def test_few_litres_in_many_hours_make_red_late(for_all, for_one, key):
    detection = f"[meter.detection]\n{for_one}\n" if for_one else ""
    said = parse(f"{HEAD}{BUS}[detection]\n{for_all}\n{METER}{detection}").warnings
    assert [one.key for one in said] == ([] if key is None else [key]), said
    assert all("red came 10 hours later in the backtest" in one.message for one in said)


def test_a_rule_for_all_is_reported_once_for_many_meters():
    meters = "".join(METER.replace("m-1", f"m-{n}").replace('"1"', f'"{n}"') for n in range(1, 201))
    text = HEAD + BUS + '[detection]\nthreshold_m3 = "0.0001"\nwindow_h = 0.01\n' + meters
    threshold, window = problems_of(text)
    assert '(meter "m-1" and 199 more)' in threshold
    assert '(meter "m-1" and 199 more)' in window


def test_a_default_that_does_not_fit_is_reported_without_a_line(tmp_path):
    source = Path(profile.__file__).parent / "profiles" / "xintai.toml"
    coarse = re.sub(r"step_ml = \d+", "step_ml = 1000000", source.read_text(encoding="utf-8"))
    (tmp_path / "coarse.toml").write_text(coarse, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse(HEAD + BUS + METER.replace('"xintai"', '"./coarse.toml"'), folder=tmp_path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (None, "detection: threshold_m3")
    assert "0.1 m³ is finer than xintai meters can tell, which count in steps of 1 m³" in problem.message


@pytest.mark.parametrize(("step_ml", "is_coarse"), [(20_000, False), (20_001, True), (100_000, True)])
def test_a_register_on_which_red_cannot_be_judged_is_warned_of_once_for_all_its_meters(tmp_path, step_ml, is_coarse):
    source = Path(profile.__file__).parent / "profiles" / "xintai.toml"
    coarse = re.sub(r"step_ml = \d+", f"step_ml = {step_ml}", source.read_text(encoding="utf-8"))
    (tmp_path / "coarse.toml").write_text(coarse, encoding="utf-8")
    fine = METER.replace("m-1", "m-9").replace('"1"', '"9"')
    meters = [
        METER.replace("m-1", f"m-{n}").replace('"1"', f'"{n}"').replace('"xintai"', '"./coarse.toml"') for n in (1, 2)
    ]
    said = [str(warning) for warning in parse(HEAD + BUS + fine + "".join(meters), folder=tmp_path).warnings]
    said = [warning for warning in said if "ever turns red" in warning]
    assert len(said) == is_coarse
    if is_coarse:
        assert f"steps of {volume_in_words(step_ml)}, above 0.02 m³" in said[0]
        assert "ever turns red (2 meters) — fit a meter that counts litres" in said[0]


# The example file is the reference.


def uncommented(text: str) -> str:
    return re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)


def test_the_example_file_loads_without_a_warning():
    assert config.load(EXAMPLE).warnings == ()


def test_the_example_file_mentions_every_key_and_no_other():
    tables = tomllib.loads(uncommented(EXAMPLE.read_text(encoding="utf-8")))
    mentioned = {kind: set(content[0] if isinstance(content, list) else content) for kind, content in tables.items()}
    assert mentioned == {kind: set(keys) for kind, keys in SCHEMA.items()}
    assert set(tables["meter"][0]["detection"]) == set(SCHEMA["detection"])


def test_the_example_file_shows_the_defaults():
    text = uncommented(EXAMPLE.read_text(encoding="utf-8"))
    kept = [line for line in text.splitlines() if line.partition(" =")[0] not in WITHOUT_DEFAULT]
    assert config.parse("\n".join(kept), path=EXAMPLE) == config.load(EXAMPLE)


def test_the_example_file_leaves_required_keys_uncommented():
    tables = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    for kind, keys in SCHEMA.items():
        content = tables[kind][0] if isinstance(tables[kind], list) else tables[kind]
        assert set(content) == {key for key, known in keys.items() if known.required}, kind


# Whatever is done to a file, it is accepted or explained.

FULL = "".join(
    line
    for line in uncommented(EXAMPLE.read_text(encoding="utf-8")).splitlines(keepends=True)
    if line.partition(" =")[0] not in WITHOUT_DEFAULT and not line.startswith("#")
)
ODD_VALUES = (
    *("", "1", "-1", "0", "0.0", "1e999", "1e99999999999999999999", "nan", "-inf", "true", "12 # x", "12 12"),
    *('""', '" "', '"\\u0000"', "[]", "[[[]]]", "{}", "{ a = 1 }", "[{}]", "'''\n'''", '"é—水"', '"."', '"/"', '"~"'),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "0x" + "f" * 5000, "9" * 5000, '"' + "9" * 5000 + '"'),
    *(
        '"0.' + "0" * 5000 + '1"',
        '"' + "a/" * 3000 + '"',
        '"..\\\\.."',
        '"://"',
        '"mqtt://[::1%eth0]"',
        '"socket://[]:1"',
    ),
    *('"mqtts://\\u2100/"', '"x.toml"', '"/dev/full.toml"', '"１２"', '"٣"', '"²"', '"1_0"', '"+1"', '"Infinity"'),
    *('"0,1"', '"1/2"', '"mqtt://h:１"', '"/dev/\\uD7FF"'),
)
lines_of_file = st.integers(0, FULL.count("\n") - 1)
edits = st.lists(
    st.one_of(
        st.tuples(st.just("value"), lines_of_file, st.sampled_from(ODD_VALUES)),
        st.tuples(st.just("value"), lines_of_file, st.text(max_size=8).map(json.dumps)),
        st.tuples(st.just("delete"), lines_of_file, st.none()),
        st.tuples(st.just("repeat"), lines_of_file, lines_of_file),
        st.tuples(st.just("bytes"), lines_of_file, st.binary(max_size=6)),
        st.tuples(
            st.just("heading"),
            lines_of_file,
            st.sampled_from(["[meter]", "[[gateway]]", "[a.b]", "[meter.detection.x]"]),
        ),
    ),
    min_size=1,
    max_size=6,
)


def edited(edits_: list[tuple[str, int, object]]) -> bytes:
    lines = FULL.encode().split(b"\n")
    for kind, number, what in edits_:
        at = number % len(lines)
        if kind == "value":
            lines[at] = lines[at].partition(b"=")[0] + b"= " + what.encode("utf-8", "surrogatepass")
        elif kind == "delete" and len(lines) > 1:
            del lines[at]
        elif kind == "repeat":
            lines.insert(at, lines[what % len(lines)])
        elif kind == "bytes":
            middle = len(lines[at]) // 2
            lines[at] = lines[at][:middle] + what + lines[at][middle:]
        elif kind == "heading":
            lines.insert(at, what.encode())
    return b"\n".join(lines)


def test_the_file_that_is_edited_is_a_good_one():
    assert set(tomllib.loads(FULL)) == set(SCHEMA)
    assert parse(FULL).warnings == ()


@settings(max_examples=400, deadline=None)
@given(edits)
@example([])
def test_no_edit_leads_to_anything_but_a_config_error(tmp_path_factory, edits_):
    path = tmp_path_factory.getbasetemp() / "edited.toml"
    path.write_bytes(edited(edits_))
    try:
        result = config.load(path)
        msgspec.json.encode(config.summary(result))
        problems = result.warnings
    except ConfigError as error:
        problems = error.problems or pytest.fail("an error without a problem")
    for problem in problems:
        assert str(problem).startswith(str(path))
        assert "\n" not in str(problem)
        assert len(str(problem)) < 1000


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in SCHEMA.items() for key in keys])
def test_every_odd_value_of_every_key_is_accepted_or_explained(kind, key):
    texts = {"gateway": HEAD, "broker": HEAD, "bus": BUS, "meter": METER, "detection": "[detection]\n"}
    table = texts[kind]
    for value in ODD_VALUES:
        heading = f"[[{kind}]]" if kind in {"bus", "meter"} else f"[{kind}]"
        without = re.sub(rf"^{key} = .*\n", "", table, flags=re.MULTILINE)
        changed = without.replace(f"{heading}\n", f"{heading}\n{key} = {value}\n")
        parts = dict.fromkeys([HEAD, BUS, METER, "[detection]\n"])
        try:
            parse("".join(changed if part == table else part for part in parts))
        except ConfigError as error:
            assert str(error)  # noqa: PT017 - both outcomes are right


# Limits.


def test_a_file_of_more_than_a_mebibyte_is_refused(tmp_path):
    path = tmp_path / "shuiwang.toml"
    text = HEAD + BUS + METER
    path.write_text(text + "#" * (1024 * 1024 - len(text)))
    assert len(config.load(path).meters) == 1
    path.write_text(text + "#" * (1024 * 1024 - len(text) + 1))
    with pytest.raises(ConfigError, match="is larger than 1024 KiB"):
        config.load(path)


def test_an_endless_file_is_refused():
    with pytest.raises(ConfigError, match="is larger than 1024 KiB"):
        config.load(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["nowhere/shuiwang.toml", ".", "a\0b"])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot be read .* — give the configuration's path with -c"):
        config.load(tmp_path / name)


def test_ten_thousand_meters_load_in_reasonable_time():
    buses = "".join(f'[[bus]]\nname = "b-{n}"\nport = "/dev/ttyS{n}"\n' for n in range(41))
    meter = '[[meter]]\nid = "m-{}"\nbus = "b-{}"\nprofile = "xintai"\naddress = "{}"\n'
    text = HEAD + buses + "".join(meter.format(n, n // 247, n % 247 + 1) for n in range(10_000))
    begun_s = time.process_time()
    assert len(parse(text).meters) == 10_000
    # Measured: 0.6 s on a two-core laptop; ten times that would still start within a watchdog's patience.
    assert time.process_time() - begun_s < 6


def test_ten_thousand_wrong_meters_are_reported_in_reasonable_time():
    text = HEAD + BUS + "".join(f'[[meter]]\nid = "m-{n}"\nbsu = "b{n}"\nprofile = "xin{n}"\n' for n in range(10_000))
    begun_s = time.process_time()
    assert len(problems_of(text)) == 30_000  # no address, an unknown key, an unknown profile
    assert time.process_time() - begun_s < 15


# What the command line shows.


def test_the_summary_is_json_and_says_the_rules_in_words():
    text = HEAD + BUS + METER + METER.replace("m-1", "m-2").replace('"1"', '"2"')
    text += (
        METER.replace("m-1", "m-3").replace('"1"', '"3"') + '[meter.detection]\nwindow_h = 24\nthreshold_m3 = "0.006"\n'
    )
    result = config.summary(parse(text))
    assert json.loads(json.dumps(result)) == result
    assert result["meters"] == 3
    assert [(rule["rule"], rule["meters"]) for rule in result["rules"]] == [
        ("less than 0.1 m³ in 12 h", 2),
        ("less than 6 L in 24 h", 1),
    ]
    (bus,) = result["buses"]
    assert (bus["name"], bus["port"], bus["line"]) == ("b", "/dev/ttyS1", "9600 8N1")
    assert [meter["id"] for meter in bus["meters"]] == ["m-1", "m-2", "m-3"]
    (late,) = result["warnings"]
    assert 'meter "m-3": detection.threshold_m3: less than 6 L in 24 h: red waits for the county\'s rule' in late


@pytest.mark.parametrize(
    ("duration_ms", "words"),
    [(43_200_000, "12 h"), (5_400_000, "90 min"), (3600, "3.6 s"), (60_000, "1 min"), (100, "0.1 s")],
)
def test_durations_in_words(duration_ms, words):
    assert duration_in_words(duration_ms) == words


@pytest.mark.parametrize(
    ("volume_ml", "words"),
    [(100_000, "0.1 m³"), (10_000, "0.01 m³"), (9_999, "9.999 L"), (1, "0.001 L"), (10**9, "1000 m³")],
)
def test_volumes_in_words(volume_ml, words):
    assert volume_in_words(volume_ml) == words


def test_the_configuration_needs_no_network_store_or_asyncio():
    code = "import sys, agent.config; sys.exit(bool({'asyncio', 'sqlite3', 'aiomqtt'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=EXAMPLE.parents[1])
