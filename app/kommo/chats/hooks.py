"""A signed hook of Kommo becomes a command, whatever variant it is; Kommo sends each hook once.

Theory of operation. Kommo sends a hook once and never again, so a hook that is refused is lost to the ledger
(its bytes are kept for people, see `http/webhooks/refused`). Everything that has one sensible reading is
therefore read, and what cannot be stored as it is gets repaired.

Variants, by the first key that is there:
    message             a manager wrote, or the bot did; with `message.post` it is a reply to a comment
    action.typing       a manager is writing; the user stands inside `typing` or beside it
    action.reaction     a manager reacted; the message is an object with ids, or only a `msgid`
    conversation_id     a v1 hook: refused, because Kommo sends v2 as soon as the channel is connected again
Of a message, the quoted one stands in `reply_to.message` or directly in `reply_to`. A chat that Kommo started
has no `client_id`, and then its only name is Kommo's.

Repaired:
    NUL and lone surrogates                  U+FFFD, since PostgreSQL and JSON readers refuse both
    a time before 2000 or over a day ahead   the arrival
    a time over 5 minutes ahead              the arrival; `claimed_at` keeps what Kommo said
    "" and 0 where nothing is; [] for {}     left out
    a number as text                         the number; left out if it is none or over 2^53
    a field of another type than documented  what can be understood of it, see `lenient`
    an unknown type of message               a text with the message's link; `raw` has the whole of it
    objects nested over 64 deep              null from there on
    forwards too long for an event           left out, `forwards_cut` has their number
    a quote too long for an event            its id alone

Kept as it is: every other text, the objects `markup`, `template`, `forwards`, `post` and `shared_post` whole,
and of a quote the fields that Kommo documents. Fields that nothing here knows are dropped.

Refused with a reason: what is no JSON object, a message without an id, a conversation without one, an id
longer than 255 characters, a message whose one field that counts cannot be understood, a reaction of an
unknown kind, and a hook that names another account than the one it came in for.

Source: https://www.amocrm.ru/developers/content/chats/chat-webhooks and
https://developers.kommo.com/reference/receiving-chat-webhooks.
"""

from enum import StrEnum
from functools import lru_cache
from itertools import compress
from operator import attrgetter
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from app import clock
from app.kommo.chats import lenient
from app.kommo.chats.hook_schema import (
    Hook,
    HookConversation,
    HookMessage,
    MessageNames,
    Outgoing,
    Participant,
    ReactionHook,
    TypingHook,
)
from app.limits import (
    AHEAD_MS_BELIEVED,
    AHEAD_MS_MAX,
    EARLIEST_MS,
    ID_CHARACTERS_MAX,
    NESTING_MAX,
    too_deep,
)
from domain import commands as c
from domain import events as e
from domain import ids
from domain.content import MESSAGE_TYPES, Way, names
from domain.ids import KOMMO, MESSENGER, Scope

# The rest of an event, 48 KB, is for what is not content: ids, names, an address or two.
CONTENT_BYTES_MAX = e.EVENT_BYTES_MAX - 48 * 1024
# Chosen: the chats in which managers write at the same time; an entry takes about 1 KB.
CHATS_KEPT = 8192

_FIELDS = tuple(name for name in names(Way.FROM_KOMMO) if name not in ("type", "text"))
_NUMBERS = names(Way.FROM_KOMMO, int)
_OBJECTS = frozenset(names(Way.FROM_KOMMO, e.Json))
_QUOTED = ("id", "msgid", "client_id", *names(Way.QUOTED_BY_KOMMO), "timestamp", "msec_timestamp", "sender")
_values_of = attrgetter(*_FIELDS)
_decoder = msgspec.json.Decoder(Hook)


class Why(StrEnum):
    """The kinds of reasons why a signed hook is not taken."""

    UNREADABLE = "unreadable"
    V1 = "v1"
    OTHER_ACCOUNT = "account"
    LATE = "late"
    LARGE = "large"
    TOO_MANY = "too many"


