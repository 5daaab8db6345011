"""The fake Kommo and the demo messenger on one loopback port, from the ready line to a clean stop."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import aiohttp
import uvicorn
from litestar import Litestar, Response
from litestar.datastructures import State

from ops.sandbox.api import chats, crm_routes, messenger
from ops.sandbox.config import BODY_MAX
from ops.sandbox.control import accounts as accounts_control
from ops.sandbox.control import chats as chats_control
from ops.sandbox.control import crm as crm_control
from ops.sandbox.control import widget as widget_control
from ops.sandbox.errors import Impossible
from ops.sandbox.lanes import Full
from ops.sandbox.pages import consent, home, integrations
from ops.sandbox.responses import Call, Protocol, json
from ops.sandbox.widget.installs import upload
from ops.sandbox.world import World

STOP_SECONDS = 1
BACKLOG = 2048


class Sandbox(World):
    """`async with Sandbox(config) as sandbox:` serves on `sandbox.url` until the block ends."""

    async def __aenter__(self) -> "Sandbox":
        """Listen; raises OSError when the port is taken, Refused for a widget that Kommo would not take."""
        self.build()
        if self.config.widget:
            upload(self, self.config.oauth[0], self.config.widget)
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
        """Stop within 2 s: open pages end, queued hooks are dropped."""
        self.feed.close()
        self._server.should_exit = True
        await self.hooks.lanes.close()
        await self.crm_hooks.close()
        await self.messenger.lanes.close()
        await self._serving
        await self.session.close()
        self.store.close()

    def _uvicorn(self) -> uvicorn.Config:
        app = Litestar(
            route_handlers=[
                *chats.ROUTES,
                *messenger.ROUTES,
                *consent.ROUTES,
                *crm_routes.ROUTES,
                crm_control.ROUTER,
                accounts_control.describe,
                chats_control.ROUTER,
                widget_control.ROUTER,
                integrations.ROUTER,
                home.ROUTER,
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
    """Leaves signal handling to the owner of the event loop."""

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
