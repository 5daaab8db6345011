"""The state of a stream: the little of its events that decisions need, and nothing that only views need."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, TypeAlias, TypeVar, assert_never

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain import events as e
from domain.events import encode
from domain.growing import Growing

RANKS = {"sent": 0, "accepted": 1, "failed": 2, "delivered": 3, "read": 4}
STATUSES = tuple(RANKS)
Key: TypeAlias = str | tuple[str | bytes, ...]
COMMON = frozenset(e.Event.__struct_fields__)

# Chosen: a thousand edits of a usual text, and some 20 ms for whoever reads the stream.
CONTENTS_BYTES_MAX = 4 * 1024 * 1024

COPIED = "message.accepted copy"
"""The key of the event that Kommo accepted the mirror of an operator's message."""

encode_any = msgspec.json.Encoder().encode


class Edited(Struct, frozen=True, gc=False):
    """The edit in force: the latest by its source's time, and of several with one time the last recorded."""

    at: str
    version: int
    content: e.Content
    delivery_status: e.DeliveryStatus | None = None


class Reacted(Struct, frozen=True, gc=False):
    """The reaction of one sender that is in force, by the same rule; `removed`: the sender has none."""

    at: str
    version: int
    emoji: str
    removed: bool


class Misfit(Exception):
    """An event's kind does not fit the state of its stream, so one of the two was recorded by mistake."""


class Message(Struct, frozen=True, gc=False):
    """A stream named by a message's id: the message itself, an alias of one, or facts that wait for one.

    `seen` maps the key of a recorded fact to its version, so that a repeat is recognised. `waiting` are facts
    about an id that is still unknown, by version; those that name a conversation stay, because the name may
    turn out to be that of a message elsewhere. `reactions` are by side and sender. `deliveries` maps an
    event's id to the state of its delivery. `remote_id` is the receiving side's id, `kommo_id` Kommo's id of
    the mirror of an operator's message. `edits`, `reacted` and `conflicts` count what was recorded,
    `contents_bytes` is the size of the contents in edits and conflicts.
    """

    version: int
    sent: e.MessageSent | None = None
    alias: str | None = None
    rank: int = 0
    remote_id: str | None = None
    kommo_id: str | None = None
    edited: Edited | None = None
    reactions: Growing[tuple[str, str], Reacted] = Growing()
    deleted: bool = False
    seen: Growing[Key, int] = Growing()
    waiting: Growing[int, e.Reported] = Growing()
    deliveries: Growing[str, str] = Growing()
    edits: int = 0
    reacted: int = 0
    conflicts: int = 0
    contents_bytes: int = 0

    @property
    def is_full(self) -> bool:
        """Whether the stream takes no more contents, because whoever acts on the message reads them all."""
        return self.contents_bytes >= CONTENTS_BYTES_MAX

    def has_failed(self, cause: str) -> bool:
        """Whether event `cause` sent the message, and it has failed before the other side accepted it."""
        sends = self.sent is not None and self.sent.id == cause
        return sends and self.rank == RANKS["failed"] and "message.accepted" not in self.seen


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
    seen: Growing[Key, int] = Growing()


class Connection(Struct, frozen=True, gc=False):
    """A stream of a channel, of its connection to an account, or of our consent to use an account's CRM.

    `last` is the id of its last event. The last two are of a consent: the source that we have there, and
    whether the CRM sends us its webhooks.
    """

    version: int
    last: str = ""
    connected: bool = False
    title: str = ""
    is_time_window_disabled: bool = False
    source_id: int = 0
    is_subscribed: bool = False


State: TypeAlias = Message | Chat | Connection | Case
AState = TypeVar("AState", Message, Chat, Connection, Case)


def key(event: e.AnyEvent) -> Key:
    """Returns the key of an event in a message's stream: events with the same key are repeats."""
    match event:
        case e.MessageEdited():
            return edit_key(event.at, event.content)
        case e.ReactionAdded() | e.ReactionRemoved():
            return reaction_key(type(event), event.at, event.sender, event.emoji)
        case e.ConflictNoticed(about="content"):
            return conflict_key(event.sender, event.content, event.source)
        case e.ConflictNoticed():
            return name_conflict_key(event.about, event.remote_id)
        case e.MessageAccepted(copy=True):
            return COPIED
        case _:
            return e.tag(event)


