"""Reads conversations: SQL, rows, and the answers made from them."""

from typing import Literal
from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict

from app.database.pool import Pool
from app.views.accounts import of_accounts
from app.views.cursor import LIMIT, decode_cursor, encode_cursor, is_uuid
from app.views.messages import content_of, customer_in
from domain.events import Party
from domain.state import STATUSES


class Snippet(Struct, frozen=True, kw_only=True):
    """The latest message of a conversation; no text if it has none or is deleted."""

    direction: Literal["in", "out"]
    type: str
    text: str | None
    status: str
    deleted: bool


class Conversation(Struct, frozen=True, kw_only=True):
    """A chat. `position` is that of its last event; `last` is its latest message, for a list."""

    id: str
    channel: str
    account_id: str | None
    conversation_id: str | None
    chat_id: str | None
    contact_id: int | None
    lead_id: int | None
    last_message_at: str | None
    messages: int
    position: int
    last: "Snippet | None" = None


class Conversations(Struct, frozen=True):
    """A page of conversations, and the cursor of the next page."""

    items: list[Conversation]
    next: str | None


class ConversationRow(Struct):
    """A conversation and its latest message, as CONVERSATION and CONVERSATIONS return them."""

    id: str
    channel: str
    account_id: str | None
    conversation_id: str | None
    chat_id: str | None
    contact_id: int | None
    lead_id: int | None
    last_message_at: str | None
    messages: int
    position: int
    outgoing: bool | None
    event: bytes | None
    status: int | None
    deleted: bool | None


# The customer is the sender of an incoming message, else the receiver of an outgoing one. Only the latest
# fifty messages are searched (chosen), so that a list costs the same however long its chats are.
CUSTOMERS = """
SELECT c.id::text, m.outgoing, e.state AS event FROM unnest(%(ids)s::uuid[]) AS c(id)
CROSS JOIN LATERAL (SELECT * FROM (SELECT outgoing, position FROM messages
    WHERE conversation = c.id ORDER BY position DESC LIMIT 50) AS latest
  ORDER BY outgoing, position DESC LIMIT 1) AS m
JOIN ledger.stored_events AS e ON e.notification_id = m.position
"""
MERGED = "SELECT loser::text AS id FROM merges WHERE winner = %(id)s::uuid"

_CONVERSATION = """
SELECT c.id::text, c.channel, c.account_id, c.conversation_id, c.chat_id, c.contact_id, c.lead_id, c.messages,
  c.position, to_char(c.last_message_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS last_message_at,
  m.outgoing, (SELECT state FROM ledger.stored_events WHERE notification_id = m.fact) AS event,
  m.status, m.deleted
"""
_LATEST = """
LEFT JOIN LATERAL (SELECT outgoing, coalesce(edit, position) AS fact, status, deleted FROM messages
  WHERE conversation = c.id ORDER BY position DESC LIMIT 1) AS m ON true
"""
CONVERSATION = "".join(
    (
        _CONVERSATION,
        "FROM conversations AS c",
        _LATEST,
        "WHERE c.id = coalesce((SELECT winner FROM merges WHERE loser = %(id)s::uuid), %(id)s::uuid)",
    )
)
CONVERSATIONS = "".join(
    (
        _CONVERSATION,
        "FROM (SELECT * FROM conversations WHERE true",
        of_accounts("conversations"),
        """AND (%(conversation_id)s::text IS NULL OR conversation_id = %(conversation_id)s::text)
  AND (%(chat_id)s::text IS NULL OR chat_id = %(chat_id)s::text)
  AND (%(position)s::bigint IS NULL OR (position, id) < (%(position)s::bigint, %(id)s::uuid))
  ORDER BY position DESC, id DESC LIMIT %(limit)s::bigint) AS c
""",
        _LATEST,
        "ORDER BY c.position DESC, c.id DESC",
    )
)


def conversation_of(row: ConversationRow) -> Conversation:
    """Returns the answer about a conversation."""
    last = None
    if row.outgoing is not None:
        content = content_of(row.event)
        last = Snippet(
            direction="out" if row.outgoing else "in",
            type=content.type,
            text=None if row.deleted else content.text,
            status=STATUSES[row.status or 0],
            deleted=bool(row.deleted),
        )
    fields = asdict(row)
    for name in ("outgoing", "event", "status", "deleted"):
        del fields[name]
    return Conversation(**fields, last=last)


class _PartyRow(Struct):
    id: str
    outgoing: bool
    event: bytes


class _Id(Struct):
    id: str


async def customers(pool: Pool, conversations: list[str]) -> dict[str, Party]:
    """Returns the customers of conversations, by conversation, as far as they are known."""
    if not conversations:
        return {}
    rows = await pool.fetch(_PartyRow, CUSTOMERS, {"ids": conversations})
    parties = {row.id: customer_in(row.event, outgoing=row.outgoing) for row in rows}
    return {id_: party for id_, party in parties.items() if party}


async def merged_into(pool: Pool, conversation: str) -> set[str]:
    """Returns the ids of the conversations that were merged into this one."""
    return {row.id for row in await pool.fetch(_Id, MERGED, {"id": conversation})}


async def list_conversations(
    pool: Pool,
    *,
    channel: str | None = None,
    account_id: str | None = None,
    conversation_id: str | None = None,
    chat_id: str | None = None,
    accounts: list[str] | None = None,
    limit: int = LIMIT,
    cursor: str | None = None,
) -> Conversations:
    """Returns a page of conversations, the latest activity first, of these accounts only.

    Raises BadCursor.
    """
    position, last = decode_cursor(cursor, tuple[int, UUID]) if cursor else (None, None)
    values = {
        "channel": channel,
        "account_id": account_id,
        "accounts": accounts,
        "conversation_id": conversation_id,
        "chat_id": chat_id,
        "position": position,
        "id": last,
        "limit": limit + 1,
    }
    rows = await pool.fetch(ConversationRow, CONVERSATIONS, values, prepare=False)
    items = [conversation_of(row) for row in rows[:limit]]
    more = len(rows) > limit
    return Conversations(items, encode_cursor((items[-1].position, items[-1].id)) if more else None)


async def get_conversation(pool: Pool, conversation: str) -> Conversation | None:
    """Returns a conversation, or the one (with another id) that it was merged into; None if unknown."""
    if not is_uuid(conversation):
        return None
    rows = await pool.fetch(ConversationRow, CONVERSATION, {"id": conversation})
    return conversation_of(rows[0]) if rows else None
