"""One loopback port on which both strangers live, from the ready line to a clean stop."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import aiohttp
import uvicorn
from litestar import Litestar, Response
from litestar.datastructures import State

from ops.sandbox import amojo, control, crmcontrol, hook, oauth, pages, v4
from ops.sandbox.books import Books
from ops.sandbox.config import BODY_MAX, Config
from ops.sandbox.consent import Consent
from ops.sandbox.crm import Crm
from ops.sandbox.crmhooks import CrmHooks
from ops.sandbox.desk import Desk, Impossible
from ops.sandbox.faults import Faults
from ops.sandbox.feed import Feed
from ops.sandbox.hooks import Hooks
from ops.sandbox.kommo import Kommo
from ops.sandbox.lanes import Full
from ops.sandbox.messenger import Messenger
from ops.sandbox.office import Office
from ops.sandbox.phone import Phone
from ops.sandbox.rates import Rate
from ops.sandbox.store import Store
from ops.sandbox.web import Call, Protocol, json

STOP_SECONDS = 1
BACKLOG = 2048


class Sandbox:
    """`async with Sandbox(config) as sandbox:` serves on `sandbox.url` until the block ends."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.url = ""

    async def __aenter__(self) -> "Sandbox":
        """Listen; raises OSError when the port is taken."""
        self._build()
        self._server = _Server(self._uvicorn())
        try:
            self._socket = socket.create_server((self.config.host, self.config.port), backlog=BACKLOG)
        except OSError:
            self.store.close()
            raise
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self.hooks.start(self.session)
        self.crm_hooks.start(self.session)
        self.messenger.start(self.session)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await self._server.listening.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop within 2 s: open pages end, what waits to be sent is cut."""
        self.feed.close()
        self._server.should_exit = True
        await self.hooks.lanes.close()
        await self.crm_hooks.close()
        await self.messenger.lanes.close()
        await self._serving
        await self.session.close()
        self.store.close()

    def _build(self) -> None:
        self.store = Store(self.config.state)
        self.feed, self.faults = Feed(), Faults()
        self.crm, self.phone = Crm(self.store), Phone(self.store)
        self.hooks = Hooks(self.config, self.crm, self.faults, self.feed)
        self.books = Books(self.store)
        self.consent = Consent(self.config, self.crm, self.books)
        self.crm_hooks = CrmHooks(self.config, self.books, self.faults)
        self.office = Office(self.config, self.crm, self.books, self.crm_hooks, self.feed)
        self.hooks.source_of = self.office.source
        self.kommo = Kommo(self.config, self.crm, self.hooks, self.feed, self.office)
        self.desk = Desk(self.config, self.crm, self.hooks, self.feed, self.office)
        self.crm_rate = Rate(self.config.crm_per_second)
        self.chats_rate = Rate(self.config.chats_per_second)
        self.messenger = Messenger(self.config, self.phone, self.feed)

    def _uvicorn(self) -> uvicorn.Config:
        app = Litestar(
            route_handlers=[
                *amojo.ROUTES,
                *hook.ROUTES,
                *oauth.ROUTES,
                *v4.ROUTES,
                crmcontrol.ROUTER,
                control.ROUTER,
                pages.ROUTER,
            ],
            state=State({"sandbox": self}),
            exception_handlers={Impossible: _impossible, Full: _full},
            openapi_config=None,
            request_max_body_size=BODY_MAX,
            logging_config=None,
        )
        return uvicorn.Config(
            app,
            http=Protocol,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
        )


class _Server(uvicorn.Server):
    """Leaves the signals to whoever runs the event loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _impossible(_: Call, error: Impossible) -> Response[bytes]:
    return json(error.status, {"error": error.text})


def _full(_: Call, error: Full) -> Response[bytes]:
    return json(503, {"error": "too much is waiting to be sent"})
