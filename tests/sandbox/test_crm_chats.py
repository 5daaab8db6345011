"""What chats and the CRM mean to each other, how hooks slow down, and what the documents disagree on."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from ops.sandbox import Channel
from ops.sandbox.chats.hook_queue import IN_A_ROW, SLOW_ANSWER_SECONDS, HookQueue
from tests.support.crm_client import Office, fresh_office, office
from tests.support.ids import BOT, CHANNEL, CHANNEL_SECRET, CLIENT, MARIA, SCOPE_ID
from tests.support.sandbox_client import ORIGIN


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Office]:
    async with office() as one:
        yield one


@pytest_asyncio.fixture
async def crm(shared: Office) -> Office:
    return await fresh_office(shared)


async def hooked(crm: Office, **order: Any) -> Any:
    """The hook that a manager's message makes."""
    status, told = await crm.chats.order("POST", "/manager/messages?wait=1", order)
    assert (status, told["status"]) == (201, 200), told
    return json.loads(crm.chats.hooks[-1][0])["message"]


# Managers.


async def test_a_template_comes_raw_with_its_params_and_its_buttons(crm: Office) -> None:
    told = {
        "name": "Hi",
        "content": "Hello {{contact.name}}",
        "external_id": "t-1",
        "buttons": [{"type": "inline", "text": "Yes"}],
    }
    _, made = await crm.post("/chats/templates", [told])
    one = made["_embedded"]["chat_templates"][0]["id"]
    await crm.chats.send()
    hook = await hooked(crm, conversation_id="conv-1", template_id=one, params={"contact.name": "Ann"})
    assert hook["message"]["text"] == "Hello Ann"
    assert hook["message"]["template"] == {
        "id": one,
        "external_id": "t-1",
        "content": "Hello {{contact.name}}",
        "params": [{"key": "{{contact.name}}", "value": "Ann"}],
    }
    assert hook["message"]["markup"] == {"mode": "inline", "buttons": [[{"text": "Yes"}]]}


async def test_a_manager_writes_first_by_a_source_and_the_reply_binds_both(crm: Office) -> None:
    await crm.post("/sources", [{"name": "Shop", "external_id": "shop"}])
    missing = {"phone": "+15550100", "source": "none", "message": {"text": "Hi"}}
    assert (await crm.chats.order("POST", "/manager/messages", missing))[0] == 404
    hook = await hooked(crm, phone="+15550100", source="shop", message={"text": "Hi"})
    assert (hook["source"], hook["receiver"]["phone"]) == ({"external_id": "shop"}, "+15550100")
    assert "client_id" not in hook["conversation"]
    sender = {"id": "u-9", "name": "Eve", "ref_id": hook["receiver"]["id"]}
    ids = {"conversation_id": "conv-9", "conversation_ref_id": hook["conversation"]["id"]}
    assert (await crm.chats.send(sender=sender, **ids))[0] == 200
    again = await hooked(crm, conversation_id="conv-9", message={"text": "Hi"})
    assert (again["conversation"]["id"], again["receiver"]["client_id"]) == (
        ids["conversation_ref_id"],
        "u-9",
    )
    assert again["source"] == {"external_id": "shop"}


async def test_a_comment_is_answered_with_a_text(crm: Office) -> None:
    post = {"id": "p-1", "url": "https://example.com/p"}
    await crm.chats.send(message={"type": "text", "text": "Nice", "post": post})
    hook = await hooked(crm, conversation_id="conv-1", message={"text": "Thanks", "post": {"id": "p-1"}})
    assert hook["message"]["post"] == {"id": "p-1"}
    picture = {"type": "picture", "media": "https://a.b/c", "post": {"id": "p-1"}}
    order = {"conversation_id": "conv-1", "message": picture}
    assert (await crm.chats.order("POST", "/manager/messages", order))[0] == 400


async def test_the_comments_on_a_post_are_a_talk_of_their_own(crm: Office) -> None:
    post = {"id": "p-1", "url": "https://example.com/p"}
    await crm.chats.send()
    for n in range(2, 4):
        await crm.chats.send(msgid=f"m-{n}", message={"type": "text", "text": "Nice", "post": post})
    assert len((await crm.crm())["talks"]) == 2
    await hooked(crm, conversation_id="conv-1", message={"text": "Thanks", "post": {"id": "p-1"}})
    assert [one["is_read"] for one in (await crm.crm())["talks"]] == [False, True]
    incoming = (await crm.crm())["incoming"]
    await crm.order("/incoming", uid=incoming[0]["id"], action="accept")
    assert len(incoming) == 1
    assert all(one["entity_id"] for one in (await crm.crm())["talks"])


async def test_a_list_message_goes_into_the_hook_as_it_is(crm: Office) -> None:
    row = {"callback_data": "r-1", "title": "Red", "description": ""}
    markup = {"list_message": {"body": "Pick", "button": "Open", "sections": [{"title": "A", "rows": [row]}]}}
    await crm.chats.send()
    hook = await hooked(crm, conversation_id="conv-1", message={"text": "Pick", "markup": markup})
    assert hook["message"]["markup"] == markup
    chosen = {"type": "text", "text": "Red", "callback_data": "r-1"}
    assert (await crm.chats.send(msgid="m-2", message=chosen))[0] == 200


# What the integration sends.


