"""The way to the county's broker, step by step: name, TCP, TLS, MQTT. The first step that fails is named.

The MQTT packets are written here (two of them), so that each step has its own time and its own error. We come under
a name of our own: a second client with the gateway's name would throw the running service out.
"""

import contextlib
import datetime
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Final

from agent.exit_codes import ExitCode
from agent.settings import BrokerSettings, Config
from agent.technician.finding import Finding
from agent.technician.words import Words

TIMEOUT_S: Final = 10.0
CERTIFICATE_DAYS_MIN: Final = 30
# CONNACK of MQTT 3.1.1, section 3.2.2.3.
REFUSALS: Final = {
    1: Words("只支持别的 MQTT 版本（3.1.1 不行）", "it does not speak MQTT 3.1.1 (5 alone may be fine)"),
    2: Words("不接受这个客户端名", "it does not accept this client name"),
    3: Words("暂不可用", "it is not available at present"),
    4: Words("用户名或密码不对", "user name or password is wrong"),
    5: Words("无权限", "not authorised"),
}
_VERSION_REFUSED: Final = 1
_CREDENTIALS: Final = Words(
    "查 [broker] 的 username、password_file、cert_file，与平台上登记的是否一致",
    "Compare username, password_file and cert_file in [broker] with what the platform has registered",
)


def examine(
    config: Config,
    *,
    now_ms: int,
    monotonic: Callable[[], float] = time.monotonic,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Finding]:
    """Yield what comes of connecting: one finding for what works, or for the first step that does not."""
    broker = config.broker
    began_s = monotonic()
    times: dict[str, int] = {}

    def done(step: str) -> None:
        times[step] = round((monotonic() - began_s) * 1000)

    step = "tcp"
    with contextlib.ExitStack() as stack:
        try:
            plain = stack.enter_context(socket.create_connection((broker.host, broker.port), timeout=timeout_s))
            done("tcp")
            connection: socket.socket = plain
            if broker.tls:
                step = "tls"
                connection = stack.enter_context(_tls(broker).wrap_socket(plain, server_hostname=broker.host))
                done("tls")
                yield from _certificate(connection, now_ms=now_ms)
            step = "mqtt"
            code = _connect(connection, broker, f"{config.gateway.id}-doctor")
            done("mqtt")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            yield _failed(broker, step, error, times)
            return
    if code:
        yield _refused(broker, code, times)
        return
    steps = " → ".join(f"{name.upper()} {ms} ms" for name, ms in times.items())
    yield Finding(
        topic="broker",
        level="ok",
        says=Words(f"{broker.url} 可达：{steps}", f"{broker.url} can be reached: {steps}"),
        data={"url": broker.url, "times_ms": times},
    )
    if not broker.tls and broker.host not in {"localhost", "127.0.0.1", "::1"}:
        says = Words("连接不加密：读数明文传输", "the connection is not encrypted: readings travel in the clear")
        yield Finding(topic="broker", level="warn", says=says, next=(Words("改用 mqtts://", "Use mqtts://"),))


def connect_packet(*, client_id: str, username: str | None, password: str | None) -> bytes:
    """Return the CONNECT of MQTT 3.1.1 (section 3.1): a clean session, no will."""
    flags = 0x02 | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    fields = [client_id, *(text for text in (username, password) if text is not None)]
    payload = b"".join(_text(field) for field in fields)
    rest = _text("MQTT") + bytes((4, flags)) + (30).to_bytes(2, "big") + payload
    return b"\x10" + _length(len(rest)) + rest


def _connect(connection: socket.socket, broker: BrokerSettings, client_id: str) -> int:
    """Say who we are; return the code of the answer, 0 for welcome. Raises OSError, ValueError."""
    password = broker.password_file.read_text(encoding="utf-8").strip() if broker.password_file else None
    connection.sendall(connect_packet(client_id=client_id, username=broker.username, password=password))
    answer = b""
    while len(answer) < 4:
        data = connection.recv(4 - len(answer))
        if not data:
            raise ConnectionResetError("the broker closed the connection without a word; does MQTT live on this port?")
        answer += data
    if answer[0] != 0x20:
        raise ValueError(f"the answer {answer.hex(' ').upper()} is no MQTT: something else lives on this port")
    if not answer[3]:
        connection.sendall(b"\xe0\x00")  # DISCONNECT: no will, no trace
    return answer[3]


