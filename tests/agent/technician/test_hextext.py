"""Whatever people paste: the bytes come out, or the place that is wrong is named."""

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.technician import hextext

DATA = bytes.fromhex("11030204000406E0")

FORMS = {
    "pairs": "11 03 02 04 00 04 06 E0",
    "no spaces": "11030204000406e0",
    "mixed": "1103 0204\n0004\t06e0",
    "C array": "{0x11, 0x03, 0x02, 0x04, 0x00, 0x04, 0x06, 0xE0};",
    "single digits": "0x11 0x3 0x2 0x4 0x0 0x4 0x6 0xE0",
    "joined 0x": "0x110302040004 06E0",
    "string": r"\x11\x03\x02\x04\x00\x04\x06\xe0",
    "standard": "11H 03H 02H 04H 00H 04H 06H E0H",
    "colons": "11:03:02:04:00:04:06:E0",
    "dashes": "11-03-02-04-00-04-06-E0",
    "chinese commas": "11，03，02，04，00，04，06，E0",
    "hexdump -C": "00000000  11 03 02 04 00 04 06 e0                           |........|\n00000008",
    "xxd": "00000000: 1103 0204 0004 06e0                      ........",
    "xxd with hexadecimal characters": "00000000: 1103 0204 0004 06e0                      abcdef01",
    "list of Python": "[0x11, 0x03, 0x02, 0x04, 0x00, 0x04, 0x06, 0xe0]",
    "comment": "11 03 02 04 # the request\n00 04 06 E0",
    "colours": "\x1b[36m11 03 02 04\x1b[0m 00 04 06 E0",
    "time stamp": "2026-11-21 07:30:01.123 11 03 02 04 00 04 06 E0",
    "bracketed time stamp": "[07:30:01.123] 11 03 02 04 00 04 06 E0",
    "milliseconds": "+0012 11 03 02 04 00 04 06 E0",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_forms(text):
    assert hextext.parse(text) == [hextext.Chunk(direction=None, data=DATA)]


DIRECTIONS = {
    "our traces": "+0012 >> 11 03\n+0187 << 22 04",
    "TX RX": "TX: 11 03\nRX: 22 04",
    "tx rx with time": "07:30:01 TX 11 03\n07:30:02 RX 22 04",
    "sent received": "[07:30:01.1] Send: 11 03\n[07:30:01.2] Recv: 22 04",
    "chinese": "发送：11 03\n接收：22 04",
    "arrows": "-> 11 03\n<- 22 04",
    "continued": ">> 11\n03\n<< 22\n04",
}


@pytest.mark.parametrize("text", DIRECTIONS.values(), ids=DIRECTIONS)
def test_directions(text):
    assert [(chunk.direction, chunk.data) for chunk in hextext.parse(text)] == [
        ("tx", b"\x11\x03"),
        ("rx", b"\x22\x04"),
    ]


FRAME = b":110302040004E2\r\n"
ASCII_FORMS = {
    "alone": ":110302040004E2",
    "small letters": ":110302040004e2",
    "with its end": ":110302040004E2\r\n",
    "escaped end": r":110302040004E2\r\n",
    "hexadecimal end": r":110302040004E2\x0D\x0A",
    "end in words": ":110302040004E2<CR><LF>",
    "end as signs": ":110302040004E2␍␊",
    "a string of a program": r"':110302040004E2\r\n'",
    "time stamp": "[07:30:01.123] :110302040004E2",
    "its bytes": "3A 31 31 30 33 30 32 30 34 30 30 30 34 45 32 0D 0A",
}


@pytest.mark.parametrize("text", ASCII_FORMS.values(), ids=ASCII_FORMS)
def test_modbus_ascii_stays_text(text):
    assert hextext.parse(text) == [hextext.Chunk(direction=None, data=FRAME)]


ASCII_DIRECTIONS = {
    "arrows": ">> :110302040004E2\n<< :1183026A",
    "colon of its own": "TX::110302040004E2\nRX: :1183026A",
    "one colon for both": "TX:110302040004E2\nRX:1183026A",
    "chinese": "发送：:110302040004E2\n接收：:1183026A",
    "with time": "07:30:01 TX :110302040004E2\n07:30:02 RX :1183026A",
}


@pytest.mark.parametrize("text", ASCII_DIRECTIONS.values(), ids=ASCII_DIRECTIONS)
def test_modbus_ascii_with_a_direction(text):
    assert [(chunk.direction, chunk.data) for chunk in hextext.parse(text)] == [
        ("tx", FRAME),
        ("rx", b":1183026A\r\n"),
    ]


def test_several_ascii_frames_on_a_line_and_a_wrong_checksum_are_kept():
    assert hextext.parse(":110302040004E2 :1183026B")[0].data == FRAME + b":1183026B\r\n"
    assert hextext.parse("<< :1183026B")[0].data == b":1183026B\r\n"


def test_rtu_behind_the_colon_of_a_log_stays_rtu():
    for text in ("RX:110308000000000001F0891571", "RX: 110308000000000001F0891571", "RX : 11 03 08"):
        assert hextext.parse(text)[0].data.startswith(b"\x11\x03\x08"), text


MISTAKES = {
    "a word": ("11 03\nhello 04", r"line 2: 'hello' is not hexadecimal"),
    "half a byte": ("11 0", r"line 1: '0' has an odd number of digits"),
    "nothing": ("", "no bytes"),
    "only spaces": (" \n\t", "no bytes"),
    "the letter O": ("11 O3", "'O3' is not hexadecimal"),
    "endless": ("00" * (hextext.BYTES_MAX + 1), f"more than {hextext.BYTES_MAX} bytes"),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_name_their_line(text, words):
    with pytest.raises(hextext.NoHex, match=words):
        hextext.parse(text)


def test_the_limit_itself_is_taken():
    assert len(hextext.parse("00" * hextext.BYTES_MAX)[0].data) == hextext.BYTES_MAX


def test_a_number_that_looks_like_a_time_stays_a_number():
    """A request for unit 1 with colons, as some tools print it."""
    assert hextext.parse("01:03:00:28:00:03:85:C3")[0].data == bytes.fromhex("01030028000385C3")


def characters(row):
    return re.sub(r"[^ -~]", ".", row.decode("latin-1"))


def hexdump(data):
    rows = [data[at : at + 16] for at in range(0, len(data), 16)]
    lines = [
        f"{16 * n:08x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  |{characters(row)}|"
        for n, row in enumerate(rows)
    ]
    return "\n".join([*lines, f"{len(data):08x}"])


def xxd(data):
    rows = [data[at : at + 16] for at in range(0, len(data), 16)]
    return "\n".join(f"{16 * n:08x}: {row.hex(' ', -2):<40} {characters(row)}" for n, row in enumerate(rows))


@given(st.binary(min_size=1, max_size=100))
def test_dumps_of_any_bytes_come_back(data):
    for text in (data.hex(), data.hex(" ").upper(), hexdump(data), xxd(data), ", ".join(map(hex, data))):
        assert b"".join(chunk.data for chunk in hextext.parse(text)) == data, text


@settings(deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="0123456789abcdefxX><:+-|#\\rRnT \n", max_size=200))
def test_any_text_gives_bytes_or_a_word_about_it(text):
    with contextlib.suppress(hextext.NoHex):
        assert all(chunk.data for chunk in hextext.parse(text))
