"""The configuration: one TOML file, checked to the last key before anything starts.

`load` finds every problem of a file, not just the first, and says for each on which line it is, what is wrong and what
would be right. docs/shuiwang.example.toml is the reference of the format.
"""

import os
import tomllib
import zoneinfo
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from agent.config_broker import read_broker
from agent.config_meters import read_meters
from agent.config_table import (
    NETWORK_PORTS,
    SCHEMA,
    Claims,
    Problem,
    Report,
    Table,
    heading,
    lacks_host,
    shown,
    shown_key,
    suggestion,
)
from agent.settings import (
    BrokerSettings,
    Config,
    DetectionSettings,
    GatewaySettings,
    MeterSettings,
    rule_in_words,
    summary,
)
from agent.toml_positions import explain, locate
from gateway.line import LineSettings
from protocols import cjt188_dialogue
from protocols.cjt188 import BROADCAST
from protocols.errors import ShuiwangError
from protocols.modbus import ANY_UNIT

__all__ = [
    "BrokerSettings",
    "Config",
    "ConfigError",
    "DetectionSettings",
    "GatewaySettings",
    "LineSettings",
    "MeterSettings",
    "Problem",
    "load",
    "parse",
    "rule_in_words",
    "summary",
]

# Ten thousand meters fit; what is larger is not a configuration but, say, a log file given by mistake.
FILE_BYTES_MAX: Final = 1024 * 1024
# The rates that serial adapters and meters have in common.
BAUDRATES: Final = (300, 600, 1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400)
PARITIES: Final = ("N", "E", "O")
FRAMINGS: Final = ("rtu", "ascii", "tcp")
# The URLs that pyserial understands; the first two name a host and a port.
PORT_SCHEMES: Final = (*NETWORK_PORTS, "loop", "spy", "alt", "hwgrep", "cp2110")


class ConfigError(ShuiwangError):
    """A configuration has problems; the text lists all of them, one per line, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def load(path: Path) -> Config:
    """Return the configuration in a file. Raises ConfigError with every problem that it has."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise _hopeless(path, None, f"cannot be read ({reason}) — give the configuration's path with -c") from error
    if len(data) > FILE_BYTES_MAX:
        message = (
            f"is larger than {FILE_BYTES_MAX // 1024} KiB, which no configuration is — give the right file with -c"
        )
        raise _hopeless(path, None, message)
    try:
        text = data.decode("utf-8-sig")  # editors on Windows put a byte order mark first
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"the byte 0x{data[error.start]:02X} is not UTF-8 — save the file in the encoding UTF-8 (not GBK)"
        raise _hopeless(path, line, message) from error
    return parse(text, path=path)


def parse(text: str, *, path: Path) -> Config:
    """Return the configuration in a TOML text; relative paths in it begin at the folder of `path`.

    Raises ConfigError with every problem that it has.
    """
    try:
        tables = tomllib.loads(text, parse_float=_decimal)
    except (ValueError, RecursionError) as error:
        explanation = explain(error, text)
        raise _hopeless(path, explanation.line, explanation.message) from error
    report = Report(file=str(path), positions=locate(text))
    config = _read(report, tables, path)
    if config is None or report.problems:
        raise ConfigError(sorted(report.problems, key=_in_order))
    return config


def _read(report: Report, tables: dict[str, Any], path: Path) -> Config | None:
    """Return the configuration in the tables of a file; None or nothing to rely on where the report has problems."""
    folder = path.parent
    tables = _without_unknown(report, tables)
    gateway_table, broker_table = _single(report, tables, "gateway"), _single(report, tables, "broker")
    gateway = _gateway(gateway_table, folder) if gateway_table else None
    broker = read_broker(broker_table, folder=folder) if broker_table else None
    claims = Claims()
    bus_tables = _repeated(report, tables, "bus", "name")
    buses = [_bus(table, claims) for table in bus_tables]
    detection = _single(report, tables, "detection")
    meters = read_meters(
        _repeated(report, tables, "meter", "id"),
        detection=detection or Table(report, kind="detection", path=("detection",), label="detection", content={}),
        # Where a bus has no usable name, a meter's bus cannot be said to be unknown.
        buses={bus.name: bus.framing for bus in buses} if all(table.is_good("name") for table in bus_tables) else {},
        folder=folder,
    )
    for bus, table in zip(buses, bus_tables, strict=True):
        _compare_with_meters(bus, table, [meter for meter in meters if meter.bus == bus.name])
    if gateway is None or broker is None:
        return None
    return Config(
        path=path,
        gateway=gateway,
        broker=broker,
        buses=tuple(buses),
        meters=tuple(meters),
        warnings=tuple(sorted(report.warnings, key=_in_order)),
    )


