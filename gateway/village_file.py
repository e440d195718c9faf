"""The village file: which simulated meters hang on which simulated line, what their homes use, what goes wrong.

`docs/village.example.toml` shows every key, `docs/simulator.md` explains them. Unknown keys are errors.
"""

import datetime
import difflib
import enum
import re
import tomllib
import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from gateway.usage import (
    VARY_MIN_MAX,
    VARY_PERCENT_MAX,
    Interval,
    Register,
    Routine,
    Variation,
    VillageError,
    parse_draw,
    read_replay,
    wall_ms_of,
)
from gateway.village_faults import FAULTS, AnyFault, Fault, WrongUnit
from protocols import profile as profiles
from protocols.cjt188_data import SETTLED_MONTHS, knows_past
from protocols.errors import ProfileError
from protocols.registers import UNIT_ML, VOLUME_ML_MAX

TIMEZONE: Final = "Asia/Shanghai"
# Fixed, so that a village file alone decides what its registers show.
SINCE: Final = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 (local time wherever the village is)

DecimalText = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,10}(\.[0-9]+)?$")]
# A total of a settlement day; or the meter leaves it empty, or refuses it.
SettledText = Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,10}(\.[0-9]+)?|empty|refused)$")]


class LineTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[line]`: how fast bytes travel, a stable name for the port, and whether the adapter repeats what it sends."""

    baudrate: Annotated[int, msgspec.Meta(ge=300, le=1_000_000)] = 9600
    parity: Annotated[str, msgspec.Meta(pattern="^[NEO]$")] = "N"
    stop_bits: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    link: str | None = None
    echo: bool = False

    @property
    def byte_s(self) -> float:
        """The time of one byte on the wire: start bit, eight data bits, parity, stop bits."""
        return (9 + (self.parity != "N") + self.stop_bits) / self.baudrate


class ValveKind(enum.StrEnum):
    """How a meter's valve takes commands, where its profile names any."""

    OBEYS = "obeys"
    STUCK = "stuck"  # the meter answers, the valve stays
    MUTE = "mute"  # the valve moves, the meter does not answer the command


class MeterTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[meter]]`: one meter and the home behind it."""

    profile: str
    address: str
    id: str | None = None
    start_m3: DecimalText = "0"
    answer_delay_ms: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 5
    valve: ValveKind = ValveKind.OBEYS
    valve_moves_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 1000
    settled_m3: Annotated[tuple[SettledText, ...], msgspec.Meta(max_length=len(SETTLED_MONTHS))] = ()
    csv: str | None = None
    usage: tuple[str, ...] | None = None
    since: datetime.datetime | None = None
    drip_l_h: DecimalText | None = None
    drip_from: datetime.datetime | None = None
    drip_to: datetime.datetime | None = None
    silent_from: datetime.datetime | None = None
    silent_to: datetime.datetime | None = None
    vary_percent: Annotated[int, msgspec.Meta(ge=0, le=VARY_PERCENT_MAX)] = 0
    vary_min: Annotated[int, msgspec.Meta(ge=0, le=VARY_MIN_MAX)] = 0
    seed: int | None = None
    fault: tuple[AnyFault, ...] = ()


class VillageTables(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file as it is written."""

    timezone: str = TIMEZONE
    seed: int = 0
    line: LineTable = LineTable()
    meter: Annotated[tuple[MeterTable, ...], msgspec.Meta(min_length=1)]


class MeterPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One meter, ready to be simulated. `address` is what the profile's protocol makes of it.

    `settled_ml` holds the totals of settlement days by CJ/T 188 identifier, None for one that the meter leaves empty.
    """

    id: str
    profile: profiles.Profile
    address: Any
    register: Register
    answer_delay_s: float
    valve: ValveKind
    valve_moves_ms: int
    settled_ml: Mapping[int, int | None]
    faults: tuple[tuple[Interval, AnyFault], ...]


class VillagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """A line and its meters, ready to be simulated."""

    line: LineTable
    link: Path | None
    seed: int
    meters: tuple[MeterPlan, ...]


_ONLY_WITH_USAGE: Final = (
    "since",
    "drip_l_h",
    "drip_from",
    "drip_to",
    "silent_from",
    "silent_to",
    "vary_percent",
    "vary_min",
    "seed",
)
# What would be right, by key.
_RIGHT: Final = {
    "timezone": f'a name of the time zone database such as "{TIMEZONE}"',
    "seed": "a whole number",
    "line": "a table [line]",
    "meter": "at least one table [[meter]]",
    "baudrate": "300 to 1000000, such as 9600",
    "parity": '"N", "E" or "O"',
    "stop_bits": "1 or 2",
    "link": 'a path such as "/run/village"',
    "echo": "true or false",
    "profile": f"one of {', '.join(profiles.built_in_names())}, or the path of a profile",
    "address": 'the address in quotes, such as "17"',
    "id": 'a name in quotes, such as "m-001"',
    "start_m3": 'an exact decimal in quotes, such as "123.456"',
    "answer_delay_ms": "0 to 10000",
    "valve": "one of " + ", ".join(f'"{kind}"' for kind in ValveKind),
    "valve_moves_ms": "0 to 600000",
    "settled_m3": 'up to twelve totals, the latest first, such as ["12.34", "empty", "refused"]',
    "csv": "the path of a file with the columns timestamp,litres",
    "usage": 'a list of draws such as ["06:30 8 L", "12:00 15 L in 5 min"]; [] for an empty home',
    "drip_l_h": 'litres per hour as an exact decimal in quotes, such as "0.5"',
    "vary_percent": f"0 to {VARY_PERCENT_MAX}",
    "vary_min": f"0 to {VARY_MIN_MAX}",
    "fault": 'a table [[meter.fault]] with kind = "' + '", "'.join(FAULTS) + '"',
    "kind": " or ".join(f'"{kind}"' for kind in FAULTS),
    "rate": "more than 0.0, at most 1.0",
    "code": "1 to 255",
    "late_ms": "1 to 60000",
    "before": "0 to 100 bytes",
    "after": "0 to 100 bytes",
} | dict.fromkeys(
    ("since", "drip_from", "drip_to", "silent_from", "silent_to", "from", "to"),
    "a date and time without quotes, such as 2026-11-21T20:30:00",
)


def load(path: Path) -> VillagePlan:
    """Return the plan in a village file; the paths in it count from its folder. Raises VillageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VillageError(f"{path}: cannot be read: {error}") from error
    return parse(text, where=str(path), folder=path.parent)


