"""Cursors and limits: pages come in a stable order, by keys that later events do not move.

Conversations come with the latest activity first: by `position` descending, which is their last event's; one
that becomes active while somebody pages moves to the front, and no other is seen twice. Everything else comes
by position. Cursors are opaque.
"""

import base64
import binascii
from typing import TypeVar
from uuid import UUID

import msgspec

LIMIT = 50
POSITION_LAST = (1 << 63) - 1

Key = TypeVar("Key")


class BadCursor(ValueError):
    """The cursor was not made by this list: start again without one."""


def is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def encode_cursor(key: object) -> str:
    """The cursor after an item."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).rstrip(b"=").decode()


def decode_cursor(cursor: str, kind: type[Key]) -> Key:
    """The key in a cursor."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadCursor("this cursor is not one that this list gave: start without a cursor") from error
