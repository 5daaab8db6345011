"""Every part of `Services`, opened in the order in which they need each other; none runs by itself yet."""

import contextlib
from functools import partial
from typing import Protocol, TypeVar

from app.access.access_log import AccessLog
from app.access.account_limits import AccountLimits
from app.access.keyring import Keyring
from app.access.proxies import Proxies
from app.access.sessions import Sessions
from app.channels.attempts import Attempts
from app.channels.directory import Channels
from app.channels.unconnected import Unconnected
from app.config.file import Setup
from app.config.settings import BadSettings, Keys, Settings, load_masters
from app.database.leases import Leases
from app.database.pool import Pool
from app.database.schema import Identity
from app.delivery.rests import Rests
from app.http_client import Client
from app.kommo.budget import Budget
from app.kommo.chats.client import Kommo
from app.kommo.crm.addresses import Addresses
from app.kommo.crm.client import Crm
from app.kommo.crm.installs import Installs
from app.kommo.crm.oauth import OAuth, States
from app.kommo.crm.paced import Paced
from app.kommo.crm.tokens import Tokens
from app.kommo.crm.users import Users
from app.ledger.probe import Probe
from app.ledger.writer import Ledger
from app.messengers.kinds import messengers
from app.operations.services import Services
from app.vault import Vault
from app.views.projector import Projector


class Closable(Protocol):
    """A part that has something open."""

    async def close(self) -> None:
        """Close it."""


Part = TypeVar("Part", bound=Closable)
QUESTION_SECONDS = 10.0  # Chosen: of one account Kommo is asked so seldom, whoever repeats a call of Kommo's.


async def open_services(
    stack: contextlib.AsyncExitStack,
    settings: Settings,
    setup: Setup,
    keys: Keys,
    *,
    database_url: str,
    ledger: Ledger,
    identity: Identity,
) -> Services:
    """The services over an open ledger; `stack` closes each part after those that need it."""
    client = _closing(stack, Client())
    vault = Vault(keys.master, *keys.old, reload=partial(masters_now, settings), marked=identity.keyed)
    keyring = Keyring(database_url, vault, [keys.master, *keys.old])
    channels = _closing(stack, Channels(database_url, vault))
    budget = _closing(stack, Budget(database_url, setup.budgets))
    pool = _closing(stack, Pool(database_url))
    probe = _closing(stack, Probe(database_url, ledger))
    oauth = OAuth(client, setup.oauth, budget) if setup.oauth else None
    tokens = Tokens(database_url, pool, vault, oauth, ledger.submit)
    stack.push_async_callback(tokens.close)
    crm = Crm(client, tokens, budget, setup.oauth.domains if setup.oauth else ())
    endings = _closing(stack, Paced(QUESTION_SECONDS))
    leases = Leases(database_url, alone=settings.database_url is None)  # The data folder is locked.
    projector = Projector(database_url, leases)
    users = _closing(stack, Users(crm))
    return Services(
        settings=settings,
        setup=setup,
        keys=keys,
        keyring=keyring,
        ledger_id=identity.ledger,
        ledger=ledger,
        channels=channels,
        leases=leases,
        attempts=_closing(stack, Attempts(database_url, leases)),
        rests=_closing(stack, Rests(database_url)),
        unconnected=Unconnected(
            pool, projector, limit=settings.unconnected_limit, days=settings.unconnected_days
        ),
        projector=projector,
        pool=pool,
        probe=probe,
        budget=budget,
        kommo=Kommo(client, settings.kommo_url, budget),
        messengers=messengers(client),
        oauth=oauth,
        states=States(keys.master),
        tokens=tokens,
        endings=endings,
        installs=Installs(pool),
        installing=_closing(stack, Paced(0.0)),
        addresses=Addresses(pool, keyring),
        crm=crm,
        users=users,
        sessions=Sessions(keys),
        limits=AccountLimits(settings),
        access_log=_closing(stack, AccessLog(pool, settings.access_days)),
        proxies=Proxies(settings.trusted_proxies),
    )


def _closing(stack: contextlib.AsyncExitStack, part: Part) -> Part:
    """A part, which the stack closes."""
    stack.push_async_callback(part.close)
    return part


def masters_now(settings: Settings) -> list[bytes]:
    """The master keys as the data folder has them after a rotation; none if they cannot be read now."""
    try:
        return load_masters(settings)
    except (BadSettings, FileNotFoundError):
        return []
