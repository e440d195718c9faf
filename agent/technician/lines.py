"""The settings of a line: which are usual, what a command's options come to, and how people write them."""

from typing import Final, Literal, NamedTuple, TypedDict

from agent.config_table import lacks_host
from gateway.line import LineSettings
from protocols.errors import ShuiwangError
from protocols.profile import Line as FactoryLine
from protocols.profile import Profile

# What may be on a line: the protocols, Modbus in each of its framings.
Wire = Literal["cjt188", "mbus", "rtu", "ascii", "tcp"]
FRAMINGS: Final = ("rtu", "ascii", "tcp")
PARITIES: Final = ("N", "E", "O")
_NETWORK: Final = "socket://"


class Usual(NamedTuple):
    """One setting, and what is met with it."""

    baudrate: int
    data_bits: int
    parity: str
    stop_bits: int
    wires: tuple[Wire, ...]


# By how common they are at village meters: CJ/T 188 and M-Bus leave the factory with 2400 8E1, nearly all Modbus meters
# with 9600 8N1. The standard's line for Modbus ASCII is 7E1 (Serial Line V1.02, 2.5.2); many makers keep to 8N1.
USUAL: Final = (
    Usual(2400, 8, "E", 1, ("cjt188", "mbus")),
    Usual(9600, 8, "N", 1, ("rtu", "cjt188", "ascii")),
    Usual(9600, 8, "E", 1, ("rtu", "cjt188", "mbus")),
    Usual(4800, 8, "N", 1, ("rtu",)),
    Usual(2400, 8, "N", 1, ("cjt188", "rtu")),
    Usual(9600, 7, "E", 1, ("ascii",)),
    Usual(1200, 8, "E", 1, ("cjt188",)),
    Usual(4800, 8, "E", 1, ("cjt188", "rtu")),
    Usual(19200, 8, "N", 1, ("rtu",)),
    Usual(19200, 8, "E", 1, ("rtu",)),
    Usual(19200, 7, "E", 1, ("ascii",)),
    Usual(9600, 8, "O", 1, ("rtu",)),
    Usual(38400, 8, "N", 1, ("rtu",)),
    Usual(115200, 8, "N", 1, ("rtu",)),
    Usual(300, 8, "E", 1, ("mbus",)),
)


class LineOptions(TypedDict, total=False):
    """What a command line says of a line; None: not said."""

    baudrate: int | None
    parity: str | None
    stop_bits: int | None
    data_bits: int | None
    framing: str | None


class LineError(ShuiwangError):
    """The options make no line; the text says what would be right."""


def line_of(
    port: str,
    *,
    profile: Profile | None = None,
    baudrate: int | None = None,
    parity: str | None = None,
    stop_bits: int | None = None,
    data_bits: int | None = None,
    framing: str | None = None,
) -> LineSettings:
    """Return the line that a command's options mean; the profile's factory settings stand for what they leave out.

    Raises LineError.
    """
    usual = profile.line if profile else FactoryLine()
    check_port(port)
    checked = framing_of(framing or "rtu")
    if profile and profile.head.protocol != "modbus" and framing is not None:
        raise LineError(f"--framing {checked}: {profile.name} does not speak Modbus 不是 Modbus 表; leave it out")
    if checked == "tcp" and not is_network(port):
        raise LineError(
            f'--framing tcp: Modbus TCP has no serial port 不是串口协议; --port "{_NETWORK}192.168.1.20:502"'
        )
    if data_bits == 7 and checked != "ascii":
        raise LineError("--data-bits 7: only --framing ascii travels in 7 bits 只有 ASCII 用 7 位")
    return LineSettings(
        name="technician",
        port=port,
        baudrate=baudrate or usual.baudrate,
        parity=parity_of(parity or usual.parity),
        stop_bits=stop_bits or usual.stop_bits,
        data_bits=data_bits or 8,
        framing=checked,
    )


def check_port(port: str) -> None:
    """Raise LineError for a network port without host or port number."""
    if lacks_host(port):
        raise LineError(
            f'--port "{port}" lacks a host or a port number 缺主机或端口号; right is "{_NETWORK}192.168.1.20:502"'
        )


def parity_of(text: str) -> str:
    """Return N, E or O. Raises LineError for anything else."""
    if text.upper() not in PARITIES:
        raise LineError(f"--parity {text[:20]!r}: N (none 无), E (even 偶) or O (odd 奇)")
    return text.upper()


def framing_of(text: str) -> str:
    """Return rtu, ascii or tcp. Raises LineError for anything else."""
    if text.lower() not in FRAMINGS:
        raise LineError(f"--framing {text[:20]!r}: rtu, ascii or tcp 请选其一")
    return text.lower()


def is_network(port: str) -> bool:
    """Tell whether a port is a bare TCP connection: a serial server that passes bytes on, or Modbus TCP."""
    return port.lower().startswith(_NETWORK)


def bits_text(line: LineSettings | FactoryLine) -> str:
    """Return `2400 8E1`."""
    return f"{line.baudrate} {getattr(line, 'data_bits', 8)}{line.parity}{line.stop_bits}"


def line_text(line: LineSettings) -> str:
    """Return `2400 8E1`, `9600 7E1 ASCII` or `Modbus TCP`; `over TCP` where the speed is a serial server's business."""
    if line.framing == "tcp":
        return "Modbus TCP"
    if is_network(line.port):
        return "ASCII over TCP" if line.framing == "ascii" else "over TCP"
    return bits_text(line) + (" ASCII" if line.framing == "ascii" else "")