def parse(text: str, *, where: str, folder: Path = Path()) -> VillagePlan:
    """Return the plan in the text of a village file.

    `where` names the text in errors. Raises VillageError, which says which key, and what would be right.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise VillageError(f"{where}: {error}") from error
    _check_keys(tables, VillageTables, where)
    try:
        village = msgspec.convert(tables, type=VillageTables)
    except msgspec.ValidationError as error:
        raise VillageError(f"{where}: {_explain(str(error))}") from error
    try:
        timezone = zoneinfo.ZoneInfo(village.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise VillageError(f"{where}: timezone: {village.timezone!r} is unknown; {_hint('timezone')}") from error
    meters: list[MeterPlan] = []
    for number, table in enumerate(village.meter, 1):
        place = f"{where}: meter {number}"
        meter = _plan(table, village, timezone=timezone, folder=folder, place=place)
        for other in meters:
            if meter.id == other.id:
                raise VillageError(f"{place}: id: {meter.id!r} is taken; right would be an id of its own")
            if (meter.address, meter.profile.head.protocol) == (other.address, other.profile.head.protocol):
                raise VillageError(f"{place}: address: {table.address!r} is taken; two meters would answer at once")
        meters.append(meter)
    link = folder / village.line.link if village.line.link else None
    return VillagePlan(line=village.line, link=link, seed=village.seed, meters=tuple(meters))


def _plan(
    table: MeterTable, village: VillageTables, *, timezone: zoneinfo.ZoneInfo, folder: Path, place: str
) -> MeterPlan:
    try:
        profile = profiles.load(table.profile, relative_to=folder)
    except ProfileError as error:
        raise VillageError(f"{place}: profile: {error}") from error
    address = _address(profile, table.address, f"{place}: address")
    for fault in table.fault:
        if isinstance(fault, WrongUnit):
            _address(profile, fault.address, f"{place}: fault: address")
    return MeterPlan(
        id=table.id or table.address,
        profile=profile,
        address=address,
        register=_register(table, village, timezone=timezone, folder=folder, place=place),
        answer_delay_s=table.answer_delay_ms / 1000,
        valve=table.valve,
        valve_moves_ms=table.valve_moves_ms,
        settled_ml=_settled_ml(table, profile, f"{place}: settled_m3"),
        faults=tuple((_interval(f.start, f.end, timezone, f"{place}: fault: to"), f) for f in table.fault),
    )


def _address(profile: profiles.Profile, text: str, where: str) -> Any:
    try:
        return profile.parse_address(text)
    except ProfileError as error:
        raise VillageError(f"{where}: {text!r}: {error}") from error


def _register(
    table: MeterTable, village: VillageTables, *, timezone: zoneinfo.ZoneInfo, folder: Path, place: str
) -> Register:
    start_ml = _millilitres(table.start_m3, "m3", f"{place}: start_m3")
    if (table.csv is None) == (table.usage is None):
        raise VillageError(f"{place}: give either usage ({_RIGHT['usage']}) or csv ({_RIGHT['csv']})")
    if table.csv is not None:
        for key in _ONLY_WITH_USAGE:
            if getattr(table, key):
                raise VillageError(f"{place}: {key}: goes with usage, not with csv; right would be to leave it out")
        return read_replay(folder / table.csv, timezone=timezone, start_ml=start_ml)
    assert table.usage is not None
    try:
        draws = [parse_draw(text) for text in table.usage]
    except VillageError as error:
        raise VillageError(f"{place}: usage: {error}") from error
    silent = None
    if table.silent_from or table.silent_to:
        silent = _interval(table.silent_from, table.silent_to, timezone, f"{place}: silent_to")
    seed = village.seed if table.seed is None else table.seed
    return Routine(
        draws,
        start_ml=start_ml,
        since_ms=wall_ms_of(table.since or SINCE, timezone=timezone),
        timezone=timezone,
        drip_ml_h=_millilitres(table.drip_l_h or "0", "L", f"{place}: drip_l_h"),
        drip=_interval(table.drip_from, table.drip_to, timezone, f"{place}: drip_to"),
        silent=silent,
        # Neighbours with the same routine and the same seed still have their own days.
        variation=Variation(table.vary_percent, table.vary_min, f"{seed}/{table.id or table.address}"),
    )


def _settled_ml(table: MeterTable, profile: profiles.Profile, where: str) -> dict[int, int | None]:
    if table.settled_m3 and profile.head.protocol != "cjt188":
        raise VillageError(f"{where}: CJ/T 188 meters alone have settlement days; right would be to leave it out")
    if table.settled_m3 and not knows_past(profile.spec):
        raise VillageError(
            f"{where}: how {profile.name} shows past totals is not known; right would be to leave it out"
        )
    return {
        identifier: None if text == "empty" else _millilitres(text, "m3", where)
        for identifier, text in zip(SETTLED_MONTHS, table.settled_m3, strict=False)
        if text != "refused"
    }


def _millilitres(text: str, unit: str, where: str) -> int:
    whole, _, fraction = text.partition(".")
    digits = len(str(UNIT_ML[unit])) - 1
    if fraction[digits:].strip("0"):
        raise VillageError(f"{where}: {text} is finer than a millilitre; right would be at most {digits} decimals")
    volume_ml = int(whole + fraction[:digits].ljust(digits, "0"))
    if volume_ml > VOLUME_ML_MAX:
        raise VillageError(f"{where}: {text} is more than any meter shows; right would be at most 1000000000 m3")
    return volume_ml


def _interval(
    start: datetime.datetime | None, end: datetime.datetime | None, timezone: zoneinfo.ZoneInfo, where: str
) -> Interval:
    interval = Interval(
        None if start is None else wall_ms_of(start, timezone=timezone),
        None if end is None else wall_ms_of(end, timezone=timezone),
    )
    if interval.start_ms is not None and interval.end_ms is not None and interval.end_ms <= interval.start_ms:
        raise VillageError(f"{where}: {end} is not after {start}; right would be a later moment")
    return interval


def _check_keys(tables: dict[str, Any], kind: type[msgspec.Struct], where: str) -> None:
    """Raise VillageError for the first key that a table cannot have, with the one that was probably meant."""
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    if issubclass(kind, Fault):
        known.append("kind")
    for key, value in tables.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise VillageError(
                f"{where}: {key}: there is no such key; "
                + (f"right would be {close[0]}" if close else f"known are {', '.join(known)}")
            )
        if key == "line" and isinstance(value, dict):
            _check_keys(value, LineTable, f"{where}: line")
        elif key in {"meter", "fault"} and isinstance(value, list):
            for number, entry in enumerate(value, 1):
                if isinstance(entry, dict):
                    inner = MeterTable if key == "meter" else FAULTS.get(str(entry.get("kind")))
                    if inner is not None:
                        _check_keys(entry, inner, f"{where}: {key} {number}")


def _explain(message: str) -> str:
    """Turn a validation error into the key as the file's reader counts it, what is wrong and what would be right."""
    match = re.search(r"^(?P<what>.*) - at `\$(?P<path>[^`]*)`$", message)
    what, path = (match["what"], match["path"]) if match else (message, "")
    path = re.sub(r"\[(\d+)\]", lambda found: f" {int(found[1]) + 1}", path).lstrip(".").replace(".", ": ")
    missing = re.search(r"required field `(\w+)`", what)
    if missing:
        path = f"{path}: {missing[1]}" if path else missing[1]
    key = re.sub(r" \d+$", "", path.rsplit(": ", 1)[-1])
    return "; ".join(part for part in (f"{path}: {what}" if path else what, _hint(key)) if part)


def _hint(key: str) -> str:
    return f"right would be {_RIGHT[key]}" if key in _RIGHT else ""
