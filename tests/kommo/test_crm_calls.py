"""One call of the CRM: signed in anew when it must be, repeated when it may be, never asked too much."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest
import pytest_asyncio

from app.http_client import Unreached
from app.kommo.crm.client import NotAuthorized
from app.kommo.crm.users import Users
from app.servers.servers import Servers
from tests.support.crm_service import HERE, Office, office_of
from tests.support.ids import ACCOUNT, MARIA


@pytest_asyncio.fixture(scope="module")
async def shared(servers: Servers) -> AsyncIterator[Office]:
    async with office_of(servers) as one:
        yield one


@pytest_asyncio.fixture
async def office(shared: Office) -> AsyncIterator[Office]:
    await shared.consent()
    yield shared
    async with shared.client.delete(f"{shared.sandbox.url}/control/faults") as answer:
        assert answer.status == 204


def tokens(office: Office) -> int:
    """How many access tokens Kommo gave out."""
    return sum(one.kind == "access" for one in office.sandbox.crm_state.tokens)


def sources(office: Office) -> list[str]:
    return [one.external_id for one in office.sandbox.crm_state.sources]


async def call(office: Office, method: str, path: str, payload: object = None) -> Any:
    return await office.run.services.crm.call(ACCOUNT, method, f"/api/v4/{path}", payload)


async def make(office: Office, external_id: str) -> Any:
    return await call(office, "POST", "sources", [{"name": "A shop", "external_id": external_id}])


async def test_an_expired_token_is_replaced_and_the_call_goes_on(office: Office) -> None:
    await office.order("/crm/expire", {"account_id": ACCOUNT})
    before = tokens(office)
    answers = await asyncio.gather(*(call(office, "GET", "account") for _ in range(5)))
    assert {answer.status for answer in answers} == {200}
    assert tokens(office) == before + 1


async def test_a_call_that_kommo_refuses_all_the_same_is_refreshed_for_once(office: Office) -> None:
    await office.fault("crm.account", "401", times=None)
    before = tokens(office)
    assert (await call(office, "GET", "account")).status == 401
    assert tokens(office) == before + 1


async def test_a_consent_taken_back_is_told_and_asked_for_no_more(office: Office) -> None:
    head = await office.head()
    await office.order("/crm/revoke", {"account_id": ACCOUNT})
    for _ in range(3):
        with pytest.raises(NotAuthorized, match="authorize"):
            await call(office, "GET", "account")
    assert await office.types(head) == ["account.withdrawn"]
    shown = await office.account()
    assert (shown["state"], "no longer takes" in shown["advice"]) == ("withdrawn", True)


async def test_calls_that_kommo_refuses_one_after_the_other_are_not_all_refreshed_for(office: Office) -> None:
    await office.fault("crm.account", "401", times=None)
    before = tokens(office)
    for _ in range(5):
        assert (await call(office, "GET", "account")).status == 401
    assert tokens(office) == before + 1


@pytest.mark.parametrize("action", ["500", "502", "503", "drop", "drop_after", "html_after"])
async def test_what_is_only_read_is_asked_again(office: Office, action: str) -> None:
    await office.fault("crm.account", action, status=504)
    assert (await call(office, "GET", "account")).status == 200


async def test_attempts_end(office: Office) -> None:
    await office.fault("crm.account", "500", times=None)
    assert (await call(office, "GET", "account")).status == 500
    [fault] = office.sandbox.faults.faults
    assert fault.hits == 3


async def test_what_may_have_been_done_is_not_done_again(office: Office) -> None:
    await office.fault("crm.sources", "drop_after")
    with pytest.raises(Unreached):
        await make(office, "once")
    assert sources(office).count("once") == 1
    await office.fault("crm.sources", "500")
    assert (await make(office, "never")).status == 500
    assert "never" not in sources(office)


async def test_a_page_of_kommos_firewall_is_waited_out(office: Office) -> None:
    await office.fault("crm.sources", "html")
    assert (await make(office, "after-a-page")).status == 200
    assert "after-a-page" in sources(office)


@pytest.mark.parametrize("status", [502, 504])
async def test_what_a_gateway_may_have_passed_on_is_not_done_again(office: Office, status: int) -> None:
    name = f"behind-{status}"
    await office.fault("crm.sources", "html_after", status=status)
    assert (await make(office, name)).status == status
    assert sources(office).count(name) == 1
    await asyncio.sleep(1.1)  # The account rests, for a page came.


async def test_names_are_asked_for_once(office: Office) -> None:
    users = Users(office.run.services.crm)
    names = await asyncio.gather(*(users.name(ACCOUNT, MARIA) for _ in range(5)))
    await office.fault("crm.users", "500", times=None)
    assert {*names, await users.name(ACCOUNT, MARIA)} == {"Maria Keller"}


async def test_without_kommo_there_are_no_names_and_nobody_waits_long(office: Office) -> None:
    users = Users(office.run.services.crm)
    await office.fault("crm.users", "slow", times=None, seconds=5)
    began = monotonic()
    assert [await users.name(ACCOUNT, MARIA) for _ in range(5)] == [None] * 5
    assert monotonic() - began < 2
    await users.close()


async def test_a_second_call_waits_while_kommo_asks_to_wait(office: Office) -> None:
    await office.fault("crm.users", "429", retry_after=7)
    answer = await office.ask("GET", f"{HERE}/users")
    assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
    assert [fault.hits for fault in office.sandbox.faults.faults] == []
    again = await office.ask("GET", f"{HERE}/users")  # Not sent: the budget has no place.
    assert (again.status, "budget" in again.body["detail"]) == (503, True)
    await asyncio.sleep(3)
    assert (await office.ask("GET", f"{HERE}/users")).status == 200
