"""A key or a session of one account gets nothing of another's, at any address; and no route is forgotten.

Each route is open to everybody (and listed here), closed to keys that are limited to accounts, named (its
path says whose it is) or shown: then it has to show an account its own, and nothing of the other.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from app.http.console.login import signed_in as console_guard
from app.http.guard import NAMING, REACHES, guard
from app.http.settings.session import guard as settings_guard
from app.service.application import routed
from tests.support.ids import ACCOUNT, NOBODY, OTHER_ACCOUNT
from tests.support.service import Served, sent
from tests.support.tenants.accounts import Tenants, make_key, make_tenants, signed_in

Json = dict[str, Any]
# Routes that ask for no key: what comes in is signed, what goes out is nobody's.
OPEN = {
    *("GET /", "GET /docs", "GET /docs/{path}", "GET /static/{name}", "GET /login", "POST /login"),
    *("GET /healthz", "GET /readyz", "POST /kommo/{scope_id}", "POST /messengers/{channel}"),
    *("POST /crm/{account_id}/{key}", "GET /oauth/callback", "GET /oauth/disabled", "GET /install"),
    *("GET /settings", "POST /settings/session", "GET /settings/static/{name}"),
}
# Routes that show or change only what a key reaches. With a body: what asks for the other account.
SHOWN: dict[str, Json | None] = {
    "GET /v1/conversations": None,
    "GET /v1/events": None,
    "GET /v1/deliveries": None,
    "GET /v1/waiting": None,
    "GET /v1/accounts": None,
    "GET /v1/access": None,
    "POST /v1/conversations": {
        "channel": "acme",
        "account_id": OTHER_ACCOUNT,
        "conversation_id": "new",
        "user": {"id": "u", "name": "U"},
    },
    "POST /v1/deliveries/resume": {"account_id": OTHER_ACCOUNT},
    "POST /v1/import": None,
    "GET /": None,
    "GET /fragments/conversations": None,
    "GET /deliveries": None,
    "GET /access": None,
    "GET /events": None,
    "GET /live": None,
    "POST /logout": None,
}
# Those of them that show nothing by themselves, each with a test of its own.
TOLD_ELSEWHERE = {"POST /logout", "GET /live", "POST /v1/import"}


class Route(NamedTuple):
    """A route by its method and path, whether it asks who is there, and the filters that it takes."""

    name: str
    handler: HTTPRouteHandler
    guarded: bool
    filters: set[str]

    @property
    def path(self) -> str:
        return self.name.partition(" ")[2]

    @property
    def names(self) -> set[str]:
        return {part.strip("{}") for part in self.path.split("/") if part.startswith("{")}


def routes() -> Iterator[Route]:
    for route in routed({}).routes:
        if not isinstance(route, HTTPRoute):
            continue
        path = "/".join(part.partition(":")[0] + "}" * (":" in part) for part in route.path.split("/"))
        for method, (handler, model) in route.route_handler_map.items():
            if method not in ("OPTIONS", "HEAD") and not path.startswith("/schema"):
                asks = not {guard, settings_guard}.isdisjoint(handler.resolve_guards())
                before = handler.resolve_before_request()
                pages = getattr(before, "func", before) is console_guard
                filters = {one.field_alias for one in model.expected_query_params}
                yield Route(f"{method} {path or '/'}", handler, asks or pages, filters)


def is_shown(route: Route) -> bool:
    return bool(route.handler.opt.get(REACHES))


@pytest_asyncio.fixture(scope="module")
async def tenants(service: Served) -> Tenants:
    return await make_tenants(service)


def test_no_route_is_forgotten() -> None:
    """A new route is guarded, or named here with its reason; a new list is asked here whose it shows."""
    found = list(routes())
    assert len(found) > 70
    assert {one.name for one in found if not one.guarded} <= OPEN
    assert {one.name for one in found if one.guarded and is_shown(one)} == SHOWN.keys()
    closed = [one for one in found if one.guarded and not is_shown(one) and not one.names & NAMING]
    assert len(closed) > 15


async def ask(service: Served, route: Route, keys: tuple[str | None, str], path: str, **more: Any) -> Any:
    """A question to a route of the API with a key, or to a page in a session of this key."""
    key_id, key = keys
    method = route.name.partition(" ")[0]
    if route.path.startswith("/v1/") or route.path == "/metrics":
        return await service.ask(method, path, key=key, **more)
    return await signed_in(service, key_id, method, path, **more)


def filled(route: Route, account: str, tenants: Tenants) -> str:
    """The path of a route about what is an account's; what nobody owns is the number 1."""
    values = {
        "account_id": account,
        "conversation": tenants.chats[account],
        "message": tenants.messages[account],
        "name": "acme",
        "channel": "acme",
    }
    parts = [values.get(part.strip("{}"), "1") if "{" in part else part for part in route.path.split("/")]
    return "/".join(parts)


