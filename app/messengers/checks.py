"""A body as checked actions: whatever the contract forbids is refused here, with its place and what to do."""

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from datetime import datetime

import msgspec

from app import clock
from app.limits import (
    AHEAD_MS_MAX,
    EARLIEST_MS,
    FAILURE_CODES,
    INTEGER_MAX,
    NESTING_MAX,
    is_name,
    is_uuid,
    too_deep,
)
from app.messengers import tidy
from app.messengers.adapter import Received
from app.messengers.contract import (
    URL_PATTERN,
    Action,
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
    ReportedStatus,
    Sent,
    Status,
    Typing,
)
from app.turns import Turns
from domain.content import Way, names
from domain.parts import Json

# Both limits are published in the contract. As many actions fit into one commit (`ledger/writer.BATCH_MAX`).
ACTIONS_MAX = 500
TEXT_BYTES_MAX = 64 * 1024
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
FREE = names(Way.FROM_MESSENGER, Json)
_one: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)
_many = msgspec.json.Decoder(list[msgspec.Raw])


class ActionRefused(Exception):
    """An action breaks the contract; `path` says where in the body, the message what to do."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


async def parse(body: bytes, turns: Turns) -> Received:
    """Read a body of one action or an array of 1 to 500; raises ActionRefused, naming the place.

    An array is read in `turns`.
    """
    body = body.removeprefix(BOM_UTF8)
    array = body.lstrip()[:1] == b"["
    try:
        raws: list[msgspec.Raw] | list[bytes] = _many.decode(body) if array else [body]
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ActionRefused("$", other_encoding(body) or f"the body is not JSON: {error}") from None
    if not 1 <= len(raws) <= ACTIONS_MAX:
        raise ActionRefused("$", f"an array holds 1 to {ACTIONS_MAX} actions, this one {len(raws)}: split it")
    actions = []
    for index, raw in enumerate(raws):
        if array:
            await turns.take()
        try:
            actions.append(parse_one(bytes(raw)))
        except ActionRefused as error:
            where = f"$[{index}]{error.path[1:]}" if array else error.path
            raise ActionRefused(where, error.message) from None
    return Received(actions, array)


def parse_one(raw: bytes) -> Action:
    """Read and check one action; raises ActionRefused."""
    try:
        action = _one.decode(raw)
    except msgspec.ValidationError as error:
        if (tidied := tidy.tidied(raw)) is None:
            text, _, path = str(error).partition(" - at `")
            if repr(URL_PATTERN) in text:
                text = "give an http or https address without control characters, or leave it out"
            raise ActionRefused(path.rstrip("`") or "$", text) from None
        action = tidied
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        hint = " (a lone surrogate is no character)" if b"\\ud" in raw.lower() else ""
        raise ActionRefused("$", other_encoding(raw) or f"this is not JSON: {error}{hint}") from None
    if b"\\u0000" in raw:
        refuse_nul(msgspec.to_builtins(action), "$")
    _check(action)
    return action


def other_encoding(body: bytes) -> str:
    """Says that a body is a text of another encoding; empty if it is UTF-8."""
    if body.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or b"\0" in body[:2]:
        return "the body is in UTF-16: send UTF-8"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"the body is not UTF-8 (byte {error.start}): send UTF-8"
    return ""


def refuse_nul(value: object, path: str) -> None:
    """No text holds NUL, which PostgreSQL cannot store; raises ActionRefused."""
    match value:
        case str() if "\0" in value:
            raise ActionRefused(path, "a text must not hold the character NUL: leave it out")
        case dict():
            for name, inner in value.items():
                refuse_nul(name, path)
                refuse_nul(inner, f"{path}.{name}")
        case list():
            for index, inner in enumerate(value):
                refuse_nul(inner, f"{path}[{index}]")


def _refuse_odd(value: object, path: str) -> None:
    """A free object is one that every JSON reader can take; raises ActionRefused."""
    if too_deep(value):
        raise ActionRefused(path, f"objects are nested at most {NESTING_MAX} deep: send less")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        place = f"{path}[{name}]" if isinstance(value, list) else f"{path}.{name}"
        if isinstance(each, int) and abs(each) > INTEGER_MAX:
            raise ActionRefused(place, "a whole number is within 2^53 either way: send it as a text")
        _refuse_odd(each, place)


def _check(action: Action) -> None:
    """The rules that types cannot express; raises ActionRefused."""
    check_moment(action.at)
    check_name(action.conversation_id, "$.conversation_id")
    if not isinstance(action, Typing) and action.message_id is not None:
        check_name(action.message_id, "$.message_id")
    match action:
        case Sent():
            _check_sent(action)
        case Edited():
            check_message(action.message)
            _check_status(action.delivery_status)
        case Typing():
            check_name(action.sender.id, "$.sender.id")
        case Delivered() | Read() | Failed():
            _check_named(action)
            if isinstance(action, Failed):
                check_code(action.code, "$.code")
        case ReactionAdded() | ReactionRemoved():
            _check_named(action)
            check_name(action.sender.id, "$.sender.id")
            if isinstance(action, ReactionAdded) and not action.emoji:
                raise ActionRefused("$.emoji", "a reaction needs its emoji")


def _check_sent(action: Sent) -> None:
    check_name(action.sender.id, "$.sender.id")
    check_message(action.message)
    if action.direction == "out":
        if action.receiver is None:
            raise ActionRefused(
                "$.receiver", "an outgoing message needs its receiver: the customer's id and name"
            )
        check_name(action.receiver.id, "$.receiver.id")
    if action.reply_to:
        check_name(action.reply_to.message_id, "$.reply_to.message_id")
        if action.reply_to.message:
            _check_quoted(action.reply_to, "$.reply_to")
    if action.forwards:
        _check_forwards(action.forwards)


def _check_forwards(forwards: Forwards) -> None:
    (forward,) = forwards.messages
    if forward.message is not None:
        _check_quoted(forward, "$.forwards.messages[0]")
    if forward.message_id is None and forward.message is None:
        raise ActionRefused(
            "$.forwards.messages[0]", "name it (message_id), or tell it: message, sender and at"
        )
    for text, path in (
        (forward.message_id, "messages[0].message_id"),
        (forwards.conversation_id, "conversation_id"),
    ):
        check_name(text or "-", f"$.forwards.{path}")


def _check_quoted(quoted: ReplyTo | Forward, path: str) -> None:
    if quoted.message is not None:
        check_message(quoted.message, f"{path}.message")
    for name in ("sender", "at"):
        if getattr(quoted, name) is None:
            raise ActionRefused(f"{path}.{name}", "Kommo needs it to show a message that it does not have")


def _check_status(reported: ReportedStatus | None) -> None:
    if reported and reported.status == "failed":
        check_code(reported.code, "$.delivery_status.code")


def check_code(code: int, path: str) -> None:
    """A failure has one of Kommo's codes; raises ActionRefused."""
    if code not in FAILURE_CODES:
        raise ActionRefused(path, f"a failure's code is one of {', '.join(map(str, FAILURE_CODES))}")


