"""What a scan says besides meters, in both languages: other masters, noise, collisions, what was not asked."""

from collections.abc import Sequence
from typing import Final

from agent.technician import scan_plan
from agent.technician.lines import line_text
from agent.technician.scan_plan import Step
from agent.technician.sniffing import Sniffer
from agent.technician.words import Words
from gateway.line import LineSettings
from protocols import cjt188, mbus, modbus

_NAMED: Final = 5  # stations, identities: more help nobody


def port_lost(error: Exception) -> Words:
    """Say that a port cannot be used."""
    return Words(f"串口不可用：{error}", f"the port cannot be used: {error}")


def traffic(line: LineSettings, sniffer: Sniffer) -> Words:
    """Say whose requests were heard before anything was asked."""
    names = ", ".join(f"{station.protocol} {station.address}" for station in list(sniffer.stations.values())[:_NAMED])
    text = line_text(line)
    return Words(
        f"线上已有主机在抄表（{text}：{names}）；不打扰它。停掉它再查，或用 `shuiwang sniff` 旁听，或 --force",
        f"another master reads this line ({text}: {names}); it is left alone. Stop it, or listen with"
        " `shuiwang sniff`, or give --force",
    )


def noise(count: int) -> Words:
    """Say that bytes were heard that are no frames."""
    return Words(
        f"没人问时听到 {count} 字节：别的波特率上有主机，或空闲线无偏置（`shuiwang doctor`）；--force 强查",
        f"{count} bytes came unasked: a master at another speed, or an idle line without bias"
        " (`shuiwang doctor`); --force searches all the same",
    )


def another_master(request: bytes) -> Words:
    """Say that another master asked while we searched."""
    frame = request.hex(" ").upper()
    return Words(
        f"查找时听到别的主机的请求（{frame}）：已停止，不与它争线。停掉它再查，或 --force",
        f"another master asked while we searched ({frame}): stopped, two masters garble each other. Stop it, or"
        " --force",
    )


def every_unit(address: str) -> Words:
    """Say that a device answers for every unit."""
    return Words(
        f"此设备对任何地址都应答（Modbus TCP 表自身常如此）：只列出地址 {address}，其余地址不再查找",
        f"this device answers whatever unit is asked, as many do that speak Modbus TCP: listed once, as unit {address}",
    )


def tcp_alone() -> Words:
    """Say that a unit was not asked that is nobody on this line."""
    return Words(
        f"地址 {modbus.TCP_DEVICE} 只用于 Modbus TCP（设备本身），此处未问；--port socket://主机:502 --framing tcp",
        f"unit {modbus.TCP_DEVICE} is a Modbus TCP device itself and nobody here: not asked. For such a device:"
        " --port socket://host:502 --framing tcp",
    )


def modbus_left(line: LineSettings) -> Words:
    """Say that only the first Modbus units were asked."""
    how = f"--protocol modbus --baudrate {line.baudrate} --parity {line.parity}"
    text, first, last = line_text(line), scan_plan.FIRST_UNITS[-1] + 1, scan_plan.ALL_UNITS[-1]
    return Words(
        f"{text}：Modbus 地址只查了 1-{first - 1}；同一条线上可能还有 {first}-{last}：{how}，或 --all",
        f"{text}: of Modbus only the units 1 to {first - 1} were asked; for {first} to {last} on the same line: {how},"
        " or --all",
    )


def garbled(step: Step, address: str, heard: bytes) -> Words:
    """Say that something answered that is no frame."""
    line = line_text(step.line)
    dump = heard[:12].hex(" ").upper() + (" …" if len(heard) > 12 else "")
    if step.protocol == "cjt188" and address == cjt188.BROADCAST:
        return Words(
            f"{line}：多块 CJ/T 188 表同时应答（{dump}）。通用地址只适合单表：请用 --addresses 给 14 位表号，或逐块接",
            f"{line}: several CJ/T 188 meters answer at once ({dump}). The general address is for one meter alone:"
            " give the 14 digits on the meters with --addresses, or connect one at a time",
        )
    if step.protocol == "mbus" and address == str(mbus.ANY_METER):
        return Words(
            f"{line}：多块 M-Bus 表同时应答（{dump}），逐块查找",
            f"{line}: several M-Bus meters answer at once ({dump}); they are looked for one by one",
        )
    return Words(
        f"{line}：地址 {address} 有应答但是乱码（{dump}）：两块表同一地址，或线路有干扰",
        f"{line}: address {address} answers, but garbled ({dump}): two meters with this address, or a disturbed line",
    )


def unresolved(line: LineSettings, masks: Sequence[str]) -> Words:
    """Say that M-Bus meters answer at once whatever part of an identity is asked for."""
    names = ", ".join(masks[:_NAMED]) + (" …" if len(masks) > _NAMED else "")
    text = line_text(line)
    return Words(
        f"{text}：M-Bus 标识 {names} 下的表无法区分（标识相同，或表不发数据）：请逐块接上再查",
        f"{text}: M-Bus meters answer under the identity {names} and cannot be told apart (two are the same, or one"
        " sends no data): connect one at a time and scan again",
    )


def given_up(line: LineSettings) -> Words:
    """Say that the search for M-Bus meters was not finished."""
    return Words(
        f"{line_text(line)}：M-Bus 查找中止：总是冲突，却找不到表；线路有干扰，或表太多电源带不动。请逐块接上再查",
        f"{line_text(line)}: the search for M-Bus meters was given up: collisions only, and no meter. A disturbed line,"
        " or more meters than its supply can feed? Connect one at a time and scan again",
    )
