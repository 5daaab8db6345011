"""What a messenger says, checked against the contract, becomes commands; nothing else gets past here."""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from app import clock
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import MESSENGER, Link

ACTIONS_MAX = 500
TEXT_BYTES_MAX = 64 * 1024
ID_CHARACTERS_MAX = 255
AHEAD_MS_MAX = 24 * 3_600_000
EARLIEST_MS = 946_684_800_000  # 2000-01-01
INTEGER_MAX = 2**53
NESTING_MAX = 64
CODES = (901, 902, 903, 904, 905)

Name = Annotated[str, Meta(min_length=1, max_length=ID_CHARACTERS_MAX)]
Words = Annotated[str, Meta(max_length=1024)]
Url = Annotated[str, Meta(pattern=r"^https?://[^\s/]", max_length=4096)]
Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Moment = Annotated[datetime, Meta(tz=True)]
Degrees = Annotated[float, Meta(ge=-180, le=180)]


class BadAction(Exception):
    """An action breaks the contract; `path` says where in the body, the message what to do."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


class Sender(Struct, frozen=True):
    """Who acts, as the messenger calls them."""

    id: Name
    name: Words
    phone: Words | None = None
    email: Words | None = None
    avatar: Url | None = None
    profile_link: Url | None = None


class Actor(Struct, frozen=True):
    """The same where the name may be left out."""

    id: Name
    name: Words | None = None


class Location(Struct, frozen=True):
    """Degrees."""

    lon: Degrees
    lat: Annotated[float, Meta(ge=-90, le=90)]


class Contact(Struct, frozen=True):
    """A shared address-book entry."""

    name: Words
    phone: Words


class Message(Struct, frozen=True):
    """A message's content; what each type needs is in `NEEDS`."""

    type: Literal["text", "picture", "file", "video", "voice", "audio", "sticker", "location", "contact"]
    text: str | None = None
    media: Url | None = None
    file_name: Words | None = None
    file_size: Count | None = None
    media_duration: Count | None = None
    sticker_id: Name | None = None
    location: Location | None = None
    contact: Contact | None = None
    callback_data: Words | None = None
    shared_post: dict[str, object] | None = None


class ReplyTo(Struct, frozen=True):
    """The messenger's id of the message that is answered."""

    message_id: Name


class Source(Struct, frozen=True):
    """Kommo's sources allow up to 40 printable ASCII characters."""

    external_id: Annotated[str, Meta(pattern=r"^[ -~]{1,40}$")]


class Sent(Struct, frozen=True, tag="message.sent"):
    """A customer wrote."""

    conversation_id: Name
    message_id: Name
    at: Moment
    sender: Sender
    message: Message
    account_id: str | None = None
    reply_to: ReplyTo | None = None
    source: Source | None = None
    silent: bool = False


class Edited(Struct, frozen=True, tag="message.edited"):
    """A customer changed a message."""

    conversation_id: Name
    message_id: Name
    at: Moment
    message: Message
    account_id: str | None = None


class Deleted(Struct, frozen=True, tag="message.deleted"):
    """A customer took a message back."""

    conversation_id: Name
    message_id: Name
    at: Moment
    account_id: str | None = None


class _Status(Struct, frozen=True):
    conversation_id: Name
    at: Moment
    message_id: Name | None = None
    id: str | None = None
    account_id: str | None = None


class Delivered(_Status, frozen=True, tag="message.delivered"):
    """Our message is on the customer's device."""


class Read(_Status, frozen=True, tag="message.read"):
    """The customer saw our message."""


class Failed(_Status, frozen=True, tag="message.failed"):
    """Our message will not arrive."""

    code: int = 905
    text: Words = ""


class Typing(Struct, frozen=True, tag="typing"):
    """A customer is writing."""

    conversation_id: Name
    at: Moment
    sender: Actor
    account_id: str | None = None


class _Reaction(Struct, frozen=True):
    conversation_id: Name
    at: Moment
    sender: Actor
    message_id: Name | None = None
    id: str | None = None
    account_id: str | None = None


class ReactionAdded(_Reaction, frozen=True, tag="reaction.added"):
    """A customer reacted."""

    emoji: Annotated[str, Meta(min_length=1, max_length=64)] = msgspec.field(default="")


class ReactionRemoved(_Reaction, frozen=True, tag="reaction.removed"):
    """A customer took a reaction back."""

    emoji: Annotated[str, Meta(max_length=64)] = ""


