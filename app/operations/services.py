"""What a process has open, and every route may use."""

import asyncio
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from litestar import Request
from litestar.datastructures import State

from app.access.sessions import Sessions, Tries
from app.channels.attempts import Attempts
from app.channels.directory import Channels
from app.config.file import Setup
from app.config.settings import Keys, Settings
from app.database.pool import Pool
from app.delivery.deliverer import Deliverer
from app.kommo.budget import Budget
from app.kommo.chats.client import Kommo
from app.kommo.crm.client import Crm
from app.kommo.crm.oauth import OAuth, States
from app.kommo.crm.tokens import Tokens
from app.kommo.crm.users import Users
from app.ledger.writer import Ledger, LedgerFull, LedgerUnavailable, Recorded
from app.messengers.adapter import Messenger
from app.problems import ProblemError
from app.stream.relay import Relay
from app.views.projector import Projector
from domain import commands as c

AT_LEAST_SECONDS = 5.0
LOGIN_LINK_SECONDS = 600.0
Call = Request[Any, Any, State]


@dataclass
class Services:
    """One of each; `relay` and `deliverer` only where this process has their role."""

    settings: Settings
    setup: Setup
    keys: Keys
    ledger_id: str
    ledger: Ledger
    channels: Channels
    attempts: Attempts
    projector: Projector
    pool: Pool
    budget: Budget
    kommo: Kommo
    messengers: Mapping[str, Messenger]
    oauth: OAuth | None
    tokens: Tokens
    crm: Crm
    users: Users
    relay: Relay | None = None
    deliverer: Deliverer | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    login_tokens: dict[str, float] = field(default_factory=dict)
    demo_links: dict[str, str] = field(default_factory=dict)
    tries: Tries = field(default_factory=Tries)

    @cached_property
    def sessions(self) -> Sessions:
        """The console's sessions: the same in every process with our keys."""
        return Sessions(self.keys)

    @cached_property
    def states(self) -> States:
        """What goes to Kommo's consent and comes back: the same in every process with our master key."""
        return States(self.keys.master)

    async def views_reach(self, position: int | None) -> None:
        """Wait until the views have seen `position`; raises ProblemError (503) after 5 s."""
        if position and not await self.projector.wait_for(position, AT_LEAST_SECONDS):
            detail = f"the views have not reached position {position} yet: ask again"
            raise ProblemError(503, detail, retry_after=1)

    def login_link(self, url: str) -> str:
        """A link that signs one browser in to the console, once, within ten minutes."""
        token = secrets.token_urlsafe(24)
        self.login_tokens[token] = time.monotonic() + LOGIN_LINK_SECONDS
        return f"{url}/login?token={token}"

    def use_login_token(self, token: str) -> bool:
        """Whether the token of a login link is good; it is not a second time."""
        return self.login_tokens.pop(token, 0.0) > time.monotonic()

    def is_admin(self, key: str) -> bool:
        """Whether a key is the admin's, compared in constant time."""
        return hmac.compare_digest(key.encode(), self.keys.admin.encode())


def services_of(request: Call) -> Services:
    """The services of the application that serves a request."""
    return cast("Services", request.app.state.services)


async def record(services: Services, command: c.AnyCommand) -> Recorded:
    """Submit a command; raises ProblemError (503) when the ledger cannot take it."""
    try:
        return await services.ledger.submit(command)
    except (LedgerFull, LedgerUnavailable):
        raise ProblemError(503, "the ledger cannot take it now: send it again", retry_after=1) from None
