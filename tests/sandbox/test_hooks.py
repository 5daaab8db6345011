"""Hooks are sent once, signed and in order; faults happen as ordered; bad orders are told so."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from ops.sandbox.chats.signatures import hook_signature
from tests.support.ids import ACCOUNT, CHANNEL_SECRET, MARIA, SCOPE_ID
from tests.support.sandbox_client import ORIGIN, Integration, fresh, integrating


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Integration]:
    async with integrating() as one:
        yield one


@pytest_asyncio.fixture
async def integration(shared: Integration) -> Integration:
    return await fresh(shared)


def test_the_hook_vector_of_the_reference_holds() -> None:
    body = (
        '{"account_id":"52e591f7-c98f-4255-8495-827210138c81","time":1639572261,"message":{"receiver":{"id":"r1",'
        '"phone":"+15550100","client_id":"u-1"},"sender":{"id":"m1"},"conversation":{"id":"c1","client_id":'
        '"conv-1"},"timestamp":1639572260,"msec_timestamp":1639572260980,"message":{"id":"x1","type":"text",'
        '"text":"Привет 👋"}}}'
    ).encode()
    assert (len(body), hook_signature(CHANNEL_SECRET, body)) == (
        330,
        "bda33566f82774cebd45bcea1a37eeedddcf924c",
    )


async def test_a_managers_message_is_one_signed_hook_of_the_documented_shape(
    integration: Integration,
) -> None:
    await integration.send(source={"external_id": "15550999"})
    status, told = await integration.manager(
        conversation_id="conv-1", message={"text": "Hi", "markup": {"a": 1}}
    )
    assert (status, told["status"]) == (201, 200)
    [(body, signature)] = integration.hooks
    assert signature == hook_signature(CHANNEL_SECRET, body)
    hook = json.loads(body)
    assert hook["account_id"] == ACCOUNT
    assert hook["message"]["sender"]["id"] == MARIA
    assert hook["message"]["conversation"] == {"id": told["chat_id"], "client_id": "conv-1"}
    assert hook["message"]["receiver"]["client_id"] == "u-1"
    assert hook["message"]["source"] == {"external_id": "15550999"}
    assert (
        hook["message"]["message"].items() >= {"id": told["id"], "type": "text", "markup": {"a": 1}}.items()
    )


async def test_write_first_has_a_phone_and_no_client_id_until_both_are_bound(
    integration: Integration,
) -> None:
    _, told = await integration.manager(phone="+15550177")
    hook = json.loads(integration.hooks[0][0])["message"]
    assert hook["conversation"] == {"id": told["chat_id"]}
    assert hook["receiver"]["phone"] == "+15550177"
    sender = {"id": "u-7", "name": "Eve", "ref_id": hook["receiver"]["id"]}
    bound = {"conversation_id": "conv-7", "conversation_ref_id": told["chat_id"], "sender": sender}
    assert (await integration.send(**bound))[0] == 200
    assert (await integration.send(**bound | {"msgid": "m-2", "conversation_id": "conv-8"}))[0] == 400
    await integration.manager(chat_id=told["chat_id"])
    hook = json.loads(integration.hooks[1][0])["message"]
    assert hook["conversation"] == {"id": told["chat_id"], "client_id": "conv-7"}
    assert (hook["receiver"]["client_id"], hook["receiver"]["name"]) == ("u-7", "Eve")


@pytest.mark.parametrize(("variant", "place"), [("sample", "typing"), ("table", "action")])
async def test_typing_names_the_user_where_the_variant_has_it(
    integration: Integration, variant: str, place: str
) -> None:
    await integration.send()
    await integration.manager("typing", conversation_id="conv-1", variant=variant)
    action = json.loads(integration.hooks[0][0])["action"]
    assert (action if place == "action" else action["typing"])["user"] == {"id": MARIA}
    assert action["typing"]["conversation"]["client_id"] == "conv-1"


@pytest.mark.parametrize("variant", ["sample", "table"])
async def test_a_reaction_names_the_message_as_the_variant_has_it(
    integration: Integration, variant: str
) -> None:
    _, first = await integration.send()
    await integration.manager("reactions", msgid="m-1", emoji="👍", variant=variant)
    await integration.manager("reactions", msgid="m-1", variant=variant)
    added, removed = (json.loads(body)["action"]["reaction"] for body, _ in integration.hooks)
    named = added["msgid"] if variant == "sample" else added["message"]["id"]
    assert (named, added["type"], added["emoji"]) == (first["new_message"]["msgid"], "react", "👍")
    assert (removed["type"], "emoji" in removed) == ("unreact", False)


async def test_a_refused_hook_is_not_sent_again_and_shown(integration: Integration) -> None:
    integration.hook_status = 503
    _, told = await integration.manager(conversation_id="conv-1")
    await asyncio.sleep(0.1)
    assert (told["status"], len(integration.hooks)) == (503, 1)
    [hook] = (await integration.order("GET", "/hooks"))[1]["hooks"]
    assert (hook["status"], hook["times"]) == (503, 1)


async def test_a_hook_waits_five_seconds_and_no_longer() -> None:
    async def sleepy(_: web.Request) -> web.Response:
        await asyncio.sleep(5.5)
        return web.Response()

    app = web.Application()
    app.router.add_post("/", sleepy)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with integrating(hook_url=f"http://127.0.0.1:{runner.addresses[0][1]}/") as integration:
        await integration.connect()
        _, told = await integration.manager(conversation_id="conv-1")
    await runner.cleanup()
    assert (told["status"], told["error"]) == (None, "timeout")
    assert 4_900 < told["milliseconds"] < 5_400


async def test_hooks_of_one_conversation_keep_their_order(integration: Integration) -> None:
    order = {"conversation_id": "conv-1"}
    for n in range(20):
        await integration.order("POST", "/manager/messages", order | {"message": {"text": str(n)}})
    await integration.manager(conversation_id="conv-1", message={"text": "20"})
    texts = [json.loads(body)["message"]["message"]["text"] for body, _ in integration.hooks]
    assert texts == [str(n) for n in range(21)]


async def test_an_echo_tells_of_what_was_sent_in_a_managers_name() -> None:
    async with integrating(echo=True) as integration:
        await integration.connect()
        sender = {"id": "m-9", "name": "Maria", "ref_id": MARIA}
        _, told = await integration.send(sender=sender, receiver={"id": "u-1", "name": "Ann"})
        await integration.until(lambda: integration.hooks)
    hook = json.loads(integration.hooks[0][0])
    assert hook["message"]["message"]["id"] == told["new_message"]["msgid"]


HOOK_FAULTS = {"skip": 0, "twice": 2, "newline": 1, "forged": 1}


@pytest.mark.parametrize("action", HOOK_FAULTS)
async def test_a_hook_goes_wrong_as_ordered_and_the_next_one_right(
    integration: Integration, action: str
) -> None:
    await integration.order("POST", "/faults", {"where": "hook.message", "action": action})
    await integration.manager(conversation_id="conv-1")
    hooks = integration.hooks[:]
    assert len(hooks) == HOOK_FAULTS[action]
    for body, signature in hooks:
        assert body.endswith(b"\n") == (action == "newline")
        assert (signature == hook_signature(CHANNEL_SECRET, body.rstrip(b"\n"))) == (action != "forged")
    await integration.manager(conversation_id="conv-1")
    assert len(integration.hooks) == len(hooks) + 1


async def test_a_known_id_can_come_again_with_other_content(integration: Integration) -> None:
    for text in ("one", "two"):
        await integration.manager(conversation_id="conv-1", message={"id": "x-1", "text": text})
    texts = [json.loads(body)["message"]["message"]["text"] for body, _ in integration.hooks]
    assert texts == ["one", "two"]
    assert [one["message"]["text"] for one in (await integration.kommo())["messages"]] == ["one"]


async def test_any_bytes_can_be_a_hook(integration: Integration) -> None:
    _, told = await integration.order("POST", "/hooks?wait=1", {"raw": '{"half":'})
    assert told["status"] == 200
    assert integration.hooks == [(b'{"half":', hook_signature(CHANNEL_SECRET, b'{"half":'))]


@pytest.mark.parametrize("status", ["500", "503", "429", "403", "404", "400"])
async def test_an_endpoint_answers_as_ordered_and_does_nothing(integration: Integration, status: int) -> None:
    fault = {"where": "kommo.new_message", "action": status, "times": 2, "retry_after": 3}
    assert (await integration.order("POST", "/faults", fault))[0] == 201
    assert [(await integration.send())[0] for _ in range(3)] == [int(status), int(status), 200]
    assert [one["repeats"] for one in (await integration.kommo())["messages"]] == [0]


async def test_a_fault_can_be_for_one_conversation_and_until_it_is_cleared(integration: Integration) -> None:
    await integration.order(
        "POST", "/faults", {"where": "kommo", "action": "500", "times": None, "conversation_id": "c"}
    )
    assert [(await integration.send(conversation_id="c"))[0] for _ in range(3)] == [500] * 3
    assert (await integration.send(conversation_id="d"))[0] == 200
    await integration.order("DELETE", "/faults")
    assert (await integration.send(conversation_id="c", msgid="m-2"))[0] == 200


async def test_every_second_call_can_fail(integration: Integration) -> None:
    await integration.order("POST", "/faults", {"where": "kommo", "action": "503", "times": None, "every": 2})
    assert [(await integration.send(msgid=f"m-{n}"))[0] for n in range(4)] == [200, 503, 200, 503]


@pytest.mark.parametrize(("action", "done"), [("drop", 0), ("drop_after", 1)])
async def test_a_connection_is_cut_before_or_after_the_work(
    integration: Integration, action: str, done: int
) -> None:
    await integration.order("POST", "/faults", {"where": "kommo.new_message", "action": action})
    with pytest.raises(aiohttp.ClientConnectionError):
        await integration.send()
    assert len((await integration.kommo())["messages"]) == done


async def test_a_slow_endpoint_has_done_its_work_before_it_answers(integration: Integration) -> None:
    await integration.order("POST", "/faults", {"where": "kommo", "action": "slow", "seconds": 0.4})
    sending = asyncio.create_task(integration.send())
    await asyncio.sleep(0.2)
    assert len((await integration.kommo())["messages"]) == 1
    assert not sending.done()
    assert (await sending)[0] == 200


async def test_a_block_page_is_html(integration: Integration) -> None:
    await integration.order("POST", "/faults", {"where": "kommo", "action": "html"})
    async with integration.client.post(integration.url + ORIGIN + SCOPE_ID, data=b"{}") as answer:
        assert (answer.status, answer.content_type) == (403, "text/html")


BAD_ORDERS = [
    ("/faults", {"where": "kommo", "action": "explode"}),
    ("/faults", {"where": "nowhere", "action": "500"}),
    ("/faults", {"where": "hook", "action": "500"}),
    ("/faults", {"where": "kommo", "action": "500", "times": 0}),
    ("/faults", {"where": "kommo", "action": "slow", "seconds": 1e9}),
    ("/manager/messages", {"conversation_id": "conv-1"}),
    ("/manager/messages", {"message": {"text": "to nobody"}}),
    ("/manager/messages", {"conversation_id": "conv-1", "message": {"type": "poll"}}),
    ("/manager/messages", {"conversation_id": "conv-1", "message": {}, "misspelt": 1}),
    ("/customer/statuses", {"conversation_id": "conv-1", "status": "read"}),
    ("/customer/messages", {"conversation_id": 7}),
]


@pytest.mark.parametrize(("path", "order"), BAD_ORDERS)
async def test_a_bad_order_is_400_and_says_why(
    integration: Integration, path: str, order: dict[str, Any]
) -> None:
    status, told = await integration.order("POST", path, order)
    assert status == 400
    assert told["error"]


@pytest.mark.parametrize("path", ["/kommo?limit=x", "/messenger?after=-1", "/hooks?limit="])
async def test_a_bad_page_is_400(integration: Integration, path: str) -> None:
    assert (await integration.order("GET", path))[0] == 400


async def test_messages_can_be_read_in_pages(integration: Integration) -> None:
    for n in range(5):
        await integration.send(msgid=f"m-{n}")
    _, first = await integration.order("GET", "/kommo?only=messages&limit=3")
    after = first["messages"][-1]["n"]
    _, rest = await integration.order("GET", f"/kommo?only=messages&after={after}")
    ids = [one["client_id"] for one in first["messages"] + rest["messages"]]
    assert ids == [f"m-{n}" for n in range(5)]


async def test_orders_of_other_sites_are_refused(integration: Integration) -> None:
    headers = {"Origin": "https://example.com"}
    answer = await integration.request("POST", "/control/faults", json={}, headers=headers)
    assert answer[0] == 403


async def test_the_state_can_be_cleared_without_disconnecting(integration: Integration) -> None:
    await integration.send()
    await integration.order("DELETE", "/state?keep=connections")
    told = await integration.kommo()
    assert (told["messages"], told["chats"], len(told["connections"])) == ([], [], 1)
    assert (await integration.send())[0] == 200
