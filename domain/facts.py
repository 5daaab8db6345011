"""Facts about a message, treated alike whether a command reports them or they waited for its id.

A fact counts for the message that one of its names stands for, if that message is of the scope and of the
conversation that the fact names. Otherwise it waits under a name inside the scope, and is looked at again
when a message takes the name. A fact is a repeat if it equals the present state or comes with the same
request, and news if not: whoever reacts, takes it back and reacts again within one second reports three
facts.
"""

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from domain import commands as c
from domain import events as e
from domain.conversations import belongs
from domain.draft import Draft
from domain.ids import KOMMO, MESSENGER, other
from domain.state import RANKS, Key, Message, edit_key, key, reaction_key, request_key

AboutMessage: TypeAlias = c.Edit | c.Delete | c.Confirm | c.React
FactEvent: TypeAlias = e.MessageEdited | e.MessageDeleted | e.Status | e.Reaction
STATUS: dict[str, type[e.Status]] = {
    "delivered": e.MessageDelivered,
    "read": e.MessageRead,
    "failed": e.MessageFailed,
}


# Chosen: far more than people do with a message of a chat between two sides, and few enough that its stream
# is read in some 10 ms: nobody is charged for that, however many such messages are asked for.
EDITS_MAX, REACTIONS_MAX = 1_000, 1_000
# Chosen: a messenger reports a handful of facts before it names a message.
WAITING_MAX = 100


class TooManyFacts(Exception):
    """A message, or a name that is still unknown, has all the facts that one may have."""


class Fact(Struct, frozen=True):
    """An event to record about a message: its kind, time, source and own fields.

    `key` and `request` identify repeats; `within` is the stream of the conversation that the fact names.
    """

    kind: type[FactEvent]
    at: str
    by: str
    fields: Mapping[str, object]
    key: Key = ""
    request: str | None = None
    within: str | None = None
    claimed_at: str | None = None


def fact_of_command(command: AboutMessage) -> Fact:
    """Returns the fact that a command reports."""
    kind: type[FactEvent]
    fields: dict[str, object] = {}
    name: Key
    match command:
        case c.Edit():
            fields = {"content": command.content, "delivery_status": command.delivery_status}
            kind, name = e.MessageEdited, edit_key(command.at, command.content)
        case c.Delete():
            kind, name = e.MessageDeleted, "message.deleted"
        case c.Confirm():
            if command.status == "failed":
                fields = {"code": command.code, "text": command.text}
            kind, name = STATUS[command.status], f"message.{command.status}"
        case c.React():
            kind = e.ReactionRemoved if command.removed else e.ReactionAdded
            fields = {"sender": command.sender, "emoji": command.emoji, "content": e.Ends()}
            name = reaction_key(kind, command.at, command.sender, command.emoji)
    within = command.ends[-1].stream if command.ends else None
    return Fact(kind, command.at, command.by, fields, name, command.request, within, command.claimed_at)


def fact_of_event(event: e.Reported) -> Fact:
    """Returns the fact that an event recorded before its message was known."""
    fields: dict[str, object] = {"cause": event.id}
    match event:
        case e.MessageEdited():
            fields |= {"content": event.content, "delivery_status": event.delivery_status}
        case e.MessageFailed():
            fields |= {"code": event.code, "text": event.text}
        case e.ReactionAdded() | e.ReactionRemoved():
            fields |= {"sender": event.sender, "emoji": event.emoji, "content": event.content}
    return Fact(type(event), event.at, event.by, fields, key(event), event.request, None, event.claimed_at)


def apply(draft: Draft, stream: str, event: e.Reported, *, named: bool = True) -> None:
    """Record a fact that waited for a message, now that the message is known.

    `named`: the name under which it waited is the message's own. If not, because another message has it, only
    a fact that names this message's conversation is meant.
    """
    message = draft.message(stream)
    if message is None or message.sent is None or not (named or event.within):
        return
    if event.within and not belongs(draft, message.sent.conversation, ((event.by, event.within),)):
        return
    fact = fact_of_event(event)
    if event.stream == stream or not find_repeat(message, fact):
        record(draft, stream, fact)


def check_room(message: Message | None, fact: Fact) -> None:
    """Raises TooManyFacts if a message, or the name under which facts wait, takes no more of this kind."""
    if message is None:
        return
    if message.sent is None and len(message.waiting) >= WAITING_MAX:
        raise TooManyFacts(
            f"{WAITING_MAX} facts wait for this message, which is not known: send the message first"
        )
    if fact.kind is e.MessageEdited and message.edits >= EDITS_MAX:
        raise TooManyFacts(f"the message has been edited {EDITS_MAX} times: send a new one")
    if fact.kind is e.MessageEdited and message.is_full:
        raise TooManyFacts("the message's edits are too large in all: send a new message")
    if fact.kind in (e.ReactionAdded, e.ReactionRemoved) and message.reacted >= REACTIONS_MAX:
        raise TooManyFacts(f"the message has {REACTIONS_MAX} reactions: no more are recorded")


def find_repeat(message: Message, fact: Fact) -> int | None:
    """Returns the version of the fact that this one repeats, None if it is news."""
    if fact.request and (version := message.seen.get(request_key(fact.request))):
        return version
    present = _present(message, fact)
    if present is None:
        return message.seen.get(fact.key) if _changes_once(fact) else None
    at, version, same = present
    return version if same else message.seen.get(fact.key) if fact.at < at else None


def _changes_once(fact: Fact) -> bool:
    return fact.kind in STATUS.values() or fact.kind is e.MessageDeleted


def _present(message: Message, fact: Fact) -> tuple[str, int, bool] | None:
    """Returns time and version of the fact in force that this one replaces, and whether it is the same."""
    fields = fact.fields
    if fact.kind is e.MessageEdited and (edited := message.edited):
        same = (edited.content, edited.delivery_status) == (fields["content"], fields["delivery_status"])
        return edited.at, edited.version, same
    if fact.kind in (e.ReactionAdded, e.ReactionRemoved):
        sender = fields["sender"]
        assert isinstance(sender, e.Party)
        if reaction := message.reactions.get((fact.by, sender.id or "")):
            removed = fact.kind is e.ReactionRemoved
            same = reaction.removed == removed and (removed or reaction.emoji == fields["emoji"])
            return reaction.at, reaction.version, same
    return None


def record(draft: Draft, stream: str, fact: Fact) -> FactEvent:
    """Append a fact to a stream: complete for delivery if the message is known, else to wait there."""
    message = draft.message(stream)
    fields = dict(fact.fields)
    if fact.request:
        fields["request"] = fact.request
    if message and message.sent:
        fields |= {"conversation": message.sent.conversation, "message": stream}
        fields |= _push(message, message.sent, fact)
    elif fact.within:
        fields["within"] = fact.within
    return draft.add(fact.kind, stream, fields, at=fact.at, by=fact.by, claimed_at=fact.claimed_at)


def _push(message: Message, sent: e.MessageSent, fact: Fact) -> dict[str, object]:
    """Returns the side that the fact must be delivered to, and that side's id of the message.

    Kommo's id of an operator's message may be learned later than its status; then the delivery looks it up.
    """
    sent_by = e.author(sent)
    present = _present(message, fact)
    newest = present is None or fact.at >= present[0]
    if fact.kind is e.MessageEdited:
        wanted = sent_by == MESSENGER and newest and not message.deleted
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
    return {
        "content": ends,
        "sent_by": sent_by,
        "own_id": sent.own_id,
        "push": other(side) if newest else None,
    }
