"""What there is to be asked about: for every operation things of its own, so that it can succeed.

A thing that a success uses up (a talk that is closed, a source that is deleted) is there several times, and
schemathesis_hooks.py puts another one into each question.
"""

from typing import Any

from app.http.openapi import examples
from app.kommo.crm.hooks import hook_path
from app.kommo.crm.oauth import disabled_signature
from tests.support.crm_service import HERE, Office
from tests.support.ids import ACCOUNT, CLIENT, CLIENT_SECRET, MASTER_BYTES, OTHER_ACCOUNT, SCOPE_ID

LEAVING = "52e591f7-c98f-4255-8495-827210138c83"
LEFT = "52e591f7-c98f-4255-8495-827210138c84"
SPARE = "344a5002-f8ca-454d-af3d-396180102ac8"
NEW = "344a5002-f8ca-454d-af3d-396180102ac9"
WABA = [{"type": "whatsapp", "params": {"waba": True}}]
OF_ACCOUNT = "/v1/accounts/{account_id}"
OF_CHAT = "/v1/conversations/{conversation}"
TIMES = 3
Json = dict[str, Any]
Things = dict[str, list[Json]]


async def things(office: Office) -> Things:
    """Of each operation parts of questions that it answers with a success, by its method and path."""
    assert (await office.register()).status == 201
    assert (await office.register("spare", channel_id=SPARE)).status == 201
    assert (await office.connect()).status == 201
    for account in (ACCOUNT, OTHER_ACCOUNT, LEFT):
        answer = await office.led_back(await office.state(account), of=account)
        assert answer.status == 200, answer
    sent = examples.ACTIONS["sent"] | {"account_id": ACCOUNT}
    assert (await office.act(sent)).status == 200
    there = await _own(office) | await _consents(office) | await _catalogue(office) | await _crm(office)
    assert (await office.connect(account=LEAVING)).status == 201
    return there


async def _own(office: Office) -> Things:
    """What concerns only us: channels, chats, webhooks."""
    here: Json = {"path": {"conversation": examples.CHAT}}
    key = hook_path(MASTER_BYTES, ACCOUNT).rsplit("/", 1)[-1]
    new = {"name": "new", "kommo": {"channel_id": NEW}}
    acme: Json = {"path": {"channel": "acme"}}
    return {
        "POST /v1/channels": [{"body": new}],
        "POST /v1/import": [{"query": {"channel": "acme", "account_id": ACCOUNT}}],
        "POST /kommo/{scope_id}": [{"path": {"scope_id": SCOPE_ID}}],
        "POST /messengers/{channel}": [acme | {"body": {"account_id": ACCOUNT}}, acme],
        "POST /crm/{account_id}/{key}": [{"path": {"account_id": ACCOUNT, "key": key}}],
        "PUT /v1/channels/{name}": [{"path": {"name": "spare"}}],
        "POST /v1/channels/{name}/connections": [{"path": {"name": "acme"}, "body": {"account_id": ACCOUNT}}],
        "DELETE /v1/channels/{name}/connections/{account_id}": [
            {"path": {"name": "acme", "account_id": LEAVING}}
        ],
        "PUT /v1/channels/{name}/connections/{account_id}/messenger": [
            {"path": {"name": "acme", "account_id": ACCOUNT}}
        ],
        f"GET {OF_CHAT}": [here],
        f"GET {OF_CHAT}/messages": [here],
        f"POST {OF_CHAT}/messages": [here],
        "GET /v1/messages/{message}": [{"path": {"message": examples.MESSAGE}}],
    }


async def _consents(office: Office) -> Things:
    """Administrators on their way back to us, and one who has switched us off."""
    back = []
    for _ in range(TIMES):
        told = await office.order(
            "/crm/authorize", {"account_id": OTHER_ACCOUNT, "state": await office.state(OTHER_ACCOUNT)}
        )
        names = ("code", "state", "referer", "client_id")
        back.append({"query": {name: told[name] for name in names} | {"error": None}})
    await office.order("/crm/disable", {"account_id": LEFT})
    number = str((await office.account(LEFT))["crm_id"])
    signature = disabled_signature(CLIENT_SECRET, CLIENT, number)
    off = {"account_id": number, "client_uuid": CLIENT, "signature": signature}
    return {"GET /oauth/callback": back, "GET /oauth/disabled": [{"query": off}]}


async def _made(office: Office, path: str, items: list[Json]) -> list[Json]:
    answer = await office.ask("POST", HERE + path, {"items": items})
    assert answer.status == 201, answer
    made: list[Json] = answer.body["items"]
    return made


