"""Profiles: each proves itself, each mistake is named with file, key and remedy, and the documentation is complete."""

import os
import re
import typing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import cjt188_data, flags, profile, register_fields
from protocols.errors import ProfileError

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "docs" / "profiles.md").read_text(encoding="utf-8")
FILES = sorted((REPOSITORY / "protocols" / "profiles").glob("*.toml"), key=lambda file: file.stem)
MODBUS_FILES = [file for file in FILES if 'protocol = "modbus"' in file.read_text(encoding="utf-8")]
TUF = (REPOSITORY / "protocols" / "profiles" / "tuf-2000.toml").read_text(encoding="utf-8")
EVERY_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


class TestBuiltIn:
    def test_the_names_are_the_files(self):
        assert profile.built_in_names() == [file.stem for file in FILES]
        assert {"tuf-2000", "usw-dn15-40", "xintai"} <= set(profile.built_in_names())

    @EVERY_FILE
    def test_each_loads_under_its_own_name_and_is_proven(self, file):
        loaded = profile.load(file.stem)
        assert loaded.name == file.stem
        assert loaded.cases

    @EVERY_FILE
    def test_the_proof_is_one(self, file):
        """A test that would accept any other volume proves nothing."""
        text = file.read_text(encoding="utf-8")
        for volume in re.findall(r"(?m)^volume_ml = (\d+)$", text):
            with pytest.raises(ProfileError, match=rf"the frames mean {volume} mL, the test expects"):
                profile.parse(text.replace(f"volume_ml = {volume}\n", f"volume_ml = {int(volume) + 1}\n", 1), where="x")

    # CJ/T 188 frames are printed with their preamble, which proves nothing.
    @pytest.mark.parametrize("file", MODBUS_FILES, ids=lambda file: file.stem)
    def test_no_wrong_byte_in_a_frame_still_proves_the_volume(self, file):
        """Every byte of every frame matters; the frame's own checksum and the comparison see to it."""
        text = file.read_text(encoding="utf-8")
        for frame in re.finditer(r'(?:request|response) = "([0-9A-F ]+)"', text):
            for at in range(frame.start(1), frame.end(1), 3):
                wrong = f"{int(text[at : at + 2], 16) ^ 0x10:02X}"
                with pytest.raises(ProfileError, match=r"x: test \d"):
                    profile.parse(text[:at] + wrong + text[at + 2 :], where="x")


