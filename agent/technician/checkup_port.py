"""The port: is it there, may we use it, what adapter is it, what does it hear when nobody asks, does it hear itself."""

import grp
import os
import pwd
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from agent.exit_codes import ExitCode
from agent.technician import advice, modbus_wire
from agent.technician.finding import Finding
from agent.technician.lines import line_text
from agent.technician.listening import Ear
from agent.technician.sniffing import Sniffer
from agent.technician.words import Words
from gateway.line import LineSettings, open_port
from protocols import modbus
from protocols.errors import PortLost

SYS: Final = Path("/sys")
BY_ID: Final = Path("/dev/serial/by-id")
# What kernel drivers are called on the box of the adapter.
DRIVERS: Final = {
    "ftdi_sio": "FTDI",
    "ch341": "CH340/CH341",
    "ch343": "CH343",
    "cp210x": "CP210x",
    "pl2303": "PL2303",
    "cdc_acm": "USB CDC",
    "usb_serial_simple": "USB",
}
# An FTDI adapter hands over what it has after so long; at 16 (its default) each answer is late by up to as much.
LATENCY_TIMER_MS_GOOD: Final = 4
# Of the bytes heard in silence, more than this share being 00 or FF: nobody drives the line, and no resistor biases it.
FLOATING_SHARE: Final = 0.8
ECHO_MS: Final = 300
HEARD_BYTES_MAX: Final = 4096  # enough to judge noise by
_PTYS: Final = "/dev/pts/"
# Nobody has it: the highest unit that is not reserved.
_NOBODY: Final = modbus.ReadRequest(unit=modbus.UNIT_MAX, function=3, address=0, count=1)


def device(
    line: LineSettings,
    *,
    opener: Callable[[LineSettings], Any] = open_port,
    sys_root: Path = SYS,
    by_id: Path = BY_ID,
) -> Iterator[Finding]:
    """Yield whether the port can be used, and what it is; ends with the first thing that is bad."""
    # A simulator holds its own pty; there a second program is no second master.
    is_real = "://" not in line.port and not os.path.realpath(line.port).startswith(_PTYS)
    holders = advice.holders_of(line.port) if is_real else []
    try:
        opener(line).close()
    except (OSError, ValueError) as error:
        yield Finding(
            topic="port",
            level="bad",
            says=Words(f"{line.port} 打不开：{error}", f"{line.port} cannot be opened: {error}"),
            next=tuple(_permission(line.port) or advice.port_advice(line, error)),
            data={"port": line.port, "error": str(error), "holders": holders},
            code=ExitCode.PORT,
        )
        return
    text = f"{line.port} {line_text(line)}"
    if holders:
        who = "; ".join(holders)
        yield Finding(
            topic="port",
            level="warn",
            says=Words(f"{text} 可用，但也被别的程序打开：{who}", f"{text} opens, but others have it open too: {who}"),
            next=(advice.SECOND_MASTER,),
            data={"port": line.port, "holders": holders},
        )
    else:
        says = Words(f"{text} 存在、有权限、无人占用", f"{text}: there, permitted, and nobody else's")
        yield Finding(topic="port", level="ok", says=says, data={"port": line.port, "holders": []})
    if line.framing == "tcp":
        says = Words("Modbus TCP 连接正常", "connected; Modbus TCP is no line that could be noisy or echo")
        yield Finding(topic="adapter", level="ok", says=says, data={"kind": "modbus_tcp"})
        return
    yield adapter(line.port, sys_root=sys_root, by_id=by_id)


