"""Reads messages as they stand now, and the timeline of each."""

import contextlib
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from app.database.packed import unpack
from app.database.pool import Pool
from app.views.cursor import LIMIT, POSITION_LAST, decode_cursor, encode_cursor, is_uuid
from app.views.events import UNREADABLE, EventRow
from domain.content import Way, carrying, names
from domain.events import (
    AnyEvent,
    Content,
    Json,
    MessageAccepted,
    MessageEdited,
    MessageNamed,
    MessageSent,
    Party,
    Reply,
    decode,
    tag,
)
from domain.state import STATUSES
from projections.columns import plain


class Failure(Struct, frozen=True):
    """Why a message did not arrive: one of Kommo's codes (901..905) and a text."""

    code: int
    text: str


class Remote(Struct, frozen=True):
    """The id that each side has given to a message."""

    kommo: str | None
    messenger: str | None


class ReactionShown(Struct, frozen=True):
    """Somebody's reaction; `by` is the side that the sender is on."""

    emoji: str
    by: str
    sender_id: str
    at: str


@carrying(Way.SHOWN)
class Message(Struct, frozen=True, kw_only=True):
    """A message as it stands now, with the fields of its content; a deleted message has none but its type.

    `sent_by` is the side that sent it: the messenger also if the business wrote on its own phone ("out").

    `file_size` is in bytes, `media_duration` in seconds. `failure` is present while the status is "failed".
    """

    id: str
    position: int
    conversation: str
    channel: str
    account_id: str | None
    direction: Literal["in", "out"]
    sent_by: str
    type: str
    text: str | None = None
    shared_post: Json | None = None
    post: Json | None = None
    reply_to: Reply | None = None
    sender: Party
    receiver: Party | None
    source: str | None
    silent: bool
    imported: bool
    sent_at: str
    recorded_at: str
    status: str
    failure: Failure | None
    remote: Remote
    edited: bool
    edited_at: str | None
    deleted: bool
    reactions: list[ReactionShown]


