"""Whose a conversation or a message is: the one question behind every look at what a key reaches.

A look costs the same whether there is nothing of an id or something of another account, so that the time of
an answer tells as little as its text.
"""

import contextlib

from msgspec import Struct

from app.database.packed import unpack
from app.database.pool import Pool
from app.views.accounts import connected
from app.views.cursor import is_uuid
from app.views.events import EventRow
from domain.events import MessageNamed, decode

ACCOUNT = "".join(
    (
        "SELECT account_id FROM conversations AS c WHERE id = coalesce(",
        "(SELECT winner FROM merges WHERE loser = %(id)s::uuid), %(id)s::uuid) AND ",
        connected("c"),
    )
)
ACCOUNT_OF_MESSAGE = "".join(
    (
        "SELECT c.account_id FROM messages AS m JOIN conversations AS c ON c.id = coalesce(",
        "(SELECT winner FROM merges WHERE loser = m.conversation), m.conversation)",
        " WHERE m.id = %(id)s::uuid AND ",
        connected("c"),
    )
)
NAMED = """SELECT notification_id AS position, state AS event FROM ledger.stored_events
 WHERE originator_id = %(stream)s::uuid AND topic = 'message.named' ORDER BY originator_version LIMIT 1"""


class _Row(Struct):
    account_id: str | None


async def account_of_conversation(pool: Pool, conversation: str) -> str | None:
    """Returns the account of a conversation; None if it is unknown, or of no account's."""
    return await _account(pool, ACCOUNT, conversation) if is_uuid(conversation) else None


async def account_of_message(pool: Pool, message: str) -> str | None:
    """Returns the account of a message, by our id or a side's own; None as for a conversation."""
    if not is_uuid(message):
        return None
    for row in await pool.fetch(EventRow, NAMED, {"stream": message}):
        with contextlib.suppress(ValueError, RecursionError):  # A damaged name names nothing.
            named = decode(unpack(row.event))
            message = named.message or message if isinstance(named, MessageNamed) else message
    return await _account(pool, ACCOUNT_OF_MESSAGE, message)


async def _account(pool: Pool, statement: str, id_: str) -> str | None:
    rows = await pool.fetch(_Row, statement, {"id": id_})
    return rows[0].account_id if rows else None
