"""Every open page learns of changes; a page that falls behind is told to reload its view."""

import asyncio
from collections.abc import AsyncIterator

import msgspec

PAGES_MAX = 64
QUEUE_MAX = 256
PING_SECONDS = 15.0


class Feed:
    """Server-sent events for the pages of both sides."""

    def __init__(self) -> None:
        self._queues: dict[asyncio.Queue[bytes | None], str] = {}
        self._closed = False

    def publish(self, side: str, event: str, **data: object) -> None:
        """Notify the open pages of one side (`manager` or `customer`)."""
        if not self._queues:
            return
        line = _event(event, data)
        for queue, listens in self._queues.items():
            if listens != side:
                continue
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                line = _event("resync", {})
            queue.put_nowait(line)

    async def follow(self, side: str) -> AsyncIterator[bytes]:
        """The events of one side until the page or the sandbox goes away."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_MAX + 1)
        if len(self._queues) >= PAGES_MAX or self._closed:
            return
        self._queues[queue] = side
        try:
            yield b"retry: 1000\n\n"
            while not self._closed:
                try:
                    line = await asyncio.wait_for(queue.get(), PING_SECONDS)
                except TimeoutError:
                    line = b": still here\n\n"
                if line is None:
                    return
                yield line
        finally:
            del self._queues[queue]

    def close(self) -> None:
        """End every open stream."""
        self._closed = True
        for queue in self._queues:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)


def _event(event: str, data: dict[str, object]) -> bytes:
    return b"event: " + event.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
