"""Whatever happens in whatever order, and wherever we are killed: in the end Kommo's last word counts."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import aiohttp
import psycopg
import pytest

from app.kommo.crm.oauth import disabled_signature
from app.servers.servers import Servers
from app.service import service
from ops.sandbox import Channel, Config, OAuthClient, Sandbox, crm_account
from tests.support.databases import database
from tests.support.ids import (
    ACCOUNT,
    ADMIN_KEY,
    CHANNEL,
    CHANNEL_SECRET,
    CLIENT,
    CLIENT_SECRET,
    CRM_ID,
    MASTER_KEY,
    MESSENGER_SECRET,
)
from tests.support.processes import Process, started
from tests.support.system import broker, free_port

ROUNDS, BURST_MAX = 10, 5
KILL_SECONDS_MAX = 0.4
SETTLE_SECONDS = 40.0
PATIENCE = aiohttp.ClientTimeout(total=30)
FILE = """
CHATLEDGER_PUBLIC_URL = "{here}"
[[channels]]
name = "acme"
kommo = {{ channel_id = "{channel}", secret = "{secret}" }}
messenger = {{ kind = "webhook", url = "http://127.0.0.1:9", secret = "{messenger}" }}
[oauth]
client_id = "{client}"
client_secret = "{client_secret}"
redirect_url = "{here}/oauth/callback"
authorize_url = "{kommo}/oauth"
domains = ["{domain}"]
[install]
channels = ["acme"]
title = "Acme chat"
source = {{ name = "Acme" }}
[budgets]
crm_per_second = 1000
"""
DUE = (
    "UPDATE ledger.install_steps SET next_at = now()",
    "UPDATE ledger.accounts SET check_at = now()",
)


class World:
    """One account in Kommo, a service that is killed now and then, and what Kommo said last.

    `installed`: an administrator installed the integration, and it was not ended since. `key`: the last one
    that was made for the account alone while it was installed.
    """

    def __init__(
        self, dice: random.Random, sandbox: Sandbox, process: Process, url: str, database_url: str
    ) -> None:
        self.dice, self.sandbox, self.process, self.url = dice, sandbox, process, url
        self.database_url = database_url
        self.installed = False
        self.page: dict[str, str] = {}
        self.key = ""
        self.client = aiohttp.ClientSession(timeout=PATIENCE)

    async def order(self, path: str, **content: Any) -> Any:
        async with self.client.post(f"{self.sandbox.url}/control/crm/{path}", json=content) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def api(self, method: str, path: str, body: object = None, key: str = ADMIN_KEY) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"}
        async with self.client.request(method, self.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def load(self, query: dict[str, str]) -> int:
        """A browser at our callback; 0 if we died meanwhile."""
        with suppress(aiohttp.ClientError):
            async with self.client.get(f"{self.url}/oauth/callback", params=query) as answer:
                return answer.status
        return 0

    async def answer_of_kommo(self) -> dict[str, str]:
        told = await self.order("authorize", account_id=ACCOUNT)
        return {name: told[name] for name in ("code", "referer", "client_id")} | {"from_widget": "1"}

    async def kill(self) -> None:
        await self.process.end(SIGKILL)
        await self.process.start()

    # What may happen.

    async def installs(self) -> None:
        self.page = await self.answer_of_kommo()
        assert await self.load(self.page) == 200
        self.installed = True

    async def is_killed_while_it_installs(self) -> None:
        self.page = await self.answer_of_kommo()
        loading = asyncio.create_task(self.load(self.page))
        await asyncio.sleep(self.dice.uniform(0, KILL_SECONDS_MAX))
        await self.kill()
        status = await loading
        if status == 0:
            status = await self.load(self.page)
        if status != 200:  # The code was spent, and its tokens went with us: the administrator tries again.
            await self.installs()
        self.installed = True

    async def loads_the_page_again(self) -> None:
        """It shows that installation while we know of no end, and never installs anything."""
        if self.page:
            assert await self.load(self.page) in (200, 400)

    async def uninstalls(self) -> None:
        await self.order("disable", account_id=ACCOUNT)
        self.installed = False

    async def uninstalls_while_we_are_away(self) -> None:
        await self.order("disable", account_id=ACCOUNT, url="http://127.0.0.1:9/away")
        self.installed = False

    async def is_killed_while_it_uninstalls(self) -> None:
        ending = asyncio.create_task(self.uninstalls())
        await asyncio.sleep(self.dice.uniform(0, KILL_SECONDS_MAX))
        await self.kill()
        await ending

    async def revokes(self) -> None:
        await self.order("revoke", account_id=ACCOUNT)
        self.installed = False

    async def tokens_expire(self) -> None:
        await self.order("expire", account_id=ACCOUNT)

    async def somebody_replays_the_end(self) -> None:
        signature = disabled_signature(CLIENT_SECRET, CLIENT, str(CRM_ID))
        query = {"account_id": str(CRM_ID), "client_uuid": CLIENT, "signature": signature}
        async with self.client.get(f"{self.url}/oauth/disabled", params=query) as answer:
            assert answer.status in (200, 404, 409, 503)

    async def gets_a_key(self) -> None:
        order = {"name": "k", "scopes": ["read"], "accounts": [ACCOUNT]}
        status, made = await self.api("POST", "/v1/keys", order)
        assert status == 201, made
        if self.installed:  # Who has a key made afterwards, to read what was, keeps it.
            self.key = made["key"]

    async def is_killed(self) -> None:
        await self.kill()

    # What must be so.

    def is_connected(self) -> bool:
        found = self.sandbox.chat_state.connections.values()
        return any(one.active for one in found if one.account_id == ACCOUNT)

    async def settles(self) -> None:
        """Everything that is put off is done, and we stand as Kommo does."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while self.difference(await self.shown()) or await self.has_key_too_long():
                    async with await psycopg.AsyncConnection.connect(
                        self.database_url, autocommit=True
                    ) as db:
                        for statement in DUE:
                            await db.execute(statement.encode())
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise AssertionError(self.difference(await self.shown()) or "its key is good") from None

    async def shown(self) -> Any:
        status, listed = await self.api("GET", "/v1/accounts")
        assert status == 200, listed
        return next((one for one in listed["items"] if one["account_id"] == ACCOUNT), None)

    def difference(self, shown: Any) -> str:
        """How an account as we show it differs from what Kommo says; empty if it does not."""
        if shown is None:
            return "unknown" if self.installed or self.is_connected() else ""
        connected = any(one["connected"] for one in shown["channels"])
        if (shown["state"] == "authorized") != self.installed:
            return f"{shown['state']}, and Kommo says {self.installed}"
        if connected != self.is_connected():
            return f"connected {connected}, and Kommo says {self.is_connected()}"
        if self.installed and not (connected and all("done_at" in one for one in shown["steps"])):
            return f"not all is done: {shown['steps']}"
        return "steps without an installation" if not self.installed and shown["steps"] else ""

    async def has_key_too_long(self) -> bool:
        """Whether the account's key is still good although the account has gone."""
        if not self.key or self.installed or self.is_connected():
            return False
        status, _ = await self.api("GET", "/v1/conversations", key=self.key)
        return status != 401

    async def check(self) -> None:
        """Nothing was made twice, and the ledger tells one story."""
        if self.installed:
            assert len(self.sandbox.crm_state.sources) == len(self.sandbox.crm_state.subscriptions) == 1
        _, told = await self.api("GET", "/v1/events?limit=1000")
        consistent([one["event"]["type"] for one in told["items"]])


