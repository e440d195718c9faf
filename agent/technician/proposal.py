"""The configuration that a scan proposes: `[[bus]]` and `[[meter]]` tables for what was found, to be looked over."""

import re
from collections.abc import Sequence
from typing import Final

from agent.technician.fits import Fit
from agent.technician.lines import is_network
from agent.technician.scanning import Found
from agent.technician.words import cubic_metres
from gateway.line import LineSettings

_HEAD: Final = (
    "# Proposed by `shuiwang scan`: add it to your configuration, then `shuiwang check`.",
    "# 由 `shuiwang scan` 生成：并入配置后运行 `shuiwang check`。",
    "# Compare each value with the dial; Modbus does not say which model it is. 请与表盘核对读数。",
)
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
    best = one.fits[0] if one.fits else None
    table = [
        "[[meter]]",
        f'id = "{identifier}"',
        f'bus = "{bus}"',
        f'profile = "{best.profile}"' if best else 'profile = "…"',
        f'address = "{one.address}"',
    ]
    if best is None:
        why = f": {one.reason}" if one.reason else ""
        remark = f"# {one.protocol} {one.address} answers, but no profile reads it 无合适型号{_comment(why)}"
        return [remark, "# make one: `shuiwang profiles new` 新建型号", *(f"# {row}" for row in table)]
    remarks = [f"# shows 读数 {_value(best)}"]
    others = [fit for fit in one.fits[1:] if fit.volume_ml != best.volume_ml]
    same = [fit.profile for fit in one.fits[1:] if fit.volume_ml == best.volume_ml]
    if others:
        named = "; ".join(f"{fit.profile} {_value(fit)}" for fit in others[:ALTERNATIVES_MAX])
        remarks.append(f"# or 或: {named}")
    if same:
        remarks.append(f"# the same value with 读数相同: {', '.join(same[:ALTERNATIVES_MAX])}")
    return [*remarks, *table]


def _value(fit: Fit) -> str:
    return f"{cubic_metres(fit.volume_ml, step_ml=1000)} m³"


def _quoted(text: str) -> str:
    """Return a TOML basic string."""
    return '"' + re.sub(r'[\\"\x00-\x1f\x7f]', lambda found: f"\\u{ord(found[0]):04X}", text) + '"'


def _comment(text: str) -> str:
    """Return a text that stays within its comment."""
    return " ".join(text.split())[:160]