def adapter(port: str, *, sys_root: Path = SYS, by_id: Path = BY_ID) -> Finding:
    """Return what is known of the adapter."""
    if "://" in port:
        says = Words("网络串口服务器", "a serial server in the network")
        return Finding(topic="adapter", level="ok", says=says, data={"kind": "network"})
    real = os.path.realpath(port)
    if real.startswith(_PTYS):
        says = Words(
            "伪终端（模拟器）：没有真正的波特率与校验", "a pseudo-terminal (simulator): no real speed, no parity"
        )
        return Finding(topic="adapter", level="note", says=says, data={"kind": "pty"})
    folder = sys_root / "class" / "tty" / Path(real).name / "device"
    driver = (folder / "driver").resolve().name if (folder / "driver").exists() else ""
    usb = _usb(folder)
    name = " ".join(filter(None, (usb.get("manufacturer", ""), usb.get("product", "")))) or DRIVERS.get(driver, driver)
    data: dict[str, Any] = {"kind": "usb" if usb else "board", "driver": driver or None, **usb}
    if not usb:
        says = Words(f"板载串口 {driver}".strip(), f"a port of the board {driver}".strip())
        return Finding(topic="adapter", level="ok", says=says, data=data)
    stable = next((str(link) for link in _links(by_id) if os.path.realpath(link) == real), None)
    latency = _latency_timer_ms(folder)
    data |= {"latency_timer_ms": latency, "by_id": stable}
    steps = []
    if stable and not port.startswith(str(by_id)):
        steps.append(
            Words(
                f"配置里写 {stable}：重插后名字不变", f"Write {stable} into the configuration: it survives replugging"
            )
        )
    if latency is not None and latency > LATENCY_TIMER_MS_GOOD:
        file = f"/sys/class/tty/{Path(real).name}/device/latency_timer"
        steps.append(
            Words(
                f"延迟定时器 {latency} ms：echo 1 | sudo tee {file} 可让每次应答快 {latency - 1} ms",
                f"Latency timer {latency} ms: echo 1 | sudo tee {file} makes each answer up to {latency - 1} ms faster",
            )
        )
    says = Words(
        f"USB 适配器 {name}（{DRIVERS.get(driver, driver)}）", f"USB adapter {name} ({DRIVERS.get(driver, driver)})"
    )
    return Finding(topic="adapter", level="note" if steps else "ok", says=says, next=tuple(steps), data=data)


def silence(
    line: LineSettings,
    *,
    seconds: float,
    opener: Callable[[LineSettings], Any] = open_port,
    monotonic: Callable[[], float] = time.monotonic,
) -> Finding:
    """Listen without asking; return what was heard."""
    heard = bytearray()
    try:
        ear = Ear(line, opener=opener, monotonic=monotonic)
        sniffer = Sniffer(byte_ms=ear.byte_ms)
        try:
            for at_ms, burst in ear.listen(seconds * 1000):
                heard += burst[: max(0, HEARD_BYTES_MAX - len(heard))]
                if burst:
                    sniffer.feed(at_ms, burst)
            sniffer.finish()
        finally:
            ear.close()
    except PortLost as error:
        return Finding(
            topic="silence",
            level="bad",
            says=Words(f"监听时串口丢失：{error}", f"the port went away while we listened: {error}"),
            next=tuple(advice.port_advice(line, error.__cause__)),
            code=ExitCode.PORT,
        )
    count, rate = sniffer.totals.bytes, sniffer.totals.bytes / max(seconds, 0.001)
    frames = sniffer.totals.frames
    data: dict[str, Any] = {"seconds": seconds, "bytes": count, "frames": frames, "masters": bool(frames)}
    if not count:
        says = Words(f"{seconds:g} 秒内线路安静", f"nothing was heard in {seconds:g} s: the idle line is quiet")
        return Finding(topic="silence", level="ok", says=says, data=data)
    if sniffer.totals.frames:
        names = ", ".join(f"{one.protocol} {one.address}" for one in list(sniffer.stations.values())[:4])
        return Finding(
            topic="silence",
            level="bad",
            says=Words(f"另有主机在抄表：{names}", f"another master reads on this line: {names}"),
            next=(advice.SECOND_MASTER, Words("旁听它：`shuiwang sniff`", "Listen to it: `shuiwang sniff`")),
            data=data,
            code=ExitCode.PORT,
        )
    return _noise(bytes(heard), data, rate)


def echo(
    line: LineSettings,
    *,
    opener: Callable[[LineSettings], Any] = open_port,
    monotonic: Callable[[], float] = time.monotonic,
) -> Finding:
    """Send one request to a unit that nobody has, and return whether we hear ourselves."""
    request = modbus_wire.encode(_NOBODY.encode(), line.framing)
    heard = bytearray()
    try:
        port = opener(line)
        try:
            port.write(request)
            until_s = monotonic() + len(request) * line.byte_s + ECHO_MS / 1000
            while monotonic() < until_s:
                heard += port.read(max(1, port.in_waiting))
        finally:
            port.close()
    except (OSError, ValueError) as error:
        says = Words(f"发送失败：{error}", f"nothing can be sent: {error}")
        return Finding(topic="echo", level="bad", says=says, code=ExitCode.PORT)
    return echo_finding(request, bytes(heard))


