"""A profile from a capture and the dial: proven when it is written, never in the place of another file."""

import contextlib
import re
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partners import pymodbus_meters
from partners.processes import shuiwang
from partners.virtual_line import VirtualClock, VirtualPort, virtual_line
from typer.testing import CliRunner

from agent.cli import app
from agent.exit_codes import ExitCode
from agent.technician import modbus_wire, profile_wizard, wizard_dialogue
from agent.technician.profile_wizard import Exchange, Facts, Narrowing, WizardError
from protocols import cjt188, modbus, profile

REQUEST = bytes.fromhex("01 03 00 01 00 02 95 CB")
RESPONSE = bytes.fromhex("01 03 04 1E 85 0B 3F AA D2")
CJT_ANSWER = (
    "FE FE FE 68 10 18 02 12 20 20 00 00 81 16 90 1F 00 00 02 00 00 2C 00 02 00 00 2C 00 00 00 00 00 00 00 00 FF 85 16"
)
# A telegram of the libmbus test frames (BSD-3-Clause), cut behind its total of 1234.567 m3.
MBUS_ANSWER = "68 15 15 68 08 01 72 45 23 11 70 93 15 0A 07 02 00 00 00 0C 13 67 45 23 01 0E 16"
GIVEN = ["--name", "mine", "--title", "Maker DN20", "--request", REQUEST.hex(), "--response", RESPONSE.hex()]


