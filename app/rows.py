"""A row of a view becomes what the REST API tells, in one place."""

from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from app import shapes
from domain.events import AnyEvent, Content, MessageAccepted, Party, tag
from domain.state import STATUSES

_content = msgspec.json.Decoder(Content).decode
_party = msgspec.json.Decoder(Party).decode
_reactions = msgspec.json.Decoder(list[shapes.ReactionShown]).decode


class MessageRow(Struct):
    """A message as `queries.MESSAGE` gives it."""

    id: str
    position: int
    conversation: str
    channel: str
    account_id: str | None
    outgoing: bool
    sent_by: str
    own_id: str
    remote_id: str | None
    copy_id: str | None
    content: bytes
    sender: bytes
    receiver: bytes | None
    source: str | None
    silent: bool
    imported: bool
    sent_at: str
    recorded_at: str
    status: int
    failure_code: int | None
    failure_text: str | None
    edited_at: str | None
    deleted: bool
    reactions: str | None


class ConversationRow(Struct):
    """A conversation and its latest message."""

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
    content: bytes | None
    status: int | None
    deleted: bool | None


class EventRow(Struct):
    """An event's position and stored JSON."""

    position: int
    event: bytes


class PlaceRow(Struct):
    """A channel and account by their number."""

    id: int


class RangeRow(Struct):
    """The periods between which a time is."""

    low: int | None
    high: int | None


class CountRow(Struct):
    """How many deliveries are in a state, and the first."""

    state: str
    count: int
    oldest: int


class HeadRow(Struct):
    """The ledger's last position."""

    head: int


class ViewRow(Struct):
    """How far a view is."""

    view: str
    position: int


def told_conversation(row: ConversationRow) -> shapes.Conversation:
    """What is told of a conversation."""
    last = None
    if row.content is not None:
        content = _content(row.content)
        last = shapes.Snippet(
            direction="out" if row.outgoing else "in",
            type=content.type,
            text=None if row.deleted else content.text,
            status=STATUSES[row.status or 0],
            deleted=bool(row.deleted),
        )
    fields = asdict(row)
    for name in ("outgoing", "content", "status", "deleted"):
        del fields[name]
    return shapes.Conversation(**fields, last=last)


def told_message(row: MessageRow) -> dict[str, Any]:
    """The fields of a `shapes.Message`."""
    content = _content(row.content)
    told = {"type": content.type} if row.deleted else asdict(content)
    status = STATUSES[row.status]
    failed = status == "failed" and row.failure_code is not None
    return {
        "id": row.id,
        "position": row.position,
        "conversation": row.conversation,
        "channel": row.channel,
        "account_id": row.account_id,
        "direction": "out" if row.outgoing else "in",
        "sent_by": row.sent_by,
        **{name: value for name, value in told.items() if name not in ("conversation_id", "chat_id")},
        "sender": _party(row.sender),
        "receiver": _party(row.receiver) if row.receiver else None,
        "source": row.source,
        "silent": row.silent,
        "imported": row.imported,
        "sent_at": row.sent_at,
        "recorded_at": row.recorded_at,
        "status": status,
        "failure": shapes.Failure(row.failure_code or 0, row.failure_text or "") if failed else None,
        "remote": _remote(row),
        "edited": row.edited_at is not None,
        "edited_at": row.edited_at,
        "deleted": row.deleted,
        "reactions": _reactions(row.reactions) if row.reactions else [],
    }


def _remote(row: MessageRow) -> shapes.Remote:
    match row.sent_by:
        case "kommo":
            return shapes.Remote(row.own_id, row.remote_id)
        case "messenger":
            return shapes.Remote(row.remote_id, row.own_id)
        case _:
            return shapes.Remote(row.copy_id, row.remote_id)


def told_moment(position: int, event: AnyEvent) -> shapes.Moment:
    """One line of a timeline."""
    evidence = {name: getattr(event, name, None) for name in _EVIDENCE}
    return shapes.Moment(
        position=position,
        id=event.id,
        type=tag(event),
        at=event.at,
        recorded_at=event.recorded_at,
        by=event.by,
        cause=event.cause,
        copy=isinstance(event, MessageAccepted) and event.copy,
        **evidence,
    )


_EVIDENCE = ("push", "side", "remote_id", "code", "text", "emoji", "reason", "superseded")