def check_moment(at: datetime, path: str = "$.at") -> None:
    """A time is within what a working clock shows; raises ActionRefused."""
    if not EARLIEST_MS <= clock.milliseconds(at) <= clock.now_ms() + AHEAD_MS_MAX:
        raise ActionRefused(path, "the time is before 2000 or over 24 hours ahead: check the sender's clock")


def _check_named(action: Status | Reaction) -> None:
    if action.message_id is None and action.id is None:
        raise ActionRefused(
            "$.message_id", "name the message: message_id as you answered, or id as we gave it"
        )
    if action.id is not None and not is_uuid(action.id):
        raise ActionRefused("$.id", "this is not one of our message ids, which are UUIDs in lower case")


def check_message(message: Message, path: str = "$.message") -> None:
    """A message has what its type needs; raises ActionRefused."""
    for name in NEEDS.get(message.type, ()):
        if getattr(message, name) in (None, ""):
            raise ActionRefused(f"{path}.{name}", f"a message of type {message.type} needs it")
    if message.type == "sticker" and not (message.media or message.sticker_id):
        raise ActionRefused(f"{path}.sticker_id", "a sticker needs sticker_id or media")
    for name in FREE:
        if isinstance(value := getattr(message, name), dict):
            _refuse_odd(value, f"{path}.{name}")
    if message.text and len(message.text.encode()) > TEXT_BYTES_MAX:
        raise ActionRefused(f"{path}.text", "a text holds at most 64 KB: split it")


def check_name(text: str, path: str) -> None:
    """An id has no control character; raises ActionRefused."""
    if not is_name(text):
        raise ActionRefused(path, "an id holds 1 to 255 characters, none of them a control character")
