"""SQL and answers of the list of facts that wait for an unknown name."""

from msgspec import Struct

from app.database.pool import Pool
from app.views.accounts import of_accounts
from app.views.cursor import LIMIT, decode_cursor, encode_cursor

WAITING = "".join(
    (
        """
SELECT position, id::text, stream::text AS message, type, by, channel, account_id,
  to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at,
  to_char(recorded_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS recorded_at
FROM waiting WHERE position > %(after)s::bigint""",
        of_accounts("waiting"),
        """AND (%(message)s::uuid IS NULL OR stream = %(message)s::uuid)
ORDER BY position LIMIT %(limit)s::bigint
""",
    )
)


class WaitingFact(Struct, frozen=True):
    """A fact that waits: `message` is the id that a message of this name would have."""

    position: int
    id: str
    message: str
    type: str
    by: str
    channel: str
    account_id: str | None
    at: str
    recorded_at: str


class Waiting(Struct, frozen=True):
    """A page of facts that wait, and the cursor of the next page."""

    items: list[WaitingFact]
    next: str | None


async def list_waiting(
    pool: Pool,
    *,
    channel: str | None = None,
    account_id: str | None = None,
    accounts: list[str] | None = None,
    message: str | None = None,
    limit: int = LIMIT,
    cursor: str | None = None,
) -> Waiting:
    """Returns a page of the facts that wait, the oldest first, of these accounts only.

    Raises BadCursor, BadFilter.
    """
    values = {
        "channel": channel,
        "account_id": account_id,
        "accounts": accounts,
        "message": message,
        "after": decode_cursor(cursor, int) if cursor else 0,
        "limit": limit + 1,
    }
    rows = await pool.fetch(WaitingFact, WAITING, values, prepare=False)
    items = rows[:limit]
    return Waiting(items, encode_cursor(items[-1].position) if len(rows) > limit else None)
