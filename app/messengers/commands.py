"""What a messenger says, checked against the contract, becomes commands; nothing else gets past here."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from app import clock
from app.messengers.contract import (
    INTEGER_MAX,
    STATUSES,
    Action,
    Deleted,
    Delivered,
    Edited,
    Failed,
    Forward,
    Forwards,
    Message,
    Reaction,
    ReactionAdded,
    ReactionRemoved,
    Read,
    ReplyTo,
    Sender,
    Sent,
    Status,
    StatusTold,
    Typing,
)
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import MESSENGER, Link

ACTIONS_MAX = 500
TEXT_BYTES_MAX = 64 * 1024
AHEAD_MS_MAX = 24 * 3_600_000
EARLIEST_MS = 946_684_800_000  # 2000-01-01
NESTING_MAX = 64
CODES = (901, 902, 903, 904, 905)
STATUS_CODES = {"delivered": 1, "read": 2, "failed": -1}
NO_BOT = "name the manager who wrote (user_id), or give the channel its bot: PUT /v1/channels, kommo.bot_id"
QUOTED_FIELDS = ("file_name", "file_size", "media_duration")


class BadAction(Exception):
    """An action breaks the contract; `path` says where in the body, the message what to do."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


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
            actions.append(parse_one(bytes(raw)))
        except BadAction as error:
            where = f"$[{index}]{error.path[1:]}" if array else error.path
            raise BadAction(where, error.message) from None
    return Parsed(actions, array)


def parse_one(raw: bytes) -> Action:
    """Read and check one action; raises BadAction."""
    try:
        action = _one.decode(raw)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        raise BadAction(path.rstrip("`") or "$", text) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        hint = " (a lone surrogate is no character)" if b"\\ud" in raw.lower() else ""
        raise BadAction("$", f"this is not JSON: {error}{hint}") from None
    if b"\\u0000" in raw:
        refuse_nul(msgspec.to_builtins(action), "$")
    _check(action)
    return action


def refuse_nul(value: object, path: str) -> None:
    match value:
        case str() if "\0" in value:
            raise BadAction(path, "a text must not hold the character NUL: leave it out")
        case dict():
            for name, inner in value.items():
                refuse_nul(name, path)
                refuse_nul(inner, f"{path}.{name}")
        case list():
            for index, inner in enumerate(value):
                refuse_nul(inner, f"{path}[{index}]")


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
    check_moment(action.at)
    check_printable(action.conversation_id, "$.conversation_id")
    if not isinstance(action, Typing) and action.message_id is not None:
        check_printable(action.message_id, "$.message_id")
    match action:
        case Sent():
            _check_sent(action)
        case Edited():
            check_message(action.message)
            _check_told(action.delivery_status)
        case Typing():
            check_printable(action.sender.id, "$.sender.id")
        case Delivered() | Read() | Failed():
            _check_named(action)
            if isinstance(action, Failed):
                check_code(action.code, "$.code")
        case ReactionAdded() | ReactionRemoved():
            _check_named(action)
            check_printable(action.sender.id, "$.sender.id")
            if isinstance(action, ReactionAdded) and not action.emoji:
                raise BadAction("$.emoji", "a reaction needs its emoji")


def _check_sent(action: Sent) -> None:
    check_printable(action.sender.id, "$.sender.id")
    check_message(action.message)
    if action.direction == "out":
        if action.receiver is None:
            raise BadAction(
                "$.receiver", "an outgoing message needs its receiver: the customer's id and name"
            )
        check_printable(action.receiver.id, "$.receiver.id")
    if action.reply_to:
        check_printable(action.reply_to.message_id, "$.reply_to.message_id")
        if action.reply_to.message:
            _check_quoted(action.reply_to, "$.reply_to")
    if action.forwards:
        _check_forwards(action.forwards)


