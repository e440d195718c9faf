"""The connection to a real mosquitto: kept up, never trusted with more than it has said."""

import asyncio
import collections
import contextlib
import gc
import itertools
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiomqtt
import psutil
import pytest
from partners.mosquitto import Certificates, Mosquitto
from partners.processes import free_port
from partners.proxy import Proxy

from gateway import broker as broker_module
from gateway.broker import RETRY_S_MAX, RETRY_S_MIN, Broker, BrokerError, BrokerSettings, Message

ROOT = Path(__file__).parents[2]
WILL = Message(topic="shuiwang/v1/c/g/state", payload=b"will", retain=True)
FAREWELL = Message(topic="shuiwang/v1/c/g/state", payload=b"farewell", retain=True)
ALERT = Message(topic="shuiwang/v1/c/g/alert", payload=b"alert")
ACK = "shuiwang/v1/c/g/ack"
PATIENCE_S = 10


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Short waits; what is proven is that they end, not how long they are."""
    monkeypatch.setattr(broker_module, "CONNECT_S", 1.0)
    monkeypatch.setattr(broker_module, "PUBLISH_S", 0.5)
    monkeypatch.setattr(broker_module, "RETRY_S_MIN", 0.05)
    monkeypatch.setattr(broker_module, "RETRY_S_MAX", 0.2)


@pytest.fixture
def mosquitto(tmp_path):
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


class Served:
    """What a Broker does with its sessions: each is put into a queue, and kept until the test lets it go."""

    def __init__(self, port, *, host="127.0.0.1", **settings):
        settings = BrokerSettings(host=host, port=port, client_id="g-1", **settings)
        self.broker = Broker(settings, will=WILL, subscriptions=(ACK,))
        self.sessions = asyncio.Queue()
        self.heard = asyncio.Queue()
        self._task = None

    async def _serve(self, session):
        self.sessions.put_nowait(session)
        async for received in session.messages():
            assert received.topic == ACK
            self.heard.put_nowait(received.payload)

    async def __aenter__(self):
        self._task = asyncio.create_task(self.broker.run(self._serve, farewell=FAREWELL))
        return self

    async def __aexit__(self, *_):
        await self.stop()

    async def stop(self):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def session(self):
        """The next session that stands."""
        waiting = asyncio.create_task(self.sessions.get())
        done, _ = await asyncio.wait({waiting, self._task}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if waiting not in done:
            waiting.cancel()
            if self._task.done():
                self._task.result()
            raise AssertionError("no session came up")
        return waiting.result()


@contextlib.asynccontextmanager
async def county(port, *topics, **options):
    """A subscriber of its own, and what it hears: (topic, payload, retained)."""
    heard = asyncio.Queue()
    async with aiomqtt.Client("127.0.0.1", port, identifier="county", **options) as client:
        for topic in topics or ("shuiwang/#",):
            await client.subscribe(topic, qos=1)

        async def listen():
            async for message in client.messages:
                heard.put_nowait((str(message.topic), message.payload, bool(message.retain)))

        listening = asyncio.create_task(listen())
        try:
            yield client, heard
        finally:
            listening.cancel()


async def hears(heard, wanted, *, patience_s=PATIENCE_S):
    async with asyncio.timeout(patience_s):
        while (await heard.get())[1] != wanted:
            pass


def events(caplog, name):
    return [record for record in caplog.records if record.getMessage().startswith(name)]


# -- a good day -------------------------------------------------------------------------------------------------------


async def test_messages_go_up_with_mqtt_5_and_acknowledgements_come_down(mosquitto, caplog):
    caplog.set_level(logging.INFO)
    async with county(mosquitto.port) as (client, heard), Served(mosquitto.port) as served:
        session = await served.session()
        await session.publish(ALERT)
        await hears(heard, b"alert")
        await client.publish(ACK, b"ack", qos=1)
        assert await asyncio.wait_for(served.heard.get(), PATIENCE_S) == b"ack"
    assert "mqtt=V5" in caplog.text
    assert not events(caplog, "broker_lost")


async def test_a_farewell_is_said_when_the_agent_stops_and_the_will_is_not(mosquitto):
    async with county(mosquitto.port) as (_, heard):
        async with Served(mosquitto.port) as served:
            session = await served.session()
            await session.publish(Message(topic=WILL.topic, payload=b"birth", retain=True))
            await hears(heard, b"birth")
        assert (await asyncio.wait_for(heard.get(), PATIENCE_S))[1] == b"farewell"
        await asyncio.sleep(0.1)
        assert heard.empty()
    async with county(mosquitto.port) as (_, heard):
        assert await asyncio.wait_for(heard.get(), PATIENCE_S) == (WILL.topic, b"farewell", True), "it is retained"


CHILD = """
import asyncio, sys
from gateway.broker import Broker, BrokerSettings, Message
will = Message(topic="shuiwang/v1/c/g/state", payload=b"will", retain=True)
async def serve(session):
    await session.publish(Message(topic=will.topic, payload=b"birth", retain=True))
    print("up", flush=True)
    await asyncio.sleep(60)
