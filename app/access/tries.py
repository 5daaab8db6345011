"""Wrong keys and wrong signatures are few: so many a minute from one source, counted in this process.

From the eleventh on they are answered late, from the 31st on with 429. A right key or signature always
passes, because behind a proxy that is not trusted all clients are one source, and Kommo sends a hook only
once. Only the login form, which people use, is closed to a source after ten wrong keys.
"""

import asyncio
import math
import time
from collections import Counter, deque
from typing import Literal, TypeAlias

from app.access.proxies import source_of

Kind: TypeAlias = Literal["login", "key", "signature"]
# Chosen: a person mistypes a few times, and a program that is set up wrong tries several messages.
TRIES_MAX: dict[Kind, int] = {"login": 10, "key": 30, "signature": 30}
PROMPT_MAX = 10  # Chosen: so many are answered without delay.
TRIES_SECONDS = 60.0
SOURCES_MAX = 1000  # Chosen: memory stays bounded however many sources try.
DELAY_SECONDS = 0.5  # Chosen: a person does not notice, a guessing program does.
DELAYED_MAX = 20  # Chosen: so many answers of one source are held back at a time, the rest are sent at once.


class Tries:
    """The latest wrong tries of each kind, by their source."""

    def __init__(self) -> None:
        self._failed: dict[tuple[Kind, str], deque[float]] = {}
        self._delayed: Counter[str] = Counter()

    @property
    def sources(self) -> int:
        """How many sources, of each kind, are remembered."""
        return len(self._failed)

    def wait_seconds(self, kind: Kind, address: str) -> int:
        """Seconds until this address may be wrong again; 0 if it may now."""
        failed = self._recent(kind, address)
        if len(failed) < TRIES_MAX[kind]:
            return 0
        return max(1, math.ceil(failed[0] + TRIES_SECONDS - time.monotonic()))

    def failed(self, kind: Kind, address: str) -> None:
        """Count a wrong one; beyond the limit the source that failed longest ago is forgotten."""
        key = (kind, source_of(address))
        failed = self._failed.pop(key, None) or deque(maxlen=TRIES_MAX[kind])
        failed.append(time.monotonic())
        self._failed[key] = failed
        if len(self._failed) > SOURCES_MAX:
            del self._failed[next(iter(self._failed))]

    def _recent(self, kind: Kind, address: str) -> deque[float]:
        """When the tries of the last minute were."""
        failed: deque[float] = self._failed.get((kind, source_of(address)), deque())
        while failed and failed[0] + TRIES_SECONDS <= time.monotonic():
            failed.popleft()
        return failed

    async def slow_down(self, kind: Kind, address: str) -> int:
        """Count a wrong one, return late if there were many; returns what `wait_seconds` was before."""
        seconds, source = self.wait_seconds(kind, address), source_of(address)
        if not seconds:
            self.failed(kind, address)
        if len(self._recent(kind, address)) <= PROMPT_MAX:
            return seconds
        if self._delayed[source] < DELAYED_MAX:
            self._delayed[source] += 1
            try:
                await asyncio.sleep(DELAY_SECONDS)
            finally:
                self._delayed[source] -= 1
                if not self._delayed[source]:
                    del self._delayed[source]
        return seconds
