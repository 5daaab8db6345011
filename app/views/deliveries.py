"""Reads deliveries that are not done: open, deferred, parked or failed."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from app.database.pool import Pool
from app.views.accounts import of_accounts
from app.views.cursor import LIMIT, decode_cursor, encode_cursor

COUNTS = "SELECT state, count(*) AS count, min(position) AS oldest FROM deliveries GROUP BY state"
OPEN_BY_ACCOUNT = """
SELECT channel, account_id, count(*) AS count FROM deliveries
WHERE state IN ('open', 'deferred') AND account_id IS NOT NULL GROUP BY channel, account_id
"""
# What waits for a destination that rests is tried when that is; until it was tried itself, that is why it
# waits. `to_jsonb` of the row, because views of an older version, which are in force while new ones are
# built, lack the column.
DELIVERIES = "".join(
    (
        """
SELECT d.position, d.id::text, d.type, d.destination, d.channel, d.account_id, d.conversation::text,
  d.message::text, CASE d.state WHEN 'open' THEN 'pending' ELSE d.state END AS state,
  coalesce(d.reason, CASE r.destination WHEN 'kommo' THEN 'the account rests: ' || r.reason || ' from Kommo'
    ELSE 'the channel rests: ' || r.reason || ' from the messenger' END) AS reason,
  coalesce(to_jsonb(d) ->> 'answer', r.answer) AS answer,
  greatest(d.attempts, coalesce(t.attempts, 0)) AS attempts, d.updated,
  to_char(d.recorded_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS recorded_at,
  CASE WHEN d.state IN ('open', 'deferred')
    THEN to_char(greatest(t.next_try_at, r.next_at), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') END AS next_try_at
FROM deliveries AS d LEFT JOIN ledger.tries AS t ON t.delivery = d.id
LEFT JOIN ledger.rests AS r ON r.channel = d.channel AND r.account_id = coalesce(d.account_id, '')
  AND r.destination = d.destination AND d.state IN ('open', 'deferred')
WHERE d.position > %(after)s::bigint
  AND (%(states)s::text[] IS NULL OR d.state = ANY (%(states)s::text[]))
  AND (%(reason)s::text IS NULL OR starts_with(d.reason, %(reason)s::text))
  AND (%(destination)s::text IS NULL OR d.destination = %(destination)s::text)
""",
        of_accounts("d"),
        """AND (%(conversation)s::uuid IS NULL OR d.conversation = %(conversation)s::uuid)
  AND (%(messages)s::uuid[] IS NULL OR d.send = ANY (%(messages)s::uuid[]))
  AND (%(since)s::timestamptz IS NULL OR d.recorded_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR d.recorded_at < %(until)s::timestamptz)
ORDER BY d.position LIMIT %(limit)s::bigint
""",
    )
)
FAILED_IMPORTS = """
SELECT EXISTS (SELECT 1 FROM deliveries WHERE state = 'failed' AND imported
  AND channel = %(channel)s::text AND account_id = %(account_id)s::text) AS found
"""
State: TypeAlias = Literal["pending", "deferred", "parked", "failed"]
Filter: TypeAlias = Literal["pending", "open", "deferred", "parked", "failed"]


class AccountRow(Struct):
    """How many deliveries of an account are open."""

    channel: str
    account_id: str
    count: int


class CountRow(Struct):
    """How many deliveries are in a state, and the position of the oldest one."""

    state: str
    count: int
    oldest: int


class Delivery(Struct, frozen=True, kw_only=True):
    """A delivery that is not done. `id` and `position` are those of the event that requires it.

    `reason` is ours, `answer` the other side's text. `attempts` counts the calls that failed.
    """

    position: int
    id: str
    type: str
    destination: str
    channel: str
    account_id: str | None
    conversation: str | None
    message: str | None
    state: State
    reason: str | None
    answer: str | None
    attempts: int
    next_try_at: str | None
    recorded_at: str
    updated: int


class DeliveryCounts(Struct, frozen=True):
    """How many deliveries are not done, and the position of the oldest one that has not failed."""

    pending: int
    deferred: int
    parked: int
    oldest_position: int | None
    failed: int = 0


class Deliveries(Struct, frozen=True):
    """A page of deliveries, and the cursor of the next page."""

    items: list[Delivery]
    next: str | None


async def list_deliveries(
    pool: Pool,
    *,
    states: Sequence[str] = (),
    reason: str | None = None,
    destination: str | None = None,
    channel: str | None = None,
    account_id: str | None = None,
    accounts: list[str] | None = None,
    conversation: str | None = None,
    since: str | None = None,
    until: str | None = None,
    messages: Sequence[str] | None = None,
    limit: int = LIMIT,
    cursor: str | None = None,
) -> Deliveries:
    """Returns a page of deliveries, the oldest first; without `states`, of every one. Raises BadCursor.

    `reason` is how their reason begins; `since` and `until` are when the event was recorded. `messages`: only
    those that send one of these. `accounts`: only those of these.
    """
    after = decode_cursor(cursor, int) if cursor else 0
    values: dict[str, object] = {
        "states": ["open" if one == "pending" else one for one in states] or None,
        "reason": reason,
        "destination": destination,
        "channel": channel,
        "account_id": account_id,
        "accounts": accounts,
        "conversation": conversation,
        "since": since,
        "until": until,
        "messages": None if messages is None else list(messages),
        "after": after,
        "limit": limit + 1,
    }
    rows = await pool.fetch(Delivery, DELIVERIES, values, prepare=False)
    items = rows[:limit]
    return Deliveries(items, encode_cursor(items[-1].position) if len(rows) > limit else None)


async def count_open(pool: Pool) -> dict[tuple[str, str], int]:
    """How many deliveries are open, by channel and account; those that have none are left out."""
    rows = await pool.fetch(AccountRow, OPEN_BY_ACCOUNT, {})
    return {(row.channel, row.account_id): row.count for row in rows}


class Found(Struct):
    """Whether there is any."""

    found: bool


async def has_failed_imports(pool: Pool, channel: str, account_id: str) -> bool:
    """Whether anything that was imported into a channel's account has failed."""
    values = {"channel": channel, "account_id": account_id}
    return any(row.found for row in await pool.fetch(Found, FAILED_IMPORTS, values, prepare=False))
