"""Rate limit per account: over it 429, and whoever goes on regardless is blocked for a while."""

import time
from collections import defaultdict, deque

REFUSALS_MAX = 30  # 429s within the window, after which the address is blocked
REFUSALS_SECONDS = 10.0
BLOCK_SECONDS = 10.0


class Rate:
    """Each account's requests of the last second; 0 per second means no limit."""

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        self.clear()

    def clear(self) -> None:
        """Forget all requests and blocks."""
        self._asked: defaultdict[str, deque[float]] = defaultdict(deque)
        self._refused: defaultdict[str, deque[float]] = defaultdict(deque)
        self._blocked: dict[str, float] = {}

    def state(self, account: str) -> str:
        """`open` or `blocked`."""
        return "blocked" if self._blocked.get(account, 0.0) > time.monotonic() else "open"

    def ask(self, account: str, now: float | None = None) -> int:
        """The status of the refusal (429, or 403 while blocked), or 0."""
        now = time.monotonic() if now is None else now
        if self.per_second == 0:
            return 0
        if self._blocked.get(account, 0.0) > now:
            return 403
        asked = _since(self._asked[account], now - 1.0)
        if len(asked) < self.per_second:
            asked.append(now)
            return 0
        refused = _since(self._refused[account], now - REFUSALS_SECONDS)
        refused.append(now)
        if len(refused) > REFUSALS_MAX:
            refused.clear()
            self._blocked[account] = now + BLOCK_SECONDS
            return 403
        return 429


def _since(moments: deque[float], oldest: float) -> deque[float]:
    while moments and moments[0] <= oldest:
        moments.popleft()
    return moments
