"""What comes for an account that is not connected is kept for it, so much and for so long.

Such an action is an event like any other. Its delivery is parked until the connection is made, which takes it
up in order. What waits is counted in the view of deliveries, once the view has all that this process has
recorded for the account: so a limit holds however fast a messenger posts. Only another process may add a body
that it has under way at the same moment.
"""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
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
# Chosen: an account for which nothing is to be delivered, only facts, counts among them for so long.
NAMED_SECONDS = 3600.0
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
    "the channel has actions for {limit} accounts that are not connected: check account_id, or connect them"
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
  AND (%(accounts)s::text[] IS NULL OR account_id = ANY (%(accounts)s::text[]))
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
        # By channel and account: when something was recorded, in monotonic seconds, and at which position.
        self._recorded: defaultdict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
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
        counts = Counter(scope.account for scope in scopes)
        channel = scopes[0].channel
        async with self._turns[channel]:
            await self._check(channel, counts)
            yield lambda position: self._note(channel, counts, position)

    def _note(self, channel: str, accounts: Iterable[str], position: int) -> None:
        recorded, now = self._recorded[channel], monotonic()
        for account in accounts:
            _, before = recorded.get(account, (now, 0))
            recorded[account] = now, max(before, position)
        at, found = self._accounts.get(channel, (-math.inf, []))
        self._accounts[channel] = at, list(dict.fromkeys((*found, *accounts)))

    async def _check(self, channel: str, counts: Mapping[str, int]) -> None:
        recorded = self._recorded_lately(channel)
        if self._limit == 0:
            raise ProblemError(409, NONE_KEPT.format(account=next(iter(counts)), channel=channel))
        known = {*await self.accounts(channel), *recorded}
        if not known.issuperset(counts) and len(known.union(counts)) > ACCOUNTS_MAX:
            detail = NO_MORE_ACCOUNTS.format(limit=ACCOUNTS_MAX)
            raise ProblemError(429, detail, retry_after=RETRY_AFTER_SECONDS)
        await self._projector.wait_for(max(recorded.get(account, (0.0, 0))[1] for account in counts))
        found = {one.account_id: one for one in await self._waiting(channel, list(counts))}
        for account, count in counts.items():
            waiting, where = found.get(account), {"account": account, "channel": channel}
            if waiting and (waiting.seconds or 0) > self._days * DAY_SECONDS:
                raise ProblemError(409, TOO_LONG.format(days=self._days, **where))
            if (waiting.deliveries if waiting else 0) + count > self._limit:
                detail = TOO_MANY.format(limit=self._limit, **where)
                raise ProblemError(429, detail, retry_after=RETRY_AFTER_SECONDS)

    def _recorded_lately(self, channel: str) -> dict[str, tuple[float, int]]:
        """What this process has recorded for a channel's accounts, without what is long ago."""
        since, recorded = monotonic() - NAMED_SECONDS, self._recorded[channel]
        for account in [account for account, (at, _) in recorded.items() if at < since]:
            del recorded[account]
        return recorded

    async def _waiting(self, channel: str, accounts: list[str] | None = None) -> list[Waiting]:
        return await waiting(self._pool, channel, accounts)


async def waiting(pool: Pool, channel: str | None = None, accounts: list[str] | None = None) -> list[Waiting]:
    """The accounts that are not connected and for which deliveries wait, at most a thousand."""
    return await pool.fetch(Waiting, WAITING, {"channel": channel, "accounts": accounts}, prepare=False)