class TestByPath:
    def test_a_file_beside_the_configuration(self, tmp_path):
        (tmp_path / "mine.toml").write_text(TUF, encoding="utf-8")
        assert profile.load("./mine.toml", relative_to=tmp_path).name == "tuf-2000"
        assert profile.load("mine.toml", relative_to=tmp_path).name == "tuf-2000"
        assert profile.load(str(tmp_path / "mine.toml")).name == "tuf-2000"

    def test_a_byte_order_mark_of_windows_does_not_matter(self, tmp_path):
        (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf" + TUF.replace("\n", "\r\n").encode())
        assert profile.load("mine.toml", relative_to=tmp_path).name == "tuf-2000"

    def test_another_encoding_is_named(self, tmp_path):
        (tmp_path / "mine.toml").write_bytes("# 水表".encode("gbk"))
        with pytest.raises(ProfileError, match=r"mine\.toml: is not UTF-8 text; save it as UTF-8"):
            profile.load("mine.toml", relative_to=tmp_path)

    @pytest.mark.parametrize("name", ["absent.toml", ".", "./", "nul\0.toml", "/"])
    def test_what_cannot_be_read(self, name, tmp_path):
        with pytest.raises(ProfileError, match="cannot be read"):
            profile.load(name + ("/" if name == "." else ""), relative_to=tmp_path)

    def test_what_never_ends_is_not_read(self, tmp_path):
        (tmp_path / "zero.toml").symlink_to("/dev/zero")
        os.mkfifo(tmp_path / "pipe.toml")
        for name in ("zero.toml", "pipe.toml", "/dev/zero"):
            with pytest.raises(ProfileError, match="cannot be read: it is no file"):
                profile.load(name, relative_to=tmp_path)

    def test_a_file_that_is_far_too_long_is_not_read(self, tmp_path):
        fits = TUF + "#" * (profile.PROFILE_BYTES_MAX - len(TUF.encode()))
        (tmp_path / "mine.toml").write_text(fits, encoding="utf-8")
        assert profile.load("mine.toml", relative_to=tmp_path).name == "tuf-2000"
        (tmp_path / "mine.toml").write_text(fits + "#", encoding="utf-8")
        with pytest.raises(ProfileError, match="is larger than 1024 KiB"):
            profile.load("mine.toml", relative_to=tmp_path)

    def test_an_unknown_name_gets_a_suggestion(self):
        with pytest.raises(ProfileError, match=r"no profile 'xintia', did you mean 'xintai'\?; known are .*tuf-2000"):
            profile.load("xintia")
        with pytest.raises(ProfileError, match="there is no profile ''; known are"):
            profile.load("")

    def test_mistakes_name_the_path(self, tmp_path):
        (tmp_path / "mine.toml").write_text(TUF.replace("offset = -3", "offset = 3.5"), encoding="utf-8")
        with pytest.raises(ProfileError, match=re.escape(f"{tmp_path}/mine.toml: modbus.exponent_register.offset: ")):
            profile.load("mine.toml", relative_to=tmp_path)


# What is written in the place of what, and what the error says after the name of the file.
MISTAKES = {
    "no TOML": ("[profile]", "[profile", r"Expected '\]'.* \(at line 1, column 9\)"),
    "duplicate key": ("step_ml = 1", "step_ml = 1\nstep_ml = 2", r"Cannot overwrite a value \(at line \d+"),
    "duplicate table": ("[line]", "[timing]", r"Cannot declare \('timing',\) twice \(at line"),
    "endless number": ("step_ml = 1", "step_ml = " + "1" * 5000, "Exceeds the limit"),
    "no head": ("[profile]", "[other]", "profile: Object missing required field `name`"),
    "unknown table": (
        "[timing]",
        "[timings]",
        r"unknown table 'timings', did you mean 'timing'\?; a profile has profile",
    ),
    "table of another protocol": (
        "[timing]",
        "[mbus]",
        "unknown table 'mbus', did you mean 'modbus'\\?; a profile has profile, line",
    ),
    "table that is none": ("[timing]\ntimeout_ms = 500", "", None),
    "unknown key": ("title =", "titel =", r"profile: Object contains unknown field `titel`, did you mean 'title'\?"),
    "unknown key far down": (
        '8, type = "int32"',
        '8, typ = "int32"',
        r"modbus\.total 1: .*`typ`, did you mean 'type'\?",
    ),
    "missing key": ("step_ml = 1\n", "", "profile: Object missing required field `step_ml`"),
    "wrong kind": ("step_ml = 1", 'step_ml = "1"', r"profile\.step_ml: Expected `int`, got `str`"),
    "step 0": ("step_ml = 1", "step_ml = 0", r"profile\.step_ml: Expected `int` >= 1"),
    "name": ('name = "tuf-2000"', 'name = "TUF 2000"', r"profile\.name: Expected `str` matching regex"),
    "protocol": ('protocol = "modbus"', 'protocol = "modbuss"', r"profile\.protocol: 'modbuss' is not one of modbus"),
    "parity": ('parity = "N"', 'parity = "none"', r"line\.parity: give one of N, E, O"),
    "timeout": ("timeout_ms = 500", "timeout_ms = 5", r"timing\.timeout_ms: Expected `int` >= 10"),
    "type": ('"int32"', '"long"', r"modbus\.total 1\.type: give one of uint16, int16, uint32"),
    "order": (
        'float32", order = "CDAB"',
        'float32", order = "CDBA"',
        r"modbus\.total 2\.order: give one of ABCD, CDAB",
    ),
    "unit": ('0 = "m3"', '0 = "qm"', r"modbus\.unit_register: unit 'qm' is not one of mL, L, m3, US gal, imp gal, ft3"),
    "unit and unit register": ("function = 3", 'unit = "L"', "modbus: give either `unit` or `unit_register`"),
    "unread register": ("address = 1438", "address = 1439", "modbus: no `read` block holds .* at register 1439"),
    "empty block": ("count = 4", "count = 0", r"modbus\.read 1\.count: Expected `int` >= 1"),
    "torn total": (
        "{ address = 8, count = 4 }",
        "{ address = 8, count = 2 }, { address = 10, count = 2 }",
        "modbus: all terms of `total` must sit in one `read` block: two requests are two moments",
    ),
    "counted twice": ("address = 10, type", "address = 9, type", "modbus: `total` counts register 9 twice"),
    "function": ("function = 3", "function = 6", "modbus: function 6 does not read registers; 3 and 4 do"),
    "hex": ("01 03 00 08", "01 03 0O 08", "test 1: exchange: write bytes as hexadecimal pairs: non-hexadecimal"),
    "half a byte": ("F6 41", "F6 4", "test 1: exchange: write bytes as hexadecimal pairs"),
    "request checksum": ("C5 CB", "C5 CC", "test 1: exchange: request .* has a wrong checksum; .* C5 CB is right"),
    "response checksum": ("BA 32", "BA 33", "test 1: exchange: 9 bytes, no valid frame"),
    "response of another": (
        "01 03 04 00 00 00 03 BA 32",
        "02 03 04 00 00 00 03 89 32",
        "test 1: exchange: answered by",
    ),
    "no exchange": (TUF[TUF.index("exchange = [") : TUF.index("]\n\n[[test]]")], "exchange = [", "no exchange reads"),
    "volume": (
        "volume_ml = 802609750000",
        "volume_ml = 802609750",
        "test 1: volume_ml: the frames mean 802609750000 mL, ",
    ),
    "evidence": ('"constructed"', '"guess"', r"test 1\.evidence: give one of capture, manual, constructed"),
    "second test": ("volume_ml = 8026097500\n", "volume_ml = 8\n", "test 2: volume_ml: the frames mean 8026097500 mL"),
    "no test": (TUF[TUF.index("[[test]]") :], "", r"add a \[\[test\]\] with frames and the volume they mean"),
    "test that is no list": (TUF[TUF.index("[[test]]") :], "[test]\nx = 1\n", "test: Expected `array`, got `object`"),
}


ODD_VALUES = [
    *("-1", "0", "1", "65535", "65536", "9" * 30, "1e308", "nan", "inf", "true", "[]", "{}", "[[]]", "1979-05-27"),
    *('""', '"\\n"', '"0"', '"L"', '"ABCD"', '"uint64"', '"float32"', '"probe"', f'"{"9" * 300}"'),
]


class TestMistakes:
    @pytest.mark.parametrize(("right", "wrong", "words"), MISTAKES.values(), ids=MISTAKES)
    def test_each_is_named(self, right, wrong, words):
        assert right in TUF
        text = TUF.replace(right, wrong, 1)
        if words is None:
            assert profile.parse(text, where="mine.toml").timing == profile.Timing()
            return
        with pytest.raises(
            ProfileError, match=rf"^mine\.toml: {'.*' if words.startswith('no exchange') else ''}{words}"
        ):
            profile.parse(text, where="mine.toml")

    def test_deep_nesting_is_an_error_like_any_other(self):
        with pytest.raises(ProfileError, match=r"^x: "):
            profile.parse("a = " + "[" * 100_000, where="x")

    @given(file=st.sampled_from(FILES), data=st.data())
    def test_any_mutation_gives_a_profile_or_a_profile_error(self, file, data):
        text = file.read_text(encoding="utf-8")
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(text)))
            end = start + data.draw(st.integers(0, 12))
            piece = data.draw(st.one_of(st.text(max_size=6), st.sampled_from(re.findall(r"\S+", text))))
            text = text[:start] + piece + text[end:]
        self.accepts_or_explains(text)

    @given(file=st.sampled_from(FILES), data=st.data())
    def test_any_value_in_any_place_gives_a_profile_or_a_profile_error(self, file, data):
        text = file.read_text(encoding="utf-8")
        values = list(re.finditer(r'(?<== )(-?\d+|"[^"\n]*"|0x[0-9a-f]+)(?=[ ,\n])', text))
        for place in data.draw(
            st.lists(st.sampled_from(values), min_size=1, max_size=2, unique_by=lambda m: m.start())
        ):
            odd = data.draw(st.sampled_from(ODD_VALUES))
            text = text.replace(f"= {place[0]}", f"= {odd}", 1)
        self.accepts_or_explains(text)

    def accepts_or_explains(self, text):
        try:
            outcome = profile.parse(text, where="mine.toml").cases
        except ProfileError as error:
            outcome = str(error).startswith("mine.toml: ")
        assert outcome


