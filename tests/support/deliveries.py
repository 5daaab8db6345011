"""The line that a job goes along, built of its real parts and in the hands of a test."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from app.clock import LoopClock
from app.database.leases import Leases, leasing
from app.delivery.deliverer import Deliverer
from app.delivery.destinations import Destinations
from app.delivery.prepare import Preparer
from app.delivery.reconnect import Reconnector
from app.delivery.settle import Settle
from app.delivery.tries import Tries
from app.http_client import Client
from app.kommo.chats.client import Kommo
from app.ledger.reader import StreamReader
from app.messengers.kinds import messengers
from app.operations.services import Services
from app.stream import jetstream
from tests.support.system import Story

PROBE_SECONDS = 1.0


class Line(NamedTuple):
    """What settles a job, the destinations it pushes to, and what counts its attempts."""

    settle: Settle
    destinations: Destinations
    tries: Tries


@asynccontextmanager
async def line_of(services: Services) -> AsyncIterator[Line]:
    """The line of a service's deliveries; it probes every second."""
    client, clock = Client(), LoopClock()
    reader = StreamReader(services.settings.database_url or "")
    kommo = Kommo(client, services.settings.kommo_url, services.budget)
    reconnector = Reconnector(kommo, services.channels, services.attempts, clock)
    destinations = Destinations(kommo, messengers(client), reconnector, clock, probe_seconds=PROBE_SECONDS)
    preparer = Preparer(reader, services.channels)
    try:
        tries = Tries(services.settings.database_url or "")
        settle = Settle(services.ledger, preparer, destinations, clock, random.random, tries)
        yield Line(settle, destinations, tries)
    finally:
        await reader.close()
        await client.close()


@asynccontextmanager
async def delivering(story: Story) -> AsyncIterator[None]:
    """The role `deliver`, in the hands of the test."""
    assert story.run
    services = story.run.services
    settings = services.settings
    nats = await jetstream.connect(settings.nats_url or "", name="test")
    url = settings.database_url or ""
    async with leasing(leases := Leases(url)), line_of(services) as line:
        task = asyncio.create_task(Deliverer(url, nats, leases, line.settle, line.tries).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            await nats.close()


class Lease:
    """Holds a lane as a range does."""

    def __init__(self) -> None:
        self.done: dict[int, int] = {}
        self.failures: list[BaseException] = []

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)

    def has_room(self) -> None:
        """Nothing was cut off."""