def _gateway(table: Table, folder: Path) -> GatewaySettings:
    data_dir = table.path("data_dir", folder=folder, default="/var/lib/shuiwang")
    if table.is_good("data_dir") and os.path.exists(data_dir) and not os.path.isdir(data_dir):  # noqa: PTH110, PTH112 - Path's raise for odd names
        table.problem("data_dir", f'"{data_dir}" is a file — name a folder; the agent makes it where it is absent')
    return GatewaySettings(
        id=table.name("id"),
        county=table.name("county"),
        data_dir=data_dir,
        timezone=_timezone(table),
    )


def _timezone(table: Table) -> str:
    text = table.text("timezone", default="Asia/Shanghai")
    try:
        zoneinfo.ZoneInfo(text)
    except (KeyError, ValueError, OSError):  # unknown, no zone file, a folder such as "Asia"
        known = zoneinfo.available_timezones()
        if known:
            better = suggestion(text, sorted(known)) or "Asia/Shanghai"
            table.problem("timezone", f'there is no time zone {shown(text)} — write, for example, "{better}"')
        else:
            table.problem("timezone", "this machine has no time zone database — install the package tzdata")
    return text


def _bus(table: Table, claims: Claims) -> LineSettings:
    name = table.name("name")
    if name:
        claims.claim(table, "name", "name", name, "every bus needs a name of its own")
    port = table.text("port")
    if port:
        _check_port(table, port)
        # Two names of one device (/dev/ttyUSB0, /dev/serial/by-id/…) are one port.
        identity = port.lower() if "://" in port else os.path.realpath(port)
        claims.claim(table, "port", "port", identity, "write one [[bus]] and give its name to the meters of both")
    baudrate = table.integer("baudrate", default=9600, minimum=BAUDRATES[0], maximum=BAUDRATES[-1])
    if table.is_good("baudrate") and baudrate not in BAUDRATES:
        near = min(BAUDRATES, key=lambda rate: abs(rate - baudrate))
        table.problem("baudrate", f"{baudrate} is no usual rate — write {near}, or another of {_words(BAUDRATES)}")
    framing = table.choice("framing", FRAMINGS, default="rtu")
    data_bits = table.integer("data_bits", default=8, minimum=7, maximum=8)
    if framing == "tcp" and port and table.is_good("port") and not port.lower().startswith("socket://"):
        wrong = f"Modbus TCP has no serial port, but the bus has {shown(port)}"
        table.problem("framing", f'{wrong} — write "rtu", or port = "socket://192.168.1.20:502"')
    if data_bits == 7 and framing != "ascii" and table.is_good("framing"):
        table.problem("data_bits", 'only framing = "ascii" travels in 7 bits — write 8')
    return LineSettings(
        name=name,
        port=port,
        baudrate=baudrate,
        parity=table.choice("parity", PARITIES, default="N"),
        stop_bits=table.integer("stop_bits", default=1, minimum=1, maximum=2),
        data_bits=data_bits,
        framing=framing,
    )


def _check_port(table: Table, port: str) -> None:
    scheme, separator, rest = port.partition("://")
    if not separator:
        if not port.startswith("/"):
            better = "/dev/ttyUSB0" if port.upper().startswith("COM") else f"/dev/{port}"
            table.problem("port", f"{shown(port)} is neither a device nor a URL — write, for example, {shown(better)}")
    elif scheme.lower() not in PORT_SCHEMES:
        better = f"{suggestion(scheme, PORT_SCHEMES) or 'socket'}://{rest}"
        table.problem("port", f"{shown(port)} is no port that can be opened — write, for example, {shown(better)}")
    elif lacks_host(port):
        example = f"{scheme}://192.168.1.20:4001"
        table.problem("port", f'{shown(port)} lacks a host or a port number — write, for example, "{example}"')


