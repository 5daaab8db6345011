"""Bounds the calls that all our processes together make to one Kommo account; live calls go first.

Theory of operation. Kommo limits an account, not a connection, so the limit lives in the database: one row
per account and API (`database/call_budgets.py`), a bucket of permits that fills at the account's rate. A
call takes exactly one permit from here, is made at once, and its answer comes back through `observe`.

A permit is in one of four places: in the bucket, in a lease of one process, with a caller, or returned.
- Bucket to process: `take_permits`, under the row's lock. One round trip serves everybody who waits, and
  asks for some permits ahead: as many as live calls have lately used within a lease. So a live call finds a
  permit in memory and waits for no round trip while there is budget.
- Process to caller: live callers are served before the others (imports, repair), each queue first come,
  first served. A lease holds permits for live callers only.
- Process to bucket: permits whose lease expired, and those of callers who gave up waiting, go back as
  `unused` with the next request. After LEASE_SECONDS no process acts on a permit of before a pause.

An account is open, paused or probing; the row says which, for all processes. Kommo's refusal (429, a page of
its firewall, Retry-After) pauses it, halves its rate, and drops every permit that this process holds; other
processes notice when their leases end. After the pause the row gives one permit, the probe. If its answer is
no refusal, the row opens for everybody; if no answer comes, another probe follows. The rate grows back while
Kommo accepts calls.

Invariant: in any second all processes together make at most `rate` calls, plus what the bucket holds (a
tenth of a second's worth, at least one call) and what was leased before that second began. A call without a
permit is never made: while the database is away, everybody waits.
"""

import asyncio
import contextlib
import logging
from collections import deque
from time import monotonic
from typing import Literal, Protocol, TypeAlias, cast

import psycopg
from msgspec import Struct

from app import metrics
from app.config.file import Budgets
from app.database import connection
from app.database.call_budgets import OPEN
from app.http_client import Answer, Unreached

Api: TypeAlias = Literal["crm", "chats"]

# Chosen: short enough that a pause holds on every process almost at once, long enough for some round trips.
LEASE_SECONDS = 0.2
MARGIN = 1.25  # Chosen: a quarter more than was used lately, so that a rising rate finds permits in memory.
USE_DECAY = 0.7  # Chosen: after a burst each request keeps 70 % of the measured rate, for the next burst.
MEASURED_SECONDS_MIN = 0.05  # Chosen: over less time, two calls would look like a high rate.
AHEAD_RATE_MIN = 20.0  # Chosen: below it each permit counts, so none is leased that may expire unused.
AHEAD_SHARE = 0.05  # Chosen: a process leases at most a twentieth of a second's calls, so others get theirs.
WAITING_MAX = 10_000  # Chosen: some MB of futures; at 7 calls a second the last one would wait 24 minutes.
POLL_SECONDS_MIN = 0.002  # Chosen: below that, asking the database costs more than the wait.
POLL_SECONDS_MAX = 0.5  # Chosen: another process may have ended the pause: look twice a second.
AWAY_SECONDS = 0.5  # Chosen: how often a database that is away is tried; nobody can call meanwhile.

TAKE = """SELECT live_given, other_given, wait_seconds, probe
 FROM ledger.take_permits(%s, %s, %s, %s, %s, %s, %s, %s)"""
REFUSE = "SELECT wait_seconds FROM ledger.pause_budget(%s, %s, %s, %s, %s)"
EXHAUSTED = "Kommo takes no more calls for this account now: try again later"
log = logging.getLogger("chatledger.budget")


class BudgetQueueFull(Unreached):
    """WAITING_MAX calls wait for the account's budget already; this one was not sent."""

    def __init__(self, account: str) -> None:
        super().__init__(f"{WAITING_MAX} calls to account {account} wait for its budget", unknown=False)


class CallBudget(Protocol):
    """What a client of Kommo needs of a budget."""

    async def take(
        self, account: str, api: Api, *, live: bool = True, within_seconds: float | None = None
    ) -> None:
        """Wait until one call may be made. Raises Unreached."""

    async def observe(self, account: str, api: Api, answer: Answer) -> None:
        """Adapt to Kommo's answer to that call."""