class HookRefused(Exception):
    """A signed hook that is not taken; the message says why, and `why` is the kind of the reason.

    V1: Kommo sends that version if the channel was connected so.
    """

    def __init__(self, message: str, why: Why = Why.UNREADABLE) -> None:
        super().__init__(message)
        self.why = why


class Arrival(NamedTuple):
    """Where a hook came in, and when in unix milliseconds: by our clock and by Kommo's.

    `claimed` is Kommo's time if it is too far ahead to be believed; `at` is ours then.
    """

    scope: Scope
    now: int
    at: int
    claimed: int | None = None

    @classmethod
    def of(cls, scope: Scope, now: int, at: int) -> "Arrival":
        """An arrival whose time, of any clock, is checked against ours."""
        if at < EARLIEST_MS or at > now + AHEAD_MS_MAX:
            return cls(scope, now, now)
        return cls(scope, now, at) if at <= now + AHEAD_MS_BELIEVED else cls(scope, now, now, at)


def command(scope: Scope, body: bytes, *, age_seconds_max: float | None = None) -> c.AnyCommand:
    """The command that a hook asks for; raises HookRefused, also for one that is older than allowed."""
    hook = _read(body)
    now = clock.now_ms()
    if hook.message or hook.action:
        account = hook.account_id
        if account and account != scope.account and account.lower() != scope.account:
            raise HookRefused("its account_id is not the account that it came in for", Why.OTHER_ACCOUNT)
        if age_seconds_max is not None:
            _check_age(hook, now, age_seconds_max)
    if hook.message:
        return _send(scope, hook.message, now, body)
    action = hook.action
    seconds = hook.time if hook.time is not None else now // 1000
    arrival = Arrival.of(scope, now, seconds * 1000)
    if action and action.typing:
        return _type(arrival, action.typing, action.typing.user or action.user or Participant())
    if action and action.reaction:
        return _react(arrival, action.reaction, action.user)
    if hook.conversation_id:
        raise HookRefused("it is a v1 hook: connect the account again, which asks for v2", Why.V1)
    raise HookRefused("neither `message` nor `action.typing` nor `action.reaction` is in it")


def _read(body: bytes) -> Hook:
    """The hook, its texts repaired; only a body with an escape can need that."""
    try:
        if b"\\u" in body and (b"\\u0000" in body or b"\\ud" in body.lower()):
            return msgspec.convert(lenient.parsed(body), Hook)
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _read_leniently(body)


def _read_leniently(body: bytes) -> Hook:
    try:
        return lenient.read(body)
    except ValueError as error:
        raise HookRefused(str(error)) from None


def _check_age(hook: Hook, now: int, seconds_max: float) -> None:
    """Refuse a hook that Kommo made long ago: whoever captured it could send it again at any time."""
    seconds = hook.time or (hook.message.timestamp if hook.message else None) or 0
    age_ms = now - seconds * 1000  # A whole number, for a time may be too large for any other.
    if age_ms > seconds_max * 1000 and seconds * 1000 >= EARLIEST_MS:
        raise HookRefused(f"it is {age_ms / 3_600_000:.1f} hours old by its `time`", Why.LATE)


def _id(text: str | None, path: str) -> str:
    if not text or len(text) > ID_CHARACTERS_MAX:
        raise HookRefused(f"{path} must be 1 to {ID_CHARACTERS_MAX} characters")
    return text


def _ends(scope: Scope, conversation: HookConversation) -> tuple[c.End, ...]:
    """The names of the conversation, Kommo's first."""
    own_id = _id(conversation.client_id, "conversation.client_id") if conversation.client_id else None
    chat_id = _id(conversation.id, "conversation.id") if conversation.id or not own_id else None
    return _ends_of(scope, chat_id, own_id)


