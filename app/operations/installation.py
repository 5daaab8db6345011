"""An account that installs the integration gets what the file's [install] says; Kommo may end that again.

Theory of operation. An installation begins when its tokens are saved: its steps are rows that are written in
the same transaction. They are done one after the other, each while the account's turn is held, by the process
that Kommo led the administrator to, or by the one that leads. Each step may be repeated: a channel that is
connected stays so, a source or a webhook that is there is found, and the ledger records each only once. So a
process may die anywhere, and another one goes on. A step that fails is tried again, ever more seldom, for as
long as the account lets us in.

An installation ends when Kommo refuses our tokens: they are withdrawn, and with them the steps. A connection
ends if Kommo has dropped it, and the keys of the account once no connection is left. Kommo tells us so once
(`consent.end`); if we were away, the daily check of every account finds out. What was recorded stays, and
a new installation goes on with the same conversations, because their ids are made of channel and account.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import NoReturn

import msgspec
import psycopg
from msgspec import Struct
from msgspec.structs import replace

from app import clock
from app.access import api_keys
from app.channels.directory import Channel, Connection
from app.config.file import Install
from app.database.pool import ViewsMissing
from app.http_client import Unreached
from app.kommo.chats.client import ask_scope
from app.kommo.chats.signature import Credentials
from app.kommo.crm.account import Described, Facts
from app.kommo.crm.installs import GRACE_SECONDS
from app.kommo.crm.tokens import AUTHORIZED
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.operations import channels, crm
from app.operations.errors import InvalidInput, KommoFailed, NotFound, OperationError, StateConflict
from app.operations.services import Services, record
from app.vault import WrongMasterKey
from domain import commands as c
from domain import ids
from domain.ids import KOMMO, Scope

SYSTEM = "system"
LEASE = "install"
AUTHORIZE, CONNECT, SOURCE, WEBHOOKS = "authorize", "connect", "source", "webhooks"
SOURCE_ID = "default"  # Chosen: the source's external id, which messages may name.
LOOK_SECONDS = 1.0  # Chosen: a step is tried again soon after it is due; two small reads a second.
AT_ONCE = 8  # Chosen: as many accounts as a start connects at once.
NO_INSTALL = "the configuration has no table [install] any more"
FAILURES = (psycopg.Error, ViewsMissing, WrongMasterKey, LedgerFull, LedgerUnavailable)
PLAN = "Kommo refuses our calls (402): the account's plan in Kommo does not cover them"
log = logging.getLogger("chatledger.install")


class _Source(Struct, frozen=True):
    id: int
    external_id: str | None = None


def steps_of(install: Install) -> list[str]:
    """Returns what has to be done for an account, in order; the first is done by its consent."""
    connecting = [f"{CONNECT} {name}" for name in install.channels]
    last = [(SOURCE, install.source is not None), (WEBHOOKS, install.webhooks)]
    return [AUTHORIZE, *connecting, *(step for step, wanted in last if wanted)]


@contextlib.asynccontextmanager
async def turn(services: Services, account: str) -> AsyncIterator[None]:
    """Hold the turn of an account's installation, or of its end, in all processes."""
    async with services.attempts.turn("", account):
        yield


async def carry_out(services: Services, account: str) -> None:
    """Do what is open for an account; returns when it is done or was tried, after 15 s at the latest."""
    work = partial(_carry_out, services, account)
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await services.installing.run(account, work)
    except TimeoutError:
        log.info("account %s: its installation goes on", account)
    except FAILURES as error:
        log.warning("account %s: its installation goes on later: %s", account, str(error).strip())


async def _carry_out(services: Services, account: str) -> None:
    for step in await _open(services, account):
        async with turn(services, account):  # One for each step, so that an end need not wait for all.
            if step in await _open(services, account):
                await _try(services, account, step)


async def _open(services: Services, account: str) -> list[str]:
    """The steps that are to be done; none if the account does not let us in any more."""
    consent = await services.tokens.of(account)
    if consent is None or consent.state != AUTHORIZED:
        return []
    return [one.step for one in await services.installs.steps(account) if one.done_at is None]


async def _try(services: Services, account: str, step: str) -> None:
    try:
        await _do(services, account, step)
    except OperationError as error:
        log.warning("account %s: %s failed: %s", account, step, error)
        await services.installs.failed(account, step, error.detail)
    else:
        log.info("account %s: %s is done", account, step)
        await services.installs.done(account, step)


async def _do(services: Services, account: str, step: str) -> None:
    """Do a step that may have been done before. Raises OperationError."""
    install = services.setup.install
    if install is None:
        raise StateConflict(NO_INSTALL)
    kind, _, name = step.partition(" ")
    if kind == CONNECT:
        await _connect(services, install, account, name)
    elif kind == SOURCE:
        await _make_source(services, install, account)
    elif kind == WEBHOOKS:
        await crm.subscribe(services, account)
        await record(services, c.Subscribe(**_stamp(account), stream=ids.account_stream(account)))


async def _connect(services: Services, install: Install, account: str, name: str) -> None:
    channel = await channels.named(services, name)
    before = channel.connections.get(account)
    lost = before is None or not before.connected or await is_lost(services, channel, before)
    title = install.title or name
    await channels.connect(services, name, account, title, by=SYSTEM, was_lost=lost)


