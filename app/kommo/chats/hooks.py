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
    "" and 0 where nothing is; [] for {}     left out
    a number as text                         the number; left out if it is none or over 2^53
    forwards too long for an event           left out, `forwards_cut` has their number
    a quote too long for an event            its id alone

Kept as it is: every other text, the objects `markup`, `template`, `forwards`, `post` and `shared_post` whole,
and of a quote the fields that Kommo documents. Fields that nothing here knows are dropped.

Refused with a reason: what is not JSON, a field of another type than documented, an id that is missing or
longer than 255 characters, an unknown type of message, and objects nested over 64 deep.

Source: https://www.amocrm.ru/developers/content/chats/chat-webhooks and
https://developers.kommo.com/reference/receiving-chat-webhooks.
"""

import json
from functools import lru_cache
from itertools import compress
from operator import attrgetter
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from app import clock
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
    AHEAD_MS_MAX,
    EARLIEST_MS,
    ID_CHARACTERS_MAX,
    INTEGER_MAX,
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
# As texts: fifteen digits are below 2^53, and converting a text of any length would cost its square.
DIGITS_MAX = 15

_FIELDS = tuple(name for name in names(Way.FROM_KOMMO) if name not in ("type", "text"))
_NUMBERS = names(Way.FROM_KOMMO, int)
_OBJECTS = frozenset(names(Way.FROM_KOMMO, e.Json))
_QUOTED = ("id", "msgid", "client_id", *names(Way.QUOTED_BY_KOMMO), "timestamp", "msec_timestamp", "sender")
_values_of = attrgetter(*_FIELDS)
_decoder = msgspec.json.Decoder(Hook)


class HookRefused(Exception):
    """A signed hook that is not of the documented shape; the message says why.

    `old`: it is of version v1, which Kommo sends if the channel was connected so.
    """

    def __init__(self, message: str, *, old: bool = False) -> None:
        super().__init__(message)
        self.old = old


class Arrival(NamedTuple):
    """Where a hook came in, and when in unix milliseconds: by our clock and by Kommo's."""

    scope: Scope
    now: int
    at: int


def command(scope: Scope, body: bytes) -> c.AnyCommand:
    """The command that a hook asks for; raises HookRefused."""
    hook = _read(body)
    now = clock.now_ms()
    if hook.message:
        return _send(scope, hook.message, now)
    action = hook.action
    seconds = hook.time if hook.time is not None else now // 1000
    arrival = Arrival(scope, now, _plausible(seconds * 1000, now))
    if action and action.typing:
        return _type(arrival, action.typing, action.typing.user or action.user or Participant())
    if action and action.reaction:
        return _react(arrival, action.reaction, action.user)
    if hook.conversation_id:
        raise HookRefused("it is a v1 hook: connect the account again, which asks for v2", old=True)
    raise HookRefused("neither `message` nor `action.typing` nor `action.reaction` is in it")


def _read(body: bytes) -> Hook:
    """The hook, its texts repaired; only a body with an escape can need that."""
    try:
        if b"\\u" in body and (b"\\u0000" in body or b"\\ud" in body.lower()):
            return msgspec.convert(_repaired(json.loads(body, parse_constant=_no_number)), Hook)
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise HookRefused(str(error)) from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")


def _repaired(value: object) -> object:
    """The same with U+FFFD for each character that cannot be stored."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
        case dict():
            return {str(_repaired(name)): _repaired(inner) for name, inner in value.items()}
        case list():
            return [_repaired(inner) for inner in value]
        case _:
            return value


def _plausible(ms: int, now: int) -> int:
    """A time that a working clock shows, else now."""
    return ms if EARLIEST_MS <= ms <= now + AHEAD_MS_MAX else now


def _id(text: str | None, path: str) -> str:
    if not text or len(text) > ID_CHARACTERS_MAX:
        raise HookRefused(f"{path} must be 1 to {ID_CHARACTERS_MAX} characters")
    return text


def _ends(scope: Scope, conversation: HookConversation) -> tuple[c.End, ...]:
    """The names of the conversation, Kommo's first."""
    chat_id = _id(conversation.id, "conversation.id")
    own_id = _id(conversation.client_id, "conversation.client_id") if conversation.client_id else None
    return _ends_of(scope, chat_id, own_id)


@lru_cache(maxsize=CHATS_KEPT)
def _ends_of(scope: Scope, chat_id: str, own_id: str | None) -> tuple[c.End, ...]:
    """The same for valid names. They are kept, because every hook of a chat has the same."""
    ends = [c.End("kommo", ids.conversation_id(scope, KOMMO, chat_id), e.Ends(chat_id=chat_id))]
    if own_id:
        stream = ids.conversation_id(scope, MESSENGER, own_id)
        ends.append(c.End("messenger", stream, e.Ends(conversation_id=own_id)))
    return tuple(ends)


def _stamp(arrival: Arrival, ends: tuple[c.End, ...]) -> c.Stamp:
    return clock.stamp(arrival.scope, ends[-1].stream, KOMMO, now=arrival.now, at=arrival.at)


