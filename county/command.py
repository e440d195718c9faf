"""Asking a gateway: publish a command, wait for its reply, and publish it again while none comes.

The same id every time: a gateway does it once and repeats its reply. A gateway that is away comes back perhaps before
the deadline; the broker keeps no command for it, so only the repetition reaches it. After the deadline nobody does it
any more.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Final, NoReturn

from county.errors import BrokerError, NoReply
from county.link import Connection, Link, LinkLost
from protocols import contract
from protocols.contract import Command, Leaf, Reply, State
from protocols.errors import ContractError
from protocols.ulid import RANDOM_BITS, ulid

log = logging.getLogger(__name__)

REPEAT_S: Final = 5.0
RECONNECT_S: Final = 1.0


def new_command_id(
    *, now_ns: Callable[[], int] = time.time_ns, random_bits: Callable[[int], int] = secrets.randbits
) -> str:
    """Return a ULID for a command that is made now."""
    return ulid(now_ns() // 1_000_000, random=random_bits(RANDOM_BITS))


class Asking:
    """One command to one gateway."""

    def __init__(self, link: Link, *, county: str, gateway: str) -> None:
        self._link = link
        self._county = county
        self._gateway = gateway
        self._connected = False
        self._state: State | None = None

    async def ask(self, command: Command, *, wait_s: float) -> Reply:
        """Return the gateway's reply. Raises BrokerError or NoReply, which say what to look at."""
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    try:
                        async with self._link.connect() as connection:
                            return await self._ask(connection, command)
                    except LinkLost as error:
                        log.warning(f"broker_lost: {error}. Next attempt in {RECONNECT_S:.0f} s")
                        await _pause(RECONNECT_S)
        except TimeoutError:
            if not self._connected:
                raise BrokerError(f"no broker within {wait_s:g} s; the lines above say why") from None
            raise NoReply(f"no reply from {self._gateway} within {wait_s:g} s. {self._hint()}") from None

    async def _ask(self, connection: Connection, command: Command) -> Reply:
        topics = [contract.topic(self._county, self._gateway, leaf) for leaf in (Leaf.REPLY, Leaf.STATE)]
        await connection.subscribe(topics)
        self._connected = True
        repeating = asyncio.create_task(self._repeat(connection, command), name="command-repeat")
        replying = asyncio.create_task(self._reply(connection, command.id), name="command-reply")
        try:
            await asyncio.wait({repeating, replying}, return_when=asyncio.FIRST_COMPLETED)
            return replying.result() if replying.done() else await repeating
        finally:
            for task in (repeating, replying):
                task.cancel()
            await asyncio.gather(repeating, replying, return_exceptions=True)

    async def _repeat(self, connection: Connection, command: Command) -> NoReturn:
        message = contract.topic(self._county, self._gateway, Leaf.COMMAND), contract.encode(command)
        while True:
            await connection.publish([message])
            await _pause(REPEAT_S)

    async def _reply(self, connection: Connection, command_id: str) -> Reply:
        while True:
            for received in await connection.next_batch():
                try:
                    message = contract.decode(contract.parse_topic(received.topic).leaf, received.payload)
                except ContractError as error:
                    log.warning(f"message_not_understood topic={received.topic}: {error}")
                    continue
                if isinstance(message, State):
                    self._state = message
                elif isinstance(message, Reply) and message.id == command_id:
                    return message

    def _hint(self) -> str:
        if self._state is None:
            return "The broker knows no gateway of that name: check --county and --gateway 没有该网关：请核对名称"
        if not self._state.online:
            return f"It is offline ({self._state.reason}): nothing was done 网关离线，未执行"
        return (
            "It is online: is its version older than commands, or may it not read its topic `command` (ACL)? 网关在线"
        )


async def _pause(seconds: float) -> None:
    """Wait; the deadline above ends it early."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)
