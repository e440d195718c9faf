"""What a database holds, for `shuiwang-county show`: read only, while the receiver goes on writing."""

import datetime
import sqlite3
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlite_utils
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from county.display import (
    DO_TEXT,
    KIND_TEXT,
    LEVEL_TEXT,
    RESULT_TEXT,
    STATE_TEXT,
    absence_text,
    evidence_text,
    local_time,
    printable,
    utc_offset,
)
from county.errors import DatabaseError
from county.ingest import absence_of
from county.receiver import EVICTED_COUNTER
from protocols.contract import AbsenceNotice, AlertState, Kind, Level, Result, Transition

_BUSY_TIMEOUT_S: Final = 5.0
# A screen of them; the rest is in the database.
ASKED_MAX: Final = 50


class OpenAlert(msgspec.Struct, frozen=True, kw_only=True):
    """An episode that is not cleared. `earlier_store`: its gateway has a new store, which may not know of it."""

    county: str
    gateway: str
    id: str
    meter: str | None
    kind: Kind
    state: AlertState
    level: Level
    since: str
    at: str
    earlier_store: bool
    evidence: dict[str, Any]
    transition: Transition | None = None
    text: dict[str, str] | None = None


class Away(msgspec.Struct, frozen=True, kw_only=True):
    """An absence or quiet hours, as a gateway says in its state."""

    county: str
    gateway: str
    absence: AbsenceNotice


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway was asked. `done` is None while it has not answered; `alert_kind` is that of the alert."""

    county: str
    gateway: str
    id: str
    do: str | None
    meter: str | None
    alert: str | None
    alert_kind: Kind | None
    result: Result | None
    why: str | None
    heard_at: str | None
    done: bool | None
    reason: str | None
    replied_at: str | None


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream is stored. `waiting`: messages beyond the first hole, which no acknowledgement covers yet."""

    epoch: str
    stream: str
    up_to: int
    waiting: int


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway as last heard of. `online` is None where no state message ever came."""

    county: str
    gateway: str
    online: bool | None
    state_at: str | None
    last_seen_at: str | None
    reason: str | None
    agent: str | None
    meters: int | None
    streams: tuple[StreamStatus, ...]


class MeterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The readings of a meter: how many with a volume, how many without, and when the newest was taken."""

    county: str
    gateway: str
    meter: str
    readings: int
    missing: int
    newest_at: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; of what was asked the newest.

    `readings_dropped` counts what tombstones say, `set_aside_evicted` what made room for newer ones.
    """

    alerts: tuple[OpenAlert, ...]
    away: tuple[Away, ...]
    asked: tuple[Asked, ...]
    gateways: tuple[GatewayStatus, ...]
    meters: tuple[MeterStatus, ...]
    readings_dropped: int
    messages_skipped: int
    set_aside: int
    set_aside_evicted: int


def read_report(file: Path) -> Report:
    """Return what a database holds, from one consistent moment.

    Raises DatabaseError where there is no such database.
    """
    if not file.is_file():
        raise DatabaseError(f"{file}: there is no such file. `shuiwang-county receive --db {file}` makes it")
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
        database = sqlite_utils.Database(connection, execute_plugins=False)
        try:
            with database.atomic():  # one read transaction: every figure is of the same moment
                return _read(database)
        finally:
            database.close()
    except (sqlite3.Error, msgspec.ValidationError) as error:
        raise DatabaseError(f"{file}: {error}. Name the file that `shuiwang-county receive` writes") from error


def _read(database: sqlite_utils.Database) -> Report:
    def rows(sql: str, *parameters: object) -> list[dict[str, Any]]:
        return list(database.query(sql, parameters))

    def number(sql: str, *parameters: object) -> int:
        return int(database.execute(sql, parameters).fetchone()[0])

    alerts = rows(
        "SELECT alerts.*, gateways.epoch IS NOT NULL AND gateways.epoch <> alerts.epoch AS earlier_store FROM alerts"
        " LEFT JOIN gateways USING (county, gateway) WHERE alerts.state <> ? ORDER BY alerts.level, alerts.since",
        AlertState.CLEARED,
    )
    streams = rows(
        "SELECT streams.*, (SELECT count(*) FROM messages AS m WHERE m.county=streams.county"
        " AND m.gateway=streams.gateway AND m.epoch=streams.epoch AND m.stream=streams.stream"
        " AND m.seq > streams.up_to) AS waiting FROM streams ORDER BY epoch, stream"
    )
    of_gateway: dict[tuple[str, str], list[StreamStatus]] = {}
    for row in streams:
        of_gateway.setdefault((row["county"], row["gateway"]), []).append(
            msgspec.convert({name: row[name] for name in StreamStatus.__struct_fields__}, StreamStatus)
        )
    asked = rows(
        "SELECT commands.*, alerts.meter AS alert_meter, alerts.kind AS alert_kind FROM commands"
        " LEFT JOIN alerts ON alerts.county=commands.county AND alerts.gateway=commands.gateway"
        " AND alerts.id=commands.alert ORDER BY coalesce(heard_at, replied_at) DESC LIMIT ?",
        ASKED_MAX,
    )
    gateways = rows("SELECT * FROM gateways ORDER BY county, gateway")
    meters = rows(
        "SELECT county, gateway, meter, count(volume_ml) AS readings, count(*) - count(volume_ml) AS missing,"
        " max(at) AS newest_at FROM readings GROUP BY county, gateway, meter ORDER BY county, gateway, meter"
    )
    return Report(
        alerts=tuple(
            msgspec.convert(
                row
                | {
                    "evidence": msgspec.json.decode(row["evidence"]),
                    "earlier_store": bool(row["earlier_store"]),
                    "text": row["text"] and msgspec.json.decode(row["text"]),
                },
                OpenAlert,
            )
            for row in alerts
        ),
        away=tuple(
            Away(county=row["county"], gateway=row["gateway"], absence=absence_of(row))
            for row in rows("SELECT * FROM absences ORDER BY ended_by IS NOT NULL, county, gateway, meter, start")
        ),
        asked=tuple(msgspec.convert(_asked(row), Asked) for row in asked),
        gateways=tuple(
            msgspec.convert(
                row
                | {
                    "online": None if row["online"] is None else bool(row["online"]),
                    "streams": tuple(of_gateway.get((row["county"], row["gateway"]), ())),
                },
                GatewayStatus,
            )
            for row in gateways
        ),
        meters=tuple(msgspec.convert(row, MeterStatus) for row in meters),
        readings_dropped=number("SELECT coalesce(sum(readings), 0) FROM dropped"),
        messages_skipped=number("SELECT coalesce(sum(last - first + 1), 0) FROM skipped"),
        set_aside=number("SELECT count(*) FROM set_aside"),
        set_aside_evicted=number("SELECT coalesce(sum(value), 0) FROM counters WHERE name=?", EVICTED_COUNTER),
    )


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    done = None if row["done"] is None else bool(row["done"])
    return row | {"done": done, "meter": row["meter"] or row["alert_meter"]}


def print_report(report: Report, console: Console, *, timezone: datetime.tzinfo | None) -> None:
    """Print a report for people."""
    console.print(Group(*_sections(report, timezone=timezone)), highlight=False)


def _sections(report: Report, *, timezone: datetime.tzinfo | None) -> list[RenderableType]:
    sections: list[RenderableType] = [Text(_clocks(report, timezone=timezone))]
    alerts = _table(
        "未解除报警 open alerts",
        "级别 level",
        "状态 state",
        "类别 kind",
        "水表 meter",
        "自 since",
        "告知 told at",
        "说明 what it says",
    )
    for alert in report.alerts:
        alerts.add_row(
            _cell(LEVEL_TEXT[alert.level], style="bold red" if alert.level is Level.RED else "yellow"),
            _cell(STATE_TEXT[alert.state] + (" (旧存储 earlier store)" if alert.earlier_store else "")),
            _cell(KIND_TEXT[alert.kind]),
            _cell(f"{alert.meter or '-'} @ {alert.gateway} ({alert.county})"),
            _cell(local_time(alert.since, timezone=timezone)),
            _cell(local_time(alert.at, timezone=timezone)),
            _cell(" ".join((alert.text or {}).values()) or evidence_text(alert.evidence, timezone=timezone)),
        )
    sections.append(alerts if report.alerts else Text("没有未解除的报警 no open alerts", style="green"))
    sections += [*_away_section(report, timezone=timezone), *_asked_section(report, timezone=timezone)]
    gateways = _table("网关 gateways", "网关 gateway", "状态 state", "最后联系 last contact", "已存 stored up to")
    for gateway in report.gateways:
        state = {None: "未知 unknown", True: "在线 online", False: "离线 OFFLINE"}[gateway.online]
        gateways.add_row(
            _cell(f"{gateway.gateway} ({gateway.county})"),
            _cell(f"{state} {gateway.reason or ''}".strip(), style="" if gateway.online else "magenta"),
            _cell(local_time(gateway.last_seen_at, timezone=timezone) if gateway.last_seen_at else "从未 never"),
            _cell("; ".join(_stream_text(stream) for stream in gateway.streams)),
        )
    sections.append(gateways)
    meters = _table("读数 readings", "水表 meter", "读数 readings", "缺失 missing", "最新 newest")
    for meter in report.meters:
        meters.add_row(
            _cell(f"{meter.meter} @ {meter.gateway} ({meter.county})"),
            _cell(str(meter.readings)),
            _cell(str(meter.missing)),
            _cell(local_time(meter.newest_at, timezone=timezone)),
        )
    sections.append(meters)
    sections.append(
        Text(
            f"网关丢弃的读数 readings dropped by gateways: {report.readings_dropped}; "
            f"跳过的消息 messages skipped: {report.messages_skipped}; "
            f"无法理解 set aside: {report.set_aside} (另清除 evicted: {report.set_aside_evicted})"
        )
    )
    return sections


def _clocks(report: Report, *, timezone: datetime.tzinfo | None) -> str:
    """Say whose clocks the times below are of; the machine's own are told by their offset at the newest of them."""
    zone_zh, zone_en = str(timezone), str(timezone)
    if timezone is None:
        heard = [alert.at for alert in report.alerts] + [
            one.last_seen_at for one in report.gateways if one.last_seen_at
        ]
        offset = f" UTC{utc_offset(max(heard))}" if heard else ""
        zone_zh, zone_en = f"本机{offset}", f"this machine{offset}"
    return (
        f"时间为 {zone_zh}；网关的说明用当地时间。"
        f"times of {zone_en}; the words of a gateway tell the time of its village"
    )


