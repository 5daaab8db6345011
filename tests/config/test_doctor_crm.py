"""Whether an account lets us into its CRM is told, from before the first consent to its end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from app.doctor.doctor import examine
from app.doctor.probe import Check
from app.servers.servers import Servers
from tests.support.crm_service import Office, office_of
from tests.support.ids import ACCOUNT
from tests.support.service import sent


@pytest.fixture(scope="module")
async def office(servers: Servers) -> AsyncIterator[Office]:
    """A service with an OAuth app, and accounts that have not let it in yet."""
    async with office_of(servers) as one:
        yield one


async def crm_of(office: Office, **changed: Any) -> tuple[Check, Check]:
    """The check of the app, and that of the account."""
    services = office.run.services
    setup = msgspec.structs.replace(services.setup, **changed)
    found = {check.name: check for check in await examine(services.settings, setup)}
    return found["oauth"], found[f"crm of account {ACCOUNT}"]


async def test_an_account_is_followed_from_the_first_consent_to_its_end(office: Office) -> None:
    app, crm = await crm_of(office)
    assert (app.ok, crm.ok, "never let us in" in crm.says) == (True, False, True), crm
    assert crm.todo.startswith(f"POST /v1/accounts/{ACCOUNT}/authorize")
    await office.consent()
    _, crm = await crm_of(office)
    assert (crm.ok, f"POST /v1/accounts/{ACCOUNT}/webhooks" in crm.todo) == (True, True), crm
    assert (await office.ask("POST", f"/v1/accounts/{ACCOUNT}/webhooks")).status == 201
    _, crm = await crm_of(office)
    assert (crm.ok, crm.todo) == (True, ""), crm
    [subscription] = office.sandbox.crm_state.subscriptions.of(ACCOUNT)
    subscription.disabled = True
    _, crm = await crm_of(office)
    assert (crm.ok, "disabled" in crm.says, "public url" in crm.todo) == (False, True, True), crm
    subscription.disabled, right = False, subscription.destination
    subscription.destination = right[:-1] + "x"
    _, crm = await crm_of(office)
    assert (crm.ok, "another master key" in crm.says) == (False, True), crm
    subscription.destination = right
    await office.run.services.tokens.withdraw(ACCOUNT, "test")
    _, crm = await crm_of(office)
    assert (crm.ok, "withdrawn" in crm.says, "authorize" in crm.todo) == (False, True, True), crm


async def test_an_app_whose_consents_end_elsewhere_is_told(office: Office) -> None:
    setup = office.run.services.setup
    assert setup.oauth
    elsewhere = msgspec.structs.replace(setup.oauth, redirect_url="https://elsewhere/oauth/callback")
    app, _ = await crm_of(office, oauth=elsewhere)
    assert (app.ok, "redirect_url is not" in app.says) == (False, True), app


async def test_an_address_of_the_crm_that_is_another_is_told(office: Office) -> None:
    await office.consent()
    [account, *_] = office.run.services.setup.accounts
    moved = msgspec.structs.replace(account, crm_url="https://elsewhere.kommo.com")
    _, crm = await crm_of(office, accounts=(moved,))
    assert (crm.ok, "mend crm_url" in crm.todo) == (False, True), crm


async def test_sources_that_kommo_does_not_have_are_told(office: Office) -> None:
    await office.consent()
    assert (await office.register()).status == 201
    assert (await office.connect()).status == 201
    took = await office.act(sent(source={"external_id": "15550999"}))
    await office.get("/v1/status", at_least=took.headers["Ledger-Position"])
    services, name = office.run.services, f"sources of account {ACCOUNT}"
    async with asyncio.timeout(10):
        found: dict[str, Check] = {}
        while name not in found:
            found = {check.name: check for check in await examine(services.settings, services.setup)}
    assert (found[name].ok, "15550999" in found[name].says) == (False, True), found[name]
    order = {"items": [{"name": "Line", "external_id": "15550999"}]}
    made = await office.ask("POST", f"/v1/accounts/{ACCOUNT}/sources", order)
    assert made.status == 201, made
    found = {check.name: check for check in await examine(services.settings, services.setup)}
    assert found[name].ok
