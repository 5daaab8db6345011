"""The fake Kommo keeps to its documentation: over real HTTP, with signatures over raw bytes."""

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from ops.sandbox import Channel, Config, Sandbox
from ops.sandbox.signatures import content_md5, hook_signature, refusal, request_signature

SECRET = "f2d7f8704eff95087ed45b23ba99c0b5aac8278e"
CHANNEL = "344a5002-f8ca-454d-af3d-396180102ac7"
ACCOUNT = "52e591f7-c98f-4255-8495-827210138c81"
SCOPE = f"{CHANNEL}_{ACCOUNT}"
ORIGIN = "/v2/origin/custom/"
JSON = "application/json"
BOT = "b07b07b0-0000-4000-8000-000000000001"


class Integration:
    """What chatledger is to the sandbox: it signs requests and receives hooks."""

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self.client = client
        self.url = ""
        self.hooks: list[tuple[bytes, str]] = []
        self.answer = 200

    async def receive(self, request: web.Request) -> web.Response:
        self.hooks.append((await request.read(), request.headers["X-Signature"]))
        return web.Response(status=self.answer)

    async def call(self, method: str, path: str, content: object = None, **changed: Any) -> tuple[int, Any]:
        body = content if isinstance(content, bytes) else json.dumps(content).encode() if content else b""
        date = changed.get("date") or format_datetime(datetime.now(UTC))
        md5 = hashlib.md5(body).hexdigest()
        text = f"{method}\n{md5}\n{JSON}\n{date}\n{path.partition('?')[0]}"
        signature = hmac.new(changed.get("secret", SECRET).encode(), text.encode(), "sha1").hexdigest()
        headers = {"Date": date, "Content-Type": JSON, "Content-MD5": md5, "X-Signature": signature}
        headers |= changed.get("headers", {})
        async with self.client.request(method, self.url + path, data=body, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def order(self, method: str, path: str, content: object = None) -> tuple[int, Any]:
        async with self.client.request(method, self.url + "/control" + path, json=content) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def connect(self, account: str = ACCOUNT) -> tuple[int, Any]:
        order = {"account_id": account, "title": "Acme", "hook_api_version": "v2"}
        return await self.call("POST", f"{ORIGIN}{CHANNEL}/connect", order)

    async def send(self, **payload: Any) -> tuple[int, Any]:
        return await self.call(
            "POST", ORIGIN + SCOPE, {"event_type": "new_message", "payload": message(**payload)}
        )


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


@pytest_asyncio.fixture
async def integration() -> AsyncIterator[Integration]:
    async with aiohttp.ClientSession() as client:
        one = Integration(client)
        app = web.Application()
        app.router.add_post("/kommo/{scope}", one.receive)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        config = Config(
            channels=(Channel(CHANNEL, SECRET, BOT),),
            accounts=(ACCOUNT,),
            hook_url=f"http://127.0.0.1:{port}/kommo/:scope_id",
        )
        async with Sandbox(config) as sandbox:
            one.url = sandbox.url
            yield one
        await runner.cleanup()


VECTORS = [
    (
        "POST",
        f"{ORIGIN}{CHANNEL}/connect",
        "Wed, 15 Dec 2021 23:12:55 +0000",
        '{"account_id":"52e591f7-c98f-4255-8495-827210138c81","title":"ChatsIntegration","hook_api_version":"v2"}',
        "2fbcb3c652b61e24e004daddfc73d0ce",
        "81211856ce0c5095f3e1a90c0a38dc9d736cfd55",
    ),
    (
        "POST",
        f"{ORIGIN}{SCOPE}/079e44fb-fc22-476b-9e8a-421b688ec53b/delivery_status",
        "Thu, 16 Dec 2021 12:58:40 +0000",
        '{"msgid":"079e44fb-fc22-476b-9e8a-421b688ec53b","delivery_status":2,"error_code":905,"error":"Error text"}',
        "a0bbbac729c6341f0a521e2db7a8a236",
        "ca51f810785031385a801f41103244713c1a2352",
    ),
    (
        "DELETE",
        f"{ORIGIN}{CHANNEL}/disconnect",
        "Wed, 15 Dec 2021 23:59:28 +0000",
        '{"account_id":"52e591f7-c98f-4255-8495-827210138c81"}',
        "271fa2e4fb0ff84a3ef9689027bd1f38",
        "e1678e3b6aa674b5127f4feb448e6200ce0bfc72",
    ),
]


@pytest.mark.parametrize(("method", "path", "date", "body", "md5", "signature"), VECTORS)
def test_the_published_vectors_are_believed(method, path, date, body, md5, signature):
    assert content_md5(body.encode()) == md5
    assert request_signature(SECRET, method, md5, JSON, date, path) == signature
    headers = {"date": date, "content-type": JSON, "content-md5": md5, "x-signature": signature}
    moment = datetime(2021, 12, 15, 23, 12, 55, tzinfo=UTC)
    reason = refusal(SECRET, method, path, headers, body.encode(), moment)
    assert reason == (
        "" if date.startswith("Wed, 15 Dec 2021 23:12") else "Date: more than 15 minutes from now"
    )


async def test_a_connection_is_echoed_with_its_scope_and_may_be_repeated(integration):
    expected = {
        "account_id": ACCOUNT,
        "scope_id": SCOPE,
        "title": "Acme",
        "hook_api_version": "v2",
        "is_time_window_disabled": False,
    }
    assert await integration.connect() == (200, expected)
    assert await integration.connect() == (200, expected)


async def test_a_message_is_taken_and_its_repeat_is_answered_with_the_first_ids(integration):
    await integration.connect()
    status, first = await integration.send()
    assert status == 200
    assert first["new_message"]["ref_id"] == "m-1"
    assert set(first["new_message"]) == {"conversation_id", "sender_id", "receiver_id", "msgid", "ref_id"}
    assert await integration.send() == (200, first)
    _, told = await integration.order("GET", "/kommo")
    assert [(one["client_id"], one["repeats"]) for one in told["messages"]] == [("m-1", 1)]


async def test_a_managers_message_is_one_signed_hook(integration):
    await integration.connect()
    await integration.send()
    order = {"conversation_id": "conv-1", "message": {"type": "text", "text": "Hi"}}
    status, told = await integration.order("POST", "/manager/messages?wait=1", order)
    assert (status, told["status"]) == (201, 200)
    [(body, signature)] = integration.hooks
    assert signature == hook_signature(SECRET, body)
    assert json.loads(body)["message"]["conversation"]["client_id"] == "conv-1"
    assert json.loads(body)["message"]["message"]["id"] == told["id"]
