"""What a view cannot take is parked for it: at a start, in flight and in a rebuild, the rest goes on."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import psycopg
import pytest

from app.database.leases import Leases, leasing
from app.database.pool import Pool
from app.views.parking import PARKED_MAX
from app.views.projector import Projector
from app.views.rebuild import RebuildRefused, rebuild
from app.views.status import list_parked
from app.views.tables import VIEWS, View
from domain.events import ChannelConnected, MessageSent
from projections import channels, conversations, deliveries, events, messages, waiting
from projections.columns import GO_ON, STAND_STILL, Page, Statement
from tests.support.ledgers.view_events import EventLog, prepare, random_log, store, tables

UNDECODABLE = 'INSERT INTO ledger.stored_events VALUES (gen_random_uuid(), 1, %s, \'{"type":"x"}\', %s)'


class Fragile:
    """A view that counts messages and fails at some positions: by itself, or in PostgreSQL."""

    NAME = "fragile"
    SCHEMA = "CREATE TABLE fragile (position bigint PRIMARY KEY CHECK (position % 2 = 0))"
    INDEXES = ""
    INSERT = "INSERT INTO fragile (position) VALUES (%b::bigint)"

    def __init__(
        self, *, fails: Sequence[int] = (), odd: Sequence[int] = (), fault: str = GO_ON, version: int = 1
    ) -> None:
        self.VERSION, self.ON_FAULT = version, fault
        self.fails, self.odd = fails, odd

    def project(self, page: Page) -> Iterator[Statement]:
        """A row for every even position, and for the odd ones that PostgreSQL is to refuse."""
        for position, _ in page:
            if position in self.fails:
                raise RuntimeError(f"boom at {position}")
            if position % 2 == 0 or position in self.odd:
                yield self.INSERT, (position,)


def with_view(view: Fragile) -> tuple[View, ...]:
    return (*VIEWS, cast("View", view))


@asynccontextmanager
async def running(
    url: str, views: tuple[View, ...] = VIEWS, *, lead: bool = True, page_events: int = 2000
) -> AsyncIterator[Projector]:
    async with leasing(leases := Leases(url)):
        projector = Projector(url, leases, views=views, page_events=page_events)
        task = asyncio.create_task(projector.run(lead=lead))
        try:
            yield projector
        finally:
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])


async def fetch(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode(), values or None)
        return await cursor.fetchall() if cursor.description else []


async def parked(url: str) -> list[tuple[Any, ...]]:
    return await fetch(url, "SELECT view, position, stands FROM views.parked ORDER BY view, position")


async def rows_of_views(url: str) -> dict[str, list[tuple[object, ...]]]:
    return {table: rows for table, rows in (await tables(url)).items() if table != "positions"}


async def positions(url: str) -> dict[str, int]:
    return dict(await fetch(url, "SELECT view, position FROM views.positions"))


async def test_a_row_that_cannot_be_decoded_is_parked_for_the_views_that_it_concerns(
    database_url: str,
) -> None:
    log = random_log(4, 40)
    await prepare(database_url, log.events[:20])
    await fetch(database_url, UNDECODABLE, "message.edited", 21)
    await store(database_url, log.events[20:], first=22)
    concerned = [(view, 21, False) for view in ("deliveries", "events", "messages", "waiting")]
    for _ in range(2):  # At the first start and at the next.
        async with running(database_url, page_events=7) as projector:
            assert await projector.wait_for(len(log.events) + 1)
            assert await parked(database_url) == concerned
    assert set((await positions(database_url)).values()) == {len(log.events) + 1}
    rows = await list_parked(pool := Pool(database_url))
    await pool.close()
    assert "cannot be decoded" in rows[0].error
    live = await tables(database_url)
    assert await rebuild(database_url) == len(log.events) + 1
    assert await parked(database_url) == concerned
    assert await tables(database_url) == live


async def test_positions_that_the_ledger_lacks_are_parked(database_url: str) -> None:
    log = random_log(4, 10)
    await prepare(database_url, log.events[:5])
    await store(database_url, log.events[5:], first=7)
    async with running(database_url) as projector:
        assert await projector.wait_for(len(log.events) + 1)
        assert {(view, position) for view, position, _ in await parked(database_url)} == {
            (view.NAME, 6) for view in VIEWS
        }
        assert set(projector.standing) == {"channels"}


@pytest.mark.parametrize("page_events", [1, 3, 2000])
async def test_an_error_in_one_view_leaves_the_others_as_they_would_be(
    database_url: str, page_events: int
) -> None:
    log = random_log(5, 60)
    view = Fragile(fails=[1, 17, 18], odd=[33])
    await prepare(database_url, log.events[:30])
    async with running(database_url, with_view(view), page_events=page_events) as projector:
        assert await projector.wait_for(30)
        await store(database_url, log.events[30:], first=31)
        projector.wake()
        assert await projector.wait_for(len(log.events))
        others = await rows_of_views(database_url)
        expected = [("fragile", position, False) for position in (1, 17, 18, 33)]
        assert await parked(database_url) == expected
        rows = await fetch(database_url, "SELECT position FROM views.fragile ORDER BY position")
        assert [position for (position,) in rows] == [
            one for one in range(2, len(log.events) + 1, 2) if one != 18
        ]
    await rebuild(database_url)
    assert await rows_of_views(database_url) == others


async def test_a_view_that_chooses_so_stands_still_and_holds_up_no_other(database_url: str) -> None:
    log = random_log(6, 60)
    await prepare(database_url, log.events[:30])
    views = with_view(Fragile(fails=[40], fault=STAND_STILL))
    async with running(database_url, views) as projector, running(database_url, lead=False) as reader:
        await store(database_url, log.events[30:], first=31)
        projector.wake()
        for one in (projector, reader):
            assert await one.wait_for(len(log.events))
            assert await one.wait_for(39, view="fragile")
            assert not await one.wait_for(40, view="fragile")
            assert await one.wait_for(len(log.events), view="messages")
    async with running(database_url, views) as projector:
        assert await projector.wait_for(len(log.events))
        assert projector.standing == {"fragile": 39}
        assert await parked(database_url) == [("fragile", 40, True)]
        assert await rebuild(database_url, views=with_view(Fragile(fault=STAND_STILL))) == len(log.events)
        await store(database_url, EventLog(9).events, first=len(log.events) + 1)
        projector.wake()
        assert await projector.wait_for(len(log.events) + len(EventLog(9).events))
        assert await parked(database_url) == []


async def test_a_view_with_too_many_parked_events_stands_still(database_url: str) -> None:
    log = random_log(7, 60)
    await prepare(database_url, log.events[:30])
    views = with_view(Fragile(fails=range(31, 60)))
    async with running(database_url, views) as projector:
        assert await projector.wait_for(30)
    await fetch(
        database_url,
        "INSERT INTO views.parked (view, position, cause, stands, error, fingerprint)"
        " SELECT 'fragile', -n, 'event', false, '', '' FROM generate_series(1, %s) AS n",
        PARKED_MAX - 5,
    )
    async with running(database_url, views) as projector:
        await store(database_url, log.events[30:], first=31)
        projector.wake()
        assert await projector.wait_for(len(log.events))
        assert projector.standing == {"fragile": 34}
    assert len(await parked(database_url)) == PARKED_MAX


async def test_an_error_in_an_added_view_leaves_the_old_views_in_force_and_is_told(database_url: str) -> None:
    log = random_log(8, 60)
    await prepare(database_url, log.events[:40])
    async with running(database_url) as projector:
        assert await projector.wait_for(40)
    before = await fetch(database_url, "SELECT 'views.positions'::regclass::oid")
    views = with_view(Fragile(fails=[12]))
    for _ in range(2):  # The second start does not try again what was refused.
        async with running(database_url, views) as projector:
            await store(database_url, log.events[40:50] if _ == 0 else log.events[50:], first=41 + 10 * _)
            projector.wake()
            assert await projector.wait_for(50 if _ == 0 else len(log.events))
    assert await fetch(database_url, "SELECT 'views.positions'::regclass::oid") == before
    told = await fetch(database_url, "SELECT view, position, cause, error FROM views.parked")
    assert told == [("fragile", 12, "rebuild", "RuntimeError: boom at 12")]
    with pytest.raises(RebuildRefused, match="fragile parks position 12"):
        await rebuild(database_url, views=views)
    assert await rebuild(database_url, views=views, park=True) == len(log.events)
    assert await parked(database_url) == [("fragile", 12, False)]


async def test_a_changed_view_that_is_worse_than_the_old_one_stays_out(database_url: str) -> None:
    log = random_log(9, 60)
    old, new = Fragile(), Fragile(fails=[20], version=2)
    await prepare(database_url, log.events[:40])
    async with running(database_url, with_view(old)) as projector:
        assert await projector.wait_for(40)
    async with running(database_url, with_view(new)) as projector:
        await store(database_url, log.events[40:], first=41)
        projector.wake()
        assert await projector.wait_for(len(log.events))
        assert projector.standing == {"fragile": 40}
        assert await fetch(database_url, "SELECT count(*) FROM views.fragile") == [(20,)]
    async with running(database_url, with_view(old)) as projector:  # The program before comes back.
        assert await projector.wait_for(len(log.events), view="fragile")
        assert await fetch(database_url, "SELECT count(*) FROM views.fragile") == [(len(log.events) // 2,)]
    assert await parked(database_url) == []


@pytest.mark.parametrize("broken", [{"SCHEMA": "CREATE TABLE ("}, {"INDEXES": "CREATE INDEX ON nowhere (x)"}])
async def test_a_view_whose_tables_cannot_be_made_stands_still_alone(
    database_url: str, broken: dict[str, str]
) -> None:
    log = random_log(10, 30)
    await prepare(database_url, log.events)
    view = Fragile()
    for name, value in broken.items():
        setattr(view, name, value)
    async with running(database_url, with_view(view)) as projector:
        assert await projector.wait_for(len(log.events))
        assert set(projector.standing) == {"fragile"}
    await rebuild(database_url)
    with pytest.raises(RebuildRefused, match="cannot be made"):
        await rebuild(database_url, views=with_view(view))


async def test_views_that_came_apart_are_built_again(database_url: str) -> None:
    log = random_log(11, 40)
    await prepare(database_url, log.events[:20])
    async with running(database_url) as projector:
        assert await projector.wait_for(20)
        await fetch(database_url, "UPDATE views.positions SET position = 7 WHERE view = 'messages'")
        await store(database_url, log.events[20:], first=21)
        projector.wake()
        assert await projector.wait_for(len(log.events))
        live = await tables(database_url)
    await rebuild(database_url)
    assert await tables(database_url) == live


def test_every_view_says_what_it_does_about_an_event_that_it_cannot_take() -> None:
    every = (conversations, messages, deliveries, events, channels, waiting)
    chosen = {view.NAME: view.ON_FAULT for view in every}
    still = {name for name, choice in chosen.items() if choice == STAND_STILL}
    assert still == {"channels"}
    assert len(chosen) == len(VIEWS)


def test_every_view_names_the_types_that_it_takes() -> None:
    """A view yields nothing for an event of another type, so it need not know that one is damaged."""
    log = random_log(12, 400)
    for view in (conversations, messages, deliveries, channels, waiting):
        others = [event for event in log.events if not str(_type(event)).startswith(view.TOPICS)]
        assert others
        assert not list(view.project(list(enumerate(others, start=1))))
    assert {MessageSent, ChannelConnected} <= {type(event) for event in log.events}


def _type(event: Any) -> str:
    return str(event.__struct_config__.tag)
