"""What Kommo says: every documented variant is read, what can be mended is mended, the rest is kept whole.

Source: Kommo's Chats API webhooks, version v2. Kommo sends each once; so a character that cannot be stored
becomes U+FFFD, a time out of range becomes the arrival, and forwards too long for an event are cut, marked,
as a quote is cut to its name.
"""

import json
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from app import clock
from app.limits import AHEAD_MS_MAX, EARLIEST_MS, NESTING_MAX, is_uuid, too_deep
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO, MESSENGER, Scope

CONTENT_BYTES_MAX = e.EVENT_BYTES_MAX - 48 * 1024
ID_CHARACTERS_MAX = 255
CHATS_KEPT = 8192
QUOTED_FIELDS = (
    "id", "msgid", "client_id", "type", "text", "media", "thumbnail", "file_name", "file_size",
    "media_duration", "sticker_id", "location", "contact", "timestamp", "msec_timestamp", "sender",
)  # fmt: skip
TYPES = ("text", "file", "video", "picture", "voice", "audio", "sticker", "location", "contact")


class HookRefused(Exception):
    """A signed hook that is not of the documented shape; the message says why.

    `old`: it is of version v1, which Kommo sends if it was asked to when the channel was connected.
    """

    def __init__(self, message: str, *, old: bool = False) -> None:
        super().__init__(message)
        self.old = old


class Who(Struct, frozen=True):
    """A participant in a hook."""

    id: str | None = None
    client_id: str | None = None
    name: str | None = None
    phone: str | None = None
    email: str | None = None


class Where(Struct, frozen=True):
    """A conversation: `id` is Kommo's, `client_id` the messenger's, absent in a chat that Kommo started."""

    id: str | None = None
    client_id: str | None = None


class Origin(Struct, frozen=True):
    """The source a chat belongs to."""

    external_id: str | None = None


class Embedded(Struct, frozen=True):
    """A message that is answered or reacted to: `id` is Kommo's, `msgid` (or `client_id`) ours."""

    id: str | None = None
    msgid: str | None = None
    client_id: str | None = None

    @property
    def ours(self) -> str | None:
        """Our id, if it is one."""
        return next((name for name in (self.msgid, self.client_id) if name and is_uuid(name)), None)


class Body(Struct, frozen=True):
    """The message itself. Kommo sends "" and 0 for what is not there."""

    id: str
    type: str = "text"
    text: str | None = None
    media: str | None = None
    thumbnail: str | None = None
    file_name: str | None = None
    file_size: int | str | None = None
    media_duration: int | str | None = None
    media_group_id: str | None = None
    sticker_id: str | None = None
    tag: str | None = None
    location: e.Location | None = None
    contact: e.Contact | None = None
    markup: dict[str, object] | list[object] | None = None
    template: dict[str, object] | list[object] | None = None
    reply_to: dict[str, object] | list[object] | None = None
    forwards: dict[str, object] | None = None
    post: dict[str, object] | None = None
    shared_post: dict[str, object] | None = None


class Outgoing(Struct, frozen=True):
    """A manager wrote."""

    message: Body
    conversation: Where
    sender: Who = Who()
    receiver: Who = Who()
    source: Origin | None = None
    timestamp: int | None = None
    msec_timestamp: int | None = None


class TypingHook(Struct, frozen=True):
    """A manager is writing; the user stands here or beside."""

    conversation: Where
    user: Who | None = None
    expired_at: int | None = None
    post_id: object = None


class ReactionHook(Struct, frozen=True):
    """A manager reacted; the message is an object, or only its `msgid`."""

    conversation: Where
    type: str
    user: Who = Who()
    message: Embedded | None = None
    msgid: str | None = None
    emoji: str | None = None


class Action(Struct, frozen=True):
    """Either of the two."""

    typing: TypingHook | None = None
    reaction: ReactionHook | None = None
    user: Who | None = None


class Hook(Struct, frozen=True):
    """A v2 hook: `message` or `action`. A v1 hook has its `conversation_id` here instead."""

    account_id: str | None = None
    time: int | None = None
    message: Outgoing | None = None
    action: Action | None = None
    conversation_id: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class Given(NamedTuple):
    """Where a hook came in, and when in unix milliseconds: by our clock and by Kommo's."""

    where: Scope
    now: int
    at: int


_decoder = msgspec.json.Decoder(Hook)


