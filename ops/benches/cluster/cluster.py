"""The whole: PostgreSQL twice, NATS three times, chatledger twice, the strangers once, all on loopback."""

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from app.service.service import migrate
from ops.benches import service
from ops.benches.cluster.children import ROOT, Child, free_port, swept
from ops.benches.cluster.nats import Trio
from ops.benches.cluster.postgres import DATABASE, Pair
from ops.benches.cluster.proxy import Proxy, Way, listening
from ops.benches.cluster.services import Service, balanced
from ops.benches.cluster.strangers import Arrival

arrivals = msgspec.json.Decoder(list[Arrival]).decode


class Cluster:
    """All parts, and what an operator does with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pair, self.trio = Pair(folder), Trio(folder)
        self.strangers_port = free_port()
        self.messenger = Proxy(self.strangers_port)
        parts = folder, self.pair, self.trio, self.strangers_port
        self.services = [Service(name, *parts) for name in ("service-a", "service-b")]

    @property
    def proxies(self) -> list[Proxy]:
        """All ways that can be broken."""
        return [self.messenger, *(proxy for each in self.services for proxy in each.proxies)]

    def turn(self, proxies: list[Proxy], way: Way) -> None:
        """Break or mend ways."""
        for proxy in proxies:
            proxy.turn(way)

    async def start(self) -> None:
        """Start everything; the account is then connected."""
        strangers = self.folder / "strangers"
        strangers.mkdir()
        words = [sys.executable, "-m", f"{__package__}.strangers", str(self.strangers_port)]
        Child(words, strangers, settings={"PYTHONPATH": str(ROOT)})
        await self.trio.start()
        await self.pair.start()
        await migrate(self.pair.primary.url.replace("/postgres?", f"/{DATABASE}?"))
        for each in self.services:
            await each.start()
        await service.register(self.services[0].url, f"http://127.0.0.1:{self.messenger.port}/messenger")

    async def restart(self) -> None:
        """Start both services anew, as their supervisor would if they said that they are not ready."""
        for each in self.services:
            each.kill()
            await each.start()

    async def arrived(self, after: int) -> list[Arrival]:
        """What came to the strangers after the first so many, in order."""
        url = f"http://127.0.0.1:{self.strangers_port}/arrived?after={after}"
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            return arrivals(await answer.read())

    async def parked(self) -> set[str]:
        """The texts of the messages that stand visibly parked."""
        headers = {"Authorization": f"Bearer {service.ADMIN_KEY}"}
        texts = set()
        url = self.services[0].url
        async with aiohttp.ClientSession(url, headers=headers, raise_for_status=True) as client:
            async with client.get("/v1/deliveries?state=parked&limit=1000") as answer:
                items = (await answer.json())["items"]
            for item in items:
                async with client.get(f"/v1/messages/{item['message']}") as answer:
                    texts.add((await answer.json())["text"])
        return texts


@contextlib.asynccontextmanager
async def running(*, keep_logs: Path | None = None) -> AsyncIterator[Cluster]:
    """A cluster that runs; nothing of it is left, however this process ends, but its logs if wanted."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(swept(keep_logs))
        cluster = Cluster(folder)
        for proxy in cluster.proxies:
            await stack.enter_async_context(listening(proxy))
        await cluster.start()
        await stack.enter_async_context(balanced(cluster.services))
        yield cluster
