"""The connection to the MQTT broker, kept up for ever; the one place that knows aiomqtt.

A new client for every connection: whatever an old one still had in its queues is in the outbox as well. MQTT 5 first,
3.1.1 where the broker does not offer it. Reconnects wait a random time up to a bound that doubles ("full jitter"): a
thousand gateways come back together when a county has its power again.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import aiomqtt
import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from protocols.errors import ShuiwangError

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

CONNECT_S: Final = 10.0
PUBLISH_S: Final = 20.0
# Mobile networks drop idle mappings after a few minutes; a black hole is noticed after 1.5 times this.
KEEPALIVE_S: Final = 30
# A library may put a number into its texts; an outage of days must not fill the log for that.
REASONS_MAX: Final = 10
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 120.0
# A connection that lasted so long was a good one: the next failure begins again with short waits.
STABLE_S: Final = 30.0
_UNSUPPORTED_VERSION: Final = {1, 132}  # CONNACK return code of 3.1.1, reason code of MQTT 5
_TIMED_OUT: Final = "Operation timed out"
_NO_SUBSCRIBERS: Final = 16  # PUBACK reason code of MQTT 5
# Acknowledgements are cumulative: one that finds the queue full is made good by the next.
INCOMING_MAX: Final = 1000
# A broker that says nothing to MQTT 5 so often in a row, and then takes 3.1.1, does not speak it; once may be chance.
SILENCES_MAX: Final = 2


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


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """One MQTT message that came for us."""

    topic: str
    payload: bytes


class _ClosedEarly(aiomqtt.MqttError):
    """The broker closed the connection instead of answering: it does not know the version, or wants a certificate."""


class _Client(aiomqtt.Client):
    """An aiomqtt client that keeps what aiomqtt 2.5.1 drops.

    It ignores the reason code of a PUBACK, so a message that the broker refused would count as published. When the
    broker closes the connection before it has answered, it waits on until the time is up. It leaves the socket of an
    attempt that failed open until the keepalive ends it. And a cancellation may be lost in it.
    """

    puback: ReasonCode | None = None

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any) -> None:
        self.puback = reason_code
        super()._on_publish(client, userdata, mid, reason_code, properties)

    async def _wait_for(self, fut: Awaitable[_Result], timeout: float | None) -> _Result:
        """Wait as aiomqtt does, for every exchange with the broker, but never lose a cancellation.

        It uses `asyncio.wait_for`, which before Python 3.12 returns normally when it is cancelled in the loop turn in
        which the answer comes (CPython issue 86296): a stop would be forgotten.
        """
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError(_TIMED_OUT) from None

    def _on_disconnect(self, *arguments: Any, **options: Any) -> None:
        # Perhaps on the thread that connects.
        self._loop.call_soon_threadsafe(self._fail_early)
        try:
            super()._on_disconnect(*arguments, **options)
        except asyncio.CancelledError:
            pass  # it asks a future that was cancelled with its caller

    def _fail_early(self) -> None:
        if not self._connected.done():
            self._connected.set_exception(_ClosedEarly("the broker closed the connection without an answer"))
            self._connected.exception()  # seen: whoever still waits gets it, nobody else is told that it was missed

    def abandon(self) -> None:
        """Close the socket, whatever state the connection is in."""
        self._client.disconnect()


class Session:
    """One connection that stands. Its methods raise BrokerError once it does not."""

    def __init__(self, client: _Client, *, is_mqtt5: bool) -> None:
        self._client = client
        self._is_mqtt5 = is_mqtt5
        self._one_at_a_time = asyncio.Lock()  # so that a PUBACK belongs to the message that waits
        self._unheard: set[str] = set()

    async def publish(self, message: Message) -> None:
        """Publish and wait until the broker has it (PUBACK). That is no receipt from the county.

        A broker that refuses the message raises BrokerError as well, where it says so: in MQTT 3.1.1 it cannot.
        """
        properties = None
        if self._is_mqtt5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ContentType = "application/json"
        async with self._one_at_a_time:
            self._client.puback = None
            try:
                await self._client.publish(
                    message.topic,
                    message.payload,
                    qos=1,
                    retain=message.retain,
                    properties=properties,
                    timeout=PUBLISH_S,
                )
            except (aiomqtt.MqttError, ValueError) as error:
                raise BrokerError(f"cannot publish on {message.topic}: {error}") from error
            self._judge(self._client.puback, message.topic)

    def _judge(self, puback: ReasonCode | None, topic: str) -> None:
        if puback is None:
            return
        if puback.is_failure:
            raise BrokerError(f"the broker refuses what we publish on {topic}: {puback}; check its access rules (ACL)")
        if puback.value == _NO_SUBSCRIBERS and topic not in self._unheard:
            self._unheard.add(topic)
            log.info("broker_has_no_subscriber topic=%s: the broker takes it, and nobody is there to hear it", topic)

    async def messages(self) -> AsyncIterator[Received]:
        """Yield what arrives."""
        try:
            async for message in self._client.messages:
                if isinstance(message.payload, bytes | bytearray):
                    yield Received(topic=str(message.topic), payload=bytes(message.payload))
        except aiomqtt.MqttError as error:
            raise BrokerError(str(error)) from error


class Broker:
    """Connects, serves, and connects again."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        will: Message,
        subscriptions: Sequence[str],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`will` is published by the broker when we vanish; `subscriptions` are the topics whose messages we take."""
        self._settings = settings
        self._will = will
        self._subscriptions = subscriptions
        self._jitter = jitter
        self._versions = _Versions()

    async def run(self, serve: Callable[[Session], Awaitable[None]], *, farewell: Message) -> None:
        """Keep a session up and let `serve` use it, for ever; when cancelled, say `farewell` before leaving.

        Whatever goes wrong with a connection is tried again; each reason is logged once per outage.
        """
        bound_s = RETRY_S_MIN
        reasons: set[str] = set()
        loop = asyncio.get_running_loop()
        while True:
            connected_at = None
            try:
                async with self._connect() as (client, version):
                    connected_at = loop.time()
                    reasons.clear()
                    session = Session(client, is_mqtt5=version is aiomqtt.ProtocolVersion.V5)
                    log.info("broker_connected host=%s port=%d mqtt=%s", *self._address(), version.name)
                    try:
                        await serve(session)
                    except asyncio.CancelledError:
                        await self._leave(session, farewell)
                        raise
            # A name that IDNA cannot encode is a UnicodeError.
            except* (aiomqtt.MqttError, BrokerError, OSError, UnicodeError) as group:
                reason = str(_first(group))
                if reason not in reasons and len(reasons) < REASONS_MAX:
                    reasons.add(reason)
                    log.warning(
                        "broker_lost host=%s port=%d: %s (%s); everything is kept and the connection tried again",
                        *self._address(),
                        reason,
                        _advice(reason),
                    )
            if connected_at is not None and loop.time() - connected_at > STABLE_S:
                bound_s = RETRY_S_MIN
            await asyncio.sleep(self._jitter() * bound_s)
            bound_s = min(2 * bound_s, RETRY_S_MAX)

    def _connect(self) -> "_Connection":
        return _Connection(self._client, self._versions, self._subscriptions)

    def _client(self, version: aiomqtt.ProtocolVersion) -> _Client:
        settings = self._settings
        options: dict[str, Any] = {"clean_session": True} if version is not aiomqtt.ProtocolVersion.V5 else {}
        return _Client(
            hostname=settings.host,
            port=settings.port,
            identifier=settings.client_id,
            protocol=version,
            keepalive=KEEPALIVE_S,
            timeout=CONNECT_S,
            username=settings.username,
            password=self._password(),
            max_queued_incoming_messages=INCOMING_MAX,
            tls_context=self._tls() if settings.tls else None,
            will=aiomqtt.Will(self._will.topic, self._will.payload, qos=1, retain=self._will.retain),
            **options,
        )

    def _password(self) -> str | None:
        file = self._settings.password_file
        try:
            return file.read_text(encoding="utf-8").strip() if file else None
        except (OSError, UnicodeError) as error:
            raise BrokerError(f"password_file {file} cannot be read: {error}") from error

    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        file = settings.ca_file
        try:
            context = ssl.create_default_context(cafile=file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            file = settings.cert_file
            if settings.cert_file:
                context.load_cert_chain(settings.cert_file, settings.key_file)
        except (OSError, ValueError) as error:  # which do not name the file
            key = f" with key_file {settings.key_file}" if file == settings.cert_file else ""
            raise BrokerError(f"the certificate {file}{key} cannot be used: {error}") from error
        return context

    def _address(self) -> tuple[str, int]:
        return self._settings.host, self._settings.port

    async def _leave(self, session: Session, farewell: Message) -> None:
        try:
            async with asyncio.timeout(2):
                await session.publish(farewell)
        except (TimeoutError, BrokerError):
            pass  # the will says the same


class _Versions:
    """Which versions of MQTT to try; one that the broker lacks is struck out for good."""

    def __init__(self) -> None:
        self.left = [aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311]
        self._silences = 0

    def spoken(self, refusal: aiomqtt.MqttError | None) -> None:
        """Note that the last version left was taken, after the first was refused so or taken itself."""
        if refusal is None:
            self._silences = 0
            return
        self._silences += 1
        if _refuses_version(refusal) or self._silences >= SILENCES_MAX:
            log.info("broker_speaks_mqtt_311_only: %s", refusal)
            del self.left[0]


class _Connection:
    """An async context: a connected, subscribed client of the highest version that the broker speaks."""

    def __init__(
        self,
        make_client: Callable[[aiomqtt.ProtocolVersion], _Client],
        versions: _Versions,
        subscriptions: Sequence[str],
    ) -> None:
        self._make_client = make_client
        self._versions = versions
        self._subscriptions = subscriptions

    async def __aenter__(self) -> tuple[_Client, aiomqtt.ProtocolVersion]:
        version, refusal = self._versions.left[0], None
        try:
            client = await self._enter(version)
        except aiomqtt.MqttError as error:
            if len(self._versions.left) == 1 or not (_refuses_version(error) or _says_nothing(error)):
                raise
            version, refusal = self._versions.left[1], error
            client = await self._enter(version)
        self._versions.spoken(refusal)
        self._client = client
        try:
            await self._subscribe(client)
        except BaseException:
            client.abandon()
            raise
        return client, version

    async def _enter(self, version: aiomqtt.ProtocolVersion) -> _Client:
        client = self._make_client(version)
        try:
            await client.__aenter__()
        except BaseException:
            client.abandon()
            raise
        return client

    async def _subscribe(self, client: _Client) -> None:
        codes = await client.subscribe([(topic, 1) for topic in self._subscriptions])
        for topic, granted in zip(self._subscriptions, codes, strict=True):
            if isinstance(granted, ReasonCode) and granted.is_failure:
                # What we have to say still gets through; it is sent again and again until somebody repairs the rules.
                log.error(
                    "subscription_refused topic=%s: %s; what the county sends there cannot reach us. Check the broker's"
                    " access rules (ACL)",
                    topic,
                    granted,
                )

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._client.__aexit__(None, None, None)
        except aiomqtt.MqttError:
            pass  # lost before we could say goodbye


def _refuses_version(error: aiomqtt.MqttError) -> bool:
    """Tell whether a broker has refused the protocol version by its code."""
    code = getattr(error, "rc", None)
    return getattr(code, "value", code) in _UNSUPPORTED_VERSION


def _says_nothing(error: aiomqtt.MqttError) -> bool:
    """Tell whether a broker has not answered, or closed without a word, as some do that do not know the version."""
    return isinstance(error, _ClosedEarly) or str(error) == _TIMED_OUT


# What a reason for a lost connection contains, and what to look at then.
_ADVICE: Final = {
    "refused": "does the broker run, and is the port right?",
    "Not authorized": "check username, password_file or the client certificate, and the broker's access rules",
    "Bad user": "check username and password_file",
    "Name or service": "check the name in the url, and DNS",
    "name resolution": "check the network and DNS",
    "certificate": "check ca_file, the name in the broker's certificate, and the clock",
    "reset by peer": "is this a TLS port (mqtts://), or the other way round?",
    "without an answer": "is this a TLS port (mqtts://), or does it want a client certificate?",
    "unreachable": "check the network",
    "during message iteration": "the network, or the broker, or another client with the same gateway id",
}


def _advice(reason: str) -> str:
    return next((advice for key, advice in _ADVICE.items() if key in reason), "check the network and the broker's log")


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
