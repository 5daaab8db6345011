"""An integration that also speaks to the CRM of the sandbox, for tests: real HTTP on free loopback ports."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
from aiohttp import web

from ops.sandbox import OAuthClient, crm_account
from tests.support.ids import ACCOUNT, CLIENT, CLIENT_SECRET, CRM_ID, REDIRECT
from tests.support.sandbox_client import Answer, Integration, integrating

OTHER = "99999999-f8ca-454d-af3d-396180102ac7"


class Office:
    """An integration with consent to use the account's CRM, and the CRM webhooks it was sent."""

    def __init__(self, chats: Integration) -> None:
        self.chats, self.token, self.refresh = chats, "", ""
        self.told: list[dict[str, str]] = []
        self.agents: list[str] = []
        self.status = 200
        self.hook_url = ""

    async def hook(self, request: web.Request) -> web.Response:
        self.told.append(dict(parse_qsl(await request.text(), keep_blank_values=True)))
        self.agents.append(request.headers["User-Agent"])
        self.chats.news.set()
        return web.Response(status=self.status)

    async def order(self, path: str, **content: Any) -> Answer:
        return await self.chats.order("POST", "/crm" + path, content)

    async def authorize(self, **more: Any) -> Any:
        return (await self.order("/authorize", **more))[1]

    async def exchange(self, **changed: Any) -> Answer:
        order = {
            "client_id": CLIENT,
            "client_secret": CLIENT_SECRET,
            "grant_type": "authorization_code",
            "redirect_uri": REDIRECT,
        }
        return await self.chats.request("POST", "/oauth2/access_token", json=order | changed)

    async def sign_in(self, **more: Any) -> None:
        _, told = await self.exchange(code=(await self.authorize(**more))["code"])
        self.token, self.refresh = told["access_token"], told["refresh_token"]

    async def renew(self, refresh: str = "") -> Answer:
        return await self.exchange(grant_type="refresh_token", refresh_token=refresh or self.refresh)

    async def call(self, method: str, path: str, content: object = None, **more: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}"} | more.get("headers", {})
        return await self.chats.request(method, "/api/v4" + path, json=content, headers=headers)

    async def get(self, path: str) -> Answer:
        return await self.call("GET", path)

    async def post(self, path: str, content: object) -> Answer:
        return await self.call("POST", path, content)

    async def crm(self) -> Any:
        return (await self.chats.order("GET", "/crm"))[1]

    async def subscribe(self, *settings: str) -> Answer:
        return await self.post("/webhooks", {"destination": self.hook_url, "settings": list(settings)})


@asynccontextmanager
async def office(**changed: Any) -> AsyncIterator[Office]:
    """A sandbox with an integration that has signed in, and where its CRM webhooks arrive."""
    settings: dict[str, Any] = {
        "oauth": (OAuthClient(CLIENT, CLIENT_SECRET, REDIRECT),),
        "crm_accounts": (crm_account(ACCOUNT, CRM_ID, "acme"),),
        "crm_per_second": 0,
        "crm_retry_scale": 0.0001,
    }
    async with integrating(**(settings | changed)) as chats:
        one = Office(chats)
        app = web.Application()
        app.router.add_post("/crm/hook", one.hook)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        one.hook_url = f"http://127.0.0.1:{runner.addresses[0][1]}/crm/hook"
        yield one
        await runner.cleanup()


async def fresh_office(one: Office) -> Office:
    """The same sandbox, empty but for a connection and a consent."""
    await one.chats.order("DELETE", "/state")
    await one.chats.connect()
    one.chats.hooks = []
    one.told, one.agents, one.status = [], [], 200
    await one.sign_in()
    return one


async def no_redirect(client: aiohttp.ClientSession, url: str, form: dict[str, str]) -> tuple[int, str]:
    """The status, and where the browser would go."""
    async with client.post(url, data=form, allow_redirects=False) as answer:
        return answer.status, answer.headers.get("Location", await answer.text())


async def contact(crm: Office, name: str = "Ann") -> int:
    found: int = (await crm.post("/contacts", [{"name": name}]))[1]["_embedded"]["contacts"][0]["id"]
    return found


async def new_chat(crm: Office) -> str:
    order = {"conversation_id": "conv-1", "user": {"id": "u-1", "name": "Ann"}}
    found: str = (await crm.chats.post("/chats", order))[1]["id"]
    return found


async def template(crm: Office, **more: Any) -> int:
    order = [{"name": "Hi", "content": "Hello {{contact.name}}"} | more]
    status, told = await crm.post("/chats/templates", order)
    assert status == 200, told
    found: int = told["_embedded"]["chat_templates"][0]["id"]
    return found


async def incoming(crm: Office) -> str:
    await crm.chats.send(sender={"id": "u-1", "name": "Ann", "profile": {"phone": "+15550100"}})
    found: str = (await crm.crm())["incoming"][-1]["id"]
    return found