async def test_a_list_shows_an_account_its_own_and_nothing_of_the_other(
    service: Served, tenants: Tenants
) -> None:
    mine = await make_key(service, "admin", accounts=[ACCOUNT])
    others = await make_key(service, "admin", accounts=[OTHER_ACCOUNT])
    for account in (ACCOUNT, OTHER_ACCOUNT):
        await service.get(f"/v1/conversations/{tenants.chats[account]}")
        await service.get(f"/v1/messages/{tenants.messages[account]}")
    await service.run.services.access_log.flush()
    for route in routes():
        if not route.guarded or not is_shown(route) or route.name in TOLD_ELSEWHERE:
            continue
        if body := SHOWN[route.name]:
            answer = await ask(service, route, mine, route.path, content=body)
            assert answer.status == 404, (route.name, answer)
            continue
        more: Json = {"params": {"account_id": OTHER_ACCOUNT}} if "account_id" in route.filters else {}
        seen = await ask(service, route, others, route.path, **more)
        assert any(one.encode() in seen.raw for one in tenants.secrets(OTHER_ACCOUNT)), (route.name, seen)
        hidden = await ask(service, route, mine, route.path)
        assert hidden.status == 200, (route.name, hidden)
        assert not [one for one in tenants.secrets(OTHER_ACCOUNT) if one.encode() in hidden.raw], route.name
        if more:
            assert (await ask(service, route, mine, route.path, **more)).status == 404, route.name


# Whatever else stands in the address, and however often.
ADDITIONS = (
    "?conversation={mine}",
    "?conversation={mine}&conversation={other}",
    "?conversation={other}&conversation={mine}",
    "?account_id={account}&account_id={other_account}",
    "?account_id={other_account}&account_id={account}",
    "?account={other_account}&q={other}&state=parked",
    "?message={other_message}&account_id={account}",
    "?ids={other_message}&open={other}&conversation={mine}",
)


async def test_no_address_opens_what_is_another_accounts(service: Served, tenants: Tenants) -> None:
    key_id, key = await make_key(service, "admin", accounts=[ACCOUNT])
    values = {
        "mine": tenants.chats[ACCOUNT],
        "other": tenants.chats[OTHER_ACCOUNT],
        "other_message": tenants.messages[OTHER_ACCOUNT],
        "account": ACCOUNT,
        "other_account": OTHER_ACCOUNT,
    }
    asked = 0
    for route in routes():
        if not route.guarded or route.name in ("GET /live", "POST /logout"):
            continue
        if route.path.endswith("/access"):  # It repeats the ids that this key asked for.
            continue
        reads = route.name.startswith("GET ")
        body: Json | None = {} if not reads and route.path.startswith("/v1/") else None
        owners = (ACCOUNT, OTHER_ACCOUNT) if reads else (OTHER_ACCOUNT,)  # Its own it may change.
        for path in {filled(route, account, tenants) for account in owners}:
            for addition in ("", *ADDITIONS):
                address = path + addition.format(**values)
                answer = await ask(service, route, (key_id, key), address, content=body)
                echoed = address.encode()  # A page repeats its own address in links of its filters.
                told = answer.raw.replace(echoed, b"") if answer.status == 200 else answer.raw
                leaked = [one for one in tenants.secrets(OTHER_ACCOUNT)[1:] if one.encode() in told]
                assert not leaked or addition, (route.name, address, answer)
                assert f"of {OTHER_ACCOUNT}".encode() not in told, (route.name, address, answer)
                if not route.names & NAMING and not is_shown(route):
                    assert answer.status in (400, 403, 404), (route.name, address, answer)
                asked += 1
    assert asked > 700


