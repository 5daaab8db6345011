"""Places at a destination that accounts share: whoever waits gets one in turn, and none takes them all."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

# Our client holds 64 connections to one host at most.
PLACES = 64
# Chosen: an eighth stays free for an account that has none, so that it need not wait for a slow answer.
KEPT_FREE = 8


class Places:
    """Shares PLACES among callers, by name; a caller that is alone may hold all but KEPT_FREE of them."""

    def __init__(self, places: int = PLACES, kept_free: int = KEPT_FREE) -> None:
        self._free = places
        self._most = places - kept_free
        self._held: dict[str, int] = {}
        self._ring: deque[str] = deque()  # the callers that wait, in the order of their turns
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, caller: str) -> AsyncIterator[None]:
        """Wait for a place and hold it meanwhile."""
        if self._free and caller not in self._waiting and self._held.get(caller, 0) < self._most:
            self._take(caller)
        else:
            await self._wait(caller)
        try:
            yield
        finally:
            self._give_back(caller)

    def _take(self, caller: str) -> None:
        self._free -= 1
        self._held[caller] = self._held.get(caller, 0) + 1

    def _give_back(self, caller: str) -> None:
        self._free += 1
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._hand_out()

    async def _wait(self, caller: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if caller not in self._waiting:
            self._waiting[caller] = deque()
            self._ring.append(caller)
        self._waiting[caller].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(caller)  # The turn came in the moment of the cancellation.
            raise

    def _hand_out(self) -> None:
        """Give what is free to those who wait, one each in turn."""
        for _ in range(len(self._ring)):
            if not self._free:
                return
            caller = self._ring.popleft()
            turns = self._waiting[caller]
            while turns and turns[0].done():  # Cancelled.
                turns.popleft()
            if turns and self._held.get(caller, 0) < self._most:
                turns.popleft().set_result(None)
                self._take(caller)
            if turns:
                self._ring.append(caller)
            else:
                del self._waiting[caller]
