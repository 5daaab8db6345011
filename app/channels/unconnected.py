"""What comes for an account that is not connected is kept for it, so much and for so long.

Such an action is an event like any other. Its delivery is parked until the connection is made, which takes it
up in order. What waits is counted in the view of deliveries, once the view has all that this process has
recorded for the account: so a limit holds however fast a messenger posts. Only another process may add a body
that it has under way at the same moment.
"""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic

from msgspec import Struct

from app.database.pool import Pool
from app.problems import ProblemError
from app.views.projector import Projector
from domain.ids import Scope

DAY_SECONDS = 86_400.0
# Chosen: somebody has to make the connection, and that takes longer than a moment.
RETRY_AFTER_SECONDS = 60
# Chosen: bounds what a messenger leaves behind that makes up a name for each of its actions.
ACCOUNTS_MAX = 1000
# Chosen: an account is rarely named for the first time, and by another process than this one.
ACCOUNTS_SECONDS = 1.0
TOO_MANY = (
    "account {account} is not connected, and {limit} deliveries wait for it already: connect it with POST"
    " /v1/channels/{channel}/connections, then send this again"
)
TOO_LONG = (
    "account {account} is not connected, and what waits for it is over {days} days old, so nothing more is"
    " kept: connect it with POST /v1/channels/{channel}/connections, then send this again"
)
NONE_KEPT = (
    "account {account} is not connected: connect it with POST /v1/channels/{channel}/connections, then send"
    " this again"
)
NO_MORE_ACCOUNTS = (
    "the channel keeps deliveries for {limit} accounts that are not connected: check account_id, or connect"
    " them"
)
# How the reasons begin of deliveries that are parked for want of a connection: the first came while there was
# none, the second was open when it ended.
WAITING = """
SELECT channel, account_id, count(*) AS deliveries,
  to_char(min(d.recorded_at), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS since,
  extract(epoch FROM now() - min(d.recorded_at)
    FILTER (WHERE d.reason LIKE 'waiting for a connection%%'))::float8 AS seconds
FROM deliveries AS d LEFT JOIN connections AS c USING (channel, account_id)
WHERE c.connected IS NOT TRUE AND account_id IS NOT NULL AND NOT d.imported
  AND (d.state = 'open' OR d.reason LIKE 'waiting for a connection%%' OR d.reason LIKE 'disconnected%%')
  AND (%(channel)s::text IS NULL OR channel = %(channel)s::text)
  AND (%(account)s::text IS NULL OR account_id = %(account)s::text)
GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 1000
"""


class Waiting(Struct, frozen=True):
    """An account without a connection: how many deliveries wait for one, and since when the oldest does.

    `seconds` is the age of the oldest that came while there was no connection, None if none did.
    """

    channel: str
    account_id: str
    deliveries: int
    since: str
    seconds: float | None


class Unconnected:
    """The room that accounts without a connection have."""

    def __init__(self, pool: Pool, projector: Projector, *, limit: int, days: int) -> None:
        """`limit` deliveries of an account are kept, and none once the oldest is `days` old."""
        self._pool = pool
        self._projector = projector
        self._limit = limit
        self._days = days
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._recorded: dict[str, int] = {}
        self._accounts: dict[str, tuple[float, list[str]]] = {}

    async def accounts(self, channel: str) -> list[str]:
        """The accounts of a channel that something waits for, as they were at most a second ago."""
        at, found = self._accounts.get(channel, (-math.inf, []))
        if monotonic() - at > ACCOUNTS_SECONDS:
            found = [one.account_id for one in await self._waiting(channel)]
            self._accounts[channel] = monotonic(), found
        return found

    @asynccontextmanager
    async def room(self, scopes: Sequence[Scope]) -> AsyncIterator[Callable[[int], None]]:
        """Make sure that there is room for an action of each scope, none of which is connected.

        A channel's bodies take turns, until they are recorded, and the position of the last event is given to
        what this yields. Raises ProblemError (409, 429).
        """
        counts = Counter(scopes)
        async with self._turns[scopes[0].channel]:
            for scope, count in counts.items():
                await self._check(scope, count)
            yield lambda position: self._note(scopes, position)

    def _note(self, scopes: Sequence[Scope], position: int) -> None:
        for scope in scopes:
            before = self._recorded.get(scope.scope_id, 0)
            self._recorded[scope.scope_id] = max(before, position)
            at, found = self._accounts.get(scope.channel, (-math.inf, []))
            if scope.account not in found:
                self._accounts[scope.channel] = at, [*found, scope.account]

    async def _check(self, scope: Scope, count: int) -> None:
        where = {"account": scope.account, "channel": scope.channel}
        if self._limit == 0:
            raise ProblemError(409, NONE_KEPT.format(**where))
        accounts = await self.accounts(scope.channel)
        if scope.account not in accounts and len(accounts) >= ACCOUNTS_MAX:
            detail = NO_MORE_ACCOUNTS.format(limit=ACCOUNTS_MAX)
            raise ProblemError(429, detail, retry_after=RETRY_AFTER_SECONDS)
        await self._projector.wait_for(self._recorded.get(scope.scope_id, 0))
        (waiting,) = await self._waiting(scope.channel, scope.account) or (None,)
        if waiting and (waiting.seconds or 0) > self._days * DAY_SECONDS:
            raise ProblemError(409, TOO_LONG.format(days=self._days, **where))
        if (waiting.deliveries if waiting else 0) + count > self._limit:
            detail = TOO_MANY.format(limit=self._limit, **where)
            raise ProblemError(429, detail, retry_after=RETRY_AFTER_SECONDS)

    async def _waiting(self, channel: str, account: str | None = None) -> list[Waiting]:
        return await waiting(self._pool, channel, account)


async def waiting(pool: Pool, channel: str | None = None, account: str | None = None) -> list[Waiting]:
    """The accounts that are not connected and for which deliveries wait, at most a thousand."""
    return await pool.fetch(Waiting, WAITING, {"channel": channel, "account": account}, prepare=False)
