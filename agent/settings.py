"""The configuration as the rest of the agent sees it: checked, complete, in exact units. `agent.config` makes it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from agent.config_table import Problem
from agent.detection.limit import COLD_H, COST_H
from gateway.line import LineSettings
from protocols.profile import Profile
from protocols.registers import UNIT_ML

MS_PER_HOUR: Final = 3_600_000


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Who the gateway is. `id` and `county` are names in topics, `timezone` exists on this machine."""

    id: str
    county: str
    data_dir: Path
    timezone: str


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the county's broker is. `acknowledgement` says whose receipt lets a message be deleted here."""

    url: str
    host: str
    port: int
    tls: bool
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    acknowledgement: Literal["county", "broker"] = "county"


class DetectionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The low-usage rule: less than `threshold_ml` within `window_ms` is yellow.

    Red follows the home's own limit (`agent.detection.limit`): `cost_h` is its price of a false alarm, `cold_h` the
    limit of the first two weeks.
    """

    window_ms: int
    threshold_ml: int
    cost_h: int = COST_H
    cold_h: int = COLD_H


class MeterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One meter. `address` is what its protocol made of `address_text`."""

    id: str
    bus: str
    profile: Profile
    address: Any
    address_text: str
    poll_every_s: float
    timeout_ms: int
    retries: int
    detection: DetectionSettings


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration without problems. `warnings` are what is allowed but probably not meant."""

    path: Path
    gateway: GatewaySettings
    broker: BrokerSettings
    buses: tuple[LineSettings, ...]
    meters: tuple[MeterSettings, ...]
    warnings: tuple[Problem, ...] = ()


def summary(config: Config) -> dict[str, Any]:
    """Return what a configuration means, for people to check and for JSON. It holds no secret."""
    meters_of: dict[str, list[MeterSettings]] = {bus.name: [] for bus in config.buses}
    for meter in config.meters:
        meters_of[meter.bus].append(meter)
    broker = config.broker
    return {
        "file": str(config.path),
        "gateway": {
            "id": config.gateway.id,
            "county": config.gateway.county,
            "data_dir": str(config.gateway.data_dir),
            "timezone": config.gateway.timezone,
        },
        "broker": {
            "url": broker.url,
            "host": broker.host,
            "port": broker.port,
            "encrypted": broker.tls,
            "ca_file": _path_text(broker.ca_file),
            "cert_file": _path_text(broker.cert_file),
            "key_file": _path_text(broker.key_file),
            "username": broker.username,
            "password_file": _path_text(broker.password_file),
            "acknowledgement": broker.acknowledgement,
        },
        "buses": [_bus_summary(bus, meters_of[bus.name]) for bus in config.buses],
        "meters": len(config.meters),
        "rules": _rules(config.meters),
        "warnings": [str(warning) for warning in config.warnings],
    }


def rule_in_words(detection: DetectionSettings) -> str:
    """Return a low-usage rule as people say it: `less than 0.1 m³ in 12 h`."""
    return f"less than {volume_in_words(detection.threshold_ml)} in {duration_in_words(detection.window_ms)}"


def volume_in_words(volume_ml: int) -> str:
    """Return a volume exactly, in cubic metres from 10 litres on, in litres below."""
    unit, name = ("m3", "m³") if volume_ml >= 10_000 else ("L", "L")
    return f"{(volume_ml / UNIT_ML[unit]).normalize():f} {name}"


def duration_in_words(duration_ms: int) -> str:
    """Return a duration in the largest of hours, minutes and seconds that needs no fraction (of seconds: exactly)."""
    for unit_ms, name in ((MS_PER_HOUR, "h"), (60_000, "min")):
        if duration_ms % unit_ms == 0:
            return f"{duration_ms // unit_ms} {name}"
    return f"{duration_ms / 1000:g} s"


def _bus_summary(bus: LineSettings, meters: list[MeterSettings]) -> dict[str, Any]:
    return {
        "name": bus.name,
        "port": bus.port,
        "line": f"{bus.baudrate} {bus.data_bits}{bus.parity}{bus.stop_bits}",
        "framing": bus.framing,
        "meters": [
            {
                "id": meter.id,
                "address": meter.address_text,
                "profile": meter.profile.name,
                "title": meter.profile.head.title,
                "protocol": meter.profile.head.protocol,
                "poll_every_s": meter.poll_every_s,
                "timeout_ms": meter.timeout_ms,
                "retries": meter.retries,
                "rule": rule_in_words(meter.detection),
            }
            for meter in meters
        ],
    }


def _rules(meters: Iterable[MeterSettings]) -> list[dict[str, Any]]:
    """Count the meters under each rule, the most frequent first."""
    count: dict[DetectionSettings, int] = {}
    for meter in meters:
        count[meter.detection] = count.get(meter.detection, 0) + 1
    return [
        {"rule": rule_in_words(rule), "window_ms": rule.window_ms, "threshold_ml": rule.threshold_ml, "meters": number}
        for rule, number in sorted(count.items(), key=lambda item: -item[1])
    ]


def _path_text(path: Path | None) -> str | None:
    return None if path is None else str(path)
