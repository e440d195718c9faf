"""The service never writes to a meter: not by what its code can say, and not by what any profile makes it send.

`shuiwang valve` is the one exception, and the service does not know it.
"""

import ast
import functools
import random
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from partners.virtual_line import VirtualClock, VirtualPort, skip_real_pauses, virtual_line

from agent.technician import history_records, scan_questions
from agent.technician.history import HistoryStation
from agent.technician.reading import Plan
from gateway.clock import SystemClock
from gateway.line import LineSettings
from gateway.meters import MeterReader
from gateway.responder import RESPONDERS, SimulatedMeter
from gateway.village_file import parse
from protocols import cjt188, cjt188_data, cjt188_dialogue, modbus, profile
from protocols.errors import MeterError, ProfileError

ROOT = Path(__file__).parents[2]
VALVE = "agent/technician/valve.py"
# Where bytes go out on a line of meters. A new place belongs here only once it is known to send nothing but reads.
SENDERS = {
    "gateway/line.py": "sends what a protocol's query encodes",
    "agent/technician/trace.py": "hands on what Line sends, and remembers it",
    "agent/technician/checkup_port.py": "one request to read, to a unit that nobody has",
    "agent/technician/scan_probe.py": "requests to read and for addresses",
}
# Who speaks of writing without ever sending it.
EXPLAINERS = {"agent/technician/explain_cjt188.py", "agent/technician/explain_mbus.py", "agent/technician/sniffing.py"}


