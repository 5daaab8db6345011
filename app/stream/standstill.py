"""While the relay stands still, everybody is told why and since when; once it goes on, that it does."""

import logging
import time

from msgspec import Struct

from app import clock

LOG = logging.getLogger("chatledger.relay")
AGAIN_SECONDS = 60.0


class Standing(Struct, frozen=True):
    """Since when the relay stands still, and why."""

    since: str
    because: str


class Standstill:
    """Whether the relay stands still, as `now` says.

    The log has its beginning, its end, and in between each new reason, and the present one once a minute.
    """

    def __init__(self, again_seconds: float = AGAIN_SECONDS) -> None:
        """`again_seconds` is how often the log has it while it lasts."""
        self.now: Standing | None = None
        self._again_seconds = again_seconds
        self._began = 0.0
        self._told = 0.0
        self._reasons: set[str] = set()

    @property
    def seconds(self) -> float:
        """How long it lasts, 0 while the relay goes."""
        return time.monotonic() - self._began if self.now else 0.0

    def because(self, reason: str, position: int) -> None:
        """The relay could not go on after a position; called at every failed try."""
        moment = time.monotonic()
        if self.now is None:
            self._began = self._told = moment
            LOG.warning("relay stopped after position %d and tries again: %s", position, reason)
        elif moment - self._told >= self._again_seconds or reason not in self._reasons:
            self._told = moment
            LOG.warning("relay stands still after position %d for %.0f s: %s", position, self.seconds, reason)
        self._reasons.add(reason)
        self.now = Standing(self.now.since if self.now else clock.text(clock.now_ms()), reason)

    def over(self, position: int) -> None:
        """What could be published has been, up to a position."""
        if self.now:
            LOG.warning("relay goes on after %.0f s, at position %d", self.seconds, position)
        self.now = None
        self._reasons.clear()
