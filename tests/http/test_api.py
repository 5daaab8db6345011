"""Over HTTP: who may read, what pages look like, and how one follows what happens."""

import asyncio
import json
from typing import Any

import pytest
import pytest_asyncio

from tests.support.ids import ACCOUNT, ADMIN_KEY, NOBODY
from tests.support.service import Served, about, sent, wrote

READS = ["/v1/conversations", "/v1/events", "/v1/status", "/v1/channels", "/v1/deliveries", "/v1/refused"]


@pytest_asyncio.fixture(scope="module", autouse=True)
async def recorded(service: Served) -> None:
    """Three chats with messages, and a hook, are recorded and in the views."""
    for chat in range(3):
        array = [sent(f"{chat}-{n}", conversation_id=f"conv-{chat}") for n in range(7)]
        assert (await service.act(array)).status == 200
    assert (await service.hook(wrote(1, conversation={"client_id": "conv-0"}))).status == 200
    await service.get("/v1/status", at_least=await service.head())
    await service.get("/v1/conversations", at_least=await service.head())


async def conversation(service: Served, name: str = "conv-0") -> dict[str, Any]:
    (found,) = (await service.get("/v1/conversations", conversation_id=name))["items"]
    return dict(found)


# Who may read.


@pytest.mark.parametrize("path", [*READS, "/v1/messages/x", "/v1/conversations/x", "/metrics"])
@pytest.mark.parametrize("key", [None, "", "wrong", "ÿ", f"{ADMIN_KEY}-and-more"])
async def test_without_the_right_key_nothing_is_told(service: Served, path: str, key: str | None) -> None:
    answer = await service.ask("GET", path, key=key)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("header", ["Basic dGhlLWFkbWluLWtleQ==", ADMIN_KEY, "Bearer", "Bearer  wrong"])
async def test_other_ways_to_sign_in_are_refused(service: Served, header: str) -> None:
    assert (await service.ask("GET", "/v1/status", headers={"Authorization": header})).status == 401


async def test_writes_need_the_key_too(service: Served) -> None:
    for method, path in (
        ("POST", "/v1/channels"),
        ("PUT", "/v1/channels/acme"),
        ("POST", "/v1/channels/acme/connections"),
        ("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}"),
        ("POST", "/v1/deliveries/resume"),
    ):
        assert (await service.ask(method, path, {}, key=None)).status == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/schema"])
async def test_what_is_open_needs_no_key(service: Served, path: str) -> None:
    answer = await service.ask("GET", path, key=None)
    assert answer.status == 200
    assert answer.body


# What is not there, or not asked well.


@pytest.mark.parametrize(
    "path",
    [
        *("/v1", "/v1/nothing", "/nothing", "/v1/messages/nothing", "/v1/conversations/nothing"),
        *(
            "/v1/messages/%00",
            "/v1/events/1",
            f"/v1/messages/{NOBODY}",
            f"/v1/conversations/{NOBODY}/messages",
        ),
        "/v1/messages/" + "x" * 5000,
    ],
)
async def test_what_is_not_there_is_a_404_that_says_so(service: Served, path: str) -> None:
    answer = await service.ask("GET", path)
    assert answer.status == 404, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["detail"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/events"), ("DELETE", "/v1/channels"), ("PUT", "/schema")]
)
async def test_other_methods_are_not_allowed(service: Served, method: str, path: str) -> None:
    answer = await service.ask(method, path)
    assert answer.status == 405
    assert answer.headers["Content-Type"] == "application/problem+json"


BAD_QUERIES = [
    *(
        f"/v1/{what}?limit={limit}"
        for what in ("events", "conversations")
        for limit in ("0", "1001", "x", "")
    ),
    *(f"/v1/conversations?cursor={cursor}" for cursor in ("x", "%00", "e30", "AAAA", "x" * 3000)),
    *(f"/v1/events?after={after}" for after in ("-1", "x", "9" * 30, "1.5")),
    *(f"/v1/events?since={moment}" for moment in ("yesterday", "2026-01-01T00:00:00", "2026-13-01")),
    *(f"/v1/conversations?at_least={position}" for position in ("-1", "x", "9" * 30)),
    "/v1/conversations/@/messages?order=sideways",
    "/v1/conversations/@/messages?cursor=x",
    "/v1/deliveries?state=lost",
    "/v1/deliveries?destination=moon",
    "/v1/deliveries?cursor=x",
    "/v1/conversations?channel=a%00b",
]


