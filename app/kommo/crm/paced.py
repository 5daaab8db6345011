"""Work by key that strangers can ask for: one at a time, and no more often than every so many seconds."""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any


class Paced:
    """Runs work; whoever asks while it waits or runs shares its outcome.

    The work goes on when those who asked have gone. `close` cancels what is left.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._begun: dict[str, float] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have the work done, and raise what it raises; waits for its turn."""
        if (task := self._tasks.get(key)) is None:
            task = self._tasks[key] = asyncio.create_task(self._in_turn(key, work), name="paced")
            task.add_done_callback(lambda ended: self._ended(key, ended))
        await asyncio.shield(task)

    def forget(self, key: str) -> None:
        """Let the next work of a key begin at once."""
        self._begun.pop(key, None)

    async def close(self) -> None:
        """Cancel what has not ended."""
        if tasks := list(self._tasks.values()):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _in_turn(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await asyncio.sleep(self._begun.get(key, -self._seconds) + self._seconds - monotonic())
        self._begun[key] = monotonic()
        await work()

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # Retrieved, because those who asked may have gone.
