"""What a technician checks next, in the order in which it is worth the walk: from what was heard and what was not."""

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Final

from serial.tools import list_ports_linux as list_ports

from agent.technician.lines import bits_text, is_network, line_text
from agent.technician.reading import Plan, Report
from agent.technician.words import Words
from gateway.line import LineSettings

# Of the bytes heard, more than this share being 00 or FF is no speech: a line that floats, or is held.
_DEAD_LINE_SHARE: Final = 0.8

SWAPPED: Final = Words(
    "A、B 线是否接反？两根线对调后再读一次",
    "Are A and B swapped? Exchange the two wires and read again",
)
POWER: Final = Words(
    "水表有电吗？总线电源、电池、接线端子是否松动？",
    "Is the meter powered? Look at supply, battery and loose terminals",
)
TERMINATION: Final = Words(
    "总线两端各一个 120 Ω 终端电阻，中间不接；有偏置电阻吗？",
    "120 ohm at both ends of the bus and none between? Bias resistors present?",
)
SAME_ADDRESS: Final = Words(
    "是否有两块表地址相同？断开其余的表，只留这一块",
    "Do two meters share this address? Leave only this one connected",
)
SECOND_MASTER: Final = Words(
    "总线上还有别的主机（集中器、抄表软件）吗？先停掉它",
    "Is another master (concentrator, software) on this line? Stop it first",
)
BEHIND: Final = Words(
    "慢一拍：收到的是更早一条请求的应答，不能采用",
    "One answer behind: it answered an earlier request; such a value is never used",
)
RESTART: Final = Words(
    "重启串口服务器或网关（断电再上电）；直连时给表断电：旧应答就清掉了",
    "Restart the serial server or gateway, else the meter: it drops what it holds",
)
BUFFER: Final = Words(
    "串口服务器设置：用“透明传输”，关掉“缓冲”“打包”“缓存轮询”",
    "Its settings: transparent mode; buffering, packing and cached polling off",
)
ECHO: Final = Words(
    "只听到自己的请求（适配器回显），表没有应答",
    "Only our own request was heard (echo): the meter itself stayed silent",
)
DECODE: Final = Words(
    "用 `shuiwang decode` 逐字节查看上面的帧",
    "`shuiwang decode` explains the frames above byte by byte",
)

ASCII: Final = Words(
    "有的 Modbus 表用 ASCII：--framing ascii（7E1 加 --data-bits 7 --parity E）",
    "Modbus ASCII? --framing ascii; for 7E1 --data-bits 7 --parity E as well",
)

_COLD_WATER: Final = 0x10  # T of CJ/T 188, by which the profiles ask that are tried first
OWN_TYPE: Final = Words(
    "热水表可能只应答自己的表类型：--profile cjt188-hot-water（见 docs/cjt188.md）",
    "A hot water meter? It may need --profile cjt188-hot-water: docs/cjt188.md",
)

# What errors say of the answer to an earlier request (`gateway.meters`, `protocols.cjt188`, `protocols.mbus`).
_SAID_OF_EARLIER: Final = ("one answer behind", "a late answer")

SILENCE: Final = [POWER, SWAPPED, TERMINATION, SAME_ADDRESS]


def after(report: Report) -> list[Words]:
    """Return what to check after a reading that failed; empty where it did not fail."""
    if report.error is None:
        return []
    reason = report.error.reason
    heard = b"".join(frame.data for frame in report.frames if frame.direction == "rx")
    if reason == "port_lost":
        return port_advice(report.plan.line, report.error.__cause__)
    if reason == "no_response":
        return _after_silence(report.plan, is_echo=bool(heard))
    if reason == "garbled":
        return _after_garbage(report.plan, heard)
    if reason == "wrong_answer" and got_earlier_answer(report):
        return [BEHIND, *behind(report.plan), DECODE]
    if reason == "wrong_answer":
        return [_slower(report.plan), SECOND_MASTER, SAME_ADDRESS, DECODE]
    if reason == "refused":
        return [
            Words(
                "线路、波特率、地址都对：表已应答，但拒绝此请求",
                "Wiring, baud rate and address are right; the meter refuses this request",
            ),
            _other_profile(report.plan),
        ]
    return [
        Words("通信正常，但表给出的数据不是水量", "The line is fine, but what the meter says cannot be a volume"),
        _other_profile(report.plan),
        DECODE,
    ]


def got_earlier_answer(report: Report) -> bool:
    """Tell whether an attempt was given the answer to an earlier request."""
    return any(words in (attempt.text or "") for attempt in report.attempts for words in _SAID_OF_EARLIER)


def behind(plan: Plan) -> list[Words]:
    """Return what to do about a meter, or a server on the way, that answers one request late."""
    return [RESTART, BUFFER, SECOND_MASTER, _slower(plan)]


def _after_silence(plan: Plan, *, is_echo: bool) -> list[Words]:
    return [
        *([ECHO] if is_echo else []),
        POWER,
        SWAPPED,
        Words(
            f"地址 {plan.address_text} 与表上标签一致吗？",
            f"Is {plan.address_text} the address on the meter's label?",
        ),
        _settings(plan),
        _slower(plan),
        *([] if is_echo else [TERMINATION]),
        *([ASCII] if plan.profile.head.protocol == "modbus" and plan.line.framing == "rtu" else []),
        *([OWN_TYPE] if getattr(plan.profile.spec, "meter_type", None) == _COLD_WATER else []),
    ]


