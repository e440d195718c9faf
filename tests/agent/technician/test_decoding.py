"""Every frame of every profile is explained to its last byte; nothing breaks the decoder, nothing wrong is a volume.

Golden outputs lie in `testcases/decode/NAME/{arguments,input,expected}.txt`; SHUIWANG_REFRESH=1 writes them anew, to
be reviewed.
"""

import io
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from agent.cli import app
from agent.exit_codes import ExitCode
from agent.technician import decoding, hextext, modbus_wire, pasted, views_decoding
from agent.technician.hextext import Chunk
from protocols import cjt188, modbus, profile
from protocols.registers import Block

GOLDEN = sorted((Path(__file__).parent / "testcases" / "decode").iterdir())
PROFILES = [profile.load(name) for name in profile.built_in_names()]
CASES = [(loaded, case) for loaded in PROFILES for case in loaded.cases]
EVERY_CASE = pytest.mark.parametrize(
    ("loaded", "case"), CASES, ids=[f"{loaded.name}-{loaded.cases.index(case) + 1}" for loaded, case in CASES]
)
ANSWER = bytes.fromhex("11 03 08 00 00 00 00 00 01 F0 89 15 71")
REQUEST = bytes.fromhex("11 03 02 04 00 04 06 E0")
CJT_REQUEST = bytes.fromhex("68 10 18 02 12 20 20 00 00 01 03 90 1F 00 97 16")
CJT_ANSWER = bytes.fromhex(
    "68 10 18 02 12 20 20 00 00 81 16 90 1F 00 00 02 00 00 2C 00 02 00 00 2C 00 00 00 00 00 00 00 00 FF 85 16"
)


def decode(*parts, **options):
    return decoding.decode([Chunk(direction=None, data=b"".join(parts))], **options)


def cli(*arguments, **options):
    return CliRunner().invoke(app, ["decode", *arguments], env={"COLUMNS": "80"}, **options)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_golden(folder):
    arguments = (folder / "arguments.txt").read_text(encoding="utf-8").split()
    result = cli(*arguments, input=(folder / "input.txt").read_bytes())
    shown = "\n".join(line.rstrip() for line in result.output.splitlines()) + f"\nexit code {result.exit_code}\n"
    expected = folder / "expected.txt"
    if os.environ.get("SHUIWANG_REFRESH"):
        expected.write_text(shown, encoding="utf-8")
    assert shown == expected.read_text(encoding="utf-8")


@EVERY_CASE
def test_the_profile_says_of_its_own_frames_what_they_prove(loaded, case):
    exchanges = [(bytes.fromhex(each.request), bytes.fromhex(each.response)) for each in case.exchange]
    result = decode(*[part for exchange in exchanges for part in exchange], profile=loaded)
    last = result.volumes[-1]
    if case.volume_ml is None:
        assert last.measurement is None
        assert last.reason == case.fault
    elif modbus.has_crc(exchanges[0][0]) and exchanges[0][0][0] == 0:
        pass  # asked "any meter" with more registers than the profile reads; see the constructed test beside it
    else:
        assert last.measurement.volume_ml == case.volume_ml


@EVERY_CASE
def test_every_byte_of_a_sound_frame_is_explained_once(loaded, case):
    for exchange in case.exchange:
        for text in (exchange.request, exchange.response):
            for piece in decode(bytes.fromhex(text)).frames:
                covered = [at for field in piece.fields for at in range(field.start, field.end)]
                assert covered == list(range(len(piece.data))), piece


def rendered(result):
    views_decoding.show(result, Console(file=io.StringIO(), width=80), has_profile=False)
    msgspec.json.encode(views_decoding.as_json(result))


def framed(text, framing):
    """The frame of a profile's case in another framing of Modbus."""
    return modbus_wire.encode(bytes.fromhex(text), framing, transaction=11)


@pytest.mark.parametrize("framing", ["ascii", "tcp"])
@pytest.mark.parametrize("given_as", ["bytes", "text"])
@EVERY_CASE
def test_every_framing_of_modbus_means_the_same(loaded, case, framing, given_as):
    if loaded.head.protocol != "modbus" or case.fault == "garbled":
        return  # others have no framings; a wrong checksum is not one in another framing
    plain = decode(*[bytes.fromhex(text) for each in case.exchange for text in (each.request, each.response)],
                   profile=loaded)  # fmt: skip
    frames = [framed(text, framing) for each in case.exchange for text in (each.request, each.response)]
    if given_as == "text":
        lines = [frame.decode() if framing == "ascii" else frame.hex(" ") for frame in frames]
        chunks = hextext.parse("".join(f"{'<>'[n % 2 == 0] * 2} {line}\n" for n, line in enumerate(lines)))
    else:
        chunks = [Chunk(direction=None, data=b"".join(frames))]
    result = decoding.decode(chunks, profile=loaded)
    told = [(volume.measurement, volume.reason) for volume in result.volumes]
    assert told == [(volume.measurement, volume.reason) for volume in plain.volumes]
    assert [piece.framing for piece in result.pieces] == [framing] * len(frames)
    assert [piece.kind for piece in result.pieces] == [piece.kind for piece in plain.pieces]
    for piece in result.pieces:
        assert [at for field in piece.fields for at in range(field.start, field.end)] == list(range(len(piece.data)))
    rendered(result)


