"""What comes for an account that is not connected is kept for it, so much and for so long.

Such an action is an event like any other. Its delivery is parked until the connection is made, which takes it
up in order. What waits is counted in the view of deliveries, once the view has all that this process has
recorded for the account: so a limit holds however fast a messenger posts. Only another process may add a body
that it has under way at the same moment. What all such accounts of a channel have together is counted once a
second; what this process takes is added meanwhile.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import NamedTuple

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
# Chosen: all accounts of a channel together have the room of so many, so a messenger that makes up accounts
# fills no disk; a channel is rarely connected late to more.
FULL_ACCOUNTS_MAX = 10
# Chosen: an account for which nothing is to be delivered, only facts, counts among them for so long.
NAMED_SECONDS = 3600.0
# Chosen: an account is rarely named for the first time, and by another process than this one.
ACCOUNTS_SECONDS = 1.0
TOO_MANY = (
    "account {account} is not connected, and {limit} deliveries wait for it already: connect it with POST"
    " /v1/channels/{channel}/connections, then send this again"
)
CHANNEL_FULL = (
    "{limit} deliveries wait for accounts that the channel is not connected to: connect them with POST"
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


class _Kept(Struct):
    """What waits for a channel's accounts, as it was `at` a time in monotonic seconds; new is added since."""

    at: float
    accounts: list[str]
    deliveries: int


class Room(NamedTuple):
    """Which accounts have no room, and why; `note` is to be told what was recorded for the others.

    It takes the actions of each account, and the position of the last event.
    """

    refused: Mapping[str, ProblemError]
    note: Callable[[Mapping[str, int], int], None]


class Unconnected:
    """The room that accounts without a connection have."""

    def __init__(self, pool: Pool, projector: Projector, *, limit: int, days: int) -> None:
        """`limit` deliveries of an account are kept, and none once the oldest is `days` old.

        A channel's accounts have ten times as many together.
        """
        self._pool = pool
        self._projector = projector
        self._limit = limit
        self._days = days
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # By channel and account: when something was recorded, in monotonic seconds, and at which position.
        self._recorded: defaultdict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
        self._kept: dict[str, _Kept] = {}

    async def accounts(self, channel: str) -> list[str]:
        """The accounts of a channel that something waits for, as they were at most a second ago."""
        return (await self._kept_of(channel)).accounts

    async def _kept_of(self, channel: str) -> _Kept:
        kept = self._kept.get(channel)
        if kept is None or monotonic() - kept.at > ACCOUNTS_SECONDS:
            found = await self._waiting(channel)
            accounts, deliveries = [one.account_id for one in found], sum(one.deliveries for one in found)
            kept = self._kept[channel] = _Kept(monotonic(), accounts, deliveries)
        return kept

    @asynccontextmanager
    async def room(self, scopes: Sequence[Scope]) -> AsyncIterator[Room]:
        """Look whether there is room for an action of each scope, none of which is connected.

        A channel's bodies take turns, until they are recorded.
        """
        counts = Counter(scope.account for scope in scopes)
        channel = scopes[0].channel
        async with self._turns[channel]:
            refused = await self._refused(channel, counts)
            yield Room(refused, lambda taken, position: self._note(channel, taken, position))

    def _note(self, channel: str, taken: Mapping[str, int], position: int) -> None:
        recorded, now, kept = self._recorded[channel], monotonic(), self._kept.get(channel)
        for account in taken:
            _, before = recorded.get(account, (now, 0))
            recorded[account] = now, max(before, position)
        if kept:
            kept.accounts = list(dict.fromkeys((*kept.accounts, *taken)))
            kept.deliveries += sum(taken.values())

    async def _refused(self, channel: str, counts: Mapping[str, int]) -> dict[str, ProblemError]:
        """Why there is no room for actions, by account; those before them in the body have it first."""
        if self._limit == 0:
            where = {"channel": channel}
            return {one: ProblemError(409, NONE_KEPT.format(account=one, **where)) for one in counts}
        recorded, refused = self._recorded_lately(channel), dict[str, ProblemError]()
        await self._projector.wait_for(max((position for _, position in recorded.values()), default=0))
        kept = await self._kept_of(channel)
        known, deliveries = {*kept.accounts, *recorded}, kept.deliveries
        found = {one.account_id: one for one in await self._waiting(channel, list(counts))}
        for account, count in counts.items():
            if account not in known and len(known) >= ACCOUNTS_MAX:
                refused[account] = _full(NO_MORE_ACCOUNTS.format(limit=ACCOUNTS_MAX))
            elif wrong := self._wrong(channel, account, found.get(account), count):
                refused[account] = wrong
            elif deliveries + count > (most := self._limit * FULL_ACCOUNTS_MAX):
                refused[account] = _full(CHANNEL_FULL.format(limit=most, channel=channel))
            else:
                known.add(account)
                deliveries += count
        return refused

    def _wrong(self, channel: str, account: str, waiting: Waiting | None, count: int) -> ProblemError | None:
        """Why an account has no room for so many more actions, None if it has."""
        where = {"account": account, "channel": channel}
        if waiting and (waiting.seconds or 0) > self._days * DAY_SECONDS:
            return ProblemError(409, TOO_LONG.format(days=self._days, **where))
        if (waiting.deliveries if waiting else 0) + count > self._limit:
            return _full(TOO_MANY.format(limit=self._limit, **where))
        return None

    def _recorded_lately(self, channel: str) -> dict[str, tuple[float, int]]:
        """What this process has recorded for a channel's accounts, without what is long ago."""
        since, recorded = monotonic() - NAMED_SECONDS, self._recorded[channel]
        for account in [account for account, (at, _) in recorded.items() if at < since]:
            del recorded[account]
        return recorded

    async def _waiting(self, channel: str, accounts: list[str] | None = None) -> list[Waiting]:
        return await waiting(self._pool, channel, accounts)


def _full(detail: str) -> ProblemError:
    return ProblemError(429, detail, retry_after=RETRY_AFTER_SECONDS)


async def waiting(pool: Pool, channel: str | None = None, accounts: list[str] | None = None) -> list[Waiting]:
    """The accounts that are not connected and for which deliveries wait, at most a thousand."""
    return await pool.fetch(Waiting, WAITING, {"channel": channel, "accounts": accounts}, prepare=False)