def command(scope: Scope, body: bytes) -> c.AnyCommand:
    """The command that a hook asks for; raises HookRefused."""
    hook = _read(body)
    now = clock.now_ms()
    if hook.message:
        return _send(scope, hook.message, now)
    action = hook.action
    seconds = hook.time if hook.time is not None else now // 1000
    given = Given(scope, now, _sane(seconds * 1000, now))
    if action and action.typing:
        return _type(given, action.typing, action.typing.user or action.user or Who())
    if action and action.reaction:
        return _react(given, action.reaction, action.user)
    if hook.conversation_id:
        raise HookRefused("it is a v1 hook: connect the account again, which asks for v2", old=True)
    raise HookRefused("neither `message` nor `action.typing` nor `action.reaction` is in it")


def _read(body: bytes) -> Hook:
    try:
        if b"\\u" in body and (b"\\u0000" in body or b"\\ud" in body.lower()):
            return msgspec.convert(_mended(json.loads(body, parse_constant=_no_number)), Hook)
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise HookRefused(str(error)) from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")


def _mended(value: object) -> object:
    """The same with U+FFFD for each character that cannot be stored."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
        case dict():
            return {str(_mended(name)): _mended(inner) for name, inner in value.items()}
        case list():
            return [_mended(inner) for inner in value]
        case _:
            return value


def _sane(ms: int, now: int) -> int:
    return ms if EARLIEST_MS <= ms <= now + AHEAD_MS_MAX else now


def _name(text: str | None, what: str) -> str:
    if not text or len(text) > ID_CHARACTERS_MAX:
        raise HookRefused(f"{what} must be 1 to {ID_CHARACTERS_MAX} characters")
    return text


def _ends(scope: Scope, conversation: Where) -> tuple[c.End, ...]:
    """The names of the conversation, Kommo's first."""
    chat_id = _name(conversation.id, "conversation.id")
    own = _name(conversation.client_id, "conversation.client_id") if conversation.client_id else None
    return _ends_of(scope, chat_id, own)


@lru_cache(maxsize=CHATS_KEPT)
def _ends_of(scope: Scope, chat_id: str, own: str | None) -> tuple[c.End, ...]:
    """The same for names that are in order; every hook of a chat has the same."""
    ends = [c.End("kommo", ids.conversation_id(scope, KOMMO, chat_id), e.Ends(chat_id=chat_id))]
    if own:
        stream = ids.conversation_id(scope, MESSENGER, own)
        ends.append(c.End("messenger", stream, e.Ends(conversation_id=own)))
    return tuple(ends)


def _stamp(given: Given, ends: tuple[c.End, ...]) -> c.Stamp:
    return clock.stamp(given.where, ends[-1].stream, KOMMO, now=given.now, at=given.at)


def _send(scope: Scope, hook: Outgoing, now: int) -> c.Send:
    body = hook.message
    own_id = _name(body.id, "message.message.id")
    if body.type not in TYPES:
        raise HookRefused(f"message.message.type is {body.type[:40]!r}, none of {', '.join(TYPES)}")
    at = _sane(hook.msec_timestamp or (hook.timestamp or 0) * 1000, now)
    ends = _ends(scope, hook.conversation)
    content, reply_stream = _content(body, hook.conversation), None
    free = (body.markup, body.template, body.forwards, body.post, body.shared_post, body.reply_to)
    if any(free):
        if any(map(too_deep, free)):
            raise HookRefused(f"an object in it is nested deeper than {NESTING_MAX}")
        quote = _quote(body.reply_to)
        content = _cut(_with_objects(content, body, quote))
        reply_stream = _named(scope, _answered(quote))
    sender, receiver = hook.sender, hook.receiver
    return c.Send(
        **clock.stamp(scope, ends[-1].stream, KOMMO, now=now, at=at),
        stream=ids.message_id(scope, KOMMO, own_id),
        side="kommo",
        own_id=own_id,
        msec=at,
        ends=ends,
        sender=e.Party(id=sender.id, name=sender.name or None),
        receiver=e.Party(
            id=receiver.id,
            name=receiver.name or None,
            phone=receiver.phone or None,
            email=receiver.email or None,
            client_id=receiver.client_id or None,
        ),
        content=content,
        reply_stream=reply_stream,
        source=hook.source.external_id if hook.source else None,
    )


def _named(scope: Scope, message: Embedded | None) -> str | None:
    """The stream of a message that Kommo speaks of: ours by `msgid`, else by its own name."""
    if message is None:
        return None
    if message.ours:
        return message.ours
    return ids.message_id(scope, KOMMO, message.id) if message.id else None


def _quote(reply_to: dict[str, object] | list[object] | None) -> e.Json:
    """The message that is answered, as Kommo tells it: an object of its own, or without that level."""
    outer = _object(reply_to) or {}
    inner = outer.get("message")
    return inner if isinstance(inner, dict) and inner else outer


