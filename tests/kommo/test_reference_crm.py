"""What the sandbox's CRM answers has the documented fields and no others: the models of section 4."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from tests.support.crm_client import Office, contact, fresh_office, incoming, new_chat, office, template

# Of each model: the fields it always has, and those that it may have. HAL's _links are on all.
SHAPES: dict[str, tuple[set[str], set[str]]] = {
    "sources": (
        {"id", "name", "external_id", "pipeline_id", "default", "origin_code", "services"},
        {"request_id"},
    ),
    "chat_templates": (
        {"id", "account_id", "name", "content", "is_editable", "type", "created_at", "updated_at"},
        {
            *("buttons", "attachment", "external_id", "request_id", "review_status", "is_on_review"),
            *("waba_footer", "waba_category", "waba_language", "waba_examples", "waba_header"),
            *("waba_header_type", "_embedded"),
        },
    ),
    "chats": ({"chat_id", "contact_id", "id"}, {"request_id"}),
    "talk": (
        {
            *("talk_id", "created_at", "updated_at", "rate", "contact_id", "chat_id", "entity_id"),
            *("entity_type", "is_in_work", "is_read", "origin", "missed_at", "account_id", "_embedded"),
        },
        set(),
    ),
    "metadata": (
        {"from", "to", "received_at", "service", "client", "origin", "last_message_text", "source_name"},
        set(),
    ),
    "client": ({"name", "avatar"}, set()),
    "origin": ({"chat_id", "ref", "visitor_uid"}, set()),
}


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Office]:
    async with office() as one:
        yield one


@pytest_asyncio.fixture
async def crm(shared: Office) -> Office:
    return await fresh_office(shared)


def fits(name: str, told: dict[str, Any]) -> None:
    required, optional = SHAPES[name]
    assert required <= told.keys() <= required | optional | {"_links"}, (name, sorted(told))


def listed(name: str, told: Any) -> list[dict[str, Any]]:
    """The models of a collection, which says how many there are."""
    models: list[dict[str, Any]] = told["_embedded"][name]
    assert told["_total_items"] == len(models)
    for each in models:
        fits(name, each)
    return models


async def test_a_source_has_the_documented_fields(crm: Office) -> None:
    order = {"name": "Shop", "external_id": "shop", "pipeline_id": 7, "request_id": "r", "origin_code": None}
    _, told = await crm.post("/sources", [order])
    [source] = listed("sources", told)
    assert (source["pipeline_id"], source["origin_code"]) == (7, None)
    fits("sources", (await crm.get(f"/sources/{source['id']}"))[1])


async def test_a_template_has_the_documented_fields(crm: Office) -> None:
    buttons = [{"type": "url", "text": "Shop", "url": "https://example.com"}]
    picture = {"id": "8d74efe1-75f2-5187-b077-55828d4430b3", "name": "x.jpg", "type": "picture"}
    number = await template(crm, buttons=buttons, attachment=picture, external_id="hi", request_id="r")
    _, told = await crm.get(f"/chats/templates/{number}")
    fits("chat_templates", told)
    assert (told["buttons"], told["attachment"]["type"], told["is_editable"]) == (buttons, "picture", False)


async def test_a_whatsapp_template_keeps_all_its_fields(crm: Office) -> None:
    waba = {
        "waba_header_type": "text",
        "waba_header": "Welcome",
        "waba_footer": "Acme",
        "waba_category": "UTILITY",
        "waba_language": "en",
        "waba_examples": {"{{contact.name}}": "Ann"},
    }
    number = await template(crm, type="waba", **waba)
    _, told = await crm.get(f"/chats/templates/{number}")
    fits("chat_templates", told)
    assert {name: told[name] for name in waba} == waba


async def test_a_link_has_the_documented_fields(crm: Office) -> None:
    order = {"contact_id": await contact(crm), "chat_id": await new_chat(crm), "request_id": "r"}
    _, told = await crm.post("/contacts/chats", [order])
    [link] = listed("chats", told)
    assert link["request_id"] == "r"


async def test_a_talk_has_the_documented_fields(crm: Office) -> None:
    await incoming(crm)
    talk = (await crm.crm())["talks"][-1]
    _, told = await crm.get(f"/talks/{talk['id']}")
    fits("talk", told)
    assert set(told["_embedded"]) == {"contacts", "leads", "customers"}


async def test_an_incoming_lead_has_the_documented_fields_and_a_status_when_it_is_accepted(
    crm: Office,
) -> None:
    uid = await incoming(crm)
    _, told = await crm.get(f"/leads/unsorted?filter[uid]={uid}")
    metadata = told["_embedded"]["unsorted"][0]["metadata"]
    fits("metadata", metadata)
    fits("client", metadata["client"])
    fits("origin", metadata["origin"])
    status, accepted = await crm.post(f"/leads/unsorted/{uid}/accept", {"status_id": 142})
    assert (status, len(accepted["_embedded"]["leads"])) == (200, 1)
