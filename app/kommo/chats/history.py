"""A message is found in the history of its chat with few calls, however much was written since.

Kommo gives a history newest first, at most 50 messages a page, at any offset. A message's time shows how far
back it is: steps that double find a page that is not wholly newer, halving finds the first such page, and
from there each page is read until one lies wholly before the message.
"""

from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from app.http_client import Answer, Unreached

Shape = TypeVar("Shape", bound=Struct)
PAGE_MESSAGES = 50  # Kommo's own limit.
# Of one search. Doubling and halving reach back a million messages with forty.
PAGES_MAX = 60
# Of some messages the history has the time in whole seconds only.
SECOND_MS = 1000


class PastMessageBody(Struct, frozen=True):
    """A message's ids: `id` is Kommo's, `client_id` ours."""

    id: str
    client_id: str | None = None


class PastMessage(Struct, frozen=True):
    """A message of a history, and its time."""

    message: PastMessageBody
    timestamp: int = 0
    msec_timestamp: int = 0

    @property
    def msec(self) -> int:
        """The time in unix milliseconds."""
        return self.msec_timestamp or self.timestamp * SECOND_MS


class History(Struct, frozen=True):
    """A page of a chat's history."""

    messages: list[PastMessage] = []


class ChatNames(Struct, frozen=True):
    """The answer to a call that makes a chat."""

    id: str | None = None


Page: TypeAlias = list[PastMessage]


async def find_in(pages: Callable[[int], Awaitable[Page]], message: str, msec: int) -> str | None:
    """Kommo's id of our `message`, sent at `msec` (unix milliseconds); None if the history does not have it.

    `pages` gives a page by its number, the newest as 0. Raises Unreached if the search takes too many.
    """
    kept = dict[int, Page]()

    async def page(number: int) -> Page:
        if number not in kept:
            if len(kept) == PAGES_MAX:
                raise Unreached("too much of its chat's history is to be looked through", unknown=False)
            kept[number] = await pages(number)
        return kept[number]

    number = await _first_not_newer(page, msec)
    while messages := await page(number):
        for past in messages:
            if past.message.client_id == message:
                return past.message.id
        if len(messages) < PAGE_MESSAGES or _is_older(messages, msec):
            break
        number += 1
    return None


async def _first_not_newer(page: Callable[[int], Awaitable[Page]], msec: int) -> int:
    """The number of the first page that is not wholly newer than a time."""
    newer, reached = -1, 0
    while _is_newer(await page(reached), msec):
        newer, reached = reached, reached * 2 + 1
    while reached - newer > 1:
        middle = (newer + reached) // 2
        if _is_newer(await page(middle), msec):
            newer = middle
        else:
            reached = middle
    return reached


def _is_newer(page: Page, msec: int) -> bool:
    """Whether a full page, newest first, ends before it comes back to a time."""
    return len(page) == PAGE_MESSAGES and page[0].msec >= page[-1].msec > msec


def _is_older(page: Page, msec: int) -> bool:
    """Whether a page, newest first, lies wholly before a time."""
    return page[0].msec >= page[-1].msec and page[0].msec < msec - SECOND_MS


def read(answer: Answer, shape: type[Shape]) -> Shape:
    """An answer as a shape, an empty one if Kommo has nothing (204, 400, 404); else raises Unreached."""
    if answer.status in (204, 400, 404) and not answer.html:
        return shape()
    try:
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=shape)
    except (msgspec.DecodeError, UnicodeError):
        pass
    raise Unreached(f"HTTP {answer.status} from Kommo, and no answer to read", unknown=False)
