"""The connection to the MQTT broker, kept up for ever; the one place that knows aiomqtt.

A new client for every connection: whatever an old one still had in its queues is in the outbox as well. MQTT 5 first,
3.1.1 where the broker does not offer it. Reconnects wait a random time up to a bound that doubles ("full jitter"): a
thousand gateways come back together when a county has its power again.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiomqtt
import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from protocols.errors import ShuiwangError

log = logging.getLogger(__name__)

CONNECT_S: Final = 10.0
PUBLISH_S: Final = 20.0
# Mobile networks drop idle mappings after a few minutes; a black hole is noticed after 1.5 times this.
KEEPALIVE_S: Final = 30
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 120.0
# A connection that lasted so long was a good one: the next failure begins again with short waits.
STABLE_S: Final = 30.0
_UNSUPPORTED_VERSION: Final = {1, 132}  # CONNACK return code of 3.1.1, reason code of MQTT 5


class BrokerError(ShuiwangError):
    """The broker cannot be reached, refuses us, or was lost."""


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker is and who we are to it."""

    host: str
    port: int
    client_id: str
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One MQTT message of ours; always QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False


class Session:
    """One connection that stands. Its methods raise BrokerError once it does not."""

    def __init__(self, client: aiomqtt.Client, *, is_mqtt5: bool) -> None:
        self._client = client
        self._is_mqtt5 = is_mqtt5

    async def publish(self, message: Message) -> None:
        """Publish and wait until the broker has it (PUBACK). That is no receipt from the county."""
        properties = None
        if self._is_mqtt5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ContentType = "application/json"
        try:
            await self._client.publish(
                message.topic, message.payload, qos=1, retain=message.retain, properties=properties, timeout=PUBLISH_S
            )
        except (aiomqtt.MqttError, ValueError) as error:
            raise BrokerError(f"cannot publish on {message.topic}: {error}") from error

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the payloads that arrive."""
        try:
            async for message in self._client.messages:
                if isinstance(message.payload, bytes | bytearray):
                    yield bytes(message.payload)
        except aiomqtt.MqttError as error:
            raise BrokerError(str(error)) from error


class Broker:
    """Connects, serves, and connects again."""

    def __init__(
        self, settings: BrokerSettings, *, will: Message, subscription: str, jitter: Callable[[], float] = random.random
    ) -> None:
        """`will` is published by the broker when we vanish; `subscription` is the topic whose messages we take."""
        self._settings = settings
        self._will = will
        self._subscription = subscription
        self._jitter = jitter
        self._versions = [aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311]

    async def run(self, serve: Callable[[Session], Awaitable[None]], *, farewell: Message) -> None:
        """Keep a session up and let `serve` use it, for ever; when cancelled, say `farewell` before leaving.

        Whatever goes wrong with a connection is logged once per outage and tried again.
        """
        bound_s = RETRY_S_MIN
        outage = False
        loop = asyncio.get_running_loop()
        while True:
            connected_at = None
            try:
                async with self._connect() as (client, version):
                    connected_at, outage = loop.time(), False
                    session = Session(client, is_mqtt5=version is aiomqtt.ProtocolVersion.V5)
                    log.info("broker_connected host=%s port=%d mqtt=%s", *self._address(), version.name)
                    try:
                        await serve(session)
                    except asyncio.CancelledError:
                        await self._leave(session, farewell)
                        raise
            except* (aiomqtt.MqttError, BrokerError, OSError) as group:
                if not outage:
                    log.warning(
                        "broker_lost host=%s port=%d: %s; everything is kept and the connection tried again",
                        *self._address(),
                        _first(group),
                    )
                outage = True
            if connected_at is not None and loop.time() - connected_at > STABLE_S:
                bound_s = RETRY_S_MIN
            await asyncio.sleep(self._jitter() * bound_s)
            bound_s = min(2 * bound_s, RETRY_S_MAX)

    def _connect(self) -> "_Connection":
        return _Connection(self._client, self._versions, self._subscription)

    def _client(self, version: aiomqtt.ProtocolVersion) -> aiomqtt.Client:
        settings = self._settings
        options: dict[str, Any] = {"clean_session": True} if version is not aiomqtt.ProtocolVersion.V5 else {}
        password = settings.password_file.read_text(encoding="utf-8").strip() if settings.password_file else None
        return aiomqtt.Client(
            hostname=settings.host,
            port=settings.port,
            identifier=settings.client_id,
            protocol=version,
            keepalive=KEEPALIVE_S,
            timeout=CONNECT_S,
            username=settings.username,
            password=password,
            tls_context=self._tls() if settings.tls else None,
            will=aiomqtt.Will(self._will.topic, self._will.payload, qos=1, retain=self._will.retain),
            **options,
        )

    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)
        return context

    def _address(self) -> tuple[str, int]:
        return self._settings.host, self._settings.port

    async def _leave(self, session: Session, farewell: Message) -> None:
        try:
            async with asyncio.timeout(2):
                await session.publish(farewell)
        except (TimeoutError, BrokerError):
            pass  # the will says the same


class _Connection:
    """An async context: a connected, subscribed client of the highest version that the broker speaks."""

    def __init__(
        self,
        make_client: Callable[[aiomqtt.ProtocolVersion], aiomqtt.Client],
        versions: list[aiomqtt.ProtocolVersion],
        subscription: str,
    ) -> None:
        self._make_client = make_client
        self._versions = versions  # shared: a version that the broker lacks is struck out for good
        self._subscription = subscription

    async def __aenter__(self) -> tuple[aiomqtt.Client, aiomqtt.ProtocolVersion]:
        version = self._versions[0]
        try:
            client = await self._enter(version)
        except aiomqtt.MqttError as error:
            if len(self._versions) == 1 or not _lacks_version(error):
                raise
            version = self._versions[1]
            client = await self._enter(version)
            log.info("broker_speaks_mqtt_311_only: %s", error)
            del self._versions[0]
        self._client = client
        try:
            await client.subscribe(self._subscription, qos=1)
        except BaseException:
            await client.__aexit__(None, None, None)
            raise
        return client, version

    async def _enter(self, version: aiomqtt.ProtocolVersion) -> aiomqtt.Client:
        client = self._make_client(version)
        await client.__aenter__()
        return client

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._client.__aexit__(None, None, None)
        except aiomqtt.MqttError:
            pass  # lost before we could say goodbye


def _lacks_version(error: aiomqtt.MqttError) -> bool:
    """Tell whether a broker may have refused the protocol version: by code, or by closing without a word."""
    code = getattr(error, "rc", None)
    return getattr(code, "value", code) in _UNSUPPORTED_VERSION or str(error) == "Operation timed out"


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
