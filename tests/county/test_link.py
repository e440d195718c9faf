"""The connection, against real brokers: mosquitto (MQTT 5, TLS, access rules) and amqtt (3.1.1 only)."""

import logging
import ssl

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from partners.mosquitto import Mosquitto
from partners.processes import free_port

from county.errors import ConfigurationError
from county.link import BATCH_MESSAGES_MAX, Connection, Link, LinkLost, parse_address

TOPIC = "shuiwang/v1/shenxian/g-1/ack"


def link_to(url, **options):
    return Link(parse_address(url, client_id="county-test", **options))


async def test_mosquitto_is_spoken_to_in_mqtt_5_and_messages_come_in_batches(mosquitto):
    async with link_to(mosquitto.url).connect() as connection:
        assert connection.version is aiomqtt.ProtocolVersion.V5
        await connection.subscribe([TOPIC])
        await connection.publish([(TOPIC, b"%d" % number) for number in range(300)])
        received = []
        while len(received) < 300:
            batch = await connection.next_batch()
            assert len(batch) <= BATCH_MESSAGES_MAX
            received += batch
    assert sorted(int(one.payload) for one in received) == list(range(300))
    assert {(one.topic, one.retained) for one in received} == {(TOPIC, False)}


async def test_the_broker_keeps_what_comes_while_we_are_away(mosquitto):
    link = link_to(mosquitto.url)
    async with link.connect() as connection:
        await connection.subscribe([TOPIC])
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as other:
        await other.publish(TOPIC, b"meanwhile", qos=1)
    async with link.connect() as connection:
        assert [one.payload for one in await connection.next_batch()] == [b"meanwhile"]


@pytest.fixture
async def amqtt_broker(caplog):
    from amqtt.broker import Broker

    caplog.set_level(logging.CRITICAL)
    port = free_port()
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    yield f"mqtt://127.0.0.1:{port}"
    await broker.shutdown()


async def test_a_broker_that_knows_only_3_1_1_is_spoken_to_in_that(amqtt_broker):
    link = link_to(amqtt_broker)
    with pytest.raises(LinkLost, match=r"does not take MQTT 5.*next attempt with MQTT 3\.1\.1"):
        async with link.connect():
            pass
    async with link.connect() as connection:
        assert connection.version is aiomqtt.ProtocolVersion.V311
        await connection.subscribe([TOPIC])
        await connection.publish([(TOPIC, b"x")])
        assert [one.payload for one in await connection.next_batch()] == [b"x"]


async def test_a_broker_that_is_not_there_is_told_with_what_to_check():
    with pytest.raises(LinkLost, match=r"127\.0\.0\.1:\d+: .*Check that the broker runs"):
        async with link_to(f"mqtt://127.0.0.1:{free_port()}").connect():
            pass


async def test_a_broker_that_goes_away_is_told(mosquitto):
    async with link_to(mosquitto.url).connect() as connection:
        await connection.subscribe([TOPIC])
        mosquitto.stop()
        with pytest.raises(LinkLost, match="connection broke"):
            await connection.next_batch()
        with pytest.raises(LinkLost, match="connection broke"):
            await connection.publish([(TOPIC, b"1"), (TOPIC, b"2")])


async def test_a_refusal_says_what_to_check_and_does_not_try_an_older_version(tmp_path):
    broker = Mosquitto(tmp_path, allow_anonymous=False)
    broker.start()
    try:
        link = link_to(broker.url)
        for _ in range(2):
            with pytest.raises(LinkLost, match=r"refuses us.*[Nn]ot authorized.*Check user name"):
                async with link.connect():
                    pass
    finally:
        broker.stop()
    assert "(p2" not in broker.log.read_text()


@pytest.mark.parametrize("code", [0x80, ReasonCode(PacketTypes.SUBACK, identifier=0x87)])
async def test_a_subscription_that_the_broker_refuses_is_an_error(code):
    class Refusing:  # mosquitto's ACL file never refuses a subscription; other brokers do
        messages = ()

        async def subscribe(self, topic, *, qos):
            return [code]

    with pytest.raises(LinkLost, match=r"refuses the subscription to shuiwang/v1.*ACL"):
        await Connection(Refusing(), version=aiomqtt.ProtocolVersion.V5).subscribe([TOPIC])


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("localhost:1883", {}, "is not mqtt://"),
        ("http://broker", {}, "is not mqtt://"),
        ("mqtt://", {}, "is not mqtt://"),
        ("mqtt://host:port", {}, "for example mqtt://"),
        ("mqtt://host:99999", {}, "for example mqtt://"),
        ("mqtt://[::1", {}, "for example mqtt://"),
        ("mqtt://user:secret@host", {}, "--password-file"),
        ("mqtt://host/topic", {}, "something after the port"),
        ("mqtts://host", {"cert_file": "c"}, "belong together"),
        ("mqtt://host", {"ca_file": "c"}, "need an mqtts"),
        ("mqtts://host", {"ca_file": "missing.pem"}, "--ca-file .*no such file"),
        ("mqtt://host", {"password_file": "p"}, "needs --username"),
        ("mqtt://host", {"username": "u", "password_file": "missing"}, "--password-file"),
    ],
)
def test_a_wrong_command_line_is_told_with_its_remedy(tmp_path, url, options, says):
    paths = {key: tmp_path / value if key.endswith("file") else value for key, value in options.items()}
    with pytest.raises(ConfigurationError, match=says) as error:
        parse_address(url, client_id="x", **paths)
    assert "secret" not in str(error.value)


def test_a_certificate_that_is_none_is_told(tmp_path):
    (tmp_path / "ca.pem").write_text("not a certificate")
    with pytest.raises(ConfigurationError, match="must be PEM"):
        parse_address("mqtts://host", client_id="x", ca_file=tmp_path / "ca.pem")


def test_ports_and_files_are_taken_as_given(tmp_path):
    (tmp_path / "password").write_text("pässword \n", encoding="utf-8")
    plain = parse_address("mqtt://host", client_id="x", username="u", password_file=tmp_path / "password")
    assert (plain.port, plain.tls, plain.username, plain.password) == (1883, None, "u", "pässword ")
    secure = parse_address("mqtts://host", client_id="x")
    assert secure.port == 8883
    assert secure.tls is not None
    assert (secure.tls.verify_mode, secure.tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert parse_address("mqtt://[::1]:1884", client_id="x").host == "::1"
