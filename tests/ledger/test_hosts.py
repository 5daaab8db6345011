"""A primary and its standby, both in the URL: the service finds the primary, whichever it is."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.database.connection import OnlyStandby, reach
from app.servers.process import ServerFailed
from app.servers.servers import check_postgres
from ops.benches.cluster.postgres import Pair
from tests.support.failover.deliverers import all_is_well
from tests.support.ids import AS_ADMIN
from tests.support.ledgers.pair import paired, url_of
from tests.support.processes import run_command
from tests.support.system import Story, Traffic, broker, chat, telling

BACK_SECONDS = 15.0


@pytest.fixture
async def pair(data_folder: Path) -> AsyncIterator[Pair]:
    async with paired(data_folder) as pair:
        yield pair


async def is_ready(story: Story) -> tuple[int, str]:
    status, told = await story.call("GET", f"{story.url}/readyz")
    return status, told["parts"][0].get("detail", "")


async def test_a_failover_costs_only_time_and_a_standby_alone_is_named(pair: Pair) -> None:
    """The standby comes first in the URL, and is passed over until it is promoted."""
    url = url_of(pair.standby.port, pair.primary.port)
    only = url_of(pair.standby.port)
    with pytest.raises(ServerFailed, match=r"a standby or read-only: promote one, or name the primary"):
        await check_postgres(only)
    told = await run_command("migrate", CHATLEDGER_DATABASE_URL=only)
    assert (told.code, told.err.count("\n")) == (1, 1), told.err
    async with broker() as nats, telling(nats.folder, url, nats.url) as story:
        traffic = Traffic(story)
        traffic.begin()
        await asyncio.sleep(1)
        pair.primary.kill()
        await asyncio.sleep(1)
        status, detail = await is_ready(story)
        assert (status, "each that answers is a standby" in detail) == (503, True), detail
        async with story.client.get(f"{story.url}/v1/conversations", headers=AS_ADMIN) as answer:
            assert answer.status == 503
        await pair.fail_over()
        async with asyncio.timeout(BACK_SECONDS):
            while (await is_ready(story))[0] != 200:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
        await asyncio.sleep(2)
        await traffic.end()
        assert {*traffic.refused} <= {0, 503}
        await all_is_well(story, traffic)
        name = chat()
        await story.customer(name)
        await story.arrived(name)


async def test_what_the_url_says_of_the_kind_of_server_counts(pair: Pair) -> None:
    both = url_of(pair.standby.port, pair.primary.port)
    async with await reach(f"{both}?target_session_attrs=read-write") as db:
        assert db.info.port == pair.primary.port
    with pytest.raises(OnlyStandby):
        await reach(url_of(pair.standby.port, more="?target_session_attrs=read-write"))
    words = f"host=127.0.0.1,127.0.0.1 port={pair.standby.port},{pair.primary.port} user=postgres"
    async with await reach(f"{words} dbname=chatledger") as db:
        assert db.info.port == pair.primary.port
