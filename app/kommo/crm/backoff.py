"""Who was refused asks again later, and each time later still: what is let rest, in this process."""

from time import monotonic
from typing import Generic, TypeVar

from msgspec import Struct

GROWTH_MAX = 60
Why = TypeVar("Why")


class _Rest(Struct, Generic[Why]):
    """Until when, on this process's clock; how long that is without what was asked for; and why."""

    until: float
    seconds: float
    why: Why


class Rests(Generic[Why]):
    """Rests by key: the first one lasts `seconds`, each that follows on it twice as long, up to 60 times.

    One that begins when the last has been over for as long as the longest one does not follow on it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rests: dict[str, _Rest[Why]] = {}

    def why(self, key: str) -> "Why | None":
        """Why it rests; None if it does not."""
        rest = self._rests.get(key)
        return rest.why if rest and monotonic() < rest.until else None

    def begin(self, key: str, why: Why, asked_seconds: float = 0.0) -> None:
        """Let it rest, as long as was asked for at least."""
        now, longest = monotonic(), self._seconds * GROWTH_MAX
        last = self._rests.get(key)
        follows = last is not None and now < last.until + longest
        seconds = min(last.seconds * 2, longest) if last and follows else self._seconds
        self._rests[key] = _Rest(now + max(seconds, asked_seconds), seconds, why)

    def end(self, key: str) -> None:
        """It is well."""
        self._rests.pop(key, None)