def _answered(quote: e.Json) -> Embedded:
    """Its names, as far as they can be names."""
    names = (quote.get("id"), quote.get("msgid"), quote.get("client_id"))
    return Embedded(*(name if isinstance(name, str) else None for name in names))


def _reply(quote: e.Json) -> e.Reply | None:
    """What is answered, told whole as well if Kommo does so: we may never have seen it."""
    answered = _answered(quote)
    name = answered.id or answered.msgid
    if not name:
        return None
    whole = isinstance(quote.get("type"), str) and quote["type"]
    quoted = {field: value for field in QUOTED_FIELDS if (value := quote.get(field))}
    return e.Reply(name, quoted=quoted if whole else None)


def _content(body: Body, conversation: Where) -> e.Content:
    """The content without the objects that few messages have."""
    return e.Content(
        type=body.type,
        text=body.text or None,
        media=body.media or None,
        thumbnail=body.thumbnail or None,
        file_name=body.file_name or None,
        file_size=_whole(body.file_size),
        media_duration=_whole(body.media_duration),
        media_group_id=body.media_group_id or None,
        sticker_id=body.sticker_id or None,
        location=body.location,
        contact=body.contact,
        tag=body.tag or None,
        conversation_id=conversation.client_id or None,
    )


def _with_objects(content: e.Content, body: Body, quote: e.Json) -> e.Content:
    return replace(
        content,
        markup=_object(body.markup),
        template=_object(body.template),
        reply_to=_reply(quote),
        forwards=body.forwards or None,
        post=body.post or None,
        shared_post=body.shared_post or None,
    )


def _cut(content: e.Content) -> e.Content:
    """Forwards that are too long for an event are left out, and their number is kept; then a quote."""
    if content.forwards is not None and _long(content):
        messages = content.forwards.get("messages")
        count = len(messages) if isinstance(messages, list) else 1
        content = replace(content, forwards=None, forwards_cut=count)
    reply = content.reply_to
    if reply and reply.quoted and _long(content):
        content = replace(content, reply_to=e.Reply(reply.id))
    return content


def _long(content: e.Content) -> bool:
    return len(e.encode(content)) > CONTENT_BYTES_MAX


def _whole(value: int | str | None) -> int | None:
    """Kommo sends 0, "" or digits in quotes for a number."""
    if not value:
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 16 else 0
    return value if value and abs(value) < 2**53 else None


def _object(value: dict[str, object] | list[object] | None) -> e.Json | None:
    """PHP writes an empty object as an empty array."""
    return value if isinstance(value, dict) and value else None


def _type(given: Given, hook: TypingHook, user: Who) -> c.Type:
    ends = _ends(given.where, hook.conversation)
    sender = user.id or "unknown"
    expires = hook.expired_at * 1000 if hook.expired_at else given.at + ids.TYPING_WINDOW_MS
    started = _sane(expires - ids.TYPING_WINDOW_MS, given.now)
    return c.Type(
        **_stamp(given._replace(at=started), ends),
        stream=ids.typing_id(given.where, ends[0].stream, sender, started),
        side="kommo",
        at_ms=started,
        ends=ends,
        sender=e.Party(id=sender, name=user.name),
        expires_at=clock.text(started + ids.TYPING_WINDOW_MS),
        post_id=_post_id(hook.post_id),
    )


def _post_id(told: object) -> str | None:
    """The post under which somebody writes a comment."""
    name = str(told) if isinstance(told, int) and told else told
    return name if isinstance(name, str) and 0 < len(name) <= ID_CHARACTERS_MAX else None


def _react(given: Given, hook: ReactionHook, user: Who | None) -> c.React:
    if hook.type not in ("react", "unreact"):
        raise HookRefused(f"action.reaction.type is {hook.type[:40]!r}, neither react nor unreact")
    ends = _ends(given.where, hook.conversation)
    message = hook.message or Embedded(id=hook.msgid, msgid=hook.msgid)
    named = [ids.message_id(given.where, KOMMO, message.id)] if message.id else []
    if message.ours:
        named.append(message.ours)
    if not named:
        raise HookRefused("action.reaction names no message: neither message.id nor msgid is in it")
    who = hook.user if hook.user.id else user or Who()
    return c.React(
        **_stamp(given, ends),
        streams=tuple(named),
        side="kommo",
        sender=e.Party(id=who.id, name=who.name),
        emoji=hook.emoji or "",
        removed=hook.type == "unreact",
    )
