"""A migration says what it would do, is not felt by who appends, and leaves 0.2.1 what that needs."""

import asyncio
import json
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from app.database import schema
from app.database.connection import Db, connect, open_session
from app.database.schema import Busy
from app.service.service import migrate
from tests.support.databases import NewDatabase
from tests.support.processes import Result, run_command

OLD = Path(__file__).parents[1] / "support/ledgers/ledger_0_2_1.sql"
MAKE_ROLE = """DO $$ BEGIN CREATE ROLE chatledger NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"""
# Word for word as 0.2.1 calls them.
APPEND = """PREPARE append (int[], uuid[], bigint[], text[], bytea[], int[], uuid[], bigint[], bigint[]) AS
 SELECT bad, head FROM ledger.append($1, $2, $3, $4, $5, $6, $7, $8, $9)"""
TAKE = """SELECT live_given, other_given, wait_seconds, probe
 FROM ledger.take_permits('acme', 'chats', 10, 1, 0, 0, 0, false)"""
EXECUTE = "EXECUTE append ('{1}', '{%s}', '{1}', '{t}', '{x}', '{}', '{}', '{}', '{}')"
FELT_SECONDS_MAX = 1.5  # LOCK_SECONDS, and as much again twice for a busy machine


@pytest.fixture
async def old_database(new_database: NewDatabase) -> str:
    """The URL of a database that 0.2.1 made."""
    url = await new_database(keyed=True)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
        await owner.execute(MAKE_ROLE)
        await owner.execute(OLD.read_bytes())
    return url


async def append(db: Db) -> int:
    """Append an event of a new stream as 0.2.1 does; its position."""
    cursor = await db.execute((EXECUTE % uuid.uuid4()).encode())
    ((bad, head),) = await cursor.fetchall()
    assert not bad
    assert isinstance(head, int)
    return head + 1


class Appender:
    """Appends all the time, as 0.2.1 does; `longest` is the longest that one took, in seconds."""

    def __init__(self, db: Db) -> None:
        self.db, self.positions, self.longest = db, list[int](), 0.0

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            self.positions.append(await append(self.db))
            self.longest = max(self.longest, time.monotonic() - began)
            await asyncio.sleep(0.005)


async def test_0_2_1_goes_on_while_its_database_is_migrated_and_after_it(old_database: str) -> None:
    async with await connect(old_database) as db, await open_session(old_database) as owner:
        await db.execute(APPEND)
        appender = Appender(db)
        appending = asyncio.create_task(appender.run())
        # An export reads all events and has for hours.
        async with await open_session(old_database) as reader, reader.transaction():
            await reader.execute("SELECT count(*) FROM ledger.stored_events")
            await asyncio.sleep(0.5)
            await migrate(old_database)
        await migrate(old_database)
        await asyncio.sleep(0.5)
        appending.cancel()
        with suppress(asyncio.CancelledError):
            await appending
        assert appender.longest < FELT_SECONDS_MAX
        assert appender.positions == list(range(1, len(appender.positions) + 1))
        # What 0.2.1 looks at when it starts, and what else it calls.
        assert await (await owner.execute("SELECT version FROM ledger.meta")).fetchone() == (2,)
        assert await (await db.execute(TAKE)).fetchone() == (1, 0, 0.0, False)
        identity = await schema.check(owner)
        assert (identity.id_secret, identity.keyed) == (None, False)


async def test_a_migration_gives_way_to_who_reads_and_is_not_felt(old_database: str) -> None:
    """A backup holds a lock of every table: the migration tries until it ends, and appends go on."""
    async with await connect(old_database) as db, await open_session(old_database) as backup:
        await db.execute(APPEND)
        appender = Appender(db)
        appending = asyncio.create_task(appender.run())
        async with backup.transaction():
            await backup.execute(
                "LOCK TABLE ledger.refused, ledger.meta, ledger.stored_events IN ACCESS SHARE MODE"
            )
            migrating = asyncio.create_task(migrate(old_database))
            await asyncio.sleep(3)
            assert not migrating.done()
        await migrating
        appending.cancel()
        with suppress(asyncio.CancelledError):
            await appending
    assert appender.longest < FELT_SECONDS_MAX


async def test_a_migration_that_finds_no_room_changes_nothing_and_says_so(old_database: str) -> None:
    async with await open_session(old_database) as backup, await open_session(old_database) as owner:
        async with backup.transaction():
            await backup.execute("LOCK TABLE ledger.refused IN ACCESS SHARE MODE")
            with pytest.raises(Busy, match=r"held a table.*nothing was changed.*migrate again"):
                await schema.migrate(owner, patience_seconds=1)
        assert (await schema.plan(owner)).version == 2


async def told(url: str, *options: str) -> Result:
    return await run_command("migrate", *options, CHATLEDGER_DATABASE_URL=url)


async def test_a_check_says_what_would_be_done_and_does_nothing(
    old_database: str, new_database: NewDatabase
) -> None:
    found = await told(await new_database(keyed=True), "--check")
    assert (found.code, found.out.splitlines()[0]) == (
        1,
        f"to migrate: the database has no chatledger tables, {schema.VERSION} is needed",
    )
    found = await told(old_database, "--check", "--json")
    plan = json.loads(found.out)
    assert (found.code, plan["version"], plan["needs"]) == (1, 2, schema.VERSION)
    assert plan["steps"][0].startswith("version 3: ")
    assert len(plan["steps"]) == schema.VERSION - 2
    assert (await told(old_database)).code == 0
    found = await told(old_database, "--check")
    assert (found.code, found.out[:13]) == (0, "nothing to do")


async def test_a_check_that_cannot_tell_has_an_exit_code_of_its_own(database_url: str) -> None:
    found = await told("postgresql://postgres@127.0.0.1:1/none", "--check")
    assert (found.code, found.err.count("does not answer")) == (2, 1)
    await migrate(database_url)
    async with await open_session(database_url) as owner:
        await owner.execute("UPDATE ledger.meta SET version = 99")
    found = await told(database_url, "--check", "--json")
    assert (found.code, found.out) == (2, "")
    assert "run the newer chatledger" in found.err
    assert (await told(database_url, "--json")).code == 2


async def test_tables_of_a_later_version_that_this_one_may_use_are_left_alone(database_url: str) -> None:
    """A later version has expanded them: this one works, and a migration takes nothing back."""
    await migrate(database_url)
    async with await open_session(database_url) as owner:
        await owner.execute("UPDATE ledger.meta SET tables = 99")
        await migrate(database_url)
        await schema.check(owner)
        assert (await schema.plan(owner)).steps == []
        assert await (await owner.execute("SELECT tables FROM ledger.meta")).fetchone() == (99,)
