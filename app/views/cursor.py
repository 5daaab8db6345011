"""Cursors: pages come in a stable order, by keys that later events do not move.

Conversations come with the latest activity first, by the `position` of their last event in descending order.
A conversation that becomes active while somebody pages moves to the front, and no other one is seen twice.
Everything else comes by position. A cursor is opaque: the key of a page's last item, as JSON in base64url.
"""

import base64
import binascii
from typing import TypeVar
from uuid import UUID

import msgspec

LIMIT = 50  # items in a page, unless the caller asks for another number
POSITION_LAST = (1 << 63) - 1

Key = TypeVar("Key")


class BadCursor(ValueError):
    """The cursor does not belong to this list: start again without one."""


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID in any of the forms that Python reads."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def encode_cursor(key: object) -> str:
    """Returns the cursor that continues after the item with this key."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).rstrip(b"=").decode()


def decode_cursor(cursor: str, kind: type[Key]) -> Key:
    """Returns the key in a cursor. Raises BadCursor."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadCursor("this cursor is not one that this list gave: start without a cursor") from error
