"""The lines of a file with their numbers, in pages, so that no more than some of them are in memory."""

import asyncio
from collections.abc import AsyncIterator
from typing import IO

LINE_BYTES_MAX = 256 * 1024
CHUNK_BYTES = 256 * 1024
Line = tuple[int, bytes | None]


async def pages(spool: IO[bytes]) -> AsyncIterator[list[Line]]:
    """The file's lines with their numbers, some at a time; one over the limit is None."""
    await asyncio.to_thread(spool.seek, 0)
    number, rest, long = 0, b"", False
    while chunk := await asyncio.to_thread(spool.read, CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        page: list[Line] = []
        for line in whole:
            number += 1
            page.append((number, None if long or len(line) > LINE_BYTES_MAX else line))
            long = False
        if len(rest) > LINE_BYTES_MAX:
            rest, long = b"", True
        yield page
    if rest or long:
        yield [(number + 1, None if long else rest)]
