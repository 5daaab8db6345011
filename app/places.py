"""Bounds the calls in flight: in all, and to each destination by what it bears; nobody takes all places.

Theory of operation. A destination is a host (Kommo, or a channel's messenger) and an account. A call holds a
place of its destination from before its first byte until its answer, or the lack of one.

Each destination has a window, which is how many places it may hold. It grows with good answers while it is
used in full: by one for each, so it doubles within the time of an answer, up to where trouble was met last,
and from there by one within that time. A call that fails (429, 5xx, no answer) halves it, down to WINDOW_MIN;
those that were under way then say nothing new and change nothing. Answers that take several times as long as
the fastest of late shrink it by an eighth in the time of an answer, but never below WINDOW, because a busy
machine of ours makes answers look slow, too. So a server that is overrun is relieved, and one that is merely
far away gets as many calls at once as keep it busy.

All destinations together hold at most `places`. Of these `kept_free` are only for who holds less than a fair
share, by its host and by itself: so whoever comes finds a place, however many slow ones there are. Whoever
waits gets its place in turn.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeAlias, TypeVar

from msgspec import Struct, field

# Chosen: each is a connection (some 20 KB with its request and its task), and together they are 10,000 calls
# a second to hosts that take 200 ms.
PLACES = 2048
# Chosen: an eighth stays free for who has none, so that it need not wait for a slow answer.
SHARE_KEPT_FREE = 8
# Where a destination begins: chosen, busy at over a thousand a second if it answers in 50 ms.
WINDOW = 64
# Chosen: 5,000 calls a second where an answer takes 200 ms, which is more than one process makes.
WINDOW_MAX = 1024
# Chosen: a few conversations whose calls fail hold up no other of the destination.
WINDOW_MIN = 8
# Chosen: twice what a server takes is noise; below 50 ms it is that of our own machine.
SLOW_TIMES, SLOW_SECONDS = 3.0, 0.05
SLOW_SHARE = 1 / 8
# Chosen: a host that has become slower for good is believed after a minute at most.
FASTEST_SECONDS = 30.0
# Chosen: some MB; what is known of an idle destination is soon learned again.
KEPT_MAX = 10_000
# Chosen: some 10 us.
LOOKED_AT_MAX = 64

Name: TypeAlias = tuple[str, str]
Value = TypeVar("Value")


class Destination(Struct):
    """What is known of a destination, and who waits for one of its places."""

    name: Name
    held: int = 0
    window: float = WINDOW
    threshold: float = WINDOW_MAX
    cut_at: float = 0.0
    fastest: float = math.inf
    fastest_now: float = math.inf
    renewed_at: float = 0.0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def answered(self, began: float, now: float, *, good: bool) -> None:
        """Adapt to an answer; the window grows only if it is used up, because then it is what limits us."""
        if not good:
            self._cut(began, now)
        elif self._is_slow(now - began, now):
            self.window = max(min(self.window, WINDOW), self.window - SLOW_SHARE)
            self.threshold = self.window
        elif self.waiting or self.held >= int(self.window):
            step = 1.0 if self.window < self.threshold else 1.0 / self.window
            self.window = min(WINDOW_MAX, self.window + step)

    def _cut(self, began: float, now: float) -> None:
        if began >= self.cut_at:
            self.window = self.threshold = max(WINDOW_MIN, self.window / 2)
            self.cut_at = now

    def _is_slow(self, seconds: float, now: float) -> bool:
        """Whether an answer took much longer than the fastest of this period and of the one before."""
        if now - self.renewed_at > FASTEST_SECONDS:
            self.fastest, self.fastest_now, self.renewed_at = self.fastest_now, seconds, now
        self.fastest_now = min(self.fastest_now, seconds)
        return seconds > SLOW_TIMES * min(self.fastest, self.fastest_now) + SLOW_SECONDS


class Places:
    """The places of a process, shared by its destinations."""

    def __init__(self, places: int = PLACES, clock: Callable[[], float] = monotonic) -> None:
        """`clock` gives seconds."""
        self.places = self._free = places
        self._kept_free = places // SHARE_KEPT_FREE
        self._clock = clock
        self._destinations: dict[Name, Destination] = {}
        self._busy: set[Name] = set()  # those that hold places or wait for some
        self._hosts: Counter[str] = Counter()  # places by host
        self._ring: deque[Destination] = deque()  # those that wait, in the order of their turns

    @property
    def held(self) -> int:
        """How many calls are in flight."""
        return self.places - self._free

    def window(self, host: str, account: str) -> int:
        """How many calls to a destination may be in flight now."""
        return int(self._of((host, account)).window)

    async def call(
        self, host: str, account: str, call: Callable[[], Awaitable[Value]], good: Callable[[Value], bool]
    ) -> Value:
        """Make a call once there is a place for it; `good` says whether an answer shows no overload.

        An error of the call counts as a failure and is raised.
        """
        destination = self._of((host, account))
        if destination.waiting or not self._may_take(destination):
            await self._wait(destination)
        else:
            self._take(destination)
        began = self._clock()
        try:
            answer = await call()
        except asyncio.CancelledError:
            raise
        except Exception:
            destination.answered(began, self._clock(), good=False)
            raise
        else:
            destination.answered(began, self._clock(), good=good(answer))
            return answer
        finally:
            self._give_back(destination)

    def _of(self, name: Name) -> Destination:
        destination = self._destinations.get(name)
        if destination is None:
            if len(self._destinations) >= KEPT_MAX:
                self._destinations = {each: self._destinations[each] for each in self._busy}
            destination = self._destinations[name] = Destination(name)
        return destination

    def _may_take(self, destination: Destination) -> bool:
        if not self._free or destination.held >= int(destination.window):
            return False
        if self._free > self._kept_free:
            return True
        host = destination.name[0]
        others = len(self._busy) - (destination.name in self._busy)
        other_hosts = len(self._hosts) - (host in self._hosts)
        fair, fair_of_host = self.places // (others + 2), self.places // (other_hosts + 2)
        return destination.held < fair and self._hosts.get(host, 0) < fair_of_host

    def _take(self, destination: Destination) -> None:
        self._free -= 1
        destination.held += 1
        self._hosts[destination.name[0]] += 1
        self._busy.add(destination.name)

    def _give_back(self, destination: Destination) -> None:
        self._free += 1
        destination.held -= 1
        host = destination.name[0]
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        if not destination.held and not destination.waiting:
            self._busy.discard(destination.name)
        if self._ring:
            self._hand_out()

    async def _wait(self, destination: Destination) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not destination.waiting:
            self._ring.append(destination)
            self._busy.add(destination.name)
        destination.waiting.append(turn)
        if not self.held:  # All who wait before this one have given up.
            self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(destination)  # The turn came in the moment of the cancellation.
            raise

    def _hand_out(self) -> None:
        """Give what is free to those who wait, one each in turn, until nobody may take more.

        It looks at LOOKED_AT_MAX who may not; the others have their turn when the next place is given back.
        """
        skipped = 0
        while self._free and skipped < min(len(self._ring), LOOKED_AT_MAX):
            destination = self._ring.popleft()
            turns = destination.waiting
            while turns and turns[0].done():  # Cancelled.
                turns.popleft()
            if turns and self._may_take(destination):
                turns.popleft().set_result(None)
                self._take(destination)
                skipped = 0
            elif turns:
                skipped += 1
            if turns:
                self._ring.append(destination)
            elif not destination.held:
                self._busy.discard(destination.name)