def new(*arguments, **options):
    return CliRunner().invoke(app, ["profiles", "new", *map(str, arguments)], **options)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class TestCommand:
    def test_pasted_frames_and_the_dial_make_a_profile_that_reads(self):
        result = new(*GIVEN, "--dial", "0.545")
        assert result.exit_code == 0, result.output
        made = profile.load("./mine.toml")
        assert made.cases[0].volume_ml == 545_000
        assert made.cases[0].evidence == "constructed", "anybody can write frames"
        assert "nobody vouches" in made.cases[0].source
        assert (made.spec.total[0].type, made.spec.total[0].order, made.spec.unit) == ("float32", "DCBA", "m3")
        assert "bronze" in result.output

    def test_pasted_frames_are_a_capture_where_somebody_vouches_for_them(self):
        for more in ([], ["--source", " "]):
            refused = new(*GIVEN, "--dial", "0.545", "--evidence", "capture", *more)
            assert refused.exit_code == ExitCode.USAGE
            assert "evidence capture of pasted frames needs --source" in refused.output
        made = new(*GIVEN, "--dial", "0.545", "--evidence", "capture", "--source", "Li, record of 2026-11-21")
        assert made.exit_code == 0, made.output
        assert "silver" in made.output

    @pytest.mark.parametrize("framing", ["ascii", "tcp"])
    def test_a_capture_in_another_framing_makes_the_same_profile(self, framing):
        new(*GIVEN, "--dial", "0.545")
        same = Path("mine.toml").read_text(encoding="utf-8")
        wires = [modbus_wire.encode(frame, framing, transaction=3) for frame in (REQUEST, RESPONSE)]
        request, response = (wire.decode().strip() if framing == "ascii" else wire.hex() for wire in wires)
        result = new(*GIVEN[:4], "--request", request, "--response", response, "--dial", "0.545", "--force")
        assert result.exit_code == 0, result.output
        assert Path("mine.toml").read_text(encoding="utf-8") == same

    @pytest.mark.e2e
    def test_a_meter_of_modbus_tcp_is_read_for_its_profile(self):
        with pymodbus_meters.over_tcp({3: 802_609_751}) as port:
            result = new("--port", port, "--framing", "tcp", "--address", 3, "--register", 516, "--count", 4,
                         "--dial", "802.609751", "--choose", 1, *GIVEN[:4])  # fmt: skip
        assert result.exit_code == 0, result.output
        (case,) = profile.load("./mine.toml").cases
        assert (case.volume_ml, case.evidence) == (802_609_751, "capture")

    @pytest.mark.e2e
    def test_so_is_the_device_at_the_end_of_the_connection(self):
        with pymodbus_meters.over_tcp({255: 802_609_751}) as port:
            result = new("--port", port, "--framing", "TCP", "--address", 255, "--register", 516, "--count", 4,
                         "--dial", "802.609751", "--choose", 1, *GIVEN[:4])  # fmt: skip
        assert result.exit_code == 0, result.output
        assert profile.load("./mine.toml").cases[0].exchange[0].request.startswith("FF 03 02 04")

    def test_json_says_what_was_made(self):
        told = msgspec.json.decode(new(*GIVEN, "--dial", "0.545", "--json").stdout)
        assert told["file"] == "mine.toml"
        assert told["volumes_ml"] == [545_000]
        assert told["grade"] == "bronze"

    def test_a_file_that_is_there_stays(self):
        Path("mine.toml").write_text("precious", encoding="utf-8")
        result = new(*GIVEN, "--dial", "0.545")
        assert result.exit_code == ExitCode.USAGE
        assert "--force" in result.output
        assert Path("mine.toml").read_text(encoding="utf-8") == "precious"
        assert new(*GIVEN, "--dial", "0.545", "--force").exit_code == 0
        assert profile.load("./mine.toml").name == "mine"
        assert [file.name for file in Path().iterdir()] == ["mine.toml"]

    def test_a_lone_answer_and_its_register(self):
        result = new(
            *("--name", "mine", "--title", "x", "--response", RESPONSE.hex(), "--register", 1, "--dial", "0.545")
        )
        assert result.exit_code == 0, result.output
        assert profile.load("./mine.toml").cases[0].exchange[0].request == REQUEST.hex(" ").upper()

    def test_cjt188_from_a_lone_answer(self):
        result = new("--name", "mine", "--title", "x", "--response", CJT_ANSWER, "--dial", "2.00")
        assert result.exit_code == 0, result.output
        made = profile.load("./mine.toml")
        assert made.spec.decimals == {"2C": 2}
        assert made.head.step_ml == 10_000
        assert made.line.baudrate == 2400

    def test_a_field_check_names_day_and_place(self):
        result = new(*GIVEN, "--dial", "0.545", "--date", "2026-11-21", "--place", "g-0371522",
                     "--source", "Li, at the pit")  # fmt: skip
        assert result.exit_code == 0, result.output
        made = profile.load("./mine.toml").cases[0]
        assert (made.evidence, str(made.date), made.place) == ("field", "2026-11-21", "g-0371522")

    def test_several_fits_are_shown_and_none_is_taken_by_itself(self):
        answer = modbus.add_crc(bytes.fromhex("01 03 04 00 00 01 C8"))  # 456 in one register or in two
        request = modbus.ReadRequest(unit=1, function=3, address=0, count=2).encode()
        given_ = ["--name", "mine", "--title", "x", "--request", request.hex(), "--response", answer.hex()]
        result = new(*given_, "--dial", "45.6")
        assert result.exit_code == ExitCode.USAGE
        assert "--choose" in result.output
        assert not list(Path().iterdir())
        assert new(*given_, "--dial", "45.6", "--choose", 1).exit_code == 0
        assert profile.load("./mine.toml").spec.total[0].type == "uint32"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "--response .* or --port"),
            (GIVEN, "give --dial"),
            ([*GIVEN, "--dial", "0"], "let some water run"),
            ([*GIVEN, "--dial", "0.9"], "nothing in these frames shows 0.9"),
            ([*GIVEN, "--dial", "a lot"], "write cubic metres"),
            ([*GIVEN, "--dial", "0.545", "--dial", "1"], "2 dials and 1 answers"),
            ([*GIVEN, "--dial", "0.545", "--name", "Not Good"], "a-z, 0-9"),
            ([*GIVEN, "--dial", "0.545", "--evidence", "field", "--source", "Li"], "needs --date and --place"),
            (
                [*GIVEN, "--dial", "0.545", "--place", "p", "--date", "2026-11-21"],
                "field of pasted frames needs --source",
            ),
            ([*GIVEN, "--dial", "0.545", "--date", "gestern"], "write 2026-11-21"),
            ([*GIVEN, "--dial", "0.545", "--order", "ABDC"], "give one of ABCD"),
            ([*GIVEN, "--dial", "0.545", "--choose", "7"], "there are 1"),
            ([*GIVEN, "--dial", "0.545", "--scale", "0"], "--scale '0': one count is worth more than 0"),
            ([*GIVEN, "--dial", "0.545", "--scale", "0.000"], "--scale '0.000': one count is worth more than 0"),
            (["--response", MBUS_ANSWER, "--dial", "1.234"], "M-Bus telegram says itself .* take mbus-water"),
            (
                ["--request", "107B017C16", "--response", MBUS_ANSWER, "--dial", "1.234"],
                "M-Bus telegram says itself .* take mbus-water",
            ),
            (
                ["--port", "/dev/x", "--protocol", "mbus", "--address", "1", "--dial", "1.234"],
                "M-Bus telegram says itself .* take mbus-water",
            ),
            ([*GIVEN, "--dial", "0.545", "--out", "no/such/folder/x.toml"], "cannot be written"),
            ([*GIVEN[4:], "--dial", "0.545"], "give --name, --title"),
            (["--response", RESPONSE.hex(), "--dial", "0.545"], "give --request or --register"),
            (["--response", "00 11 22", "--dial", "0.545"], "no sound answer"),
            (["--response", "zz", "--dial", "0.545"], "not hexadecimal"),
        ],
    )
    def test_what_is_missing_or_wrong_is_named(self, arguments, words):
        result = new(*arguments)
        assert result.exit_code == ExitCode.USAGE, result.output
        assert re.search(words, " ".join(result.output.split())), result.output
        assert not list(Path().iterdir())

    def test_without_a_terminal_nothing_is_asked(self, tmp_path):
        """A script that waited for an answer would hang for ever."""
        done = subprocess.run(
            shuiwang("profiles", "new"), capture_output=True, stdin=subprocess.PIPE, timeout=20, check=False
        )
        assert done.returncode == ExitCode.USAGE

    def test_a_port_that_is_not_there(self):
        arguments = ["--port", "/dev/nowhere", "--address", "1", "--register", "0", "--dial", "1"]
        assert new(*arguments).exit_code == ExitCode.PORT


