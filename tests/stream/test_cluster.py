"""A cluster of three keeps the stream three times, and the loss of one server loses and doubles nothing."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats.errors
import pytest

from app.stream import jetstream
from app.stream.jetstream import JetStreamError, NatsClient
from tests.support.databases import NewDatabase
from tests.support.ledgers.nats_cluster import NatsCluster, NatsServer
from tests.support.ledgers.stream_ledger import Ledger, differing, relaying, until

GOES_ON_SECONDS = 15
CONSUMER = {"name": "deliver-0", "durable_name": "deliver-0", "ack_policy": "explicit"}


@pytest.fixture(scope="module")
async def cluster(session_folder: Path) -> AsyncIterator[NatsCluster]:
    """A cluster of which two servers run at first: the tests are in the order in which it grows."""
    cluster = NatsCluster(session_folder / "cluster")
    await cluster.start(cluster.servers[:2])
    yield cluster
    cluster.stop()


@pytest.fixture
async def ledger(new_database: NewDatabase) -> Ledger:
    return await Ledger(await new_database()).open()


async def kept(client: NatsClient) -> tuple[int, int]:
    """How often the stream and its consumer are kept now, by what their leaders say."""
    counts = []
    for subject in ("STREAM.INFO.LEDGER", "CONSUMER.INFO.LEDGER.deliver-0"):
        counts.append((await jetstream.call(client, subject)).count(b'"current":true') + 1)
    return counts[0], counts[1]


async def settled(client: NatsClient) -> None:
    """Wait until the servers agree again on who leads them."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(JetStreamError):
                await jetstream.call(client, "STREAM.NAMES")
                return
            await asyncio.sleep(0.1)


async def differing_once_settled(cluster: NatsCluster, ledger: Ledger) -> list[int]:
    """What differs, asked until the server that a reader happens to reach has found the others."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(nats.errors.Error):
                return await differing(cluster.url, ledger.rows)
            await asyncio.sleep(0.1)


async def gone(client: NatsClient) -> None:
    """Make room for the stream of another ledger."""
    await settled(client)
    await jetstream.delete_stream(client)
    await client.close()


async def test_a_stream_is_raised_when_the_cluster_grows(
    cluster: NatsCluster, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    async with relaying(ledger, cluster.url, check_seconds=0.5) as relay:
        await until(lambda: relay.active)
        assert relay.replicas == 1
        assert relay.shortage is None  # Of two servers nobody has asked for more.
        client = await jetstream.connect(cluster.url, name="test")
        await jetstream.create_consumer(client, CONSUMER)
        await cluster.start(cluster.servers[2:])
        stop = asyncio.Event()
        writer = asyncio.create_task(write(ledger, stop))
        await until(lambda: relay.replicas == 3)
        async with asyncio.timeout(20):
            while await kept(client) != (3, 3):  # noqa: ASYNC110 - the servers tell nobody
                await asyncio.sleep(0.1)
        stop.set()
        await writer
        await until(lambda: relay.position == len(ledger.rows))
    assert await differing(cluster.url, ledger.rows) == []
    info = await jetstream.stream_info(client)
    assert info is not None
    assert info.config["compression"] == "none"  # A server that is killed would not open its copy again.
    print(caplog.text)
    await gone(client)


async def write(ledger: Ledger, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await ledger.fill(20)
        await asyncio.sleep(0.05)


async def test_leaders_that_are_gone_lose_and_double_nothing(cluster: NatsCluster, ledger: Ledger) -> None:
    """One is killed, which its clients see at once; one stops, as a host does that nobody hears of again."""
    client = await jetstream.connect(cluster.url, name="test")
    async with relaying(ledger, cluster.url, check_seconds=0.5) as relay:
        await until(lambda: relay.replicas == 3)
        stop = asyncio.Event()
        writer = asyncio.create_task(write(ledger, stop))
        for how, back in ((signal.SIGKILL, NatsServer.start), (signal.SIGSTOP, resumed)):
            reached = len(ledger.rows)
            await until(lambda: relay.position > reached)  # noqa: B023 - it is awaited here
            leader = await leader_of(client, cluster)
            leader.kill(how)
            reached, began = len(ledger.rows), time.monotonic()
            await until(lambda: relay.position > reached)  # noqa: B023
            assert time.monotonic() - began < GOES_ON_SECONDS
            await back(leader)
            await settled(client)
        stop.set()
        await writer
        await until(lambda: relay.position == len(ledger.rows))
    assert await differing_once_settled(cluster, ledger) == []
    await gone(client)


async def leader_of(client: NatsClient, cluster: NatsCluster) -> NatsServer:
    """The server that leads the stream."""
    info = await jetstream.stream_info(client)
    assert info
    assert info.cluster
    return cluster.named(str(info.cluster.leader))


async def resumed(server: NatsServer) -> None:
    """Let a stopped server run on."""
    server.kill(signal.SIGCONT)


async def test_a_setting_that_the_cluster_cannot_meet_is_told(cluster: NatsCluster, ledger: Ledger) -> None:
    async with relaying(ledger, cluster.url, replicas=5) as relay:
        await until(lambda: relay.active)
        assert relay.shortage
        assert "kept 1×, not 5× as CHATLEDGER_NATS_REPLICAS says" in relay.shortage
    client = await jetstream.connect(cluster.url, name="test")
    await gone(client)


async def test_a_stream_is_never_lowered(cluster: NatsCluster, ledger: Ledger) -> None:
    async with relaying(ledger, cluster.url, replicas=3, check_seconds=0.5) as relay:
        await until(lambda: relay.replicas == 3)
    async with relaying(ledger, cluster.url, replicas=1) as relay:
        await until(lambda: relay.active)
        assert relay.replicas == 3


async def test_too_few_servers_are_told_until_there_are_enough(cluster: NatsCluster, ledger: Ledger) -> None:
    client = await jetstream.connect(cluster.url, name="test")
    await gone(client)
    async with relaying(ledger, cluster.url, check_seconds=0.5) as relay:
        await until(lambda: relay.replicas == 3)
    for server in cluster.servers[1:]:
        server.kill()
    await ledger.fill(5)
    async with relaying(ledger, cluster.url) as relay:
        await until(lambda: relay.standstill.now is not None)
        print(relay.standstill.now)
        await cluster.servers[1].start()
        await until(lambda: relay.standstill.now is None and relay.position == 5)
    await cluster.servers[2].start()
