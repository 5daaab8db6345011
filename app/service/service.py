"""The whole service in one process, or the roles it is given: started in order, stopped in the reverse."""

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import psycopg
import uvicorn
from psycopg import sql

from app.access.sessions import Sessions
from app.channels.attempts import Attempts
from app.channels.directory import Channels
from app.config.file import Setup
from app.config.settings import Settings, load_keys
from app.database import schema
from app.database.connection import connect
from app.database.pool import Pool
from app.delivery.deliverer import Deliverer
from app.delivery.prepare import Pusher
from app.http_client import Client
from app.kommo.budget import Budget
from app.kommo.chats.client import Kommo
from app.kommo.crm import contact_links
from app.kommo.crm.client import Crm
from app.kommo.crm.oauth import OAuth, States
from app.kommo.crm.tokens import Tokens
from app.kommo.crm.users import Users
from app.ledger.writer import Ledger
from app.messengers.kinds import messengers
from app.operations import startup
from app.operations.services import Services
from app.servers.servers import Servers, check_versions, servers
from app.service import application
from app.stream import jetstream
from app.stream.relay import Relay
from app.views.projector import Projector

DRAIN_SECONDS = 3
VIEWS_SECONDS_MAX = 600.0
BACKLOG = 2048
GC_ALLOCATIONS = 20_000
OLDEST_OPEN = "SELECT min(position) FROM views.deliveries"
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
        """Wait until it shall stop, or must: then raises RoleFailed."""
        waiting = asyncio.create_task(stop.wait())
        ends: set[asyncio.Future[Any]] = {waiting, self.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.failed.done():
            self.failed.result()


@contextlib.asynccontextmanager
async def running(settings: Settings, setup: Setup | None = None) -> AsyncIterator[Running]:
    """Start servers and roles, yield when requests can be taken, stop all at the end.

    Raises what its parts raise: AlreadyRunning, ServerFailed, OldServer, OldSchema, and OSError (the port is
    taken).
    """
    keys = load_keys(settings)
    listener = _listen(settings) if "web" in settings.roles else None
    async with contextlib.AsyncExitStack() as stack:
        if listener:
            stack.enter_context(listener)
        where = await stack.enter_async_context(servers(settings))
        await check_versions(where.database_url, where.nats_url)
        ledger_id = await _prepare(where)
        hub = _Hub()
        ledger = Ledger(where.database_url, hub.committed)
        await ledger.open()
        stack.push_async_callback(ledger.close)
        services = await _services(stack, settings, setup or Setup(), where, keys, ledger, ledger_id)
        run = Running(services, _url(listener))
        for task in ledger.tasks:
            _watch(run, "ledger", task)
        await stack.enter_async_context(_working(run, where, hub))
        if listener:
            await stack.enter_async_context(_serving(run, listener))
        if services.deliverer:
            stack.callback(services.deliverer.end, DRAIN_SECONDS)
        yield run


def _listen(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything is started, so that a taken port is told at once."""
    try:
        return socket.create_server((settings.host, settings.port), backlog=BACKLOG)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise OSError(
            error.errno, f"cannot listen on {where} ({error.strerror}): set CHATLEDGER_PORT to another port"
        ) from None


def _url(listener: socket.socket | None) -> str | None:
    if listener is None:
        return None
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def migrate(database_url: str) -> str:
    """Bring a database to this version's tables; returns the ledger's id."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await schema.migrate(connection)
        return await schema.check(connection)


async def _prepare(where: Servers) -> str:
    if where.database_private:
        return await migrate(where.database_url)
    async with await psycopg.AsyncConnection.connect(where.database_url, autocommit=True) as connection:
        return await schema.check(connection)


class _Hub:
    """Tells the parts of this process that the ledger has grown."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[], None]] = []

    def committed(self, _: int) -> None:
        for listener in self.listeners:
            listener()


async def _services(
    stack: contextlib.AsyncExitStack,
    settings: Settings,
    setup: Setup,
    where: Servers,
    keys: Any,
    ledger: Ledger,
    ledger_id: str,
) -> Services:
    client = Client()
    stack.push_async_callback(client.close)
    channels = Channels(where.database_url, keys.master)
    stack.push_async_callback(channels.close)
    budget = Budget(where.database_url, setup.budgets)
    stack.push_async_callback(budget.close)
    pool = Pool(where.database_url)
    stack.push_async_callback(pool.close)
    oauth = OAuth(client, setup.oauth, budget) if setup.oauth else None
    tokens = Tokens(where.database_url, pool, keys.master, oauth, ledger.submit)
    stack.push_async_callback(tokens.close)
    crm = Crm(client, tokens, budget)
    users = Users(crm)
    stack.push_async_callback(users.close)
    return Services(
        settings=settings,
        setup=setup,
        keys=keys,
        ledger_id=ledger_id,
        ledger=ledger,
        channels=channels,
        attempts=Attempts(where.database_url),
        projector=Projector(where.database_url),
        pool=pool,
        budget=budget,
        kommo=Kommo(client, settings.kommo_url, budget),
        messengers=messengers(client),
        oauth=oauth,
        states=States(keys.master),
        tokens=tokens,
        crm=crm,
        users=users,
        sessions=Sessions(keys),
    )


@contextlib.asynccontextmanager
async def _working(run: Running, where: Servers, hub: _Hub) -> AsyncIterator[None]:
    """The projector, the relay and the delivery, as far as they are this process's roles."""
    services, roles = run.services, run.services.settings.roles
    async with contextlib.AsyncExitStack() as stack:
        lead = "project" in roles
        if lead:
            hub.listeners.append(services.projector.wake)
        stack.push_async_callback(_start(run, "project", services.projector.run(lead=lead)))
        await _views(where.database_url)
        if "web" in roles:
            stack.push_async_callback(_start(run, "links", contact_links.run(services)))
        if "web" in roles and services.oauth:
            stack.push_async_callback(_start(run, "consents", services.tokens.keep_alive()))
        if roles & {"relay", "deliver"}:
            nats = await jetstream.connect(where.nats_url, name="chatledger")
            stack.push_async_callback(nats.close)
        if "relay" in roles:
            oldest = _OldestOpen(where.database_url)
            relay = services.relay = Relay(
                where.database_url, nats, services.ledger_id, oldest_open=oldest.position
            )
            hub.listeners.append(relay.wake)
            stack.push_async_callback(_start(run, "relay", relay.run()))
        if "deliver" in roles:
            client = Client()
            stack.push_async_callback(client.close)
            kommo = Kommo(client, services.settings.kommo_url, services.budget)
            pusher = Pusher(where.database_url, services.channels, kommo, messengers(client))
            stack.push_async_callback(pusher.close)
            deliverer = services.deliverer = Deliverer(where.database_url, nats, services.ledger, pusher)
            hub.listeners.append(deliverer.wake)
            stack.push_async_callback(_start(run, "deliver", deliverer.run()))
            stack.push_async_callback(_start(run, "start", startup.Start(services).run()))
        yield


def _start(run: Running, role: str, work: Coroutine[Any, Any, None]) -> Callable[[], Any]:
    """Start a role; returns what stops it. If it fails, the whole process must stop."""
    task = asyncio.create_task(work, name=role)
    _watch(run, role, task)

    async def stop() -> None:
        task.cancel()
        await asyncio.wait([task])

    return stop


def _watch(run: Running, role: str, task: "asyncio.Task[None]") -> None:
    """Stop the process when a task of it fails."""

    def ended(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) and not run.failed.done():
            log.error("%s: %s", role, error, exc_info=error)
            run.failed.set_exception(RoleFailed(f"{role}: {error}"))

    task.add_done_callback(ended)


async def _views(database_url: str, seconds: float = VIEWS_SECONDS_MAX) -> None:
    """Wait until the views are there: made by our projector, or by the process that has that role.

    They may be those of an older version, which are in force until ours are made beside them.
    """
    try:
        async with asyncio.timeout(seconds), await connect(database_url) as connection:
            while True:
                cursor = await connection.execute("SELECT to_regclass('views.positions') IS NOT NULL")
                if (await cursor.fetchone()) == (True,):
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise RoleFailed("the views are not there: start a process with the role project") from None


class _OldestOpen:
    def __init__(self, database_url: str) -> None:
        self._url = database_url

    async def position(self) -> int | None:
        """The position of the oldest delivery that is not done."""
        async with await connect(self._url) as connection:
            row = await (await connection.execute(sql.SQL(OLDEST_OPEN))).fetchone()
        return row[0] if row and isinstance(row[0], int) else None


class _Server(uvicorn.Server):
    """Leaves the signals to us, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def _serving(run: Running, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        application.application(run.services),
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=75,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="web")
    try:
        await server.listening.wait()
        settle_memory()
        yield
    finally:
        run.services.stopping.set()
        server.should_exit = True
        await serving


def settle_memory() -> None:
    """What lives as long as the process is not looked at by the collector again, which then costs a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