@lru_cache(maxsize=CHATS_KEPT)
def _ends_of(scope: Scope, chat_id: str | None, own_id: str | None) -> tuple[c.End, ...]:
    """The same for valid names. They are kept, because every hook of a chat has the same."""
    ends = []
    if chat_id:
        ends.append(c.End("kommo", ids.conversation_id(scope, KOMMO, chat_id), e.Ends(chat_id=chat_id)))
    if own_id:
        stream = ids.conversation_id(scope, MESSENGER, own_id)
        ends.append(c.End("messenger", stream, e.Ends(conversation_id=own_id)))
    return tuple(ends)


def _stamp(arrival: Arrival, ends: tuple[c.End, ...]) -> c.Stamp:
    stamp = clock.stamp(arrival.scope, ends[-1].stream, KOMMO, now=arrival.now, at=arrival.at)
    if arrival.claimed:
        stamp["claimed_at"] = clock.text(arrival.claimed)
    return stamp


# Messages.


def _send(scope: Scope, hook: Outgoing, now: int, body: bytes) -> c.Send:
    message, receiver = hook.message, hook.receiver
    raw: e.Json | None = None
    own_id = _id(message.id, "message.message.id")
    if message.type not in MESSAGE_TYPES:
        message, raw = lenient.known(message, body)
    arrival = Arrival.of(scope, now, hook.msec_timestamp or (hook.timestamp or 0) * 1000)
    ends = _ends(scope, hook.conversation)
    quote = _quote(message.reply_to) if message.reply_to else {}
    return c.Send(
        **_stamp(arrival, ends),
        stream=ids.message_id(scope, KOMMO, own_id),
        side="kommo",
        own_id=own_id,
        msec=arrival.at,
        ends=ends,
        sender=e.Party(id=hook.sender.id, name=hook.sender.name or None),
        receiver=e.Party(
            id=receiver.id,
            name=receiver.name or None,
            phone=receiver.phone or None,
            email=receiver.email or None,
            client_id=receiver.client_id or None,
        ),
        content=_content(message, quote, hook.conversation.client_id or None, raw),
        reply_stream=_stream_of(scope, _answered(quote)) if quote else None,
        source=hook.source.external_id if hook.source else None,
    )


def _content(
    message: HookMessage, quote: e.Json, conversation_id: str | None, raw: e.Json | None
) -> e.Content:
    """The content of a message, repaired; `quote` is the message that it answers."""
    text, values = message.text or None, _values_of(message)
    if not any(values) and not message.reply_to and not raw:  # Most are a text alone: fields cost nothing.
        return e.Content(type=message.type, text=text, conversation_id=conversation_id)
    fields = dict(compress(zip(_FIELDS, values, strict=False), values))
    for name in _NUMBERS:
        if name in fields:
            fields[name] = lenient.whole(fields[name])
    if not message.reply_to and _OBJECTS.isdisjoint(fields) and not raw:
        return e.Content(type=message.type, text=text, conversation_id=conversation_id, **fields)
    for name in _OBJECTS & fields.keys():
        if too_deep(fields[name]):
            fields[name] = lenient.repaired(fields[name], NESTING_MAX)
    fields = {name: value for name, value in fields.items() if not isinstance(value, list)}
    fields["reply_to"] = _reply(quote)
    return _cut(e.Content(type=message.type, text=text, conversation_id=conversation_id, raw=raw, **fields))


def _cut(content: e.Content) -> e.Content:
    """A content that fits into an event: without forwards, then with no more of its quote than the id.

    Last goes `raw`.
    """
    if content.forwards is not None and _is_long(content):
        messages = content.forwards.get("messages")
        count = len(messages) if isinstance(messages, list) else 1
        content = replace(content, forwards=None, forwards_cut=count)
    reply = content.reply_to
    if reply and reply.quoted and _is_long(content):
        content = replace(content, reply_to=e.Reply(reply.id))
    if content.raw is not None and _is_long(content):
        content = replace(content, raw=None)
    return content


