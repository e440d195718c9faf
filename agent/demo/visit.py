"""What the county says after the visit: a command over its broker, as `shuiwang-county command resolve` sends it.

That tool's deadlines are by the real clock, of which the fast village knows nothing; so the play sends its own. It is
the county's receiver that hears both the command and the gateway's reply, and keeps them.
"""

import asyncio
import contextlib
from typing import Final

from agent.demo import scene
from gateway.broker import Broker, BrokerSettings, Message, Session
from gateway.ulid import new_ulid
from protocols import contract
from protocols.contract import Leaf, ResolveCommand, Result

RESULT: Final = Result.HELPED
_REPLY_S: Final = 10.0
# Of the village; the gateway does it within a moment or, had it lost its connection, not at all.
_DEADLINE_MS: Final = 2 * scene.HOUR_MS
_LEAVING: Final = Message(topic="duty-officer", payload=b"")  # a broker wants to know what to say when one is gone


def command(alert: str, *, now_ms: int) -> ResolveCommand:
    """Return the county's word that a visit helped; `now_ms` is village time."""
    return ResolveCommand(
        schema=contract.COMMAND_SCHEMA,
        id=new_ulid(now_ms),
        deadline=contract.instant(now_ms + _DEADLINE_MS),
        alert=alert,
        result=RESULT,
    )


async def report(alert: str, *, now_ms: int, broker_port: int) -> None:
    """Send it through the county's broker; return once the gateway has replied. Raises TimeoutError without a reply.

    What the gateway replied is for the county's receiver, and for who reads its database.
    """
    message = Message(
        topic=contract.topic(scene.COUNTY, scene.GATEWAY, Leaf.COMMAND),
        payload=contract.encode(command(alert, now_ms=now_ms)),
    )
    replied = asyncio.Event()

    async def serve(session: Session) -> None:
        await session.publish(message)  # again after a lost connection: the gateway does it once
        async for _ in session.messages():
            replied.set()

    broker = Broker(
        BrokerSettings(host="127.0.0.1", port=broker_port, client_id="duty-officer"),
        will=_LEAVING,
        subscriptions=(contract.topic(scene.COUNTY, scene.GATEWAY, Leaf.REPLY),),
    )
    sending = asyncio.create_task(broker.run(serve, farewell=_LEAVING), name="duty-officer")
    try:
        async with asyncio.timeout(_REPLY_S):
            await replied.wait()
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
