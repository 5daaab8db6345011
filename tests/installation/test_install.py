"""An account that nobody knew installs the integration, and gets what [install] says."""

import asyncio
import re
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import replace

from app.servers.servers import Servers
from tests.support.crm_service import INSTALL, Office, office_of
from tests.support.ids import ACCOUNT, CRM_ID, OTHER_ACCOUNT
from tests.support.service import Answer

STEPS = ["authorize", "connect acme", "source", "webhooks"]
DONE = ["account.authorized", "channel.connected", "source.made", "account.subscribed"]


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


async def test_each_account_gets_its_own(office: Office) -> None:
    for account in (ACCOUNT, OTHER_ACCOUNT):
        assert (await office.install(account)).status == 200
    for account in (ACCOUNT, OTHER_ACCOUNT):
        assert (await office.account(account))["channels"] == [{"name": "acme", "connected": True}]


async def test_the_page_loaded_again_is_answered_and_changes_nothing(office: Office) -> None:
    query = await office.answer_of_kommo()
    first, second = await asyncio.gather(office.callback(query), office.callback(query))
    assert (first.status, second.status) == (200, 200)
    head, kommo = await office.head(), await office.order("/crm", method="GET")
    again = await office.callback(query)
    assert (again.status, b"Connected" in again.raw) == (200, True)
    assert (await office.head(), await office.order("/crm", method="GET")) == (head, kommo)
    assert await office.types(0) == ["channel.registered", *DONE]


async def test_installing_again_makes_nothing_twice(office: Office) -> None:
    await office.install()
    head = await office.head()
    assert (await office.install()).status == 200
    assert await office.types(head) == ["account.authorized"]
    kommo = await office.order("/crm", method="GET")
    assert (len(kommo["sources"]), len(kommo["subscriptions"])) == (1, 1)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"referer": "evil.example"}, "referer"),
        ({"referer": "127.0.0.1:9"}, "referer"),
        ({"referer": "acme.kommo.com.evil.example"}, "referer"),
        ({"referer": ""}, "referer"),
        ({"code": ""}, "missing"),
        ({"code": "made-up"}, "code"),
        ({"client_id": ACCOUNT}, "client_id"),
        ({"from_widget": "0"}, "state"),
        ({"state": "made-up"}, "state"),
    ],
    ids=str,
)
async def test_what_does_not_fit_is_refused_and_nothing_is_kept(
    office: Office, changed: dict[str, str], word: str
) -> None:
    head = await office.head()
    answer = await office.install(**changed)
    assert (answer.status, word in answer.body["detail"]) == (400, True), answer
    assert (await office.head(), (await office.get("/v1/accounts"))["items"]) == (head, [])


async def test_a_code_is_good_once(office: Office) -> None:
    query = await office.answer_of_kommo()
    assert (await office.callback(query)).status == 200
    head = await office.head()
    other = query | {"referer": query["referer"].replace("127.0.0.1", "localhost")}
    answer = await office.callback(other)
    assert (answer.status, "does not take the code" in answer.body["detail"]) == (400, True)
    assert await office.head() == head


async def test_without_a_table_install_only_who_was_asked_may_come(servers: Servers) -> None:
    async with office_of(servers) as one:
        answer = await one.install()
        assert (answer.status, "[install]" in answer.body["detail"]) == (400, True)
        assert (await one.request("GET", "/install")).status == 409


async def pressed(office: Office) -> tuple[str, str]:
    """The state behind the button of our page, and the cookie that came with it."""
    page = await office.request("GET", "/install")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    [href] = re.findall(r'class="button" href="([^"]+)"', page.raw.decode())
    url = unescape(href)
    assert url.startswith(f"{office.sandbox.url}/oauth?")
    cookie = page.headers["Set-Cookie"]
    assert ("HttpOnly" in cookie, "SameSite=lax" in cookie) == (True, True)
    return parse_qs(urlsplit(url).query)["state"][0], cookie.partition(";")[0]


