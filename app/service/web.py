"""HTTP of one process: uvicorn in our own event loop, on a socket that is opened before anything else."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from app.config.settings import Settings
from app.operations.services import Services
from app.service import application

DRAIN_SECONDS = 3  # The contract: requests in flight have so long to end.
KEEP_ALIVE_SECONDS = (
    75  # Chosen: longer than a proxy keeps a connection idle (nginx: 60), so it closes first.
)
BACKLOG = 2048  # uvicorn's default: connections that wait while the loop is busy.
GC_ALLOCATIONS = 20_000  # Measured: with Python's default, collecting costs a tenth of the CPU.


class Server(uvicorn.Server):
    """Leaves signals to the process; `listening` is set once requests are taken."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(settings: Settings) -> socket.socket:
    """The listening socket; raises OSError that says what to do if the port is taken."""
    try:
        return socket.create_server((settings.host, settings.port), backlog=BACKLOG)
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        raise OSError(
            error.errno, f"cannot listen on {address} ({error.strerror}): set CHATLEDGER_PORT to another port"
        ) from None


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def serving(services: Services, listener: socket.socket) -> AsyncIterator[None]:
    """Take requests; at the end `stopping` closes event streams, and requests in flight get 3 s."""
    config = uvicorn.Config(
        application.application(services),
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = Server(config)
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