COLD_ANSWER = bytes.fromhex("00 02 00 00 2C 00 01 00 00 2C 00 00 00 00 00 00 00 00 00")


class LiveMeter:
    """A CJ/T 188 meter in virtual time that hears what `heeds` lets it; the wizard opens its line."""

    def __init__(self, monkeypatch, *, heeds, meter_type=0x10, refuses=False, sleeps=False):
        self.heeds, self.meter_type, self.refuses, self.sleeps = heeds, meter_type, refuses, sleeps
        self.port = VirtualPort(VirtualClock())
        self.port.on_write = self.hear
        self.asked = []
        monkeypatch.setattr(wizard_dialogue, "Line", lambda _: virtual_line(self.port))

    def hear(self, data):
        ((_, request),) = cjt188.find_frames(data)
        self.asked.append((request.meter_type, request.identifier.hex().upper()))
        if self.sleeps:
            self.sleeps = False
        elif self.heeds(request):
            whose = {"address": "00002020120218", "meter_type": self.meter_type}
            answer = cjt188.answer(request, COLD_ANSWER, **whose)
            self.port.arrive(self.port.clock.now_s + 0.4, b"\xfe\xfe" + answer.encode())
        elif self.refuses:
            refusal = cjt188.refusal(request, b"\0\0", address="00002020120218", meter_type=self.meter_type)
            self.port.arrive(self.port.clock.now_s + 0.4, refusal.encode())

    def read(self, *arguments, address="00002020120218"):
        where = ("--port", "/dev/virtual", "--protocol", "cjt188", "--address", address)
        return new("--name", "mine", "--title", "x", *where, "--dial", "2.00", *arguments)