async def back(office: Office, state: str, cookie: str) -> Answer:
    query = await office.answer_of_kommo(state=state)
    del query["from_widget"]
    return await office.callback(query, headers={"Cookie": cookie} if cookie else {})


async def test_our_own_button_installs_it(office: Office) -> None:
    state, cookie = await pressed(office)
    head = await office.head()
    answer = await back(office, state, cookie)
    assert (answer.status, b"Connected" in answer.raw) == (200, True), answer
    assert await office.types(head) == DONE


async def test_a_state_of_another_browser_is_refused(office: Office) -> None:
    (state, _), (_, other) = await pressed(office), await pressed(office)
    head = await office.head()
    for cookie in (other, "chatledger_install=made-up", ""):
        answer = await back(office, state, cookie)
        assert (answer.status, "another browser" in answer.body["detail"]) == (400, True)
    assert await office.head() == head


async def test_a_state_of_our_button_is_good_once(office: Office) -> None:
    state, cookie = await pressed(office)
    assert (await back(office, state, cookie)).status == 200
    again = await back(office, state, cookie)
    assert (again.status, "used already" in again.body["detail"]) == (400, True)


async def test_who_was_asked_for_an_account_gets_the_same(office: Office) -> None:
    head = await office.head()
    assert (await office.led_back()).status == 200
    assert await office.types(head) == DONE


async def test_only_the_subdomains_that_are_allowed_may_install(servers: Servers) -> None:
    async with office_of(servers, install=replace(INSTALL, allow=("acme",))) as one:
        await one.register()
        head = await one.head()
        refused = await one.install(OTHER_ACCOUNT)
        assert (refused.status, "not allowed" in refused.body["detail"]) == (403, True)
        assert (await one.head(), (await one.get("/v1/accounts"))["items"]) == (head, [])
        assert (await one.install()).status == 200


@pytest.mark.parametrize(
    ("where", "action", "step", "word"),
    [
        ("crm.sources", "402", "source", "plan"),
        ("crm.webhooks", "403", "webhooks", "403"),
        ("kommo.connect", "500", "connect acme", "500"),
        ("kommo.connect", "403", "connect acme", "403"),
    ],
)
async def test_a_step_that_fails_is_told_and_tried_again(
    office: Office, where: str, action: str, step: str, word: str
) -> None:
    head = await office.head()
    await office.fault(where, action, times=None)
    answer = await office.install()
    assert (answer.status, b"Nearly done" in answer.raw) == (200, True)
    assert word in answer.raw.decode()
    shown = {one["step"]: one for one in (await office.account())["steps"]}
    assert word in shown[step]["error"]
    assert [one for one in STEPS if "error" in shown[one]] == [step]
    if step == "connect acme":
        [channel] = (await office.account())["channels"]
        assert (channel["connected"], word in channel["error"]) == (False, True)
    office.sandbox.faults.clear()
    await office.settle()
    assert all("done_at" in one for one in (await office.account())["steps"])
    assert sorted(await office.types(head)) == sorted(DONE)


async def test_a_channel_that_is_not_there_yet_is_connected_once_it_is(servers: Servers) -> None:
    async with office_of(servers, install=INSTALL) as one:
        assert b"no channel has this name" in (await one.install()).raw
        await one.register()
        await one.settle()
        assert (await one.account())["channels"] == [{"name": "acme", "connected": True}]


async def test_a_plan_that_does_not_allow_it_is_told_as_such(office: Office) -> None:
    await office.fault("crm.account", "402", times=None)
    answer = await office.install()
    assert (answer.status, "plan" in answer.body["detail"]) == (502, True)
    office.sandbox.faults.clear()
    assert (await office.get("/v1/accounts"))["items"] == []


async def test_strangers_find_no_more_than_few_places(office: Office) -> None:
    await office.fault("crm.token", "slow", times=None, seconds=7)
    queries = [await office.answer_of_kommo() for _ in range(12)]
    answers = await asyncio.gather(*(office.callback(query) for query in queries))
    assert sorted(answer.status for answer in answers) == [200] * 8 + [503] * 4
    office.sandbox.faults.clear()