@pytest.mark.parametrize("path", BAD_QUERIES, ids=lambda path: path[:60])
async def test_a_bad_parameter_is_refused_by_name(service: Served, path: str) -> None:
    answer = await service.ask("GET", path.replace("@", (await conversation(service))["id"]))
    assert answer.status == 400, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(answer.body["detail"]) > 5


async def test_filters_that_nothing_fits_give_an_empty_page(service: Served) -> None:
    for path in (
        "/v1/conversations?channel=nobody",
        "/v1/events?type=nothing",
        "/v1/events?conversation=none",
    ):
        answer = await service.ask("GET", path)
        assert answer.status in (200, 400)
        assert answer.status == 400 or answer.body == {"items": [], "next": None}


# Pages.


async def pages(service: Served, path: str, limit: int) -> list[list[Any]]:
    """All pages, by the Link of each."""
    found, where = [], f"{path}{'&' if '?' in path else '?'}limit={limit}"
    while where:
        answer = await service.ask("GET", where)
        assert answer.status == 200
        found.append(answer.body["items"])
        link = answer.headers.get("Link", "")
        assert bool(link) == (answer.body["next"] is not None)
        assert not link or link.endswith('>; rel="next"')
        where = link.removeprefix("<").removesuffix('>; rel="next"')
    return found


@pytest.mark.parametrize(
    "path", ["/v1/conversations", "/v1/events", "/v1/deliveries", "/v1/events?type=message.sent"]
)
@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_pages_by_their_links_give_everything_once(service: Served, path: str, limit: int) -> None:
    (everything,) = await pages(service, path, 1000)
    found = await pages(service, path, limit)
    assert [item for page in found for item in page] == everything
    assert all(len(page) <= limit for page in found)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_chats_history_is_paged_in_both_directions(service: Served, order: str) -> None:
    where = f"/v1/conversations/{(await conversation(service))['id']}/messages?order={order}"
    found = [item["position"] for page in await pages(service, where, 3) for item in page]
    assert found == sorted(found, reverse=order == "desc")
    assert len(found) == 8


async def test_a_message_has_the_fields_of_the_contract(service: Served) -> None:
    where = f"/v1/conversations/{(await conversation(service))['id']}/messages"
    first, *_, last = (await service.get(where))["items"]
    assert (first["direction"], first["type"], first["text"]) == ("in", "text", "Hello 0-0")
    assert (last["direction"], last["text"], last["status"]) == ("out", "Hi 1", "sent")
    assert first["remote"] == {"kommo": None, "messenger": "m-0-0"}
    assert (first["edited"], first["deleted"], first["reactions"]) == (False, False, [])


async def test_a_message_tells_every_transition_with_its_evidence(service: Served) -> None:
    action = sent("timeline", conversation_id="conv-1")
    result = (await service.act(action)).body["results"][0]
    edit = about("message.edited", "m-timeline", message={"type": "text", "text": "Edited"})
    react = about("reaction.added", "m-timeline", sender={"id": "u-1"}, emoji="👍")
    answer = await service.act([edit, react, about("message.deleted", "m-timeline")])
    found = await service.get(f"/v1/messages/{result['id']}", at_least=answer.headers["Ledger-Position"])
    types = [moment["type"] for moment in found["timeline"]]
    assert types == ["message.sent", "message.edited", "reaction.added", "message.deleted"]
    assert found["deleted"]
    assert found["text"] is None


async def test_events_are_told_exactly_as_stored(service: Served) -> None:
    answer = await service.ask("GET", "/v1/events?limit=1000")
    for item in answer.body["items"]:
        stored = json.dumps(item["event"], ensure_ascii=False, separators=(",", ":")).encode()
        assert stored in answer.raw


# Waiting, and following.


async def test_a_read_sees_what_the_write_before_it_was_answered(service: Served) -> None:
    for n in range(10):
        answer = await service.act(sent(f"mine-{n}", conversation_id="conv-mine"))
        found = await service.get(
            "/v1/conversations", conversation_id="conv-mine", at_least=answer.headers["Ledger-Position"]
        )
        assert found["items"][0]["messages"] == n + 1


async def test_a_position_that_is_never_reached_is_not_now(service: Served) -> None:
    start = asyncio.get_running_loop().time()
    answer = await service.ask("GET", f"/v1/conversations?at_least={await service.head() + 1000}")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert 4 < asyncio.get_running_loop().time() - start < 7