def _check_forwards(forwards: Forwards) -> None:
    (forward,) = forwards.messages
    if forward.message is not None:
        _check_quoted(forward, "$.forwards.messages[0]")
    if forward.message_id is None and forward.message is None:
        raise BadAction("$.forwards.messages[0]", "name it (message_id), or tell it: message, sender and at")
    for text, path in (
        (forward.message_id, "messages[0].message_id"),
        (forwards.conversation_id, "conversation_id"),
    ):
        check_printable(text or "", f"$.forwards.{path}")


def _check_quoted(quoted: ReplyTo | Forward, path: str) -> None:
    if quoted.message is not None:
        check_message(quoted.message, f"{path}.message")
    for name in ("sender", "at"):
        if getattr(quoted, name) is None:
            raise BadAction(f"{path}.{name}", "Kommo needs it to show a message that it does not have")


def _check_told(told: StatusTold | None) -> None:
    if told and told.status == "failed":
        check_code(told.code, "$.delivery_status.code")


def check_code(code: int, path: str) -> None:
    """A failure has one of Kommo's codes; raises BadAction."""
    if code not in CODES:
        raise BadAction(path, f"a failure's code is one of {', '.join(map(str, CODES))}")


def check_moment(at: datetime, path: str = "$.at") -> None:
    """A time is within what a working clock shows; raises BadAction."""
    if not EARLIEST_MS <= clock.milliseconds(at) <= clock.now_ms() + AHEAD_MS_MAX:
        raise BadAction(path, "the time is before 2000 or over 24 hours ahead: check the sender's clock")


def _check_named(action: Status | Reaction) -> None:
    if action.message_id is None and action.id is None:
        raise BadAction("$.message_id", "name the message: message_id as you answered, or id as we gave it")
    if action.id is not None and not is_uuid(action.id):
        raise BadAction("$.id", "this is not one of our message ids, which are UUIDs in lower case")


def check_message(message: Message, path: str = "$.message") -> None:
    """A message has what its type needs; raises BadAction."""
    for name in NEEDS.get(message.type, ()):
        if getattr(message, name) in (None, ""):
            raise BadAction(f"{path}.{name}", f"a message of type {message.type} needs it")
    if message.type == "sticker" and not (message.media or message.sticker_id):
        raise BadAction(f"{path}.sticker_id", "a sticker needs sticker_id or media")
    if message.shared_post is not None:
        _refuse_odd(message.shared_post, f"{path}.shared_post")
    if message.text and len(message.text.encode()) > TEXT_BYTES_MAX:
        raise BadAction(f"{path}.text", "a text holds at most 64 KB: split it")


def check_printable(text: str, path: str) -> None:
    """An id can be shown; raises BadAction."""
    if not text.isprintable():
        raise BadAction(path, "an id holds 1 to 255 printable characters")


def command(
    where: Link, action: Action, *, bot_id: str | None = None, imported: bool = False
) -> c.AnyCommand:
    """The command that an action asks for, on a link; raises BadAction.

    `bot_id` is the channel's: in its name Kommo takes what the business wrote on its phone, unless the action
    names a manager. `imported`: the message was written before the channel was connected.
    """
    now = clock.now_ms()
    at = clock.milliseconds(action.at.astimezone(UTC))
    stream = ids.conversation_id(where, MESSENGER, action.conversation_id)
    given = clock.stamp(where, stream, MESSENGER, now=now, at=at)
    end = c.End("messenger", stream, e.Ends(conversation_id=action.conversation_id))
    match action:
        case Sent():
            return _send(where, action, given, end, Imported(at, bot_id, imported))
        case Edited():
            return c.Edit(
                **given,
                stream=_own(where, action.message_id),
                content=content_of(action.message, conversation_id=action.conversation_id),
                delivery_status=_told(action.delivery_status),
            )
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
                sender=e.Party(id=action.sender.id, name=action.sender.name, ref_id=action.sender.user_id),
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
                expires_at=clock.text(at + (action.duration_ms or ids.TYPING_WINDOW_MS)),
                duration_ms=action.duration_ms,
            )


