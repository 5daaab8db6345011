"""One process: its parts are opened, its roles started in order, and all of it stopped in the reverse order.

Starting, each step on top of those before it:

1. the listening socket, so that a taken port is reported before anything runs;
2. PostgreSQL and NATS, our own children or the operator's. Their versions are checked; the tables of our own
   database are brought up to date, those of the operator's only checked;
3. the ledger: from here on commands can be stored;
4. the other parts of `Services` (parts.py), which wait to be asked;
5. the roles, each a background task: the projector first, because everything else reads its views; then what
   accompanies the role web; then the relay; last the delivery, with what a start has to connect;
6. HTTP (web.py). Only now `running` yields and the process is ready.

Stopping: the delivery begins nothing more, and what is in flight gets 3 s; HTTP ends its event streams and
drains as long; then the roles are cancelled, the parts closed, the ledger commits what it has accepted, and
the servers stop last, when nobody needs them any more.

A role that fails, or a writer of the ledger, stops the whole process: `Running.until` raises RoleFailed. A
supervisor starts it again, and nothing runs on with half of its parts unnoticed.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from psycopg import sql

from app.access import admin_key
from app.clock import LoopClock
from app.config.file import Setup
from app.config.settings import Settings, load_keys
from app.database import schema
from app.database.connection import connect, open_session
from app.database.leases import leasing
from app.delivery.deliverer import Deliverer
from app.delivery.destinations import Destinations
from app.delivery.prepare import Preparer
from app.delivery.reconnect import Reconnector
from app.delivery.settle import Settle
from app.delivery.tries import Tries
from app.http_client import Client
from app.kommo import refused
from app.kommo.chats.client import Kommo
from app.kommo.crm import contact_links
from app.ledger.reader import StreamReader
from app.ledger.writer import Ledger
from app.messengers.kinds import messengers
from app.operations import installation, startup
from app.operations.chat_names import ChatNames
from app.operations.services import Services
from app.places import Places
from app.servers.servers import Servers, check_versions, servers
from app.service import web
from app.service.connections import backlog, calls_for, limits_for, raise_descriptor_limit
from app.service.parts import open_services
from app.stream import jetstream
from app.stream.relay import Relay
from domain import ids

VIEWS_SECONDS_MAX = 600.0  # Chosen: making the views of a large ledger takes minutes.
VIEWS_POLL_SECONDS = 0.05
VIEWS_THERE = "SELECT to_regclass('views.positions') IS NOT NULL"
OLDEST_OPEN = "SELECT min(position) FROM views.deliveries WHERE state <> 'failed'"
OTHERWISE_STORED = "events are stored %s until `chatledger migrate` is run with this CHATLEDGER_PACK_EVENTS"
log = logging.getLogger("chatledger")


class RoleFailed(Exception):
    """A part of the service cannot go on; the message says which and why."""


class Running:
    """A running service: `url` is where HTTP listens, None without the role web."""

    def __init__(self, services: Services, url: str | None) -> None:
        self.services = services
        self.url = url
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for `stop`; raises RoleFailed if a part fails before."""
        waiting = asyncio.create_task(stop.wait())
        ends: set[asyncio.Future[Any]] = {waiting, self.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.failed.done():
            self.failed.result()

    @contextlib.asynccontextmanager
    async def role(self, name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run a role in the background, and cancel it at the end."""
        task = asyncio.create_task(work, name=name)
        self.watch(name, task)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def watch(self, name: str, task: "asyncio.Task[None]") -> None:
        """Stop the process when this task fails."""

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and (error := task.exception()) and not self.failed.done():
                log.error("%s: %s", name, error, exc_info=error)
                self.failed.set_exception(RoleFailed(f"{name}: {error}"))

        task.add_done_callback(ended)


class CommitHub:
    """Wakes the parts of this process that follow the ledger."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[], None]] = []

    def committed(self, _: int) -> None:
        """The ledger's callback, with the position it has reached."""
        for listener in self.listeners:
            listener()


@contextlib.asynccontextmanager
async def running(settings: Settings, setup: Setup | None = None) -> AsyncIterator[Running]:
    """Start everything, yield when requests are taken, stop everything.

    Raises what its parts raise: AlreadyRunning, ServerFailed, OldServer, OldSchema, WrongEncoding,
    RoleFailed, and OSError if the port is taken.
    """
    keys = load_keys(settings)
    descriptors = raise_descriptor_limit()
    async with contextlib.AsyncExitStack() as stack:
        listener = None
        if "web" in settings.roles:
            listener = stack.enter_context(web.listen(settings, backlog(descriptors)))
        urls = await stack.enter_async_context(servers(settings))
        streams = settings.roles & {"relay", "deliver"}
        await check_versions(urls.database_url, urls.nats_url if streams else None)
        identity = await _check_tables(urls, packed=settings.pack_events)
        ids.use_namespace(identity.id_secret)
        hub = CommitHub()
        ledger = Ledger(urls.database_url, hub.committed)
        await ledger.open()
        stack.push_async_callback(ledger.close)
        services = await open_services(
            stack,
            settings,
            setup or Setup(),
            keys,
            database_url=urls.database_url,
            ledger=ledger,
            identity=identity,
        )
        await services.keyring.check()  # A wrong master key is one line in the log; /readyz says it too.
        run = Running(services, web.url_of(listener) if listener else None)
        for task in ledger.tasks:
            run.watch("ledger", task)
        await _start_roles(stack, run, urls, hub)
        if listener:
            await stack.enter_async_context(web.serving(services, listener, limits_for(descriptors)))
        if services.deliverer:
            stack.callback(services.deliverer.end, web.DRAIN_SECONDS)
        yield run


async def migrate(database_url: str, *, packed: bool | None = None) -> schema.Identity:
    """Bring a database to this version's tables; returns whose ledger it is."""
    async with await open_session(database_url) as db:
        await schema.migrate(db, packed=packed)
        return await schema.check(db)


async def await_views(database_url: str, seconds: float = VIEWS_SECONDS_MAX) -> None:
    """Wait until the views are there: made by our projector, or by the process that has that role.

    Views of an older version count: they are in force until ours are made beside them. Raises RoleFailed.
    """
    try:
        async with asyncio.timeout(seconds), await connect(database_url) as db:
            while True:
                cursor = await db.execute(VIEWS_THERE)
                if (await cursor.fetchone()) == (True,):
                    return
                await asyncio.sleep(VIEWS_POLL_SECONDS)
    except TimeoutError:
        raise RoleFailed("the views are not there: start a process with the role project") from None


async def _check_tables(urls: Servers, *, packed: bool | None) -> schema.Identity:
    """Check the tables, after bringing those of our own database up to date; returns whose ledger it is."""
    if urls.database_private:
        return await migrate(urls.database_url, packed=packed)
    async with await open_session(urls.database_url) as db:
        identity = await schema.check(db)
    if packed not in (None, identity.packed):
        log.warning(OTHERWISE_STORED, "packed" if identity.packed else "as JSON")
    return identity


async def _start_roles(stack: contextlib.AsyncExitStack, run: Running, urls: Servers, hub: CommitHub) -> None:
    """Start the roles of this process; every process follows the views, only the role project keeps them."""
    services, roles = run.services, run.services.settings.roles
    run.watch("leases", await stack.enter_async_context(leasing(services.leases)))
    if "project" in roles:
        hub.listeners.append(services.projector.wake)
    projecting = services.projector.run(lead="project" in roles)
    await stack.enter_async_context(run.role("project", projecting))
    await await_views(urls.database_url)
    if "web" in roles:
        await admin_key.warn(services.pool, services.keys)
        await stack.enter_async_context(run.role("links", contact_links.run(services)))
        await stack.enter_async_context(run.role("access", services.access_log.run()))
        await stack.enter_async_context(run.role("refused", refused.expire(services.pool)))
        if services.oauth:
            await stack.enter_async_context(run.role("consents", services.tokens.keep_alive()))
            await stack.enter_async_context(run.role("installs", installation.run(services)))
    if roles & {"relay", "deliver"}:
        identity = services.settings.nats_identity
        nats = await jetstream.connect(urls.nats_url, name="chatledger", identity=identity)
        stack.push_async_callback(nats.close)
    if "relay" in roles:
        await _start_relay(stack, run, urls, hub, nats)
    if "deliver" in roles:
        await _start_delivery(stack, run, urls, hub, nats)


async def _start_relay(
    stack: contextlib.AsyncExitStack, run: Running, urls: Servers, hub: CommitHub, nats: jetstream.NatsClient
) -> None:
    services = run.services

    async def oldest_open() -> int | None:
        """The position of the oldest delivery that is not done."""
        async with await connect(urls.database_url) as db:
            row = await (await db.execute(sql.SQL(OLDEST_OPEN))).fetchone()
        return row[0] if row and isinstance(row[0], int) else None

    relay = services.relay = Relay(
        urls.database_url,
        nats,
        services.ledger_id,
        services.leases,
        replicas=services.settings.nats_replicas,
        oldest_open=oldest_open,
    )
    hub.listeners.append(relay.wake)
    await stack.enter_async_context(run.role("relay", relay.run()))


async def _start_delivery(
    stack: contextlib.AsyncExitStack, run: Running, urls: Servers, hub: CommitHub, nats: jetstream.NatsClient
) -> None:
    """Deliver over connections of its own, so that slow pushes take none from what people wait for."""
    services = run.services
    places = Places(calls_for(raise_descriptor_limit()))
    client = Client(places.places)
    stack.push_async_callback(client.close)
    reader = StreamReader(urls.database_url)
    stack.push_async_callback(reader.close)
    clock, directory = LoopClock(), services.channels
    kommo = Kommo(client, services.settings.kommo_url, services.budget, places)
    has_ended = partial(installation.has_ended, services)
    reconnector = Reconnector(kommo, directory, services.attempts, clock, has_ended)
    destinations = Destinations(kommo, messengers(client), reconnector, clock, services.rests, places)
    preparer, tries = Preparer(reader, directory), Tries(urls.database_url)
    settle = Settle(services.ledger, preparer, destinations, clock, random.random, tries)
    deliverer = services.deliverer = Deliverer(urls.database_url, nats, services.leases, settle, tries)
    hub.listeners.append(deliverer.wake)
    await stack.enter_async_context(run.role("rests", destinations.watch()))
    await stack.enter_async_context(run.role("deliver", deliverer.run()))
    await stack.enter_async_context(run.role("start", startup.Start(services).run()))
    if services.setup.budgets.ask_for_chats:
        await stack.enter_async_context(run.role("chats", ChatNames(services).run()))