async def test_a_page_of_another_account_is_as_if_it_were_not_there(
    service: Served, tenants: Tenants
) -> None:
    key_id, _ = await make_key(service, "audit", accounts=[ACCOUNT])
    mine, other = tenants.chats[ACCOUNT], tenants.chats[OTHER_ACCOUNT]
    for path in (
        f"/messages/{tenants.messages[OTHER_ACCOUNT]}?conversation={mine}",
        f"/conversations/{mine}?conversation={other}",
        f"/conversations/{other}?conversation={mine}",
        f"/conversations/{mine}?message={tenants.messages[OTHER_ACCOUNT]}",
        f"/live?conversation={mine}&conversation={other}&after=0",
        f"/live?conversation={other}&conversation={mine}&after=0",
    ):
        assert (await signed_in(service, key_id, "GET", path)).status == 404, path
    for path in (f"/status?conversation={mine}", f"/channels?conversation={mine}"):
        assert (await signed_in(service, key_id, "GET", path)).status == 403, path
    path = f"/fragments/conversations/{mine}/bubbles?ids={tenants.messages[OTHER_ACCOUNT]}"
    assert b"bubble" not in (await signed_in(service, key_id, "GET", path)).raw


async def test_the_live_stream_of_a_page_tells_nothing_of_another_account(
    service: Served, tenants: Tenants
) -> None:
    key_id, _ = await make_key(service, "read", accounts=[ACCOUNT])
    services = service.run.services
    cookie = f"chatledger_{services.ledger_id.replace('-', '')[:8]}={services.sessions.start(key_id)}"
    async with service.client.get(f"{service.url}/live", headers={"Cookie": cookie}) as answer:
        assert answer.status == 200
        for account in (OTHER_ACCOUNT, ACCOUNT):
            action = sent(f"live {account}", account_id=account, conversation_id=f"chat-{account[-1]}")
            wrote = await service.act(action)
        text = ""
        while "change" not in text:
            text += (await asyncio.wait_for(answer.content.readany(), 5)).decode()
    positions = [line for line in text.splitlines() if line.startswith("id:")]
    assert positions == [f"id: {wrote.headers['Ledger-Position']}"]


async def test_an_import_goes_into_no_other_account(service: Served, tenants: Tenants) -> None:
    _, key = await make_key(service, "send", accounts=[ACCOUNT])
    line = sent("imported", account_id=OTHER_ACCOUNT, conversation_id="imported")
    body = json.dumps(line).encode()
    head = await service.head()
    for query, status in (
        ({}, 400),
        ({"account_id": OTHER_ACCOUNT}, 404),
        ({"account_id": ACCOUNT}, 200),
    ):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"}
        params = {"channel": "acme", **query}
        answer = await service.request("POST", "/v1/import", data=body, headers=headers, params=params)
        assert answer.status == status, answer
    report = json.loads(answer.raw.splitlines()[-1])
    assert (report["imported"], report["skipped"]) == (0, 1)
    assert await service.since(head) == []


