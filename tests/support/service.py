"""The service over real HTTP with a sandbox as Kommo, and the signatures that strangers would make."""

import asyncio
import hmac
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

import aiohttp
from multidict import CIMultiDict
from standardwebhooks import Webhook

from app.config.settings import load_settings
from app.servers.servers import Servers
from app.service import application, web
from app.service import service as serve
from app.service.connections import Limits
from app.views.events import ledger_head
from ops.sandbox import Channel, Config, Sandbox
from tests.support.databases import database
from tests.support.ids import (
    ACCOUNT,
    ADMIN_KEY,
    CHANNEL,
    CHANNEL_SECRET,
    MASTER_KEY,
    MESSENGER_SECRET,
    NOWHERE,
    OTHER_ACCOUNT,
    SCOPE_ID,
)

Json = dict[str, Any]


# Each request comes from a client of its own, as a proxy would say, so that wrong ones do not slow the tests.
_clients = count(1)


class Answer(NamedTuple):
    """What came back; `body` is decoded JSON, or None if it is empty or none."""

    status: int
    body: Any
    headers: Any
    raw: bytes


class Served:
    """A running service, and how strangers and operators talk to it."""

    def __init__(
        self, run: serve.Running, inner: str, sandbox: Sandbox, client: aiohttp.ClientSession
    ) -> None:
        self.run, self.sandbox, self.client = run, sandbox, client
        self.url, self.inner = run.url or "", inner

    async def ask(self, method: str, path: str, content: object = None, **more: Any) -> Answer:
        """A request with the admin's key unless `key` is another."""
        key = more.pop("key", ADMIN_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        body = json.dumps(content).encode() if content is not None else None
        headers |= {"Content-Type": "application/json"} if body else {}
        return await self.request(method, path, data=body, headers=headers | more.pop("headers", {}), **more)

    async def get(self, path: str, **query: Any) -> Any:
        """The decoded answer to a GET that must succeed."""
        found = await self.ask("GET", path, params=query)
        assert found.status == 200, found
        return found.body

    async def request(self, method: str, path: str, *, url: str = "", **more: Any) -> Answer:
        more.setdefault("allow_redirects", False)
        more["headers"] = CIMultiDict(more.get("headers") or {})
        more["headers"].setdefault("X-Forwarded-For", f"2001:db8:{next(_clients):x}::1")
        async with self.client.request(method, (url or self.url) + path, **more) as answer:
            raw = await answer.read()
            types = ("application/json", "application/problem+json", "application/vnd.oai.openapi+json")
            decoded = json.loads(raw) if raw and answer.content_type in types else None
            return Answer(answer.status, decoded, answer.headers, raw)

    async def hook(self, content: object, *, scope: str = SCOPE_ID, url: str = "", **more: Any) -> Answer:
        """A hook, signed as Kommo does; `signature` and `headers` may spoil it."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"X-Signature": more.pop("signature", signature(body)), "Content-Type": "application/json"}
        headers = {
            name: value for name, value in (headers | more.pop("headers", {})).items() if value is not None
        }
        return await self.request("POST", f"/kommo/{scope}", url=url, data=body, headers=headers, **more)

    async def act(self, content: object, *, channel: str = "acme", url: str = "", **more: Any) -> Answer:
        """An action of the messenger, signed by Standard Webhooks; `secret` and `headers` may spoil it."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = signed(body, more.pop("secret", MESSENGER_SECRET), more.pop("age_seconds", 0))
        headers = {
            name: value for name, value in (headers | more.pop("headers", {})).items() if value is not None
        }
        return await self.request(
            "POST", f"/messengers/{channel}", url=url, data=body, headers=headers, **more
        )

    async def head(self) -> int:
        """The ledger's last position."""
        return await ledger_head(self.run.services.pool)

    async def since(self, head: int) -> list[Json]:
        """The events after a position."""
        found = await self.get("/v1/events", after=head, limit=1000, at_least=await self.head())
        return [item["event"] for item in found["items"]]

    async def register(self, name: str = "acme", **changed: Any) -> Answer:
        return await self.ask("POST", "/v1/channels", channel(name, **changed))

    async def connect(self, name: str = "acme", account: str = ACCOUNT) -> Answer:
        order = {"account_id": account, "title": "Acme chat"}
        return await self.ask("POST", f"/v1/channels/{name}/connections", order)


async def refused(service: Served, answer: Answer, status: int, head: int) -> dict[str, Any]:
    """The problem of an answer that changed nothing."""
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.body
    assert (problem["status"], problem["type"]) == (status, "about:blank")
    assert problem["title"]
    assert len(problem["detail"]) > 10
    assert await service.head() == head
    return problem


def channel(name: str = "acme", **changed: Any) -> Json:
    """A channel to register; `channel_id`, `secret`, `url` and `whsec` may differ."""
    side = {"channel_id": changed.get("channel_id", CHANNEL), "secret": changed.get("secret", CHANNEL_SECRET)}
    reached = {"url": changed.get("url", NOWHERE), "secret": changed.get("whsec", MESSENGER_SECRET)}
    return {"name": name, "kommo": side, "messenger": {"kind": "webhook", **reached}}


def signature(body: bytes, secret: str = CHANNEL_SECRET) -> str:
    """Kommo's X-Signature."""
    return hmac.new(secret.encode(), body, "sha1").hexdigest()


def signed(body: bytes, secret: str = MESSENGER_SECRET, age_seconds: float = 0) -> Json:
    """The headers of Standard Webhooks; of a body that is no text, those of an empty one."""
    then = datetime.now(UTC) - timedelta(seconds=age_seconds)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(then.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", then, text),
    }


def sent(number: object = 1, **changed: Any) -> Json:
    """A customer's message; what is given as None is left out."""
    told = {
        "type": "message.sent",
        "conversation_id": "conv-1",
        "message_id": f"m-{number}",
        "at": datetime.now(UTC).isoformat(),
        "sender": {"id": "u-1", "name": "Ann"},
        "message": {"type": "text", "text": f"Hello {number}"},
    }
    return {name: value for name, value in (told | changed).items() if value is not None}


def about(kind: str, message_id: str, **more: Any) -> Json:
    """An action about a message."""
    now = datetime.now(UTC).isoformat()
    return {"type": kind, "conversation_id": "conv-1", "message_id": message_id, "at": now, **more}


def wrote(number: object = 1, **changed: Any) -> Json:
    """A hook: the manager wrote. `message` and `conversation` change these, the rest the outer object."""
    body = {"id": f"k-{number}", "type": "text", "text": f"Hi {number}"} | changed.pop("message", {})
    now = int(datetime.now(UTC).timestamp() * 1000)
    outgoing = {
        "receiver": {"id": "r-1", "client_id": "u-1", "phone": "+15550100", "email": ""},
        "sender": {"id": "maria"},
        "conversation": {"id": "chat-1", "client_id": "conv-1"} | changed.pop("conversation", {}),
        "timestamp": now // 1000,
        "msec_timestamp": now,
        "message": {name: value for name, value in body.items() if value is not None},
    } | changed
    return {"account_id": ACCOUNT, "time": now // 1000, "message": outgoing}


@asynccontextmanager
async def serving(
    servers: Servers,
    *,
    roles: str = "web,project",
    kommo_url: str = "",
    changed: Mapping[str, str] | None = None,
) -> AsyncIterator[Served]:
    """A service on a database of its own; without the role `deliver` nothing but the test adds events.

    `changed` are settings CHATLEDGER_… in place of the usual ones; an empty text takes one away.
    """
    sandbox = Config(channels=(Channel(CHANNEL, CHANNEL_SECRET),), accounts=(ACCOUNT, OTHER_ACCOUNT))
    with tempfile.TemporaryDirectory(prefix="chatledger-test-", dir="/tmp") as folder:
        async with database(servers) as url, Sandbox(sandbox) as kommo, aiohttp.ClientSession() as client:
            await serve.migrate(url)
            settings = {
                "CHATLEDGER_DATABASE_URL": url,
                "CHATLEDGER_NATS_URL": servers.nats_url,
                "CHATLEDGER_DATA": folder,
                "CHATLEDGER_MASTER_KEY": MASTER_KEY,
                "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
                "CHATLEDGER_KOMMO_URL": kommo_url or kommo.url,
                "CHATLEDGER_PORT": "0",
                "CHATLEDGER_ROLES": roles,
                "CHATLEDGER_TRUSTED_PROXIES": "127.0.0.1",
                **(changed or {}),
            }
            async with serve.running(load_settings(environment=settings)) as run, _inner(run) as inner:
                yield Served(run, inner, kommo, client)


@asynccontextmanager
async def _inner(run: serve.Running) -> AsyncIterator[str]:
    """The same application without what stands in front of it, on a port of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    front = application.application(run.services)
    server = web.Server(front.app, Limits())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.listening.wait()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await serving
