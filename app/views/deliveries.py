"""Reads deliveries that are not done: open, deferred or parked."""

from typing import Literal

from msgspec import Struct

from app.database.pool import Pool
from app.views.cursor import LIMIT, decode_cursor, encode_cursor

COUNTS = "SELECT state, count(*) AS count, min(position) AS oldest FROM deliveries GROUP BY state"
DELIVERIES = """
SELECT position, id::text, type, destination, channel, account_id, conversation::text, message::text, state,
  reason, attempts, updated, to_char(recorded_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS recorded_at
FROM deliveries WHERE position > %(after)s::bigint
  AND (%(state)s::text IS NULL OR state = %(state)s::text)
  AND (%(destination)s::text IS NULL OR destination = %(destination)s::text)
  AND (%(channel)s::text IS NULL OR channel = %(channel)s::text)
  AND (%(account_id)s::text IS NULL OR account_id = %(account_id)s::text)
  AND (%(conversation)s::uuid IS NULL OR conversation = %(conversation)s::uuid)
ORDER BY position LIMIT %(limit)s::bigint
"""


class CountRow(Struct):
    """How many deliveries are in a state, and the position of the oldest one."""

    state: str
    count: int
    oldest: int


class Delivery(Struct, frozen=True, kw_only=True):
    """A delivery that is not done. `id` and `position` are those of the event that requires it."""

    position: int
    id: str
    type: str
    destination: str
    channel: str
    account_id: str | None
    conversation: str | None
    message: str | None
    state: Literal["open", "deferred", "parked"]
    reason: str | None
    attempts: int
    recorded_at: str
    updated: int


class DeliveryCounts(Struct, frozen=True):
    """How many deliveries are not done, and the position of the oldest one."""

    pending: int
    deferred: int
    parked: int
    oldest_position: int | None


class Deliveries(Struct, frozen=True):
    """A page of deliveries, and the cursor of the next page."""

    items: list[Delivery]
    next: str | None


async def list_deliveries(
    pool: Pool,
    *,
    state: str | None = None,
    destination: str | None = None,
    channel: str | None = None,
    account_id: str | None = None,
    conversation: str | None = None,
    limit: int = LIMIT,
    cursor: str | None = None,
) -> Deliveries:
    """Returns a page of deliveries, the oldest first. Raises BadCursor."""
    after = decode_cursor(cursor, int) if cursor else 0
    values: dict[str, object] = {
        "state": state,
        "destination": destination,
        "channel": channel,
        "account_id": account_id,
        "conversation": conversation,
        "after": after,
        "limit": limit + 1,
    }
    rows = await pool.fetch(Delivery, DELIVERIES, values, prepare=False)
    items = rows[:limit]
    return Deliveries(items, encode_cursor(items[-1].position) if len(rows) > limit else None)