def _compare_with_meters(bus: LineSettings, table: Table, meters: list[MeterSettings]) -> None:
    """Warn of a bus that nobody reads and of line settings with which its meters do not leave the factory."""
    if not meters:
        table.warning("", "no meter is on this bus — delete it, or add a [[meter]] with its name")
    for meter in meters:
        if any(_is_answered_by(meter, other) for other in meters if other is not meter):
            wrong = f"meter {shown(meter.id)} has the address {shown(meter.address_text)}"
            table.problem("name", f"{wrong}, which others on this bus may answer too — give it an address of its own")
    if bus.framing == "tcp":
        for meter in meters:
            if meter.profile.head.protocol != "modbus":
                wrong = (
                    f"meter {shown(meter.id)} speaks {meter.profile.head.protocol}, and only Modbus has a TCP framing"
                )
                table.problem("framing", f'{wrong} — write "rtu" where a serial server passes bytes on')
        return  # there is no line whose settings could differ
    odd: dict[tuple[str, str, str], int] = {}
    for meter in meters:
        factory = meter.profile.line
        for key, here, there in (
            ("baudrate", bus.baudrate, factory.baudrate),
            ("parity", bus.parity, factory.parity),
            ("stop_bits", bus.stop_bits, factory.stop_bits),
        ):
            if here != there:
                message = f"{shown(here)}, but {meter.profile.name} meters leave the factory with {shown(there)}"
                right = f"right only if they were set to {shown(here)}; else write {key} = {shown(there)}"
                odd[key, message, right] = odd.get((key, message, right), 0) + 1
    for (key, message, right), count in odd.items():
        table.warning(key, f"{message} ({count} on this bus) — {right}")


def _is_answered_by(meter: MeterSettings, other: MeterSettings) -> bool:
    """Tell whether a meter has the address of whoever is alone on the line, and another one may answer to it."""
    asked, other_asked = meter.address, other.address
    if isinstance(asked, cjt188_dialogue.Station) and asked.address == BROADCAST:
        if not isinstance(other_asked, cjt188_dialogue.Station):
            return False  # it speaks another protocol
        # Two radio modems with destinations of their own are two lines.
        return not asked.prefix or not other_asked.prefix or asked.prefix == other_asked.prefix
    return meter.profile.head.protocol == "modbus" and asked == ANY_UNIT


def _without_unknown(report: Report, tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables that a configuration has; None stands for one that is there, but misspelled."""
    meant = {kind: tables[kind] for kind in SCHEMA if kind in tables}
    for name, content in tables.items():
        if name in SCHEMA:
            continue
        if not isinstance(content, dict | list):
            homes = [heading(kind) for kind, keys in SCHEMA.items() if name in keys]
            place = " or ".join(homes) or "its heading, such as [gateway]"
            report.problem((name,), shown_key(name), f"this key stands above every heading — move it below {place}")
            continue
        better = suggestion(name, SCHEMA)
        advice = f"did you mean {heading(better)}?" if better else f"there are {_words(map(heading, SCHEMA))}"
        report.problem((name,), shown_key(name), f"there is no such table — {advice}")
        if better and better not in meant:
            meant[better] = None
    return meant


def _single(report: Report, tables: dict[str, Any], kind: str) -> Table | None:
    """Return the table that stands once in the file."""
    content = tables.get(kind)
    if kind in tables and content is None:
        return None
    if isinstance(content, dict):
        return Table(report, kind=kind, path=(kind,), label=kind, content=content)
    required = [f"{key} = {known.example}" for key, known in SCHEMA[kind].items() if known.required]
    if content is None:
        if required:
            report.problem(
                (), kind, f"this table is missing — add the heading [{kind}] and below it {', '.join(required)}"
            )
    elif isinstance(content, list):
        report.problem((kind,), kind, f"there is only one of it — write the heading [{kind}], in single brackets, once")
    else:
        report.problem((kind,), kind, f"{shown(content)} is not a table — write the heading [{kind}]")
    return None


def _repeated(report: Report, tables: dict[str, Any], kind: str, identifier: str) -> list[Table]:
    """Return the tables of one kind, each labelled by its identifier where that is usable."""
    content = tables.get(kind, [])
    if content is None:
        return []
    required = ", ".join(f"{key} = {known.example}" for key, known in SCHEMA[kind].items() if known.required)
    if isinstance(content, dict):
        report.problem((kind,), kind, f"there may be several — write the heading [[{kind}]], in double brackets")
        return []
    if not isinstance(content, list) or not all(isinstance(element, dict) for element in content):
        report.problem((kind,), kind, f"{shown(content)} is not a table — write a heading [[{kind}]] for each {kind}")
        return []
    if not content:
        report.problem((kind,), kind, f"there is none — add the heading [[{kind}]] and below it {required}")
    result = []
    for number, element in enumerate(content):
        name = element.get(identifier)
        label = f"{kind} {shown(name)}" if name and isinstance(name, str) else f"{kind} number {number + 1}"
        result.append(Table(report, kind=kind, path=(kind, number), label=label, content=element))
    return result


def _words(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _hopeless(path: Path, line: int | None, message: str) -> ConfigError:
    return ConfigError([Problem(file=str(path), line=line, key="", message=message)])


def _in_order(problem: Problem) -> int:
    return problem.line or 0


def _decimal(text: str) -> Decimal:
    """Keep a number as it is written; what no Decimal holds (an exponent of 20 digits) becomes infinite."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")
