"""A database of an older version is taken up while it is in use: what comes in waits for no rebuilt view."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from app.config.file import Channel, Connected, KommoSide, MessengerSide, Setup
from app.config.settings import Settings
from app.database import names, schema
from app.database.schema import NewerSchema, OldSchema
from app.servers.servers import Servers
from app.service.service import RoleFailed, await_views, migrate, running
from tests.support.databases import NewDatabase
from tests.support.ids import ACCOUNT, AS_ADMIN, BOT, CHANNEL, CHANNEL_SECRET, MESSENGER_SECRET
from tests.support.system import Story, chat, installed, until

# What versions 2 and 3 brought, taken away again: their tables, and the views' new columns.
AGED = """
DROP TABLE ledger.links, ledger.connecting, ledger.tokens, ledger.consents, ledger.imports, ledger.keyring;
DROP TABLE ledger.rests, ledger.tries;
ALTER TABLE views.connections DROP COLUMN is_time_window_disabled;
ALTER TABLE views.deliveries DROP COLUMN imported;
DROP VIEW views.messages;
ALTER TABLE views.message_states RENAME TO messages;
ALTER TABLE views.messages DROP COLUMN sent_by, DROP COLUMN copy_id;
UPDATE views.positions SET fingerprint = 'version 1';
ALTER TABLE ledger.meta DROP COLUMN id_secret, DROP COLUMN tables;
UPDATE ledger.meta SET version = 1;
"""


class Old:
    """A version 1 database with a connected channel and a chat, and all that a service on it needs."""

    def __init__(self, story: Story, settings: Settings) -> None:
        self.story, self.settings = story, settings
        self.database_url = settings.database_url or ""
        side = MessengerSide("webhook", f"{story.sandbox.url}/messenger/hook", MESSENGER_SECRET)
        kommo, accounts = KommoSide(CHANNEL, CHANNEL_SECRET, BOT), (Connected(ACCOUNT, "Acme"),)
        self.setup = Setup(channels=(Channel("acme", kommo, side, accounts),))

    async def execute(self, statements: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.database_url, autocommit=True) as owner:
            await owner.execute(statements.encode())


@pytest.fixture
async def old(servers: Servers) -> AsyncIterator[Old]:
    async with installed(servers) as (story, settings):
        old = Old(story, settings)
        async with running(old.settings) as run:
            old.story.run = run
            await old.story.connect()
            await old.story.customer("old")
            await old.story.arrived("old")
            await old.story.settled()
        await old.execute(AGED)
        yield old


async def test_hooks_are_taken_while_the_views_of_version_1_are_built_anew(old: Old) -> None:
    with pytest.raises(OldSchema):
        async with running(old.settings, old.setup):
            pass
    await migrate(old.database_url)
    story, name = old.story, chat()
    slow = await psycopg.AsyncConnection.connect(old.database_url, autocommit=True)
    await slow.execute("SELECT pg_advisory_lock(%s)", (names.REBUILD_LOCK,))  # The rebuild lasts so long.
    async with running(old.settings, old.setup) as run:
        told = await story.manager("old", "to the old chat")
        status, _ = await story.call("GET", f"{story.url}/v1/messages/{told['ours']}", headers=AS_ADMIN)
        assert status == 503
        ours = await story.customer(name)
        await asyncio.sleep(3)  # The start and the deliveries are tried, and fail, several times.
        assert not run.failed.done()
        assert run.services.projector.position == 0
        await slow.close()
        await until(lambda: run.services.projector.position > 0)
        assert "to the old chat" in str(await story.shown(told["ours"]))
        await story.pushed("old")
        await story.arrived(name)
        await story.until_recorded(ours, "message.accepted")
        await story.settled()
        assert (await story.api("GET", "/v1/status"))["connections"] == []


async def test_a_process_that_only_reads_says_who_makes_the_views(new_database: NewDatabase) -> None:
    url = await new_database()
    await migrate(url)
    with pytest.raises(RoleFailed, match="start a process with the role project"):
        await await_views(url, 0.2)


async def test_a_database_of_a_newer_version_is_left_as_it_is(new_database: NewDatabase) -> None:
    url = await new_database()
    await migrate(url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("UPDATE ledger.meta SET version = %s", (schema.VERSION + 1,))
        with pytest.raises(NewerSchema, match="run the newer chatledger"):
            await schema.check(connection)
        with pytest.raises(NewerSchema, match="run the newer chatledger"):
            await migrate(url)
        cursor = await connection.execute("SELECT version FROM ledger.meta")
        assert await cursor.fetchone() == (schema.VERSION + 1,)