def request_key(request: str) -> Key:
    """Returns the key of whatever a request reported."""
    return "request", request


def name_conflict_key(about: str, name: str | None) -> Key:
    """Returns the key of a conflict about a name that belongs to something else."""
    return "conflict", about, name or ""


def edit_key(at: str, content: e.Content) -> Key:
    """Returns the key of an edit; the same content at another time is another edit."""
    return "message.edited", at, _digest(content)


def reaction_key(kind: type[e.Reaction], at: str, sender: e.Party, emoji: str) -> Key:
    """Returns the key of a reaction; at another time it is another one, because it may have been undone."""
    return str(kind.__struct_config__.tag), sender.id or "", emoji, at


def conflict_key(sender: e.Party, content: e.Content, source: str | None) -> Key:
    """Returns the key of a conflict, the same whether or not the answered message is known."""
    return "conflict", sender.id or "", source or "", _digest(comparable(content))


def _digest(content: e.Content) -> bytes:
    """Returns what stands for a content in a key, so that a stream's state does not hold all its texts."""
    return blake2b(encode(content), digest_size=16).digest()


def comparable(content: e.Content) -> e.Content:
    """Returns the content as its sender wrote it, without our own details of the messages it refers to."""
    if content.reply_to:
        content = replace(content, reply_to=e.Reply(content.reply_to.id))
    if content.forwarded:
        content = replace(content, forwarded=e.Reply(content.forwarded.id))
    return content


def evolve(state: State | None, event: e.AnyEvent) -> State:
    """Returns the stream's state after one more event. Raises Misfit if the event is not of such a stream."""
    match event:
        case e.MessageSent() if state is None:
            return Message(event.version, sent=event, seen=Growing({"message.sent": event.version}))
        case e.ChannelRegistered() | e.ChannelChanged():
            _fitting(state, Connection, event)
            return Connection(event.version, event.id)
        case e.ChannelConnected():
            _fitting(state, Connection, event)
            return Connection(
                event.version,
                event.id,
                connected=True,
                title=event.title,
                is_time_window_disabled=event.is_time_window_disabled,
            )
        case e.ChannelDisconnected() | e.AccountWithdrawn():
            _fitting(state, Connection, event)
            return Connection(event.version, event.id)
        case e.AccountAuthorized():
            before = _fitting(state, Connection, event) or Connection(0)
            return replace(before, version=event.version, last=event.id, connected=True, title=event.crm_url)
        case e.AccountMoved() | e.SourceMade() | e.AccountSubscribed():
            return _installed(_fitting(state, Connection, event) or Connection(0), event)
        case e.TalkAdded() | e.TalkUpdated() | e.TemplateReview():
            return _case(state, event, event.changed)
        case e.LeadReceived() | e.LeadAccepted() | e.LeadDeclined() | e.LeadLinked():
            return _case(state, event, 0)
        case (
            e.ConversationStarted() | e.ConversationBound() | e.ConversationMerged() | e.ConversationLinked()
        ):
            return _chat(_fitting(state, Chat, event) or Chat(0), event)
        case _:
            return _message(_fitting(state, Message, event) or Message(0), event)


def skip(state: State | None, event: e.AnyEvent) -> State:
    """Returns the state after an event that does not fit, and that changes nothing but the version."""
    return replace(state, version=event.version) if state else Message(event.version)


def _fitting(state: State | None, kind: type[AState], event: e.AnyEvent) -> AState | None:
    if state is None or isinstance(state, kind):
        return state
    raise Misfit(f"{e.tag(event)} in the stream of a {type(state).__name__.lower()}: event {event.id}")


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


