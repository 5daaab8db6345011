"""How much of the service one account's messenger may take: a rate, a share of the work, and open deliveries.

Limits are those of a process. A rate is a bucket that fills evenly and holds a second's worth; what is taken
at once may overdraw it, and then nothing is taken until it is paid back. Open deliveries are counted from
time to time, so an account may pass that limit by what it sends meanwhile.

While several accounts are at work, the requests of a channel are read in rounds of WORK_BYTES, with a rest
after each (`turns.rest_after`): so what comes from the others finds the event loop free after a few
milliseconds, and the machine with room for it. Kommo's hooks are not limited, because Kommo sends each only
once; the queue of the ledger shares its time with them.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping

from app.config.settings import Settings
from app.turns import Turns, rest_after

# Chosen: about a hundred messages, some 3 ms of Python.
WORK_BYTES = 32 * 1024
# Chosen: what a request costs beside its bytes.
REQUEST_BYTES = 4 * 1024
# Chosen: what the requests of a channel that wait may take of the memory.
WAITING_BYTES_MAX = 8 * 1024 * 1024
# Chosen: how long an account's open deliveries are taken for what they were.
COUNTED_SECONDS = 2.0
# Chosen: the accounts whose buckets are remembered; a full one need not be.
BUCKETS_MAX = 10_000
OPEN_RETRY_SECONDS = 30
# Chosen: some 1 ms of Python.
COMMANDS_A_TURN = 64


class OverLimit(Exception):
    """An account has reached a limit: ask again after so many seconds; the message names the limit."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Bucket:
    """What is left of each limit, at a time in seconds; negative is a debt."""

    def __init__(self, actions: float, size: float, at: float) -> None:
        self.actions, self.bytes, self.at = actions, size, at


class _Work:
    """A channel's requests: the bytes in work since a time in seconds, and those that wait with theirs."""

    def __init__(self) -> None:
        self.bytes = 0
        self.began = 0.0
        self.shared = self.resting = False
        self.waiting_bytes = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()


class AccountLimits:
    """The limits of all accounts and channels of this process.

    The commands of arrays are made in `turns`.
    """

    def __init__(self, settings: Settings) -> None:
        self.turns = Turns(COMMANDS_A_TURN)
        self._rate, self._bytes = settings.account_rate, settings.account_bytes
        self._open_max = settings.account_open
        self._buckets: dict[str, _Bucket] = {}
        self._open: Mapping[tuple[str, str], int] = {}
        self._counted_at = -math.inf
        self._work: dict[str, _Work] = {}

    def take(self, scope_id: str, actions: int, size: int) -> None:
        """Take actions with so many bytes in total out of an account's rate. Raises OverLimit."""
        now = time.monotonic()
        bucket = self._bucket(scope_id, now)
        for left, rate, unit in (
            (bucket.actions, self._rate, "actions"),
            (bucket.bytes, self._bytes, "bytes"),
        ):
            if left <= 0:
                advice = f"the account sends over {rate:,} {unit} a second: send fewer, or in larger pauses"
                raise OverLimit(advice, math.ceil(-left / rate) or 1)
        bucket.actions -= actions
        bucket.bytes -= size

    def _bucket(self, scope_id: str, now: float) -> _Bucket:
        bucket = self._buckets.get(scope_id)
        if bucket is None:
            if len(self._buckets) >= BUCKETS_MAX:
                self._forget(now)
            bucket = self._buckets[scope_id] = _Bucket(self._rate, self._bytes, now)
        passed, bucket.at = now - bucket.at, now
        bucket.actions = min(self._rate, bucket.actions + passed * self._rate)
        bucket.bytes = min(self._bytes, bucket.bytes + passed * self._bytes)
        return bucket

    def _forget(self, now: float) -> None:
        """Forget the accounts that have sent nothing for a second; if there are none, the oldest."""
        quiet = [scope_id for scope_id, bucket in self._buckets.items() if now - bucket.at > 1]
        for scope_id in quiet or list(self._buckets)[: BUCKETS_MAX // 10]:
            del self._buckets[scope_id]

    @property
    def wants_count(self) -> bool:
        """Whether the open deliveries should be counted again; true once for each time."""
        now = time.monotonic()
        if now - self._counted_at < COUNTED_SECONDS:
            return False
        self._counted_at = now
        return True

    def counted(self, found: Mapping[tuple[str, str], int]) -> None:
        """Take the numbers of open deliveries, by channel and account."""
        self._open = found

    def check_open(self, channel: str, account: str) -> None:
        """Raises OverLimit if an account has too many deliveries open."""
        count = self._open.get((channel, account), 0)
        if count >= self._open_max:
            advice = f"{count:,} deliveries of the account are open, and {self._open_max:,} may be"
            raise OverLimit(f"{advice}: send again when Kommo has taken some", OPEN_RETRY_SECONDS)

    @contextlib.asynccontextmanager
    async def turn(self, channel: str, size: int, *, shared: bool) -> AsyncIterator[None]:
        """Wait until a request of a channel may be worked on, and hold its share meanwhile.

        `shared`: other accounts are at work, too. Raises OverLimit if too many wait already.
        """
        cost = size + REQUEST_BYTES
        work = self._work.setdefault(channel, _Work())
        work.shared = shared
        if work.waiting or work.resting or (shared and work.bytes and work.bytes + cost > WORK_BYTES):
            await self._wait(work, cost)
        else:
            if not work.bytes:
                work.began = time.monotonic()
            work.bytes += cost
        try:
            yield
        finally:
            self._end(work, cost)
            if not work.bytes and not work.waiting and not work.resting:
                self._work.pop(channel, None)

    async def _wait(self, work: _Work, cost: int) -> None:
        """Wait for a turn; once it comes, the cost is among the bytes in work."""
        if work.waiting_bytes + cost > WAITING_BYTES_MAX:
            raise OverLimit("too many requests of the channel wait: send fewer at once", 1)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        work.waiting.append((cost, turn))
        work.waiting_bytes += cost
        try:
            await turn
        except asyncio.CancelledError:
            if (cost, turn) in work.waiting:
                work.waiting.remove((cost, turn))
                work.waiting_bytes -= cost
            elif turn.done() and not turn.cancelled():
                self._end(work, cost)
            raise

    def _end(self, work: _Work, cost: int) -> None:
        """A request is done; those that wait have their turn, after a rest if others are at work, too."""
        work.bytes -= cost
        if not work.waiting or work.resting:
            return
        if not work.shared:
            self._go_on(work)
        elif not work.bytes:
            work.resting = True
            rest = rest_after(time.monotonic() - work.began)
            asyncio.get_running_loop().call_later(rest, self._go_on, work)

    @staticmethod
    def _go_on(work: _Work) -> None:
        """Let those work who waited longest, as far as there is room."""
        work.resting = False
        work.began = time.monotonic()
        while work.waiting and (not work.bytes or work.bytes + work.waiting[0][0] <= WORK_BYTES):
            following, turn = work.waiting.popleft()
            work.waiting_bytes -= following
            if not turn.done():
                turn.set_result(None)
                work.bytes += following