Action: TypeAlias = (
    Sent | Edited | Deleted | Delivered | Read | Failed | Typing | ReactionAdded | ReactionRemoved
)
STATUSES: dict[type, Literal["delivered", "read", "failed"]] = {
    Delivered: "delivered",
    Read: "read",
    Failed: "failed",
}
MEDIA = ("media",)
NEEDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "picture": MEDIA,
    "file": MEDIA,
    "video": MEDIA,
    "voice": MEDIA,
    "audio": MEDIA,
    "location": ("location",),
    "contact": ("contact",),
}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_one: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)
_many = msgspec.json.Decoder(list[msgspec.Raw])


class Parsed(NamedTuple):
    """The actions of a body, and whether it was an array (then the answer is one of results)."""

    actions: list[Action]
    array: bool


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID in lower case, as all our ids are."""
    return _UUID.fullmatch(text) is not None


def parse(body: bytes) -> Parsed:
    """Read a body of one action or an array of 1 to 500; raises BadAction, naming the place."""
    array = body.lstrip()[:1] == b"["
    try:
        raws: list[msgspec.Raw] | list[bytes] = _many.decode(body) if array else [body]
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadAction("$", f"the body is not JSON: {error}") from None
    if not 1 <= len(raws) <= ACTIONS_MAX:
        raise BadAction("$", f"an array holds 1 to {ACTIONS_MAX} actions, this one {len(raws)}: split it")
    actions = []
    for index, raw in enumerate(raws):
        try:
            actions.append(_action(bytes(raw)))
        except BadAction as error:
            where = f"$[{index}]{error.path[1:]}" if array else error.path
            raise BadAction(where, error.message) from None
    return Parsed(actions, array)


def _action(raw: bytes) -> Action:
    try:
        action = _one.decode(raw)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        raise BadAction(path.rstrip("`") or "$", text) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        hint = " (a lone surrogate is no character)" if b"\\ud" in raw.lower() else ""
        raise BadAction("$", f"this is not JSON: {error}{hint}") from None
    if b"\\u0000" in raw:
        _refuse_nul(msgspec.to_builtins(action), "$")
    _check(action)
    return action


def _refuse_nul(value: object, path: str) -> None:
    match value:
        case str() if "\0" in value:
            raise BadAction(path, "a text must not hold the character NUL: leave it out")
        case dict():
            for name, inner in value.items():
                _refuse_nul(name, path)
                _refuse_nul(inner, f"{path}.{name}")
        case list():
            for index, inner in enumerate(value):
                _refuse_nul(inner, f"{path}[{index}]")


def too_deep(value: object, left: int = NESTING_MAX) -> bool:
    """Whether objects and arrays are nested deeper than every reader of an event can follow."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(too_deep(each, left - 1) for each in inner)


def _refuse_odd(value: object, path: str) -> None:
    """Refuse what a free object may hold and JSON's readers may not."""
    if too_deep(value):
        raise BadAction(path, f"objects are nested at most {NESTING_MAX} deep: send less")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        place = f"{path}[{name}]" if isinstance(value, list) else f"{path}.{name}"
        if isinstance(each, int) and abs(each) > INTEGER_MAX:
            raise BadAction(place, "a whole number is within 2^53 either way: send it as a text")
        _refuse_odd(each, place)


def _check(action: Action) -> None:
    """What types alone cannot say."""
    at = clock.milliseconds(action.at)
    if not EARLIEST_MS <= at <= clock.now_ms() + AHEAD_MS_MAX:
        raise BadAction("$.at", "the time is before 2000 or over 24 hours ahead: check the sender's clock")
    _printable(action.conversation_id, "$.conversation_id")
    if not isinstance(action, Typing) and action.message_id is not None:
        _printable(action.message_id, "$.message_id")
    match action:
        case Sent():
            _printable(action.sender.id, "$.sender.id")
            _check_message(action.message)
            if action.reply_to:
                _printable(action.reply_to.message_id, "$.reply_to.message_id")
        case Edited():
            _check_message(action.message)
        case Typing():
            _printable(action.sender.id, "$.sender.id")
        case Delivered() | Read() | Failed():
            _check_named(action)
            if isinstance(action, Failed) and action.code not in CODES:
                raise BadAction("$.code", f"a failure's code is one of {', '.join(map(str, CODES))}")
        case ReactionAdded() | ReactionRemoved():
            _check_named(action)
            _printable(action.sender.id, "$.sender.id")
            if isinstance(action, ReactionAdded) and not action.emoji:
                raise BadAction("$.emoji", "a reaction needs its emoji")


