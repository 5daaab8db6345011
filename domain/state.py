"""The state of a stream: the little of its events that decisions need, and nothing that only views need."""

from collections.abc import Mapping
from typing import TypeAlias, assert_never

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain import events as e
from domain.events import encode

RANKS = {"sent": 0, "accepted": 1, "failed": 2, "delivered": 3, "read": 4}
STATUSES = tuple(RANKS)
Key: TypeAlias = str | tuple[str | bytes, ...]
COMMON = frozenset(e.Event.__struct_fields__)

COPIED = "message.accepted copy"
"""The key of the event that Kommo accepted the mirror of an operator's message."""

encode_any = msgspec.json.Encoder().encode


class Message(Struct, frozen=True, gc=False):
    """A stream named by a message's id: the message itself, an alias of one, or facts that wait for one.

    `seen` maps the key of a recorded fact to its version, so that a repeat is recognised. `waiting` are facts
    about an id that is still unknown. `deliveries` maps an event's id to the state of its delivery.
    `remote_id` is the receiving side's id, `kommo_id` Kommo's id of the mirror of an operator's message.
    """

    version: int
    sent: e.MessageSent | None = None
    alias: str | None = None
    rank: int = 0
    remote_id: str | None = None
    kommo_id: str | None = None
    edited: tuple[str, str] = ("", "")
    deleted: bool = False
    seen: dict[Key, int] = {}
    waiting: tuple[e.MessageEvent, ...] = ()
    deliveries: dict[str, str] = {}


class Chat(Struct, frozen=True, gc=False):
    """A stream named by a conversation's id: the conversation, or (`into`) a pointer to it.

    `linked` is the version of the event that linked it to its contact, 0 while it has none.
    """

    version: int
    started_by: e.Side | None = None
    started: str = ""
    into: str | None = None
    conversation_id: str | None = None
    chat_id: str | None = None
    receiver_id: str | None = None
    apart: bool = False
    contact_id: int | None = None
    lead_id: int | None = None
    linked: int = 0

    @property
    def begun_by_kommo(self) -> bool:
        """Whether Kommo needs its chat id with each message, because it knows the chat by no other name."""
        return self.started_by == "kommo" and not self.apart


class Case(Struct, frozen=True, gc=False):
    """A stream of a talk, an incoming lead or a template; `changed` is Kommo's latest time in unix seconds.

    `seen` maps the key of a recorded fact to its version, because Kommo repeats a webhook that seems to have
    failed.
    """

    version: int
    changed: int = 0
    seen: dict[Key, int] = {}


class Connection(Struct, frozen=True, gc=False):
    """A stream of a channel, of its connection to an account, or of our consent to use an account's CRM.

    `last` is the id of its last event.
    """

    version: int
    last: str = ""
    connected: bool = False
    title: str = ""
    is_time_window_disabled: bool = False


State: TypeAlias = Message | Chat | Connection | Case


def key(event: e.AnyEvent) -> Key:
    """Returns the key of an event in a message's stream: events with the same key are repeats."""
    match event:
        case e.MessageEdited():
            return edit_key(event.at, event.content)
        case e.ReactionAdded() | e.ReactionRemoved():
            return reaction_key(type(event), event.at, event.sender, event.emoji)
        case e.ConflictNoticed():
            return conflict_key(event.sender, event.content, event.source)
        case e.MessageAccepted(copy=True):
            return COPIED
        case _:
            return e.tag(event)


def edit_key(at: str, content: e.Content) -> Key:
    """Returns the key of an edit; the same content at another time is another edit."""
    return "message.edited", at, encode(content)


def reaction_key(kind: type[e.Reaction], at: str, sender: e.Party, emoji: str) -> Key:
    """Returns the key of a reaction; at another time it is another one, because it may have been undone."""
    return str(kind.__struct_config__.tag), sender.id or "", emoji, at


def conflict_key(sender: e.Party, content: e.Content, source: str | None) -> Key:
    """Returns the key of a conflict, the same whether or not the answered message is known."""
    return "conflict", sender.id or "", source or "", encode(comparable(content))


def comparable(content: e.Content) -> e.Content:
    """Returns the content as its sender wrote it, without our own details of the messages it refers to."""
    if content.reply_to:
        content = replace(content, reply_to=e.Reply(content.reply_to.id))
    if content.forwarded:
        content = replace(content, forwarded=e.Reply(content.forwarded.id))
    return content