class Grant(Struct, frozen=True):
    """The database's answer: permits for live and for other callers, and when to ask for more.

    `probe`: the one permit after a pause.
    """

    live: int
    other: int
    wait_seconds: float
    probe: bool


class Budget:
    """The budgets of all accounts in this process: `take` before a call to Kommo, `observe` after it."""

    def __init__(self, database_url: str, budgets: Budgets) -> None:
        self._url = database_url
        self._rates: dict[Api, float] = {"crm": budgets.crm_per_second, "chats": budgets.chats_per_second}
        self._permits: dict[tuple[str, Api], _Permits] = {}
        self._connection: connection.Db | None = None
        self._turn = asyncio.Lock()
        self._away = False

    async def take(
        self, account: str, api: Api, *, live: bool = True, within_seconds: float | None = None
    ) -> None:
        """Wait, first come first served, until one call may be made: the caller makes it at once.

        `live=False` (import, repair) gets what live callers leave. Raises Unreached if that takes longer than
        `within_seconds` (None: wait as long as it takes), and BudgetQueueFull if too many wait already.
        """
        permits = self._of(account, api)
        if live and permits.take():
            return
        try:
            with metrics.BUDGET_SECONDS.labels(api).time():
                async with asyncio.timeout(within_seconds):
                    await permits.wait(live=live)
        except TimeoutError:
            raise Unreached(EXHAUSTED, unknown=False) from None

    async def observe(self, account: str, api: Api, answer: Answer) -> None:
        """Adapt to Kommo's answer: 429, an HTML page and Retry-After pause the account on every process."""
        permits = self._of(account, api)
        slower = answer.status == 429 or answer.html
        if slower or (answer.retry_after > 0 and answer.status >= 400):
            await permits.pause(answer.retry_after, slower=slower)
        else:
            await permits.accept(grow=answer.status < 500)

    async def close(self) -> None:
        """Close the database connection; whoever waits gets Unreached."""
        for permits in self._permits.values():
            await permits.close()
        if self._connection is not None:
            await self._connection.close()

    def _of(self, account: str, api: Api) -> "_Permits":
        permits = self._permits.get((account, api))
        if permits is None:
            permits = self._permits[account, api] = _Permits(self, account, api, self._rates[api])
        return permits

    async def query(self, statement: str, values: tuple[object, ...]) -> tuple[object, ...] | None:
        """Returns one row; None while the database is away, which is logged once."""
        async with self._turn:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = await connection.connect(self._url)
                cursor = await self._connection.execute(statement.encode(), values, prepare=True)
                row = await cursor.fetchone() if cursor.description else ()
            except psycopg.Error as error:
                if not self._away:
                    log.warning("no permits: calls to Kommo wait for the database: %s", str(error).strip())
                self._away = True
                return None
            except asyncio.CancelledError:
                if self._connection is not None:  # The rest of an answer may still arrive on it.
                    await self._connection.close()
                raise
            self._away = False
            return row


class _Lease(Struct):
    """Permits for live calls until `until`, in seconds of this process's clock."""

    until: float
    permits: int


