"""Asking a gateway over a real mosquitto: repeated until it replies, and what is said where it does not."""

import asyncio
import contextlib
import json
import time

import aiomqtt
import pytest
from samples import COUNTY, GATEWAY, birth, will

from county import command as command_module
from county.command import Asking, new_command_id
from county.errors import BrokerError, NoReply
from county.link import Link, parse_address
from protocols import contract
from protocols.contract import Leaf, PresentCommand, Reply

COMMAND_TOPIC, REPLY_TOPIC, STATE_TOPIC = (
    contract.topic(COUNTY, GATEWAY, leaf) for leaf in (Leaf.COMMAND, Leaf.REPLY, Leaf.STATE)
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(command_module, "REPEAT_S", 0.1)
    monkeypatch.setattr(command_module, "RECONNECT_S", 0.1)


def command(number=0):
    return PresentCommand(
        schema=contract.COMMAND_SCHEMA,
        id=f"01KAM5A00000000000000{number:05d}",
        deadline="2026-12-01T00:00:00.000Z",
        meter="m-001",
    )


def asking(url):
    address = parse_address(url, client_id=f"county-command-{time.monotonic_ns()}")
    return Asking(Link(address, is_lasting=False), county=COUNTY, gateway=GATEWAY)


def reply(message):
    return Reply(schema=contract.REPLY_SCHEMA, id=message.id, at="2026-12-01T00:00:00.000Z", done=True)


@contextlib.asynccontextmanager
async def gateway(mosquitto, *, deaf_to=0):
    """Replies to what it is asked, but for the first so many messages; yields what it heard."""
    heard = []

    async def serve():
        async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
            await client.subscribe(COMMAND_TOPIC, qos=1)
            ready.set()
            async for message in client.messages:
                assert not message.retain
                heard.append(contract.decode(Leaf.COMMAND, message.payload))
                if len(heard) > deaf_to:
                    await client.publish(REPLY_TOPIC, contract.encode(reply(command(77))), qos=1)  # somebody else's
                    await client.publish(REPLY_TOPIC, b"no reply", qos=1)
                    await client.publish(REPLY_TOPIC, contract.encode(reply(heard[-1])), qos=1)

    ready = asyncio.Event()
    task = asyncio.create_task(serve())
    await ready.wait()
    yield heard
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_reply_to_the_command_is_returned(mosquitto):
    async with gateway(mosquitto) as heard:
        assert await asking(mosquitto.url).ask(command(), wait_s=10) == reply(command())
    assert set(heard) == {command()}


async def test_a_command_is_repeated_with_the_same_id_until_a_reply_comes(mosquitto):
    async with gateway(mosquitto, deaf_to=3) as heard:
        assert (await asking(mosquitto.url).ask(command(), wait_s=10)).done
    assert len(heard) >= 4
    assert set(heard) == {command()}


async def test_a_gateway_that_comes_late_gets_it_too(mosquitto):
    waiting = asyncio.create_task(asking(mosquitto.url).ask(command(), wait_s=10))
    await asyncio.sleep(0.3)
    async with gateway(mosquitto):
        assert (await waiting).done


async def test_a_broker_that_goes_away_and_comes_back_is_waited_for(mosquitto):
    waiting = asyncio.create_task(asking(mosquitto.url).ask(command(), wait_s=20))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(mosquitto.stop)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(mosquitto.start)
    async with gateway(mosquitto):
        assert (await waiting).done


@pytest.mark.parametrize(
    ("state", "hint"), [(None, "no gateway of that name"), (will("power"), "offline (power)"), (birth(), "is online")]
)
async def test_without_a_reply_the_state_of_the_gateway_says_what_to_look_at(mosquitto, state, hint):
    if state is not None:
        async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
            await client.publish(STATE_TOPIC, contract.encode(state), qos=1, retain=True)
    with pytest.raises(NoReply) as caught:
        await asking(mosquitto.url).ask(command(), wait_s=1)
    assert hint in str(caught.value)


async def test_without_a_broker_it_is_the_broker(caplog):
    with pytest.raises(BrokerError, match=r"no broker within 0\.5 s"):
        await asking("mqtt://127.0.0.1:1").ask(command(), wait_s=0.5)
    assert "Check that the broker runs" in caplog.text


async def test_the_broker_keeps_nothing_for_whoever_asked_once(mosquitto):
    """Hundreds of commands must not leave hundreds of sessions behind."""
    address = parse_address(mosquitto.url, client_id="county-command-1")
    async with gateway(mosquitto):
        await Asking(Link(address, is_lasting=False), county=COUNTY, gateway=GATEWAY).ask(command(), wait_s=10)
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        await client.publish(REPLY_TOPIC, contract.encode(reply(command(5))), qos=1)
    lasting = aiomqtt.Client("127.0.0.1", mosquitto.port, identifier="county-command-1", clean_session=False)
    async with lasting as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(client.messages), 0.5)


def test_ids_are_ulids_of_their_time():
    assert new_command_id(now_ns=lambda: 0, random_bits=lambda _: 0) == "0" * 26
    early, late = (new_command_id(now_ns=lambda ms=ms: ms * 1_000_000) for ms in (1_000, 2_000))
    assert early < late
    assert len({new_command_id() for _ in range(100)}) == 100
    payload = json.dumps({"id": new_command_id()}).encode()
    assert contract.decode_command_id(payload) is not None