def evolve(state: State | None, event: e.AnyEvent) -> State:
    """Returns the stream's state after one more event."""
    match event:
        case e.MessageSent() if state is None:
            return Message(event.version, sent=event, seen={"message.sent": event.version})
        case e.ChannelRegistered() | e.ChannelChanged():
            return Connection(event.version, event.id)
        case e.ChannelConnected():
            return Connection(
                event.version,
                event.id,
                connected=True,
                title=event.title,
                is_time_window_disabled=event.is_time_window_disabled,
            )
        case e.ChannelDisconnected() | e.AccountWithdrawn():
            return Connection(event.version, event.id)
        case e.AccountAuthorized():
            return Connection(event.version, event.id, connected=True, title=event.crm_url)
        case e.TalkAdded() | e.TalkUpdated() | e.TemplateReview():
            return _case(state, event, event.changed)
        case e.LeadReceived() | e.LeadAccepted() | e.LeadDeclined() | e.LeadLinked():
            return _case(state, event, 0)
        case (
            e.ConversationStarted() | e.ConversationBound() | e.ConversationMerged() | e.ConversationLinked()
        ):
            return _chat(state if isinstance(state, Chat) else Chat(0), event)
        case _:
            return _message(state if isinstance(state, Message) else Message(0), event)


def _chat(chat: Chat, event: e.ConversationEvent) -> Chat:
    match event:
        case e.ConversationStarted():
            ends = event.content
            return Chat(
                event.version,
                started_by=event.side,
                started=event.id,
                conversation_id=ends.conversation_id,
                chat_id=ends.chat_id,
                receiver_id=event.receiver.id if event.receiver else None,
            )
        case e.ConversationBound() if event.stream != event.conversation:
            return replace(chat, version=event.version, into=event.conversation)
        case e.ConversationBound():
            ends = event.content
            return replace(
                chat,
                version=event.version,
                conversation_id=chat.conversation_id or ends.conversation_id,
                chat_id=chat.chat_id or ends.chat_id,
                apart=chat.apart or event.apart,
            )
        case e.ConversationMerged():
            return replace(chat, version=event.version, into=event.into)
        case e.ConversationLinked():
            version, contact_id, lead_id = event.version, event.contact_id, event.lead_id
            return replace(chat, version=version, contact_id=contact_id, lead_id=lead_id, linked=version)
        case _:
            assert_never(event)


def case_key(kind: type[e.CaseEvent], fields: Mapping[str, object]) -> Key:
    """Returns the key of an event of a talk, lead or template: its type and all its fields that are set."""
    present = {name: value for name, value in fields.items() if value not in (None, False)}
    return str(kind.__struct_config__.tag), encode_any(dict(sorted(present.items())))


def _case(state: State | None, event: e.CaseEvent, changed: int) -> Case:
    before = state if isinstance(state, Case) else Case(0)
    own = {name: getattr(event, name) for name in type(event).__struct_fields__ if name not in COMMON}
    seen = {case_key(type(event), own): event.version, **before.seen}
    return Case(event.version, max(before.changed, changed), seen)


def _message(
    message: Message, event: e.MessageEvent | e.MessageMirrored | e.TypingStarted | e.DeliveryEvent
) -> Message:
    version = event.version
    match event:
        case e.DeliveryCompleted() | e.DeliveryDeferred() | e.DeliveryParked() | e.DeliveryResumed():
            stand = {**message.deliveries, event.cause or "": _stand(event)}
            return replace(message, version=version, deliveries=stand)
    if event.message is None and not isinstance(event, e.TypingStarted | e.MessageMirrored):
        waiting = (*message.waiting, event)
        return replace(message, version=version, seen=_seen(message, event), waiting=waiting)
    known = replace(message, version=version, seen=_seen(message, event))
    match event:
        case e.MessageSent():
            return replace(known, sent=event, waiting=())
        case e.MessageNamed():
            return replace(known, alias=event.message, waiting=())
        case e.MessageAccepted(copy=True):
            return replace(known, kommo_id=event.remote_id)
        case e.MessageAccepted():
            return replace(known, rank=max(known.rank, 1), remote_id=event.remote_id)
        case e.MessageFailed():
            return replace(known, rank=max(known.rank, 2))
        case e.MessageDelivered():
            return replace(known, rank=max(known.rank, 3))
        case e.MessageRead():
            return replace(known, rank=4)
        case e.MessageEdited():
            return replace(known, edited=max(known.edited, (event.at, event.id)))
        case e.MessageDeleted():
            return replace(known, deleted=True)
        case (
            e.MessageMirrored()
            | e.ReactionAdded()
            | e.ReactionRemoved()
            | e.ConflictNoticed()
            | e.TypingStarted()
        ):
            return known
        case _:
            assert_never(event)


def _seen(message: Message, event: e.AnyEvent) -> dict[Key, int]:
    name = key(event)
    return message.seen if name in message.seen else {**message.seen, name: event.version}


def _stand(event: e.DeliveryEvent) -> str:
    match event:
        case e.DeliveryDeferred():
            return f"deferred: {event.reason}"
        case e.DeliveryParked():
            return f"parked: {event.reason}"
        case e.DeliveryCompleted():
            return "completed"
        case e.DeliveryResumed():
            return "resumed"