def test_no_flipped_bit_of_an_ascii_answer_gives_a_volume():
    loaded, wire = profile.load("usw-dn15-40"), modbus_wire.encode(ANSWER, "ascii")
    for bit in range(8 * len(wire)):
        flipped = bytearray(wire)
        flipped[bit // 8] ^= 1 << bit % 8
        result = decode(modbus_wire.encode(REQUEST, "ascii"), bytes(flipped), profile=loaded)
        assert not any(volume.measurement for volume in result.volumes), bit


def test_the_device_itself_is_unit_255_and_read_like_any_meter():
    ask, answer = (modbus_wire.encode(modbus.add_crc(b"\xff" + frame[1:-2]), "tcp") for frame in (REQUEST, ANSWER))
    result = decode(ask, answer, profile=profile.load("usw-dn15-40"))
    assert result.volumes[0].measurement.volume_ml == 127_113
    assert "设备本身" in result.pieces[1].fields[3].value


@pytest.mark.parametrize("request_", [":110302040004E2", "000100000006110302040004", "110302040004"])
def test_the_request_may_come_in_any_framing_or_without_its_checksum(request_):
    assert decoding.completed(pasted.joined(request_)) == REQUEST


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b":110302040004E3\r\n", "damaged", "Wrong checksum"),
        (b":1108000012D5\r\n", "damaged", "does not fit the function"),
        (b":1103020400", "truncated", "CR LF are missing"),
        (bytes.fromhex("00010000000B1103080000"), "truncated", "6 bytes are missing"),
    ],
)
def test_what_is_damaged_or_torn_is_told_as_such(data, kind, words):
    result = decode(data)
    assert [piece.kind for piece in result.pieces] == [kind]
    assert result.frames == []
    said = [result.pieces[0].title.en, *(note.en for note in result.pieces[0].notes)]
    assert any(words in text for text in said), said
    rendered(result)


FRAMES = [bytes.fromhex(text) for _, case in CASES for each in case.exchange for text in (each.request, each.response)]
FRAMES += [modbus_wire.encode(frame, framing) for frame in (REQUEST, ANSWER) for framing in ("ascii", "tcp")]
SNIPPETS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(FRAMES),
    st.sampled_from([b"\x68", b"\xfe\xfe", b"\xe5", b"\x10", b":", b"\r\n"]),
)


@st.composite
def damaged(draw):
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(1, 3))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(1, len(frame)))])


@settings(deadline=None)
@given(st.lists(SNIPPETS | damaged(), max_size=8), st.sampled_from([None, *PROFILES]))
def test_any_bytes_are_cut_without_loss_and_shown(parts, loaded):
    data = b"".join(parts)
    result = decode(data, profile=loaded)
    assert b"".join(piece.data for piece in result.pieces) == data
    assert [piece.start for piece in result.pieces[1:]] == [piece.end for piece in result.pieces[:-1]]
    rendered(result)


@settings(deadline=None, max_examples=30)  # each example tries every profile
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_a_request_of_any_bytes_breaks_nothing(request, noise):
    for loaded in PROFILES:
        rendered(decode(noise, ANSWER, noise, CJT_ANSWER, request=request, profile=loaded))


