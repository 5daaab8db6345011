"""Refreshing tokens: one process at a time, whoever waits gets what it got, a lost answer loses nothing."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from app.config.file import OAuthApp
from app.http_client import Unreached
from app.kommo.crm.oauth import OAuth
from app.kommo.crm.tokens import NotAuthorized
from app.servers.servers import Servers
from app.vault import WrongMasterKey
from domain import commands as c
from tests.support.ids import CLIENT, REDIRECT
from tests.support.token_processes import DAY, PROCESSES, REST_SECONDS, Processes, one_more, processes_on

KILL_HOLDER = """SELECT pg_terminate_backend(pid) FROM pg_locks
 WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND database = (
   SELECT oid FROM pg_database WHERE datname = current_database())"""
HOLDERS = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
SWAP = """UPDATE ledger.tokens SET sealed = (SELECT sealed FROM ledger.tokens WHERE account_id = %s)
 WHERE account_id = %s"""
UNUSED = """UPDATE ledger.tokens SET expires_at = now() - make_interval(days => %s) WHERE account_id = %s"""
READ_ONLY = """CREATE FUNCTION ledger.read_only() RETURNS trigger LANGUAGE plpgsql AS $$
 BEGIN RAISE EXCEPTION 'read only' USING ERRCODE = 'read_only_sql_transaction'; END $$;
 CREATE TRIGGER read_only BEFORE UPDATE ON ledger.tokens EXECUTE FUNCTION ledger.read_only()"""
WRITABLE = "DROP FUNCTION ledger.read_only CASCADE"
IMPATIENT = "ALTER ROLE CURRENT_USER IN DATABASE {} SET idle_in_transaction_session_timeout = {}"


@pytest_asyncio.fixture(scope="module")
async def processes(servers: Servers) -> AsyncIterator[Processes]:
    async with processes_on(servers) as one:
        yield one


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, PROCESSES - 1)),
        st.tuples(st.just("expire"), st.just(0)),
        st.tuples(st.sampled_from(["drop", "500", "html", "429"]), st.just(0)),
        st.tuples(st.just("pause"), st.integers(0, 20)),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, left=st.sampled_from([DAY, 60, 1]))
async def test_refreshes_never_collide_and_nobody_is_left_out(
    processes: Processes, steps: list[tuple[str, int]], left: int
) -> None:
    await processes.consent(left)
    calls = []
    for what, number in steps:
        if what == "call":
            calls.append(asyncio.create_task(processes.called(processes.all[number])))
        elif what == "expire":
            await processes.order("/crm/expire", {"account_id": processes.account})
        elif what == "pause":
            await asyncio.sleep(number / 1000)
        else:
            await processes.fault(what)
    await asyncio.gather(*calls)
    await processes.calm()
    for tokens in processes.all:
        assert await processes.works(await processes.called(tokens))
    assert len(processes.spent) == len(set(processes.spent))
    assert not any(isinstance(command, c.Withdraw) for command in processes.recorded)


async def test_whoever_waits_for_a_refresh_uses_what_it_got(processes: Processes) -> None:
    await processes.consent(60)
    await processes.fault("slow", seconds=0.3)
    calls = [tokens.access(processes.account) for tokens in processes.all for _ in range(5)]
    got = {access.token for access in await asyncio.gather(*calls)}
    assert (len(got), len(processes.spent)) == (1, 1)


async def test_a_token_is_refreshed_five_minutes_ahead_and_not_before(processes: Processes) -> None:
    await processes.consent(310)
    await processes.all[0].access(processes.account)
    assert processes.spent == []
    await processes.again(290)
    await processes.all[0].access(processes.account)
    assert len(processes.spent) == 1


async def test_while_kommo_is_away_the_old_token_is_used_to_its_end(processes: Processes) -> None:
    await processes.consent(60)
    old = processes.sandbox.crm_state.tokens.of(processes.account)[0].id
    await processes.fault("500", times=None)
    for _ in range(3):
        assert (await processes.all[0].access(processes.account)).token == old
    await processes.calm()
    await processes.again(1)
    await asyncio.sleep(1.1)
    await processes.fault("500", times=None)
    with pytest.raises(Unreached):
        await processes.all[0].access(processes.account)
    await processes.calm()
    assert await processes.works(await processes.called(processes.all[0]))


async def test_an_answer_lost_after_kommo_spent_the_token_ends_in_a_clear_state(processes: Processes) -> None:
    account = await processes.consent(1)
    await asyncio.sleep(1.1)
    await processes.fault("drop_after")
    with pytest.raises(Unreached):
        await processes.all[0].access(account)
    await asyncio.sleep(REST_SECONDS * 2)
    for tokens in processes.all:
        with pytest.raises(NotAuthorized, match="authorize"):
            await tokens.access(account)
    kinds: list[type[c.AnyCommand]] = [c.Authorize, c.Withdraw]
    assert [type(command) for command in processes.recorded] == kinds
    await processes.again()
    assert await processes.works((await processes.all[1].access(account)).token)


async def test_once_withdrawn_kommo_is_asked_no_more(processes: Processes) -> None:
    account = await processes.consent(60)
    await processes.order("/crm/revoke", {"account_id": account})
    with pytest.raises(NotAuthorized):
        await processes.all[0].access(account)
    await processes.fault("500", times=None)  # Would be told as Unreached.
    for tokens in processes.all:
        with pytest.raises(NotAuthorized, match="no longer takes"):
            await tokens.access(account)


async def test_a_wrong_client_secret_withdraws_nothing(processes: Processes) -> None:
    account = await processes.consent(1)
    await asyncio.sleep(1.1)
    wrong = OAuthApp(CLIENT, "another", REDIRECT)
    oauth = OAuth(processes.client, wrong)
    async with one_more(processes, oauth) as tokens:
        with pytest.raises(NotAuthorized, match=r"\[oauth\]"):
            await tokens.access(account)
    assert await processes.works((await processes.all[0].access(account)).token)


async def test_tokens_outlive_a_database_that_breaks_during_a_refresh(processes: Processes) -> None:
    account = await processes.consent(60)
    await processes.fault("slow", seconds=0.5)
    call = asyncio.create_task(processes.all[0].access(account))
    await asyncio.sleep(0.2)
    async with await psycopg.AsyncConnection.connect(processes.url, autocommit=True) as link:
        await link.execute(KILL_HOLDER)
    token = (await call).token
    assert await processes.works(token)
    assert (await processes.all[1].access(account)).token == token


async def test_what_nobody_used_for_a_month_is_refreshed_before_it_dies(processes: Processes) -> None:
    account = await processes.consent()
    for days, refreshes in ((29, 0), (32, 1)):
        async with await psycopg.AsyncConnection.connect(processes.url, autocommit=True) as link:
            await link.execute(UNUSED, (days, account))
        await processes.all[0].refresh_unused()
        assert len(processes.spent) == refreshes


async def test_an_account_that_cannot_be_refreshed_keeps_no_other_from_it(processes: Processes) -> None:
    bad, revoked, good = [await processes.consent() for _ in range(3)]
    for account in (bad, revoked, good):
        await processes.run(UNUSED, 32, account)
    await processes.run(SWAP, good, bad)
    await processes.order("/crm/revoke", {"account_id": revoked})
    processes.full = True  # The withdrawal cannot be recorded.
    await processes.all[0].refresh_unused()
    processes.full = False
    assert len(processes.spent) == 1
    assert await processes.works((await processes.all[0].access(good)).token)


async def test_keeping_alive_goes_on_after_the_database_failed(processes: Processes) -> None:
    await processes.run("ALTER TABLE ledger.tokens RENAME COLUMN sealed TO gone")
    task = asyncio.create_task(processes.all[0].keep_alive())
    await asyncio.sleep(0.3)
    await processes.run("ALTER TABLE ledger.tokens RENAME COLUMN gone TO sealed")
    assert not task.done()
    task.cancel()


async def test_new_tokens_outlive_a_database_that_is_read_only_for_a_moment(processes: Processes) -> None:
    account = await processes.consent(60)
    await processes.run(READ_ONLY)
    call = asyncio.create_task(processes.all[0].access(account))
    await asyncio.sleep(0.4)
    assert not call.done()
    await processes.run(WRITABLE)
    token = (await call).token
    assert await processes.works(token)
    assert (await processes.all[1].access(account)).token == token


async def test_the_database_waits_for_kommo_however_impatient_it_is(processes: Processes) -> None:
    account = await processes.consent(60)
    name = sql.Identifier(processes.url.rpartition("/")[2].partition("?")[0])
    async with await psycopg.AsyncConnection.connect(processes.url, autocommit=True) as link:
        await link.execute(sql.SQL(IMPATIENT).format(name, sql.Literal("100ms")))
        await processes.fault("slow", seconds=0.5)
        holders = asyncio.create_task(processes.all[0].access(account))
        await asyncio.sleep(0.35)
        found = await (await link.execute(HOLDERS)).fetchone()
        await link.execute(sql.SQL(IMPATIENT).format(name, sql.SQL("DEFAULT")))
    assert found == (1,)
    assert await processes.works((await holders).token)


async def test_tokens_cannot_be_moved_to_another_account(processes: Processes) -> None:
    first = await processes.consent()
    second = await processes.consent()
    async with await psycopg.AsyncConnection.connect(processes.url, autocommit=True) as link:
        await link.execute(SWAP, (first, second))
    with pytest.raises(WrongMasterKey, match="changed since"):
        await processes.all[0].access(second)


async def test_kommos_text_about_a_token_is_in_the_event_and_in_no_log(
    processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    account = await processes.consent(60)
    text = "\x1b[2Jthe words of Kommo\nforged"
    await processes.fault("400", body={"hint": text})
    with pytest.raises(NotAuthorized, match=r"no longer takes our refresh token \(HTTP 400\)") as refused:
        await processes.all[0].access(account)
    assert ("words" in str(refused.value), refused.value.answer) == (False, text)
    withdrawn = processes.recorded[-1]
    assert isinstance(withdrawn, c.Withdraw)
    assert (withdrawn.reason, withdrawn.answer) == (
        "Kommo no longer takes our refresh token (HTTP 400)",
        text,
    )
    assert "words of Kommo" not in caplog.text