def _away_section(report: Report, *, timezone: datetime.tzinfo | None) -> list[RenderableType]:
    table = _table("外出与安静时段 who is away", "水表 meter", "登记 declared")
    for away in report.away:
        table.add_row(
            _cell(f"{away.absence.meter} @ {away.gateway} ({away.county})"),
            _cell(
                absence_text(away.absence, timezone=timezone),
                style="dim" if away.absence.ended_by else "yellow",
            ),
        )
    return [table] if report.away else []


def _asked_section(report: Report, *, timezone: datetime.tzinfo | None) -> list[RenderableType]:
    table = _table("处理与命令 what was asked and found", "时间 time", "命令 command", "对象 about", "结果 outcome")
    for asked in report.asked:
        at = asked.heard_at or asked.replied_at
        outcome = {None: "等待答复 no reply yet", True: "已执行 done"}.get(
            asked.done, f"未执行 NOT DONE: {asked.reason}"
        )
        found = f"{RESULT_TEXT[asked.result]}; " if asked.result else ""
        about = f"{asked.meter or '-'} @ {asked.gateway} ({asked.county})"
        table.add_row(
            _cell(local_time(at, timezone=timezone) if at else "-"),
            _cell(DO_TEXT.get(asked.do or "", "? unknown")),
            _cell(about + (f" {KIND_TEXT[asked.alert_kind]}" if asked.alert_kind else "")),
            _cell(f"{found}{asked.why + '; ' if asked.why else ''}{outcome}"),
        )
    return [table] if report.asked else []


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cell(text: str, *, style: str = "") -> Text:
    return Text(printable(text), style=style)


def _stream_text(stream: StreamStatus) -> str:
    hole = f" (+{stream.waiting} 在缺号之后 beyond a hole)" if stream.waiting else ""
    return f"{stream.stream} {stream.up_to}{hole}"