def consistent(types: list[str]) -> None:
    """Each consent makes its source and its subscription once, and nothing ends that has not begun."""
    authorized, connected, made = False, False, set[str]()
    for one in types:
        match one:
            case "account.authorized":
                authorized = True
            case "account.withdrawn":
                assert authorized
                authorized, made = False, set()
            case "source.made" | "account.subscribed":
                assert authorized
                assert one not in made
                made.add(one)
            case "channel.connected":
                connected = True
            case "channel.disconnected":
                assert connected
                connected = False


@asynccontextmanager
async def world_of(servers: Servers, folder: Path, dice: random.Random) -> AsyncIterator[World]:
    """A sandbox in this process, and a service in its own."""
    port = free_port()
    here = f"http://127.0.0.1:{port}"
    config = Config(
        channels=(Channel(CHANNEL, CHANNEL_SECRET),),
        oauth=(OAuthClient(CLIENT, CLIENT_SECRET, f"{here}/oauth/callback"),),
        crm_accounts=(crm_account(ACCOUNT, CRM_ID, "acme"),),
        crm_per_second=0,
        disabled_url=f"{here}/oauth/disabled",
        hook_url=f"{here}/kommo/:scope_id",
    )
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(database(servers))
        await service.migrate(url)
        nats = await stack.enter_async_context(broker())
        sandbox = await stack.enter_async_context(Sandbox(config))
        file = folder / "chatledger.toml"
        file.write_text(
            FILE.format(
                here=here,
                channel=CHANNEL,
                secret=CHANNEL_SECRET,
                messenger=MESSENGER_SECRET,
                client=CLIENT,
                client_secret=CLIENT_SECRET,
                kommo=sandbox.url,
                domain=sandbox.url.removeprefix("http://"),
            )
        )
        settings = {
            "CHATLEDGER_DATABASE_URL": url,
            "CHATLEDGER_NATS_URL": nats.url,
            "CHATLEDGER_DATA": str(folder / "data"),
            "CHATLEDGER_MASTER_KEY": MASTER_KEY,
            "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
            "CHATLEDGER_KOMMO_URL": sandbox.url,
            "CHATLEDGER_PORT": str(port),
        }
        process = Process(folder, "app", "--config", str(file), "serve", **settings)
        await stack.enter_async_context(started(process))
        world = World(dice, sandbox, process, here, url)
        stack.push_async_callback(world.client.close)
        yield world


@pytest.mark.timeout(420)
async def test_in_the_end_kommos_last_word_counts(servers: Servers, data_folder: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    async with world_of(servers, data_folder, dice) as world:
        happens = [
            *(world.installs, world.is_killed_while_it_installs, world.loads_the_page_again),
            *(world.uninstalls, world.uninstalls_while_we_are_away, world.is_killed_while_it_uninstalls),
            *(world.revokes, world.tokens_expire, world.somebody_replays_the_end),
            *(world.gets_a_key, world.is_killed),
        ]
        for _ in range(ROUNDS):
            for happening in dice.choices(happens, k=dice.randint(1, BURST_MAX)):
                print(happening.__name__)
                await happening()
            await world.settles()
            print("settled", world.installed)
            await world.check()