def test_no_flipped_bit_of_a_modbus_answer_gives_a_volume():
    loaded = profile.load("usw-dn15-40")
    for bit in range(8 * len(ANSWER)):
        flipped = bytearray(ANSWER)
        flipped[bit // 8] ^= 1 << bit % 8
        result = decode(bytes(flipped), profile=loaded)
        assert not any(volume.measurement for volume in result.volumes), bit


def record_answer(identifier, *, content="12345678 2C", order="big"):
    """What a meter answers that was asked for one of its records."""
    data = identifier.to_bytes(2, order) + b"\0" + bytes.fromhex(content)
    return cjt188.Frame(meter_type=0x10, address="00000805000001", control=0x81, data=data).encode()


FREEZE = "00 00 00 01 07 26 20 12345678 2C 00000000 35 000000 000000"


@pytest.mark.parametrize(
    ("identifier", "content", "says", "says_zh"),
    [
        (0xD120, "12345678 2C", "total settled 1 month(s) ago", "上 1 月结算累计"),
        (0xD200, "12345678 2C", "total settled 1 settlement(s) ago", "上 1 次结算累计"),
        (0xD2FF, "12345678 2C", "total settled 256 settlement(s) ago", "上 256 次结算累计"),
        (0xD300, FREEZE, "record 0 frozen by schedule", "定时冻结记录 0"),
        (0xD3FF, FREEZE, "record 255 frozen by schedule", "定时冻结记录 255"),
        (0xD401, FREEZE, "record 1 frozen on command", "命令冻结记录 1"),
    ],
)
@pytest.mark.parametrize("order", ["big", "little"])
def test_the_records_that_a_meter_remembers_have_their_names(identifier, content, says, says_zh, order):
    (piece,) = decode(record_answer(identifier, content=content, order=order)).pieces
    values = [field.value for field in piece.fields]
    assert any(f"{identifier:04X} {says} {says_zh}" in value for value in values), values
    assert any("785634.12 m³" in value for value in values), "its total is explained too"
    assert not piece.meanings, "it is not the current reading"


def test_what_is_no_record_keeps_no_name():
    for identifier in (0xD1FF, 0xD500, 0x1FD5):
        (piece,) = decode(record_answer(identifier)).pieces
        assert f"{identifier:04X} unknown 未知" in [field.value for field in piece.fields]


@pytest.mark.parametrize("with_request", [True, False])
def test_a_profile_says_of_another_record_which_it_is(with_request):
    asked = cjt188.Frame(meter_type=0x10, address="00000805000001", control=1, data=bytes.fromhex("D12000")).encode()
    water = profile.load("cjt188-water")
    told = decode(*[asked] * with_request, record_answer(0xD120), profile=water)
    ((reason, text, measurement),) = [(one.reason, one.text, one.measurement) for one in told.volumes]
    assert (reason, measurement) == ("other_record", None)
    assert "D120 is total settled 1 month(s) ago, not the current reading" in text
    shown = cli("--profile", "cjt188-water", record_answer(0xD120).hex())
    assert "another record" in shown.output
    assert "wrong answer" not in shown.output
    assert shown.exit_code == ExitCode.NO_READING


def test_another_record_does_not_hide_the_reading_beside_it():
    told = decode(record_answer(0xD120), CJT_REQUEST, CJT_ANSWER, profile=profile.load("cjt188-water"))
    assert [one.reason for one in told.volumes] == ["other_record", None]
    assert told.volumes[1].measurement.volume_ml == 2_000_000


def test_no_single_flipped_bit_of_a_cjt188_answer_gives_a_volume():
    """A sum of bytes sees every single flipped bit."""
    loaded = profile.load("cjt188-water")
    for bit in range(8 * len(CJT_ANSWER)):
        flipped = bytearray(CJT_ANSWER)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not any(volume.measurement for volume in decode(bytes(flipped), profile=loaded).volumes), bit


class TestRecognition:
    def test_both_protocols_with_noise_between(self):
        result = decode(b"\x00\x55", REQUEST, b"\xff", ANSWER, b"\xfe\xfe\xfe", CJT_REQUEST, CJT_ANSWER)
        assert [(piece.protocol, piece.kind) for piece in result.pieces] == [
            ("", "noise"),
            ("modbus", "request"),
            ("", "noise"),
            ("modbus", "answer"),
            ("", "noise"),
            ("cjt188", "request"),
            ("cjt188", "answer"),
        ]

    def test_a_wrong_checksum_is_named_with_the_right_one(self):
        for good in (ANSWER, REQUEST, CJT_ANSWER):
            at = -1 if good[0] != 0x68 else -2
            bad = bytearray(good)
            bad[at] ^= 0x55
            piece = decode(bytes(bad)).pieces[0]
            assert piece.kind == "damaged"
            assert not piece.checksum.is_right
            assert bytes.fromhex(piece.checksum.right) == (good[-2:] if good[0] != 0x68 else good[-2:-1])

    def test_a_torn_frame_says_how_much_is_missing(self):
        piece = decode(CJT_ANSWER[:-5]).pieces[0]
        assert piece.kind == "truncated"
        assert "5 bytes are missing" in piece.title.en

    def test_an_echo_is_named(self):
        result = decode(CJT_REQUEST, CJT_REQUEST, CJT_ANSWER)
        assert "echo" in result.pieces[1].notes[0].en

    def test_a_frame_that_writes_is_shouted_at(self):
        result = decode(modbus.add_crc(bytes.fromhex("01 06 00 01 00 00")))
        assert "WRITES" in result.pieces[0].notes[0].en

    def test_registers_are_named_by_the_request_before_them_only(self):
        assert decode(REQUEST, ANSWER).pieces[1].registers == {516: 0, 517: 0, 518: 1, 519: 0xF089}
        assert decode(ANSWER).pieces[0].registers == {0: 0, 1: 0, 2: 1, 3: 0xF089}
        other = modbus.add_crc(bytes.fromhex("12 03 02 04 00 04"))
        assert decode(other, ANSWER).pieces[1].registers == {0: 0, 1: 0, 2: 1, 3: 0xF089}

    def test_both_orders_of_the_identifier_mean_the_same(self):
        swapped = bytearray(CJT_ANSWER)
        swapped[11], swapped[12] = swapped[12], swapped[11]
        meanings = [decode(bytes(frame)).pieces[0].meanings for frame in (CJT_ANSWER, swapped)]
        assert meanings[0] == meanings[1]
        assert meanings[0][0].volume_ml == 2_000_000
        assert "cjt188-water" in meanings[0][0].profiles


class TestVolumes:
    def test_an_answer_alone_is_read_by_the_profile(self):
        result = decode(ANSWER, profile=profile.load("usw-dn15-40"))
        assert [volume.measurement.volume_ml for volume in result.volumes] == [127_113]

    def test_an_answer_of_another_length_is_no_volume(self):
        result = decode(ANSWER, profile=profile.load("xintai"))
        assert [volume.reason for volume in result.volumes] == ["wrong_answer"]

    def test_registers_that_lie_elsewhere_are_no_volume(self):
        elsewhere = modbus.ReadRequest(unit=17, function=3, address=0x200, count=4).encode()
        result = decode(elsewhere, ANSWER, profile=profile.load("usw-dn15-40"))
        assert [volume.measurement for volume in result.volumes] == [None]

    def test_half_of_a_reading_in_two_requests_is_no_volume(self):
        loaded = profile.load("tuf-2000")
        assert [type(block) for block in loaded.spec.read] == [Block, Block]
        first = loaded.cases[0].exchange[0]
        result = decode(bytes.fromhex(first.request), bytes.fromhex(first.response), profile=loaded)
        assert [volume.measurement for volume in result.volumes] == [None]


class TestCommand:
    def test_json_has_every_byte(self):
        result = cli("--json", REQUEST.hex(), ANSWER.hex())
        told = msgspec.json.decode(result.stdout)
        assert result.exit_code == ExitCode.OK
        assert told["bytes"] == len(REQUEST + ANSWER)
        assert [piece["kind"] for piece in told["pieces"]] == ["request", "answer"]
        assert told["pieces"][1]["meanings"] == [
            {"how": "profile 型号", "volume_ml": 127_113, "profiles": ["usw-dn15-40"]}
        ]

    def test_the_request_may_come_without_its_checksum(self):
        result = cli("--json", "--request", "11 03 02 04 00 04", ANSWER.hex())
        assert msgspec.json.decode(result.stdout)["pieces"][0]["meanings"][0]["volume_ml"] == 127_113

    def test_a_file(self, tmp_path):
        file = tmp_path / "capture.txt"
        file.write_text(f">> {REQUEST.hex(' ')}\n<< {ANSWER.hex(' ')}\n", encoding="utf-8")
        result = cli("--json", "--file", str(file))
        assert [piece["direction"] for piece in msgspec.json.decode(result.stdout)["pieces"]] == ["tx", "rx"]

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["zz"], ExitCode.USAGE, "'zz' is not hexadecimal"),
            (["00", "11"], ExitCode.NO_READING, "0 frames"),
            (["--profile", "nothing", "00"], ExitCode.CONFIGURATION, "there is no profile 'nothing'"),
            (["--profile", "xintai", ANSWER.hex()], ExitCode.NO_READING, "wrong answer"),
            (["--file", "/nowhere/x"], ExitCode.USAGE, "No such file"),
            (["--file", "/nowhere/x", "00"], ExitCode.USAGE, "either"),
            (["--request", "xy", "00"], ExitCode.USAGE, "'xy' is not hexadecimal"),
        ],
    )
    def test_what_fails_has_its_code_and_a_word(self, arguments, code, words):
        result = cli(*arguments)
        assert result.exit_code == code
        assert words in result.output

    def test_no_colours_where_nobody_sees_them(self):
        assert "\x1b" not in cli(REQUEST.hex()).output

    @settings(deadline=None, max_examples=50)
    @given(st.binary(max_size=300))
    def test_anything_on_stdin_ends_with_a_code_that_we_know(self, data):
        result = cli(input=data)
        assert result.exit_code in {ExitCode.OK, ExitCode.USAGE, ExitCode.NO_READING}
        assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
