"""Time and ids as they enter from outside: the only module that reads the clock or draws random numbers."""

import asyncio
import os
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from domain.commands import Stamp
from domain.ids import VARIANTS, Scope

SECONDS_KEPT = 1024  # chosen: a page of history has about as many different seconds
MOMENTS_KEPT = 16  # chosen: the commands of a batch share a few milliseconds
IDS_AT_ONCE = 512  # chosen: about one batch, in one system call of 4.6 KB


def now_ms() -> int:
    """Returns the time in unix milliseconds."""
    return time.time_ns() // 1_000_000


def text(ms: int) -> str:
    """Returns unix milliseconds as `2026-11-22T08:00:00.000Z`; seconds seen lately come from a cache."""
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
    """Returns a moment with a zone in unix milliseconds, truncated, not rounded."""
    return int(moment.timestamp() * 1000 + 0.0005)


def read(moment: str) -> int:
    """Returns a time of the form that `text` gives in unix milliseconds."""
    return milliseconds(datetime.fromisoformat(moment))


def new_id(ms: int) -> str:
    """Returns an RFC 9562 UUIDv7 (36 characters) whose last byte is 0: the base of a command's event ids."""
    if not _random_parts:
        _random_parts.extend(_draw())
    return _moment(ms) + _random_parts.pop()


@lru_cache(maxsize=MOMENTS_KEPT)
def _moment(ms: int) -> str:
    stamp = f"{ms:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-7"


_random_parts: list[str] = []


def _draw() -> list[str]:
    """Returns the random parts of many ids at once, because the system call is most of the cost of one."""
    digits = os.urandom(9 * IDS_AT_ONCE).hex()
    parts = (digits[first : first + 18] for first in range(0, len(digits), 18))
    return [f"{each[:3]}-{VARIANTS[each[3]]}{each[4:7]}-{each[7:17]}00" for each in parts]


def stamp(scope: Scope, lane: str, by: str, *, now: int, at: int | None = None) -> Stamp:
    """Returns the fields that every command has; `now` and `at` (default: `now`) are unix milliseconds."""
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
