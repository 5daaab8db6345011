"""Everything one process has open, as a plain record, and the two calls that every operation makes of it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from app.access.access_log import AccessLog
from app.access.account_limits import AccountLimits
from app.access.keyring import Keyring
from app.access.login_links import LoginLinks
from app.access.proxies import Proxies
from app.access.sessions import Sessions
from app.access.settings_sessions import SettingsSessions
from app.access.tries import Tries
from app.channels.attempts import Attempts
from app.channels.directory import Channels
from app.channels.unconnected import Unconnected
from app.config.file import Setup
from app.config.settings import Keys, Settings
from app.database.leases import Leases
from app.database.pool import Pool
from app.delivery.deliverer import Deliverer
from app.delivery.rests import Rests
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
from app.ledger.writer import Ledger, LedgerFull, LedgerUnavailable, Recorded
from app.messengers.adapter import Messenger
from app.operations.errors import LedgerBusy, ViewsBehind
from app.stream.relay import Relay
from app.views.projector import Projector
from domain import commands as c

# Chosen: each holds three connections to the database while Kommo answers, and strangers can ask for it.
ARRIVALS_MAX = 8
AT_LEAST_SECONDS = 5.0  # The contract's limit for reads with `at_least`.


@dataclass(kw_only=True)
class Services:
    """One of each part. `service/service.py` opens and closes them; nobody else replaces one.

    `oauth` needs the table [oauth] of the configuration, `relay` and `deliverer` their roles. `endings` are
    Kommo's calls that end a consent, `installing` is the work that a new one brings, and `arrivals` bounds
    the answers of Kommo that are looked into at once. Refused hooks are taken up one by one, under `retries`,
    and the admin key is replaced so under `replacing`. `stopping` is set once the process must end.
    `demo_links` are shown in the console, by their words.
    """

    settings: Settings
    setup: Setup
    keys: Keys
    keyring: Keyring
    ledger_id: str
    ledger: Ledger
    channels: Channels
    leases: Leases
    attempts: Attempts
    rests: Rests
    unconnected: Unconnected
    projector: Projector
    pool: Pool
    probe: Probe
    budget: Budget
    kommo: Kommo
    messengers: Mapping[str, Messenger]
    oauth: OAuth | None
    states: States
    tokens: Tokens
    endings: Paced
    installs: Installs
    installing: Paced
    addresses: Addresses
    crm: Crm
    users: Users
    sessions: Sessions
    limits: AccountLimits
    access_log: AccessLog
    login_links: LoginLinks = field(default_factory=LoginLinks)
    proxies: Proxies = field(default_factory=Proxies)
    tries: Tries = field(default_factory=Tries)
    relay: Relay | None = None
    deliverer: Deliverer | None = None
    retries: asyncio.Lock = field(default_factory=asyncio.Lock)
    replacing: asyncio.Lock = field(default_factory=asyncio.Lock)
    arrivals: asyncio.Semaphore = field(default_factory=partial(asyncio.Semaphore, ARRIVALS_MAX))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    demo_links: dict[str, str] = field(default_factory=dict)
    settings_sessions: SettingsSessions = field(init=False)

    def __post_init__(self) -> None:
        """What the keys alone make."""
        self.settings_sessions = SettingsSessions(self.keys)


async def record(services: Services, command: c.AnyCommand) -> Recorded:
    """Submit a command and wait until it is durable.

    Raises LedgerBusy, EventTooLarge, and what `domain.decide` raises.
    """
    try:
        return await services.ledger.submit(command)
    except (LedgerFull, LedgerUnavailable):
        raise LedgerBusy from None


async def views_reach(services: Services, position: int | None, *, view: str | None = None) -> None:
    """Wait until the views have seen `position`, or the one that is to be read; raises ViewsBehind after 5 s.

    If that `view` stands still before the position, it is raised at once.
    """
    if position and not await services.projector.wait_for(position, AT_LEAST_SECONDS, view=view):
        raise ViewsBehind(position)
