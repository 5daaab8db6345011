"""An account that nobody knew installs the integration, and gets what [install] says."""

from collections.abc import AsyncIterator

import pytest_asyncio

from app.config.file import DefaultSource, Install
from app.servers.servers import Servers
from tests.support.crm_service import Office, office_of
from tests.support.ids import ACCOUNT, CRM_ID

INSTALL = Install(("acme",), "Acme chat", DefaultSource("Acme"))
STEPS = ["authorize", "connect acme", "source", "webhooks"]
DONE = ["account.authorized", "channel.connected", "source.made", "account.subscribed"]


@pytest_asyncio.fixture
async def office(servers: Servers) -> AsyncIterator[Office]:
    async with office_of(servers, install=INSTALL) as one:
        assert (await one.register()).status == 201
        yield one


async def test_an_account_that_nobody_knew_installs_it_from_kommo(office: Office) -> None:
    head = await office.head()
    answer = await office.install()
    assert (answer.status, b"Connected" in answer.raw) == (200, True), answer
    assert await office.types(head) == DONE
    shown = await office.account()
    assert (shown["state"], shown["crm_id"], shown["subdomain"]) == ("authorized", CRM_ID, "acme")
    assert shown["channels"] == [{"name": "acme", "connected": True}]
    assert [step["step"] for step in shown["steps"]] == STEPS
    assert all(step.keys() == {"step", "done_at"} for step in shown["steps"])
    kommo = await office.order("/crm", method="GET")
    assert [(one["name"], one["default"]) for one in kommo["sources"]] == [("Acme", True)]
    assert [one["account"] for one in kommo["subscriptions"]] == [ACCOUNT]
