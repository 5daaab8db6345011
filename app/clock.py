"""Time and ids as they enter from the outside world: the only place that asks the clock or the dice."""

import asyncio
import os
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from domain.commands import Stamp
from domain.ids import VARIANTS, Scope

SECONDS_KEPT = 1024
MOMENTS_KEPT = 16
IDS_AT_ONCE = 512


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def text(ms: int) -> str:
    """Unix milliseconds as `2026-11-22T08:00:00.000Z`; only seconds not seen lately are formatted anew."""
    second, rest = divmod(ms, 1000)
    return _second(second) + _THOUSANDTHS[rest]


_THOUSANDTHS = [f".{rest:03d}Z" for rest in range(1000)]


@lru_cache(maxsize=SECONDS_KEPT)
def _second(second: int) -> str:
    day, rest = divmod(second, 86_400)
    minute, rest = divmod(rest, 60)
    return f"{_day(day)}T{minute // 60:02d}:{minute % 60:02d}:{rest:02d}"


@lru_cache(maxsize=SECONDS_KEPT)
def _day(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


def milliseconds(moment: datetime) -> int:
    """A moment with a zone as unix milliseconds, cut, not rounded."""
    return int(moment.timestamp() * 1000 + 0.0005)


def new_id(ms: int) -> str:
    """RFC 9562 UUIDv7 as 36 characters whose last byte is 0: the base of a command's event ids."""
    if not _dice:
        _dice.extend(_thrown())
    return _moment(ms) + _dice.pop()


@lru_cache(maxsize=MOMENTS_KEPT)
def _moment(ms: int) -> str:
    stamp = f"{ms:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-7"


_dice: list[str] = []


def _thrown() -> list[str]:
    """Many ids' random parts at once: the system call is most of what one costs."""
    thrown = os.urandom(9 * IDS_AT_ONCE).hex()
    dice = (thrown[first : first + 18] for first in range(0, len(thrown), 18))
    return [f"{each[:3]}-{VARIANTS[each[3]]}{each[4:7]}-{each[7:17]}00" for each in dice]


def stamp(scope: Scope, lane: str, by: str, *, now: int, at: int | None = None) -> Stamp:
    """What a command has in common with all others; `now` and `at` (None: the same) are unix milliseconds."""
    recorded = text(now)
    return {
        "scope": scope,
        "id": new_id(now),
        "lane": lane,
        "at": recorded if at is None else text(at),
        "now": recorded,
        "now_ms": now,
        "by": by,
    }


class Clock(Protocol):
    """Time as a value: what waits and retries is handed a clock, so that a simulation can hand it another.

    `time` and `sleep` belong to the running event loop, so that asyncio's own timeouts agree with them.
    """

    def time(self) -> float:
        """Seconds that only grow, to measure spans with."""

    def now_ms(self) -> int:
        """Unix milliseconds."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class LoopClock:
    """The clock of the running event loop, and the machine's time of day."""

    def time(self) -> float:
        """Seconds of the event loop's monotonic clock."""
        return asyncio.get_running_loop().time()

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return now_ms()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
