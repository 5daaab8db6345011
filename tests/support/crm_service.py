"""A service whose Kommo has a CRM: the sandbox plays both, and its administrator lets us in or does not."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import psycopg

from app import clock
from app.config.file import Account, Budgets, DefaultSource, Install, OAuthApp, Setup
from app.config.settings import load_settings
from app.kommo.chats.signature import Credentials
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
    MARIA,
    MASTER_KEY,
    OTHER_ACCOUNT,
    SCOPE_ID,
)
from tests.support.service import Answer, Served
from tests.support.system import free_port

HERE = f"/v1/accounts/{ACCOUNT}"
INSTALL = Install(("acme",), "Acme chat", DefaultSource("Acme"))
SETTLE_SECONDS = 15.0
OPEN = """SELECT (SELECT count(*) FROM ledger.install_steps WHERE done_at IS NULL)
 + (SELECT count(*) FROM ledger.accounts WHERE check_at <= now())"""


class Office(Served):
    """A service and the sandbox's CRM, whose people are given orders."""

    database_url = ""

    async def order(self, path: str, content: object = None, *, method: str = "POST") -> Any:
        """An order to the sandbox, which must succeed."""
        url = f"{self.sandbox.url}/control{path}"
        async with self.client.request(method, url, json=content) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json(content_type=None)

    async def fault(self, where: str, action: str, **more: Any) -> None:
        await self.order("/faults", {"where": where, "action": action} | more)

    async def state(self, account: str = ACCOUNT) -> str:
        """A state that the service gave out."""
        told = await self.ask("POST", f"/v1/accounts/{account}/authorize")
        assert told.status == 200, told
        return str(parse_qs(urlsplit(told.body["url"]).query)["state"][0])

    async def led_back(self, state: str | None = None, **changed: str) -> Answer:
        """The administrator agrees, and his browser comes back to us."""
        state = await self.state() if state is None else state
        told = await self.order("/crm/authorize", {"account_id": changed.pop("of", ACCOUNT), "state": state})
        names = ("code", "state", "referer", "client_id")
        query = {name: told[name] for name in names} | changed
        return await self.request("GET", "/oauth/callback", params=query)

    async def answer_of_kommo(self, account: str = ACCOUNT, **more: str) -> dict[str, str]:
        """What Kommo leads an administrator back with who pressed "Install" there: without a state."""
        told = await self.order("/crm/authorize", {"account_id": account})
        query = {name: told[name] for name in ("code", "referer", "client_id")}
        return query | {"from_widget": "1"} | more

    async def callback(self, query: dict[str, str], **more: Any) -> Answer:
        """An administrator's browser comes back to us."""
        return await self.request("GET", "/oauth/callback", params=query, **more)

    async def install(self, account: str = ACCOUNT, **changed: str) -> Answer:
        """An administrator presses "Install" in Kommo, and his browser comes to us."""
        return await self.callback(await self.answer_of_kommo(account) | changed)

    async def settle(self) -> None:
        """All that is put off is due now; wait until it is done."""
        async with await psycopg.AsyncConnection.connect(self.database_url, autocommit=True) as link:
            await link.execute("UPDATE ledger.install_steps SET next_at = now()")
            await link.execute("UPDATE ledger.accounts SET check_at = now()")
            async with asyncio.timeout(SETTLE_SECONDS):
                while (await (await link.execute(OPEN)).fetchone()) != (0,):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def consent(self) -> None:
        """What an administrator does once."""
        answer = await self.led_back()
        assert answer.status == 200, answer

    async def account(self, account: str = ACCOUNT) -> Any:
        """What the service says of an account."""
        listed = await self.get("/v1/accounts")
        return next(each for each in listed["items"] if each["account_id"] == account)

    async def customer(self, conversation: str) -> Any:
        """A customer's first message reaches Kommo, which makes a chat, a talk and an incoming lead of it."""
        now = clock.now_ms()
        payload: dict[str, object] = {
            "timestamp": now // 1000,
            "msec_timestamp": now,
            "msgid": f"m-{conversation}",
            "conversation_id": conversation,
            "sender": {"id": f"u-{conversation}", "name": "Ann"},
            "message": {"type": "text", "text": "Hello"},
        }
        order: dict[str, object] = {"event_type": "new_message", "payload": payload}
        kommo = self.run.services.kommo
        answer = await kommo.call(Credentials(CHANNEL, CHANNEL_SECRET), "POST", SCOPE_ID, order)
        assert answer.status == 200, answer
        return self.sandbox.chat_state.chat(SCOPE_ID, conversation)

    async def chat(self, conversation: str) -> tuple[str, str]:
        """A chat with a manager's answer, known to both: our id and Kommo's."""
        chat = await self.customer(conversation)
        reply = {
            "conversation_id": conversation,
            "message": {"type": "text", "text": "Hi"},
            "sender_id": MARIA,
        }
        told = await self.order("/manager/messages?wait=1", reply)
        assert told["status"] == 200, told
        at_least = await self.head()
        listed = await self.get("/v1/conversations", conversation_id=conversation, at_least=at_least)
        return listed["items"][0]["id"], chat.id

    async def types(self, head: int) -> list[str]:
        """The types of the events after a position."""
        return [event["type"] for event in await self.since(head)]


