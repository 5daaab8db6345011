"""The manager's page shows what the CRM knows of a chat, and settles it with a click."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright

from ops.sandbox import OAuthClient
from tests.support.crm_client import Office, fresh_office, office
from tests.support.ids import CLIENT, CLIENT_SECRET


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Office]:
    async with office() as one:
        yield one


@pytest_asyncio.fixture
async def crm(shared: Office) -> Office:
    one = await fresh_office(shared)
    await one.chats.send()
    return one


async def chat_of(crm: Office) -> str:
    found: str = (await crm.chats.kommo())["chats"][0]["id"]
    return found


async def page(crm: Office, path: str = "/manager") -> str:
    url = f"{crm.chats.url}{path}?chat={await chat_of(crm)}"
    async with crm.chats.client.get(url) as answer:
        assert answer.status == 200
        return await answer.text()


async def click(crm: Office, action: str) -> int:
    form = {"chat": await chat_of(crm), "action": action}
    async with crm.chats.client.post(crm.chats.url + "/manager/crm", data=form) as answer:
        return answer.status


async def test_an_incoming_lead_is_accepted_on_the_page(crm: Office) -> None:
    shown = await page(crm)
    for words in ("Ann", "Talk open, unread", "Incoming lead", "Accept", "Decline"):
        assert words in shown
    assert [await click(crm, "accept"), await click(crm, "accept")] == [204, 409]
    shown = await page(crm, "/manager/crm")
    assert ("Lead from a chat" in shown, "Incoming lead" in shown) == (True, False)


async def test_a_talk_is_closed_on_the_page(crm: Office) -> None:
    assert [await click(crm, "decline"), await click(crm, "close"), await click(crm, "close")] == [
        204,
        204,
        409,
    ]
    assert "Talk closed" in await page(crm, "/manager/crm")


async def test_without_a_crm_the_page_says_nothing_of_it() -> None:
    async with office(oauth=()) as crm:
        await crm.chats.connect()
        await crm.chats.send()
        assert (await page(crm, "/manager/crm")).strip() == ""
        assert (await crm.crm())["talks"] == []


@pytest.mark.parametrize("text", ["", "Hello you"])
async def test_a_template_is_sent_from_the_page(crm: Office, text: str) -> None:
    _, made = await crm.post("/chats/templates", [{"name": "Greeting", "content": "Hi {{contact.name}}"}])
    one = made["_embedded"]["chat_templates"][0]["id"]
    assert f'<option value="{one}">Greeting</option>' in await page(crm)
    form = {"chat": await chat_of(crm), "text": text, "template": str(one)}
    async with crm.chats.client.post(crm.chats.url + "/manager/send", data=form) as answer:
        assert answer.status == 204
    message = (await crm.chats.kommo())["messages"][-1]["message"]
    assert (message["text"], message["template"]["id"]) == (text or "Hi Ann", one)


async def test_the_customers_page_is_as_it_was(crm: Office) -> None:
    async with crm.chats.client.get(crm.chats.url + "/customer?who=u-1") as answer:
        assert answer.status == 200


@pytest.mark.browser
async def test_in_a_browser_the_consent_leads_to_the_other_site_and_a_lead_goes_with_a_click() -> None:
    async with office(oauth=(OAuthClient(CLIENT, CLIENT_SECRET),)) as crm, async_playwright() as playwright:
        await crm.chats.connect()
        await crm.chats.send()
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = await browser.new_page()
        elsewhere = crm.chats.url.replace("127.0.0.1", "localhost") + "/customer"
        await page.goto(f"{crm.chats.url}/oauth?client_id={CLIENT}&state=s1&redirect_uri={elsewhere}")
        await page.click("button[value=allow]")
        await page.wait_for_url(elsewhere + "?code=*&state=s1&*")
        await page.goto(f"{crm.chats.url}/manager?chat={await chat_of(crm)}")
        await page.click("[data-crm=accept]")
        await page.wait_for_selector(".crm >> text=Lead from a chat")
        assert await page.locator("[data-crm=accept]").count() == 0
        await browser.close()
