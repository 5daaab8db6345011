"""Whatever dies, and however many relays work at once, every event ends up once, at its own sequence."""

import asyncio
import random

import pytest

from app.servers.nats import PrivateNats
from tests.support.ledgers.stream_ledger import Ledger, differing, relaying, until, wipe

ROUNDS = 6
BURSTS = (1, 1, 2, 3, 5, 19, 20, 60, 700)


async def kill(server: PrivateNats) -> None:
    assert server.process
    server.process.kill()
    server.process.wait()
    await server.stop()
    await server.start()


async def write(ledger: Ledger, dice: random.Random, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await ledger.fill(dice.choice(BURSTS))
        await asyncio.sleep(dice.uniform(0, 0.02))


@pytest.mark.parametrize("relays", [1, 2])
async def test_a_killed_server_loses_and_doubles_nothing(
    database_url: str, nats_own: PrivateNats, relays: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    ledger = await Ledger(database_url).open()
    async with relaying(ledger, nats_own.url, exclusive=False) as relay:
        others = [relaying(ledger, nats_own.url, exclusive=False) for _ in range(relays - 1)]
        for other in others:
            await other.__aenter__()
        stop = asyncio.Event()
        writer = asyncio.create_task(write(ledger, dice, stop))
        for _ in range(ROUNDS):
            await asyncio.sleep(dice.uniform(0.05, 0.5))
            await kill(nats_own)
        await asyncio.sleep(0.5)
        stop.set()
        await writer
        await until(lambda: relay.position == len(ledger.rows))
        assert relay.restarted > 0
        for other in others:
            await other.__aexit__(None, None, None)
    assert await differing(nats_own.url, ledger.rows) == []


async def test_a_store_that_is_wiped_again_and_again_is_filled_again(
    database_url: str, nats_own: PrivateNats
) -> None:
    dice = random.Random(7)
    ledger = await Ledger(database_url).open()
    async with relaying(ledger, nats_own.url) as relay:
        stop = asyncio.Event()
        writer = asyncio.create_task(write(ledger, dice, stop))
        for _ in range(3):
            await asyncio.sleep(dice.uniform(0.1, 0.4))
            await wipe(nats_own)
        stop.set()
        await writer
        await until(lambda: relay.position == len(ledger.rows))
    assert await differing(nats_own.url, ledger.rows) == []


async def test_racing_relays_are_exact(database_url: str, nats_own: PrivateNats) -> None:
    ledger = await Ledger(database_url).open()
    dice = random.Random(3)
    async with (
        relaying(ledger, nats_own.url, exclusive=False) as first,
        relaying(ledger, nats_own.url, exclusive=False) as second,
        relaying(ledger, nats_own.url, exclusive=False) as third,
    ):
        stop = asyncio.Event()
        writer = asyncio.create_task(write(ledger, dice, stop))
        await asyncio.sleep(3)
        stop.set()
        await writer
        await until(lambda: first.position == second.position == third.position == len(ledger.rows))
    assert await differing(nats_own.url, ledger.rows) == []