class Imported(NamedTuple):
    """When a message was written (unix milliseconds), and what else its action does not say."""

    at: int
    bot_id: str | None
    imported: bool


def _send(where: Link, action: Sent, given: c.Stamp, end: c.End, more: Imported) -> c.Send:
    reply, forwards = action.reply_to, action.forwards
    forwarded = forwards.messages[0].message_id if forwards else None
    outgoing = action.direction == "out"
    sender = party(action.sender)
    if outgoing:
        sender = msgspec.structs.replace(sender, ref_id=action.sender.user_id or more.bot_id)
        if sender.ref_id is None:
            raise BadAction("$.sender.user_id", NO_BOT)
    content = content_of(
        action.message,
        conversation_id=action.conversation_id,
        reply=e.Reply(reply.message_id, quoted=_quoted(reply)) if reply else None,
        forwards=_forwards(forwards) if forwards else None,
        forwarded=e.Reply(forwarded) if forwarded else None,
    )
    return c.Send(
        **given,
        stream=_own(where, action.message_id),
        side="messenger",
        own_id=action.message_id,
        msec=more.at,
        ends=(end,),
        sender=sender,
        receiver=party(action.receiver) if action.receiver and outgoing else None,
        content=content,
        reply_stream=_own(where, reply.message_id) if reply else None,
        forward_stream=_own(where, forwarded) if forwarded else None,
        source=action.source.external_id if action.source else None,
        silent=action.silent,
        direction=action.direction,
        imported=more.imported,
    )


def party(who: Sender) -> e.Party:
    """Somebody as events name them; whom a manager stands behind is told apart."""
    return e.Party(who.id, who.name, who.phone, who.email, who.avatar, who.profile_link)


def _told(told: StatusTold | None) -> e.DeliveryStatus | None:
    """How far an edited message has come, with Kommo's codes."""
    if told is None:
        return None
    if told.status != "failed":
        return e.DeliveryStatus(STATUS_CODES[told.status])
    return e.DeliveryStatus(STATUS_CODES[told.status], told.code, told.text or "not delivered")


def _quoted(quote: ReplyTo | Forward) -> e.Json | None:
    """A quoted message told whole, as Kommo embeds one."""
    message, sender, at = quote.message, quote.sender, quote.at
    if message is None or sender is None or at is None:
        return None
    moment = clock.milliseconds(at)
    told: e.Json = {"type": message.type, "text": message.text or ""}
    told |= {"timestamp": moment // 1000, "msec_timestamp": moment}
    names = {"id": sender.id, "ref_id": sender.user_id, "name": sender.name}
    told["sender"] = {name: value for name, value in names.items() if value is not None}
    told |= {name: value for name in QUOTED_FIELDS if (value := getattr(message, name)) is not None}
    if message.location:
        told["location"] = msgspec.to_builtins(message.location)
    if message.contact:
        told["contact"] = msgspec.to_builtins(message.contact)
    return told


def _forwards(forwards: Forwards) -> e.Json:
    (forward,) = forwards.messages
    told: e.Json = {"messages": [_quoted(forward) or {"message_id": forward.message_id}]}
    return told | ({"conversation_id": forwards.conversation_id} if forwards.conversation_id else {})


def content_of(
    message: Message,
    *,
    conversation_id: str | None,
    reply: e.Reply | None = None,
    forwards: e.Json | None = None,
    forwarded: e.Reply | None = None,
) -> e.Content:
    """A message's content as events hold it."""
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
        post=msgspec.to_builtins(message.post) if message.post else None,
        reply_to=reply,
        forwards=forwards,
        conversation_id=conversation_id,
        forwarded=forwarded,
    )


def _own(where: Link, message_id: str) -> str:
    return ids.message_id(where, MESSENGER, message_id)


def _named(where: Link, action: Status | Reaction) -> str:
    return action.id if action.id else _own(where, action.message_id or "")
