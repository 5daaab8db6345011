"""Whose a conversation or a message is: the one question behind every look at what a key reaches."""

from msgspec import Struct

from app.database.pool import Pool
from app.views.accounts import connected
from app.views.cursor import is_uuid
from app.views.messages import get_message

ACCOUNT = "".join(
    (
        "SELECT account_id FROM conversations AS c WHERE id = coalesce(",
        "(SELECT winner FROM merges WHERE loser = %(id)s::uuid), %(id)s::uuid) AND ",
        connected("c"),
    )
)


class _Row(Struct):
    account_id: str | None


async def account_of_conversation(pool: Pool, conversation: str) -> str | None:
    """Returns the account of a conversation; None if it is unknown, or of no account's."""
    if not is_uuid(conversation):
        return None
    rows = await pool.fetch(_Row, ACCOUNT, {"id": conversation})
    return rows[0].account_id if rows else None


async def account_of_message(pool: Pool, message: str) -> str | None:
    """Returns the account of a message, by any id that `get_message` takes; None as for a conversation."""
    found = await get_message(pool, message)
    return await account_of_conversation(pool, found.conversation) if found else None