async def test_ndjson_streams_everything_as_lines(service: Served) -> None:
    answer = await service.ask("GET", "/v1/events", headers={"Accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in answer.raw.splitlines()]
    assert [line["position"] for line in lines] == list(range(1, await service.head() + 1))
    short = await service.ask("GET", "/v1/events?after=3&limit=2", headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line)["position"] for line in short.raw.splitlines()] == [4, 5]


async def follow(service: Served, count: int, path: str = "/v1/events", last: str | None = None) -> list[Any]:
    """So many server-sent events, as (id, event)."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Accept": "text/event-stream"}
    headers |= {"Last-Event-ID": last} if last is not None else {}
    found: list[Any] = []
    async with asyncio.timeout(10), service.client.get(service.url + path, headers=headers) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        position = 0
        async for line in answer.content:
            if line.startswith(b"id: "):
                position = int(line[4:])
            if line.startswith(b"data: "):
                found.append((position, json.loads(line[6:])))
            if len(found) == count:
                break
    return found


async def test_a_stream_goes_on_with_what_happens_later(service: Served) -> None:
    head = await service.head()
    following = asyncio.create_task(follow(service, 3, f"/v1/events?after={head}"))
    await asyncio.sleep(0.2)
    await service.act([sent(f"live-{n}", conversation_id="conv-1") for n in range(3)])
    assert [position for position, _ in await following] == [head + 1, head + 2, head + 3]


async def test_a_stream_resumes_after_the_last_event_seen(service: Served) -> None:
    found = await follow(service, 2, last="5")
    assert [position for position, _ in found] == [6, 7]


@pytest.mark.parametrize("last", ["", "x", "²", "-1", "9" * 40])
async def test_a_last_event_that_is_none_is_as_if_nothing_was_seen(service: Served, last: str) -> None:
    assert [position for position, _ in await follow(service, 1, last=last)] == [1]


async def test_a_stream_can_be_filtered(service: Served) -> None:
    found = await follow(service, 5, "/v1/events?type=message.sent")
    assert {event["type"] for _, event in found} == {"message.sent"}


# Merged conversations.


async def test_a_merged_conversation_leads_to_the_one_it_is_now(service: Served) -> None:
    hook = wrote("first", conversation={"id": "chat-m", "client_id": ""})
    assert (await service.hook(hook)).status == 200
    assert (await service.act(sent("second", conversation_id="conv-m"))).status == 200
    await service.get("/v1/status", at_least=await service.head())
    await service.get("/v1/conversations", at_least=await service.head())
    lost = await conversation(service, "conv-m")
    hook = wrote("third", conversation={"id": "chat-m", "client_id": "conv-m"})
    assert (await service.hook(hook)).status == 200
    for path in ("", "/messages"):
        where = f"/v1/conversations/{lost['id']}{path}"
        answer = await service.ask("GET", f"{where}?at_least={await service.head()}")
        assert answer.status == 307
        assert answer.headers["Location"].startswith("/v1/conversations/")
        followed = await service.ask("GET", answer.headers["Location"])
        assert followed.status == 200
    assert len(followed.body["items"]) == 3


# The description.


async def test_the_description_has_every_route_and_both_webhooks(service: Served) -> None:
    described = (await service.ask("GET", "/schema", key=None)).body
    paths = set(described["paths"])
    assert {"/kommo/{scope_id}", "/messengers/{channel}", "/healthz", "/readyz"} <= paths
    assert {"/v1/channels", "/v1/channels/{name}", "/v1/channels/{name}/connections"} <= paths
    assert {"/v1/channels/{name}/connections/{account_id}", "/v1/events", "/v1/status"} <= paths
    assert {
        "/v1/conversations",
        "/v1/conversations/{conversation}/messages",
        "/v1/messages/{message}",
    } <= paths
    assert set(described["paths"]["/kommo/{scope_id}"]) == {"post"}
    assert described["openapi"].startswith("3.")


async def test_status_says_where_everything_stands(service: Served) -> None:
    status = await service.get("/v1/status", at_least=await service.head())
    assert status["head"] == await service.head()
    assert {view["view"] for view in status["views"]} >= {"conversations", "messages", "deliveries", "events"}
    assert set(status["deliveries"]) == {"pending", "deferred", "parked", "oldest_position", "failed"}
    assert status["queue"] == 0
