"""Pause per destination, and how many pushes wait behind it for their call.

While a destination asks to wait, nothing passes; then a single probe does.
A gate is open, paused or probing. It is open until `pause`; while paused nothing passes. When the pause is
over, one push passes as the probe and the others keep waiting; `open` opens the gate for all after the probe
has succeeded, another `pause` begins a new pause, and a probe that ends without either (it was cut off, or
its answer says nothing) leaves its turn to the next. A push that was on its way when the pause began is no
probe, so its success opens nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from app.clock import Clock
from app.places import WINDOW_MAX

# Those past the gate wait for the account's budget and for a place among the calls in flight (`app.places`),
# which adapts to what the destination bears; more than it may ever be would only crowd there.
AT_ONCE = WINDOW_MAX
# Chosen: an eighth, so that an import leaves room for what people wait for.
IMPORTED_AT_ONCE = 8


class Gate:
    """The way to one destination: a messenger, or the scope of a channel at Kommo."""

    def __init__(self, clock: Clock, *, pauses: bool = True) -> None:
        """`pauses`: whether a request to wait pauses the gate; false if something else sees to that."""
        self.pauses = pauses
        self._clock = clock
        self._places = asyncio.Semaphore(AT_ONCE)
        self._imported = asyncio.Semaphore(IMPORTED_AT_ONCE)
        self._until = 0.0
        self._closed = False
        self._probing = False
        self._changed = asyncio.Event()

    def hasten(self) -> None:
        """End a pause now: the next push passes as the probe."""
        self._until = 0.0
        self._changed.set()

    def pause(self, seconds: float) -> None:
        """Let nothing pass for so long, then a probe."""
        self._until = max(self._until, self._clock.time() + seconds)
        self._closed = True

    def open(self) -> None:
        """A probe has succeeded: let all pass."""
        self._closed = False
        self._until = 0.0
        self._changed.set()

    @contextlib.asynccontextmanager
    async def passing(self, *, live: bool = True) -> AsyncIterator[bool]:
        """Wait for a turn and hold a place meanwhile; yields whether it passes as the probe.

        What is not `live` (imported) gets a share of the places only, so that a live push finds one.
        """
        probe = False
        try:
            while True:
                probe = probe or await self._turn()
                async with contextlib.nullcontext() if live else self._imported, self._places:
                    if probe or not self._closed:  # A pause may have begun while it waited for a place.
                        yield probe
                        return
        finally:
            if probe:
                self._probing = False
                self._changed.set()

    async def _turn(self) -> bool:
        """Wait until the gate is open, or its pause over and no probe under way; returns whether to probe."""
        while self._closed:
            rest = self._until - self._clock.time()
            if rest <= 0 and not self._probing:
                self._probing = True
                return True
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), rest if rest > 0 else None)
        return False
