"""The demo's broker, a process of its own: amqtt on a free port of this machine. It prints the port once it listens.

Run as `python -m agent.demo.broker`. amqtt speaks MQTT 3.1.1 only, and to a client that offers MQTT 5 it says nothing
at all (0.12.1: it takes the properties for a client id and waits for bytes that never come; the client gives up after
10 s). So the door is ours: it says what MQTT 3.1.1 demands of a server, "unacceptable protocol version", and lets in
only what amqtt understands. A real county runs a real broker.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from typing import Final

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker

_CONNECT: Final = 0x10
_NAME_AND_LEVEL_BYTES: Final = 7  # 00 04 "MQTT" and the protocol level
_LEVEL_3_1_1: Final = 4
_REFUSAL: Final = bytes((0x20, 2, 0, 1))  # CONNACK, unacceptable protocol version: [MQTT-3.1.2-2]
_LISTENER: Final = "default"


class _Reader(StreamReaderAdapter):
    """Gives back what was read at the door, then what follows."""

    def __init__(self, reader: asyncio.StreamReader, *, head: bytes) -> None:
        super().__init__(reader)
        self._head = head

    async def read(self, n: int = -1) -> bytes:
        """Return exactly `n` bytes; with -1 whatever is there."""
        if not self._head:
            return await super().read(n)
        taken, self._head = (self._head, b"") if n < 0 else (self._head[:n], self._head[n:])
        return taken + (await super().read(n - len(taken)) if len(taken) < n else b"")


class _Door:
    """Takes connections and shows MQTT 5 the way out."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                head = await _head(reader)
                if head[-1] > _LEVEL_3_1_1:
                    writer.write(_REFUSAL)
                    await writer.drain()
                else:
                    await self._broker.external_connected(
                        _Reader(reader, head=head), StreamWriterAdapter(writer), _LISTENER
                    )
        except asyncio.CancelledError:
            pass  # the broker stops; Python 3.11 would print a traceback for every connection
        finally:
            writer.close()


async def serve() -> None:
    """Listen until SIGTERM; print the port as one line as soon as clients may come."""
    broker = Broker(
        {
            "listeners": {_LISTENER: {"type": "external"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    server = await asyncio.start_server(_Door(broker).open, host="127.0.0.1", port=0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    server.close()
    await broker.shutdown()


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Return a CONNECT packet up to its protocol level. Raises IncompleteReadError where there is none."""
    head = await reader.readexactly(2)
    while head[-1] & 0x80 and len(head) < 5:
        head += await reader.readexactly(1)
    if head[0] != _CONNECT:
        raise asyncio.IncompleteReadError(head, None)
    return head + await reader.readexactly(_NAME_AND_LEVEL_BYTES)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(serve())