@functools.cache
def trees():
    files = [file for folder in ("agent", "gateway") for file in (ROOT / folder).rglob("*.py")]
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def who_says(pattern):
    """The files in which a name, an attribute or an import matches."""
    found = set()
    for file, tree in trees().items():
        for node in ast.walk(tree):
            names = [getattr(node, "attr", None), getattr(node, "id", None)]
            names += [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            if any(re.fullmatch(pattern, name) for name in names if isinstance(name, str)):
                found.add(file)
    return found


class TestCode:
    def test_one_module_makes_the_command_of_a_valve(self):
        assert who_says("valve_request") == {VALVE}

    def test_nobody_else_names_a_control_code_that_writes(self):
        writes = "WRITE_DATA|WRITE_ADDRESS|SET_TOTAL|VENDOR_VALVE|SEND_DATA"
        assert who_says(writes) <= EXPLAINERS

    def test_nobody_asks_minimalmodbus_to_write(self):
        assert who_says("read_registers") == {"gateway/modbus_master.py"}, "the net has holes"
        assert who_says("write_(registers?|bits?|float|long|string)|_generic_command|_perform_command") == set()

    def test_bytes_go_out_in_known_places_only(self):
        ports = re.compile(r"(self\.)?_?(port|line|serial|instrument)\.write")
        found = {
            file
            for file, tree in trees().items()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ports.fullmatch(ast.unparse(node.func))
        }
        assert found == set(SENDERS)

    def test_every_request_of_ours_to_a_cjt188_meter_has_a_code_that_reads(self):
        """Frames are made by name: whoever gives another control code than these says so here."""
        reads = {"cjt188.READ_DATA", "cjt188.READ_ADDRESS"}
        hands_on = {  # what it shows or answers, as it was heard
            "agent/technician/decoding.py",
            "agent/technician/profile_wizard.py",
            "agent/technician/explain_cjt188.py",
        }
        odd = {
            (file, ast.unparse(keyword.value))
            for file, tree in trees().items()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"Frame", "cjt188.Frame", "msgspec.structs.replace"}
            for keyword in node.keywords
            if keyword.arg == "control" and ast.unparse(keyword.value) not in reads and file not in hands_on
        }
        assert odd == {("agent/technician/scan_probe.py", "control")}, "which has them from this table:"
        looks = [(is_any, is_closer) for is_any in (False, True) for is_closer in (False, True)]
        questions = [scan_questions.cjt188_questions(is_any=is_any, is_closer=closer) for is_any, closer in looks]
        assert {question.control for asked in questions for question in asked} <= {0x01, 0x03}

    def test_the_service_does_not_know_the_valve(self):
        code = (
            "import sys, agent.service, agent.poller, gateway.bus\n"
            "assert not [name for name in sys.modules if 'valve' in name or 'technician' in name]\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=30, cwd=ROOT)


def is_read(protocol, sent):
    """Whether bytes on the wire ask to read, by the numbers of the standards and none of our code."""
    if protocol == "modbus":
        return sent[1] in {3, 4}
    if protocol == "cjt188":
        frame = sent[sent.index(0x68) :]
        return frame[9] in {0x01, 0x03} and len(frame) == 13 + 3  # DI DI SER, nothing that could be written
    short = sent[0] == 0x10 and sent[1] & ~0x20 in {0x40, 0x5B}  # SND_NKE, REQ_UD2
    select = sent[0] == 0x68 and sent[4] & ~0x20 == 0x53 and sent[5:7] == b"\xfd\x52"
    return short or select


class TestNet:
    @pytest.mark.parametrize(
        ("protocol", "frame"),
        [
            ("modbus", "01 06 00 1C 00 02 C9 CD"),  # Xintai: close the valve
            ("modbus", "01 10 00 00 00 01 02 00 00 A6 50"),
            ("cjt188", "FE FE FE FE 68 10 69 05 90 05 15 33 78 04 04 A0 17 01 55 50 16"),
            ("cjt188", "FE FE FE 68 10 01 00 00 05 08 00 00 2A 04 A0 17 00 99 04 16"),
            ("mbus", "68 04 04 68 53 FE 51 01 A3 16"),
            ("mbus", "10 53 01 54 16"),
        ],
    )
    def test_it_catches_what_writes(self, protocol, frame):
        assert not is_read(protocol, bytes.fromhex(frame))


ADDRESSES = {"modbus": "17", "cjt188": "00000805000001", "mbus": "5"}
CASES = [
    (name, address, fault)
    for name in profile.built_in_names()
    for address in (
        ["5", "12345678"]
        if profile.load(name).head.protocol == "mbus" and profile.load(name).spec.says_medium
        else [ADDRESSES[profile.load(name).head.protocol]]
    )
    for fault in ("", "dead", "exception", "garbage", "wrong_unit")
]


def heard_by(responder):
    """A port at whose other end a simulated meter answers; its clock, and what was sent to it."""
    clock, sent = VirtualClock(), []
    port = VirtualPort(clock)

    def hear(data):
        sent.append(data)
        responder.pause()
        for answer in responder.hear(data, wall_ms=0):
            port.arrive(clock.now_s + 0.05, answer.before + answer.frame + answer.after)

    port.on_write = hear
    return port, clock, sent


@pytest.mark.parametrize(("name", "address", "fault"), CASES)
def test_whatever_the_meter_does_the_reader_only_reads(name, address, fault, monkeypatch):
    """Each built-in profile, those with a valve too; the meter answers, is silent, refuses, babbles, or is another."""
    skip_real_pauses(monkeypatch)
    more = {"exception": "code = 2\n", "wrong_unit": f'address = "{address[:-1]}9"\n'}.get(fault, "")
    text = f'[[meter]]\nprofile = "{name}"\naddress = "{address}"\nstart_m3 = "1"\nusage = []\n'
    text += f'[[meter.fault]]\nkind = "{fault}"\n{more}' if fault else ""
    (plan,) = parse(text, where="v").meters
    responder = RESPONDERS[plan.profile.head.protocol]([SimulatedMeter(plan, chance=random.Random(3))])
    port, _, sent = heard_by(responder)
    reader = MeterReader(profile=plan.profile, address=plan.address, timeout_ms=100, retries=1)
    line = virtual_line(port, baudrate=9600)
    got = 0
    for _ in range(3):
        try:
            got += reader.read(line).volume_ml == 1_000_000
        except MeterError:
            assert fault
    assert got == 3 or fault
    assert sent
    assert all(is_read(plan.profile.head.protocol, data) for data in sent)


@pytest.mark.parametrize("fault", ["", "dead", "exception", "garbage", "wrong_unit", "flip_bit"])
@pytest.mark.parametrize("address", [ADDRESSES["cjt188"], cjt188.BROADCAST])
@pytest.mark.parametrize("name", [name for name in profile.built_in_names() if name.startswith("cjt188-")])
def test_whatever_the_meter_does_its_memory_is_only_read(name, address, fault):
    """`shuiwang history` with every identifier that it knows, the meter's address asked first where it is not given."""
    more = {"exception": "code = 2\n", "wrong_unit": 'address = "00000805000009"\n', "flip_bit": "rate = 0.5\n"}
    text = f'[[meter]]\nprofile = "{name}"\naddress = "{ADDRESSES["cjt188"]}"\nusage = []\n'
    text += 'settled_m3 = ["3", "empty", "refused", "1"]\n'
    text += f'[[meter.fault]]\nkind = "{fault}"\n{more.get(fault, "")}' if fault else ""
    (simulated,) = parse(text, where="v").meters
    responder = RESPONDERS["cjt188"]([SimulatedMeter(simulated, chance=random.Random(3))])
    port, clock, sent = heard_by(responder)
    plan = Plan(
        meter="m",
        line=LineSettings(name="line", port="/dev/virtual"),
        profile=simulated.profile,
        address=simulated.profile.parse_address(address),
        address_text=address,
        timeout_ms=100,
        retries=1,
    )
    station = HistoryStation(
        plan, clock=SystemClock(), opener=port.open, monotonic=clock.monotonic, pause=clock.pause, chance=lambda: 0.9
    )
    identifiers = history_records.parse_records("901F,D120-D12B,D200-D203,D300,D3FF,D400,D4FF")
    report = station.read(identifiers)
    assert report.remembers or fault
    assert sent
    assert all(is_read("cjt188", data) for data in sent)


# What a profile may say that reaches the wire, and what it may try: whole frames that close a valve in its header.
EVIL = ("6810010000050800000404A0170099DE16", "0106001C0002C9CD", "6804046853055101AA16", "3A3131303630303143", "68")
HEX_BYTES = st.binary(max_size=9).map(bytes.hex)
CJT188_SPECS = st.fixed_dictionaries(
    {},
    optional={
        "tx_prefix": st.one_of(st.sampled_from(EVIL), HEX_BYTES, HEX_BYTES.map(lambda text: "68" + text)),
        "meter_type": st.integers(0, 255),
        "preamble_bytes": st.integers(0, 32),
        "di_order": st.sampled_from(["901F", "1F90", "probe", "A017"]),
        "layout": st.sampled_from(["standard", "short", "A017"]),
        "control": st.sampled_from([4, 0x2A]),
        "valve": st.fixed_dictionaries({"open": st.just(0x55), "close": st.just(0x99)}),
    },
)
CJT188_ADDRESSES = st.builds(
    lambda prefix, digits: f"{prefix.upper()}:{digits}" if prefix else digits,
    st.one_of(st.sampled_from(EVIL), HEX_BYTES),
    st.one_of(st.from_regex("[0-9]{14}", fullmatch=True), st.just("A" * 14), st.just("99004A0170040401")),
)
MODBUS_SPECS = st.fixed_dictionaries(
    {
        "read": st.lists(
            st.fixed_dictionaries({"address": st.integers(0, 65535), "count": st.integers(0, 200)}), min_size=1
        ),
        "total": st.just([{"address": 0}]),
        "unit": st.just("m3"),
    },
    optional={
        "function": st.integers(0, 255),
        "max_registers": st.integers(0, 200),
        "any_unit": st.booleans(),
    },
)
MBUS_SPECS = st.fixed_dictionaries(
    {},
    optional={
        "vif": st.lists(st.sampled_from(["10", "13", "FB10"])),
        "vife": HEX_BYTES,
        "storage": st.integers(0, 99),
        "status": st.just({"leak": 5}),
    },
)
ANY = st.one_of(
    st.tuples(st.just("cjt188"), CJT188_SPECS, CJT188_ADDRESSES),
    st.tuples(st.just("modbus"), MODBUS_SPECS, st.integers(0, 255).map(str)),
    st.tuples(st.just("mbus"), MBUS_SPECS, st.one_of(st.integers(0, 255).map(str), st.from_regex("[0-9A-F]{8,16}"))),
)


def what_a_meter_could_obey(sent):
    """Whatever anybody on the line could take for a frame that writes, wherever it begins, right checksum or not."""
    found = []
    for at in range(len(sent)):
        part = sent[at:]
        if part[0] == 0x68 and len(part) >= 13 and 13 + part[10] <= len(part) and part[12 + part[10]] == 0x16:
            is_address = all(byte & 0xF <= 9 and byte >> 4 <= 9 for byte in part[2:9]) or set(part[2:9]) == {0xAA}
            if is_address and part[9] not in {0x01, 0x03}:
                found.append(("cjt188", part[: 13 + part[10]]))
        if part[0] == 0x68 and len(part) >= 9 and part[1] == part[2] and part[3] == 0x68 and part[1] + 6 <= len(part):
            is_selection = part[5:7] == b"\xfd\x52" and part[4] & ~0x20 == 0x53
            if part[part[1] + 5] == 0x16 and not is_selection:
                found.append(("mbus", part[: part[1] + 6]))
    # A Modbus meter goes by the silence before a frame; the checksum may be followed by anything.
    size = {5: 8, 6: 8, 15: 9 + sent[6], 16: 9 + sent[6]}.get(sent[1], 0) if len(sent) >= 8 else 0
    if 0 < size <= len(sent) and modbus.has_crc(sent[:size]):
        found.append(("modbus", sent[:size]))
    return found


@pytest.mark.parametrize("frame", [EVIL[0], "0106001C0002C9CD", "6804046853055101AA16", "FE" * 3 + EVIL[0] + "00"])
def test_the_wider_net_catches_what_writes(frame):
    assert what_a_meter_could_obey(bytes.fromhex(frame))


@given(ANY)
@example(("cjt188", {"tx_prefix": EVIL[0]}, "00000805000001"))
@example(("cjt188", {}, f"{EVIL[0]}:00000805000001"))
@example(("cjt188", {"tx_prefix": "6810010000"}, "0508000004:00000805000001"))
@example(("cjt188", {"meter_type": 9, "preamble_bytes": 0}, "00000000510509"))
@example(("cjt188", {"meter_type": 9}, "16000000510509"))
@example(
    ("modbus", {"read": [{"address": 28, "count": 2}], "total": [{"address": 28}], "unit": "L", "function": 6}, "1")
)
def test_whatever_a_profile_says_only_reads_go_out(said):
    """A profile is a file that somebody sent: it is refused, or everything that it makes us send is a read."""
    protocol, table, address_text = said
    try:
        spec = msgspec.convert(table, profile.PROTOCOLS[protocol].spec)
        kind = profile.PROTOCOLS[protocol]
        address = (
            kind.parse_address_of(spec, address_text) if kind.parse_address_of else kind.parse_address(address_text)
        )
    except (msgspec.ValidationError, ProfileError):
        return
    for _ in range(3):  # the serial number counts on, a probing profile turns
        dialogue = kind.dialogue(spec, address)
        sent = next(dialogue).encode()
        assert is_read(protocol, sent)
        assert not what_a_meter_could_obey(sent)


TOTALS = st.sampled_from([cjt188_data.CURRENT, *cjt188_data.SETTLED_MONTHS, *cjt188_data.HISTORY, *cjt188_data.FREEZES])


@given(CJT188_SPECS, CJT188_ADDRESSES, TOTALS, st.integers(0, 255))
@example({"tx_prefix": EVIL[0]}, "00000805000001", 0xD368, 0x68)
@example({}, f"{EVIL[0]}:00000805000001", 0xD468, 0x16)
@example({"di_order": "1F90", "preamble_bytes": 0}, "00000805000001", 0xD468, 0x68)
def test_whatever_a_profile_says_its_meters_memory_is_only_read(table, address_text, identifier, serial):
    """The requests of `shuiwang history`: each total that a meter can remember, and its address."""
    try:
        spec = msgspec.convert(table, cjt188_data.Cjt188Spec)
        station = cjt188_dialogue.parse_address_of(spec, address_text)
    except (msgspec.ValidationError, ProfileError):
        return
    station.count_from(serial)
    for _ in range(3):  # a probing profile turns
        for dialogue in (
            cjt188_dialogue.read(spec, station, identifier),
            cjt188_dialogue.read_address(spec, station),
        ):
            sent = next(dialogue).encode()
            assert is_read("cjt188", sent)
            assert not what_a_meter_could_obey(sent)


def test_a_profile_that_closes_a_valve_is_refused():
    text = resources.files("protocols").joinpath("profiles", "cjt188-water.toml").read_text(encoding="utf-8")
    evil = text.replace("[cjt188]\n", f'[cjt188]\ntx_prefix = "{EVIL[0]}"\n')
    assert evil != text
    with pytest.raises(ProfileError, match=r"tx_prefix .* has 17 bytes; at most 7 may stand before the preamble"):
        profile.parse(evil, where="evil.toml")
