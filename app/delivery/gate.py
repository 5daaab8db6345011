"""How hard a destination may be pressed: a bounded number at once, and nothing while it asks to wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

PROBE_SECONDS = 60.0
PAUSE_SECONDS_MIN = 1.0

AT_ONCE = 64
RECONNECT_SECONDS = 60.0
RECONNECT_SECONDS_MAX = 3600.0
IMPORTED_AT_ONCE = 8


class Gate:
    """The way to one destination (a scope of Kommo, a messenger).

    While paused nothing passes; then one passes as a probe, and the others once that has succeeded. What was
    on its way when the pause began says nothing about it.
    """

    def __init__(self, *, pauses: bool = True) -> None:
        """`pauses`: whether to pause when asked to wait, as nobody else sees to that."""
        self.pauses = pauses
        self._places = asyncio.Semaphore(AT_ONCE)
        self._imported = asyncio.Semaphore(IMPORTED_AT_ONCE)
        self._until = 0.0
        self._closed = False
        self._probing = False
        self._changed = asyncio.Event()
        self.reconnect = asyncio.Lock()
        self.reconnected_at = float("-inf")
        self.reconnect_rest = 0.0
        self.reconnect_refused = ""

    @property
    def reconnectable(self) -> bool:
        """Whether connecting again may be tried: once a minute, and seldom (an hour) if it is no use."""
        rest = max(self.reconnect_rest, RECONNECT_SECONDS)
        return asyncio.get_running_loop().time() - self.reconnected_at >= rest

    def reconnected(self, refused: str = "") -> None:
        """The other side was asked to connect again, or has `refused`."""
        self.reconnected_at = asyncio.get_running_loop().time()
        self.reconnect_rest = min(max(self.reconnect_rest * 2, RECONNECT_SECONDS), RECONNECT_SECONDS_MAX)
        self.reconnect_refused = refused

    def hasten(self) -> None:
        """End a pause: the next passes as the probe."""
        self._until = 0.0
        self._changed.set()

    def pause(self, seconds: float) -> None:
        """Let nothing pass for so long, then a probe."""
        self._until = max(self._until, asyncio.get_running_loop().time() + seconds)
        self._closed = True

    def open(self) -> None:
        """A probe succeeded."""
        self._closed = False
        self._until = 0.0
        self._changed.set()

    @contextlib.asynccontextmanager
    async def passing(self, *, live: bool = True) -> AsyncIterator[bool]:
        """Wait until one may pass, and hold a place meanwhile; gives whether it passes as the probe.

        What is not `live` (imported) gets a share of the places, so that there is always one for what is.
        """
        probe = False
        try:
            while True:
                probe = probe or await self._wait()
                async with contextlib.nullcontext() if live else self._imported, self._places:
                    if probe or not self._closed:  # It may have been paused while we waited for a place.
                        yield probe
                        return
        finally:
            if probe:
                self._probing = False
                self._changed.set()

    async def _wait(self) -> bool:
        loop = asyncio.get_running_loop()
        while self._closed:
            rest = self._until - loop.time()
            if rest <= 0 and not self._probing:
                self._probing = True
                return True
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), rest if rest > 0 else None)
        return False
