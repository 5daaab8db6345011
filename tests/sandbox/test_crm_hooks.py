"""Chats make incoming leads and talks, and who subscribed is told, again when it was not taken."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
import pytest_asyncio

from ops.sandbox.api.accounts import user_number
from ops.sandbox.config import MANAGERS
from ops.sandbox.crm.webhooks import Try, form, wait_seconds
from tests.support.crm_client import Office, fresh_office, incoming, office
from tests.support.ids import CRM_ID

ALL = ("add_talk", "update_talk", "add_unsorted", "update_unsorted", "delete_unsorted", "add_message")


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Office]:
    async with office() as one:
        yield one


@pytest_asyncio.fixture
async def crm(shared: Office) -> Office:
    one = await fresh_office(shared)
    await one.subscribe(*ALL)
    return one


def test_a_form_is_built_as_php_builds_it() -> None:
    content: dict[str, object] = {"a": {"b": [{"c": 1, "d": True, "e": None}, {"c": "x y"}]}}
    assert parse_qsl(form(content), keep_blank_values=True) == [
        ("a[b][0][c]", "1"),
        ("a[b][0][d]", "1"),
        ("a[b][0][e]", ""),
        ("a[b][1][c]", "x y"),
    ]


def tries(*statuses: int) -> list[Try]:
    return [Try(status=one, sent_ns=0, answered_ns=0) for one in statuses]


@pytest.mark.parametrize(
    ("statuses", "seconds"),
    [
        ((200,), None),
        ((299,), None),
        ((0,), 300),
        ((302,), 300),
        ((404,), 300),
        ((404, 404), 900),
        ((404, 404, 404), None),
        ((404, 404, 503), 900),
        ((500, 500, 500, 499), 3600),
        ((500, 500, 500, 0), None),
        ((500,) * 5, None),
    ],
)
def test_tries_are_as_far_apart_as_documented(statuses: tuple[int, ...], seconds: int | None) -> None:
    assert wait_seconds(tries(*statuses)) == seconds


async def test_a_first_message_makes_an_incoming_lead_a_talk_and_three_webhooks(crm: Office) -> None:
    uid = await incoming(crm)
    await crm.chats.until(lambda: len(crm.told) == 3)
    lead, talk, message = crm.told
    assert set(crm.agents) == {"amoCRM-Webhooks/3.0"}
    for told in crm.told:
        assert (told["account[id]"], told["account[subdomain]"]) == (str(CRM_ID), "acme")
    assert lead["unsorted[add][0][uid]"] == uid
    assert (lead["unsorted[add][0][category]"], lead["unsorted[add][0][metadata][from]"]) == ("chats", "Ann")
    assert (talk["talk[add][0][is_in_work]"], talk["talk[add][0][is_read]"]) == ("1", "0")
    assert message["message[add][0][text]"] == "Hello"
    assert message["message[add][0][author][type]"] == "external"
    chat = (await crm.chats.kommo())["chats"][0]["id"]
    names = (
        (lead, "unsorted[add][0][metadata][origin][chat_id]"),
        (talk, "talk[add][0][chat_id]"),
        (message, "message[add][0][chat_id]"),
    )
    assert [told[name] for told, name in names] == [chat] * 3


async def test_a_silent_message_makes_nothing(crm: Office) -> None:
    await crm.chats.send(silent=True)
    told = await crm.crm()
    assert (told["incoming"], told["talks"], told["contacts"]) == ([], [], [])


async def test_a_contact_is_hidden_in_its_incoming_lead_but_its_link_is_seen(crm: Office) -> None:
    await incoming(crm)
    assert (await crm.get("/contacts"))[0] == 204
    chat = (await crm.chats.kommo())["chats"][0]["id"]
    _, told = await crm.get(f"/contacts/chats?chat_id={chat}")
    [link] = told["_embedded"]["chats"]
    assert (await crm.get(f"/contacts/{link['contact_id']}"))[0] == 204


async def test_an_accepted_lead_has_its_contact_and_its_talk(crm: Office) -> None:
    uid = await incoming(crm)
    status, listed = await crm.get(f"/leads/unsorted?filter[uid]={uid}")
    assert (status, listed["_embedded"]["unsorted"][0]["metadata"]["last_message_text"]) == (200, "Hello")
    user = user_number(MANAGERS[0])
    status, told = await crm.post(f"/leads/unsorted/{uid}/accept", {"user_id": user})
    assert status == 200
    lead, contact = told["_embedded"]["leads"][0]["id"], told["_embedded"]["contacts"][0]["id"]
    await crm.chats.until(lambda: len(crm.told) == 5)
    gone, talk = crm.told[3:]
    assert gone["unsorted[delete][0][action]"] == "accept"
    assert gone["unsorted[delete][0][accept_result][leads][0]"] == str(lead)
    assert gone["unsorted[delete][0][accept_result][contacts][0]"] == str(contact)
    assert gone["unsorted[delete][0][modified_user_id]"] == str(user)
    assert (talk["talk[update][0][entity_id]"], talk["talk[update][0][entity_type]"]) == (str(lead), "lead")
    assert (await crm.get(f"/contacts/{contact}"))[1]["custom_fields_values"][0]["field_code"] == "PHONE"
    assert (await crm.get(f"/leads/{lead}?with=contacts"))[1]["_embedded"]["contacts"][0]["id"] == contact
    assert (await crm.post(f"/leads/unsorted/{uid}/accept", {}))[0] == 404
    assert (await crm.get("/leads/unsorted"))[0] == 204


async def test_a_declined_lead_comes_again_with_the_next_message(crm: Office) -> None:
    uid = await incoming(crm)
    assert (await crm.call("DELETE", f"/leads/unsorted/{uid}/decline", {}))[0] == 200
    await crm.chats.until(lambda: len(crm.told) == 4)
    assert crm.told[3]["unsorted[delete][0][action]"] == "decline"
    assert (await crm.crm())["contacts"] == []
    await crm.chats.send(msgid="m-2")
    _, told = await crm.get("/leads/unsorted")
    assert [one["uid"] for one in told["_embedded"]["unsorted"]] != [uid]


async def test_an_incoming_lead_is_linked_to_a_lead_that_is_there(crm: Office) -> None:
    _, made = await crm.post("/contacts", [{"name": "Bob"}])
    bob = made["_embedded"]["contacts"][0]["id"]
    _, made = await crm.post("/leads", [{"name": "Deal", "_embedded": {"contacts": [{"id": bob}]}}])
    lead, uid = made["_embedded"]["leads"][0]["id"], await incoming(crm)
    link = {"entity_id": lead, "entity_type": "leads", "metadata": {"contact_id": bob}}
    assert (await crm.post(f"/leads/unsorted/{uid}/link", {"link": link | {"entity_id": 1}}))[0] == 400
    assert (await crm.post(f"/leads/unsorted/{uid}/link", {"link": link}))[0] == 200
    talk = (await crm.crm())["talks"][0]
    assert (talk["entity_id"], talk["contact_id"]) == (lead, bob)


@pytest.mark.parametrize("user", [5, "x"])
async def test_a_user_that_is_none_cannot_accept(crm: Office, user: int | str) -> None:
    uid = await incoming(crm)
    assert (await crm.post(f"/leads/unsorted/{uid}/accept", {"user_id": user}))[0] == 400


async def talk(crm: Office) -> Any:
    return (await crm.crm())["talks"][-1]


async def test_a_talk_is_read_when_a_manager_answers_and_unread_when_the_client_does(crm: Office) -> None:
    await incoming(crm)
    await crm.chats.manager(conversation_id="conv-1")
    assert (await talk(crm))["is_read"] is True
    await crm.chats.send(msgid="m-2")
    one = await talk(crm)
    assert one["is_read"] is False
    await crm.chats.until(lambda: len(crm.told) == 6)
    assert [told["talk[update][0][is_read]"] for told in crm.told[3:5]] == ["1", "0"]


async def test_a_closed_talk_is_followed_by_another(crm: Office) -> None:
    await incoming(crm)
    first = (await talk(crm))["id"]
    status, told = await crm.get(f"/talks/{first}")
    assert (status, told["is_in_work"], told["entity_id"], told["missed_at"]) == (200, True, None, None)
    assert (await crm.post(f"/talks/{first}/close", {"force_close": True}))[0] == 202
    assert (await crm.post(f"/talks/{first}/close", {"force_close": True}))[0] == 422
    assert (await crm.get(f"/talks/{first}"))[1]["is_in_work"] is False
    await crm.chats.send(msgid="m-2")
    assert (await talk(crm))["id"] > first
    assert (await crm.get("/talks/1"))[0] == 404


async def test_a_subscription_to_the_same_address_is_changed_not_doubled(crm: Office) -> None:
    await crm.subscribe("add_talk")
    _, told = await crm.get("/webhooks")
    assert [one["settings"] for one in told["_embedded"]["webhooks"]] == [["add_talk"]]
    assert (await crm.subscribe("add_nothing"))[0] == 400
    assert (await crm.post("/webhooks", {"destination": "x", "settings": ["add_talk"]}))[0] == 400
    await incoming(crm)
    await crm.chats.until(lambda: crm.told)
    assert ["talk[add][0][talk_id]" in told for told in crm.told] == [True]
    assert (await crm.call("DELETE", "/webhooks", {"destination": crm.hook_url}))[0] == 204
    assert (await crm.call("DELETE", "/webhooks", {"destination": crm.hook_url}))[0] == 404
    assert (await crm.get("/webhooks"))[0] == 204


async def test_an_account_has_at_most_100_subscriptions(crm: Office) -> None:
    orders = [{"destination": f"http://127.0.0.1:9/{n}", "settings": ["add_lead"]} for n in range(100)]
    statuses = [(await crm.post("/webhooks", order))[0] for order in orders]
    assert statuses == [201] * 99 + [422]


async def test_a_webhook_that_is_not_taken_comes_again_until_it_is(crm: Office) -> None:
    await crm.subscribe("add_talk")
    crm.status = 503
    await incoming(crm)
    await crm.chats.until(lambda: len(crm.told) == 2)
    crm.status = 200
    await crm.chats.until(lambda: len(crm.told) == 3)
    assert crm.told[0] == crm.told[1] == crm.told[2]
    _, told = await crm.chats.order("GET", "/crm/hooks")
    assert [one["status"] for one in told["hooks"][-1]["tries"]] == [503, 503, 200]


async def test_who_takes_none_of_a_hundred_webhooks_is_told_no_more(crm: Office) -> None:
    await crm.subscribe("add_talk", "update_talk", "add_message")
    crm.status = 404  # Two more tries each.
    await incoming(crm)
    one = (await talk(crm))["id"]
    for n in range(40):
        await crm.order("/talks", talk_id=one, rate=n % 5)
    await crm.chats.until(lambda: len(crm.told) > 100)
    _, told = await crm.get("/webhooks")
    assert told["_embedded"]["webhooks"][0]["disabled"] is True
    await crm.subscribe("add_talk")
    assert (await crm.get("/webhooks"))[1]["_embedded"]["webhooks"][0]["disabled"] is False


async def test_a_webhook_can_be_sent_again_and_skipped_and_doubled(crm: Office) -> None:
    await crm.subscribe("add_talk")
    await crm.chats.order("POST", "/faults", {"where": "crmhook.talk", "action": "skip"})
    await incoming(crm)
    _, told = await crm.chats.order("GET", "/crm/hooks")
    [hook] = told["hooks"]
    assert (hook["tries"], crm.told) == ([], [])
    status, done = await crm.chats.order("POST", "/crm/hooks/repeat?wait=1", {"n": hook["n"]})
    assert (status, done["hooks"][0]["outcome"], len(crm.told)) == (201, "ok", 1)
    await crm.chats.order("POST", "/faults", {"where": "crmhook", "action": "twice"})
    await crm.chats.order("POST", "/crm/hooks/repeat?wait=1", {"n": hook["n"]})
    assert len(crm.told) == 3


async def test_people_of_the_crm_act_by_the_control_api(crm: Office) -> None:
    uid = await incoming(crm)
    one = (await talk(crm))["id"]
    status, told = await crm.chats.order("POST", "/crm/talks?wait=1", {"talk_id": one, "is_read": True})
    assert (status, [hook["outcome"] for hook in told["hooks"]]) == (201, ["ok"])
    assert (await crm.order("/talks", chat_id=(await talk(crm))["chat_id"], close=True, rate=5))[0] == 201
    closed = await talk(crm)
    assert (closed["is_in_work"], closed["rate"]) == (False, 5)
    status, told = await crm.order("/incoming", uid=uid, action="accept")
    assert (status, told["lead_id"] > 0) == (201, True)
    assert (await crm.order("/incoming", uid=uid, action="accept"))[0] == 409
    assert (await crm.order("/talks", talk_id=1))[0] == 404
