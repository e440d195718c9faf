"""A TCP proxy in the test's own event loop: the bad network between a client and a broker."""

import asyncio
import contextlib

_CONNECT = 0x10
_LEVEL_AT = 8  # fixed header of 2 bytes, 00 04 "MQTT", level
_MQTT5 = 5
_SUBACK, _NOT_AUTHORIZED = b"\x90", b"\x87"
_CONNACK_VERSION = bytes((0x20, 2, 0, 1))


class Proxy:
    """Forwards to a port of this machine, until told otherwise.

    `swallows` = True is a black hole: connections stand, bytes vanish. `at_mqtt5` says how a broker that only speaks
    3.1.1 behaves to MQTT 5: "answers" (as the standard demands), "closes" or "says nothing". `refuses_subscriptions`
    turns every grant into a refusal, which mosquitto 2.0 cannot be configured to send.
    """

    def __init__(self, target, *, at_mqtt5=None):
        self.port = None
        self.swallows = False
        self.refuses_subscriptions = False
        self.connections = 0
        self._target = target
        self._at_mqtt5 = at_mqtt5
        self._tasks = set()
        self._writers = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self):
        """Cut every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader, writer):
        self.connections += 1
        self._tasks.add(asyncio.current_task())
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.read(4096)
            if self._at_mqtt5 and head[:1] == bytes([_CONNECT]) and head[_LEVEL_AT] == _MQTT5:
                await self._refuse(reader, writer)
                return
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(upstream)
            if not self.swallows:
                upstream.write(head)
            await asyncio.gather(self._pump(reader, upstream), self._pump(upstream_reader, writer))
        writer.close()

    async def _refuse(self, reader, writer):
        if self._at_mqtt5 == "answers":
            writer.write(_CONNACK_VERSION)
        if self._at_mqtt5 == "says nothing":
            await reader.read()
        writer.close()

    async def _pump(self, reader, writer):
        while data := await reader.read(65536):
            if self.refuses_subscriptions and data[:1] == _SUBACK:
                data = data[:-1] + _NOT_AUTHORIZED
            if not self.swallows:
                writer.write(data)
        writer.close()