def _installed(account: Connection, event: e.InstallEvent) -> Connection:
    account = replace(account, version=event.version, last=event.id)
    match event:
        case e.AccountMoved():
            return replace(account, title=event.crm_url)
        case e.SourceMade():
            return replace(account, source_id=event.source_id)
        case e.AccountSubscribed():
            return replace(account, is_subscribed=True)


def case_key(kind: type[e.CaseEvent], fields: Mapping[str, object]) -> Key:
    """Returns the key of an event of a talk, lead or template: its type and all its fields that are set."""
    present = {name: value for name, value in fields.items() if value not in (None, False)}
    return str(kind.__struct_config__.tag), encode_any(dict(sorted(present.items())))


def _case(state: State | None, event: e.CaseEvent, changed: int) -> Case:
    before = _fitting(state, Case, event) or Case(0)
    own = {name: getattr(event, name) for name in type(event).__struct_fields__ if name not in COMMON}
    name, seen = case_key(type(event), own), before.seen
    if name not in seen:
        seen = seen.put(name, event.version)
    return Case(event.version, max(before.changed, changed), seen)


def _message(
    message: Message, event: e.MessageEvent | e.MessageMirrored | e.TypingStarted | e.DeliveryEvent
) -> Message:
    version = event.version
    match event:
        case e.DeliveryCompleted() | e.DeliveryDeferred() | e.DeliveryParked() | e.DeliveryResumed():
            message = _sent_again(message) if getattr(event, "was", None) == "failed" else message
            deliveries = message.deliveries.put(event.cause or "", _stand(event))
            return replace(message, version=version, deliveries=deliveries)
    known = replace(message, version=version, seen=_seen(message, event))
    if event.message is None and isinstance(event, e.Fact):
        known = replace(known, waiting=message.waiting.put(version, event))
    match event:
        case e.MessageSent():
            return replace(known, sent=event, **_claimed(message))
        case e.MessageNamed():
            return replace(known, alias=event.message, **_claimed(message))
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
            edit = Edited(event.at, version, event.content, event.delivery_status)
            newest = known.edited is None or event.at >= known.edited.at
            known = _with_content(known, event.content)
            return replace(known, edited=edit if newest else known.edited, edits=known.edits + 1)
        case e.MessageDeleted():
            return replace(known, deleted=True)
        case e.ReactionAdded() | e.ReactionRemoved():
            return _reacted(replace(known, reacted=known.reacted + 1), event)
        case e.ConflictNoticed():
            return _with_content(replace(known, conflicts=known.conflicts + 1), event.content)
        case e.MessageMirrored() | e.TypingStarted():
            return known
        case _:
            assert_never(event)


def _with_content(message: Message, content: e.Content) -> Message:
    """Returns a message whose stream has one more content."""
    return replace(message, contents_bytes=message.contents_bytes + len(encode(content)))


def _claimed(message: Message) -> dict[str, Any]:
    """Returns the fields of a stream whose name has become that of a message: what waited is applied now."""
    waiting = Growing({version: fact for version, fact in message.waiting.items() if fact.within})
    return {"waiting": waiting, "edited": None, "reactions": Growing(), "rank": 0, "deleted": False}


def _reacted(message: Message, event: e.Reaction) -> Message:
    who = event.by, event.sender.id or ""
    before = message.reactions.get(who)
    if before and event.at < before.at:
        return message
    removed = isinstance(event, e.ReactionRemoved)
    reaction = Reacted(event.at, event.version, event.emoji, removed)
    return replace(message, reactions=message.reactions.put(who, reaction))


def _sent_again(message: Message) -> Message:
    """Returns a failed message as it was before, so that what comes of the next attempt is news."""
    seen = Growing({name: version for name, version in message.seen.items() if name != "message.failed"})
    return replace(message, rank=RANKS["sent"], seen=seen)


def _seen(message: Message, event: e.AnyEvent) -> Growing[Key, int]:
    seen = message.seen
    name = key(event)
    if name not in seen:
        seen = seen.put(name, event.version)
    if isinstance(event, e.Fact) and event.request:
        seen = seen.put(request_key(event.request), event.version)
    return seen


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