class Moment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a message's stream: its type and time, the side that reported it, and the evidence.

    `copy`: the event is about the mirror, in Kommo, of a message that an operator sent. `answer` is the other
    side's text, `left_out` names what a message was sent again without, `warning` says what is wrong with it.
    `about` is what a conflict is about, and `remote_id` the name that stands for something else. `claimed_at`
    is the source's time where it was too far ahead to be believed.
    """

    position: int
    id: str
    type: str
    at: str
    recorded_at: str
    by: str
    cause: str | None = None
    push: str | None = None
    side: str | None = None
    remote_id: str | None = None
    code: int | None = None
    text: str | None = None
    emoji: str | None = None
    reason: str | None = None
    answer: str | None = None
    superseded: str | None = None
    copy: bool = False
    left_out: list[str] = []
    warning: str | None = None
    about: str | None = None
    claimed_at: str | None = None


class History(Message, frozen=True, kw_only=True):
    """A message and all its transitions, in order."""

    timeline: list[Moment]


class Messages(Struct, frozen=True):
    """A page of messages, and the cursor of the next page."""

    items: list[Message]
    next: str | None


class MessageRow(Struct):
    """A message as MESSAGE and MESSAGES return it.

    `event` sends it, `edit` has the content in force, the rest is known without them.
    """

    id: str
    position: int
    conversation: str
    outgoing: bool
    sent_by: str
    remote_id: str | None
    copy_id: str | None
    source: str | None
    sent_at: str
    status: int
    failure_code: int | None
    failure_text: str | None
    edited_at: str | None
    deleted: bool
    reactions: str | None
    event: bytes | None
    edit: bytes | None
    channel: str | None
    account_id: str | None


class _EventRow(Struct):
    event: bytes


class _IdRow(Struct):
    id: str


class _PositionRow(Struct):
    position: int


SHOWN = names(Way.SHOWN)
_reactions = msgspec.json.Decoder(list[ReactionShown]).decode
UNNAMED = "the answer gave no message_id: what happens to the message there is not known here"
_EVIDENCE = (
    *("push", "side", "remote_id", "code", "text", "emoji", "reason", "answer", "superseded", "about"),
)

# Columns that views of an older version have too.
_MESSAGE = """
SELECT m.id::text, m.position, m.conversation::text, m.outgoing, m.sent_by, m.remote_id, m.copy_id, m.source,
  m.status, m.failure_code, m.failure_text, m.deleted, c.channel, c.account_id,
  to_char(m.sent_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS sent_at,
  to_char(m.edited_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS edited_at,
  (SELECT json_agg(json_build_object('emoji', r.emoji, 'by', r."by", 'sender_id', r.sender_id,
      'at', to_char(r.at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')) ORDER BY r.at, r.position)::text
    FROM reactions AS r WHERE r.message = m.id AND NOT r.removed) AS reactions,
  (SELECT state FROM ledger.stored_events WHERE notification_id = m.position) AS event,
  (SELECT state FROM ledger.stored_events WHERE notification_id = m.edit) AS edit
FROM messages AS m LEFT JOIN conversations AS c ON c.id = m.conversation
"""
_IN_CONVERSATION = """
WHERE m.conversation = coalesce((SELECT winner FROM merges WHERE loser = %(conversation)s::uuid),
  %(conversation)s::uuid)
"""
MESSAGE = "".join((_MESSAGE, "WHERE m.id = %(id)s::uuid"))
MESSAGES = "".join(
    (
        _MESSAGE,
        _IN_CONVERSATION,
        "AND m.position > %(position)s::bigint ORDER BY m.position LIMIT %(limit)s::bigint",
    )
)
MESSAGES_DESCENDING = "".join(
    (
        _MESSAGE,
        _IN_CONVERSATION,
        "AND m.position < %(position)s::bigint ORDER BY m.position DESC LIMIT %(limit)s::bigint",
    )
)
DELETED = """
SELECT e.state AS event FROM messages AS m
JOIN ledger.stored_events AS e ON e.notification_id = coalesce(m.edit, m.position)
WHERE m.id = %(id)s::uuid AND m.deleted
"""
DELETED_AMONG = "SELECT id::text FROM messages WHERE id = ANY (%(ids)s::uuid[]) AND deleted"
POSITION_SINCE = "".join(
    (
        "SELECT m.position FROM messages AS m",
        _IN_CONVERSATION,
        "AND m.sent_at >= %(since)s::timestamptz ORDER BY m.position LIMIT 1",
    )
)
STREAM = """
SELECT notification_id AS position, state AS event FROM ledger.stored_events
WHERE originator_id = %(stream)s::uuid ORDER BY originator_version
"""

Order: TypeAlias = Literal["asc", "desc"]


def content_of(event: bytes | None) -> Content:
    """Returns the content that a stored event gives a message; of a damaged event one that says so."""
    read = _readable(event)
    return read.content if isinstance(read, MessageSent | MessageEdited) else Content(type=UNREADABLE)


class _Parties(Struct, gc=False):
    sender: Party = Party()
    receiver: Party | None = None


_parties = msgspec.json.Decoder(_Parties).decode


def customer_in(event: bytes | None, *, outgoing: bool) -> Party | None:
    """Returns the customer of a stored message, if known: its sender, or whom an outgoing one was sent to."""
    try:
        parties = _parties(unpack(event or b""))
    except (ValueError, RecursionError):
        return None
    return parties.receiver if outgoing else parties.sender


def _readable(event: bytes | None) -> AnyEvent | None:
    try:
        read: AnyEvent = decode(unpack(event or b""))
    except (ValueError, RecursionError):
        return None
    return read


def message_fields(row: MessageRow) -> dict[str, Any]:
    """Returns the fields of a `Message`; if its event is damaged, those that are known without it."""
    read = _readable(row.event)
    sent = read if isinstance(read, MessageSent) else None
    content = content_of(row.edit or row.event)
    shown = ("type",) if row.deleted else SHOWN
    status = STATUSES[row.status]
    failed = status == "failed" and row.failure_code is not None
    return {
        "id": row.id,
        "position": row.position,
        "conversation": row.conversation,
        "channel": sent.channel if sent else row.channel or "",
        "account_id": sent.account if sent else row.account_id,
        "direction": "out" if row.outgoing else "in",
        "sent_by": row.sent_by,
        **{name: getattr(content, name) for name in shown},
        "sender": sent.sender if sent else Party(),
        "receiver": sent.receiver if sent else None,
        "source": row.source,
        "silent": bool(sent and sent.silent),
        "imported": bool(sent and sent.imported),
        "sent_at": row.sent_at,
        "recorded_at": sent.recorded_at if sent else row.sent_at,
        "status": status,
        "failure": Failure(row.failure_code or 0, row.failure_text or "") if failed else None,
        "remote": _remote(row, plain(sent.own_id) if sent else None),
        "edited": row.edited_at is not None,
        "edited_at": row.edited_at,
        "deleted": row.deleted,
        "reactions": _reactions(row.reactions) if row.reactions else [],
    }


def _remote(row: MessageRow, own_id: str | None) -> Remote:
    match row.sent_by:
        case "kommo":
            return Remote(own_id, row.remote_id)
        case "messenger":
            return Remote(row.remote_id, own_id)
        case _:
            return Remote(row.copy_id, row.remote_id)


def moment_of(position: int, event: AnyEvent) -> Moment:
    """Returns the line of a timeline that an event makes."""
    evidence = {name: getattr(event, name, None) for name in _EVIDENCE}
    return Moment(
        position=position,
        id=event.id,
        type=tag(event),
        at=event.at,
        recorded_at=event.recorded_at,
        by=event.by,
        cause=event.cause,
        copy=isinstance(event, MessageAccepted) and event.copy,
        claimed_at=event.claimed_at,
        left_out=event.left_out if isinstance(event, MessageAccepted) else [],
        warning=UNNAMED if isinstance(event, MessageAccepted) and event.remote_id is None else None,
        **evidence,
    )


async def list_messages(
    pool: Pool, conversation: str, *, limit: int = LIMIT, cursor: str | None = None, order: Order = "asc"
) -> Messages:
    """Returns a page of a conversation's messages by position; of the one it was merged into, if it was."""
    if not is_uuid(conversation):
        return Messages([], None)
    start = 0 if order == "asc" else POSITION_LAST
    position = decode_cursor(cursor, int) if cursor else start
    values: dict[str, object] = {"conversation": conversation, "position": position, "limit": limit + 1}
    statement = MESSAGES if order == "asc" else MESSAGES_DESCENDING
    rows = await pool.fetch(MessageRow, statement, values)
    items = [Message(**message_fields(row)) for row in rows[:limit]]
    return Messages(items, encode_cursor(items[-1].position) if len(rows) > limit else None)


async def get_message(pool: Pool, message: str) -> History | None:
    """Returns a message with its timeline, by our id or by the stream of a side's own id; None if unknown."""
    if not is_uuid(message):
        return None
    events = await _stream(pool, message)
    named = next((event for _, event in events if isinstance(event, MessageNamed)), None)
    if named and named.message:
        message = named.message
        events = await _stream(pool, message)
    rows = await pool.fetch(MessageRow, MESSAGE, {"id": message})
    if not rows:
        return None
    return History(**message_fields(rows[0]), timeline=[moment_of(*row) for row in events])


async def get_deleted(pool: Pool, message: str) -> Content | None:
    """Returns the last content of a deleted message, for those who may see it; None if it is not deleted."""
    rows = await pool.fetch(_EventRow, DELETED, {"id": message})
    return content_of(rows[0].event) if rows else None


async def deleted_among(pool: Pool, messages: list[str]) -> set[str]:
    """Returns those of these messages that are deleted."""
    if not messages:
        return set()
    rows = await pool.fetch(_IdRow, DELETED_AMONG, {"ids": [one for one in messages if is_uuid(one)]})
    return {row.id for row in rows}


async def position_since(pool: Pool, conversation: str, since: str) -> int | None:
    """Returns the position of a conversation's first message that was sent at `since` or later."""
    values = {"conversation": conversation, "since": since}
    rows = await pool.fetch(_PositionRow, POSITION_SINCE, values)
    return rows[0].position if rows else None


async def _stream(pool: Pool, stream: str) -> list[tuple[int, AnyEvent]]:
    """The events of a stream; one that cannot be decoded is parked for the view, and left out here."""
    events = []
    for row in await pool.fetch(EventRow, STREAM, {"stream": stream}):
        with contextlib.suppress(ValueError, RecursionError):
            events.append((row.position, decode(unpack(row.event))))
    return events
