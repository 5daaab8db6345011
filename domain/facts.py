"""Facts about a message, treated alike whether a command reports them or they waited for its id."""

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from domain import commands as c
from domain import events as e
from domain.draft import Draft
from domain.ids import KOMMO, MESSENGER, other
from domain.state import RANKS, Key, Message, edit_key, key, reaction_key

AboutMessage: TypeAlias = c.Edit | c.Delete | c.Confirm | c.React
FactEvent: TypeAlias = e.MessageEdited | e.MessageDeleted | e.Status | e.Reaction
STATUS: dict[str, type[e.Status]] = {
    "delivered": e.MessageDelivered,
    "read": e.MessageRead,
    "failed": e.MessageFailed,
}


class Fact(Struct, frozen=True):
    """An event to record about a message: its kind, time, source and own fields; `key` identifies repeats."""

    kind: type[FactEvent]
    at: str
    by: str
    fields: Mapping[str, object]
    key: Key = ""


def fact_of_command(command: AboutMessage) -> Fact:
    """Returns the fact that a command reports."""
    at, by = command.at, command.by
    match command:
        case c.Edit():
            fields = {"content": command.content, "delivery_status": command.delivery_status}
            return Fact(e.MessageEdited, at, by, fields, edit_key(at, command.content))
        case c.Delete():
            return Fact(e.MessageDeleted, at, by, {}, "message.deleted")
        case c.Confirm():
            more = {"code": command.code, "text": command.text} if command.status == "failed" else {}
            return Fact(STATUS[command.status], at, by, more, f"message.{command.status}")
        case c.React():
            kind = e.ReactionRemoved if command.removed else e.ReactionAdded
            sender, emoji = command.sender, command.emoji
            reaction = {"sender": sender, "emoji": emoji, "content": e.Ends()}
            return Fact(kind, at, by, reaction, reaction_key(kind, at, sender, emoji))


def fact_of_event(event: e.MessageEvent) -> Fact | None:
    """Returns the fact that an event recorded before its message was known, None if it is no such fact."""
    fields: dict[str, object]
    match event:
        case e.MessageEdited():
            fields = {"content": event.content, "delivery_status": event.delivery_status}
        case e.MessageDeleted() | e.MessageDelivered() | e.MessageRead():
            fields = {}
        case e.MessageFailed():
            fields = {"code": event.code, "text": event.text}
        case e.ReactionAdded() | e.ReactionRemoved():
            fields = {"sender": event.sender, "emoji": event.emoji, "content": event.content}
        case _:
            return None
    return Fact(type(event), event.at, event.by, {**fields, "cause": event.id}, key(event))


def apply(draft: Draft, stream: str, event: e.MessageEvent) -> None:
    """Record a fact that waited for a message, now that the message is known."""
    message, fact = draft.message(stream), fact_of_event(event)
    if message is None or message.sent is None or fact is None:
        return
    if fact.kind in STATUS.values() and e.author(message.sent) == MESSENGER:
        return  # The message turned out to be the messenger's own, which has no status to report.
    if event.stream != stream and fact.key in message.seen:
        return
    record(draft, stream, fact)


def record(draft: Draft, stream: str, fact: Fact) -> FactEvent:
    """Append a fact to a stream: complete for delivery if the message is known, else to wait there."""
    message = draft.message(stream)
    fields = dict(fact.fields)
    if message and message.sent:
        fields |= {"conversation": message.sent.conversation, "message": stream}
        fields |= _push(message, message.sent, fact)
    return draft.add(fact.kind, stream, fields, at=fact.at, by=fact.by)


def _push(message: Message, sent: e.MessageSent, fact: Fact) -> dict[str, object]:
    """Returns the side that the fact must be delivered to, and that side's id of the message.

    Kommo's id of an operator's message may be learned later than its status; then the delivery looks it up.
    """
    sent_by = e.author(sent)
    if fact.kind is e.MessageEdited:
        newest = fact.at >= message.edited[0] and not message.deleted
        wanted = sent_by == MESSENGER and newest
        return {"push": KOMMO, "remote_id": message.remote_id} if wanted else {}
    if fact.kind in STATUS.values():
        rank = RANKS[str(fact.kind.__struct_config__.tag).removeprefix("message.")]
        push = {"push": KOMMO} if rank > message.rank else {}
        if sent_by == MESSENGER:
            return {}
        return {"remote_id": sent.own_id if sent_by == KOMMO else message.kommo_id, **push}
    if fact.kind is e.MessageDeleted:
        return {}
    ends = e.Ends(sent.content.conversation_id, sent.content.chat_id)
    side = fact.by if fact.by == KOMMO else MESSENGER
    return {"content": ends, "sent_by": sent_by, "own_id": sent.own_id, "push": other(side)}
