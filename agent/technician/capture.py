"""Captures: what a line did in time, as text. They are the golden dialogues of the tests, so a capture becomes a test.

# free text
line 2400                                   the baud rate
frame 8E1                                   data bits, parity, stop bits
framing ascii                               how Modbus travels, where it is not RTU: ascii or tcp
meter 17 usw-dn15-40 timeout_ms=500 new=1   a meter on the line and its profile; new: the first reading comes first
meter 18 "../my meters/usw.toml"            a profile of one's own: the way to its file from the capture's folder
+0000 read 17                               we read the meter (a passive capture has no such line)
+0100 >> 11 03 02 04 00 04 06 E0            the master sends
+0130 << 11 03 08 00 00 00 00 00 01 F0 …    anybody else does
+0130 == 17: 127113 mL                      what came of it: a volume, or the reason why there is none
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec

from agent.technician.lines import FRAMINGS
from gateway.line import LineSettings
from protocols import profile as profiles
from protocols.errors import ProfileError, ShuiwangError
from protocols.profile import Profile

Mark = Literal[">>", "<<", "==", "read"]
# A day of a busy line at 9600 baud is some 100 MB of text; what somebody replays is minutes of it.
FILE_BYTES_MAX: Final = 8 * 1024 * 1024

_EVENT: Final = re.compile(r"\+(\d{1,12}) (read|<<|>>|==|!!) ?(.*)")
_METER: Final = re.compile(r'meter (\S+) (?:"([^"]+)"|(\S+))(?: (.*))?')
_FRAME: Final = re.compile(r"frame ([78])([NEO])([12])")
_FRAMING: Final = re.compile(f"framing ({'|'.join(FRAMINGS)})")
_OPTION: Final = re.compile(r"(timeout_ms|retries|new)=(\d{1,5})")


class CaptureError(ShuiwangError):
    """The text is no capture; the message names file and line and what would be right."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened; `data` for bytes, `text` for everything else."""

    at_ms: int
    mark: Mark
    data: bytes = b""
    text: str = ""


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """A meter that the capture names."""

    address: str
    profile: str
    timeout_ms: int | None = None
    retries: int | None = None
    new: int = 0  # 1: nobody had proven before that the meter is in step

    def load(self, *, folder: Path) -> Profile:
        """Return its profile; a path begins at the folder of the capture. Raises ProfileError.

        Where that leads nowhere, a file of that name beside the capture is it: the two were moved together.
        """
        if self.is_lost(folder=folder):
            beside = Path(self.profile).name
            if _exists(folder / beside):
                return profiles.load(f"./{beside}", relative_to=folder)
        return profiles.load(self.profile, relative_to=folder)

    def is_lost(self, *, folder: Path) -> bool:
        """Tell whether its profile is named by a file that is not there."""
        return is_file(self.profile) and not _exists(folder / self.profile)


def is_file(profile: str) -> bool:
    """Tell whether a profile is named by its file, and not by the name of a built-in one."""
    return "/" in profile or profile.endswith(".toml")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def reference(profile: str, *, capture: Path) -> str:
    """Return how a capture in that file names a profile that the command line names so.

    Raises CaptureError for a path that no line of a capture can hold.
    """
    if not is_file(profile):
        return profile
    file = Path(profile).absolute()
    # Its folder may be a symbolic link, behind which `..` leads elsewhere; the file keeps its own name.
    way = os.path.relpath(Path(os.path.realpath(file.parent)) / file.name, os.path.realpath(capture.absolute().parent))
    if '"' in way or not way.isprintable():
        raise CaptureError(f"{profile}: the name holds a quote or an invisible character 文件名含特殊字符: rename it")
    return way if "/" in way else f"./{way}"


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """A whole capture."""

    where: str
    folder: Path
    line: LineSettings
    meters: dict[str, Meter]
    events: tuple[Event, ...]

    @property
    def is_active(self) -> bool:
        """Whether we asked, and did not only listen."""
        return any(event.mark == "read" for event in self.events)