class _Permits:
    """The permits that this process holds of one account's budget for one API, and who waits for one."""

    def __init__(self, budget: Budget, account: str, api: Api, rate: float) -> None:
        self._budget = budget
        self._key = (account, api, rate)
        self._ahead_max = int(rate * AHEAD_SHARE) if rate >= AHEAD_RATE_MIN else 0
        self._leases: deque[_Lease] = deque()
        self._held = 0
        self._refill_at = -1
        self._unused = 0
        self._used = 0
        self._used_since = monotonic()
        self._per_second = 0.0
        self._live: deque[asyncio.Future[None]] = deque()
        self._other: deque[asyncio.Future[None]] = deque()
        self._accepted = False
        self._probing = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def take(self) -> bool:
        """Takes one permit for a live call, if a lease has one and no live caller waits."""
        self._expire(monotonic())
        if not self._leases or self._live:
            return False
        lease = self._leases[0]
        lease.permits -= 1
        if not lease.permits:
            self._leases.popleft()
        self._held -= 1
        self._used += 1
        if self._held <= self._refill_at:
            self._refill_soon()
        return True

    def _expire(self, now: float) -> None:
        while self._leases and self._leases[0].until <= now:
            permits = self._leases.popleft().permits
            self._held -= permits
            self._unused += permits

    async def wait(self, *, live: bool) -> None:
        """Wait for a permit behind those who wait already; raises BudgetQueueFull."""
        queue = self._live if live else self._other
        if len(queue) >= WAITING_MAX:
            raise BudgetQueueFull(self._key[0])
        waiter = asyncio.get_running_loop().create_future()
        queue.append(waiter)
        if live and len(queue) == 1:
            self._changed.set()  # The task may sleep longer for the others than a live call has to wait.
        self._refill_soon()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._unused += 1
            else:
                with contextlib.suppress(ValueError):
                    queue.remove(waiter)
            raise

    def _refill_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._refill_until_served(), name="budget")

    async def _refill_until_served(self) -> None:
        """Ask the database for permits until nobody waits."""
        while True:
            self._changed.clear()
            seconds = await self._refill()
            if not self._live and not self._other:
                return
            if seconds > POLL_SECONDS_MIN:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min(seconds, POLL_SECONDS_MAX))
            else:
                await asyncio.sleep(POLL_SECONDS_MIN)

    async def _refill(self) -> float:
        """Ask the database once and hand out its permits; returns the seconds to wait before asking again."""
        now = monotonic()
        self._expire(now)
        live, other = len(self._live), len(self._other)
        ahead = max(0, self._wanted_ahead(now) - self._held)
        unused, self._unused = self._unused, 0
        accepted, self._accepted = self._accepted, False
        row = await self._budget.query(TAKE, (*self._key, live, ahead, other, unused, accepted))
        if row is None:
            return AWAY_SECONDS
        grant = Grant(*cast("tuple[int, int, float, bool]", row))
        self._probing = self._probing or grant.probe
        left = self._serve(self._live, grant.live)
        self._used += grant.live - left
        self._unused += self._serve(self._other, grant.other)
        if left:
            self._leases.append(_Lease(now + LEASE_SECONDS, left))
            self._held += left
        return grant.wait_seconds

    def _wanted_ahead(self, now: float) -> int:
        """How many permits live calls will use within a lease, by their rate since the last request.

        At half of that this process asks again, so that the next permits arrive before the last one is used.
        """
        passed = max(now - self._used_since, MEASURED_SECONDS_MIN)
        self._per_second = max(self._used / passed, self._per_second * USE_DECAY)
        self._used, self._used_since = 0, now
        ahead = min(int(self._per_second * LEASE_SECONDS * MARGIN + 0.5), self._ahead_max)
        self._refill_at = ahead // 2 if ahead else -1
        return ahead

    @staticmethod
    def _serve(queue: "deque[asyncio.Future[None]]", permits: int) -> int:
        """Give each of the first waiters a permit; returns how many permits are left over."""
        while permits and queue:
            waiter = queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                permits -= 1
        return permits

    async def pause(self, asked_seconds: float, *, slower: bool) -> None:
        """Pause the account for everybody, for at least `asked_seconds`; `slower` halves its rate as well."""
        self._drop()
        row = await self._budget.query(REFUSE, (*self._key, asked_seconds, slower))
        self._drop()  # Permits of a request that was under way have arrived meanwhile.
        if row:
            account, api, _ = self._key
            log.warning("Kommo (%s) asks account %s to wait: %.0f s", api, account, cast("float", row[0]))

    def _drop(self) -> None:
        self._leases.clear()
        self._held, self._unused, self._probing, self._accepted = 0, 0, False, False

    async def accept(self, *, grow: bool) -> None:
        """Kommo accepted a call; if that was the probe after a pause, the account opens for everybody.

        `grow`: the rate may grow back.
        """
        self._accepted = self._accepted or grow
        if self._probing:
            self._probing = False
            account, api, _ = self._key
            await self._budget.query(OPEN, (account, api))
            self._changed.set()

    async def close(self) -> None:
        """Stop asking for permits; whoever waits gets Unreached."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for waiter in (*self._live, *self._other):
            if not waiter.done():
                waiter.set_exception(Unreached("the process is stopping", unknown=False))
