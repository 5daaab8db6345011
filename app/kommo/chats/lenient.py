"""Reads the hooks whose fields have other types than Kommo documents: what can be understood counts.

Kommo sends a hook once. So a field that cannot be understood is absent and never costs the message, unless
the type of the message needs that very field. This is the slow way, taken only after the strict decoder of
`hook_schema` has failed.

Read as it is meant:
    bytes that are no UTF-8                   U+FFFD; a byte order mark is skipped
    control characters inside strings         themselves; NUL and lone surrogates are U+FFFD
    an object as null, false, 0, "" or []     absent
    a number where a text belongs             its digits; 0 is absent
    a number as a text or with a fraction     the whole number; absent if it is none or over 2^53
    a type of message in upper case           the same in lower case
    objects nested over 64 deep               null from there on

A type of message that is unknown becomes a text with the link of the message in it.
"""

import json
import math
import re
from typing import Any

import msgspec
from msgspec.structs import replace

from app.kommo.chats.hook_schema import (
    Hook,
    HookAction,
    HookConversation,
    HookMessage,
    HookSource,
    MessageNames,
    Outgoing,
    Participant,
    ReactionHook,
    TypingHook,
)
from app.limits import INTEGER_MAX, NESTING_MAX
from app.printable import printable
from domain.content import FIELDS, MESSAGE_TYPES, Way
from domain.parts import Contact, Json, Location

# As texts: fifteen digits are below 2^53, and converting a text of any length would cost its square.
DIGITS_MAX = 15
DEPTH_MAX = NESTING_MAX + 3  # The objects of a message stand at the third level of a hook.
TYPE_CHARACTERS_MAX = 40  # Chosen: of an unknown type's name, which people read.
_NUMBER = re.compile(r"\s*(\d{1,15})(?:\.\d*)?\s*", re.ASCII)
_LINK = re.compile(r"https?://\S+", re.IGNORECASE)
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)  # In one pass, also if a text never ends.
# The field without which a message of this type says nothing; it is media for every other type.
_NEEDED = {"text": "text", "location": "location", "contact": "contact", "sticker": "sticker_id"}
_FIELDS = tuple(one for one in FIELDS if Way.FROM_KOMMO in one.ways and one.name not in ("type", "text"))


def read(body: bytes) -> Hook:
    """Returns the hook in these bytes; raises ValueError if they are no JSON object or lack what counts."""
    data = parsed(body)
    message, action = _object(data.get("message")), _object(data.get("action"))
    account_id = data.get("account_id")
    return Hook(
        account_id=account_id if isinstance(account_id, str) else None,
        time=whole(data.get("time")),
        message=_outgoing(message) if message else None,
        action=_action(action) if action else None,
        conversation_id=msgspec.Raw(b"1" if data.get("conversation_id") else b""),
    )


def parsed(body: bytes) -> Json:
    """Returns the JSON object in these bytes, repaired. Raises ValueError."""
    text = body.decode(json.detect_encoding(body), "replace").removeprefix("\ufeff")
    try:
        data = _loads(text)
    except RecursionError:
        data = _loads(_shallow(text))
    if not isinstance(data, dict):
        raise ValueError("the body is no JSON object")
    found: Json = repaired(data)
    return found


