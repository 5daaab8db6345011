"""The views follow the ledger through restarts, broken links, other processes and other code."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from app.database.leases import Leases, leasing
from app.views.projector import FeedBehind, Projector
from app.views.rebuild import rebuild
from tests.support.ledgers.view_events import EventLog, busy_log, prepare, random_log, store, tables
from tests.support.system import until


@asynccontextmanager
async def running(url: str, *, lead: bool = True, page_events: int = 2000) -> AsyncIterator[Projector]:
    async with leasing(leases := Leases(url)):
        projector = Projector(url, leases, page_events=page_events)
        task = asyncio.create_task(projector.run(lead=lead))
        try:
            yield projector
        finally:
            task.cancel()
            await asyncio.wait([task])


async def execute(url: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(statement)


async def test_live_and_rebuilt_views_are_the_same(database_url: str) -> None:
    log = random_log(11, 600)
    await prepare(database_url, log.events[:100])
    async with running(database_url, page_events=7) as projector:
        for first in range(100, 600, 50):
            await store(database_url, log.events[first : first + 50], first=first + 1)
            projector.wake()
            assert await projector.wait_for(first + 50 if first < 550 else 600)
        await store(database_url, log.events[600:], first=601)
        projector.wake()
        assert await projector.wait_for(len(log.events))
    live = await tables(database_url)
    seen: list[tuple[int, int]] = []
    assert await rebuild(database_url, lambda *done: seen.append(done), page_events=97) == len(log.events)
    assert await tables(database_url) == live
    assert seen[-1] == (len(log.events), len(log.events))


async def test_a_commit_of_another_process_wakes_the_projector(database_url: str) -> None:
    log = random_log(1, 30)
    await prepare(database_url, log.events[:10])
    async with running(database_url) as projector:
        assert await projector.wait_for(10)
        await store(database_url, log.events[10:], first=11)
        await execute(database_url, "NOTIFY ledger_stored_events")
        assert await projector.wait_for(len(log.events), timeout_seconds=0.8)


async def test_events_that_nobody_announced_are_found(database_url: str) -> None:
    log = random_log(1, 30)
    await prepare(database_url, log.events[:10])
    async with running(database_url) as projector:
        assert await projector.wait_for(10)
        await store(database_url, log.events[10:], first=11)
        assert await projector.wait_for(len(log.events))


async def test_waiting_ends_when_the_time_is_up(database_url: str) -> None:
    await prepare(database_url)
    async with running(database_url) as projector:
        assert not await projector.wait_for(1, timeout_seconds=0.05)


async def test_one_projects_and_the_others_stand_by(database_url: str) -> None:
    log = random_log(2, 60)
    await prepare(database_url, log.events[:20])
    async with running(database_url, lead=False) as reader:
        async with running(database_url) as first:
            assert await first.wait_for(20)
            async with running(database_url) as second:
                assert await second.wait_for(20)
                assert (first.leading, second.leading, reader.leading) == (True, False, False)
                assert await reader.wait_for(20)
        async with running(database_url) as third:
            await store(database_url, log.events[20:], first=21)
            third.wake()
            assert await third.wait_for(len(log.events))
            assert third.leading
            assert await reader.wait_for(len(log.events))


async def test_a_broken_link_is_mended(database_url: str) -> None:
    log = random_log(3, 40)
    await prepare(database_url, log.events[:20])
    async with running(database_url) as projector:
        assert await projector.wait_for(20)
        await asyncio.sleep(0.2)  # Until it listens, too: every link it has is to break.
        await execute(
            database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        await store(database_url, log.events[20:], first=21)
        assert await projector.wait_for(len(log.events))


# Answers as a database that has become a standby.
STANDBY = """CREATE FUNCTION standby() RETURNS trigger LANGUAGE plpgsql AS
 $$ BEGIN RAISE 'read-only transaction' USING ERRCODE = 'read_only_sql_transaction'; END $$;
