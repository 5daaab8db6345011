"""An event loop on a virtual clock: when nothing is left to do, its time jumps to the next timer."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Returned = TypeVar("Returned")
START_SECONDS = 1_000.0


class Stuck(Exception):
    """Every task waits for another one: nothing will ever happen again."""


class _Jumping(selectors.SelectSelector):
    """Never blocks; it lets the time pass that it would have blocked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = START_SECONDS

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        self.seconds += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """All that asyncio times (`sleep`, `timeout`, `wait_for`) passes at once."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.seconds


def run(main: Callable[[], Coroutine[Any, Any, Returned]]) -> Returned:
    """Run a coroutine to its end on a virtual clock. Raises Stuck."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