# Messages.


def _send(scope: Scope, hook: Outgoing, now: int) -> c.Send:
    message, receiver = hook.message, hook.receiver
    own_id = _id(message.id, "message.message.id")
    if message.type not in MESSAGE_TYPES:
        types = ", ".join(MESSAGE_TYPES)
        raise HookRefused(f"message.message.type is {message.type[:40]!r}, none of {types}")
    at = _plausible(hook.msec_timestamp or (hook.timestamp or 0) * 1000, now)
    ends = _ends(scope, hook.conversation)
    quote = _quote(message.reply_to) if message.reply_to else {}
    return c.Send(
        **clock.stamp(scope, ends[-1].stream, KOMMO, now=now, at=at),
        stream=ids.message_id(scope, KOMMO, own_id),
        side="kommo",
        own_id=own_id,
        msec=at,
        ends=ends,
        sender=e.Party(id=hook.sender.id, name=hook.sender.name or None),
        receiver=e.Party(
            id=receiver.id,
            name=receiver.name or None,
            phone=receiver.phone or None,
            email=receiver.email or None,
            client_id=receiver.client_id or None,
        ),
        content=_content(message, quote, hook.conversation.client_id or None),
        reply_stream=_stream_of(scope, _answered(quote)) if quote else None,
        source=hook.source.external_id if hook.source else None,
    )


def _content(message: HookMessage, quote: e.Json, conversation_id: str | None) -> e.Content:
    """The content of a message, repaired; `quote` is the message that it answers."""
    text, values = message.text or None, _values_of(message)
    if not any(values) and not message.reply_to:  # Most messages are a text alone: their fields cost nothing.
        return e.Content(type=message.type, text=text, conversation_id=conversation_id)
    fields = dict(compress(zip(_FIELDS, values, strict=False), values))
    for name in _NUMBERS:
        if name in fields:
            fields[name] = _whole(fields[name])
    if not message.reply_to and _OBJECTS.isdisjoint(fields):
        return e.Content(type=message.type, text=text, conversation_id=conversation_id, **fields)
    objects = [fields[name] for name in _OBJECTS if name in fields]
    if any(map(too_deep, (*objects, message.reply_to))):
        raise HookRefused(f"an object in it is nested deeper than {NESTING_MAX}")
    fields = {name: value for name, value in fields.items() if not isinstance(value, list)}
    fields["reply_to"] = _reply(quote)
    return _cut(e.Content(type=message.type, text=text, conversation_id=conversation_id, **fields))


def _whole(value: int | str) -> int | None:
    """A number that Kommo may write as a text; None if it is none or too large."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) <= DIGITS_MAX else 0
    return value if value and abs(value) < INTEGER_MAX else None


def _cut(content: e.Content) -> e.Content:
    """A content that fits into an event: without its forwards, then with no more of its quote than the id."""
    if content.forwards is not None and _is_long(content):
        messages = content.forwards.get("messages")
        count = len(messages) if isinstance(messages, list) else 1
        content = replace(content, forwards=None, forwards_cut=count)
    reply = content.reply_to
    if reply and reply.quoted and _is_long(content):
        content = replace(content, reply_to=e.Reply(reply.id))
    return content


def _is_long(content: e.Content) -> bool:
    return len(e.encode(content)) > CONTENT_BYTES_MAX


# The messages that a hook names.


def _quote(reply_to: e.Json | list[object]) -> e.Json:
    """The message that is answered, as Kommo embeds it: in an object of its own, or without that level."""
    outer = reply_to if isinstance(reply_to, dict) else {}
    inner = outer.get("message")
    return inner if isinstance(inner, dict) and inner else outer


def _answered(quote: e.Json) -> MessageNames:
    """The quoted message's ids; an id that is no text is left out."""
    values = (quote.get("id"), quote.get("msgid"), quote.get("client_id"))
    return MessageNames(*(value if isinstance(value, str) else None for value in values))


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
    started = _plausible(expires - ids.TYPING_WINDOW_MS, arrival.now)
    return c.Type(
        **_stamp(arrival._replace(at=started), ends),
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
        raise HookRefused(f"action.reaction.type is {hook.type[:40]!r}, neither react nor unreact")
    ends = _ends(arrival.scope, hook.conversation)
    message = hook.message or MessageNames(id=hook.msgid, msgid=hook.msgid)
    streams = [ids.message_id(arrival.scope, KOMMO, message.id)] if message.id else []
    if message.ours:
        streams.append(message.ours)
    if not streams:
        raise HookRefused("action.reaction names no message: neither message.id nor msgid is in it")
    reactor = hook.user if hook.user.id else user or Participant()
    return c.React(
        **_stamp(arrival, ends),
        streams=tuple(streams),
        side="kommo",
        sender=e.Party(id=reactor.id, name=reactor.name),
        emoji=hook.emoji or "",
        removed=hook.type == "unreact",
    )
