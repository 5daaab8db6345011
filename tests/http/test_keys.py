"""Keys of the API: what each may do, whose accounts it reaches, and who looked."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from msgspec.structs import replace

from app.access import access_log, api_keys
from app.access.access_log import AccessLog, entry_of
from app.access.callers import ADMIN
from app.config import key_text
from app.servers.servers import Servers
from tests.support.ids import ACCOUNT, ADMIN_KEY, NOBODY, OTHER_ACCOUNT
from tests.support.service import Served, about, sent, serving
from tests.support.tenants.accounts import Tenants, make_tenants
from tests.support.tenants.accounts import make_key as make

Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module")
async def tenants(service: Served) -> Tenants:
    return await make_tenants(service)


# What a key looks like.


def test_a_key_has_a_prefix_and_a_checksum() -> None:
    keys = {key_text.make_secret() for _ in range(1000)}
    assert len(keys) == 1000
    for key in keys:
        assert key.startswith("cl_")
        assert len(key) == 52
        assert key_text.is_key(key)
        assert not key_text.is_key(key[:-1] + ("a" if key[-1] != "a" else "b"))
    for text in ("", "cl_", "cl_" + "0" * 49, "ÿ" * 52, key + "0", key.replace("cl_", "xx_")):
        assert not key_text.is_key(text)


async def test_a_key_is_shown_once_and_only_its_hash_is_kept(service: Served) -> None:
    key_id, key = await make(service, "read", name="reports")
    (shown,) = [one for one in (await service.get("/v1/keys"))["items"] if one["id"] == key_id]
    assert key not in json.dumps(shown)
    assert (shown["name"], shown["scopes"], shown["accounts"]) == ("reports", ["read"], None)
    async with service.run.services.pool.connection() as db:
        rows = await (await db.execute("SELECT k::text FROM ledger.keys AS k")).fetchall()
    assert rows
    assert key not in str(rows)


# What it may do.

READS = ("/v1/conversations", "/v1/events", "/v1/deliveries", "/v1/waiting", "/v1/accounts", "/v1/status")
ADMINS = ("/v1/keys", "/v1/channels", "/v1/refused")


async def test_each_right_opens_its_routes_and_no_others(service: Served, tenants: Tenants) -> None:
    action: Json = {"id": "r-1", "type": "text", "text": "Hi"}
    for right in ("read", "send", "audit", "admin"):
        _, key = await make(service, right)
        may = {path: (await service.ask("GET", path, key=key)).status for path in (*READS, *ADMINS)}
        access = (await service.ask("GET", "/v1/access", key=key)).status
        send = await service.ask("POST", f"/v1/conversations/{NOBODY}/messages", {"message": action}, key=key)
        assert {may[path] for path in READS} == {403 if right == "send" else 200}, may
        assert {may[path] for path in ADMINS} == {200 if right == "admin" else 403}, may
        assert access == (200 if right in ("audit", "admin") else 403)
        assert (send.status == 403) == (right in ("read", "audit")), send
    _, key = await make(service, "read", "send")
    assert (await service.ask("GET", "/v1/events", key=key)).status == 200
    refused = await service.ask("GET", "/v1/keys", key=key)
    assert refused.body["detail"] == "this needs a key with the right admin: yours has read, send"


async def test_a_deleted_key_is_refused_at_once_and_an_expired_one_in_time(
    service: Served, servers: Servers
) -> None:
    key_id, key = await make(service, "read")
    assert (await service.ask("GET", "/v1/events", key=key)).status == 200
    assert (await service.ask("DELETE", f"/v1/keys/{key_id}")).status == 204
    assert (await service.ask("GET", "/v1/events", key=key)).status == 401
    assert (await service.ask("DELETE", f"/v1/keys/{key_id}")).status == 404
    for expires, status in (("2020-01-01T00:00:00Z", 400), ("soon", 400), ("2999-01-01T00:00:00Z", 201)):
        order = {"name": "timed", "scopes": ["read"], "expires_at": expires}
        assert (await service.ask("POST", "/v1/keys", order)).status == status
    key_id, key = await make(service, "read")
    await api_keys.retire(service.run.services.pool, key_id, 0.2)
    await asyncio.sleep(0.3)
    assert (await service.ask("GET", "/v1/events", key=key)).status == 401


async def test_a_replaced_key_is_good_beside_the_new_one_for_the_overlap(service: Served) -> None:
    key_id, key = await make(service, "read", accounts=[ACCOUNT])
    answer = await service.ask("POST", f"/v1/keys/{key_id}/replace", {"overlap_seconds": 1})
    assert answer.status == 201
    new = answer.body["key"]
    for one in (key, new):
        assert (await service.ask("GET", "/v1/events", key=one)).status == 200
    await asyncio.sleep(1.1)
    assert (await service.ask("GET", "/v1/events", key=key)).status == 401
    assert (await service.ask("GET", "/v1/events", key=new)).status == 200
    assert (await service.ask("POST", f"/v1/keys/{key_id}/replace")).status == 404


@pytest.mark.parametrize(
    "order",
    [
        {"name": "", "scopes": ["read"]},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "scopes": ["read"], "accounts": []},
        {"name": "x", "scopes": ["read"], "accounts": ["acme"]},
        {"scopes": ["read"]},
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(service: Served, order: Json) -> None:
    before = {one["id"] for one in (await service.get("/v1/keys"))["items"]}
    assert (await service.ask("POST", "/v1/keys", order)).status == 400
    assert {one["id"] for one in (await service.get("/v1/keys"))["items"]} == before


# Whose accounts it reaches. Every operation of /schema is asked, so that a new one without isolation fails.

BODIES: dict[str, Json] = {
    "POST /v1/conversations": {"channel": "acme", "conversation_id": "n", "user": {"id": "u", "name": "U"}},
    "POST /v1/deliveries/resume": {},
}


def paths(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method, told in item.items():
            if any("key" in one for one in told.get("security", ())):
                yield method.upper(), path, told


def filled(path: str, account: str, tenants: Tenants) -> str:
    values = {
        "account_id": account,
        "conversation": tenants.chats[account],
        "message": tenants.messages[account],
    }
    for name, value in (values | {"name": "acme", "uid": "x"}).items():
        path = path.replace("{" + name + "}", value)
    return "".join("1" if part.startswith("{") else part for part in _parts(path))


def _parts(path: str) -> Iterator[str]:
    yield from path.replace("{", "\0{").replace("}", "}\0").split("\0")


@pytest.mark.parametrize("right", ["read", "send", "audit", "admin"])
async def test_nothing_of_another_account_is_told_by_any_operation(
    service: Served, tenants: Tenants, right: str
) -> None:
    document = (await service.ask("GET", "/schema", key=None)).body
    _, key = await make(service, right, accounts=[ACCOUNT])
    secrets = (
        OTHER_ACCOUNT,
        tenants.chats[OTHER_ACCOUNT],
        tenants.messages[OTHER_ACCOUNT],
        f"of {OTHER_ACCOUNT}",
    )
    asked = 0
    for method, path, told in paths(document):
        if path == "/metrics":
            continue
        where = filled(path, OTHER_ACCOUNT, tenants)
        named = [one["name"] for one in told.get("parameters", ()) if one["in"] == "query"]
        body = (
            BODIES.get(f"{method} {path}", {}) | {"account_id": OTHER_ACCOUNT}
            if "requestBody" in told
            else None
        )
        queries: list[Json] = [{}, {"account_id": OTHER_ACCOUNT}] if "account_id" in named else [{}]
        queries += [{"conversation": tenants.chats[OTHER_ACCOUNT]}] if "conversation" in named else []
        for query in queries:
            if path == "/v1/import":
                query = query | {"channel": "acme"}
            answer = await service.ask(method, where, body, key=key, params=query)
            asked += 1
            if query or where != path or body:
                assert answer.status in (400, 403, 404), (method, where, query, answer)
            told_text = answer.raw.decode(errors="replace")
            assert not [one for one in secrets if one in told_text], (method, where, query, told_text[:500])
    assert asked > 40


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson", "text/event-stream"])
async def test_a_limited_key_reads_its_own_account_and_nothing_else(
    service: Served, tenants: Tenants, accept: str
) -> None:
    _, key = await make(service, "read", accounts=[ACCOUNT.upper()])
    headers = {"Accept": accept, "Authorization": f"Bearer {key}"}
    async with service.client.get(f"{service.url}/v1/events", headers=headers) as answer:
        assert answer.status == 200
        text = ""
        while tenants.messages[ACCOUNT] not in text:
            text += (await asyncio.wait_for(answer.content.readany(), 5)).decode()
    assert OTHER_ACCOUNT not in text
    listed = (await service.ask("GET", "/v1/conversations", key=key)).body["items"]
    assert [one["account_id"] for one in listed] == [ACCOUNT]
    for path in (
        f"/v1/conversations/{tenants.chats[ACCOUNT]}",
        f"/v1/conversations/{tenants.chats[ACCOUNT]}/messages",
        f"/v1/messages/{tenants.messages[ACCOUNT]}",
    ):
        assert (await service.ask("GET", path, key=key)).status == 200
        other = path.replace(tenants.chats[ACCOUNT], tenants.chats[OTHER_ACCOUNT])
        other = other.replace(tenants.messages[ACCOUNT], tenants.messages[OTHER_ACCOUNT])
        unknown = path.replace(tenants.chats[ACCOUNT], NOBODY).replace(tenants.messages[ACCOUNT], NOBODY)
        answers = [(await service.ask("GET", one, key=key)) for one in (other, unknown)]
        assert [one.status for one in answers] == [404, 404]
        assert answers[0].body == answers[1].body


async def test_what_was_deleted_is_shown_to_who_may_audit_alone(service: Served, tenants: Tenants) -> None:
    action = sent("secret-text", account_id=ACCOUNT, message_id="to-delete", conversation_id="chat-1")
    assert (await service.act(action)).status == 200
    gone = about("message.deleted", "to-delete", account_id=ACCOUNT, conversation_id="chat-1")
    assert (await service.act(gone)).status == 200
    head = await service.head()
    for right, shown in (("read", False), ("audit", True)):
        _, key = await make(service, right)
        for accept in ("application/json", "application/x-ndjson"):
            answer = await service.ask(
                "GET",
                "/v1/events",
                key=key,
                headers={"Accept": accept},
                params={"at_least": head, "limit": 1000},
            )
            assert (b"secret-text" in answer.raw) == shown, (right, accept)


# Who looked.


async def test_who_looked_is_written_down_with_the_outcome(service: Served, tenants: Tenants) -> None:
    key_id, key = await make(service, "read", name="auditor", accounts=[ACCOUNT])
    chat = tenants.chats[ACCOUNT]
    await service.ask("GET", f"/v1/conversations/{chat}/messages", key=key)
    await service.ask("GET", "/v1/keys", key=key)
    await service.ask("GET", "/v1/conversations", key=key, params={"account_id": OTHER_ACCOUNT})
    await service.run.services.access_log.flush()
    for key_filter in (key_id, "auditor"):
        found = (await service.get("/v1/access", key=key_filter))["items"]
        told = [(one["route"], one["conversation"], one["account_id"], one["status"]) for one in found]
        assert told == [
            ("/v1/conversations", None, OTHER_ACCOUNT, 404),
            ("/v1/keys", None, ACCOUNT, 403),
            ("/v1/conversations/{conversation}/messages", chat, ACCOUNT, 200),
        ]
        assert all(one["address"].startswith("2001:db8:") for one in found)
    shown = {one["id"]: one for one in (await service.get("/v1/keys"))["items"]}
    assert shown[key_id]["last_used_at"] is not None
    page = (await service.ask("GET", "/v1/access", params={"key": key_id, "limit": 1})).body
    assert len(page["items"]) == 1
    following = await service.get("/v1/access", key=key_id, cursor=page["next"], limit=1)
    assert following["items"][0]["position"] < page["items"][0]["position"]


@pytest_asyncio.fixture
async def alone(servers: Servers) -> AsyncIterator[Served]:
    async with serving(servers) as service:
        yield service


async def test_entries_wait_while_they_cannot_be_written(alone: Served) -> None:
    log, url = alone.run.services.access_log, alone.run.services.settings.database_url or ""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
        await owner.execute("ALTER TABLE ledger.access RENAME TO away")
        for _ in range(5):
            assert (await alone.ask("GET", "/v1/channels")).status == 200
        with pytest.raises(psycopg.Error):
            await log.flush()
        await owner.execute("ALTER TABLE ledger.away RENAME TO access")
    await log.flush()
    found = (await alone.get("/v1/access", key="admin key", limit=1000))["items"]
    assert len([one for one in found if one["route"] == "/v1/channels"]) == 5
    assert ADMIN_KEY not in json.dumps(found)


async def test_what_there_is_no_room_for_is_counted_in_an_entry(alone: Served) -> None:
    log, pool = AccessLog(alone.run.services.pool, 1), alone.run.services.pool
    entry = entry_of(ADMIN, method="GET", route="/v1/x", names={}, address="", status=200)
    for _ in range(access_log.ENTRIES_MAX + 7):
        log.note(entry)
    await log.flush()
    (told,) = (await access_log.list_access(pool, key="", limit=10)).items
    assert told.route == "7 entries lost"


async def test_old_entries_are_deleted(alone: Served) -> None:
    pool = alone.run.services.pool
    old = entry_of(ADMIN, method="GET", route="/v1/old", names={}, address="", status=200)
    log = AccessLog(pool, 1)
    log.note(replace(old, at="2020-01-01T00:00:00.000Z"))
    log.note(old)
    await log.flush()
    running = asyncio.create_task(log.run())
    try:
        async with asyncio.timeout(10):
            while len((await access_log.list_access(pool, limit=1000)).items) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
    assert [one.at for one in (await access_log.list_access(pool)).items] == [old.at]
