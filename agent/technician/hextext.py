r"""Bytes in whatever form they were pasted: pairs, `0x` lists, `\x` strings, terminal logs, hexdump -C, xxd, traces.

Modbus ASCII stays the text that it is: `:110302040004E2`, with CR LF, `\r\n` or nothing behind it.

A line may carry a direction (`>>`, `<<`, TX, RX, 发送, 接收), a time stamp, a time in brackets, an offset in front and
an ASCII column behind. Lines without a direction continue those before.
"""

import re
from typing import Final, Literal

import msgspec

from protocols.errors import ShuiwangError

Direction = Literal["tx", "rx"]
# More than two thousand frames; a longer text is not what somebody looks at, and every byte may begin a frame.
BYTES_MAX: Final = 64 * 1024

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_COMMENT: Final = re.compile(r"#.*")
_DIRECTIONS: Final[tuple[tuple[Direction, re.Pattern[str]], ...]] = (
    ("tx", re.compile(r">>|-+>|→|发送|发\b|\b(?:TX|T|SEND|SENT|OUT|REQUEST)\b\s*[:：>=]?", re.IGNORECASE)),
    ("rx", re.compile(r"<<|<-+|←|接收|收\b|\b(?:RX|R|RECV|RECEIVED|IN|RESPONSE)\b\s*[:：<=]?", re.IGNORECASE)),
)
# Offset, then what follows: `00000010: 6810 …  h...` (xxd) and `00000010  68 10 …  |h...|` (hexdump -C).
_DUMP_LINE: Final = re.compile(r"\s{0,8}([0-9A-Fa-f]{6,16})(:|  )(.*)")
_DUMP_END: Final = re.compile(r"[0-9A-Fa-f]{6,16}\s*")
_STAMPS: Final = (
    re.compile(r"\[[^\]]{0,40}:[^\]]{0,40}\]"),
    re.compile(r"\b\d{4}[-/]\d{1,2}[-/]\d{1,2}[T ]?"),
    re.compile(r"(?<![:0-9A-Fa-f])\d{1,2}:\d{2}:\d{2}(?:[.,]\d+)?Z?(?![:0-9A-Fa-f])(?=\s*\S)"),
    re.compile(r"(?:^|\s)\+\d+(?:\.\d+)?(?:ms|s)?(?=\s|$)"),
)
_SEPARATORS: Final = re.compile(r"[\s,;:：，；、_\-\"'\[\](){}<>=]+")
# One frame of Modbus ASCII, and how people write its end. Another one may follow it, nothing else.
_ASCII: Final = re.compile(
    r":((?:[0-9A-Fa-f]{2}){3,255})(?:\\x0[dD]\\x0[aA]|<CR> ?<LF>|\[CR\] ?\[LF\]|␍␊|CR ?LF)?(?=[\s\"']*(?::|$))"
)
_PREFIX: Final = re.compile(r"(?:0[xX]|\\x|\$)(?=[0-9A-Fa-f])")


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that went one way in one go; `direction` only where the text says so."""

    direction: Direction | None
    data: bytes


class NoHex(ShuiwangError):
    """The text is not hexadecimal; the message names the line and what stands there."""


def parse(text: str) -> list[Chunk]:
    """Return the bytes in a text, a chunk for each change of direction. Raises NoHex."""
    runs: list[tuple[Direction | None, bytearray]] = []
    total = 0
    dumped: int | None = None  # the offset at which a dump goes on
    for number, raw in enumerate(text.splitlines(), 1):
        line = _ANSI.sub("", raw)
        if dumped is not None and _DUMP_END.fullmatch(line) and int(line, 16) == dumped:
            dumped = None  # the line with which hexdump ends says how long it was
            continue
        direction: Direction | None = None
        offset, column = _dump_column(line)
        if column is not None and offset in (0, dumped):
            data = _parse_bytes(column, number)
            dumped = (offset or 0) + len(data)
        else:
            direction, data = _parse_line(line, number)
        total += len(data)
        if total > BYTES_MAX:
            raise NoHex(f"more than {BYTES_MAX} bytes 数据太长: give a part of it")
        if not runs or direction not in (None, runs[-1][0]):
            runs.append((direction, bytearray()))
        runs[-1][1].extend(data)
    chunks = [Chunk(direction=direction, data=bytes(data)) for direction, data in runs if data]
    if not chunks:
        raise NoHex('no bytes 没有数据: give pairs of hexadecimal digits, such as "68 10 44 33 …"')
    return chunks


def _dump_column(line: str) -> tuple[int | None, str | None]:
    """Return the offset and the bytes of a line of a dump, without its characters; None for any other line."""
    match = _DUMP_LINE.fullmatch(line)
    if not match:
        return None, None
    rest = match[3].split("|", 1)[0] if match[2] == "  " else match[3].lstrip().split("  ", 1)[0]
    return int(match[1], 16), rest


def _parse_line(line: str, number: int) -> tuple[Direction | None, bytes]:
    line = _COMMENT.sub("", line).replace(r"\r\n", "␍␊")
    for stamp in _STAMPS:
        line = stamp.sub(" ", line)
    for direction, mark in _DIRECTIONS:
        found = mark.search(line)
        if found:
            rest = f"{line[: found.start()]} {line[found.end() :]}"
            # `RX:0103…` may be RTU behind a colon of its own, or an ASCII frame.
            if found[0].endswith(":") and (frames := _ascii_frames(f":{rest.strip()}", is_sure=False)):
                return direction, frames
            return direction, _parse_bytes(rest, number)
    return None, _parse_bytes(line, number)


def _parse_bytes(text: str, number: int) -> bytes:
    if frames := _ascii_frames(text, is_sure=True):
        return frames
    return b"".join(_parse_token(token, number) for token in _SEPARATORS.split(_PREFIX.sub(" 0x", text)))


def _ascii_frames(text: str, *, is_sure: bool) -> bytes:
    """Return the Modbus ASCII in a line, with its CR LF; nothing where the line holds anything else.

    Unless it is sure that the colon belongs to the frame, the checksum must be right.
    """
    matches = list(_ASCII.finditer(text))
    if not matches or _ASCII.sub("", text).strip(" \t：\"'"):
        return b""
    digits = [match[1].upper() for match in matches]
    if not is_sure and any(sum(bytes.fromhex(one)) & 0xFF for one in digits):
        return b""
    return b"".join(f":{one}\r\n".encode("ascii") for one in digits)


def _parse_token(token: str, number: int) -> bytes:
    digits = token.removeprefix("0x")
    if not digits:
        return b""
    if len(digits) == 1 and digits != token:
        digits = "0" + digits  # 0x1
    if digits[-1:] in "hH" and len(digits) > 1 and re.fullmatch("[0-9A-Fa-f]+", digits[:-1]):
        digits = digits[:-1]  # 68H, as standards write it
    if not re.fullmatch("[0-9A-Fa-f]+", digits):
        raise NoHex(f"line {number}: {token[:40]!r} is not hexadecimal 不是十六进制")
    if len(digits) % 2:
        raise NoHex(f"line {number}: {token[:40]!r} has an odd number of digits 位数为奇数: a byte has two")
    return bytes.fromhex(digits)
