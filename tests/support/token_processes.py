"""Several processes' tokens on one database, and the Kommo that gives them out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import Any

import aiohttp
import psycopg

from app.config.file import OAuthApp
from app.database.pool import Pool
from app.http_client import Client, Unreached
from app.kommo.crm.oauth import OAuth, Pair
from app.kommo.crm.tokens import Tokens
from app.ledger.writer import LedgerFull
from app.servers.servers import Servers
from app.service import service
from app.vault import Vault
from domain import commands as c
from ops.sandbox import Config, OAuthClient, Sandbox, crm_account
from tests.support.databases import database
from tests.support.ids import CLIENT, CLIENT_SECRET, MASTER_BYTES, REDIRECT

APP = OAuthApp(CLIENT, CLIENT_SECRET, REDIRECT)
PROCESSES = 3
REST_SECONDS = 0.02
PATIENT_SECONDS = 30.0
DAY = 86_400
_numbers = count(1)


class Watched(OAuth):
    """Our app, which also counts: how many refreshes run at once, and with which tokens."""

    def __init__(self, client: Client, app: OAuthApp, spent: list[str], running: set[str]) -> None:
        super().__init__(client, app)
        self.spent, self.running = spent, running

    async def refresh(self, account: str, crm_url: str, refresh_token: str) -> tuple[Pair, str]:
        assert not self.running, "two refreshes at once"
        self.running.add(refresh_token)
        try:
            refreshed = await super().refresh(account, crm_url, refresh_token)
            self.spent.append(refresh_token)
            return refreshed
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
        self.full = False

    async def record(self, command: c.AnyCommand) -> None:
        if self.full:
            raise LedgerFull
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
        await self.all[0].save(self.account, 1, self.sandbox.url, pair)

    async def fault(self, action: str, **more: Any) -> None:
        await self.order("/faults", {"where": "crm.token", "action": action} | more)

    def watched(self) -> OAuth:
        """Our app, watched, for one more process."""
        return Watched(self.client, APP, self.spent, self.running)

    async def calm(self) -> None:
        """Kommo works again."""
        async with self.http.delete(f"{self.sandbox.url}/control/faults") as answer:
            assert answer.status == 204

    async def run(self, statement: str, *values: object) -> None:
        """Do something to the database."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as link:
            await link.execute(statement.encode(), values or None)

    async def works(self, token: str) -> bool:
        """Whether Kommo takes an access token."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.get(f"{self.sandbox.url}/api/v4/account", headers=headers) as answer:
            return answer.status == 200

    async def called(self, tokens: Tokens) -> str:
        """What a caller of the CRM does: again after a 401, and patiently when Kommo is away."""
        refused = None
        for _ in range(200):
            await asyncio.sleep(REST_SECONDS)
            with suppress(Unreached):
                token = (await tokens.access(self.account, refused=refused)).token
                if await self.works(token):
                    return token
                refused = token
        raise AssertionError("left out")


@asynccontextmanager
async def processes_on(servers: Servers) -> AsyncIterator[Processes]:
    accounts = tuple(crm_account(f"52e591f7-c98f-4255-8495-{n:012d}") for n in range(1000))
    config = Config(
        oauth=(OAuthClient(CLIENT, CLIENT_SECRET, REDIRECT),), crm_accounts=accounts, crm_per_second=0
    )
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(database(servers))
        await service.migrate(url)
        sandbox = await stack.enter_async_context(Sandbox(config))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        one = Processes(url, sandbox, http)
        stack.push_async_callback(one.client.close)
        for _ in range(PROCESSES):
            client, pool = Client(), Pool(url)
            oauth = Watched(client, APP, one.spent, one.running)
            tokens = Tokens(url, pool, Vault(MASTER_BYTES), oauth, one.record, backoff_seconds=REST_SECONDS)
            one.all.append(tokens)
            for close in (client.close, pool.close, tokens.close):
                stack.push_async_callback(close)
        yield one


@asynccontextmanager
async def one_more(processes: Processes, oauth: OAuth) -> AsyncIterator[Tokens]:
    """Another process, with an app of its own, whose backoff is long."""
    pool = Pool(processes.url)
    tokens = Tokens(
        processes.url,
        pool,
        Vault(MASTER_BYTES),
        oauth,
        processes.record,
        backoff_seconds=PATIENT_SECONDS,
    )
    yield tokens
    await tokens.close()
    await pool.close()
