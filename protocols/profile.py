"""Meter profiles: one TOML file says how one meter model is read, and proves it with frames.

    [profile]                  name, title, protocol, where the facts come from
    [line]                     the factory settings of the serial line
    [timing]                   how long the meter may take
    [modbus]                   the protocol's own table (see `protocols.registers`)
    [[test]]                   frames from the line and the volume they mean

A new wire protocol is one module and one line in `PROTOCOLS`.
"""

import datetime
import difflib
import re
import tomllib
import typing
from collections.abc import Callable, Generator, Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from protocols import cjt188_data, cjt188_dialogue, mbus_data, mbus_dialogue, registers
from protocols.errors import MeterError, ProfileError, ShuiwangError
from protocols.reading import Measurement

# A hundred times the longest one that we have.
PROFILE_BYTES_MAX: Final = 1024 * 1024
PROFILE_NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9-]*\Z"  # `$` would let a line break pass


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Serial settings as the meter leaves the factory; what `[[bus]]` says in the configuration wins."""

    baudrate: int = 9600
    parity: Annotated[str, msgspec.Meta(pattern=r"^(N|E|O)\Z")] = "N"
    stop_bits: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1


class WakeUp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A meter that sleeps `sleeps_after_ms` after it was last asked, loses the next request and needs `takes_ms`."""

    sleeps_after_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)]
    takes_ms: Annotated[int, msgspec.Meta(ge=20, le=2_000)]


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the meter behaves in time. `timeout_ms` runs from the request's last bit to the answer's first.

    `turnaround_ms` is the silence that the meter needs before each request.
    """

    timeout_ms: Annotated[int, msgspec.Meta(ge=10, le=10_000)] = 500
    retries: Annotated[int, msgspec.Meta(ge=0, le=5)] = 1
    turnaround_ms: Annotated[int, msgspec.Meta(ge=0, le=2_000)] = 0
    wake_up: WakeUp | None = None


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the meter is."""

    name: Annotated[str, msgspec.Meta(pattern=PROFILE_NAME_PATTERN)]
    title: str
    protocol: str
    source: str
    step_ml: Annotated[int, msgspec.Meta(ge=1)]
    note: str = ""


class Exchange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request and its answer as hexadecimal bytes."""

    request: str
    response: str


# What a [[test]] may say that its frames come to, in place of a volume: the codes of MeterError's leaves.
REFUSALS: Final = ("no_response", "garbled", "wrong_answer", "refused", "meter_fault")


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frames and the volume they mean. `evidence` says whether a meter sent them or somebody built them.

    `fault` proves how the meter fails: one of REFUSALS in place of a volume, or a flag that comes with the volume.
    """

    exchange: tuple[Exchange, ...]
    source: str
    evidence: Annotated[str, msgspec.Meta(pattern=r"^(capture|manual|constructed|field)\Z")]
    volume_ml: int | None = None
    fault: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]+\Z")] | None = None
    date: datetime.date | None = None
    place: str = ""

    def __post_init__(self) -> None:
        if self.fault in REFUSALS and self.volume_ml is not None:
            raise ValueError(f"fault {self.fault!r} leaves no volume: remove `volume_ml`")
        if self.fault not in REFUSALS and self.volume_ml is None:
            raise ValueError(f"give `volume_ml`, or one of {', '.join(REFUSALS)} as `fault`")
        if self.evidence == "field" and not (self.date and self.place):
            raise ValueError('evidence "field" needs `date` and `place`: when and where the dial was compared')


class Reader(typing.Protocol):
    """Finds the answer to one query among the bytes that come back."""

    def feed(self, data: bytes, /) -> bytes | None:
        """Take bytes; return the answering frame once it is complete. Raises Garbled when it never will be."""
        ...

    def close(self) -> None:
        """Say, when the time is up, why there is no answer: raises NoResponse, WrongAnswer or Garbled."""
        ...


class Query(typing.Protocol):
    """One request to a meter."""

    def encode(self) -> bytes:
        """Return the frame."""
        ...

    def reader(self) -> Reader:
        """Return a fresh reader for the answer."""
        ...

    @property
    def response_bytes(self) -> int:
        """The length of the longest frame that answers."""
        ...