def _after_garbage(plan: Plan, heard: bytes) -> list[Words]:
    advice = [_settings(plan), SAME_ADDRESS, TERMINATION, SECOND_MASTER]
    if heard and sum(Counter(heard)[byte] for byte in (0x00, 0xFF)) > _DEAD_LINE_SHARE * len(heard):
        floats = Words(
            "收到的几乎全是 00 或 FF：A、B 接反，或空闲线没有偏置",
            "Almost every byte heard is 00 or FF: A and B swapped, or an idle line without bias",
        )
        return [floats, SWAPPED, *advice]
    return [*advice, DECODE]


def _settings(plan: Plan) -> Words:
    used, usual = line_text(plan.line), bits_text(plan.profile.line)
    if plan.line.framing == "tcp":
        return Words(
            '对方真是 Modbus TCP？串口服务器透传时用 --framing rtu（配置 framing = "rtu"）',
            'Is it Modbus TCP? A serial server that passes bytes on needs framing "rtu"',
        )
    if is_network(plan.line.port):
        return Words(
            f"串口服务器的参数应为 {usual}（出厂值）；对方若是 Modbus TCP：--framing tcp",
            f"Is the server set to {usual} (factory)? Modbus TCP needs --framing tcp",
        )
    if plan.line.framing == "ascii":
        return Words(
            f"现用 {used}；标准为 7E1：--data-bits 7 --parity E",
            f"Used {used}; the standard is 7E1: --data-bits 7 --parity E",
        )
    if used != usual:
        return Words(
            f"线路参数：现用 {used}，该型号出厂为 {usual}",
            f"Line settings: used {used}, the factory setting is {usual}",
        )
    return Words(
        f"{used} 是出厂值；被改过吗？试 --baudrate 2400/9600、--parity N/E",
        f"{used} is the factory setting; changed? --baudrate 2400/9600 --parity N/E",
    )


def _slower(plan: Plan) -> Words:
    longer = min(10_000, plan.timeout_ms * 3)
    return Words(
        f"表可能较慢：用 --timeout-ms {longer} 再试（现为 {plan.timeout_ms} ms）",
        f"The meter may be slow: try --timeout-ms {longer} (now {plan.timeout_ms} ms)",
    )


def _other_profile(plan: Plan) -> Words:
    return Words(
        f"型号 {plan.profile.name} 可能不符：`shuiwang profiles`；新建：profiles new",
        f"{plan.profile.name} may not fit: `shuiwang profiles`; make one: profiles new",
    )


def port_advice(line: LineSettings, cause: BaseException | None) -> list[Words]:
    """Return what to do about a port that cannot be opened or went away."""
    if "://" in line.port:
        return [
            Words(
                "网址形式：socket://主机:端口 或 rfc2217://主机:端口；对方是否在线？（ping）",
                "A URL is socket://host:port or rfc2217://host:port; is the other side up (ping)?",
            ),
            Words(
                "Modbus TCP：--port socket://主机:502 --framing tcp；多数设备只许一个连接",
                "Modbus TCP: --port socket://host:502 --framing tcp; many take one client only",
            ),
        ]
    number = getattr(cause, "errno", None)
    text = str(cause).lower()
    if number == errno.EACCES or "permission denied" in text:
        return [
            Words(
                "没有权限：sudo usermod -aG dialout $USER，再重新登录",
                "No permission: sudo usermod -aG dialout $USER, then log in again",
            )
        ]
    if number in {errno.EBUSY, errno.EAGAIN} or "lock" in text:
        return _busy(line.port)
    ports = ports_here()
    there = ", ".join(ports) or "—"
    if number == errno.ENOENT or not Path(line.port).exists():
        return [
            Words(f"没有这个串口；本机现有：{there}", f"There is no such port; this machine has: {there}"),
            Words(
                "适配器插好了吗？/dev/serial/by-id/ 下的名字重插不变",
                "Is the adapter plugged in? Names under /dev/serial/by-id/ survive replugging",
            ),
        ]
    return [
        Words(f"这不是可用的串口；本机现有：{there}", f"This is no usable serial port; this machine has: {there}"),
    ]


def _busy(port: str) -> list[Words]:
    who = "; ".join(holders_of(port))
    held = [Words("串口正被占用：", who)] if who else []
    return [
        *held,
        *service_advice(),
    ]


def service_advice() -> list[Words]:
    """Return how to go on where the service holds the port."""
    return [
        Words(
            "若是水望服务：`shuiwang status` 可看最近读数，不必停",
            "If it is the service: `shuiwang status` shows its latest readings",
        ),
        Words(
            "手动读：systemctl stop shuiwang，读完再 start（不会漏计水量）",
            "By hand: systemctl stop shuiwang, read, then start (no usage is lost)",
        ),
    ]


def ports_here() -> list[str]:
    """Return the serial ports of this machine, by the name that survives replugging where there is one."""
    by_id = Path("/dev/serial/by-id")
    stable = {str(link.resolve()): str(link) for link in by_id.iterdir()} if by_id.is_dir() else {}
    return [stable.get(port.device, port.device) for port in sorted(list_ports.comports())]


def holders_of(port: str) -> list[str]:
    """Return command and pid of the processes that have the port open, as far as this user may see."""
    wanted = os.path.realpath(port)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            if any(os.path.realpath(descriptor) == wanted for descriptor in (process / "fd").iterdir()):
                found.append(f"{_command((process / 'cmdline').read_bytes())} (pid {process.name})")
        except OSError:
            continue  # it ended meanwhile, or belongs to another user
    return found


def _command(line: bytes) -> str:
    """Return a command as somebody typed it: `shuiwang run -c …`, without interpreter and folders."""
    words = [word.decode(errors="replace") for word in line.split(b"\0") if word]
    if len(words) > 1 and Path(words[0]).name.startswith("python") and not words[1].startswith("-"):
        words = words[1:]
    text = " ".join([Path(words[0]).name, *words[1:]]) if words else "?"
    return text if len(text) <= 50 else f"{text[:49]}…"
