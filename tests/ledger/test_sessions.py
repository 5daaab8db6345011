"""Sessions work as the code expects, whatever defaults the database, its roles and the environment have."""

import os
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql

from app.database.connection import connect, open_session
from app.database.schema import WrongEncoding
from app.servers.servers import Servers
from app.service.service import migrate, running
from tests.support.system import Story, chat, installed

ODD = {
    "client_encoding": "LATIN1",
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "search_path": "pg_temp",
    "bytea_output": "escape",
    "extra_float_digits": "-3",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "default_transaction_read_only": "on",
    "statement_timeout": "500ms",
    "lock_timeout": "1ms",
    "idle_session_timeout": "3s",
    "idle_in_transaction_session_timeout": "3s",
    "synchronous_commit": "off",
}
ENVIRONMENT = {"PGCLIENTENCODING": "LATIN1", "PGOPTIONS": "-c DateStyle=SQL,DMY"}
WORDS = "Grüße, 你好 👩‍👩‍👧"


@pytest.fixture
async def odd(servers: Servers) -> AsyncIterator[Story]:
    """A service on a database whose defaults would each break something, in an environment that does too."""
    async with installed(servers) as (story, settings):
        url = settings.database_url or ""
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
            database = sql.Identifier(owner.info.dbname)
            for name, value in ODD.items():
                setting = sql.SQL("ALTER DATABASE {} SET {} = {}")
                await owner.execute(setting.format(database, sql.Identifier(name), sql.Literal(value)))
        os.environ |= ENVIRONMENT
        try:
            await migrate(url)
            async with running(settings) as run:
                story.run = run
                await story.connect()
                yield story
        finally:
            for name in ENVIRONMENT:
                del os.environ[name]


async def test_a_service_works_on_a_database_with_odd_defaults(odd: Story) -> None:
    name = chat()
    message = await odd.customer(name, WORDS)
    assert [one.message["text"] for one in await odd.arrived(name)] == [WORDS]
    shown = await odd.shown(message)
    assert (shown["text"], shown["sent_at"][-1]) == (WORDS, "Z")
    told = await odd.manager(name, WORDS)
    await odd.pushed(name)
    await odd.until_recorded(told["ours"], "message.accepted")
    await odd.settled()
    events = await odd.api("GET", "/v1/events?since=2026-01-01T00:00:00.000Z&limit=1000")
    assert WORDS in [one["event"].get("content", {}).get("text") for one in events["items"]]


async def test_every_session_has_the_same_settings_and_commits_to_disk(odd: Story) -> None:
    assert odd.run
    url = odd.run.services.settings.database_url or ""
    async with await connect(url) as db:
        found = {}
        for name in ODD:
            ((found[name],),) = await (await db.execute("SELECT current_setting(%s)", (name,))).fetchall()
    assert found["synchronous_commit"] == "on"
    assert found["client_encoding"] == "UTF8"
    assert all(found[name] != value for name, value in ODD.items())


async def test_what_an_operator_asks_for_beyond_on_is_kept(database_url: str) -> None:
    await migrate(database_url)
    async with await connect(f"{database_url}&options=-c%20synchronous_commit%3Dremote_apply") as db:
        assert await (await db.execute("SHOW synchronous_commit")).fetchone() == ("remote_apply",)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_cannot_hold_every_text_is_refused_with_advice(
    servers: Servers, encoding: str
) -> None:
    name = sql.Identifier(f"test_{encoding.lower()}")
    make = sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0")
    async with await open_session(servers.database_url) as owner:
        await owner.execute(make.format(name, sql.Literal(encoding)))
        try:
            url = servers.database_url.replace("/postgres?", f"/test_{encoding.lower()}?")
            with pytest.raises(WrongEncoding, match=f"{encoding}.*ENCODING 'UTF8'"):
                await migrate(url)
        finally:
            await owner.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