class TestLiveCjt188:
    @pytest.mark.parametrize("sleeps", [False, True])
    @pytest.mark.parametrize("refuses", [False, True])
    @pytest.mark.parametrize("order", ["901F", "1F90"])
    def test_either_order_of_the_identifier_is_tried_and_written_down(self, monkeypatch, order, refuses, sleeps):
        """A meter that knows 1F90 alone is silent to 901F, or refuses it; one that sleeps loses the first request."""
        wanted = bytes.fromhex(order)
        meter = LiveMeter(monkeypatch, heeds=lambda asked: asked.identifier == wanted, refuses=refuses, sleeps=sleeps)
        result = meter.read()
        assert result.exit_code == 0, result.output
        made = profile.load("./mine.toml")
        assert (made.spec.di_order, made.spec.meter_type) == (order, 0x10)
        assert made.cases[0].evidence == "capture"
        assert meter.asked[-1] == (0x10, order)
        assert len(meter.asked) <= 3

    @pytest.mark.parametrize("order", ["901F", "1F90"])
    def test_a_meter_that_heeds_only_its_own_type_is_asked_as_any(self, monkeypatch, order):
        wanted = bytes.fromhex(order)
        meter = LiveMeter(
            monkeypatch,
            heeds=lambda asked: asked.meter_type in (0x11, cjt188.ANY_TYPE) and asked.identifier == wanted,
            meter_type=0x11,
        )
        result = meter.read()
        assert result.exit_code == 0, result.output
        made = profile.load("./mine.toml")
        assert (made.spec.di_order, made.spec.meter_type) == (order, 0x11), "so the gateway asks it by its own type"

    def test_whatever_meter_is_there_is_asked_as_any(self, monkeypatch):
        meter = LiveMeter(monkeypatch, heeds=lambda asked: asked.identifier == b"\x1f\x90")
        assert meter.read(address="A" * 14).exit_code == 0
        assert {meter_type for meter_type, _ in meter.asked} == {cjt188.ANY_TYPE}

    @pytest.mark.parametrize(("refuses", "words"), [(False, "powered"), (True, "The meter answers, and refuses")])
    def test_who_gives_nothing_was_asked_in_every_way_and_that_is_said(self, monkeypatch, refuses, words):
        meter = LiveMeter(monkeypatch, heeds=lambda _: False, refuses=refuses)
        result = meter.read()
        assert result.exit_code == ExitCode.NO_READING
        output = " ".join(result.output.split())
        assert words in output
        assert "asked with 90 1F and 1F 90, as cold water (type 10) and as any type (AA)" in output
        assert set(meter.asked) == {(kind, order) for kind in (0x10, 0xAA) for order in ("901F", "1F90")}
        assert not list(Path().iterdir())

    def test_a_lost_port_is_not_asked_again(self, monkeypatch):
        meter = LiveMeter(monkeypatch, heeds=lambda _: meter.port.go_away(meter.port.clock.now_s + 0.3, 1e9))
        assert meter.read().exit_code == ExitCode.PORT
        assert len(meter.asked) == 1


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


@settings(deadline=None)
@given(title=TEXTS, source=TEXTS, note=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_words_of_people_come_back_from_the_file(title, source, note):
    exchange = Exchange(request=REQUEST, response=RESPONSE)
    [proposal] = profile_wizard.propose(
        "modbus", [exchange], [profile_wizard.parse_dial("0.545")], narrowing=Narrowing()
    )
    facts = Facts(
        name="mine",
        title=title,
        source=source,
        note=note,
        evidence="capture",
        line=profile.Line(),
        timeout_ms=500,
        place="",
    )
    made = profile.parse(profile_wizard.toml(facts, [exchange], proposal), where="x")
    assert (made.head.title, made.head.source, made.head.note) == (title, source, note)


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60), st.sampled_from(["modbus", "cjt188"]))
def test_any_frames_give_proposals_or_a_word(request, response, protocol):
    exchange = Exchange(request=request, response=response)
    with contextlib.suppress(WizardError):
        found = profile_wizard.propose(protocol, [exchange], [profile_wizard.parse_dial("1.5")], narrowing=Narrowing())
        assert all(proposal.volumes_ml for proposal in found)


@settings(deadline=None)
@given(litres=st.integers(1, 99_999_998), decimals=st.integers(0, 3), order=st.sampled_from([b"\x90\x1f", b"\x1f\x90"]))
def test_the_decimals_of_cjt188_are_found_by_the_dial(litres, decimals, order):
    """Not 99999999, with which a meter says that it has none."""
    from protocols import cjt188_data

    spec = cjt188_data.Cjt188Spec(decimals={"2C": decimals})
    volume_ml = litres * 10 ** (6 - decimals)
    content = cjt188_data.encode(spec, spec.fields, total_ml=volume_ml)
    asked = cjt188.Frame(meter_type=0x10, address="0" * 13 + "1", control=1, data=order + b"\x07")
    answered = cjt188.answer(asked, content, address=asked.address, meter_type=0x10)
    dial = profile_wizard.Dial(volume_ml=volume_ml, tolerance_ml=1)
    found = profile_wizard.propose(
        "cjt188", [Exchange(request=asked.encode(), response=answered.encode())], [dial], narrowing=Narrowing()
    )
    assert [proposal.volumes_ml for proposal in found] == [(volume_ml,)]
    assert f'"2C" = {decimals}' in found[0].table
