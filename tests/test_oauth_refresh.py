"""Refreshing tokens: one process at a time, whoever waits gets what it got, a lost answer loses nothing."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from consented import CLIENT, CLIENT_SECRET
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from app import serve
from app.channels import WrongMasterKey
from app.client import Client, Unreached
from app.oauth import OAuth, Pair
from app.pool import Pool
from app.servers import Servers
from app.setup import OAuthApp
from app.tokens import NotAuthorized, Tokens
from domain import commands as c
from ops.sandbox import Config, OAuthClient, Sandbox, crm_account

REDIRECT = "http://127.0.0.1:9/oauth/callback"
APP = OAuthApp(CLIENT, CLIENT_SECRET, REDIRECT)
MASTER = bytes(range(32))
PROCESSES = 3
DAY = 86_400
KILL_HOLDER = """SELECT pg_terminate_backend(pid) FROM pg_locks
 WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND database = (
   SELECT oid FROM pg_database WHERE datname = current_database())"""
SWAP = """UPDATE ledger.tokens SET sealed = (SELECT sealed FROM ledger.tokens WHERE account_id = %s)
 WHERE account_id = %s"""
UNUSED = """UPDATE ledger.tokens SET expires_at = now() - make_interval(days => %s) WHERE account_id = %s"""
_numbers = count(1)


class Watched(OAuth):
    """Our app, which also counts: how many refreshes run at once, and with which tokens."""

    def __init__(self, client: Client, app: OAuthApp, spent: list[str], running: set[str]) -> None:
        super().__init__(client, app)
        self.spent, self.running = spent, running

    async def refresh(self, crm_url: str, refresh_token: str) -> Pair:
        assert not self.running, "two refreshes at once"
        self.running.add(refresh_token)
        try:
            pair = await super().refresh(crm_url, refresh_token)
            self.spent.append(refresh_token)
            return pair
        finally:
            self.running.discard(refresh_token)


class Processes:
    """Several processes' tokens on one database, and the Kommo that gives them out."""

    def __init__(self, url: str, sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
        self.url, self.sandbox, self.http = url, sandbox, http
        self.all: list[Tokens] = []
        self.recorded: list[c.AnyCommand] = []
        self.spent: list[str] = []
        self.running: set[str] = set()
        self.account = ""
        self.client = Client()

    async def record(self, command: c.AnyCommand) -> None:
        self.recorded.append(command)

    async def order(self, path: str, content: dict[str, Any]) -> Any:
        url = f"{self.sandbox.url}/control{path}"
        async with self.http.post(url, json=content) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json(content_type=None)

    async def consent(self, expires_in: int = DAY) -> str:
        """A new account that consented; its id."""
        self.account = self.sandbox.config.crm_accounts[next(_numbers) % 1000].amojo_id
        self.recorded.clear()
        self.spent.clear()
        await self.calm()
        await self.again(expires_in)
        return self.account

    async def again(self, expires_in: int = DAY) -> None:
        told = await self.order("/crm/authorize", {"account_id": self.account})
        pair = await OAuth(self.client, APP).exchange(self.sandbox.url, told["code"])
        pair = Pair(pair.access_token, pair.refresh_token, expires_in)
        await self.all[0].keep(self.account, 1, self.sandbox.url, pair)

    async def fault(self, action: str, **more: Any) -> None:
        await self.order("/faults", {"where": "crm.token", "action": action} | more)

    async def calm(self) -> None:
        """Kommo works again."""
        async with self.http.delete(f"{self.sandbox.url}/control/faults") as answer:
            assert answer.status == 204

    async def works(self, token: str) -> bool:
        """Whether Kommo takes an access token."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.get(f"{self.sandbox.url}/api/v4/account", headers=headers) as answer:
            return answer.status == 200

    async def called(self, tokens: Tokens) -> str:
        """What a caller of the CRM does: again after a 401, and patiently when Kommo is away."""
        refused = None
        for _ in range(40):
            with suppress(Unreached):
                token = (await tokens.access(self.account, refused=refused)).token
                if await self.works(token):
                    return token
                refused = token
        raise AssertionError("left out")


@asynccontextmanager
async def processes_on(servers: Servers) -> AsyncIterator[Processes]:
    name = f"test_{secrets.token_hex(8)}"
    url = servers.database_url.replace("/postgres?", f"/{name}?")
    accounts = tuple(crm_account(f"52e591f7-c98f-4255-8495-{n:012d}") for n in range(1000))
    config = Config(
        oauth=(OAuthClient(CLIENT, CLIENT_SECRET, REDIRECT),), crm_accounts=accounts, crm_per_second=0
    )
    async with AsyncExitStack() as stack:
        owner = await psycopg.AsyncConnection.connect(servers.database_url, autocommit=True)
        await stack.enter_async_context(owner)
        await owner.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        await serve.migrate(url)
        sandbox = await stack.enter_async_context(Sandbox(config))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        one = Processes(url, sandbox, http)
        stack.push_async_callback(one.client.close)
        for _ in range(PROCESSES):
            client, pool = Client(), Pool(url)
            oauth = Watched(client, APP, one.spent, one.running)
            tokens = Tokens(url, pool, MASTER, oauth, one.record)
            one.all.append(tokens)
            for close in (client.close, pool.close, tokens.close):
                stack.push_async_callback(close)
        yield one


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
):
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


async def test_whoever_waits_for_a_refresh_uses_what_it_got(processes: Processes):
    await processes.consent(60)
    await processes.fault("slow", seconds=0.3)
    calls = [tokens.access(processes.account) for tokens in processes.all for _ in range(5)]
    got = {access.token for access in await asyncio.gather(*calls)}
    assert (len(got), len(processes.spent)) == (1, 1)


async def test_a_token_is_refreshed_five_minutes_ahead_and_not_before(processes: Processes):
    await processes.consent(310)
    await processes.all[0].access(processes.account)
    assert processes.spent == []
    await processes.again(290)
    await processes.all[0].access(processes.account)
    assert len(processes.spent) == 1


async def test_while_kommo_is_away_the_old_token_is_used_to_its_end(processes: Processes):
    await processes.consent(60)
    old = processes.sandbox.books.tokens.of(processes.account)[0].id
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
    assert await processes.works((await processes.all[0].access(processes.account)).token)


async def test_an_answer_lost_after_kommo_spent_the_token_ends_in_a_clear_state(processes: Processes):
    account = await processes.consent(1)
    await asyncio.sleep(1.1)
    await processes.fault("drop_after")
    with pytest.raises(Unreached):
        await processes.all[0].access(account)
    for tokens in processes.all:
        with pytest.raises(NotAuthorized, match="authorize"):
            await tokens.access(account)
    assert [type(command) for command in processes.recorded] == [c.Authorize, c.Withdraw]
    await processes.again()
    assert await processes.works((await processes.all[1].access(account)).token)


async def test_once_withdrawn_kommo_is_asked_no_more(processes: Processes):
    account = await processes.consent(60)
    await processes.order("/crm/revoke", {"account_id": account})
    with pytest.raises(NotAuthorized):
        await processes.all[0].access(account)
    await processes.fault("500", times=None)  # Would be told as Unreached.
    for tokens in processes.all:
        with pytest.raises(NotAuthorized, match="no longer takes"):
            await tokens.access(account)


async def test_a_wrong_client_secret_withdraws_nothing(processes: Processes):
    account = await processes.consent(1)
    await asyncio.sleep(1.1)
    wrong = OAuthApp(CLIENT, "another", REDIRECT)
    oauth = OAuth(processes.client, wrong)
    async with one_more(processes, oauth) as tokens:
        with pytest.raises(NotAuthorized, match=r"\[oauth\]"):
            await tokens.access(account)
    assert await processes.works((await processes.all[0].access(account)).token)


async def test_tokens_outlive_a_database_that_breaks_during_a_refresh(processes: Processes):
    account = await processes.consent(60)
    await processes.fault("slow", seconds=0.5)
    call = asyncio.create_task(processes.all[0].access(account))
    await asyncio.sleep(0.2)
    async with await psycopg.AsyncConnection.connect(processes.url, autocommit=True) as link:
        await link.execute(KILL_HOLDER)
    token = (await call).token
    assert await processes.works(token)
    assert (await processes.all[1].access(account)).token == token


async def test_what_nobody_used_for_a_month_is_refreshed_before_it_dies(processes: Processes):
    account = await processes.consent()
    for days, refreshes in ((29, 0), (32, 1)):
        async with await psycopg.AsyncConnection.connect(processes.url, autocommit=True) as link:
            await link.execute(UNUSED, (days, account))
        await processes.all[0].refresh_unused()
        assert len(processes.spent) == refreshes


async def test_tokens_cannot_be_moved_to_another_account(processes: Processes):
    first = await processes.consent()
    second = await processes.consent()
    async with await psycopg.AsyncConnection.connect(processes.url, autocommit=True) as link:
        await link.execute(SWAP, (first, second))
    with pytest.raises(WrongMasterKey, match="CHATLEDGER_MASTER_KEY"):
        await processes.all[0].access(second)


@asynccontextmanager
async def one_more(processes: Processes, oauth: OAuth) -> AsyncIterator[Tokens]:
    """Another process, with an app of its own."""
    pool = Pool(processes.url)
    tokens = Tokens(processes.url, pool, MASTER, oauth, processes.record)
    yield tokens
    await tokens.close()
    await pool.close()
