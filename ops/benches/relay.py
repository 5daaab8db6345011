"""relay: how fast a ledger of 100,000 events reaches an empty stream, fsync on."""

import asyncio
import time
from statistics import median

from app.database import schema
from app.database.connection import connect
from app.database.leases import ANSWER_SECONDS, Leases, leasing
from app.stream import jetstream
from app.stream.client import NatsClient
from app.stream.relay import Relay
from ops.benches import samples
from ops.benches.measure import Figure, new_database, private_servers, say

EVENTS = 100_000
ROUNDS = 3
TARGET = 25_000


async def relay() -> list[Figure]:
    """Events a second, each round into a stream made anew."""
    rates = []
    async with private_servers() as (where, _):
        url = await new_database(where, "relay")
        await samples.fill(url, EVENTS)
        nats = await jetstream.connect(where.nats_url, name="bench")
        for number in range(ROUNDS):
            rates.append(EVENTS / await publish(url, nats, EVENTS))
            await jetstream.delete_stream(nats)
            say(f"relay round {number + 1}: {rates[-1]:.0f}/s")
        await nats.close()
    rate = round(median(rates))
    return [Figure("relay", rate, "events/s", None, None, f">= {TARGET}", rate >= TARGET)]


async def publish(url: str, nats: NatsClient, events: int) -> float:
    """Publish a ledger of so many events into an empty stream; returns the seconds that it took."""
    async with await connect(url) as connection:
        ledger_id = (await schema.check(connection)).ledger
    async with leasing(leases := Leases(url)):
        await leases.connected(ANSWER_SECONDS)
        running = Relay(url, nats, ledger_id, leases)
        start = time.perf_counter()
        task = asyncio.create_task(running.run())
        while running.position < events:
            if task.done():
                task.result()
            await asyncio.sleep(0.005)
        took = time.perf_counter() - start
        task.cancel()
        await asyncio.wait([task])
    return took