def _tls(broker: BrokerSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=broker.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if broker.cert_file:
        context.load_cert_chain(broker.cert_file, broker.key_file)
    return context


def _certificate(connection: socket.socket, *, now_ms: int) -> Iterator[Finding]:
    """Warn of a certificate that ends soon: on that day every gateway falls silent at once."""
    if not isinstance(connection, ssl.SSLSocket):
        return
    until = (connection.getpeercert() or {}).get("notAfter")
    if not isinstance(until, str):
        return
    days = int((ssl.cert_time_to_seconds(until) - now_ms / 1000) // 86_400)
    if days < CERTIFICATE_DAYS_MIN:
        day = f"{datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(until), datetime.UTC):%Y-%m-%d}"
        yield Finding(
            topic="broker",
            level="warn",
            says=Words(f"平台证书 {days} 天后到期（{day}）", f"the broker's certificate ends in {days} days ({day})"),
            next=(Words("请县平台换证", "Have the county renew it"),),
            data={"certificate_days": days},
        )


def _failed(broker: BrokerSettings, step: str, error: Exception, times: dict[str, int]) -> Finding:
    says = Words(
        f"{broker.url} 连不上（{step.upper()}）：{error}", f"{broker.url} cannot be reached ({step.upper()}): {error}"
    )
    return Finding(
        topic="broker",
        level="bad",
        says=says,
        next=tuple(_steps(broker, step, error)),
        data={"url": broker.url, "step": step, "error": str(error), "times_ms": times},
        code=ExitCode.BROKER,
    )


def _steps(broker: BrokerSettings, step: str, error: Exception) -> Iterator[Words]:
    if isinstance(error, socket.gaierror):
        yield Words(
            f"域名解析失败：getent hosts {broker.host}；有网络吗？",
            f"No such name: getent hosts {broker.host}; any network?",
        )
        return
    if isinstance(error, ssl.SSLCertVerificationError):
        yield Words(
            "系统时间对吗？证书还没生效或已过期", "Is the clock right? The certificate seems not yet or no more valid"
        )
        yield Words(
            "ca_file 是签发平台证书的 CA 吗？主机名与证书一致吗？",
            "Is ca_file the authority that signed it? Does the name match?",
        )
        return
    if step == "tls":
        yield Words(
            "这个端口是 TLS 端口吗？（8883）；要求客户端证书吗？",
            "Is this the TLS port (8883)? Does it ask for a client certificate?",
        )
        return
    if step == "mqtt":
        yield Words(
            "这个端口上是 MQTT 吗？TLS 端口要写 mqtts://", "Does MQTT live on this port? A TLS port needs mqtts://"
        )
        yield _CREDENTIALS
        return
    if isinstance(error, ConnectionRefusedError):
        yield Words(
            "主机在，但没有程序监听这个端口：端口对吗？平台在运行吗？",
            "The host is there, nobody listens: right port? Is it up?",
        )
        return
    yield Words(
        f"网络：ip route；ping {broker.host}；SIM 卡是否欠费？防火墙是否放行 {broker.port}？",
        f"Network: ip route; ping {broker.host}; is the SIM card paid? Does a firewall let port {broker.port} through?",
    )


def _refused(broker: BrokerSettings, code: int, times: dict[str, int]) -> Finding:
    reason = REFUSALS.get(code, Words(f"代码 {code}", f"code {code}"))
    is_version = code == _VERSION_REFUSED
    return Finding(
        topic="broker",
        level="note" if is_version else "bad",
        says=Words(f"{broker.url} 拒绝连接：{reason.zh}", f"{broker.url} refuses the connection: {reason.en}"),
        next=() if is_version else (_CREDENTIALS,),
        data={"url": broker.url, "step": "mqtt", "code": code, "times_ms": times},
        code=ExitCode.OK if is_version else ExitCode.BROKER,
    )


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def _length(size: int) -> bytes:
    """Return a remaining length: seven bits a byte, the low ones first (section 2.2.3)."""
    encoded = bytearray()
    while True:
        size, low = size >> 7, size & 0x7F
        encoded.append(low | (0x80 if size else 0))
        if not size:
            return bytes(encoded)