def setup_of(here: str, sandbox: Sandbox, install: Install | None, more: tuple[str, ...] = ()) -> Setup:
    """The tables of a service at `here` whose Kommo is the sandbox, which has two names."""
    port = urlsplit(sandbox.url).port
    domains = (f"127.0.0.1:{port}", f"localhost:{port}", *more)
    app = OAuthApp(CLIENT, CLIENT_SECRET, f"{here}/oauth/callback", f"{sandbox.url}/oauth", domains)
    accounts = tuple(Account(one.amojo_id, sandbox.url) for one in sandbox.config.crm_accounts)
    return Setup(
        oauth=app,
        install=install,
        accounts=() if install else accounts,
        budgets=Budgets(crm_per_second=1000),
    )


@asynccontextmanager
async def office_of(
    servers: Servers,
    *,
    install: Install | None = None,
    roles: str = "web,project",
    nats_url: str = "",
    domains: tuple[str, ...] = (),
    **changed: Any,
) -> AsyncIterator[Office]:
    """A service with an OAuth app on a database of its own; `changed` are fields of the sandbox's Config.

    With `install` no account is in the file: each that comes installs the integration by itself. With the
    role relay it needs a NATS of its own. `domains` are Kommo's beside the sandbox's.
    """
    port = free_port()
    here = f"http://127.0.0.1:{port}"
    config: dict[str, Any] = {
        "channels": (Channel(CHANNEL, CHANNEL_SECRET),),
        "oauth": (OAuthClient(CLIENT, CLIENT_SECRET, f"{here}/oauth/callback"),),
        "crm_accounts": (crm_account(ACCOUNT, CRM_ID, "acme"), crm_account(OTHER_ACCOUNT)),
        "crm_per_second": 0,
        "disabled_url": f"{here}/oauth/disabled",
        "hook_url": f"{here}/kommo/:scope_id",
    } | changed
    with tempfile.TemporaryDirectory(prefix="chatledger-test-", dir="/tmp") as folder:
        async with (
            database(servers) as url,
            Sandbox(Config(**config)) as sandbox,
            aiohttp.ClientSession() as client,
        ):
            await service.migrate(url)
            settings = {
                "CHATLEDGER_DATABASE_URL": url,
                "CHATLEDGER_NATS_URL": nats_url or servers.nats_url,
                "CHATLEDGER_DATA": folder,
                "CHATLEDGER_MASTER_KEY": MASTER_KEY,
                "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
                "CHATLEDGER_KOMMO_URL": sandbox.url,
                "CHATLEDGER_PUBLIC_URL": here,
                "CHATLEDGER_PORT": str(port),
                "CHATLEDGER_ROLES": roles,
                "CHATLEDGER_TRUSTED_PROXIES": "127.0.0.1",
            }
            setup = setup_of(here, sandbox, install, domains)
            async with service.running(load_settings(environment=settings), setup) as run:
                office = Office(run, "", sandbox, client)
                office.database_url = url
                yield office
