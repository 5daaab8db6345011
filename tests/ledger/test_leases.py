"""Leases have a term and a token: whoever is gone is followed, and what it has in memory counts no more."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from app.database import leases as module
from app.database import names
from app.database.connection import connect
from app.database.leases import Fence, LeaseLost, Leases, leasing
from app.delivery.shares import Shares, share_of
from app.ledger.writer import Ledger
from app.service.service import migrate
from domain import ids
from tests.support.ledgers.decisions import customer

PROJECT: dict[str, int | None] = {"project": names.PROJECT_LOCK}


@pytest.fixture
async def url(database_url: str) -> str:
    await migrate(database_url)
    return database_url


@pytest.fixture
async def ours(url: str) -> AsyncIterator[Leases]:
    async with leasing(leases := Leases(url)):
        await ready(leases)
        yield leases


@pytest.fixture
async def theirs(url: str) -> AsyncIterator[Leases]:
    async with leasing(leases := Leases(url)):
        await ready(leases)
        yield leases


async def ready(leases: Leases) -> None:
    async with asyncio.timeout(10):
        while not leases.ready:  # noqa: ASYNC110  # of a connection
            await asyncio.sleep(0.01)


async def taken(leases: Leases) -> None:
    async with asyncio.timeout(15):
        while not await leases.take(PROJECT):  # noqa: ASYNC110  # of the database
            await asyncio.sleep(0.05)


async def execute(url: str, statement: str, *values: object) -> object:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        cursor = await db.execute(statement.encode(), values or None)
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None


async def test_one_has_a_lease_until_it_is_released(ours: Leases, theirs: Leases) -> None:
    assert await ours.take(PROJECT) == ["project"]
    assert await theirs.take(PROJECT) == []
    assert ours.holds("project")
    assert not theirs.holds("project")
    await ours.release(["project"])
    assert not ours.holds("project")
    assert await theirs.take(PROJECT) == ["project"]
    assert theirs.fence("project").token == 2
    with pytest.raises(LeaseLost):
        ours.fence("project")


async def test_a_lease_that_is_not_renewed_ends_and_is_counted_as_ended_before(
    url: str, ours: Leases, theirs: Leases
) -> None:
    """As of a host that is gone, or a process that is suspended: its connection lives on in silence."""
    gone = Leases(url)
    running = asyncio.create_task(gone.run())
    await ready(gone)
    assert await gone.take(PROJECT) == ["project"]
    began = asyncio.get_running_loop().time()
    await gone._turn.acquire()  # It renews no more.
    try:
        while gone.holds("project"):  # of a clock
            assert await ours.take(PROJECT) == []
            await asyncio.sleep(0.1)
        held = asyncio.get_running_loop().time() - began
        await taken(ours)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert held <= module.HELD_SECONDS + 0.5
    assert asyncio.get_running_loop().time() - began < 15
    assert ours.fence("project").token == 2


async def test_who_has_the_database_alone_follows_its_killed_predecessor_at_once(url: str) -> None:
    killed = Leases(url, alone=True)
    running = asyncio.create_task(killed.run())
    await ready(killed)
    assert await killed.take(PROJECT) == ["project"]
    running.cancel()
    await asyncio.wait([running])
    async with leasing(leases := Leases(url, alone=True)):
        await ready(leases)
        assert await leases.take(PROJECT) == ["project"]
        assert leases.fence("project").token == 2


async def test_what_is_held_is_renewed(ours: Leases, theirs: Leases) -> None:
    assert await ours.take(PROJECT) == ["project"]
    until = asyncio.get_running_loop().time() + module.TERM_SECONDS + 1
    while asyncio.get_running_loop().time() < until:
        assert ours.holds("project")
        assert await theirs.take(PROJECT) == []
        await asyncio.sleep(0.25)


async def test_a_broken_connection_ends_all_leases_here_at_once(url: str, ours: Leases) -> None:
    assert await ours.take(PROJECT) == ["project"]
    await execute(
        url, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )  # fmt: skip
    async with asyncio.timeout(5):
        while ours.holds("project"):  # noqa: ASYNC110  # of a connection
            await asyncio.sleep(0.01)
        await ready(ours)
    assert await ours.take(PROJECT) == ["project"]


# Beside an older version, which locks by sessions.


async def test_an_older_version_at_work_keeps_us_out_and_we_keep_it_out(url: str, ours: Leases) -> None:
    lock = "SELECT pg_try_advisory_lock(%s)"
    async with await connect(url) as old:
        assert await (await old.execute(lock, (names.PROJECT_LOCK,))).fetchone() == (True,)
        assert await ours.take(PROJECT) == []
        assert await ours.take({"other": None}) == ["other"]
    await taken(ours)
    assert await execute(url, lock, names.PROJECT_LOCK) is False
    await ours.release(["project"])
    assert await execute(url, lock, names.PROJECT_LOCK) is True


async def test_partitions_of_a_quarter_that_an_older_version_has_stay_with_it(url: str, ours: Leases) -> None:
    shares = Shares(ours)
    async with await connect(url) as old:
        await old.execute("SELECT pg_advisory_lock(%s)", (names.PARTITION_LOCK + 2,))
        await shares.look()
        assert shares.mine == set(range(ids.PARTITIONS)) - set(range(32, 48))
    async with asyncio.timeout(5):  # The session ends a moment later.
        while len(shares.mine) < ids.PARTITIONS:
            await shares.look()


# Shares.


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 100])
def test_shares_are_even_and_make_up_the_whole(count: int) -> None:
    members = [f"{number:03d}" for number in range(count)]
    shares = [share_of(one, members) for one in members]
    assert sum(shares) == ids.PARTITIONS
    assert max(shares) - min(shares) <= 1


async def test_shares_move_when_a_process_comes_or_goes(ours: Leases, theirs: Leases) -> None:
    first, second = Shares(ours), Shares(theirs)
    assert len((await first.look()).gained) == ids.PARTITIONS
    assert (await second.look()).gained == []
    moved = await first.look()
    assert len(moved.surplus) == ids.PARTITIONS // 2
    assert (await first.look()).surplus == []  # It is giving them up.
    assert (await second.look()).gained == []
    await first.give_up(moved.surplus)
    assert sorted((await second.look()).gained) == sorted(moved.surplus)
    assert first.mine | second.mine == set(range(ids.PARTITIONS))
    assert not first.mine & second.mine
    await second.leave()
    await first.look()
    assert first.mine == set(range(ids.PARTITIONS))


# Fences.


async def test_what_a_former_holder_records_is_refused_and_the_rest_of_its_batch_is_stored(
    url: str, ours: Leases, theirs: Leases
) -> None:
    ledger = Ledger(url, lambda _: None)
    await ledger.open()
    try:
        assert await ours.take({"mine": None, "lost": None}) == ["mine", "lost"]
        mine, lost = ours.fence("mine"), ours.fence("lost")
        await ours.release(["lost"])
        assert await theirs.take({"lost": None}) == ["lost"]
        fences: list[Fence | None] = [mine, lost, None, theirs.fence("lost")]
        futures = [
            ledger.submit(customer(number, f"m-{number}", f"conv-{number}"), fence=fence)
            for number, fence in enumerate(fences)
        ]
        found = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        await ledger.close()
    assert isinstance(found[1], LeaseLost)
    assert not [one for number, one in enumerate(found) if number != 1 and isinstance(one, BaseException)]
    assert await execute(url, "SELECT count(*) FROM ledger.stored_events WHERE topic LIKE '%sent%'") == 3


async def test_a_lease_that_ended_and_that_nobody_took_still_records(url: str, ours: Leases) -> None:
    """Its holder is late, but nobody else has begun: what it did is better known than repeated."""
    ledger = Ledger(url, lambda _: None)
    await ledger.open()
    try:
        await ours.take({"mine": None})
        fence = ours.fence("mine")
        await execute(url, "UPDATE ledger.leases SET until = now() - interval '1 minute' RETURNING 1")
        assert (await ledger.submit(customer(1), fence=fence)).position
    finally:
        await ledger.close()