def _is_long(content: e.Content) -> bool:
    return len(e.encode(content)) > CONTENT_BYTES_MAX


# The messages that a hook names.


def _quote(reply_to: e.Json | list[object]) -> e.Json:
    """The message that is answered, as Kommo embeds it: in an object of its own, or without that level."""
    outer = reply_to if isinstance(reply_to, dict) else {}
    inner = outer.get("message")
    quote = inner if isinstance(inner, dict) and inner else outer
    if too_deep(quote):
        quote = lenient.repaired(quote, NESTING_MAX)
    return quote


def _answered(quote: e.Json) -> MessageNames:
    """The quoted message's ids; an id that is neither a text nor a number is left out."""
    return MessageNames(*(lenient.words(quote.get(name)) for name in ("id", "msgid", "client_id")))


def _reply(quote: e.Json) -> e.Reply | None:
    """The answer to a message; the quote is kept if Kommo embeds it whole, for the ledger may not have it."""
    answered = _answered(quote)
    own_id = answered.id or answered.msgid
    if not own_id:
        return None
    whole = isinstance(quote.get("type"), str) and quote["type"]
    return e.Reply(
        own_id, quoted={name: value for name in _QUOTED if (value := quote.get(name))} if whole else None
    )


def _stream_of(scope: Scope, message: MessageNames) -> str | None:
    """The stream of a message that Kommo names: by our id, else by its own."""
    if message.ours:
        return message.ours
    return ids.message_id(scope, KOMMO, message.id) if message.id else None


# Typing and reactions.


def _type(arrival: Arrival, hook: TypingHook, user: Participant) -> c.Type:
    ends = _ends(arrival.scope, hook.conversation)
    sender = user.id or "unknown"
    expires = hook.expired_at * 1000 if hook.expired_at else arrival.at + ids.TYPING_WINDOW_MS
    arrival = Arrival.of(arrival.scope, arrival.now, expires - ids.TYPING_WINDOW_MS)
    started = arrival.at
    return c.Type(
        **_stamp(arrival, ends),
        stream=ids.typing_id(arrival.scope, ends[0].stream, sender, started),
        side="kommo",
        at_ms=started,
        ends=ends,
        sender=e.Party(id=sender, name=user.name),
        expires_at=clock.text(started + ids.TYPING_WINDOW_MS),
        post_id=_post_id(hook.post_id),
    )


def _post_id(value: object) -> str | None:
    """The post under which somebody writes a comment; None if the value cannot be an id."""
    post_id = str(value) if isinstance(value, int) and value else value
    return post_id if isinstance(post_id, str) and 0 < len(post_id) <= ID_CHARACTERS_MAX else None


def _react(arrival: Arrival, hook: ReactionHook, user: Participant | None) -> c.React:
    if hook.type not in ("react", "unreact"):
        raise HookRefused("action.reaction.type is neither react nor unreact")
    ends = _ends(arrival.scope, hook.conversation)
    message = hook.message or MessageNames(id=hook.msgid, msgid=hook.msgid)
    streams: tuple[str, ...]
    if message.id:
        chat_id = ends[0].ends.chat_id or ""
        within = ids.message_id_within(arrival.scope, chat_id, KOMMO, message.id)
        streams = (ids.message_id(arrival.scope, KOMMO, message.id), within)
    elif message.ours:
        streams = (ids.claimed_id(arrival.scope, KOMMO, message.ours),)
    else:
        raise HookRefused("action.reaction names no message: neither message.id nor msgid is in it")
    reactor = hook.user if hook.user.id else user or Participant()
    return c.React(
        **_stamp(arrival, ends),
        streams=streams,
        ours=message.ours,
        ends=ends,
        side="kommo",
        sender=e.Party(id=reactor.id, name=reactor.name),
        emoji=hook.emoji or "",
        removed=hook.type == "unreact",
    )
