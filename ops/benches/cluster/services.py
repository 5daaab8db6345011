"""Two services with every role, each with ways of its own to all others, and a balancer in front of them."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from ops.benches.cluster.children import POLL_SECONDS, ROOT, Child, free_port
from ops.benches.cluster.nats import PASSWORD, Trio
from ops.benches.cluster.postgres import DATABASE, Failed, Pair
from ops.benches.cluster.proxy import Proxy
from ops.benches.service import ADMIN_KEY, MASTER_KEY

READY_SECONDS = 60.0
# As a balancer in front of a production does it: a service that does not say that it lives gets nothing.
LOOK_SECONDS, LOOK_SECONDS_MAX = 0.5, 1.0


class Service:
    """One `chatledger serve`."""

    def __init__(self, name: str, folder: Path, pair: Pair, trio: Trio, kommo_port: int) -> None:
        self.name, self.folder, self.port = name, folder / name, free_port()
        self.postgres = [Proxy(node.port) for node in pair.nodes]
        self.nats = [Proxy(node.port) for node in trio.nodes]
        self.kommo = Proxy(kommo_port)
        self.is_up, self.is_hit = False, False
        self.child: Child | None = None
        self.folder.mkdir()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def proxies(self) -> list[Proxy]:
        """All ways of its own."""
        return [*self.postgres, *self.nats, self.kommo]

    def settings(self) -> dict[str, str]:
        """Its environment, by which it knows only the proxies."""
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.postgres)
        servers = (f"nats://chatledger:{PASSWORD}@127.0.0.1:{proxy.port}" for proxy in self.nats)
        return {
            "PYTHONPATH": str(ROOT),
            "CHATLEDGER_DATA": str(self.folder / "data"),
            "CHATLEDGER_DATABASE_URL": f"postgresql://postgres@{hosts}/{DATABASE}?target_session_attrs=read-write",
            "CHATLEDGER_NATS_URL": ",".join(servers),
            "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
            "CHATLEDGER_MASTER_KEY": MASTER_KEY,
            "CHATLEDGER_KOMMO_URL": f"http://127.0.0.1:{self.kommo.port}",
            "CHATLEDGER_PORT": str(self.port),
        }

    async def start(self) -> None:
        """Start it, and wait until it says that it is ready."""
        self.child = Child([sys.executable, "-m", "app", "serve"], self.folder, settings=self.settings())
        begin, end = self.child.log.stat().st_size, time.monotonic() + READY_SECONDS
        while f" ready on {self.url}" not in self.child.log.read_text()[begin:]:
            if time.monotonic() > end or self.child.process.poll() is not None:
                raise Failed(self.child.log.read_text()[-2000:])
            await asyncio.sleep(POLL_SECONDS)
        self.is_hit = False

    def kill(self) -> None:
        """Kill it."""
        self.is_hit = True
        if self.child:
            self.child.kill()

    def stop(self) -> None:
        """Stop it, as a suspended machine would."""
        self.is_hit = True
        if self.child:
            self.child.stop()

    def go_on(self) -> None:
        """Let it go on."""
        if self.child:
            self.child.go_on()
        self.is_hit = False


@contextlib.asynccontextmanager
async def balanced(services: list[Service]) -> AsyncIterator[None]:
    """Ask each service all the time whether it lives; `is_up` is what it said last."""
    patience = aiohttp.ClientTimeout(total=LOOK_SECONDS_MAX)
    async with aiohttp.ClientSession(timeout=patience) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(_look(client, service)) for service in services]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _look(client: aiohttp.ClientSession, service: Service) -> None:
    while True:
        try:
            async with client.get(f"{service.url}/healthz") as answer:
                service.is_up = answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            service.is_up = False
        await asyncio.sleep(LOOK_SECONDS)
