"""DOC"""

from typing import TypeVar

import msgspec
from msgspec import Struct

from app.http_client import Answer, Unreached

Told = TypeVar("Told", bound=Struct)
HISTORY_PAGE = 50
HISTORY_PAGES_MAX = 60  # in one search; the steps reach back a million messages with forty


class _PastMessage(Struct, frozen=True):
    id: str
    client_id: str | None = None


class _Past(Struct, frozen=True):
    message: _PastMessage
    timestamp: int = 0
    msec_timestamp: int = 0

    @property
    def msec(self) -> int:
        return self.msec_timestamp or self.timestamp * 1000


def _is_newer(page: list[_Past], msec: int) -> bool:
    """Whether a full page, newest first, ends before it has come back to a time."""
    return len(page) == HISTORY_PAGE and page[0].msec >= page[-1].msec > msec


def _is_older(page: list[_Past], msec: int) -> bool:
    """Whether a page, newest first, lies before a time; of some histories only the second is known."""
    return page[0].msec >= page[-1].msec and page[0].msec < msec - 1000


class _History(Struct, frozen=True):
    messages: list[_Past] = []


class _Chat(Struct, frozen=True):
    id: str | None = None


def _told(answer: Answer, shape: type[Told]) -> Told:
    """What was asked for, or nothing of it if Kommo says so (204, 400, 404); else raises Unreached."""
    if answer.status in (204, 400, 404) and not answer.html:
        return shape()
    try:
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=shape)
    except (msgspec.DecodeError, UnicodeError):
        pass
    raise Unreached(f"HTTP {answer.status} from Kommo, and no answer to read", unknown=False)
