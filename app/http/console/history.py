"""A chat's messages as bubbles, a page at a time: the latest, those before or after, or those around one.

A deleted message is drawn without its content, here and in the list of events; only its own page has it.
"""

from datetime import UTC, datetime

from app import clock
from app.http.console import formatting
from app.operations.services import Services
from app.problems import ProblemError
from app.views.cursor import encode_cursor
from app.views.deliveries import Delivery, list_deliveries
from app.views.messages import Message, get_message, list_messages, position_since

# Chosen, all of them: what fits a page or two and is drawn within some milliseconds.
MESSAGES = 50
AROUND = MESSAGES // 2
QUOTES_MAX = 50
PENDING_MAX = 500


async def page_of(
    services: Services, chat_id: str, *, before: int | None = None, after: int | None = None
) -> dict[str, object]:
    """The latest messages, or the last before a position, or the first after one; the newest comes last.

    `older` and `newer` are the positions that further pages go on from, or None.
    """
    reads = services.pool
    if after is not None:
        listed = await list_messages(reads, chat_id, limit=MESSAGES, cursor=encode_cursor(after))
        return await _drawn(services, chat_id, listed.items, newer=listed.next is not None)
    cursor = None if before is None else encode_cursor(before)
    listed = await list_messages(reads, chat_id, limit=MESSAGES, cursor=cursor, order="desc")
    return await _drawn(services, chat_id, listed.items[::-1], older=listed.next is not None)


async def page_around(services: Services, chat_id: str, position: int) -> dict[str, object]:
    """The messages before and from a position on, as `page_of`; `around` is the first from there on."""
    reads = services.pool
    before = await list_messages(reads, chat_id, limit=AROUND, cursor=encode_cursor(position), order="desc")
    after = await list_messages(reads, chat_id, limit=AROUND, cursor=encode_cursor(position - 1))
    messages = [*before.items[::-1], *after.items]
    older, newer = before.next is not None, after.next is not None
    drawn = await _drawn(services, chat_id, messages, older=older, newer=newer)
    return {**drawn, "around": after.items[0].id if after.items else ""}


async def first_since(services: Services, chat_id: str, day: str) -> int | None:
    """The position of the first message from a moment, or a date of UTC, on; None without one.

    Raises ProblemError (400).
    """
    try:
        moment = datetime.fromisoformat(day)
        since = clock.text(clock.milliseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC)))
    except (ValueError, OverflowError):
        raise ProblemError(400, "give a day such as 2026-11-22") from None
    return await position_since(services.pool, chat_id, since)


async def _drawn(
    services: Services, chat_id: str, messages: list[Message], *, older: bool = False, newer: bool = False
) -> dict[str, object]:
    named = await services.users.with_names(messages)
    return {
        "bubbles": await bubbles_of(services, chat_id, named),
        "older": messages[0].position if older else None,
        "newer": messages[-1].position if newer else None,
        "around": "",
    }


async def bubbles_of(
    services: Services, chat_id: str, messages: list[Message], *, alone: bool = False
) -> list[formatting.Bubble]:
    """Messages with their pending deliveries and the messages they quote."""
    reads = services.pool
    pending: dict[str, Delivery] = {}
    for state in ("deferred", "parked"):
        listed = await list_deliveries(reads, states=[state], conversation=chat_id, limit=PENDING_MAX)
        pending |= {one.message: one for one in listed.items if one.message}
    quoted = {one.id: one for one in messages}
    wanted = {one.reply_to.message for one in messages if one.reply_to and one.reply_to.message}
    for id_ in list(wanted - quoted.keys())[:QUOTES_MAX]:
        if found := await get_message(reads, id_):
            quoted[id_] = found
    return list(formatting.bubbles(messages, pending, quoted, alone=alone))