async def _catalogue(office: Office) -> Things:
    """Sources and templates, and reviews of one that WhatsApp is to look at."""
    sources = await _made(
        office,
        "/sources",
        [{"name": f"Shop {n}", "external_id": f"shop-{n}", "services": WABA} for n in range(TIMES + 2)],
    )
    greeting = {"name": "Greeting", "content": "Hello", "type": "waba", "waba_category": "UTILITY"}
    templates = await _made(office, "/templates", [greeting | {"waba_language": "en"}] * (TIMES + 3))
    of_source = [{"path": {"account_id": ACCOUNT, "source_id": one["id"]}} for one in sources]
    of = [{"path": {"account_id": ACCOUNT, "template_id": one["id"]}} for one in templates]
    reviewed = of[2]["path"]
    answer = await office.ask("POST", f"{HERE}/templates/{reviewed['template_id']}/review")
    assert answer.status == 200, answer
    review = {"path": reviewed | {"review_id": answer.body["items"][0]["id"]}}
    at_sources, at_templates = f"{OF_ACCOUNT}/sources", f"{OF_ACCOUNT}/templates"
    return {
        f"GET {at_sources}": [{"path": {"account_id": ACCOUNT}, "query": {"external_id": "shop-0"}}],
        f"GET {at_sources}/{{source_id}}": of_source[:1],
        f"PATCH {at_sources}": [_first(sources[1]["id"])],
        f"DELETE {at_sources}/{{source_id}}": of_source[2:],
        f"GET {at_templates}/{{template_id}}": [of[2]],
        f"PATCH {at_templates}": [_first(templates[0]["id"])],
        f"POST {at_templates}/{{template_id}}/review": [of[1]],
        f"POST {at_templates}/{{template_id}}/review/{{review_id}}": [review],
        f"DELETE {at_templates}/{{template_id}}": of[3:],
    }


def _first(number: int) -> Json:
    """A change of which the first is of the thing with this id."""
    return {"path": {"account_id": ACCOUNT}, "body": {"items": [{"id": number}]}}


async def _crm(office: Office) -> Things:
    """Chats, each with its talk and its incoming lead, and a contact and a lead to join them with."""
    conversation, chat_id = await office.chat("conv-linked")
    listed = await office.get(f"/v1/conversations/{conversation}/messages")
    [answered] = [one["id"] for one in listed["items"] if one["direction"] == "out"]
    leads, talks = [], []
    for number in range(3 * TIMES + 1):
        chat = await office.customer(f"conv-{number}-of-crm")
        books = office.sandbox.crm_state
        leads.append(next(one for one in books.incoming if one.chat_id == chat.id))
        talks.append(next(one for one in books.talks if one.chat_id == chat.id))
    first, *leads = leads
    answer = await office.ask("POST", f"{HERE}/leads/{first.id}/accept", {})
    assert answer.status == 200, answer
    [lead] = answer.body["_embedded"]["leads"]
    user = (await office.get(f"{HERE}/users"))["items"][0]["id"]
    of_talk = [{"path": {"account_id": ACCOUNT, "talk_id": one.id}} for one in talks]
    of = [{"path": {"account_id": ACCOUNT, "uid": one.id}, "body": {"user_id": user}} for one in leads]
    joined = {"entity_id": lead["id"], "entity_type": "leads", "contact_id": first.contact_id}
    contact = {"contact_id": first.contact_id}
    return {
        f"GET {OF_ACCOUNT}/talks/{{talk_id}}": of_talk[:1],
        f"POST {OF_ACCOUNT}/talks/{{talk_id}}/close": of_talk[1 : TIMES + 1],
        f"POST {OF_ACCOUNT}/leads/{{uid}}/accept": of[:TIMES],
        f"POST {OF_ACCOUNT}/leads/{{uid}}/decline": of[TIMES : 2 * TIMES],
        f"POST {OF_ACCOUNT}/leads/{{uid}}/link": [
            one | {"body": one["body"] | joined} for one in of[2 * TIMES :]
        ],
        f"GET {OF_ACCOUNT}/links": [
            {"path": {"account_id": ACCOUNT}, "query": {"chat_id": chat_id} | contact}
        ],
        "POST /v1/messages/{message}/status": [{"path": {"message": answered}}],
        f"POST {OF_CHAT}/link": [{"path": {"conversation": conversation}, "body": contact}],
    }
