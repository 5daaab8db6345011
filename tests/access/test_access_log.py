"""Who looked is written down, whatever a client writes; what a kill or a stalled database loses is told."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from yarl import URL

from app.access import access_log
from app.access.access_log import AccessLog, entry_of, list_access
from app.access.callers import ADMIN
from app.database.pool import Pool
from app.servers.servers import Servers
from tests.support.databases import database
from tests.support.ids import ACCOUNT, ADMIN_KEY, MASTER_KEY, OTHER_ACCOUNT
from tests.support.processes import Process, run_command, started
from tests.support.service import Served, serving
from tests.support.tenants.accounts import Tenants, make_key, make_tenants, signed_in

Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module")
async def tenants(service: Served) -> Tenants:
    return await make_tenants(service)


async def entries(service: Served, **query: Any) -> list[Json]:
    await service.run.services.access_log.flush()
    found: list[Json] = (await service.get("/v1/access", limit=1000, **query))["items"]
    return found


async def test_whose_it_was_is_written_down(service: Served, tenants: Tenants) -> None:
    key_id, key = await make_key(service, "admin")
    only_id, only = await make_key(service, "read", "send", accounts=[ACCOUNT])
    chat, message = tenants.chats[OTHER_ACCOUNT], tenants.messages[OTHER_ACCOUNT]
    for path in (f"/v1/conversations/{chat}", f"/v1/messages/{message}", "/v1/conversations"):
        assert (await service.ask("GET", path, key=key)).status == 200
    body = {"account_id": OTHER_ACCOUNT.upper(), "states": ["failed"]}
    assert (await service.ask("POST", "/v1/deliveries/resume", body, key=key)).status == 200
    await signed_in(service, key_id, "GET", f"/conversations/{chat}?message={message}")
    found = await entries(service, key=key_id)
    told = [(one["method"], one["route"], one["account_id"]) for one in reversed(found)]
    assert told == [
        ("GET", "/v1/conversations/{conversation}", OTHER_ACCOUNT),
        ("GET", "/v1/messages/{message}", OTHER_ACCOUNT),
        ("GET", "/v1/conversations", None),
        ("POST", "/v1/deliveries/resume", OTHER_ACCOUNT),
        ("GET", "/conversations/{conversation}", OTHER_ACCOUNT),
    ]
    assert (await service.ask("GET", "/v1/events", key=only)).status == 200
    assert [one["account_id"] for one in await entries(service, key=only_id)] == [ACCOUNT]


async def test_a_limited_key_sees_who_looked_at_its_own(service: Served, tenants: Tenants) -> None:
    _, auditor = await make_key(service, "audit", accounts=[ACCOUNT])
    mine, mine_key = await make_key(service, "read", name="mine", accounts=[ACCOUNT])
    _, other = await make_key(service, "read", name="other", accounts=[OTHER_ACCOUNT])
    _, both = await make_key(service, "read", name="both", accounts=[ACCOUNT, OTHER_ACCOUNT])
    for key, account, status in (
        (mine_key, ACCOUNT, 200),
        (both, ACCOUNT, 200),
        (both, OTHER_ACCOUNT, 200),
        (other, OTHER_ACCOUNT, 200),
        (other, ACCOUNT, 404),
        (mine_key, OTHER_ACCOUNT, 404),
    ):
        path = f"/v1/conversations/{tenants.chats[account]}"
        assert (await service.ask("GET", path, key=key)).status == status
    await service.ask("GET", "/v1/conversations", key=both)
    await service.ask("GET", "/v1/access", key=mine_key, params={"account_id": ACCOUNT})
    await service.run.services.access_log.flush()
    found = (await service.ask("GET", "/v1/access", key=auditor, params={"limit": 1000})).body["items"]
    assert {one["account_id"] for one in found} == {ACCOUNT}
    named = [
        (one["key_name"], one["status"]) for one in found if one["key_name"] in ("mine", "other", "both")
    ]
    assert named == [("both", 200), ("mine", 200)]
    for query, status in (({"account_id": ACCOUNT}, 200), ({"account_id": OTHER_ACCOUNT}, 404)):
        answer = await service.ask("GET", "/v1/access", key=auditor, params={**query, "key": mine})
        assert answer.status == status, answer


BAD = ("\0", "\ud800", "a\0b", "\x1b[2J", "x" * 3000, "'; DROP TABLE ledger.access; --", "00000000", "{}")


async def test_no_client_stops_the_entries(service: Served, tenants: Tenants) -> None:
    """One path with a NUL in it kept all entries back from then on, until they were lost."""
    key_id, key = await make_key(service, "admin")
    asked = 0
    for text in BAD:
        written = quote(text, safe="", errors="surrogatepass")
        for path in (
            f"/v1/conversations/{written}",
            f"/v1/messages/{written}",
            f"/v1/events?account_id={written}",
        ):
            async with service.client.get(
                URL(service.url + path, encoded=True), headers={"Authorization": f"Bearer {key}"}
            ) as answer:
                assert answer.status < 500, (path, await answer.text())
            asked += 1
    found = await entries(service, key=key_id)
    assert len(found) == asked
    assert await entries(service, key="") == []
    status = (await service.ask("POST", "/v1/keys", {"name": "a\0b", "scopes": ["read"]})).status
    assert status == 400
    status = (await service.ask("GET", "/v1/access", params={"key": "a\0b"})).status
    assert status == 400


async def test_an_entry_that_cannot_be_written_keeps_back_no_other(service: Served) -> None:
    pool = service.run.services.pool
    log = AccessLog(pool, 1)
    for route in ("/v1/before", "/v1/\0", "/v1/after"):
        log.note(entry_of(ADMIN, method="GET", route=route, names={}, address="", status=200))
    await log.flush()
    assert [one.route for one in (await list_access(pool, limit=3)).items] == [
        "1 entries lost",
        "/v1/after",
        "/v1/before",
    ]


@pytest_asyncio.fixture
async def alone(servers: Servers) -> AsyncIterator[Served]:
    async with serving(servers) as service:
        yield service


async def test_a_database_that_stalls_slows_no_read_and_loses_nothing_unseen(alone: Served) -> None:
    log, url = alone.run.services.access_log, alone.run.services.settings.database_url or ""
    async with await psycopg.AsyncConnection.connect(url) as owner:
        await owner.execute("LOCK TABLE ledger.access IN ACCESS EXCLUSIVE MODE")
        start = asyncio.get_running_loop().time()
        for _ in range(50):
            assert (await alone.ask("GET", "/v1/conversations")).status == 200
        assert asyncio.get_running_loop().time() - start < 5
        entry = entry_of(ADMIN, method="GET", route="/v1/flood", names={}, address="", status=200)
        for _ in range(access_log.ENTRIES_MAX):
            log.note(entry)
        await owner.rollback()
    async with asyncio.timeout(15):
        while log.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    async with await psycopg.AsyncConnection.connect(url) as owner:
        cursor = await owner.execute("SELECT route, count(*) FROM ledger.access GROUP BY route")
        counts: dict[str, int] = dict(await cursor.fetchall())
    (lost,) = [int(route.split()[0]) for route in counts if route.endswith(access_log.LOST)]
    assert counts["/v1/conversations"] == 50
    assert counts["/v1/flood"] + lost == access_log.ENTRIES_MAX


async def test_closing_waits_for_no_database_that_stalls(
    alone: Served, caplog: pytest.LogCaptureFixture
) -> None:
    url = alone.run.services.settings.database_url or ""
    log = AccessLog(alone.run.services.pool, 1)
    async with await psycopg.AsyncConnection.connect(url) as owner:
        await owner.execute("LOCK TABLE ledger.access IN ACCESS EXCLUSIVE MODE")
        log.note(entry_of(ADMIN, method="GET", route="/v1/x", names={}, address="", status=200))
        start = asyncio.get_running_loop().time()
        await log.close()
        assert asyncio.get_running_loop().time() - start < access_log.CLOSE_SECONDS + 1
    assert "1 entries are not written" in caplog.text


async def test_that_a_process_was_killed_is_told(servers: Servers, tmp_path: Path) -> None:
    async with database(servers) as url, aiohttp.ClientSession() as client:
        given = {
            "CHATLEDGER_DATABASE_URL": url,
            "CHATLEDGER_NATS_URL": servers.nats_url,
            "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
            "CHATLEDGER_MASTER_KEY": MASTER_KEY,
            "CHATLEDGER_ROLES": "web,project",
            "CHATLEDGER_PORT": "0",
            "CHATLEDGER_DATA": str(tmp_path / "data"),
        }
        assert (await run_command("migrate", **given)).code == 0
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        process = Process(tmp_path, "app", "serve", **given)
        pool = Pool(url)

        async def lost() -> list[str]:
            items = (await list_access(pool, limit=1000)).items
            return [one.route for one in items if access_log.LOST in one.route]

        async def writers() -> int:
            async with pool.connection() as db:
                return len(await (await db.execute("SELECT id FROM ledger.access_writers")).fetchall())

        async def wait_for(count: int) -> None:
            async with asyncio.timeout(20):
                while await writers() != count:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)

        try:
            for end in (signal.SIGTERM, signal.SIGKILL):
                async with started(process) as at:
                    await wait_for(1)
                    async with client.get(f"{at}/v1/conversations", headers=headers) as answer:
                        assert answer.status == 200
                    await process.end(end)
                assert (await writers(), await lost()) == (int(end == signal.SIGKILL), [])
            shown = [one for one in (await list_access(pool)).items if one.route == "/v1/conversations"]
            assert len(shown) == 1  # That of the process that ended in order.
            async with pool.connection() as db:
                await db.execute("UPDATE ledger.access_writers SET seen_at = seen_at - interval '1 hour'")
            async with started(process):
                async with asyncio.timeout(20):
                    while not await lost():  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                assert await lost() == ["entries lost: those of the last second of a process that was killed"]
                await process.end()
            assert await writers() == 0
        finally:
            await pool.close()
