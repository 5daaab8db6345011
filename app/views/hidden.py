"""What of the ledger a list does not show: the content of messages that were deleted since."""

import msgspec
from msgspec import Raw

from app.database.pool import Pool
from app.views.events import Stored
from app.views.messages import deleted_among

HIDDEN = {"hidden": "the message was deleted: its own page and keys with the right audit show it"}

CONTENT = b'"content"'


async def without_deleted(pool: Pool, stored: list[Stored]) -> list[Stored]:
    """Returns the same events; those about a message that is deleted now have no content but `HIDDEN`."""
    events = [msgspec.json.decode(one.event) if CONTENT in bytes(one.event) else {} for one in stored]
    about = [event.get("message") for event in events if "content" in event]
    gone = await deleted_among(pool, [one for one in about if isinstance(one, str)])
    return [
        Stored(one.position, Raw(msgspec.json.encode(event | {"content": HIDDEN})))
        if "content" in event and event.get("message") in gone
        else one
        for one, event in zip(stored, events, strict=True)
    ]
