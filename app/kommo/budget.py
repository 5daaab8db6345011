"""Kommo is called no more often than it takes, by all processes of ours together; live messages go first.

Permits are given out by the database (`permits`) for an account and an API, and a process takes some ahead,
as many as it has lately used within a lease: so a call waits for no round trip while there is budget. A
permit that is not used within the lease goes back. What Kommo answers comes back through `told`: a refusal
pauses the account for every process (one that holds permits notices when its lease ends) and halves its rate,
which grows back slowly while calls are taken.
"""

import asyncio
import contextlib
import logging
from collections import deque
from time import monotonic
from typing import Literal, TypeAlias, cast

import psycopg
from msgspec import Struct

from app import metrics
from app.config.file import Budgets
from app.database import connection
from app.database.call_budgets import OPEN
from app.http_client import Answer, Unreached

Api: TypeAlias = Literal["crm", "chats"]

LEASE_SECONDS = 0.2
MARGIN = 1.25
WAITING_MAX = 10_000
POLL_SECONDS_MIN = 0.002
POLL_SECONDS_MAX = 0.5
MEASURED_SECONDS_MIN = 0.05
AWAY_SECONDS = 0.5
AHEAD_RATE_MIN = 20.0  # Of a slower one nothing is taken ahead: each permit counts.
TAKE = """SELECT live_given, other_given, wait_seconds, probe
 FROM ledger.take_permits(%s, %s, %s, %s, %s, %s, %s, %s)"""
SPENT = "Kommo takes no more calls for this account now: try again later"
REFUSE = "SELECT wait_seconds FROM ledger.pause_budget(%s, %s, %s, %s, %s)"
log = logging.getLogger("chatledger.budget")


class Crowded(Unreached):
    """So many calls wait for this account already that another one is not taken; nothing was sent."""

    def __init__(self, account: str) -> None:
        super().__init__(f"{WAITING_MAX} calls to account {account} wait for its budget", unknown=False)


class Given(Struct, frozen=True):
    """What the database gave: permits, and how long to wait for more if that is too little."""

    live: int
    other: int
    wait_seconds: float
    probe: bool


class Budget:
    """What all callers of Kommo in this process ask before a call, and tell after it."""

    def __init__(self, database_url: str, budgets: Budgets) -> None:
        self._url = database_url
        self._rates: dict[Api, float] = {"crm": budgets.crm_per_second, "chats": budgets.chats_per_second}
        self._purses: dict[tuple[str, Api], _Purse] = {}
        self._connection: connection.Db | None = None
        self._asking = asyncio.Lock()
        self._away = False

    async def take(
        self, account: str, api: Api, *, live: bool = True, within_seconds: float | None = None
    ) -> None:
        """Wait, first come first served, until one call may be made: it is to be made now.

        `live=False` (import, repair) gets what live callers leave. Raises Unreached if that takes longer than
        `within_seconds` (None: wait as long as it takes), or if too many wait already.
        """
        purse = self._purse(account, api)
        if live and purse.take():
            return
        try:
            with metrics.BUDGET_SECONDS.labels(api).time():
                async with asyncio.timeout(within_seconds):
                    await purse.wait(live=live)
        except TimeoutError:
            raise Unreached(SPENT, unknown=False) from None

    async def told(self, account: str, api: Api, answer: Answer) -> None:
        """What Kommo answered: 429, a page of HTML and Retry-After pause the account on every process."""
        purse = self._purse(account, api)
        slower = answer.status == 429 or answer.html
        if slower or (answer.retry_after > 0 and answer.status >= 400):
            await purse.refused(answer.retry_after, slower=slower)
        else:
            await purse.accepted(grow=answer.status < 500)

    async def close(self) -> None:
        """Let go of the database; whoever waits gets Unreached."""
        for purse in self._purses.values():
            await purse.close()
        if self._connection is not None:
            await self._connection.close()

    def _purse(self, account: str, api: Api) -> "_Purse":
        purse = self._purses.get((account, api))
        if purse is None:
            purse = self._purses[account, api] = _Purse(self, account, api, self._rates[api])
        return purse

    async def ask(self, statement: str, values: tuple[object, ...]) -> tuple[object, ...] | None:
        """One row of the database; None while that is away, which is logged once."""
        async with self._asking:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = await connection.connect(self._url)
                cursor = await self._connection.execute(statement.encode(), values, prepare=True)
                row = await cursor.fetchone() if cursor.description else ()
            except psycopg.Error as error:
                if not self._away:
                    log.warning("no permits to be had, calls to Kommo wait: %s", str(error).strip())
                self._away = True
                return None
            except asyncio.CancelledError:
                if self._connection is not None:  # Half an answer may be on its way.
                    await self._connection.close()
                raise
            self._away = False
            return row


class _Lease(Struct):
    """Permits to be used until then, in seconds of this process's clock."""

    until: float
    permits: int