def echo_finding(request: bytes, heard: bytes) -> Finding:
    """Return what it means to have heard these bytes after that request to nobody."""
    data = {"echo": heard.startswith(request), "heard": heard.hex(" ").upper()}
    if not heard:
        return Finding(topic="echo", level="ok", says=Words("无回显", "no echo"), data=data)
    if heard.startswith(request):
        says = Words(
            "适配器回显自己发出的请求：水望会跳过它", "the adapter hears itself: shuiwang passes over the echo"
        )
        return Finding(topic="echo", level="note", says=says, data=data)
    return Finding(
        topic="echo",
        level="warn",
        says=Words(
            f"发送后听到 {len(heard)} 字节不明数据：换向干扰或反射",
            f"{len(heard)} strange bytes after sending: a driver that switches late, or reflections",
        ),
        next=(advice.TERMINATION,),
        data=data,
    )


def _noise(heard: bytes, data: dict[str, Any], rate: float) -> Finding:
    counts = Counter(heard)
    floating = (counts[0x00] + counts[0xFF]) / len(heard)
    dump = heard[:8].hex(" ").upper()
    if floating > FLOATING_SHARE:
        says = Words(
            f"空闲时听到 {len(heard)} 字节，几乎全是 00/FF（{dump} …）：空闲线没有偏置，或 A、B 接反",
            f"{len(heard)} bytes in silence, nearly all 00/FF ({dump} …): the idle line has no bias, or A and B"
            " are swapped",
        )
        steps = (
            Words(
                "偏置：A 接上拉、B 接下拉（如各 560 Ω），只在一处",
                "Bias: a pull-up at A and a pull-down at B (such as 560 ohm each), at one place only",
            ),
            advice.SWAPPED,
            advice.TERMINATION,
        )
    else:
        says = Words(
            f"空闲时听到 {len(heard)} 字节（每秒 {rate:.0f}），不成帧（{dump} …）：别的波特率上有主机，或干扰",
            f"{len(heard)} bytes in silence ({rate:.0f}/s), no frames ({dump} …): a master at another speed, or noise",
        )
        steps = (
            Words(
                "用 `shuiwang sniff`（不带 --baudrate）认出它", "`shuiwang sniff` without --baudrate tells what it is"
            ),
            advice.SECOND_MASTER,
            advice.TERMINATION,
        )
    return Finding(
        topic="silence", level="warn", says=says, next=steps, data=data | {"floating_share": round(floating, 3)}
    )


def _permission(port: str) -> list[Words]:
    """Return who may use a device that this user may not."""
    try:
        status = Path(port).stat()
    except (OSError, ValueError):
        return []
    if not stat.S_ISCHR(status.st_mode) or os.access(port, os.R_OK | os.W_OK):
        return []
    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        owner, group = str(status.st_uid), str(status.st_gid)
    mode = stat.filemode(status.st_mode)
    return [
        Words(
            f"设备属于 {owner}:{group}（{mode}）：sudo usermod -aG {group} $USER 后重新登录",
            f"The device is {owner}:{group}'s ({mode}): sudo usermod -aG {group} $USER, then log in again",
        )
    ]


def _usb(folder: Path) -> dict[str, str]:
    """Return what the USB device above a tty says of itself; empty for what is no USB device."""
    try:
        place = folder.resolve()
    except OSError:
        return {}
    for above in (place, *place.parents):
        if (above / "idVendor").exists():
            names = ("idVendor", "idProduct", "manufacturer", "product", "serial")
            return {name: text for name in names if (text := _line(above / name))}
    return {}


def _latency_timer_ms(folder: Path) -> int | None:
    text = _line(folder / "latency_timer")
    return int(text) if text.isdecimal() else None


def _line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()[:80]
    except OSError:
        return ""


def _links(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
