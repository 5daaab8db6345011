"""The managers of an account by their amojo ids: asked of Kommo at most once an hour, known at once after.

Nobody waits long for a name: while Kommo does not answer, or has not let us in, there are none.
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

PAGE = 250
PAGES_MAX = 40
KEPT_SECONDS = 3600.0
UNKNOWN_SECONDS = 60.0
FAILED_SECONDS = 60.0
FIRST_SECONDS = 1.0
FAILURES = (Unreached, NotAuthorized, WrongMasterKey, LedgerFull, LedgerUnavailable, psycopg.Error)
log = logging.getLogger("chatledger.users")
Said = TypeVar("Said", bound=Message)


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


class _Known(Struct):
    """An account's users by amojo id, when they were asked for, who asks and until when to wait."""

    names: dict[str, str] = {}
    asked: float = -KEPT_SECONDS
    failed: float = -FAILED_SECONDS
    asking: "asyncio.Task[None] | None" = None
    until: float = 0.0


class Users:
    """The users of all accounts, as far as anybody asked."""

    def __init__(self, crm: Crm) -> None:
        self._crm = crm
        self._known: dict[str, _Known] = {}

    async def close(self) -> None:
        """Ask no more."""
        for known in self._known.values():
            if known.asking:
                known.asking.cancel()

    async def name(self, account: str, amojo_id: str) -> str | None:
        """The name of a manager; None if there is none with this id, or none is known yet."""
        known = self._known.setdefault(account, _Known())
        now = monotonic()
        age = now - known.asked
        stale = age > KEPT_SECONDS or (amojo_id not in known.names and age > UNKNOWN_SECONDS)
        if stale and known.asking is None and now - known.failed > FAILED_SECONDS:
            known.asking = asyncio.create_task(self._ask(account, known), name="users")
            known.until = now + FIRST_SECONDS
        if known.asking is not None and amojo_id not in known.names and known.until > now:
            await asyncio.wait([known.asking], timeout=known.until - now)
        return known.names.get(amojo_id)

    async def named(self, messages: Sequence[Said]) -> list[Said]:
        """The messages, with the names of managers who came without one."""
        found: dict[tuple[str, str], str | None] = {}
        for message in messages:
            who = _whose(message)
            if who and who not in found:
                found[who] = await self.name(*who)
        return [_with_name(message, found) for message in messages]

    async def _ask(self, account: str, known: _Known) -> None:
        try:
            names = await self._all(account)
        except FAILURES as error:
            known.failed = monotonic()
            if not isinstance(error, NotAuthorized):
                log.warning("account %s: no names of users: %s", account, str(error) or type(error).__name__)
        else:
            known.names, known.asked = names, monotonic()
        finally:
            known.asking = None

    async def _all(self, account: str) -> dict[str, str]:
        names: dict[str, str] = {}
        for page in range(1, PAGES_MAX + 1):
            query = {"with": "amojo_id", "page": str(page), "limit": str(PAGE)}
            answer = await self._crm.call(account, "GET", "/api/v4/users", query=query)
            if answer.status == 204:
                break
            if answer.status != 200 or answer.html:
                raise Unreached(f"HTTP {answer.status}, and no users", unknown=False)
            with contextlib.suppress(msgspec.DecodeError):
                users = msgspec.json.decode(answer.body, type=_Page)._embedded.users
                names |= {user.amojo_id: user.name for user in users if user.amojo_id and user.name}
                if len(users) < PAGE:
                    break
        return names


def _whose(message: Message) -> tuple[str, str] | None:
    """The account and amojo id of the manager who wrote it; None if the name is known, or he is not."""
    account, sender = message.account_id, message.sender
    if message.direction == "in" or not account or not sender.id or sender.name:
        return None
    return account, sender.id


def _with_name(message: Said, found: Mapping[tuple[str, str], str | None]) -> Said:
    who = _whose(message)
    name = found.get(who) if who else None
    if name is None:
        return message
    sender = msgspec.structs.replace(message.sender, name=name)
    return msgspec.structs.replace(message, sender=sender)
