"""The connection to the broker: the one place that knows aiomqtt.

A connection is a new client each time, MQTT 5 first and 3.1.1 where the broker speaks nothing newer, with a session
that the broker keeps for us while we are away. Whatever goes wrong is `LinkLost`; the caller backs off and comes again.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiomqtt
import msgspec
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from county.errors import ConfigurationError
from protocols.errors import ShuiwangError

log = logging.getLogger(__name__)

PORT_OF_SCHEME: Final = {"mqtt": 1883, "mqtts": 8883}
# An outage of the receiver over a long holiday; after that the broker forgets, and the gateways resend anyway.
SESSION_EXPIRY_S: Final = 14 * 24 * 3600
KEEPALIVE_S: Final = 30
# What a broker has to answer within: far above any line's delay, far below anybody's patience.
REPLY_TIMEOUT_S: Final = 10.0
# A broker that does not know MQTT 5 may hang up or wait for ever (amqtt 0.12) instead of saying so.
CONNECT_TIMEOUT_S: Final = 3.0
# What comes faster than the disk takes it. Beyond this it is dropped unacknowledged, and the gateway sends it again.
QUEUE_MESSAGES_MAX: Final = 2000
BATCH_MESSAGES_MAX: Final = 200
_ACKS_IN_FLIGHT_MAX: Final = 20
# MQTT 5 reason codes that no older protocol version would cure: bad user name or password, not authorised, banned.
_REFUSED_FOR_GOOD: Final = frozenset({4, 5, 0x86, 0x87, 0x8A})


class LinkLost(ShuiwangError):
    """There is no connection, or there is none any more."""


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker is, and who we are there."""

    host: str
    port: int
    client_id: str
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = None


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """One message from the broker."""

    topic: str
    payload: bytes
    retained: bool