async def test_a_reply_to_a_message_of_another_account_tells_nothing_of_it(
    service: Served, tenants: Tenants
) -> None:
    _, key = await make_key(service, "send", "read", accounts=[ACCOUNT])
    answers = []
    for number, answered in enumerate((tenants.messages[OTHER_ACCOUNT], NOBODY)):
        order = {
            "message_id": f"reply-{number}",
            "message": {"type": "text", "text": "Hi"},
            "sender": {"user_id": "maria"},
            "reply_to": {"id": answered},
        }
        path = f"/v1/conversations/{tenants.chats[ACCOUNT]}/messages"
        answer = await service.ask("POST", path, order, key=key)
        assert answer.status == 202, answer
        found = await service.ask(
            "GET",
            f"/v1/messages/{answer.body['id']}",
            key=key,
            params={"at_least": answer.body["position"]},
        )
        answers.append({name: value for name, value in found.body["reply_to"].items() if name != "id"})
        # What was made a moment ago is there for a key that is limited, too.
        status = await service.ask(
            "POST", f"/v1/messages/{answer.body['id']}/status", {"status": "delivered"}, key=key
        )
        assert status.status == 200, status
    assert answers[0] == answers[1]


@pytest_asyncio.fixture
async def limited(service: Served, tenants: Tenants) -> AsyncIterator[tuple[str, str]]:
    yield await make_key(service, "audit", accounts=[ACCOUNT])


async def test_a_stream_ends_with_its_key(service: Served, limited: tuple[str, str]) -> None:
    key_id, key = limited
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {key}"}
    async with service.client.get(f"{service.url}/v1/events", headers=headers) as answer:
        assert answer.status == 200
        await asyncio.wait_for(answer.content.readany(), 5)
        assert (await service.ask("DELETE", f"/v1/keys/{key_id}")).status == 204
        action = sent("after the key", account_id=ACCOUNT, conversation_id="chat-1")
        assert (await service.act(action)).status == 200
        rest = await asyncio.wait_for(answer.content.read(), 5)
    assert b"after the key" not in rest


async def test_an_import_stops_with_its_key(service: Served, tenants: Tenants) -> None:
    key_id, key = await make_key(service, "send", accounts=[ACCOUNT])
    count, head = 30_000, await service.head()
    lines = (sent(n, conversation_id=f"import-{n % 50}", account_id=ACCOUNT) for n in range(count))
    body = b"".join(json.dumps(one).encode() + b"\n" for one in lines)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"}
    url = f"{service.url}/v1/import?channel=acme&account_id={ACCOUNT}"
    async with service.client.post(url, data=BytesIO(body), headers=headers) as answer:
        assert answer.status == 200
        assert b"progress" in await answer.content.readline()
        assert (await service.ask("DELETE", f"/v1/keys/{key_id}")).status == 204
        rest = await asyncio.wait_for(answer.content.read(), 30)
    assert b"report" not in rest
    reached = await service.head()
    await asyncio.sleep(1)
    assert head <= await service.head() < head + count
    assert await service.head() - reached < 2_000


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_a_channel_with_an_account_is_that_accounts_alone(
    service: Served, tenants: Tenants, limited: tuple[str, str], accept: str
) -> None:
    _, key = limited
    headers = {"Accept": accept}
    found = await service.ask(
        "GET",
        "/v1/events",
        key=key,
        params={"channel": "acme", "account_id": ACCOUNT, "conversation": tenants.chats[ACCOUNT]},
        headers=headers,
    )
    assert f"of {ACCOUNT}".encode() in found.raw
    assert f"of {OTHER_ACCOUNT}".encode() not in found.raw
    assert tenants.chats[OTHER_ACCOUNT].encode() not in found.raw
    cursor = (await service.ask("GET", "/v1/conversations", params={"limit": 1})).body["next"]
    page = await service.ask("GET", "/v1/conversations", key=key, params={"cursor": cursor})
    assert page.status == 200
    assert OTHER_ACCOUNT.encode() not in page.raw
