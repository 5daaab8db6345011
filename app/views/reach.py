"""Whose a conversation or a message is: the one question behind every look at what a key reaches."""

from msgspec import Struct

from app.database.pool import Pool
from app.views.cursor import is_uuid
from app.views.messages import get_message

# What a channel's messenger says of an account before they are connected is not the account's (`waiting`).
_CONNECTED = """ AND EXISTS (SELECT 1 FROM connections AS r
  WHERE r.channel = t.channel AND r.account_id = t.account_id)"""
CONVERSATION = "".join(
    (
        "SELECT account_id FROM conversations AS t WHERE id = coalesce(",
        "(SELECT winner FROM merges WHERE loser = %(id)s::uuid), %(id)s::uuid)",
        _CONNECTED,
    )
)
MESSAGE = "".join(("SELECT account_id FROM messages AS t WHERE id = %(id)s::uuid", _CONNECTED))


class _Row(Struct):
    account_id: str | None


async def account_of_conversation(pool: Pool, conversation: str) -> str | None:
    """Returns the account of a conversation; None if it is unknown, or of no account's."""
    if not is_uuid(conversation):
        return None
    rows = await pool.fetch(_Row, CONVERSATION, {"id": conversation})
    return rows[0].account_id if rows else None


async def account_of_message(pool: Pool, message: str) -> str | None:
    """Returns the account of a message, by any id that `get_message` takes; None as for a conversation."""
    found = await get_message(pool, message)
    rows = await pool.fetch(_Row, MESSAGE, {"id": found.id}) if found else []
    return rows[0].account_id if rows else None