# Reads a meter once: yields queries, is sent the answering frames, returns the measurement. Raises MeterError.
Dialogue = Generator[Query, bytes, Measurement]


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """What a wire protocol gives: the type of its table, its addresses, how to read a meter, how to prove frames."""

    spec: type
    parse_address: Callable[[str], Any]  # raises ProfileError for what is no address
    dialogue: Callable[[Any, Any], Dialogue]  # of a spec and an address
    decode_case: Callable[[Any, list[tuple[bytes, bytes]]], Measurement]  # of a spec and (request, response) frames
    parse_address_of: Callable[[Any, str], Any] | None = None  # of a spec and a text, where meters differ in it
    parse_tcp_address: Callable[[str], Any] | None = None  # where there are others behind the framing "tcp"


PROTOCOLS: Final[dict[str, Protocol]] = {
    "modbus": Protocol(
        spec=registers.ModbusSpec,
        parse_address=registers.parse_unit,
        parse_address_of=registers.parse_unit_of,
        parse_tcp_address=registers.parse_tcp_unit,
        dialogue=registers.dialogue,
        decode_case=registers.decode_case,
    ),
    "cjt188": Protocol(
        spec=cjt188_data.Cjt188Spec,
        parse_address=cjt188_dialogue.parse_address,
        parse_address_of=cjt188_dialogue.parse_address_of,
        dialogue=cjt188_dialogue.dialogue,
        decode_case=cjt188_dialogue.decode_case,
    ),
    "mbus": Protocol(
        spec=mbus_data.MbusSpec,
        parse_address=mbus_dialogue.parse_address,
        parse_address_of=mbus_dialogue.parse_address_of,
        dialogue=mbus_dialogue.dialogue,
        decode_case=mbus_dialogue.decode_case,
    ),
}


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One meter model. `spec` is the table of its protocol."""

    head: Head
    line: Line
    timing: Timing
    spec: Any
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        """The name by which a configuration asks for it."""
        return self.head.name

    @property
    def protocol(self) -> Protocol:
        """The protocol that it speaks."""
        return PROTOCOLS[self.head.protocol]

    def parse_address(self, text: str, *, framing: str = "rtu") -> Any:
        """Return the address of such a meter in a configured text, on a line with that framing (rtu, ascii or tcp).

        Raises ProfileError for what is none.
        """
        if framing == "tcp" and self.protocol.parse_tcp_address is not None:
            return self.protocol.parse_tcp_address(text)
        if self.protocol.parse_address_of is not None:
            return self.protocol.parse_address_of(self.spec, text)
        return self.protocol.parse_address(text)


def built_in_names() -> list[str]:
    """Return the names of the profiles that come with shuiwang."""
    files = resources.files("protocols").joinpath("profiles").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".toml"))


def load(name_or_path: str, *, relative_to: Path | None = None) -> Profile:
    """Return the profile of that name, or the one in that file where the text holds a `/` or ends in `.toml`.

    Raises ProfileError which says in which file, at which key, and what would be right.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = (relative_to or Path()) / name_or_path
        return parse(_text_of(path), where=str(path))
    known = built_in_names()
    if name_or_path not in known:
        hint = _did_you_mean(name_or_path, known)
        raise ProfileError(f"there is no profile {name_or_path!r}{hint}; known are {', '.join(known)}")
    file = resources.files("protocols").joinpath("profiles", f"{name_or_path}.toml")
    return parse(file.read_text(encoding="utf-8"), where=f"profiles/{name_or_path}.toml")


