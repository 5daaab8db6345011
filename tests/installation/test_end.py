"""Kommo's last word counts: an integration that is uninstalled ends there and here, and history stays."""

import asyncio

import pytest

from app.kommo.crm.oauth import disabled_signature
from app.operations.startup import Start
from app.servers.servers import Servers
from tests.support.crm_service import HERE, INSTALL, Office, office_of
from tests.support.ids import ACCOUNT, CLIENT, CLIENT_SECRET, CRM_ID, OTHER_ACCOUNT
from tests.support.service import sent
from tests.support.system import broker

DONE = ["account.authorized", "channel.connected", "source.made", "account.subscribed"]


async def key_of(office: Office, *accounts: str) -> str:
    """A key that reaches these accounts, or all."""
    order = {"name": "k", "scopes": ["read"], "accounts": list(accounts) or None}
    made = await office.ask("POST", "/v1/keys", order)
    assert made.status == 201, made
    return str(made.body["key"])


async def uninstall(office: Office, account: str = ACCOUNT, **more: str) -> None:
    told = await office.order("/crm/disable", {"account_id": account} | more)
    assert more or told["status"] == 200, told


def is_connected(office: Office) -> bool:
    """Whether Kommo has the account's connection."""
    found = office.sandbox.chat_state.connections.values()
    return any(one.active for one in found if one.account_id == ACCOUNT)


async def written(office: Office, number: int) -> str:
    """A customer writes; the id of the conversation."""
    answer = await office.act(sent(number, account_id=ACCOUNT))
    assert answer.status == 200, answer
    [result] = answer.body["results"]
    shown = await office.get(f"/v1/messages/{result['id']}", at_least=result["position"])
    return str(shown["conversation"])


async def test_who_uninstalls_it_ends_connection_tokens_and_keys(office: Office) -> None:
    for account in (ACCOUNT, OTHER_ACCOUNT):
        assert (await office.install(account)).status == 200
    own, shared, other = [
        await key_of(office, *accounts)
        for accounts in ((ACCOUNT,), (ACCOUNT, OTHER_ACCOUNT), (OTHER_ACCOUNT,))
    ]
    await written(office, 1)
    head = await office.head()
    await uninstall(office)
    assert await office.types(head) == ["account.withdrawn", "channel.disconnected", "delivery.parked"]
    shown = await office.account()
    assert (shown["state"], shown["steps"]) == ("withdrawn", [])
    assert shown["channels"] == [{"name": "acme", "connected": False}]
    assert (await office.ask("GET", f"{HERE}/users")).status == 409
    statuses = [
        (await office.ask("GET", "/v1/conversations", key=key)).status for key in (own, shared, other)
    ]
    assert statuses == [401, 200, 200]
    assert (await office.account(OTHER_ACCOUNT))["state"] == "authorized"
    assert len((await office.get("/v1/conversations", account_id=ACCOUNT))["items"]) == 1


async def test_a_new_installation_goes_on_with_the_same_conversations(office: Office) -> None:
    await office.install()
    before = await written(office, 1)
    await uninstall(office)
    head = await office.head()
    assert (await office.install()).status == 200
    types = await office.types(head)
    assert [one for one in types if one in DONE] == DONE
    assert await written(office, 2) == before
    items = (await office.get(f"/v1/conversations/{before}/messages"))["items"]
    assert [one["text"] for one in items] == ["Hello 1", "Hello 2"]


async def test_the_page_of_an_installation_that_has_ended_installs_nothing(office: Office) -> None:
    query = await office.answer_of_kommo()
    assert (await office.callback(query)).status == 200
    await uninstall(office)
    head = await office.head()
    assert (await office.callback(query)).status == 400
    assert (await office.head(), (await office.account())["state"]) == (head, "withdrawn")


async def test_a_replayed_call_ends_no_new_installation(office: Office) -> None:
    await office.install()
    await uninstall(office)
    await office.install()
    key, head = await key_of(office, ACCOUNT), await office.head()
    signature = disabled_signature(CLIENT_SECRET, CLIENT, str(CRM_ID))
    query = {"account_id": str(CRM_ID), "client_uuid": CLIENT, "signature": signature}
    assert (await office.request("GET", "/oauth/disabled", params=query)).status == 409
    assert (await office.head(), (await office.account())["state"]) == (head, "authorized")
    assert (await office.ask("GET", "/v1/conversations", key=key)).status == 200


async def test_a_key_that_is_made_after_the_end_is_good(office: Office) -> None:
    await office.install()
    await uninstall(office)
    key = await key_of(office, ACCOUNT)
    await office.settle()
    assert (await office.ask("GET", "/v1/conversations", key=key)).status == 200


async def test_an_end_that_we_did_not_hear_of_is_found_out(office: Office) -> None:
    await office.install()
    key = await key_of(office, ACCOUNT)
    await uninstall(office, url="http://127.0.0.1:9/away")
    assert (await office.account())["state"] == "authorized"
    await office.settle()
    shown = await office.account()
    assert (shown["state"], shown["channels"]) == ("withdrawn", [{"name": "acme", "connected": False}])
    assert (await office.ask("GET", "/v1/conversations", key=key)).status == 401


async def test_a_start_does_not_connect_an_account_that_has_uninstalled_it(office: Office) -> None:
    await office.install()
    await uninstall(office, url="http://127.0.0.1:9/away")
    await Start(office.run.services).run()
    assert not is_connected(office)


async def parked(office: Office, *, any_more: bool) -> list[dict[str, str]]:
    """The parked deliveries, once there are some, or none any more."""
    async with asyncio.timeout(20):
        while True:
            found: list[dict[str, str]] = (await office.get("/v1/deliveries", state="parked"))["items"]
            if bool(found) == any_more:
                return found
            await asyncio.sleep(0.1)


async def test_delivery_does_not_connect_an_account_that_has_uninstalled_it(servers: Servers) -> None:
    roles = "web,project,relay,deliver"
    async with (
        broker() as nats,
        office_of(servers, install=INSTALL, roles=roles, nats_url=nats.url) as office,
    ):
        await office.register()
        await office.install()
        await uninstall(office, url="http://127.0.0.1:9/away")
        await written(office, 1)
        [delivery] = await parked(office, any_more=True)
        assert "disconnected" in delivery["reason"]
        assert (await office.account())["state"] == "withdrawn"
        assert not is_connected(office)
        await office.install()
        await parked(office, any_more=False)
        assert is_connected(office)


async def test_a_consent_that_is_revoked_ends_with_the_next_call_and_connections_stay(office: Office) -> None:
    await office.install()
    await office.order("/crm/revoke", {"account_id": ACCOUNT})
    await office.settle()
    shown = await office.account()
    assert (shown["state"], shown["channels"]) == ("withdrawn", [{"name": "acme", "connected": True}])
    assert (await office.install()).status == 200
    assert (await office.account())["state"] == "authorized"


@pytest.mark.parametrize("action", ["500", "drop", "402"])
async def test_a_kommo_that_does_not_say_ends_nothing(office: Office, action: str) -> None:
    await office.install()
    head = await office.head()
    await office.fault("crm.account", action, times=None)
    await office.settle()
    shown = await office.account()
    assert (await office.head(), shown["state"]) == (head, "authorized")
    assert ("plan" in (shown["advice"] or "")) == (action == "402")
    office.sandbox.faults.clear()
    await office.settle()
    assert (await office.account())["advice"] is None