def load(path: Path) -> Capture:
    """Return the capture in a file. Raises CaptureError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptureError(f"{path}: is no UTF-8 text 不是文本文件: {error.reason} at byte {error.start}") from error
    except (OSError, ValueError) as error:
        raise CaptureError(f"{path}: cannot be read 无法读取: {error}") from error
    if len(data) > FILE_BYTES_MAX:
        raise CaptureError(f"{path}: more than {FILE_BYTES_MAX >> 20} MiB 文件太大: cut out the minutes that matter")
    return parse(text, where=str(path), folder=path.parent)


def parse(text: str, *, where: str, folder: Path = Path()) -> Capture:
    """Return the capture in a text. Raises CaptureError."""
    line = LineSettings(name="capture", port="capture", baudrate=0)
    meters: dict[str, Meter] = {}
    events: list[Event] = []
    for number, raw in enumerate(text.splitlines(), 1):
        row = raw.strip()
        place = f"{where}:{number}"
        if not row or row.startswith("#"):
            continue
        if match := _EVENT.fullmatch(row):
            events += _event(match, place)
        elif match := re.fullmatch(r"line ([1-9]\d{1,6})", row):
            line = msgspec.structs.replace(line, baudrate=int(match[1]))
        elif match := _FRAME.fullmatch(row):
            line = msgspec.structs.replace(line, data_bits=int(match[1]), parity=match[2], stop_bits=int(match[3]))
        elif match := _FRAMING.fullmatch(row):
            line = msgspec.structs.replace(line, framing=match[1])
        elif match := _METER.fullmatch(row):
            options: dict[str, Any] = {key: int(value) for key, value in _OPTION.findall(match[4] or "")}
            meters[match[1]] = Meter(address=match[1], profile=match[2] or match[3], **options)
        else:
            raise CaptureError(
                f"{place}: {row[:60]!r} is no line of a capture 不是录制格式; right would be, for example, "
                '"+0100 >> 11 03 02 04 00 04 06 E0", "line 9600" or "meter 17 usw-dn15-40"'
            )
    if not line.baudrate:
        raise CaptureError(f'{where}: has no line such as "line 9600" 缺少波特率行')
    if not any(event.data for event in events):
        raise CaptureError(f"{where}: holds no bytes 没有数据: nothing was heard, or this is no capture")
    return Capture(where=where, folder=folder, line=line, meters=meters, events=tuple(events))


def _event(match: re.Match[str], place: str) -> Iterator[Event]:
    at_ms, mark, text = int(match[1]), match[2], match[3]
    if mark == "!!":
        raise CaptureError(f"{place}: {text[:40]!r}: simulated trouble belongs into a dialogue, not into a capture")
    if mark not in {"<<", ">>"}:
        yield Event(at_ms=at_ms, mark="read" if mark == "read" else "==", text=text)
        return
    try:
        data = bytes.fromhex(text)
    except ValueError as error:
        raise CaptureError(
            f"{place}: {text[:60]!r} is not hexadecimal 不是十六进制; write pairs such as 11 03"
        ) from error
    if data:
        yield Event(at_ms=at_ms, mark=">>" if mark == ">>" else "<<", data=data)


class Writer:
    """Writes a capture to a new file, line by line as things happen; a power cut costs what the disk has not got."""

    def __init__(self, path: Path, line: LineSettings, *, remark: str) -> None:
        """Make the file. Raises FileExistsError rather than overwrite anything, and other OSErrors."""
        self._file = path.open("x", encoding="utf-8", buffering=1)
        self._meters: set[str] = set()
        self.events = 0
        self.put(f"# {remark}\nline {line.baudrate}\nframe {line.data_bits}{line.parity}{line.stop_bits}")
        if line.framing != "rtu":
            self.put(f"framing {line.framing}")

    def put(self, text: str) -> None:
        """Write a line as it is. Raises OSError."""
        self._file.write(text + "\n")

    def meter(
        self,
        address: str,
        profile: str,
        *,
        timeout_ms: int | None = None,
        retries: int | None = None,
        new: int | None = None,
    ) -> None:
        """Name a meter and its profile, as `reference` does, once."""
        if address in self._meters:
            return
        self._meters.add(address)
        options = {"timeout_ms": timeout_ms, "retries": retries, "new": new}
        said = "".join(f" {key}={value}" for key, value in options.items() if value is not None)
        named = f'"{profile}"' if " " in profile else profile
        self.put(f"meter {address} {named}{said}")

    def event(self, at_ms: float, mark: Mark, what: bytes | str) -> None:
        """Write what happened."""
        text = what.hex(" ").upper() if isinstance(what, bytes) else " ".join(what.split())
        self.put(f"+{max(0, round(at_ms)):04} {mark} {text}")
        self.events += 1

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def outcome_code(text: str) -> str:
    """Return what can be compared of an outcome `17: garbled: 3 bytes…`: the volume, or the reason without its text.

    The wording of an error may improve; what it is must stay.
    """
    _, _, rest = text.partition(": ")
    return rest.partition(": ")[0].strip()


def profile_of(meters: dict[str, Meter], address: str, *, folder: Path) -> Profile | None:
    """Return the profile of a meter that the capture names, None where it names none. Raises CaptureError."""
    meter = meters.get(address)
    if meter is None:
        return None
    try:
        return meter.load(folder=folder)
    except ProfileError as error:
        name = Path(meter.profile).name
        hint = f"; lay {name} beside the capture 请把它放在录制文件旁" if meter.is_lost(folder=folder) else ""
        raise CaptureError(f"meter {address}: {error}{hint}") from error
