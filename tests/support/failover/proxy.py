"""A way to the database that can be lost: nothing comes through any more, and nobody is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from psycopg.conninfo import conninfo_to_dict, make_conninfo

CHUNK_BYTES = 65_536


class Way:
    """A port that leads to the database of `url`; `close` and `open` also concern later connections."""

    def __init__(self, url: str) -> None:
        self.url = ""
        self._target = conninfo_to_dict(url)
        self._passes = asyncio.Event()
        self._passes.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Lose everything from now on."""
        self._passes.clear()

    def open(self) -> None:
        """Let everything through again, also what was held back."""
        self._passes.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = f"{self._target['host']}/.s.PGSQL.{self._target.get('port', 5432)}"
        there, back = await asyncio.open_unix_connection(path)
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                await self._passes.wait()
                sink.write(data)
                await sink.drain()
        await self._passes.wait()
        sink.close()

    async def end(self) -> None:
        """End all connections."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Way"]:
        """Serve; `url` is then that of the database by this way."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = make_conninfo(**{**self._target, "host": "127.0.0.1", "port": port})
        try:
            yield self
        finally:
            server.close()
            await self.end()
