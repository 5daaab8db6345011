"""`/readyz` says whether something can be stored now, and how each part of the process stands."""

import asyncio
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.ledger.probe import FAILURE_SECONDS
from app.ledger.session import Failure
from app.servers.servers import Servers
from tests.support.service import Answer, Served, sent, serving

REVOKE = "REVOKE EXECUTE ON FUNCTION ledger.append FROM chatledger"
HANG_UP = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
GRANT = "GRANT EXECUTE ON FUNCTION ledger.append TO chatledger"


@pytest.fixture(scope="module")
async def own(servers: Servers) -> AsyncIterator[Served]:
    """A service whose database the tests spoil."""
    async with serving(servers) as service:
        yield service


async def ready(service: Served) -> Answer:
    """A fresh answer: the last one is kept for a second."""
    service.run.services.probe._until = 0.0
    return await service.request("GET", "/readyz")


def ledger_of(answer: Answer) -> dict[str, str]:
    (part,) = [part for part in answer.body["parts"] if part["part"] == "ledger"]
    return dict(part)


async def test_a_service_that_can_store_is_ready_and_lists_its_parts(own: Served) -> None:
    answer = await ready(own)
    assert answer.status == 200
    assert answer.body["ready"] is True
    states = {part["part"]: part["state"] for part in answer.body["parts"]}
    assert states == {"ledger": "ok", "relay": "elsewhere", "project": "active", "deliver": "elsewhere"}
    head = await own.head()
    assert (await ready(own)).status == 200
    assert await own.head() == head


async def test_it_is_not_ready_while_an_append_waits_for_a_lock(own: Served) -> None:
    url = str(own.run.services.settings.database_url)
    async with await psycopg.AsyncConnection.connect(url) as db:
        await db.execute("LOCK TABLE ledger.stored_events IN EXCLUSIVE MODE")
        answer = await ready(own)
        assert (answer.status, answer.body["ready"]) == (503, False)
        assert "within 3 seconds" in ledger_of(answer)["detail"]
        assert answer.headers["Retry-After"] == "5"
    assert (await ready(own)).status == 200


async def test_it_is_not_ready_while_the_database_refuses_to_write(own: Served) -> None:
    url = str(own.run.services.settings.database_url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        await db.execute(REVOKE)
        try:
            answer = await ready(own)
        finally:
            await db.execute(GRANT)
    assert answer.status == 503
    assert "permission denied" in ledger_of(answer)["detail"]
    assert (await ready(own)).status == 200


async def test_it_is_not_ready_while_the_database_lets_nobody_in_and_ready_after_it(own: Served) -> None:
    url = str(own.run.services.settings.database_url)
    name = conninfo_to_dict(url)["dbname"]
    other = make_conninfo(url, dbname="postgres")
    async with await psycopg.AsyncConnection.connect(other, autocommit=True) as db:
        await db.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        await db.execute(HANG_UP, (name,))
        try:
            answer = await ready(own)
        finally:
            await db.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
    assert (answer.status, ledger_of(answer)["state"]) == (503, "unavailable")
    async with asyncio.timeout(10):
        while (await ready(own)).status != 200:  # noqa: ASYNC110 - of another process, without an event
            await asyncio.sleep(0.2)


async def test_a_failure_counts_until_something_is_stored_or_it_is_old(own: Served) -> None:
    ledger = own.run.services.ledger
    await own.register()
    await own.connect()
    ledger.failure = Failure(time.monotonic(), "the database stores nothing: disk full")
    answer = await ready(own)
    assert (answer.status, ledger_of(answer)["detail"]) == (503, "the database stores nothing: disk full")
    assert (await own.act(sent("stored"))).status == 200
    assert (await ready(own)).status == 200
    ledger.failure = Failure(time.monotonic() - FAILURE_SECONDS, "long ago")
    assert (await ready(own)).status == 200


async def test_a_process_that_stops_is_not_ready(own: Served) -> None:
    stopping = own.run.services.stopping
    stopping.set()
    try:
        answer = await ready(own)
    finally:
        stopping.clear()
    assert (answer.status, ledger_of(answer)["state"]) == (503, "stopping")