def sections_of(kind, path):
    """Return every table below a Struct by the heading under which the guide explains it."""
    found = {f"[{path}]": kind}
    for field in msgspec.structs.fields(kind):
        nested = field.type
        options = [nested, *typing.get_args(nested)]
        for option in options:
            if isinstance(option, type) and issubclass(option, msgspec.Struct):
                inner = sections_of(option, f"{path}.{field.encode_name}")
                if typing.get_origin(nested) is tuple:
                    inner = {f"[[{heading.strip('[]')}]]": table for heading, table in inner.items()}
                found |= inner
    return found


def tables_of_code():
    known = {"[profile]": profile.Head, "[line]": profile.Line} | sections_of(profile.Timing, "timing")
    known |= {"[[test]]": profile.Case, "[[test.exchange]]": profile.Exchange}
    for name, protocol in profile.PROTOCOLS.items():
        known |= sections_of(protocol.spec, name)
    return known


def shown_default(field):
    if field.required:
        return "**required**"
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return "absent" if default is None or default == {} else f"`{msgspec.json.encode(default).decode()}`"


def keys_of_code():
    return {
        heading: {field.encode_name: shown_default(field) for field in msgspec.structs.fields(kind)}
        for heading, kind in tables_of_code().items()
    }


def keys_of_guide():
    parts = re.split(r"(?m)^### `(.+)`$", GUIDE)[1:]
    rows = re.compile(r"(?m)^\| `(\w+)` \| (.+?) \| .+ \|$")
    return {heading: dict(rows.findall(text)) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


GARBLED = """
[[test]]
evidence = "capture"
source = "x"
fault = "garbled"
exchange = [{ request = "01 03 05 9D 00 02 55 29", response = "01 03 04 00 00 00 03 BA 33" }]
"""


class TestFaults:
    """A test may prove that frames give no volume, and where a technician compared the dial."""

    def test_frames_that_must_be_refused(self):
        assert profile.parse(TUF + GARBLED, where="x").cases[-1].volume_ml is None

    @pytest.mark.parametrize(
        ("right", "wrong", "words"),
        [
            ("BA 33", "BA 32", "test 3: exchange: no exchange reads register"),
            ('fault = "garbled"', 'fault = "refused"', "test 3: exchange: 9 bytes, no valid frame"),
            ('fault = "garbled"', 'fault = "garbled"\nvolume_ml = 1', "leaves no volume: remove `volume_ml`"),
            ('fault = "garbled"', "", "give `volume_ml`, or one of no_response, garbled"),
            ('fault = "garbled"', 'fault = "battery_low"', "give `volume_ml`, or one of no_response, garbled"),
            ('"capture"', '"field"', 'evidence "field" needs `date` and `place`'),
        ],
    )
    def test_each_mistake_is_named(self, right, wrong, words):
        assert right in GARBLED
        with pytest.raises(ProfileError, match=words):
            profile.parse(TUF + GARBLED.replace(right, wrong), where="x")

    def test_frames_that_mean_a_volume_do_not_prove_a_fault(self):
        text = TUF.replace("volume_ml = 802609750000", 'fault = "garbled"')
        with pytest.raises(
            ProfileError, match="test 1: fault: the frames mean 802609750000 mL, the test expects garbled"
        ):
            profile.parse(text, where="x")

    def test_a_flag_that_the_frames_do_not_report(self):
        text = TUF.replace("volume_ml = 802609750000", 'volume_ml = 802609750000\nfault = "leak"')
        with pytest.raises(ProfileError, match="test 1: fault: the frames report none, the test expects leak"):
            profile.parse(text, where="x")

    def test_a_field_check(self):
        text = TUF.replace('"constructed"', '"field"\ndate = 2026-11-21\nplace = "g-0371522"', 1)
        assert profile.parse(text, where="x").cases[0].date.isoformat() == "2026-11-21"


class TestGuide:
    def test_every_key_and_default_of_the_code_is_in_the_guide_and_no_other(self):
        assert keys_of_guide() == keys_of_code()

    def test_the_profile_to_start_from_is_right(self):
        text = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)[1]
        example = profile.parse(text, where="docs/profiles.md")
        assert example.cases[0].volume_ml == 123_456_000

    def test_every_type_order_and_unit_is_named(self):
        words = (*register_fields.UNIT_ML, *register_fields.TYPES, *register_fields.ORDERS)
        for word in (*words, *flags.USUAL_EFFECT, *flags.Effect):
            assert f"`{word}`" in GUIDE, word

    def test_every_layout_unit_code_and_status_name_of_cjt188_is_named(self):
        names = {*cjt188_data.LAYOUTS, *cjt188_data.UNIT_ML, *flags.USUAL_EFFECT}
        for word in sorted(names | set(cjt188_data.DiOrder)):
            assert re.search(rf"`\"?{word}\"?`", GUIDE), word