class _Purse:
    """The permits this process holds of one budget, and who waits for one."""

    def __init__(self, budget: Budget, account: str, api: Api, rate: float) -> None:
        self._budget = budget
        self._key = (account, api, rate)
        self._ahead_max = int(rate * 0.05) if rate >= AHEAD_RATE_MIN else 0
        self._leases: deque[_Lease] = deque()
        self._held = 0
        self._low = -1
        self._unused = 0
        self._used = 0
        self._used_since = monotonic()
        self._per_second = 0.0
        self._live: deque[asyncio.Future[None]] = deque()
        self._other: deque[asyncio.Future[None]] = deque()
        self._waits_for_live = False
        self._taken = False
        self._probing = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def take(self) -> bool:
        """One permit for a live call, if one is held and nobody waits before."""
        self._expire(monotonic())
        if not self._leases or self._live:
            return False
        lease = self._leases[0]
        lease.permits -= 1
        if not lease.permits:
            self._leases.popleft()
        self._held -= 1
        self._used += 1
        if self._held <= self._low:
            self._ask()
        return True

    def _expire(self, now: float) -> None:
        while self._leases and self._leases[0].until <= now:
            permits = self._leases.popleft().permits
            self._held -= permits
            self._unused += permits

    async def wait(self, *, live: bool) -> None:
        """Wait for a permit behind those who wait already; raises Crowded."""
        queue = self._live if live else self._other
        if len(queue) >= WAITING_MAX:
            raise Crowded(self._key[0])
        place = asyncio.get_running_loop().create_future()
        queue.append(place)
        if live and len(queue) == 1:
            self._news.set()
        self._ask()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._unused += 1
            else:
                with contextlib.suppress(ValueError):
                    queue.remove(place)
            raise

    def _ask(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._asking(), name="budget")

    async def _asking(self) -> None:
        """Ask for what is wanted until nobody waits."""
        while True:
            self._news.clear()
            waits = await self._asked()
            if not self._live and not self._other:
                return
            if waits > POLL_SECONDS_MIN:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), min(waits, POLL_SECONDS_MAX))
            else:
                await asyncio.sleep(POLL_SECONDS_MIN)

    async def _asked(self) -> float:
        """Ask once and give out what there is; how long to wait then."""
        now = monotonic()
        self._expire(now)
        live, other = len(self._live), len(self._other)
        ahead = max(0, self._wanted_ahead(now) - self._held)
        unused, self._unused = self._unused, 0
        taken, self._taken = self._taken, False
        row = await self._budget.ask(TAKE, (*self._key, live, ahead, other, unused, taken))
        if row is None:
            return AWAY_SECONDS
        given = Given(*cast("tuple[int, int, float, bool]", row))
        self._probing = self._probing or given.probe
        left = self._give(self._live, given.live)
        self._used += given.live - left
        self._unused += self._give(self._other, given.other)
        if left:
            self._leases.append(_Lease(now + LEASE_SECONDS, left))
            self._held += left
        return given.wait_seconds

    def _wanted_ahead(self, now: float) -> int:
        """What a lease's time will use, going by the last ones; half of it left is a reason to ask again."""
        passed = max(now - self._used_since, MEASURED_SECONDS_MIN)
        self._per_second = max(self._used / passed, self._per_second * 0.7)
        self._used, self._used_since = 0, now
        ahead = min(int(self._per_second * LEASE_SECONDS * MARGIN + 0.5), self._ahead_max)
        self._low = ahead // 2 if ahead else -1
        return ahead

    @staticmethod
    def _give(queue: "deque[asyncio.Future[None]]", permits: int) -> int:
        """Let the first of a queue go; what is left over."""
        while permits and queue:
            place = queue.popleft()
            if not place.done():
                place.set_result(None)
                permits -= 1
        return permits

    async def refused(self, asked: float, *, slower: bool) -> None:
        """Kommo refused: nobody calls until it may be asked again, not even with a permit held."""
        self._drop()
        row = await self._budget.ask(REFUSE, (*self._key, asked, slower))
        self._drop()  # What was asked for before that has come meanwhile.
        if row:
            account, api, _ = self._key
            log.warning("Kommo (%s) asks account %s to wait: %.0f s", api, account, cast("float", row[0]))

    def _drop(self) -> None:
        self._leases.clear()
        self._held, self._unused, self._probing, self._taken = 0, 0, False, False

    async def accepted(self, *, grow: bool) -> None:
        """Kommo does not ask us to wait; if that was the probe after a pause, others may follow."""
        self._taken = self._taken or grow
        if self._probing:
            self._probing = False
            account, api, _ = self._key
            await self._budget.ask(OPEN, (account, api))
            self._news.set()

    async def close(self) -> None:
        """Ask no more; whoever waits gets Unreached."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for place in (*self._live, *self._other):
            if not place.done():
                place.set_exception(Unreached("the process is stopping", unknown=False))
