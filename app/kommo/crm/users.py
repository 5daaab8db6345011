"""The names of an account's managers by their amojo ids, loaded from Kommo at most once an hour.

Nobody waits long for a name: while Kommo does not answer, or has not let us in, a manager has no name.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TypeVar

import msgspec
import psycopg
from msgspec import Struct

from app.http_client import Unreached
from app.kommo.crm.client import Crm, NotAuthorized
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.vault import WrongMasterKey
from app.views.messages import Message

PAGE = 250  # Documented: Kommo lists at most 250 users a page.
PAGES_MAX = 40  # Chosen: 10 000 users; above that, the last ones have no names.
FRESH_SECONDS = 3600.0  # Chosen: a name that changed is shown within an hour.
UNKNOWN_SECONDS = 60.0  # Chosen: a new manager has a name within a minute, and an unknown id costs little.
FAILED_SECONDS = 60.0  # Chosen: Kommo is not asked by every read while it fails.
FIRST_SECONDS = 1.0  # Chosen: how long a read may wait for names, which it can do without.
FAILURES = (Unreached, NotAuthorized, WrongMasterKey, LedgerFull, LedgerUnavailable, psycopg.Error)
log = logging.getLogger("chatledger.users")
AnyMessage = TypeVar("AnyMessage", bound=Message)


class User(Struct, frozen=True):
    """A user of the CRM; one who was never in a chat has no `amojo_id`. Kommo may add fields."""

    id: int
    name: str | None = None
    email: str | None = None
    amojo_id: str | None = None


class _Embedded(Struct, frozen=True):
    users: list[User] = []


class _Page(Struct, frozen=True):
    _embedded: _Embedded = _Embedded()


class _Names(Struct):
    """An account's names by amojo id: when they were loaded, when that failed, and the load under way.

    Times are of this process's clock; reads wait for the load until `wait_until`.
    """

    by_id: dict[str, str] = {}
    loaded: float = -FRESH_SECONDS
    failed: float = -FAILED_SECONDS
    loading: "asyncio.Task[None] | None" = None
    wait_until: float = 0.0


class Users:
    """The managers' names of all accounts, as far as a read needed them."""

    def __init__(self, crm: Crm) -> None:
        self._crm = crm
        self._names: dict[str, _Names] = {}

    async def close(self) -> None:
        """Stop loading."""
        for names in self._names.values():
            if names.loading:
                names.loading.cancel()

    async def name(self, account: str, amojo_id: str) -> str | None:
        """Returns a manager's name; None if no manager has this id, or the names are not loaded yet."""
        names = self._names.setdefault(account, _Names())
        now = monotonic()
        age = now - names.loaded
        stale = age > FRESH_SECONDS or (amojo_id not in names.by_id and age > UNKNOWN_SECONDS)
        if stale and names.loading is None and now - names.failed > FAILED_SECONDS:
            names.loading = asyncio.create_task(self._load(account, names), name="users")
            names.wait_until = now + FIRST_SECONDS
        if names.loading is not None and amojo_id not in names.by_id and names.wait_until > now:
            await asyncio.wait([names.loading], timeout=names.wait_until - now)
        return names.by_id.get(amojo_id)

    async def with_names(self, messages: Sequence[AnyMessage]) -> list[AnyMessage]:
        """Returns the messages; managers without a name in the ledger have the name that Kommo knows."""
        names: dict[tuple[str, str], str | None] = {}
        for message in messages:
            key = _nameless_manager(message)
            if key and key not in names:
                names[key] = await self.name(*key)
        return [_with_name(message, names) for message in messages]

    async def _load(self, account: str, names: _Names) -> None:
        try:
            by_id = await self._fetch(account)
        except FAILURES as error:
            names.failed = monotonic()
            if not isinstance(error, NotAuthorized):
                log.warning("account %s: no names of users: %s", account, str(error) or type(error).__name__)
        else:
            names.by_id, names.loaded = by_id, monotonic()
        finally:
            names.loading = None

    async def _fetch(self, account: str) -> dict[str, str]:
        """All names of the account, page after page. Raises one of FAILURES."""
        by_id: dict[str, str] = {}
        for page in range(1, PAGES_MAX + 1):
            query = {"with": "amojo_id", "page": str(page), "limit": str(PAGE)}
            answer = await self._crm.call(account, "GET", "/api/v4/users", query=query)
            if answer.status == 204:
                break
            if answer.status != 200 or answer.html:
                raise Unreached(f"HTTP {answer.status}, and no users", unknown=False)
            with contextlib.suppress(msgspec.DecodeError):
                users = msgspec.json.decode(answer.body, type=_Page)._embedded.users
                by_id |= {user.amojo_id: user.name for user in users if user.amojo_id and user.name}
                if len(users) < PAGE:
                    break
        return by_id


def _nameless_manager(message: Message) -> tuple[str, str] | None:
    """The account and amojo id of the manager who wrote the message, if the ledger has no name for them."""
    account, sender = message.account_id, message.sender
    if message.direction == "in" or not account or not sender.id or sender.name:
        return None
    return account, sender.id


def _with_name(message: AnyMessage, names: Mapping[tuple[str, str], str | None]) -> AnyMessage:
    key = _nameless_manager(message)
    name = names.get(key) if key else None
    if name is None:
        return message
    sender = msgspec.structs.replace(message.sender, name=name)
    return msgspec.structs.replace(message, sender=sender)