class Connection:
    """One live connection."""

    def __init__(self, client: aiomqtt.Client, *, version: aiomqtt.ProtocolVersion) -> None:
        self._client = client
        self._messages = client.messages
        self.version = version

    async def subscribe(self, topics: Sequence[str], *, required: bool = True) -> None:
        """Subscribe with QoS 1; the broker then sends what it retains. Raises LinkLost.

        Where it is not `required`, a refusal is told and lived with.
        """
        for topic in topics:
            with _as_link_lost():
                granted = await self._client.subscribe(topic, qos=1)
            if any(_value(code) not in {0, 1, 2} for code in granted):
                refusal = f"the broker refuses the subscription to {topic}: allow it in the broker's ACL"
                if required:
                    raise LinkLost(refusal)
                log.warning(f"subscription_refused: {refusal}")

    async def next_batch(self) -> list[Received]:
        """Wait for a message, and return it with those that are there already. Raises LinkLost."""
        with _as_link_lost():
            batch = [_received(await anext(self._messages))]
            while len(self._messages) and len(batch) < BATCH_MESSAGES_MAX:
                batch.append(_received(await anext(self._messages)))
        return batch

    async def publish(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish with QoS 1, several at once; return when the broker has them all. Raises LinkLost."""
        with _as_link_lost():
            async with asyncio.TaskGroup() as group:
                for topic, payload in messages:
                    group.create_task(self._client.publish(topic, payload, qos=1, retain=False), name=f"ack {topic}")


class Link:
    """Makes connections, and remembers which version of MQTT the broker speaks."""

    def __init__(self, address: BrokerAddress, *, is_lasting: bool = True) -> None:
        """`is_lasting`: the broker keeps for us what comes while we are away."""
        self._address = address
        self._is_lasting = is_lasting
        self._version = aiomqtt.ProtocolVersion.V5

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Connect, and disconnect in the end. Raises LinkLost, which says what to do.

        A refusal that an older version may cure makes the next attempt use the other version.
        """
        client = self._client()
        try:
            await client.__aenter__()
        except aiomqtt.MqttError as error:
            _close(client)
            raise self._refused(error) from error
        except BaseException:
            _close(client)
            raise
        try:
            client.timeout = REPLY_TIMEOUT_S
            yield Connection(client, version=self._version)
        finally:
            self._version = aiomqtt.ProtocolVersion.V5  # the broker may be a newer one when we come back
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                await client.__aexit__(None, None, None)

    def _client(self) -> aiomqtt.Client:
        address, version = self._address, self._version
        modern = version is aiomqtt.ProtocolVersion.V5
        properties = Properties(PacketTypes.CONNECT) if modern else None
        if properties is not None:
            properties.SessionExpiryInterval = SESSION_EXPIRY_S if self._is_lasting else 0
        client = aiomqtt.Client(
            address.host,
            address.port,
            identifier=address.client_id,
            username=address.username,
            password=address.password,
            protocol=version,
            clean_session=None if modern else not self._is_lasting,
            clean_start=not self._is_lasting if modern else MQTT_CLEAN_START_FIRST_ONLY,  # all that paho lets 3.1.1 say
            properties=properties,
            tls_context=address.tls,
            keepalive=KEEPALIVE_S,
            timeout=CONNECT_TIMEOUT_S if modern else REPLY_TIMEOUT_S,
            max_queued_incoming_messages=QUEUE_MESSAGES_MAX,
            max_concurrent_outgoing_calls=_ACKS_IN_FLIGHT_MAX,
        )
        client.pending_calls_threshold = _ACKS_IN_FLIGHT_MAX + 1
        return client

    def _refused(self, error: aiomqtt.MqttError) -> LinkLost:
        """Explain why there is no connection, and decide which version comes next."""
        where = f"{self._address.host}:{self._address.port}"
        code = _value(error.rc) if isinstance(error, aiomqtt.MqttCodeError) else None
        if code in _REFUSED_FOR_GOOD:
            return LinkLost(f"{where} refuses us: {error}. Check user name, password, certificate and the broker's ACL")
        answered = isinstance(error, aiomqtt.MqttCodeError) or str(error) == "Operation timed out"
        if not answered:
            return LinkLost(f"{where}: {error}. Check that the broker runs, and host, port and certificate")
        tried = self._version
        versions = aiomqtt.ProtocolVersion
        self._version = versions.V311 if tried is versions.V5 else versions.V5
        return LinkLost(f"{where} does not take {_name(tried)} ({error}); next attempt with {_name(self._version)}")


def parse_address(
    url: str,
    *,
    client_id: str,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    username: str | None = None,
    password_file: Path | None = None,
) -> BrokerAddress:
    """Return the address that the command line describes.

    Raises ConfigurationError, which says which option is wrong and what would be right.
    """
    example = "for example mqtt://127.0.0.1:1883 or mqtts://mqtt.example.org:8883"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"--broker {url!r}: {error}; {example}") from error
    if parts.scheme not in PORT_OF_SCHEME or not parts.hostname:
        raise ConfigurationError(f"--broker {url!r} is not mqtt://HOST[:PORT] or mqtts://HOST[:PORT]; {example}")
    if parts.username or parts.password:
        raise ConfigurationError(
            "--broker: every process list would show a password in the URL; use --username and --password-file"
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigurationError(f"--broker {url!r} has something after the port; {example}")
    if (cert_file is None) != (key_file is None):
        raise ConfigurationError("--cert-file and --key-file belong together: give both or neither")
    if parts.scheme == "mqtt" and (ca_file or cert_file):
        raise ConfigurationError("--ca-file, --cert-file and --key-file need an mqtts:// URL")
    if password_file and not username:
        raise ConfigurationError("--password-file needs --username")
    return BrokerAddress(
        host=parts.hostname,
        port=port or PORT_OF_SCHEME[parts.scheme],
        client_id=client_id,
        tls=_tls(ca_file, cert_file, key_file) if parts.scheme == "mqtts" else None,
        username=username,
        password=_read_password(password_file) if password_file else None,
    )


def _tls(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    for option, file in (("--ca-file", ca_file), ("--cert-file", cert_file), ("--key-file", key_file)):
        if file is not None and not file.is_file():
            raise ConfigurationError(f"{option} {file}: there is no such file")
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"the TLS files cannot be used: {error}. They must be PEM, and the key must fit the certificate"
        ) from error
    return context


def _read_password(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--password-file {file}: {error}. It must hold the password alone, as UTF-8 text"
        ) from error


@contextlib.contextmanager
def _as_link_lost() -> Iterator[None]:
    """Turn what aiomqtt raises, alone or from a task group, into LinkLost."""
    broken: list[BaseException] = []
    try:
        yield
    except* aiomqtt.MqttError as errors:
        broken.extend(errors.exceptions)
    if broken:  # raised here, because what is raised within `except*` is wrapped in a group
        raise LinkLost(f"the connection broke: {broken[0]}") from broken[0]


def _received(message: aiomqtt.Message) -> Received:
    return Received(topic=str(message.topic), payload=message.payload, retained=bool(message.retain))


def _value(code: int | ReasonCode | None) -> int | None:
    return code.value if isinstance(code, ReasonCode) else code


def _name(version: aiomqtt.ProtocolVersion) -> str:
    return "MQTT 5" if version is aiomqtt.ProtocolVersion.V5 else "MQTT 3.1.1"


def _close(client: aiomqtt.Client) -> None:
    """Close the socket of a client that never came to be connected; aiomqtt would leave it open."""
    client._client.disconnect()  # noqa: SLF001  # there is no public way
