"""The sandbox and a tiny integration that talks to it, for tests: real HTTP on free loopback ports."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web
from standardwebhooks import Webhook

from ops.sandbox import Channel, Config, Sandbox
from tests.support.ids import ACCOUNT, BOT, CHANNEL, CHANNEL_SECRET, MESSENGER_SECRET, SCOPE_ID

ORIGIN = "/v2/origin/custom/"
JSON = "application/json"
Answer = tuple[int, Any]


class Integration:
    """What chatledger is to the sandbox: it signs requests, receives hooks and hears customers."""

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self.client, self.url = client, ""
        self.hooks: list[tuple[bytes, str]] = []
        self.actions: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.hook_status = 200
        self.news = asyncio.Event()

    async def hook(self, request: web.Request) -> web.Response:
        self.hooks.append((await request.read(), request.headers["X-Signature"]))
        self.news.set()
        return web.Response(status=self.hook_status)

    async def action(self, request: web.Request) -> web.Response:
        body = await request.read()
        told = Webhook(MESSENGER_SECRET).verify(body, dict(request.headers))
        status = self.answers.pop(0) if self.answers else 200
        if status < 300:
            self.actions.append(told)
            self.news.set()
        return web.json_response({"results": []}, status=status)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until it holds; looked at again whenever something arrives."""
        async with asyncio.timeout(5):
            while not holds():
                self.news.clear()
                await self.news.wait()

    async def request(self, method: str, path: str, **more: Any) -> Answer:
        async with self.client.request(method, self.url + path, **more) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def call(self, method: str, path: str, content: object = None, **changed: Any) -> Answer:
        """A request signed as Kommo wants it; `secret`, `date` and `headers` may spoil it."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode() if content else b""
        date = changed.get("date") or format_datetime(datetime.now(UTC))
        md5 = hashlib.md5(body).hexdigest()
        text = f"{method}\n{md5}\n{JSON}\n{date}\n{path.partition('?')[0]}"
        signature = hmac.new(
            changed.get("secret", CHANNEL_SECRET).encode(), text.encode(), "sha1"
        ).hexdigest()
        headers = {"Date": date, "Content-Type": JSON, "Content-MD5": md5, "X-Signature": signature}
        return await self.request(method, path, data=body, headers=headers | changed.get("headers", {}))

    async def order(self, method: str, path: str, content: object = None) -> Answer:
        return await self.request(method, "/control" + path, json=content)

    async def connect(self, account: str = ACCOUNT) -> Answer:
        order = {"account_id": account, "title": "Acme", "hook_api_version": "v2"}
        return await self.call("POST", f"{ORIGIN}{CHANNEL}/connect", order)

    async def send(self, **payload: Any) -> Answer:
        return await self.post("", {"event_type": "new_message", "payload": message(**payload)})

    async def post(self, path: str, content: object) -> Answer:
        return await self.call("POST", f"{ORIGIN}{SCOPE_ID}{path}", content)

    async def push(self, content: object, webhook_id: str = "", secret: str = MESSENGER_SECRET) -> Answer:
        body, now, one = json.dumps(content), datetime.now(UTC), webhook_id or str(uuid4())
        headers = {
            "webhook-id": one,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(one, now, body),
        }
        return await self.request("POST", "/messenger/hook", data=body, headers=headers)

    async def kommo(self) -> Any:
        return (await self.order("GET", "/kommo"))[1]

    async def manager(self, path: str = "messages", **order: Any) -> Answer:
        told = {"message": {"type": "text", "text": "Hi"}} if path == "messages" else {}
        return await self.order("POST", f"/manager/{path}?wait=1", told | order)

    async def customer(self, path: str = "messages", **order: Any) -> Answer:
        return await self.order("POST", f"/customer/{path}?wait=1", order)


def message(**changed: Any) -> dict[str, Any]:
    told = {
        "timestamp": 1700000000,
        "msec_timestamp": 1700000000123,
        "msgid": "m-1",
        "conversation_id": "conv-1",
        "sender": {"id": "u-1", "name": "Ann"},
        "message": {"type": "text", "text": "Hello"},
    } | changed
    return {name: value for name, value in told.items() if value is not None}


@asynccontextmanager
async def integrating(**changed: Any) -> AsyncIterator[Integration]:
    """A sandbox and the integration it talks to, both on free loopback ports."""
    async with aiohttp.ClientSession() as client:
        one = Integration(client)
        app = web.Application()
        app.router.add_post("/kommo/{scope}", one.hook)
        app.router.add_post("/messengers/acme", one.action)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        settings = {
            "channels": (Channel(CHANNEL, CHANNEL_SECRET, BOT),),
            "accounts": (ACCOUNT,),
            "hook_url": url + "/kommo/:scope_id",
            "messenger_url": url + "/messengers/acme",
            "messenger_secret": MESSENGER_SECRET,
        }
        async with Sandbox(Config(**(settings | changed))) as sandbox:
            one.url = sandbox.url
            yield one
        await runner.cleanup()


async def fresh(one: Integration) -> Integration:
    """The same sandbox, connected and otherwise empty."""
    await one.order("DELETE", "/state")
    await one.connect()
    one.hooks, one.actions, one.answers, one.hook_status = [], [], [], 200
    return one
