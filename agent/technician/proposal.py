"""The configuration that a scan proposes: `[[bus]]` and `[[meter]]` tables for what was found, to be looked over."""

import re
from collections.abc import Sequence
from typing import Final

from agent.technician.fits import Fit
from agent.technician.lines import is_network
from agent.technician.scan_found import Found
from agent.technician.words import cubic_metres
from gateway.line import LineSettings

_HEAD: Final = (
    "# Proposed by `shuiwang scan`: add it to your configuration, then `shuiwang check`.",
    "# 由 `shuiwang scan` 生成：并入配置后运行 `shuiwang check`。",
    "# Compare each value with the dial; Modbus does not say which model it is. 请与表盘核对读数。",
)
_CHOOSE: Final = (
    "# Several profiles read it, each in its own way, and the answers do not say which is right. Take away the #",
    "# of the table, and of the profile that shows what the dial shows. 多种型号都读得通：按表盘选一种，去掉 #",
)
_ALL_AT_0: Final = "# At 0 they all show the same: let some water run, and scan again. 都为 0 时分不出：放些水再查"
ALTERNATIVES_MAX: Final = 4


def toml(found: Sequence[Found]) -> str:
    """Return the tables. A meter that no profile reads is there as a comment: it would not be a configuration."""
    lines = [*_HEAD]
    buses: dict[LineSettings, str] = {}
    for one in found:
        buses.setdefault(one.line, f"rs485-{len(buses) + 1}")
    number = 0
    for line, name in buses.items():
        lines += ["", *_bus(line, name)]
        for one in (other for other in found if other.line == line):
            number += 1
            lines += ["", *_meter(one, name, f"m-{number:03}")]
    return "\n".join(lines) + "\n"


def _bus(line: LineSettings, name: str) -> list[str]:
    bus = ["[[bus]]", f'name = "{name}"', f"port = {_quoted(line.port)}"]
    if line.framing == "tcp":
        return [*bus, 'framing = "tcp"']
    framing = ['framing = "ascii"', f"data_bits = {line.data_bits}"] if line.framing == "ascii" else []
    server = ["# Below, what the serial server is set to: look there. 以下三项请按串口服务器的设置填写"]
    return [
        *bus,
        *framing,
        *(server if is_network(line.port) else []),
        f"baudrate = {line.baudrate}",
        f'parity = "{line.parity}"',
        f"stop_bits = {line.stop_bits}",
    ]


def _meter(one: Found, bus: str, identifier: str) -> list[str]:
    if one.is_decided:
        best = one.fits[0]
        same = ", ".join(fit.profile for fit in one.fits[1 : ALTERNATIVES_MAX + 1])
        remarks = [f"# shows 读数 {_value(best)}"] + ([f"# the same value with 读数相同: {same}"] if same else [])
        return [*remarks, *_table(one, bus, identifier, profiles=[f'profile = "{best.profile}"'])]
    if one.fits and one.meter_type is None:
        remarks = [*_CHOOSE, *([] if any(fit.volume_ml for fit in one.fits) else [_ALL_AT_0])]
        choices = [f'# profile = "{fit.profile}"  # {_value(fit)}' for fit in _ways(one.fits)]
    elif one.fits:
        best = one.fits[0]
        own = f"meter_type = 0x{one.meter_type:02X}"
        remarks = [
            f"# shows 读数 {_value(best)} with {best.profile}, but heeds only its own type 只应答自己的表类型",
            f"# Copy {best.profile}.toml to a file of your own, with `{own}` 复制型号文件并改此项: docs/cjt188.md",
        ]
        choices = ['profile = "./….toml"']
    else:
        why = f": {one.reason}" if one.reason else ""
        remarks = [f"# {one.protocol} {one.address} answers, but no profile reads it 无合适型号{_comment(why)}"]
        remarks += [f"# {row}" for row in next_step(one)]
        choices = ['profile = "…"']
    return [*remarks, *(f"# {row}" for row in _table(one, bus, identifier, profiles=choices))]


def _table(one: Found, bus: str, identifier: str, *, profiles: Sequence[str]) -> list[str]:
    timeout = [f"timeout_ms = {one.timeout_ms}"] if one.timeout_ms else []
    return ["[[meter]]", f'id = "{identifier}"', f'bus = "{bus}"', *profiles, f'address = "{one.address}"', *timeout]


def _ways(fits: Sequence[Fit]) -> list[Fit]:
    """Return one fit for each way of reading."""
    ways: dict[tuple[int, str], Fit] = {}
    for fit in fits:
        ways.setdefault((fit.volume_ml, fit.way if not fit.volume_ml else ""), fit)
    return list(ways.values())


def next_step(one: Found) -> list[str]:
    """Return how to get to a profile for a meter that none reads."""
    if one.protocol != "mbus":
        return ["make one: `shuiwang profiles new` 新建型号"]
    if not one.address[:8].isdecimal():
        return ["give it a primary address with its maker's tool, then scan again 用厂家软件设一级地址后再查"]
    command = f"shuiwang read --port {one.line.port} --profile mbus-water --address {one.address}"
    return [
        f"see its telegram 看报文: `{command} --baudrate {one.line.baudrate} --parity {one.line.parity}`,",
        "and what is in it 逐字段看: `shuiwang decode`. Then copy mbus-water.toml to a file of your own, with the",
        "`vif` and `media` that it has: docs/mbus.md 照此新建型号文件，改 vif、media",
    ]


def _value(fit: Fit) -> str:
    return f"{cubic_metres(fit.volume_ml, step_ml=1000)} m³"


def _quoted(text: str) -> str:
    """Return a TOML basic string."""
    return '"' + re.sub(r'[\\"\x00-\x1f\x7f]', lambda found: f"\\u{ord(found[0]):04X}", text) + '"'


def _comment(text: str) -> str:
    """Return a text that stays within its comment."""
    return " ".join(text.split())[:160]
