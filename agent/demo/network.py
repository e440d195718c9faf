"""The network between the gateway and the county's broker: a TCP relay that can be cut and mended.

agent ──▶ relay ──▶ broker        up
agent ──▶ relay ┄ ┄ broker        cut: first what is on the way vanishes, then connections break and none is taken
"""

import asyncio
import contextlib
import socket
from typing import Final

_HOST: Final = "127.0.0.1"
# So long the relay swallows everything without a word, as a dying radio link does, before connections break.
BLACK_HOLE_S: Final = 0.5
_CHUNK_BYTES: Final = 65536


class Network:
    """The relay. `port` is the gateway's side."""

    def __init__(self, *, broker_port: int) -> None:
        self.is_up = False
        self.bytes_lost = 0
        self._broker_port = broker_port
        self._server: asyncio.Server | None = None
        self._swallow = False
        self._links: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        # Bound and never listening: the port stays ours while it is cut, and whoever knocks is refused.
        self._claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._claim.bind((_HOST, 0))
        self.port: int = self._claim.getsockname()[1]

    async def mend(self) -> None:
        """Take connections."""
        self._swallow = False
        self._server = await asyncio.start_server(self._take, host=_HOST, port=self.port, reuse_address=True)
        self.is_up = True

    async def cut(self) -> None:
        """Lose what is on the way, then break all connections and refuse new ones."""
        self.is_up = False
        self._swallow = True
        if self._server:
            self._server.close()
            self._server = None
        await asyncio.sleep(BLACK_HOLE_S)
        for writer in tuple(self._links):
            writer.transport.abort()

    async def close(self) -> None:
        """End it all."""
        if self._server:
            self._server.close()
        for writer in self._links:
            writer.transport.abort()
        self._claim.close()
        await asyncio.gather(*self._relays)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.create_task(self._relay(reader, writer), name="relay")
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        ends = {writer}
        self._links.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(_HOST, self._broker_port)
            ends.add(far_writer)
            self._links.add(far_writer)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            pass  # no broker: the gateway sees its connection break, and tells
        finally:
            self._links -= ends
            for end in ends:
                end.transport.abort()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Carry bytes until either side ends; then the other side is ended too."""
        with contextlib.suppress(ConnectionError):
            while data := await source.read(_CHUNK_BYTES):
                if self._swallow:
                    self.bytes_lost += len(data)
                else:
                    target.write(data)
                    await target.drain()
        target.close()
