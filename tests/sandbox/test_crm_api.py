"""The v4 API of the fake CRM: sources, contacts and their chats, templates, with their limits."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.crm_client import Office, contact, fresh_office, new_chat, office, template
from tests.support.ids import MARIA


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Office]:
    async with office() as one:
        yield one


@pytest_asyncio.fixture
async def crm(shared: Office) -> Office:
    return await fresh_office(shared)


async def source(crm: Office, external_id: str = "shop", **more: Any) -> int:
    status, told = await crm.post("/sources", [{"name": "Shop", "external_id": external_id} | more])
    assert status == 200, told
    found: int = told["_embedded"]["sources"][0]["id"]
    return found


def codes(problem: Any) -> list[tuple[str, str, str]]:
    return [
        (part["request_id"], one["code"], one["path"])
        for part in problem["validation-errors"]
        for one in part["errors"]
    ]


# Sources.


async def test_a_source_is_made_read_changed_and_deleted(crm: Office) -> None:
    assert (await crm.get("/sources"))[0] == 204
    services = [
        {"type": "whatsapp", "params": {"waba": True}, "pages": [{"id": "1", "name": "P", "link": "1"}]}
    ]
    one = await source(crm, "15550999", services=services, pipeline_id=7, request_id="r")
    status, told = await crm.get(f"/sources/{one}")
    assert (status, told["external_id"], told["services"], told["default"]) == (
        200,
        "15550999",
        services,
        False,
    )
    _, listed = await crm.get("/sources?filter[external_id][]=15550999")
    assert [found["id"] for found in listed["_embedded"]["sources"]] == [one]
    assert (await crm.get("/sources?filter[external_id]=x"))[0] == 204
    assert (await crm.call("PATCH", f"/sources/{one}", {"name": "Other"}))[1]["name"] == "Other"
    assert (await crm.call("PATCH", "/sources", [{"id": one, "external_id": "15550999"}]))[0] == 200
    assert (await crm.call("DELETE", f"/sources/{one}"))[0] == 204
    assert (await crm.get(f"/sources/{one}"))[0] == 204


BAD_SOURCES: dict[str, tuple[Any, tuple[str, str, str]]] = {
    "no name": ([{"external_id": "a"}], ("0", "FieldMissing", "name")),
    "37 characters": ([{"name": "A", "external_id": "x" * 37}], ("0", "InvalidType", "external_id")),
    "not ASCII": ([{"name": "A", "external_id": "ä"}], ("0", "InvalidType", "external_id")),
    "twice": ([{"name": "A", "external_id": "a"}] * 2, ("1", "NotUnique", "external_id")),
    "a number": ([{"name": "A", "external_id": "a"}, {"name": 1}], ("1", "InvalidType", "name")),
}


@pytest.mark.parametrize(("order", "expected"), BAD_SOURCES.values(), ids=BAD_SOURCES)
async def test_a_source_of_another_shape_is_400_and_none_is_made(
    crm: Office, order: Any, expected: tuple[str, str, str]
) -> None:
    status, problem = await crm.post("/sources", order)
    assert (status, problem["status"]) == (400, 400)
    assert codes(problem) == [expected]
    assert (await crm.get("/sources"))[0] == 204


async def test_there_are_50_sources_in_a_call_and_100_in_all(crm: Office) -> None:
    many = [{"name": "A", "external_id": str(n)} for n in range(101)]
    assert (await crm.post("/sources", many[:51]))[0] == 400
    assert [(await crm.post("/sources", many[n : n + 50]))[0] for n in (0, 50)] == [200, 200]
    assert (await crm.post("/sources", many[100:]))[0] == 400


async def test_an_external_id_stays(crm: Office) -> None:
    one = await source(crm)
    status, problem = await crm.call("PATCH", f"/sources/{one}", {"external_id": "other"})
    assert (status, codes(problem)) == (400, [("0", "Immutable", "external_id")])


async def test_one_source_is_the_default_and_a_deleted_one_has_no_heir(crm: Office) -> None:
    first, second = await source(crm, "a", default=True), await source(crm, "b", default=True)
    assert [(await crm.get(f"/sources/{one}"))[1]["default"] for one in (first, second)] == [False, True]
    await crm.call("DELETE", f"/sources/{second}")
    assert (await crm.get(f"/sources/{first}"))[1]["default"] is False


async def test_of_several_sources_the_missing_ones_are_named_and_the_others_deleted(crm: Office) -> None:
    one = await source(crm)
    status, told = await crm.call("DELETE", "/sources", [{"id": 1}, {"id": one}])
    assert (status, told["errors"][0]["errors"]["code"]) == (404, "EntityNotFound")
    assert (await crm.get("/sources"))[0] == 204


async def hooked_source(crm: Office) -> str | None:
    await crm.chats.manager(conversation_id="conv-1")
    hook = (await crm.chats.order("GET", "/hooks"))[1]["hooks"][-1]["body"]
    return hook.split('"source":{"external_id":"')[1].split('"')[0] if '"source"' in hook else None


async def test_a_chat_follows_the_default_source_until_it_is_bound_to_its_own(crm: Office) -> None:
    await source(crm, "main", default=True)
    await crm.chats.send(source={"external_id": "unknown"})
    assert await hooked_source(crm) == "main"
    other = await source(crm, "other", default=True)
    assert await hooked_source(crm) == "other"
    await crm.chats.send(msgid="m-2", source={"external_id": "main"})
    assert await hooked_source(crm) == "main"
    await crm.chats.send(msgid="m-3")
    assert await hooked_source(crm) == "main"
    await crm.call("DELETE", f"/sources/{other}")
    assert await hooked_source(crm) == "main"


async def test_without_a_default_an_unknown_source_is_none(crm: Office) -> None:
    await crm.chats.send(source={"external_id": "unknown"})
    assert await hooked_source(crm) is None


# Contacts and their chats.


async def test_a_contact_is_made_and_read(crm: Office) -> None:
    assert (await crm.get("/contacts"))[0] == 204
    one = await contact(crm)
    assert (await crm.get(f"/contacts/{one}"))[1]["name"] == "Ann"
    assert [found["id"] for found in (await crm.get("/contacts"))[1]["_embedded"]["contacts"]] == [one]
    assert (await crm.get("/contacts/1"))[0] == 204


async def test_a_chat_is_linked_to_one_contact_and_a_new_link_has_a_new_id(crm: Office) -> None:
    chat, ann, bob = await new_chat(crm), await contact(crm), await contact(crm, "Bob")
    _, first = await crm.post("/contacts/chats", [{"contact_id": ann, "chat_id": chat, "request_id": "r"}])
    [link] = first["_embedded"]["chats"]
    assert (link["contact_id"], link["chat_id"], link["request_id"]) == (ann, chat, "r")
    _, second = await crm.post("/contacts/chats", [{"contact_id": bob, "chat_id": chat}])
    assert second["_embedded"]["chats"][0]["id"] != link["id"]
    _, found = await crm.get(f"/contacts/chats?chat_id[]={chat}")
    assert [one["contact_id"] for one in found["_embedded"]["chats"]] == [bob]
    assert (await crm.get(f"/contacts/chats?contact_id[]={ann}"))[0] == 204
    assert (await crm.get("/contacts/chats"))[0] == 400


async def test_a_linked_chat_makes_no_incoming_lead(crm: Office) -> None:
    chat, ann = await new_chat(crm), await contact(crm)
    await crm.post("/contacts/chats", [{"contact_id": ann, "chat_id": chat}])
    await crm.chats.send()
    told = await crm.crm()
    assert (told["incoming"], [one["contact_id"] for one in told["talks"]]) == ([], [ann])


async def test_a_link_needs_a_chat_and_a_contact_and_no_cookies(crm: Office) -> None:
    chat, ann = await new_chat(crm), await contact(crm)
    status, problem = await crm.post("/contacts/chats", [{"contact_id": 1, "chat_id": "x"}])
    assert status == 400
    assert codes(problem) == [("0", "NotFound", "chat_id"), ("0", "NotFound", "contact_id")]
    order = [{"contact_id": ann, "chat_id": chat}]
    answered = await crm.call("POST", "/contacts/chats", order, headers={"Cookie": "session_id=1"})
    assert answered[0] == 403
    assert (await crm.post("/contacts/chats", [{"contact_id": str(ann), "chat_id": chat}]))[0] == 400


# Templates.


async def test_a_template_is_made_read_changed_and_deleted(crm: Office) -> None:
    assert (await crm.get("/chats/templates"))[0] == 204
    one = await template(
        crm, external_id="t-1", buttons=[{"type": "url", "text": "Go", "url": "https://a.b"}]
    )
    _, told = await crm.get(f"/chats/templates/{one}")
    assert (told["type"], told["is_editable"], told["buttons"][0]["text"]) == ("amocrm", False, "Go")
    assert "review_status" not in told
    _, listed = await crm.get("/chats/templates?filter[external_id]=t-1&with=reviews")
    assert listed["_embedded"]["chat_templates"][0]["review_status"] == "draft"
    assert (await crm.call("PATCH", f"/chats/templates/{one}", {"content": "Bye"}))[1]["content"] == "Bye"
    assert (await crm.call("PATCH", "/chats/templates", [{"id": 1, "content": "?"}]))[0] == 400
    assert (await crm.call("DELETE", "/chats/templates", [{"id": one}]))[0] == 204
    assert (await crm.call("DELETE", f"/chats/templates/{one}"))[0] == 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"type": "other"},
        {"waba_header": "x" * 61},
        {"waba_category": "SPAM"},
        {"buttons": [{"type": "url", "text": "Go"}]},
        {"attachment": {"id": "f", "name": "n", "type": "voice"}},
    ],
)
async def test_a_template_of_another_shape_is_400(crm: Office, wrong: dict[str, Any]) -> None:
    order = [{"name": "Hi", "content": "Hello"} | wrong]
    assert (await crm.post("/chats/templates", order))[0] == 400


async def test_beyond_the_limit_of_templates_is_422(crm: Office) -> None:
    many = [{"name": "Hi", "content": "Hello"}] * 50
    statuses = [(await crm.post("/chats/templates", many))[0] for _ in range(5)]
    assert statuses == [200] * 4 + [422]


async def test_a_whatsapp_template_is_reviewed_by_each_source_and_then_fixed(crm: Office) -> None:
    waba = await source(crm, services=[{"type": "whatsapp", "params": {"waba": True}}])
    one = await template(crm, type="waba", waba_category="UTILITY", waba_language="en")
    await crm.subscribe("add_chat_template_review")
    status, told = await crm.post(f"/chats/templates/{one}/review", {})
    [review] = told["_embedded"]["reviews"]
    assert (status, review["source_id"], review["status"]) == (200, waba, "review")
    await crm.chats.until(lambda: crm.told)
    assert crm.told[0]["add[0][id]"] == str(one)
    assert (crm.told[0]["add[0][is_on_review]"], crm.told[0]["add[0][waba_category]"]) == ("1", "UTILITY")
    assert crm.told[0]["add[0][reviews][0][id]"] == str(review["id"])
    path = f"/chats/templates/{one}/review/{review['id']}"
    assert (await crm.post(path, {"status": "draft"}))[0] == 400
    assert (await crm.post(path, {"status": "approved"}))[1]["status"] == "approved"
    assert (await crm.get(f"/chats/templates/{one}?with=reviews"))[1]["review_status"] == "approved"
    assert (await crm.call("PATCH", f"/chats/templates/{one}", {"content": "Bye"}))[0] == 400


async def test_only_whatsapp_templates_are_reviewed(crm: Office) -> None:
    one, waba = await template(crm), await template(crm, type="waba")
    assert (await crm.post(f"/chats/templates/{one}/review", {}))[0] == 400
    assert (await crm.post(f"/chats/templates/{waba}/review", {}))[0] == 400  # No source could do it.


async def test_what_was_made_survives_a_restart(tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    async with office(state=state) as crm:
        await fresh_office(crm)
        token, one = crm.token, await source(crm)
        await crm.chats.send()
        before = await crm.crm()
    async with office(state=state) as crm:
        crm.token = token
        assert (await crm.get(f"/sources/{one}"))[0] == 200
        after = await crm.crm()
        assert [after[name] for name in ("talks", "incoming", "links")] == [
            before[name] for name in ("talks", "incoming", "links")
        ]
        assert await source(crm, "new") > one
        assert MARIA in str(await crm.chats.kommo())
