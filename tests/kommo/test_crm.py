"""Kommo's CRM through the service: what is asked, what never reaches Kommo, and what Kommo refuses."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from yarl import URL

from app.servers.servers import Servers
from tests.support.crm_service import HERE, Office, office_of
from tests.support.ids import ACCOUNT, ADMIN_KEY, MARIA, OTHER_ACCOUNT
from tests.support.service import Answer

NOBODY = "11111111-1111-4111-8111-111111111111"
WABA = [{"type": "whatsapp", "params": {"waba": True}}]


@pytest_asyncio.fixture(scope="module")
async def shared(servers: Servers) -> AsyncIterator[Office]:
    async with office_of(servers) as one:
        assert (await one.register()).status == 201
        assert (await one.connect()).status == 201
        await one.consent()
        yield one


@pytest_asyncio.fixture
async def office(shared: Office) -> AsyncIterator[Office]:
    yield shared
    async with shared.client.delete(f"{shared.sandbox.url}/control/faults") as answer:
        assert answer.status == 204


async def done(office: Office, method: str, path: str, content: object = None, status: int = 200) -> Any:
    """The body of an answer that must have this status."""
    answer = await office.ask(method, HERE + path, content)
    assert answer.status == status, answer
    return answer.body


async def refused(office: Office, method: str, path: str, content: object, status: int) -> str:
    """The detail of a refusal."""
    answer = await office.ask(method, HERE + path, content)
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    return str(answer.body["detail"])


async def source(office: Office, external_id: str, **more: Any) -> Any:
    order = {"items": [{"name": "A shop", "external_id": external_id} | more]}
    return (await done(office, "POST", "/sources", order, 201))["items"][0]


async def template(office: Office, **more: Any) -> Any:
    order = {"items": [{"name": "Greeting", "content": "Hello {{contact.name}}"} | more]}
    return (await done(office, "POST", "/templates", order, 201))["items"][0]


# Users.


async def test_users_have_the_ids_that_chats_name_them_by(office: Office) -> None:
    users = (await done(office, "GET", "/users"))["items"]
    names = {user["amojo_id"]: user["name"] for user in users}
    assert names[MARIA] == "Maria Keller"
    assert None in names  # Who was never in a chat has none.


async def test_a_managers_name_stands_in_the_history(office: Office) -> None:
    conversation, _ = await office.chat("conv-names")
    listed = await office.get(f"/v1/conversations/{conversation}/messages")
    [message] = listed["items"]
    assert message["sender"]["name"] == "Maria Keller"
    shown = await office.get(f"/v1/messages/{message['id']}")
    assert (shown["sender"]["name"], shown["timeline"][0]["type"]) == ("Maria Keller", "message.sent")


# Sources.


async def test_a_source_is_made_found_changed_and_deleted(office: Office) -> None:
    made = await source(office, "shop-1", default=True, services=WABA)
    assert (made["external_id"], made["default"], made["services"]) == ("shop-1", True, WABA)
    found = await done(office, "GET", "/sources?external_id=shop-1")
    assert [one["id"] for one in found["items"]] == [made["id"]]
    change = {"items": [{"id": made["id"], "name": "The shop"}]}
    assert (await done(office, "PATCH", "/sources", change))["items"][0]["name"] == "The shop"
    assert (await done(office, "GET", f"/sources/{made['id']}"))["name"] == "The shop"
    assert await done(office, "DELETE", f"/sources/{made['id']}", status=204) is None
    await refused(office, "GET", f"/sources/{made['id']}", None, 404)
    assert await done(office, "GET", "/sources?external_id=shop-1") == {"items": []}


async def test_fields_that_kommo_adds_are_passed_on(office: Office) -> None:
    made = await source(office, "shop-links")
    assert made["_links"]["self"]["href"].endswith(f"/api/v4/sources/{made['id']}")


@pytest.mark.parametrize(
    "items",
    [
        [],
        [{"name": "A shop", "external_id": "s"}] * 51,
        [{"name": "A shop"}],
        [{"name": "", "external_id": "s"}],
        [{"name": "A shop", "external_id": "x" * 37}],
        [{"name": "A shop", "external_id": "ю"}],
        [{"name": "A shop", "external_id": "s", "services": [{"type": "telegram"}]}],
        [{"name": "A", "external_id": name, "default": True} for name in ("s", "t")],
    ],
    ids=["none", "51", "no id", "no name", "long", "not ascii", "service", "two defaults"],
)
async def test_a_source_that_does_not_fit_never_reaches_kommo(office: Office, items: list[Any]) -> None:
    await office.fault("crm.sources", "403", times=None)
    await refused(office, "POST", "/sources", {"items": items}, 400)


async def test_kommos_refusal_of_a_source_is_told_in_its_words(office: Office) -> None:
    await source(office, "shop-2")
    order = {"items": [{"name": "A", "external_id": "shop-3"}, {"name": "B", "external_id": "shop-2"}]}
    answer = await office.ask("POST", f"{HERE}/sources", order)
    assert answer.status == 400
    [fault] = answer.body["errors"]
    assert fault == {"path": "1.external_id", "message": "A source with this external_id exists."}
    assert (await done(office, "GET", "/sources?external_id=shop-3"))["items"] == []


# Templates.


async def test_a_template_is_made_found_changed_and_deleted(office: Office) -> None:
    buttons = [{"type": "url", "text": "Shop", "url": "https://shop.example"}]
    made = await template(office, external_id="t-1", buttons=buttons)
    assert (made["external_id"], made["buttons"]) == ("t-1", buttons)
    found = await done(office, "GET", "/templates?external_id=t-1")
    assert [one["id"] for one in found["items"]] == [made["id"]]
    change = {"items": [{"id": made["id"], "content": "Good day"}]}
    assert (await done(office, "PATCH", "/templates", change))["items"][0]["content"] == "Good day"
    assert (await done(office, "GET", f"/templates/{made['id']}"))["content"] == "Good day"
    assert await done(office, "DELETE", f"/templates/{made['id']}", status=204) is None
    await refused(office, "GET", f"/templates/{made['id']}", None, 404)


async def test_a_whatsapp_template_is_reviewed_source_by_source(office: Office) -> None:
    shop = await source(office, "waba-1", services=WABA)
    waba = {"type": "waba", "waba_category": "UTILITY", "waba_language": "en", "waba_header": "Hi"}
    made = await template(office, **waba, waba_header_type="text", waba_footer="Bye")
    reviews = (await done(office, "POST", f"/templates/{made['id']}/review"))["items"]
    [review] = [one for one in reviews if one["source_id"] == shop["id"]]
    path = f"/templates/{made['id']}/review/{review['id']}"
    verdict = {"status": "rejected", "reject_reason": "no header"}
    told = await done(office, "POST", path, verdict)
    assert (told["status"], told["reject_reason"]) == ("rejected", "no header")
    shown = await done(office, "GET", f"/templates/{made['id']}")
    assert shown["_embedded"]["reviews"][0]["status"] == "rejected"
    await refused(office, "PATCH", "/templates", {"items": [{"id": made["id"], "name": "No draft"}]}, 400)


@pytest.mark.parametrize(
    "more",
    [
        {"name": ""},
        {"waba_header": "x" * 61},
        {"type": "email"},
        {"buttons": [{"type": "call", "text": "x"}]},
    ],
    ids=lambda more: next(iter(more)),
)
async def test_a_template_that_does_not_fit_never_reaches_kommo(office: Office, more: dict[str, Any]) -> None:
    await office.fault("crm.templates", "403", times=None)
    order = {"items": [{"name": "Greeting", "content": "Hello"} | more]}
    await refused(office, "POST", "/templates", order, 400)


# Talks and incoming leads.


async def test_a_talk_is_read_and_closed_once(office: Office) -> None:
    chat = await office.customer("conv-talk")
    talk = next(one for one in office.sandbox.crm_state.talks if one.chat_id == chat.id)
    told = await done(office, "GET", f"/talks/{talk.id}")
    assert (told["talk_id"], told["chat_id"], told["is_in_work"]) == (talk.id, chat.id, True)
    assert await done(office, "POST", f"/talks/{talk.id}/close", {}, 202) is None
    assert not (await done(office, "GET", f"/talks/{talk.id}"))["is_in_work"]
    assert "closed" in await refused(office, "POST", f"/talks/{talk.id}/close", {}, 422)


async def test_a_talk_that_is_not_there_is_told(office: Office) -> None:
    assert "no such talk" in await refused(office, "GET", "/talks/1", None, 404)


async def test_an_incoming_lead_is_accepted_once(office: Office) -> None:
    incoming = await arriving(office, "conv-accept")
    told = await done(office, "POST", f"/leads/{incoming.id}/accept", {})
    assert (told["uid"], len(told["_embedded"]["leads"])) == (incoming.id, 1)
    assert "settled" in await refused(office, "POST", f"/leads/{incoming.id}/accept", {}, 404)


async def test_an_incoming_lead_is_declined(office: Office) -> None:
    incoming = await arriving(office, "conv-decline")
    told = await done(office, "POST", f"/leads/{incoming.id}/decline", {})
    assert (told["uid"], incoming.action) == (incoming.id, "decline")


async def test_an_incoming_lead_is_joined_with_one_that_is_there(office: Office) -> None:
    first = await arriving(office, "conv-first")
    [lead] = (await done(office, "POST", f"/leads/{first.id}/accept", {}))["_embedded"]["leads"]
    second = await arriving(office, "conv-second")
    order = {"entity_id": lead["id"], "entity_type": "leads", "contact_id": first.contact_id}
    await done(office, "POST", f"/leads/{second.id}/link", order)
    assert (second.action, second.lead_id, second.contact_id) == ("link", lead["id"], first.contact_id)


@pytest.mark.parametrize("uid", ["..%2F..%2F..%2Fusers%3F", "%2E%2E", "a%20b", "x" * 200])
async def test_a_uid_cannot_lead_elsewhere(office: Office, uid: str) -> None:
    await office.fault("crm", "500", times=None)
    url = URL(f"{office.url}{HERE}/leads/{uid}/accept", encoded=True)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
    async with office.client.post(url, data=b"{}", headers=headers) as answer:
        assert answer.status == 404


async def test_a_user_who_is_not_there_cannot_accept(office: Office) -> None:
    incoming = await arriving(office, "conv-nobody")
    assert "no such user" in await refused(
        office, "POST", f"/leads/{incoming.id}/accept", {"user_id": 1}, 400
    )


async def arriving(office: Office, conversation: str) -> Any:
    """The incoming lead of a new chat."""
    chat = await office.customer(conversation)
    return next(one for one in office.sandbox.crm_state.incoming if one.chat_id == chat.id)


# Links.


async def link(office: Office, conversation: str, contact_id: int) -> Answer:
    return await office.ask("POST", f"/v1/conversations/{conversation}/link", {"contact_id": contact_id})


async def contact(office: Office, conversation: str) -> int:
    """A contact of the CRM."""
    return int((await arriving(office, conversation)).contact_id)


async def test_a_chat_is_linked_to_a_contact_at_kommo_and_here(office: Office) -> None:
    conversation, chat_id = await office.chat("conv-link")
    one = await contact(office, "conv-contact")
    head = await office.head()
    answer = await link(office, conversation, one)
    assert answer.status == 201
    assert answer.body == {"id": conversation, "chat_id": chat_id, "contact_id": one}
    [event] = await office.since(head)
    assert (event["type"], event["by"], event["contact_id"]) == ("conversation.linked", "operator", one)
    at_least = answer.headers["Ledger-Position"]
    assert (await office.get(f"/v1/conversations/{conversation}", at_least=at_least))["contact_id"] == one
    [told] = (await done(office, "GET", f"/links?chat_id={chat_id}"))["items"]
    assert (told["chat_id"], told["contact_id"]) == (chat_id, one)


async def test_the_same_link_again_is_no_news_and_another_is(office: Office) -> None:
    conversation, _ = await office.chat("conv-relink")
    one, two = await contact(office, "conv-c1"), await contact(office, "conv-c2")
    assert (await link(office, conversation, one)).status == 201
    head = await office.head()
    assert (await link(office, conversation, one)).status == 200
    assert await office.head() == head
    assert (await link(office, conversation, two)).status == 201
    assert await office.types(head) == ["conversation.linked"]


@pytest.mark.parametrize(("fault", "status"), [("403", 502), ("500", 502), ("422", 422)])
async def test_what_kommo_refuses_to_link_is_not_recorded(office: Office, fault: str, status: int) -> None:
    conversation, _ = await office.chat(f"conv-{fault}")
    one, head = await contact(office, f"conv-c-{fault}"), await office.head()
    await office.fault("crm.links", fault, times=None)
    assert (await link(office, conversation, one)).status == status
    assert await office.head() == head


async def test_a_contact_that_is_not_there_cannot_be_linked(office: Office) -> None:
    conversation, _ = await office.chat("conv-no-contact")
    answer = await link(office, conversation, 1)
    assert (answer.status, "no such contact" in answer.body["detail"]) == (400, True)


async def test_a_chat_that_kommo_has_not_named_yet_is_asked_for(office: Office) -> None:
    action = {
        "type": "message.sent",
        "conversation_id": "conv-unborn",
        "message_id": "m-unborn",
        "at": "2026-01-01T00:00:00Z",
        "sender": {"id": "u-1", "name": "Ann"},
        "message": {"type": "text", "text": "Hello"},
    }
    assert (await office.act(action | {"account_id": ACCOUNT})).status == 200
    found = await office.get("/v1/conversations", conversation_id="conv-unborn", at_least=await office.head())
    [chat] = found["items"]
    assert chat["chat_id"] is None
    one = await contact(office, "conv-c-unborn")
    answer = await link(office, chat["id"], one)
    assert (answer.status, answer.body["contact_id"]) == (201, one)
    now = await office.get(f"/v1/conversations/{chat['id']}", at_least=answer.headers["Ledger-Position"])
    assert (now["chat_id"], now["contact_id"]) == (answer.body["chat_id"], one)
    await office.customer("conv-unborn")
    [told] = (await done(office, "GET", f"/links?chat_id={now['chat_id']}"))["items"]
    assert told["contact_id"] == one


async def test_a_conversation_that_is_not_there_cannot_be_linked(office: Office) -> None:
    assert (await link(office, NOBODY, 1)).status == 404


# CRM webhooks.


async def test_kommos_crm_is_told_where_to_call_us(office: Office) -> None:
    told = await done(office, "POST", "/webhooks", status=201)
    assert told["destination"].startswith(f"{office.url}/crm/{ACCOUNT}/")
    assert {"add_talk", "update_talk", "add_unsorted", "delete_unsorted"} <= set(told["settings"])
    again = await done(office, "POST", "/webhooks", status=201)
    listed = (await done(office, "GET", "/webhooks"))["items"]
    assert [one["id"] for one in listed] == [told["id"]] == [again["id"]]


async def test_the_address_of_webhooks_is_renewed_and_the_old_one_refused(office: Office) -> None:
    old = (await done(office, "POST", "/webhooks", status=201))["destination"]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (
        await office.request("POST", old.removeprefix(office.url), data=b"a=1", headers=form)
    ).status == 200
    new = (await done(office, "POST", "/webhooks/renew"))["destination"]
    assert new.startswith(f"{office.url}/crm/{ACCOUNT}/")
    assert new != old
    for address, status in ((old, 404), (new, 200)):
        path = address.removeprefix(office.url)
        assert (await office.request("POST", path, data=b"a=1", headers=form)).status == status
    listed = (await done(office, "GET", "/webhooks"))["items"]
    assert [one["destination"] for one in listed] == [new]
    assert (await done(office, "POST", "/webhooks", status=201))["destination"] == new


async def test_an_address_that_kommo_does_not_take_leaves_the_old_one_in_force(office: Office) -> None:
    old = (await done(office, "POST", "/webhooks", status=201))["destination"]
    await office.fault("crm.webhooks", "403", times=None)
    assert (await office.ask("POST", f"{HERE}/webhooks/renew")).status == 502
    office.sandbox.faults.clear()
    assert (await done(office, "POST", "/webhooks", status=201))["destination"] == old


async def test_a_time_far_ahead_does_not_stop_what_comes_later(office: Office) -> None:
    path = (await done(office, "POST", "/webhooks", status=201))["destination"].removeprefix(office.url)
    head, now = await office.head(), int(time.time())
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for at, read in ((now + 90 * 86_400, 0), (now + 60, 1)):
        form = (
            f"talk[update][0][talk_id]=9001&talk[update][0][updated_at]={at}&talk[update][0][is_read]={read}"
        )
        assert (await office.request("POST", path, data=form.encode(), headers=headers)).status == 200
    ahead, later = [event["changed"] for event in await office.since(head)]
    assert abs(ahead - now) < 60
    assert later == now + 60


async def test_what_happens_in_the_crm_reaches_the_ledger(office: Office) -> None:
    await done(office, "POST", "/webhooks", status=201)
    head = await office.head()
    await office.customer("conv-told")
    async with asyncio.timeout(10):
        while not {"talk.added", "lead.received"} <= set(await office.types(head)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_settings_that_kommo_does_not_know_are_left_out(office: Office) -> None:
    body = {"title": "Bad Request", "status": 400, "detail": "There is no event add_unsorted."}
    await office.fault("crm.webhooks", "400", body=body)
    told = await done(office, "POST", "/webhooks", status=201)
    assert told["settings"] == ["add_talk", "update_talk", "add_message", "add_chat_template_review"]


# Whoever has not let us in.


async def test_an_account_that_has_not_let_us_in_is_told_what_to_do(office: Office) -> None:
    answer = await office.ask("GET", f"/v1/accounts/{OTHER_ACCOUNT}/users")
    assert answer.status == 409
    assert f"POST /v1/accounts/{OTHER_ACCOUNT}/authorize" in answer.body["detail"]


async def test_accounts_are_for_the_admin_only(office: Office) -> None:
    assert (await office.ask("GET", "/v1/accounts", key=None)).status == 401
    assert (await office.ask("GET", f"{HERE}/users", key="wrong")).status == 401