def repaired(value: Any, left: int = DEPTH_MAX) -> Any:
    """Returns JSON with U+FFFD for each character that cannot be stored, and null where it is too deep."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
        case dict() | list() if left < 0:
            return None
        case dict():
            return {repaired(name): repaired(inner, left - 1) for name, inner in value.items()}
        case list():
            return [repaired(inner, left - 1) for inner in value]
        case _:
            return value


def whole(value: object) -> int | None:
    """Returns a number, perhaps as a text or with a fraction, as a whole one; None for 0 and what is none."""
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value)
        value = int(found[1]) if found else None
    elif isinstance(value, float):
        value = int(value) if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value and abs(value) < INTEGER_MAX else None


def known(message: HookMessage, body: bytes) -> tuple[HookMessage, Json | None]:
    """Returns a message of an unknown type as one of a known type, and the whole of what it was.

    The second is None if only the case of the type differs.
    """
    kind = message.type.strip().lower()
    if kind in MESSAGE_TYPES:
        return replace(message, type=kind), None
    raw = _object(_object(parsed(body).get("message")).get("message"))
    links = (value for name in ("media", "link", "url") if isinstance(value := raw.get(name), str))
    link = next((link for link in links if _LINK.fullmatch(link)), None)
    parts = [part for part in (message.text, link) if part]
    name = printable(message.type)[:TYPE_CHARACTERS_MAX]
    text = "\n".join(parts) or f"[{name}]"
    return HookMessage(id=message.id, type="text", text=text, reply_to=message.reply_to), raw


def _loads(text: str) -> object:
    return json.loads(text, strict=False, parse_int=_int, parse_constant=_nothing)


def _int(digits: str) -> int | None:
    """A number with so many digits that converting them would take long is none that anybody means."""
    return int(digits) if len(digits) <= 300 else None  # As a double: those have at most 309 digits.


def _nothing(_: str) -> None:
    """NaN and the infinities, which JSON does not have."""


def _shallow(text: str) -> str:
    """JSON with null for each object and array that is nested too deep to be read at all."""
    parts, depth, begin = [], 0, 0
    for token in _TOKENS.finditer(text):
        bracket = token[0]
        if bracket in ("{", "["):
            depth += 1
            if depth == DEPTH_MAX:
                parts.append(text[begin : token.start()] + "null")
        elif bracket in ("}", "]"):
            if depth == DEPTH_MAX:
                begin = token.end()
            depth -= 1
    return "".join([*parts, text[begin:]])


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def words(value: object) -> str | None:
    """Returns a text, or the digits of a number; None for an empty text, 0 and anything else."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value:
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _degrees(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _location(value: object) -> Location | None:
    place = _object(value)
    lon, lat = _degrees(place.get("lon")), _degrees(place.get("lat"))
    return None if lon is None or lat is None else Location(lon, lat)


def _contact(value: object) -> Contact | None:
    entry = _object(value)
    name, phone = words(entry.get("name")), words(entry.get("phone"))
    return Contact(name or "", phone or "") if name or phone else None


_READERS: dict[Any, Any] = {str: words, int: whole, Location: _location, Contact: _contact}


def _outgoing(data: Json) -> Outgoing:
    source = words(_object(data.get("source")).get("external_id"))
    return Outgoing(
        message=_message(_object(data.get("message"))),
        conversation=_conversation(data),
        sender=_participant(data.get("sender")),
        receiver=_participant(data.get("receiver")),
        source=HookSource(source) if source else None,
        timestamp=whole(data.get("timestamp")),
        msec_timestamp=whole(data.get("msec_timestamp")),
    )


def _message(data: Json) -> HookMessage:
    """A message; raises ValueError if what its type needs is there and cannot be understood."""
    kind = (words(data.get("type")) or "text").strip().lower()
    fields = {
        one.name: _READERS.get(one.type, lambda value: _object(value) or None)(data.get(one.name))
        for one in _FIELDS
    }
    text = words(data.get("text"))
    needed = _NEEDED.get(kind, "media")
    if needed == "text" and not text and data.get("text") == 0 and data["text"] is not False:
        text = "0"
    said = text or fields["media"] or fields.get(needed)
    if not said and data.get(needed) and kind in MESSAGE_TYPES:
        raise ValueError(f"message.message.{needed} cannot be understood")
    return HookMessage(
        id=words(data.get("id")) or "",
        type=kind,
        text=text,
        reply_to=_object(data.get("reply_to")) or None,
        **fields,
    )


def _conversation(data: Json) -> HookConversation:
    names = _object(data.get("conversation"))
    return HookConversation(words(names.get("id")), words(names.get("client_id")))


def _participant(value: object) -> Participant:
    person = _object(value)
    return Participant(**{name: words(person.get(name)) for name in Participant.__struct_fields__})


def _action(data: Json) -> HookAction:
    typing, reaction = _object(data.get("typing")), _object(data.get("reaction"))
    return HookAction(
        typing=_typing(typing) if typing else None,
        reaction=_reaction(reaction) if reaction else None,
        user=_participant(data.get("user")) if _object(data.get("user")) else None,
    )


def _typing(data: Json) -> TypingHook:
    user = _object(data.get("user"))
    return TypingHook(
        conversation=_conversation(data),
        user=_participant(user) if user else None,
        expired_at=whole(data.get("expired_at")),
        post_id=data.get("post_id"),
    )


def _reaction(data: Json) -> ReactionHook:
    message = _object(data.get("message"))
    names = {name: words(message.get(name)) for name in MessageNames.__struct_fields__}
    return ReactionHook(
        conversation=_conversation(data),
        type=(words(data.get("type")) or "").strip().lower(),
        user=_participant(data.get("user")),
        message=MessageNames(**names) if message else None,
        msgid=words(data.get("msgid")),
        emoji=words(data.get("emoji")),
    )