CREATE TRIGGER standby BEFORE UPDATE ON views.positions EXECUTE FUNCTION standby()"""


async def test_a_database_that_takes_nothing_for_a_while_ends_nothing(database_url: str) -> None:
    log = random_log(4, 60)
    await prepare(database_url, log.events[:30])
    async with running(database_url) as projector:
        assert await projector.wait_for(30)
        await execute(database_url, STANDBY)
        await store(database_url, log.events[30:], first=31)
        assert not await projector.wait_for(len(log.events), timeout_seconds=1.0)
        await execute(database_url, "DROP TRIGGER standby ON views.positions")
        assert await projector.wait_for(len(log.events))
    live = await tables(database_url)
    await rebuild(database_url)
    assert await tables(database_url) == live


async def test_views_of_other_code_are_made_anew(database_url: str) -> None:
    log = random_log(5, 50)
    await prepare(database_url, log.events)
    async with running(database_url) as projector:
        assert await projector.wait_for(len(log.events))
    right = await tables(database_url)
    await execute(
        database_url,
        "UPDATE views.positions SET fingerprint = 'old' WHERE view = 'messages';"
        "DELETE FROM views.message_states",
    )
    async with running(database_url) as projector:
        await until(lambda: projector.leading)  # Until it has the lease it reports the outdated views.
        assert await projector.wait_for(len(log.events))
        assert await tables(database_url) == right


async def test_a_rebuild_beside_a_projector_at_work_loses_nothing(database_url: str) -> None:
    log = random_log(6, 900)
    await prepare(database_url, log.events[:300])
    async with running(database_url, page_events=3) as projector:

        async def grow() -> None:
            for first in range(300, len(log.events), 20):
                await store(database_url, log.events[first : first + 20], first=first + 1)
                projector.wake()

        await asyncio.gather(grow(), rebuild(database_url), projector.wait_for(600))
        assert await rebuild(database_url) == len(log.events)
        assert await projector.wait_for(len(log.events))
        live = await tables(database_url)
        await store(database_url, EventLog(9).events, first=len(log.events) + 1)
    await rebuild(database_url)
    assert await tables(database_url) == live


@pytest.mark.parametrize("leads", [True, False])
async def test_a_feed_has_every_event_once_it_is_in_the_views(database_url: str, leads: bool) -> None:
    log = random_log(7, 60)
    await prepare(database_url, log.events[:20])
    async with running(database_url) as projector, running(database_url, lead=False) as reader:
        watched = projector if leads else reader
        assert await watched.wait_for(20)
        seen: list[int] = []
        with watched.follow() as feed:
            await store(database_url, log.events[20:], first=21)
            projector.wake()
            while not seen or seen[-1] < len(log.events):
                seen += [position for position, _ in await asyncio.wait_for(anext(feed), 5)]
        assert seen == list(range(21, len(log.events) + 1))


async def test_a_feed_that_nobody_reads_is_given_up(database_url: str) -> None:
    log = random_log(8, 400)
    await prepare(database_url, log.events[:1])
    async with running(database_url, page_events=1) as projector:
        assert await projector.wait_for(1)
        feed = projector.follow()
        await store(database_url, log.events[1:], first=2)
        projector.wake()
        assert await projector.wait_for(len(log.events))
        with pytest.raises(FeedBehind):
            await anext(feed)


async def test_rows_are_looked_up_by_key_however_small_the_tables_were_at_first(database_url: str) -> None:
    log = busy_log(3_000, conversations=20)
    await prepare(database_url)
    async with running(database_url, page_events=20) as projector:
        for first in range(0, len(log.events), 300):
            await store(database_url, log.events[first : first + 300], first=first + 1)
            projector.wake()
            assert await projector.wait_for(min(first + 300, len(log.events)))
    read = "SELECT relname, seq_tup_read FROM pg_stat_all_tables WHERE schemaname = 'views'"
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        found: dict[str, int] = dict(await (await connection.execute(read)).fetchall())
    assert found["message_states"] < 1_000  # 22,000 were read
    assert found["deliveries"] < 1_000
