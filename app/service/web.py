"""HTTP of one process: uvicorn in our own event loop, on a socket that is opened before anything else."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from app.config.settings import Settings
from app.http.webhooks.front import App
from app.operations.services import Services
from app.service import application
from app.service.connections import Limits, Perimeter
from app.service.protocol import Config, HttpProtocol

DRAIN_SECONDS = 3  # The contract: requests in flight have so long to end.
GC_ALLOCATIONS = 20_000  # Measured: with Python's default, collecting costs a tenth of the CPU.


class Server(uvicorn.Server):
    """Leaves signals to the process; `listening` is set once requests are taken."""

    def __init__(self, app: App, limits: Limits) -> None:
        self.perimeter = Perimeter(limits)
        config = Config(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        config.perimeter = self.perimeter
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: the clients' limits are kept."""
        self.perimeter.sweep(self.server_state.connections)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(settings: Settings, waiting: int) -> socket.socket:
    """The listening socket, where so many connections may wait to be taken.

    Raises OSError that says what to do, such as when the port is taken.
    """
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=waiting)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {_cause(error, port)}") from None
    # Connections inherit it. asyncio, unlike uvloop, does not set it on a socket made without a protocol, and
    # then an answer's body waits 40 ms for the acknowledgement of its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _cause(error: OSError, port: int) -> str:
    """Returns why a socket cannot be opened, and what to do."""
    number = error.errno or 0  # Those of names that cannot be resolved are negative.
    if number < 0 or number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        advice = "set CHATLEDGER_HOST to one, such as 127.0.0.1, or to 0.0.0.0 for all"
        return f"that is no address of this machine: {advice}"
    if number == errno.EADDRINUSE:
        return "another program has the port: stop it, or set CHATLEDGER_PORT to another port"
    if number == errno.EACCES:
        return f"port {port} is not for this user: set CHATLEDGER_PORT to 1024 or more"
    return f"{os.strerror(number)}: check CHATLEDGER_HOST and CHATLEDGER_PORT"


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def serving(services: Services, listener: socket.socket, limits: Limits) -> AsyncIterator[None]:
    """Take requests; at the end `stopping` closes event streams, and requests in flight get 3 s."""
    server = Server(application.application(services), limits)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="web")
    try:
        await server.listening.wait()
        settle_memory()
        yield
    finally:
        services.stopping.set()
        server.should_exit = True
        await task


def settle_memory() -> None:
    """Exempt what lives as long as the process from garbage collection, which would look at it every time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
