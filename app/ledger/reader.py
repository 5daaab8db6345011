"""Reads single streams of the ledger, over a connection of its own that is opened when it is first needed."""

import asyncio
from collections.abc import Sequence
from typing import cast

from app.database.binary import take_columns
from app.database.connection import Db, connect
from app.database.packed import unpack
from app.ledger.streams import LongStreams, fold, read
from domain.events import AnyEvent, decode
from domain.state import State

SENDS = """SELECT state FROM ledger.stored_events WHERE originator_id = %b::uuid
 AND topic IN ('message.sent', 'message.mirrored') ORDER BY originator_version"""


class StreamReader:
    """One query at a time; a broken connection is replaced by the next query."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._connection: Db | None = None
        self._turn = asyncio.Lock()
        self._long = LongStreams()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def states(self, streams: Sequence[str]) -> dict[str, State]:
        """The states of those of the streams that have events."""
        async with self._turn:
            db = await self._open()
            kept = ((stream, self._long.get(stream)) for stream in streams)
            found: dict[str, State] = {stream: state for stream, state in kept if state is not None}
            known = {stream: state.version for stream, state in found.items()}
            async for rows in read(db, list(streams), [], known):
                for position, raw, _ in rows:
                    event = decode(unpack(raw or b""))
                    found[event.stream] = fold(found.get(event.stream), position, event)
        for stream, state in found.items():
            self._long.keep(stream, state)
        return found

    async def sends(self, stream: str) -> list[AnyEvent]:
        """The events of a message's stream that send the message or its mirror, oldest first."""
        async with self._turn:
            cursor = (await self._open()).cursor(binary=True)
            await cursor.execute(SENDS.encode(), [stream], prepare=True)
            rows = cast("list[tuple[bytes]]", await cursor.fetchall())
        return [decode(unpack(raw)) for (raw,) in rows]

    async def _open(self) -> Db:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._url)
            self._long = LongStreams()  # A database that has taken over may lack the last events.
            take_columns(self._connection)
        return self._connection
