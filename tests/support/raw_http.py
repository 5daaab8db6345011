"""Bytes on a socket, for clients that no HTTP library would be."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import msgspec

from app.http.webhooks.front import App
from app.service.connections import Limits
from app.service.web import Server

SECONDS = 5.0


class Got(NamedTuple):
    """The statuses of the answers, all bytes, and after how many seconds the other side closed."""

    statuses: list[int]
    text: str
    seconds: float


class Raw:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Write the pieces, each on its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(pause)

    async def rest(self, seconds: float = SECONDS) -> Got:
        """All that comes until the other side closes; raises TimeoutError if it does not."""
        start, found = asyncio.get_running_loop().time(), b""
        async with asyncio.timeout(seconds):
            with suppress(ConnectionResetError, BrokenPipeError):
                while piece := await self.reader.read(65536):
                    found += piece
        text = found.decode("latin-1")
        statuses = [int(status) for status in re.findall(r"HTTP/1\.1 (\d{3}) ", text)]
        return Got(statuses, text, asyncio.get_running_loop().time() - start)

    async def answer(self, seconds: float = SECONDS) -> Got:
        """One answer that has a length, on a connection that stays open."""
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
            length = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
            body = await self.reader.readexactly(length)
        return Got([int(head.split(b" ")[1])], (head + body).decode("latin-1"), 0.0)

    async def closed(self, seconds: float = SECONDS) -> bool:
        """Whether the other side closes within so many seconds."""
        try:
            await self.rest(seconds)
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def raw(port: int) -> AsyncIterator[Raw]:
    """A connection to a port of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def listening(app: App, **limits: float) -> AsyncIterator[tuple[int, Server]]:
    """An application served with these limits: the port, and the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app, msgspec.convert(limits, Limits))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.listening.wait()
    yield listener.getsockname()[1], server
    server.should_exit = True
    await serving