async def test_a_message_in_a_managers_name_answers_the_talk(crm: Office) -> None:
    await crm.chats.send()
    sender = {"id": "m", "name": "Maria", "ref_id": MARIA}
    await crm.chats.send(msgid="m-2", sender=sender, receiver={"id": "u-1", "name": "Ann"})
    assert [one["is_read"] for one in (await crm.crm())["talks"]] == [True]


async def test_the_bot_of_another_channel_is_nobody() -> None:
    other = Channel("c0000000-f8ca-454d-af3d-396180102ac7", "0" * 40)
    async with office(channels=(Channel(CHANNEL, CHANNEL_SECRET, BOT), other)) as crm:
        await fresh_office(crm)
        to = {"id": "u-1", "name": "Ann"}
        statuses = [
            (await crm.chats.send(sender={"id": "b", "name": "Bot", "ref_id": bot}, receiver=to))[0]
            for bot in (other.bot_id, BOT)
        ]
        assert statuses == [400, 200]


async def test_a_channel_of_another_integration_keeps_its_chats() -> None:
    async with office(channels=(Channel(CHANNEL, CHANNEL_SECRET, BOT, "another"),)) as crm:
        await fresh_office(crm)
        await crm.chats.send()
        chat = (await crm.chats.kommo())["chats"][0]["id"]
        _, made = await crm.post("/contacts", [{"name": "Ann"}])
        order = [{"contact_id": made["_embedded"]["contacts"][0]["id"], "chat_id": chat}]
        assert (await crm.post("/contacts/chats", order))[0] == 403
    assert CLIENT != "another"


@pytest.mark.parametrize("quote", [{"message": {"msgid": "m-1"}}, {"msgid": "m-1"}], ids=["nested", "flat"])
async def test_a_quote_is_taken_in_both_shapes(crm: Office, quote: dict[str, Any]) -> None:
    await crm.chats.send()
    assert (await crm.chats.send(msgid="m-2", reply_to=quote))[0] == 200
    assert (await crm.chats.send(msgid="m-3", reply_to={}))[0] == 400
    assert (await crm.chats.send(msgid="m-4", conversation_id="conv-2", reply_to=quote))[0] == 400


async def test_an_edit_may_carry_the_status(crm: Office) -> None:
    await crm.chats.send()
    one = (await crm.chats.manager(conversation_id="conv-1"))[1]["id"]

    async def edit(**status: object) -> int:
        content = {"type": "text", "text": "Hi", "delivery_status": status}
        payload = {"timestamp": 1, "msec_timestamp": 1, "conversation_id": "conv-1", "id": one}
        body = {"event_type": "edit_message", "payload": payload | {"message": content}}
        return (await crm.chats.post("", body))[0]

    assert [await edit(status_code=-1), await edit(status_code=-1, error_code=904)] == [400, 200]
    assert [call["error_code"] for call in (await crm.chats.kommo())["statuses"]] == [904]


# Speed.


async def test_the_chats_api_can_be_limited_too() -> None:
    async with office(chats_per_second=5) as crm:
        await fresh_office(crm)
        answers = await asyncio.gather(*(crm.chats.send(msgid=f"m-{n}") for n in range(20)))
        refused = [told for status, told in answers if status == 429]
        assert refused
        assert refused[0]["error_type"] == "too_many_requests"
        assert len((await crm.chats.kommo())["messages"]) == 20 - len(refused)


def test_bad_hooks_in_a_row_lead_into_the_slow_queue_and_good_ones_out() -> None:
    pace = HookQueue()
    for _ in range(IN_A_ROW - 1):
        pace.tell("s", 500, 0.0)
    pace.tell("s", 200, 0.0)
    assert pace.queue("s") == "fast"
    for status, seconds in [(None, 5.0), (500, 0.0), (200, SLOW_ANSWER_SECONDS), (204, 0.0), (404, 0.0)]:
        pace.tell("s", status, seconds)
    assert pace.queue("s") == "slow"
    for _ in range(IN_A_ROW):
        pace.tell("s", 200, 0.0)
    assert pace.queue("s") == "fast"


async def test_a_failing_integration_is_seen_in_the_slow_queue() -> None:
    async with office(slow_seconds=0.2) as crm:
        await fresh_office(crm)
        await crm.chats.send()
        crm.chats.hook_status = 500
        for _ in range(IN_A_ROW):
            await crm.chats.manager(conversation_id="conv-1")
        _, told = await crm.chats.order("GET", "/hooks")
        assert told["queues"][SCOPE_ID]["queue"] == "slow"
        crm.chats.hook_status = 200
        for _ in range(IN_A_ROW + 1):
            await crm.chats.manager(conversation_id="conv-1")
        _, told = await crm.chats.order("GET", "/hooks")
        assert [one["queue"] for one in told["hooks"][IN_A_ROW:]] == ["slow"] * IN_A_ROW + ["fast"]
        late = told["hooks"][IN_A_ROW]
        assert late["sent_ns"] - late["queued_ns"] >= 0.2e9


async def test_a_private_channel_says_so(crm: Office) -> None:
    status, told = await crm.chats.call(
        "POST", f"{ORIGIN}{CHANNEL}/connect", {"account_id": "another", "hook_api_version": "v2"}
    )
    assert (status, "private channel" in told["error_description"]) == (403, True)