async def _make_source(services: Services, install: Install, account: str) -> None:
    """Make the source that chats come from unless they name another, unless it is there."""
    wanted = install.source
    if wanted is None:
        raise StateConflict(f"{NO_INSTALL}.source")
    found = await _source(services, account)
    if found is None:
        order: dict[str, object] = {"name": wanted.name, "external_id": SOURCE_ID, "default": True}
        if wanted.pipeline_id is not None:
            order["pipeline_id"] = wanted.pipeline_id
        with contextlib.suppress(InvalidInput):  # It may have been made meanwhile: looked up, below.
            await crm.call(services, account, "POST", "sources", [order])
        found = await _source(services, account)
    if found is None:
        raise KommoFailed("Kommo did not make the source: check the pipeline in [install]")
    stamp = _stamp(account)
    await record(services, c.Source(**stamp, stream=ids.account_stream(account), source_id=found))


async def _source(services: Services, account: str) -> int | None:
    """The number of the source with our external id."""
    query = {"filter[external_id]": SOURCE_ID}
    answer = await crm.call(services, account, "GET", "sources", query=query)
    for found in crm.contents(answer, "sources", _Source):
        source = msgspec.convert(found, _Source)  # With all that Kommo says, it is no struct yet.
        if source.external_id == SOURCE_ID:
            return source.id
    return None


async def is_lost(services: Services, channel: Channel, connection: Connection) -> bool:
    """Whether Kommo no longer knows a connection, and answers its calls with 404. Raises KommoFailed."""
    credentials = Credentials(channel.channel_id, channel.secrets.kommo)
    try:
        answer = await ask_scope(services.kommo, credentials, connection.scope.scope_id)
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason})") from None
    return answer.status == 404 and not answer.html


async def connections(services: Services, account: str) -> list[tuple[Channel, Connection]]:
    """The account's connections in force."""
    found = [(one, one.connections.get(account)) for one in (await services.channels.all()).values()]
    return [(channel, connection) for channel, connection in found if connection and connection.connected]


async def drop(services: Services, connection: Connection) -> None:
    """Record that Kommo has ended a connection."""
    with contextlib.suppress(NotFound):  # Another process was first.
        await channels.record_disconnected(services, connection, by=KOMMO)


async def settle_end(services: Services, account: str) -> None:
    """Do what comes with a consent that was withdrawn, as far as it is not done; the turn is held.

    Raises KommoFailed, LedgerBusy, NotYet.
    """
    consent = await services.tokens.of(account)
    if consent is None or consent.state == AUTHORIZED:
        return
    for channel, connection in await connections(services, account):
        if await is_lost(services, channel, connection):
            await drop(services, connection)
    if consent.ended or await connections(services, account):
        return
    if keys := await api_keys.delete_of(services.pool, account):
        log.warning("account %s: it has ended the integration, and so have its %d keys", account, keys)
    await services.tokens.note_end(consent)


async def check(services: Services, account: str) -> None:
    """Ask Kommo about an account: what it says is kept; if it refuses us, the installation has ended."""
    try:
        async with turn(services, account):
            found = await crm.ask_account(services, account)
            if found is None:
                await settle_end(services, account)
    except KommoFailed as error:
        refused = error.answer is not None and error.answer.status == 402
        await services.installs.put_off(account, PLAN if refused else None)
    except OperationError:
        await services.installs.put_off(account)
    else:
        if found is None:
            await services.installs.put_off(account, known=True)
        else:
            await services.installs.keep(account, await facts_of(services, account, found))


async def has_ended(services: Services, account: str) -> bool:
    """Whether an account that let us in has ended that, as Kommo says now; then its connections have ended.

    False also if Kommo does not say.
    """
    if await services.tokens.of(account) is None:
        return False
    try:
        await check(services, account)
        consent = await services.tokens.of(account)
        withdrawn = consent is not None and consent.state != AUTHORIZED
        return withdrawn and not await connections(services, account)
    except FAILURES as error:
        log.warning("account %s: not asked for: %s", account, str(error).strip() or type(error).__name__)
        return False


async def facts_of(services: Services, account: str, found: Described) -> Facts:
    """The facts of an account; its language is that of the user that our tokens are for, if none is given."""
    if found.facts.language or found.user_id is None:
        return found.facts
    try:
        answer = await crm.call(services, account, "GET", f"users/{found.user_id}")
    except OperationError:
        return found.facts
    language = answer.json().get("lang")
    return replace(found.facts, language=language if isinstance(language, str) else None)


async def run(services: Services) -> NoReturn:
    """Go on with what is open and check every account each day, in the process that leads."""
    leads = False
    while True:
        try:
            leads = await _lead(services, leads)
        except FAILURES as error:
            log.warning("installations go on in a moment: %s", str(error).strip() or type(error).__name__)
        await asyncio.sleep(LOOK_SECONDS)


async def _lead(services: Services, led: bool) -> bool:
    """One round, if this process leads; returns whether it does."""
    leads = services.leases.holds(LEASE) or bool(await services.leases.take({LEASE: None}))
    if not leads:
        return False
    if not led:
        await services.installs.enrol()
        await services.tokens.adopt({one.account_id: one.crm_url for one in services.setup.accounts})
    await _each(services, await services.installs.due(), carry_out)
    await _each(services, await services.installs.to_check(), check)
    return True


async def _each(
    services: Services, accounts: list[str], work: Callable[[Services, str], Awaitable[None]]
) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(account: str) -> None:
        async with places:
            if not services.leases.holds(LEASE):
                return
            try:
                await work(services, account)
            except FAILURES as error:
                log.warning("account %s: later: %s", account, str(error).strip() or type(error).__name__)

    await asyncio.gather(*(one(account) for account in accounts))


def _stamp(account: str) -> c.Stamp:
    scope = Scope("", account, "", b"")
    return clock.stamp(scope, ids.account_stream(account), SYSTEM, now=clock.now_ms())
