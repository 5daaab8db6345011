"""The demo messenger takes every push once and tells what customers do until it has been taken."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.ids import ACCOUNT, CHANNEL, CHANNEL_SECRET
from tests.support.sandbox_client import Integration, fresh, integrating

AT = "2026-11-22T08:00:00.000Z"


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Integration]:
    async with integrating() as one:
        yield one


@pytest_asyncio.fixture
async def integration(shared: Integration) -> Integration:
    return await fresh(shared)


def push(**changed: Any) -> dict[str, Any]:
    return {
        "type": "message.send",
        "id": "5c0f",
        "account_id": ACCOUNT,
        "conversation_id": "conv-1",
        "message": {"type": "text", "text": "Hi"},
        "sender": {"id": "m-1"},
        "receiver": {"id": "u-1"},
        "at": AT,
    } | changed


async def told(integration: Integration, count: int) -> list[dict[str, Any]]:
    await integration.until(lambda: len(integration.actions) >= count)
    return integration.actions


async def seen(integration: Integration) -> Any:
    return (await integration.order("GET", "/messenger"))[1]


async def test_a_push_is_taken_once_and_its_repeat_answered_the_same(integration: Integration) -> None:
    status, first = await integration.push(push(), "w-1")
    assert (status, set(first)) == (200, {"message_id"})
    assert await integration.push(push(), "w-1") == (200, first)
    [one] = (await seen(integration))["pushes"]
    assert (one["webhook_id"], one["repeats"], one["id"]) == ("w-1", 1, "5c0f")
    assert one["arrived_ns"] > 0
    [delivered] = await told(integration, 1)
    assert (delivered["type"], delivered["message_id"]) == ("message.delivered", first["message_id"])


async def test_a_push_by_phone_is_answered_with_the_chat_and_the_customer(integration: Integration) -> None:
    _, answer = await integration.push(push(conversation_id=None, receiver={"phone": "+15550177"}))
    assert set(answer) == {"message_id", "conversation_id", "receiver_id"}


async def test_an_unsigned_push_is_401(integration: Integration) -> None:
    assert (await integration.push(push(), secret="whsec_AAAA"))[0] == 401
    assert (await integration.request("POST", "/messenger/hook", json=push()))[0] == 401
    assert (await seen(integration))["pushes"] == []


BAD = [
    {"type": "message.sent"},
    {"at": "2026-11-22T08:00:00Z"},
    {"at": "2026-11-22T08:00:00.000+00:00"},
    {"message": None},
    {"receiver": None},
    {"id": ""},
    {"conversation_id": None, "receiver": {}},
    {"account_id": 5},
    {"type": "typing"},
    {"type": "reaction.added", "message_id": ""},
]


@pytest.mark.parametrize("wrong", BAD)
async def test_a_push_that_is_not_the_contracts_is_refused_for_good(
    integration: Integration, wrong: dict[str, Any]
) -> None:
    status, answer = await integration.push(push(**wrong))
    assert status in (404, 422)
    assert answer["code"] == 905
    assert answer["text"]


async def test_reactions_and_typing_are_taken(integration: Integration) -> None:
    _, answer = await integration.push(push())
    named = {"message_id": answer["message_id"], "sender": {"id": "m-1"}}
    assert (await integration.push(push(type="reaction.added", emoji="👍", **named)))[0] == 200
    assert (await integration.push(push(type="typing", expires_at=AT)))[0] == 200
    [letter] = (await seen(integration))["messages"]
    assert letter["reactions"] == [{"by": "m-1", "emoji": "👍"}]
    assert (await integration.push(push(type="reaction.removed", **named)))[0] == 200
    assert (await seen(integration))["messages"][0]["reactions"] == []


async def test_a_push_can_fail_with_a_code_of_its_own(integration: Integration) -> None:
    body = {"code": 904, "text": "not a user"}
    fault = {"where": "messenger.hook.message", "action": "422", "body": body}
    await integration.order("POST", "/faults", fault)
    assert await integration.push(push()) == (422, body)
    assert (await integration.push(push()))[0] == 200


async def test_what_a_customer_does_is_told_as_the_contract_has_it(integration: Integration) -> None:
    sender = {"id": "u-1", "name": "Ann", "phone": "+15550100"}
    _, first = await integration.customer(
        text="Hello", sender=sender, conversation_id="conv-1", message_id="m-1"
    )
    assert (first["state"], first["status"]) == ("accepted", 200)
    await integration.customer("edits", message_id="m-1", message={"text": "Hello!"})
    await integration.customer("reactions", message_id="m-1", emoji="👍")
    await integration.customer("reactions", message_id="m-1")
    await integration.customer("typing", conversation_id="conv-1", sender=sender)
    await integration.customer("statuses", conversation_id="conv-1", id="5c0f", status="failed", code=904)
    await integration.customer("deletes", message_id="m-1")
    sent, edited, added, removed, typing, failed, deleted = integration.actions
    assert sent.items() >= {"type": "message.sent", "conversation_id": "conv-1", "sender": sender}.items()
    assert sent["message"] == {"type": "text", "text": "Hello"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", sent["at"])
    assert (edited["type"], edited["message"]) == ("message.edited", {"type": "text", "text": "Hello!"})
    assert (added["type"], added["emoji"]) == ("reaction.added", "👍")
    assert (removed["type"], "emoji" in removed) == ("reaction.removed", False)
    assert (typing["type"], typing["sender"]["name"]) == ("typing", "Ann")
    assert (failed["type"], failed["id"], failed["code"]) == ("message.failed", "5c0f", 904)
    assert (deleted["type"], deleted["message_id"]) == ("message.deleted", "m-1")


async def test_an_action_is_told_until_it_is_taken_in_the_order_of_its_conversation(
    integration: Integration,
) -> None:
    integration.answers = [503, 500, 429]
    for n in range(3):
        order = {"conversation_id": "conv-1", "message_id": f"m-{n}", "text": str(n)}
        await integration.order("POST", "/customer/messages", order)
    assert [one["message_id"] for one in await told(integration, 3)] == ["m-0", "m-1", "m-2"]
    assert (await seen(integration))["actions"][0]["attempts"] == 4


async def test_a_refused_action_is_not_repeated_and_shown(integration: Integration) -> None:
    integration.answers = [409]
    _, one = await integration.customer(text="Hello", conversation_id="conv-1")
    assert (one["state"], one["status"], one["attempts"]) == ("refused", 409, 1)
    [letter] = (await seen(integration))["messages"]
    assert (letter["status"], letter["problem"]) == ("failed", "refused: 409, not connected yet")


async def test_any_body_can_be_posted_signed(integration: Integration) -> None:
    _, answer = await integration.order("POST", "/customer/actions", [{"type": "typing"}])
    assert answer == {"status": 200, "body": '{"results": []}'}


async def test_chats_connections_and_what_was_not_told_survive_a_restart(tmp_path: Path) -> None:
    state = str(tmp_path / "sandbox.db")
    async with integrating(state=state) as one:
        await one.connect()
        await one.send()
        _, first = await one.push(push(), "w-1")
        await told(one, 1)
        one.answers = [503] * 1000
        await one.order("POST", "/customer/messages", {"text": "later", "conversation_id": "conv-1"})
    async with integrating(state=state) as one:
        assert [action["message"]["text"] for action in await told(one, 1)] == ["later"]
        assert await one.push(push(), "w-1") == (200, first)
        kept = await one.kommo()
        assert [connection["account_id"] for connection in kept["connections"]] == [ACCOUNT]
        assert [message["client_id"] for message in kept["messages"]] == ["m-1"]
        assert (await one.send(msgid="m-2"))[0] == 200
        assert len((await one.kommo())["chats"]) == 1


PAGES = ["/", "/customer", "/manager"]


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_nothing_from_elsewhere_and_runs_no_inline_script(
    integration: Integration, path: str
) -> None:
    async with integration.client.get(integration.url + path) as answer:
        policy, text = answer.headers["Content-Security-Policy"], await answer.text()
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert not re.search(r"(src|href)=\"(https?:)?//", text)
    assert not re.search(r"<style|style=|<script(?! src)|\son\w+=", text)
    for name in re.findall(r"/static/[\w.]+", text):
        async with integration.client.get(integration.url + name) as answer:
            assert answer.status == 200


async def test_text_from_people_is_shown_and_never_run(integration: Integration) -> None:
    text, name = "<script>alert(1)</script>", "<b>Ann</b>"
    await integration.send(message={"type": "text", "text": text}, sender={"id": "u-1", "name": name})
    chat = (await integration.kommo())["chats"][0]["id"]
    async with integration.client.get(f"{integration.url}/manager?chat={chat}") as answer:
        shown = await answer.text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert text not in shown
    assert name not in shown


async def test_an_open_page_is_told_what_changes(integration: Integration) -> None:
    async with integration.client.get(integration.url + "/manager/events") as stream:
        await stream.content.readuntil(b"\n\n")
        await integration.send()
        lines = await stream.content.readuntil(b"\n\n")
    assert lines.startswith(b"event: message\ndata: ")


async def test_the_manager_and_the_customer_write_by_their_forms(integration: Integration) -> None:
    form = {"name": "Ann", "phone": "+1 555 0100"}
    async with integration.client.post(integration.url + "/customer/new", data=form) as answer:
        chat = answer.headers["HX-Redirect"].partition("chat=")[2]
    assert (await integration.request("POST", "/customer/send", data={"chat": chat, "text": " Hello "}))[
        0
    ] == 204
    [sent] = await told(integration, 1)
    assert (sent["message"]["text"], sent["sender"]["phone"]) == ("Hello", "+1 555 0100")
    first = {"phone": "+1 555 0177", "text": "Your order is ready"}
    assert (await integration.request("POST", "/manager/first", data=first))[0] == 204
    status, problem = await integration.request("POST", "/customer/send", data={"chat": chat, "text": " "})
    assert (status, problem["error"]) == (400, "Write something first")


async def test_a_seen_chat_is_read_once(integration: Integration) -> None:
    await integration.push(push())
    for _ in range(2):
        await integration.request("POST", "/customer/seen", data={"chat": "conv-1"})
    actions = await told(integration, 2)
    await asyncio.sleep(0.1)
    assert [one["type"] for one in actions] == ["message.delivered", "message.read"]


def sandbox(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ops.sandbox", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_says_when_it_is_ready_and_stops_when_told(sign: signal.Signals) -> None:
    with sandbox("--channel", f"{CHANNEL}:{CHANNEL_SECRET}", "--account", ACCOUNT) as process:
        assert process.stdout
        line = await asyncio.to_thread(process.stdout.readline)
        ready = re.fullmatch(r"sandbox ready on (http://127\.0\.0\.1:\d+)\n", line)
        assert ready
        async with aiohttp.ClientSession() as client, client.get(ready[1] + "/manager/events") as stream:
            await stream.content.readuntil(b"\n\n")
            os.kill(process.pid, sign)
            assert await asyncio.to_thread(process.wait, 4) == 0
            assert process.stdout.read() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "x"],
        ["--channel", "no-secret"],
        ["--hook-url", "ftp://x"],
        ["--duplicates", "maybe"],
        ["--messenger-url", "http://127.0.0.1:1/"],
        ["--messenger-secret", "whsec_!", "--messenger-url", "http://127.0.0.1:1/"],
    ],
)
def test_bad_usage_is_2(arguments: list[str]) -> None:
    with sandbox(*arguments) as process:
        assert process.wait(20) == 2
