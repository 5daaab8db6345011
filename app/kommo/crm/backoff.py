"""Per-key exponential backoff, in memory.

A key is ready until `start` puts it off, for `seconds` the first time. A start that follows another one
doubles the wait, up to GROWTH_MAX times the first; it follows unless the key has been ready for as long as
the longest wait. `clear` makes a key ready and forgets its waits. Processes share nothing: each one learns
from its own failures, so the calls are bounded per process.
"""

from time import monotonic
from typing import Generic, TypeVar

from msgspec import Struct

GROWTH_MAX = 60  # Chosen: from a second to a minute, as delivery's retries.
Reason = TypeVar("Reason")


class _Wait(Struct, Generic[Reason]):
    """The end of a wait on this process's clock, its length without what Kommo asked for, and its reason."""

    until: float
    seconds: float
    reason: Reason


class Backoff(Generic[Reason]):
    """Waits by key; the first lasts `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: dict[str, _Wait[Reason]] = {}

    def reason(self, key: str) -> "Reason | None":
        """Returns the reason of the key's wait; None if the key is ready."""
        wait = self._waits.get(key)
        return wait.reason if wait and monotonic() < wait.until else None

    def start(self, key: str, reason: Reason, asked_seconds: float = 0.0) -> None:
        """Put the key off, for at least `asked_seconds`."""
        now, longest = monotonic(), self._seconds * GROWTH_MAX
        last = self._waits.get(key)
        follows = last is not None and now < last.until + longest
        seconds = min(last.seconds * 2, longest) if last and follows else self._seconds
        self._waits[key] = _Wait(now + max(seconds, asked_seconds), seconds, reason)

    def clear(self, key: str) -> None:
        """Make the key ready and forget its waits."""
        self._waits.pop(key, None)
