"""A TCP proxy that can break the way between two programs.

pass     everything goes through
stall    connections are accepted and nothing is forwarded; what waited goes through when `passing` again
cut      connections are reset, new ones too
drop     half-open: what is sent is lost, in both directions, also that a connection has ended; connections of
         that time stay so for ever, as behind a firewall that has forgotten them, later ones pass
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal

Way = Literal["pass", "stall", "cut", "drop"]
CHUNK_BYTES = 65_536
NO_LINGER = struct.pack("ii", 1, 0)  # A close sends RST.


class Proxy:
    """Forwards a port of its own to `target`."""

    def __init__(self, target: int, port: int = 0) -> None:
        self.target = target
        self.port = port
        self._way: Way = "pass"
        self._open = asyncio.Event()
        self._open.set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def turn(self, way: Way) -> None:
        """Change what becomes of connections, present ones included."""
        self._way = way
        if way == "stall":
            self._open.clear()
        else:
            self._open.set()
        for link in tuple(self._links):
            if way == "cut":
                link.reset()
            elif way == "drop":
                link.lost = True

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until both sides have ended it."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """End all connections."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            if self._way == "cut":
                link.reset()
                return
            await self._open.wait()
            if self._is_lossy:
                await _swallow(reader)
                return
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            link.writers.append(back)
            link.lost = self._is_lossy
            await asyncio.gather(self._pump(link, reader, back), self._pump(link, there, writer))
        except OSError:
            link.reset()
        finally:
            self._links.discard(link)
            for each in link.writers:
                each.close()

    @property
    def _is_lossy(self) -> bool:
        return self._way == "drop"

    async def _pump(self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._open.wait()
            if not link.lost:
                writer.write(data)
                await writer.drain()
        await self._open.wait()
        if not link.lost:
            writer.close()


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(CHUNK_BYTES):
        pass


class _Link:
    """Both ends of a connection; `lost`: nothing passes any more."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.lost = False

    def reset(self) -> None:
        for writer in self.writers:
            if plug := writer.get_extra_info("socket"):
                with contextlib.suppress(OSError):
                    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()


@contextlib.asynccontextmanager
async def listening(proxy: Proxy) -> AsyncIterator[None]:
    """Serve a proxy; its port is then known."""
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", proxy.port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        await proxy.end()