settings = BrokerSettings(host="127.0.0.1", port=int(sys.argv[1]), client_id="g-1")
broker = Broker(settings, will=will, subscriptions=("shuiwang/v1/c/g/ack",))
asyncio.run(broker.run(serve, farewell=will))
"""


async def test_the_broker_says_the_will_when_the_agent_is_killed(mosquitto):
    async with county(mosquitto.port) as (_, heard):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(mosquitto.port)], cwd=ROOT, stdout=subprocess.PIPE
        ) as child:
            await asyncio.to_thread(child.stdout.readline)
            await hears(heard, b"birth")
            child.send_signal(signal.SIGKILL)
            await hears(heard, b"will")
    async with county(mosquitto.port) as (_, heard):
        assert await asyncio.wait_for(heard.get(), PATIENCE_S) == (WILL.topic, b"will", True)


# -- brokers that come and go -----------------------------------------------------------------------------------------


async def test_a_broker_that_is_killed_and_started_again_is_found_again(mosquitto, caplog):
    async with Served(mosquitto.port) as served:
        session = await served.session()
        for _ in range(2):
            mosquitto.kill()
            await asyncio.sleep(0.3)
            with pytest.raises(BrokerError):
                await session.publish(ALERT)
            mosquitto.start()
            session = await served.session()
            await session.publish(ALERT)
    lost = events(caplog, "broker_lost")
    assert len([record for record in lost if "Disconnected" in record.message]) == 2, "every outage is told"
    assert all(count <= 2 for count in collections.Counter(record.message for record in lost).values()), (
        "each reason once per outage, however many attempts"
    )


async def test_a_broker_that_is_not_there_yet_is_waited_for(tmp_path, caplog):
    broker = Mosquitto(tmp_path / "broker")
    async with Served(broker.port) as served:
        await asyncio.sleep(0.5)
        with broker:
            await (await served.session()).publish(ALERT)
    (lost,) = events(caplog, "broker_lost")
    assert str(broker.port) in lost.getMessage()
    assert "tried again" in lost.getMessage()


async def test_a_name_that_does_not_resolve_is_an_outage_and_no_crash(caplog):
    async with Served(1883, host="no-such-host.invalid") as served:
        await asyncio.sleep(0.4)
        assert not served._task.done()
    assert len(events(caplog, "broker_lost")) == 1


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".invalid"])
async def test_a_name_that_cannot_be_encoded_is_an_outage_and_no_crash(caplog, host):
    async with Served(1883, host=host) as served:
        await asyncio.sleep(0.4)
        assert not served._task.done()
    assert len(events(caplog, "broker_lost")) == 1


async def test_a_serve_that_fails_with_a_bug_of_ours_is_not_hidden(mosquitto):
    settings = BrokerSettings(host="127.0.0.1", port=mosquitto.port, client_id="g-1")

    async def serve(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Broker(settings, will=WILL, subscriptions=(ACK,)).run(serve, farewell=FAREWELL)


async def test_waits_are_random_up_to_a_bound_that_doubles(monkeypatch):
    monkeypatch.undo()
    waits, draws = [], iter([0.5, 1.0, 0.25] + [1.0] * 20)

    async def note(seconds):
        waits.append(seconds)
        if len(waits) == 12:
            raise ZeroDivisionError

    monkeypatch.setattr(broker_module.asyncio, "sleep", note)
    settings = BrokerSettings(host="127.0.0.1", port=free_port(), client_id="g-1")
    broker = Broker(settings, will=WILL, subscriptions=(ACK,), jitter=lambda: next(draws))
    with pytest.raises(ZeroDivisionError):
        await broker.run(lambda _: asyncio.sleep(0), farewell=FAREWELL)
    bounds = [min(RETRY_S_MIN * 2**number, RETRY_S_MAX) for number in range(12)]
    assert waits == [0.5 * bounds[0], bounds[1], 0.25 * bounds[2], *bounds[3:]]
    assert bounds[-1] == RETRY_S_MAX


async def test_a_connection_that_lasted_makes_the_next_waits_short_again(mosquitto, monkeypatch):
    monkeypatch.setattr(broker_module, "STABLE_S", 0.2)
    waits = []
    real_sleep = asyncio.sleep

    async def note(seconds):
        if seconds == 1:  # aiomqtt's own housekeeping
            await real_sleep(1)
            return
        waits.append(seconds)
        await real_sleep(0.01)

    monkeypatch.setattr(broker_module.asyncio, "sleep", note)
    settings = BrokerSettings(host="127.0.0.1", port=mosquitto.port, client_id="g-1")
    lives_s = iter([0, 0, 0, 0.3, 0, 60])

    async def serve(_):
        await real_sleep(next(lives_s))
        raise BrokerError("enough")

    task = asyncio.create_task(
        Broker(settings, will=WILL, subscriptions=(ACK,), jitter=lambda: 1.0).run(serve, farewell=FAREWELL)
    )
    async with asyncio.timeout(PATIENCE_S):
        while len(waits) < 5:
            await real_sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert waits[:5] == [0.05, 0.1, 0.2, 0.05, 0.1]


# -- networks ---------------------------------------------------------------------------------------------------------


async def test_a_black_hole_is_noticed_by_the_publication_and_left(mosquitto):
    async with Proxy(mosquitto.port) as network, Served(network.port) as served:
        session = await served.session()
        await session.publish(ALERT)
        network.swallows = True
        began_s = time.monotonic()
        with pytest.raises(BrokerError, match="timed out"):
            await session.publish(ALERT)
        assert time.monotonic() - began_s < 2


async def test_a_black_hole_is_noticed_without_a_publication_too(mosquitto, monkeypatch):
    monkeypatch.setattr(broker_module, "KEEPALIVE_S", 1)
    async with Proxy(mosquitto.port) as network, Served(network.port) as served:
        await served.session()
        network.swallows = True
        async with asyncio.timeout(PATIENCE_S):
            while network.connections < 2:
                await asyncio.sleep(0.05)
        network.swallows = False
        network.reset()
        await (await served.session()).publish(ALERT)


async def test_stopping_in_a_black_hole_takes_a_bounded_time(mosquitto):
    async with Served(mosquitto.port) as served:
        await served.session()
        with mosquitto.frozen():
            began_s = time.monotonic()
            await served.stop()
            assert time.monotonic() - began_s < 4


async def test_attempts_that_fail_leave_no_sockets_behind(mosquitto):
    """aiomqtt leaves the socket of a failed attempt open until the keepalive ends it."""
    async with Proxy(mosquitto.port) as network:
        network.swallows = True
        broker_module.CONNECT_S = 0.1
        async with Served(network.port):
            async with asyncio.timeout(PATIENCE_S):
                while network.connections < 8:
                    await asyncio.sleep(0.05)
            ours = [
                link
                for link in psutil.Process().net_connections("tcp")
                if link.raddr and link.raddr.port == network.port
            ]
            assert len([link for link in ours if link.status == psutil.CONN_ESTABLISHED]) <= 2


@pytest.mark.parametrize("answer", ["_on_connect", "_on_subscribe", "_on_publish", "_on_disconnect"])
async def test_a_stop_in_the_moment_of_an_answer_is_never_lost(mosquitto, monkeypatch, answer):
    """asyncio.wait_for, before Python 3.12, forgets a cancellation that comes so: the agent would never end."""
    on_answer = getattr(broker_module._Client, answer)
    loop = asyncio.get_running_loop()

    async def serve(session):
        while True:
            await session.publish(ALERT)
            if answer != "_on_publish":
                raise BrokerError("enough, connect again")

    stopping = []

    def cancel_after(turns):
        if turns:
            loop.call_soon(cancel_after, turns - 1)
        else:
            stopping[-1].cancel()

    for turns in range(6):
        for number in (1, 2, 3):
            answers = itertools.count(1)

            def note(self, *arguments, turns=turns, number=number, answers=answers, **options):
                on_answer(self, *arguments, **options)
                if next(answers) == number:
                    loop.call_soon_threadsafe(cancel_after, turns)

            monkeypatch.setattr(broker_module._Client, answer, note)
            settings = BrokerSettings(host="127.0.0.1", port=mosquitto.port, client_id="g-1")
            broker = Broker(settings, will=WILL, subscriptions=(ACK,), jitter=lambda: 0.0)
            task = asyncio.create_task(broker.run(serve, farewell=FAREWELL))
            stopping.append(task)
            done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert done, f"cancelled {turns} turns of the loop after answer {number}"
    # As asyncio.run does at the end: a connection given up in the making may leave aiomqtt's housekeeping behind.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


# -- versions ---------------------------------------------------------------------------------------------------------


async def test_a_broker_that_refuses_mqtt_5_by_code_is_spoken_to_in_3_1_1_from_then_on(mosquitto, caplog):
    caplog.set_level(logging.INFO)
    async with (
        county(mosquitto.port) as (_, heard),
        Proxy(mosquitto.port, at_mqtt5="answers") as network,
        Served(network.port) as served,
    ):
        await (await served.session()).publish(ALERT)
        await hears(heard, b"alert")
        attempts = network.connections
        network.reset()
        await (await served.session()).publish(ALERT)
        assert network.connections == attempts + 1, "MQTT 5 is not tried again"
    assert "mqtt=V311" in caplog.text
    assert len(events(caplog, "broker_speaks_mqtt_311_only")) == 1


@pytest.mark.parametrize("how", ["closes", "says nothing"])
async def test_a_broker_that_has_no_word_for_mqtt_5_is_spoken_to_in_3_1_1(mosquitto, how, monkeypatch, caplog):
    monkeypatch.setattr(broker_module, "CONNECT_S", 0.3)
    caplog.set_level(logging.INFO)
    async with Proxy(mosquitto.port, at_mqtt5=how) as network, Served(network.port) as served:
        for attempts in (2, 4, 5):  # the silence may be chance once, twice it is not
            await (await served.session()).publish(ALERT)
            assert network.connections == attempts
            network.reset()
    assert len(events(caplog, "broker_speaks_mqtt_311_only")) == 1


async def test_one_silent_moment_does_not_cost_mqtt_5(mosquitto, monkeypatch, caplog):
    monkeypatch.setattr(broker_module, "CONNECT_S", 0.3)
    caplog.set_level(logging.INFO)
    async with Proxy(mosquitto.port, at_mqtt5="says nothing") as network, Served(network.port) as served:
        await served.session()
        network._at_mqtt5 = None
        network.reset()
        await served.session()
        network._at_mqtt5 = "says nothing"
        network.reset()
        await served.session()
    versions = [record.getMessage().rsplit("=", 1)[1] for record in events(caplog, "broker_connected")]
    assert versions == ["V311", "V5", "V311"]
    assert not events(caplog, "broker_speaks_mqtt_311_only")


# -- who may what -----------------------------------------------------------------------------------------------------


async def test_what_the_broker_refuses_never_counts_as_published(tmp_path, caplog):
    """mosquitto answers a denied publication with PUBACK 87, which aiomqtt takes for a success."""
    with Mosquitto(tmp_path / "broker", acl="topic write shuiwang/v1/c/g/state\n") as broker:
        async with Served(broker.port) as served:
            session = await served.session()
            await session.publish(Message(topic=WILL.topic, payload=b"birth"))
            for _ in range(2):
                with pytest.raises(BrokerError, match=r"refuses what we publish on shuiwang/v1/c/g/alert.*ACL"):
                    await session.publish(ALERT)
            await session.publish(Message(topic=WILL.topic, payload=b"birth"))


async def test_every_publication_gets_its_own_verdict(tmp_path):
    with Mosquitto(tmp_path / "broker", acl="topic write shuiwang/v1/c/g/state\n") as broker:
        async with Served(broker.port) as served:
            session = await served.session()
            allowed, denied = Message(topic=WILL.topic, payload=b"1"), ALERT
            verdicts = await asyncio.gather(
                *(session.publish(message) for message in [allowed, denied] * 20), return_exceptions=True
            )
    assert [isinstance(verdict, BrokerError) for verdict in verdicts] == [False, True] * 20


async def test_a_subscription_that_is_refused_is_said_and_what_we_have_to_say_still_goes_out(mosquitto, caplog):
    async with county(mosquitto.port) as (_, heard), Proxy(mosquitto.port) as network:
        network.refuses_subscriptions = True
        async with Served(network.port) as served:
            await (await served.session()).publish(ALERT)
            await hears(heard, b"alert")
    (refused,) = events(caplog, "subscription_refused")
    assert ACK in refused.getMessage()


async def test_a_message_that_nobody_hears_is_mentioned_once(mosquitto, caplog):
    caplog.set_level(logging.INFO)
    async with Served(mosquitto.port) as served:
        session = await served.session()
        for _ in range(3):
            await session.publish(ALERT)
    assert len(events(caplog, "broker_has_no_subscriber")) == 1 + 1, "the alert, and the farewell"


async def test_a_password_opens_and_a_wrong_one_is_an_outage_until_it_is_right(tmp_path, caplog):
    password = tmp_path / "password"
    password.write_text("wrong\n", encoding="utf-8")
    with Mosquitto(tmp_path / "broker", users={"g-1": "right"}) as broker:
        async with Served(broker.port, username="g-1", password_file=password) as served:
            await asyncio.sleep(0.5)
            assert served.sessions.empty()
            password.write_text("right\n", encoding="utf-8")
            await (await served.session()).publish(ALERT)
    (lost,) = events(caplog, "broker_lost")
    assert "authorized" in lost.getMessage().lower()
    assert "wrong" not in caplog.text
    assert "right" not in caplog.text


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "no text"])
async def test_a_password_file_that_cannot_be_read_is_an_outage_and_named(tmp_path, mosquitto, caplog, content):
    file = tmp_path / "secret"
    if content:
        file.write_bytes(content)
    async with Served(mosquitto.port, username="g-1", password_file=file) as served:
        await asyncio.sleep(0.3)
        assert not served._task.done()
    (lost,) = events(caplog, "broker_lost")
    assert str(file) in lost.getMessage()


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(tmp_path, certificates):
    acl = "pattern readwrite shuiwang/v1/c/%u/#\n"
    with Mosquitto(tmp_path / "broker", certificates=certificates, acl=acl) as broker:
        yield broker


async def test_a_client_certificate_says_who_we_are(secure, certificates):
    cert_file, key_file = certificates.issue("g-1.gateways.invalid", common_name="g")
    async with Served(
        secure.port, tls=True, ca_file=certificates.ca_file, cert_file=cert_file, key_file=key_file
    ) as served:
        session = await served.session()
        await session.publish(ALERT)
        with pytest.raises(BrokerError, match="refuses"):
            await session.publish(Message(topic="shuiwang/v1/c/another-gateway/alert", payload=b"x"))


# paho 2.2.0 drops the socket of a handshake that failed; the garbage collector closes it.
unclosed = pytest.mark.filterwarnings("ignore:.*unclosed <ssl.SSLSocket", "ignore:.*<ssl.SSLSocket")


async def tls_failure(port, caplog, **settings):
    """What is said when no TLS connection comes up; said once, and tried again and again."""
    async with Served(port, tls=True, **settings) as served:
        async with asyncio.timeout(PATIENCE_S):
            while not events(caplog, "broker_lost"):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert served.sessions.empty()
        assert not served._task.done()
    gc.collect()
    (lost,) = events(caplog, "broker_lost")
    return lost.getMessage()


@unclosed
async def test_an_authority_that_did_not_sign_the_broker_is_an_outage_and_said_once(
    secure, certificates, tmp_path, caplog
):
    cert_file, key_file = certificates.issue("g-1.gateways.invalid", common_name="g")
    stranger = Certificates(tmp_path / "stranger")
    said = await tls_failure(secure.port, caplog, ca_file=stranger.ca_file, cert_file=cert_file, key_file=key_file)
    assert "certificate verify failed" in said


@unclosed
async def test_a_broker_under_another_name_is_an_outage(secure, certificates, caplog):
    cert_file, key_file = certificates.issue("g-1.gateways.invalid", common_name="g")
    options = {"ca_file": certificates.ca_file, "cert_file": cert_file, "key_file": key_file}
    said = await tls_failure(secure.port, caplog, host="127.0.0.2", **options)
    assert "127.0.0.2" in said


@unclosed
async def test_without_a_client_certificate_there_is_no_session(secure, certificates, caplog):
    assert "closed the connection" in await tls_failure(secure.port, caplog, ca_file=certificates.ca_file)


@unclosed
@pytest.mark.parametrize("which", ["ca_file", "cert_file"])
@pytest.mark.parametrize("content", [None, "", "no certificate"], ids=["missing", "empty", "garbage"])
async def test_a_certificate_that_cannot_be_used_is_an_outage_that_names_the_file(
    mosquitto, certificates, tmp_path, caplog, which, content
):
    file = tmp_path / "broken.pem"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    said = await tls_failure(mosquitto.port, caplog, **{"ca_file": certificates.ca_file, which: file})
    assert str(file) in said


@unclosed
async def test_a_broker_without_tls_is_an_outage_and_no_plain_text(mosquitto, certificates, caplog):
    await tls_failure(mosquitto.port, caplog, ca_file=certificates.ca_file)
    assert "client connected" not in mosquitto.log.read_text(encoding="utf-8")


async def test_every_topic_that_was_asked_for_is_heard_and_told_apart(tmp_path):
    """Over both versions: acknowledgements and commands come on one connection."""
    topics = (ACK, "shuiwang/v1/c/g-1/command")
    with Mosquitto(tmp_path / "broker") as mosquitto:
        settings = BrokerSettings(host="127.0.0.1", port=mosquitto.port, client_id="g-1")
        heard = asyncio.Queue()
        connected = asyncio.Event()

        async def serve(session):
            connected.set()
            async for received in session.messages():
                heard.put_nowait((received.topic, received.payload))

        task = asyncio.create_task(Broker(settings, will=WILL, subscriptions=topics).run(serve, farewell=FAREWELL))
        async with asyncio.timeout(20), aiomqtt.Client("127.0.0.1", mosquitto.port) as county:
            await connected.wait()
            for number, topic in enumerate((*topics, "shuiwang/v1/c/g-2/command")):
                await county.publish(topic, b"%d" % number, qos=1)
            assert {await heard.get() for _ in range(2)} == {(topics[0], b"0"), (topics[1], b"1")}
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
