"""What the page says where something is not as it should be, and how an account that lost us comes back."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest_asyncio

from app.access.rotation import reseal
from app.channels.directory import Credentials
from app.database import sealed
from app.database.connection import connect
from app.http.settings.pages import environment
from app.operations.settings.page import OfCrm, Pipeline, Source
from app.servers.servers import Servers
from app.vault import Vault, kid_in
from tests.support.crm_service import Office, office_of
from tests.support.ids import ACCOUNT, MASTER_BYTES
from tests.support.settings.visits import enter, token_of, visit


@pytest_asyncio.fixture
async def office(servers: Servers) -> AsyncIterator[Office]:
    async with office_of(servers) as one:
        await one.consent()
        yield one


async def test_where_kommo_ended_our_access_the_page_says_what_to_do(office: Office) -> None:
    page = await visit(office)
    assert b"no longer lets us in" not in (await page.get()).raw
    await office.order("/crm/revoke", {"account_id": ACCOUNT})
    assert b"Kommo&#39;s CRM does not answer:" in (await page.get("/crm")).raw
    shown = (await page.get()).raw.decode()
    assert "Kommo no longer lets us in." in shown
    assert f'href="{office.sandbox.url}/oauth?' in shown
    looker = (await (await visit(office, is_admin=False)).get()).raw.decode()
    assert "Kommo no longer lets us in." in looker
    assert "/oauth?" not in looker
    await office.consent()
    assert b"no longer lets us in" not in (await page.get()).raw


async def test_an_account_that_has_moved_is_let_in_from_its_new_address(office: Office) -> None:
    host = f"localhost:{urlsplit(office.sandbox.url).port}"
    new = {"iss": f"http://{host}"}
    assert (await enter(office, token_of(office, **new))).status == 401  # It has not moved.
    await office.order("/crm/account", {"account_id": ACCOUNT, "host": host})
    page = await visit(office, **new)
    assert f"http://{host}" in (await page.get()).raw.decode()
    assert (await enter(office, token_of(office))).status == 401  # The old address is not the account's.


async def test_credentials_are_sealed_with_the_master_key_whichever_that_is(office: Office) -> None:
    services = office.run.services
    assert (await office.register()).status == 201
    assert (await office.connect()).status == 201
    await services.channels.set_credentials("acme", ACCOUNT, Credentials({"token": "very-secret"}))
    await services.channels.settle()
    channel = await services.channels.channel("acme")
    assert channel is not None
    assert channel.connections[ACCOUNT].messenger.fields == {"token": "very-secret"}
    assert "very-secret" not in repr(channel)
    async with await connect(office.database_url) as db:
        vault = Vault(b"another key, of 32 bytes exactly", MASTER_BYTES)
        assert (await reseal(db, vault)).changed > 0
        [row] = [one async for one in sealed.rows(db) if one.place is sealed.CREDENTIALS]
    assert b"very-secret" not in row.sealed
    assert kid_in(row.sealed) == vault.kid
    found = vault.open(row.name, row.sealed, Credentials, subject="it")
    assert found.fields == {"token": "very-secret"}


def test_pipelines_are_chosen_by_name_where_kommo_names_them() -> None:
    crm = OfCrm([Source(7, "Shop", pipeline_id=2)], [Pipeline(1, "Sales"), Pipeline(2, "<Fairs>")])
    values = {"crm": crm, "here": "/settings/accounts/a", "may": True, "said": "", "said_detail": ""}
    shown = environment("en").get_template("_crm.html").render(values)
    assert shown.count("<select") == 2
    assert '<option value="2" selected>&lt;Fairs&gt;</option>' in shown
    assert '<option value="1" >Sales</option>' in shown