def parse(text: str, *, where: str) -> Profile:
    """Return the profile in a TOML text, its test frames proven. `where` names the text in errors.

    Raises ProfileError.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError; so is a number of 5000 digits
        raise ProfileError(f"{where}: {error}") from error
    head: Head = _convert(tables.get("profile", {}), Head, f"{where}: profile")
    if head.protocol not in PROTOCOLS:
        raise ProfileError(f"{where}: profile.protocol: {head.protocol!r} is not one of {', '.join(PROTOCOLS)}")
    known = ("profile", "line", "timing", "test", head.protocol)
    for table in tables:
        if table not in known:
            hint = _did_you_mean(table, known)
            raise ProfileError(f"{where}: unknown table {table!r}{hint}; a profile has {', '.join(known)}")
    if not tables.get("test"):
        raise ProfileError(f"{where}: add a [[test]] with frames and the volume they mean: nothing proves the profile")
    profile = Profile(
        head=head,
        line=_convert(tables.get("line", {}), Line, f"{where}: line"),
        timing=_convert(tables.get("timing", {}), Timing, f"{where}: timing"),
        spec=_convert(tables.get(head.protocol, {}), PROTOCOLS[head.protocol].spec, f"{where}: {head.protocol}"),
        cases=_convert(tables["test"], tuple[Case, ...], f"{where}: test"),
    )
    for number, case in enumerate(profile.cases, 1):
        _prove(profile, case, f"{where}: test {number}")
    return profile


def _text_of(path: Path) -> str:
    """Return what a profile's file says. Raises ProfileError, also for what never ends (a device, a pipe)."""
    try:
        if path.exists() and not path.is_file():
            raise ProfileError(f"{path}: cannot be read: it is no file")
        with path.open("rb") as file:
            data = file.read(PROFILE_BYTES_MAX + 1)
        if len(data) > PROFILE_BYTES_MAX:
            raise ProfileError(f"{path}: is larger than {PROFILE_BYTES_MAX // 1024} KiB; it is no profile")
        return data.decode("utf-8-sig")  # Windows editors put a byte order mark before it
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: is not UTF-8 text; save it as UTF-8: {error}") from error
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from error


def _convert(value: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, type=kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        # `$.total[0].type` is the key `total 1.type` to people, who count from 1.
        path = re.sub(r"\[(\d+)\]", lambda index: f" {int(index[1]) + 1}", path.rstrip("`"))
        raise ProfileError(f"{where}{path}: {_with_remedy(problem, kind)}") from error


def _with_remedy(problem: str, kind: Any) -> str:
    """Return what msgspec says of a value, and what would be right where it does not say so itself."""
    choice = re.search(r"matching regex '\^\((.*)\)\\\\Z'", problem)
    if choice:
        return f"give one of {choice[1].replace('|', ', ')}"
    definitions = msgspec.json.schema(kind).get("$defs", {}).values()
    if problem.startswith("Invalid enum value"):
        return f"{problem}; give one of {', '.join(word for d in definitions for word in d.get('enum', ()))}"
    unknown = re.search("unknown field `(.*)`", problem)
    if unknown:
        return problem + _did_you_mean(unknown[1], {key for d in definitions for key in d.get("properties", ())})
    return problem


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _prove(profile: Profile, case: Case, where: str) -> None:
    try:
        frames = [(bytes.fromhex(exchange.request), bytes.fromhex(exchange.response)) for exchange in case.exchange]
    except ValueError as error:
        raise ProfileError(f"{where}: exchange: write bytes as hexadecimal pairs: {error}") from error
    try:
        measurement = profile.protocol.decode_case(profile.spec, frames)
    except MeterError as error:
        if error.reason == case.fault:
            return
        raise ProfileError(f"{where}: exchange: {error}") from error
    except ShuiwangError as error:
        raise ProfileError(f"{where}: exchange: {error}") from error
    volume_ml = measurement.volume_ml
    if case.fault in REFUSALS:
        raise ProfileError(f"{where}: fault: the frames mean {volume_ml} mL, the test expects {case.fault}")
    if volume_ml != case.volume_ml:
        raise ProfileError(f"{where}: volume_ml: the frames mean {volume_ml} mL, the test expects {case.volume_ml} mL")
    if case.fault is not None and case.fault not in measurement.flags:
        found = ", ".join(measurement.flags) or "none"
        raise ProfileError(f"{where}: fault: the frames report {found}, the test expects {case.fault}")
