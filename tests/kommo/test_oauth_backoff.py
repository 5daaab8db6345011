"""Kommo is asked for tokens no more often than helps, and only what it says takes a consent back."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.config.file import Budgets
from app.http_client import Answer, Unreached
from app.kommo.budget import Budget
from app.kommo.crm.oauth import AppRefused, OAuth, TokenRefused, pair_of
from app.servers.servers import Servers
from domain import commands as c
from tests.support.token_processes import APP, REST_SECONDS, Processes, one_more, processes_on

EXPIRED = "UPDATE ledger.tokens SET expires_at = now() WHERE account_id = %s"


@pytest_asyncio.fixture(scope="module")
async def processes(servers: Servers) -> AsyncIterator[Processes]:
    async with processes_on(servers) as one:
        yield one


async def test_with_an_expired_token_kommo_is_not_asked_by_each_call(processes: Processes) -> None:
    account = await processes.consent()
    await processes.run(EXPIRED, account)
    await processes.fault("503", times=None)
    async with one_more(processes, OAuth(processes.client, APP)) as tokens:
        for _ in range(5):
            with pytest.raises(Unreached, match="503"):
                await tokens.access(account)
        [fault] = processes.sandbox.faults.faults
        assert fault.hits == 1
        await processes.calm()
        await processes.again()
        assert await processes.works((await tokens.access(account)).token)


async def test_kommo_is_asked_again_no_sooner_than_it_says(processes: Processes) -> None:
    account = await processes.consent()
    await processes.run(EXPIRED, account)
    await processes.fault("429", times=None, retry_after=60)
    for _ in range(5):
        with pytest.raises(Unreached, match="429"):
            await processes.all[0].access(account)
        await asyncio.sleep(REST_SECONDS * 2)
    assert processes.sandbox.faults.faults[0].hits == 1


async def test_a_token_that_is_refused_as_well_is_not_replaced_at_once(processes: Processes) -> None:
    account = await processes.consent()
    async with one_more(processes, processes.watched()) as tokens:
        first = (await tokens.access(account)).token
        second = (await tokens.access(account, refused=first)).token
        for _ in range(5):
            assert (await tokens.access(account, refused=second)).token == second
        assert (await tokens.access(account, refused=first)).token == second
    assert len(processes.spent) == 1


async def test_a_refresh_is_a_call_within_the_accounts_budget(processes: Processes) -> None:
    account = await processes.consent()
    await processes.run(EXPIRED, account)
    budget = Budget(processes.url, Budgets(crm_per_second=1000))
    await processes.fault("429", retry_after=60)
    async with one_more(processes, OAuth(processes.client, APP, budget)) as tokens:
        with pytest.raises(Unreached):
            await tokens.access(account)
        with pytest.raises(Unreached, match="no more calls"):
            await budget.take(account, "crm", within_seconds=0.1)
    await budget.close()
    other = Budget(processes.url, Budgets(crm_per_second=1000))
    async with one_more(processes, OAuth(processes.client, APP, other)) as tokens:
        with pytest.raises(Unreached, match="no more calls"):
            await tokens.access(account)
    await other.close()
    assert processes.sandbox.faults.faults == []


async def test_a_refusal_without_a_reason_takes_no_consent_back(processes: Processes) -> None:
    account = await processes.consent()
    await processes.run(EXPIRED, account)
    await processes.fault("400", body={"status": 400})
    with pytest.raises(Unreached):
        await processes.all[0].access(account)
    assert await processes.works(await processes.called(processes.all[0]))
    assert [type(command) for command in processes.recorded] == [c.Authorize]


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("", b"", Unreached),
        ("text/plain", b"Bad Request", Unreached),
        ("text/html", b"<html>Bad Request</html>", Unreached),
        ("application/json", b"[]", Unreached),
        ("application/json", b'{"title":"Unauthorized","status":401}', Unreached),
        ("application/json", b'{"hint":"","detail":null,"error":{}}', Unreached),
        ("application/json", b'{"hint":"Token has been revoked"}', TokenRefused),
        ("application/json", b'{"detail":"The refresh token is invalid."}', TokenRefused),
        ("application/json", b'{"error":"invalid_grant"}', TokenRefused),
        ("application/json", b'{"error":"invalid_client"}', AppRefused),
    ],
)
def test_only_an_answer_that_says_so_means_that_a_token_is_spent(
    status: int, kind: str, body: bytes, expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        pair_of(Answer(status, kind, 0.0, body))
