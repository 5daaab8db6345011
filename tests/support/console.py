"""The whole system for tests of the console: private servers, the service and a sandbox, connected."""

import base64
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from msgspec.structs import replace
from standardwebhooks import Webhook

from app.config.file import Budgets, Setup
from app.config.settings import Settings, load_settings
from app.operations.services import views_reach
from app.servers.servers import Servers, servers
from app.service.service import Running, migrate, running
from ops.sandbox import Channel, Config, Sandbox
from tests.support.databases import make_without_a_secret
from tests.support.ids import ACCOUNT, CHANNEL, CHANNEL_SECRET

NAME = "acme"
HTML = {"Accept": "text/html"}
FIELD = re.compile(r'name="csrf" value="([^"]+)"')


class System:
    """A running service and its sandbox. `client` has the admin's bearer key, browsers have cookies."""

    def __init__(self, run: Running, sandbox: Sandbox, client: aiohttp.ClientSession, secret: str) -> None:
        self.run, self.sandbox, self.client, self.secret = run, sandbox, client, secret
        self.url = run.url or ""

    async def api(self, method: str, path: str, body: object = None) -> Any:
        """Ask the REST API."""
        headers = {"Authorization": f"Bearer {self.run.services.keys.admin}"}
        async with self.client.request(method, self.url + path, json=body, headers=headers) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json() if answer.status != 204 else None

    async def order(self, method: str, path: str, body: object = None) -> Any:
        """Ask the sandbox's control API."""
        async with self.client.request(method, f"{self.sandbox.url}/control{path}", json=body) as answer:
            text = await answer.text()
            assert answer.status < 300, text
            return json.loads(text) if text else None

    async def act(self, *actions: dict[str, Any]) -> list[dict[str, Any]]:
        """Post actions as the messenger, signed; returns their results once the views have them."""
        body, now, one = json.dumps(actions), datetime.now(UTC), str(uuid4())
        headers = {
            "webhook-id": one,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self.secret).sign(one, now, body),
            "Content-Type": "application/json",
        }
        url = f"{self.url}/messengers/{NAME}"
        async with self.client.post(url, data=body.encode(), headers=headers) as answer:
            told = await answer.json()
            assert answer.status == 200, told
        results: list[dict[str, Any]] = told["results"]
        await views_reach(self.run.services, max(one["position"] for one in results))
        return results

    async def chat_of(self, conversation_id: str) -> str:
        """Our id of a chat."""
        found = await self.api("GET", f"/v1/conversations?conversation_id={conversation_id}")
        id_: str = found["items"][0]["id"]
        return id_


class Browser:
    """Cookies and pages, without a window."""

    def __init__(self, system: System, client: aiohttp.ClientSession) -> None:
        self.system, self.client = system, client

    async def get(self, path: str, **headers: str) -> tuple[aiohttp.ClientResponse, str]:
        """A page, redirects not followed."""
        wanted = HTML | {name.replace("_", "-"): value for name, value in headers.items()}
        url = self.system.url + path
        async with self.client.get(url, headers=wanted, allow_redirects=False) as answer:
            return answer, await answer.text()

    async def post(self, path: str, **fields: str) -> tuple[aiohttp.ClientResponse, str]:
        """Send a form; `headers` of it are those of `get`."""
        url = self.system.url + path
        async with self.client.post(url, data=fields, headers=HTML, allow_redirects=False) as answer:
            return answer, await answer.text()

    async def form_token(self, path: str) -> str:
        """The token of the forms on a page."""
        _, text = await self.get(path)
        found = FIELD.search(text)
        assert found, text
        return found[1]

    async def sign_in(self) -> "Browser":
        """With the key, as a person does."""
        key = self.system.run.services.keys.admin
        answer, text = await self.post("/login", key=key, csrf=await self.form_token("/login"), next="/")
        assert answer.status == 200, text
        return self


def text_message(text: str, conversation: str = "conv-1", **message: Any) -> dict[str, Any]:
    """A message of a customer."""
    return {
        "type": "message.sent",
        "conversation_id": conversation,
        "message_id": f"m-{uuid4()}",
        "at": now(),
        "sender": {"id": "u-1", "name": "Ann"},
        "message": {"type": "text", "text": text} | message,
    }


def now() -> str:
    """As the contract writes times."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@asynccontextmanager
async def browsing(system: System, **headers: str) -> AsyncIterator[Browser]:
    """A browser with no cookies yet."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, headers=headers) as client:
        yield Browser(system, client)


@asynccontextmanager
async def whole_system(folder: Path) -> AsyncIterator[System]:
    """Everything started, the channel registered and its account connected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    config = Config(
        channels=(Channel(CHANNEL, CHANNEL_SECRET),),
        accounts=(ACCOUNT,),
        hook_url=f"{url}/kommo/:scope_id",
        messenger_url=f"{url}/messengers/{NAME}",
        messenger_secret=secret,
        messenger_account=ACCOUNT,
    )
    async with Sandbox(config) as sandbox, aiohttp.ClientSession() as client:
        environment = {
            "DATA": str(folder),
            "PORT": str(port),
            "KOMMO_URL": sandbox.url,
            "TRUSTED_PROXIES": "127.0.0.1",
        }
        settings = load_settings(environment={f"CHATLEDGER_{name}": one for name, one in environment.items()})
        setup = Setup(budgets=Budgets(ask_for_chats=False))
        async with servers(settings) as where, running(await _public(settings, where), setup) as run:
            system = System(run, sandbox, client, secret)
            await _connect(system)
            yield system


async def _public(settings: Settings, where: Servers) -> Settings:
    """Settings for a ledger in these servers whose ids a test can make."""
    await make_without_a_secret(where.database_url)
    await migrate(where.database_url)
    return replace(settings, database_url=where.database_url, nats_url=where.nats_url)


async def _connect(system: System) -> None:
    hook = f"{system.sandbox.url}/messenger/hook"
    channel = {
        "name": NAME,
        "kommo": {"channel_id": CHANNEL, "secret": CHANNEL_SECRET},
        "messenger": {"kind": "webhook", "url": hook, "secret": system.secret},
    }
    await system.api("POST", "/v1/channels", channel)
    await connect_account(system)


async def connect_account(system: System) -> None:
    """Connect the account, again if need be."""
    await system.api(
        "POST", f"/v1/channels/{NAME}/connections", {"account_id": ACCOUNT, "title": "Acme chat"}
    )
