"""Reads single streams of the ledger, over a connection of its own that is opened when it is first needed."""

import asyncio
from collections.abc import Sequence
from typing import cast

from app.database.binary import take_columns
from app.database.connection import Db, connect
from app.ledger.writer import LOAD
from projections.columns import uuids


class StreamReader:
    """One query at a time; a broken connection is replaced by the next query."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._connection: Db | None = None
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def load(self, streams: Sequence[str]) -> list[bytes]:
        """All events of these streams as they are stored, in the order of their positions."""
        async with self._turn:
            if self._connection is None or self._connection.closed:
                self._connection = await connect(self._url)
                take_columns(self._connection)
            cursor = self._connection.cursor(binary=True)
            await cursor.execute(LOAD.encode(), [uuids(streams), uuids([])], prepare=True)
            rows = cast("list[tuple[int, bytes, None]]", await cursor.fetchall())
        return [raw for _, raw, _ in sorted(rows)]
