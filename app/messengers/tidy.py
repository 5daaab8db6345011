"""What messengers write for "nothing", and a leap second: read as the contract means it.

An action that fits the contract never comes here. One that does not is read again with `null` and empty
addresses and ids left out, and with a leap second as the second after it, as POSIX counts; if it then fits,
it is taken. Free objects of the messenger stay as they are.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from app.messengers.contract import Action

# Fields that an empty text leaves out: addresses and ids, where it could mean nothing else.
EMPTY = {
    *("account_id", "avatar", "id", "media", "message_id", "preview_permalink", "preview_url"),
    *("profile_link", "sticker_id", "user_id"),
}
INNER = ("sender", "receiver", "message", "reply_to", "forwards", "source", "delivery_status", "post")
LEAP = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d):60((?:\.\d+)?(?:[Zz]|[+-]\d\d:?\d\d))", re.ASCII)
HINTS = (b"null", b'""', b":60")
Found = dict[str, Any]


def tidied(raw: bytes) -> Action | None:
    """The action with what means nothing left out; None if it does not fit the contract even so."""
    if not any(hint in raw for hint in HINTS):
        return None
    try:
        found = msgspec.json.decode(raw)
        for each in _objects(found):
            _tidy(each)
        action: Action = msgspec.convert(found, Action)
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # A ValidationError is a DecodeError.
        return None
    return action


def _objects(value: object) -> Iterator[Found]:
    """The objects of the contract within an action, from the outside."""
    if isinstance(value, dict):
        yield value
        for name in INNER:
            yield from _objects(value.get(name))
        messages = value.get("messages")
        for each in messages if isinstance(messages, list) else ():
            yield from _objects(each)


def _tidy(found: Found) -> None:
    for name, value in list(found.items()):
        if value is None or (value == "" and name in EMPTY):
            del found[name]
    if isinstance(at := found.get("at"), str) and (leap := LEAP.fullmatch(at)):
        found["at"] = _after_leap(leap) or at


def _after_leap(leap: re.Match[str]) -> str | None:
    """The second after a leap second, which only the last minute of a day in UTC has; None in any other."""
    try:
        before = msgspec.convert(f"{leap[1]}:59{leap[2]}", datetime).astimezone(UTC)
        after = before + timedelta(seconds=1)
    except (msgspec.ValidationError, OverflowError):
        return None
    return after.isoformat() if (before.hour, before.minute) == (23, 59) else None