def _check_named(action: _Status | _Reaction) -> None:
    if action.message_id is None and action.id is None:
        raise BadAction("$.message_id", "name the message: message_id as you answered, or id as we gave it")
    if action.id is not None and not is_uuid(action.id):
        raise BadAction("$.id", "this is not one of our message ids, which are UUIDs in lower case")


def _check_message(message: Message) -> None:
    for name in NEEDS.get(message.type, ()):
        if getattr(message, name) in (None, ""):
            raise BadAction(f"$.message.{name}", f"a message of type {message.type} needs it")
    if message.type == "sticker" and not (message.media or message.sticker_id):
        raise BadAction("$.message.sticker_id", "a sticker needs sticker_id or media")
    if message.shared_post is not None:
        _refuse_odd(message.shared_post, "$.message.shared_post")
    if message.text and len(message.text.encode()) > TEXT_BYTES_MAX:
        raise BadAction("$.message.text", "a text holds at most 64 KB: split it")


def _printable(text: str, path: str) -> None:
    if not text.isprintable():
        raise BadAction(path, "an id holds 1 to 255 printable characters")


def command(where: Link, action: Action) -> c.AnyCommand:
    """The command that an action asks for, on a link."""
    now = clock.now_ms()
    at = clock.milliseconds(action.at.astimezone(UTC))
    stream = ids.conversation_id(where, MESSENGER, action.conversation_id)
    given = clock.stamp(where, stream, MESSENGER, now=now, at=at)
    end = c.End("messenger", stream, e.Ends(conversation_id=action.conversation_id))
    match action:
        case Sent():
            return _send(where, action, given, end, at)
        case Edited():
            content = _content(action.message, action.conversation_id)
            return c.Edit(**given, stream=_own(where, action.message_id), content=content)
        case Deleted():
            return c.Delete(**given, stream=_own(where, action.message_id))
        case Delivered() | Read():
            return c.Confirm(**given, stream=_named(where, action), status=STATUSES[type(action)])
        case Failed():
            named = _named(where, action)
            return c.Confirm(**given, stream=named, status="failed", code=action.code, text=action.text)
        case ReactionAdded() | ReactionRemoved():
            return c.React(
                **given,
                streams=(_named(where, action),),
                side="messenger",
                sender=e.Party(id=action.sender.id, name=action.sender.name),
                emoji=action.emoji,
                removed=isinstance(action, ReactionRemoved),
            )
        case Typing():
            return c.Type(
                **given,
                stream=ids.typing_id(where, stream, action.sender.id, at),
                side="messenger",
                at_ms=at,
                ends=(end,),
                sender=e.Party(id=action.sender.id, name=action.sender.name),
                expires_at=clock.text(at + ids.TYPING_WINDOW_MS),
            )


def _send(where: Link, action: Sent, given: c.Stamp, end: c.End, at: int) -> c.Send:
    sender, reply = action.sender, action.reply_to
    content = _content(action.message, action.conversation_id, reply.message_id if reply else None)
    return c.Send(
        **given,
        stream=_own(where, action.message_id),
        side="messenger",
        own_id=action.message_id,
        msec=at,
        ends=(end,),
        sender=e.Party(
            sender.id, sender.name, sender.phone, sender.email, sender.avatar, sender.profile_link
        ),
        content=content,
        reply_stream=_own(where, reply.message_id) if reply else None,
        source=action.source.external_id if action.source else None,
        silent=action.silent,
    )


def _content(message: Message, conversation_id: str, reply: str | None = None) -> e.Content:
    place, contact = message.location, message.contact
    return e.Content(
        type=message.type,
        text=message.text,
        media=message.media,
        file_name=message.file_name,
        file_size=message.file_size,
        media_duration=message.media_duration,
        sticker_id=message.sticker_id,
        location=e.Location(place.lon, place.lat) if place else None,
        contact=e.Contact(contact.name, contact.phone) if contact else None,
        callback_data=message.callback_data,
        shared_post=message.shared_post,
        reply_to=e.Reply(reply) if reply else None,
        conversation_id=conversation_id,
    )


def _own(where: Link, message_id: str) -> str:
    return ids.message_id(where, MESSENGER, message_id)


def _named(where: Link, action: _Status | _Reaction) -> str:
    return action.id if action.id else _own(where, action.message_id or "")
