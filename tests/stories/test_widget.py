"""From "Install" in Kommo to a message that arrives, to "Uninstall" and back, in a browser all the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, FrameLocator, Page, expect

from app.cli.widget import archive
from app.config.file import DefaultSource, Install
from app.servers.servers import Servers
from app.service.service import migrate, running
from ops.sandbox import OAuthClient, Sandbox, crm_account
from tests.support.browser.windows import browser
from tests.support.crm_service import setup_of
from tests.support.databases import database
from tests.support.ids import (
    ACCOUNT,
    BOT,
    CHANNEL,
    CHANNEL_SECRET,
    CLIENT,
    CLIENT_SECRET,
    CRM_ID,
    MESSENGER_SECRET,
    OTHER_ACCOUNT,
)
from tests.support.system import WAIT_SECONDS, Story, broker, config, free_port, settings_of

pytestmark = pytest.mark.browser

INSTALL = Install(("acme",), "Acme chat", DefaultSource("Acme"))
ADMIN, CLERK = "Maria Keller, administrator", "Oleg Brandt"


class Kommo(NamedTuple):
    """Accounts of Kommo in a browser, and the service whose integration they install."""

    story: Story
    chromium: Browser
    url: str  # `localhost`, which to a browser is another site than that of our pages.

    async def open(self, path: str) -> Page:
        """A page of the sandbox, in a browser of its own."""
        context = await self.chromium.new_context(viewport={"width": 1280, "height": 1200})
        context.set_default_timeout(15_000)
        page = await context.new_page()
        await page.goto(self.url + path)
        return page

    async def account(self, subdomain: str = "acme", user: str = ADMIN) -> Page:
        """The integrations of an account, as one of its users sees them."""
        page = await self.open("/integrations")
        await page.get_by_label("Account", exact=True).select_option(label=subdomain)
        await page.get_by_label("You are", exact=True).select_option(label=user)
        await page.get_by_role("button", name="Show").click()
        return page

    async def upload(self, page: Page) -> None:
        """The developer uploads the archive that `chatledger widget` makes."""
        content = archive(self.story.url, CLIENT, INSTALL.title, "1.2.3")
        await page.get_by_text("For its developer").click()
        file: Any = {"name": "widget.zip", "mimeType": "application/zip", "buffer": content}
        await page.locator("input[type=file]").set_input_files(file)
        await page.get_by_role("button", name="Upload").click()
        await expect(page.get_by_role("status")).to_contain_text("version 1.2.3")

    async def state(self, account: str = ACCOUNT) -> tuple[str, bool]:
        """What the service says of an account, and whether its channel is connected."""
        listed = (await self.story.api("GET", "/v1/accounts"))["items"]
        found = next(one for one in listed if one["account_id"] == account)
        return found["state"], any(one["connected"] for one in found["channels"])

    async def waits_for(self, account: str) -> None:
        """Until the service has a message that waits for the account to be connected."""
        async with asyncio.timeout(WAIT_SECONDS):
            while account not in [one["account_id"] for one in (await self.status())["unconnected"]]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def status(self) -> Any:
        return await self.story.api("GET", "/v1/status")


async def press(page: Page, button: str, said: str) -> None:
    await page.get_by_role("button", name=button, exact=True).click()
    await expect(page.get_by_role("status")).to_have_text(said)


async def window(page: Page) -> FrameLocator:
    """The integration's window in Kommo, with our page in it."""
    await page.get_by_role("link", name="Settings", exact=True).click()
    return page.frame_locator("iframe")


async def write(page: Page, text: str) -> None:
    await page.locator("#composer textarea").fill(text)
    await page.locator("#composer #send").click()


async def back(page: Page) -> None:
    await page.get_by_role("link", name="← Integrations").click()


@asynccontextmanager
async def unconnected(servers: Servers) -> AsyncIterator[Story]:
    """A service whose channel no account is connected to, and none is named in the file."""
    port = free_port()
    here = f"http://127.0.0.1:{port}"
    given = config(
        here,
        oauth=(OAuthClient(CLIENT, CLIENT_SECRET, f"{here}/oauth/callback"),),
        crm_accounts=(crm_account(ACCOUNT, CRM_ID, "acme"), crm_account(OTHER_ACCOUNT, 0, "beta")),
        crm_per_second=0,
        disabled_url=f"{here}/oauth/disabled",
    )
    async with (
        database(servers) as database_url,
        broker() as nats,
        aiohttp.ClientSession() as client,
        Sandbox(given) as sandbox,
    ):
        await migrate(database_url)
        more = {
            "CHATLEDGER_KOMMO_URL": sandbox.url,
            "CHATLEDGER_PUBLIC_URL": here,
            "CHATLEDGER_PORT": str(port),
        }
        settings = settings_of(nats.folder, database_url, nats.url, **more)
        async with running(settings, setup_of(here, sandbox, INSTALL)):
            story = Story(client, sandbox, here)
            await story.api("POST", "/v1/channels", channel(sandbox.url))
            yield story


def channel(sandbox_url: str) -> dict[str, Any]:
    return {
        "name": "acme",
        "kommo": {"channel_id": CHANNEL, "secret": CHANNEL_SECRET, "bot_id": BOT},
        "messenger": {"kind": "webhook", "url": f"{sandbox_url}/messenger/hook", "secret": MESSENGER_SECRET},
    }


@pytest_asyncio.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as one:
        yield one


@pytest_asyncio.fixture
async def kommo(servers: Servers, chromium: Browser) -> AsyncIterator[Kommo]:
    async with unconnected(servers) as story:
        yield Kommo(story, chromium, story.sandbox.url.replace("127.0.0.1", "localhost"))


async def test_from_install_to_a_message_to_uninstall_and_back(kommo: Kommo) -> None:
    page, phone, desk = await kommo.account(), await kommo.open("/customer"), await kommo.open("/manager")
    await kommo.upload(page)
    await press(page, "Install", "Installed. The integration answered 200.")
    assert await kommo.state() == ("authorized", True)

    ours = await window(page)
    await expect(ours.get_by_text("Messages flow between the messenger and Kommo.")).to_be_visible()
    await ours.get_by_role("button", name="Send a test message").click()
    await expect(ours.locator("#live")).to_contain_text("This is a test message.")
    await phone.get_by_label("Name").fill("Ann")
    await phone.get_by_role("button", name="Create and start a chat").click()
    await write(phone, "Are you open?")
    await desk.get_by_role("link", name="Ann").click()
    await expect(desk.locator("#messages")).to_contain_text("Are you open?")
    await write(desk, "Until six")
    await expect(phone.locator("#messages")).to_contain_text("Until six")

    await back(page)
    await press(page, "Uninstall", "Uninstalled. The integration answered 200.")
    assert await kommo.state() == ("withdrawn", False)
    await window(page)
    await expect(page.get_by_text("Install the integration first.")).to_be_visible()
    await write(phone, "And tomorrow?")
    await kommo.waits_for(ACCOUNT)
    await expect(desk.locator("#messages li")).to_have_count(2)

    await back(page)
    await press(page, "Install", "Installed. The integration answered 200.")
    assert await kommo.state() == ("authorized", True)
    await expect(desk.locator("#messages li")).to_have_count(3)
    await expect(desk.locator("#messages li").last).to_contain_text("And tomorrow?")


async def test_each_account_sees_its_own_and_only_administrators_change_it(kommo: Kommo) -> None:
    story, acme, beta = kommo.story, await kommo.account(), await kommo.account("beta")
    await kommo.upload(acme)
    for page in (acme, beta):
        await press(page, "Install", "Installed. The integration answered 200.")
    for account, text in ((ACCOUNT, "For acme"), (OTHER_ACCOUNT, "For beta")):
        action = {"account_id": account, "conversation_id": f"conv-{account}", "message_id": f"m-{account}"}
        sender = {"id": "u-1", "name": "Ann"}
        told = {"type": "message.sent", "sender": sender, "message": {"type": "text", "text": text}}
        assert (await story.tell(told | action))[0] == 200
    await story.settled()
    for page, own, other in ((acme, "For acme", "For beta"), (beta, "For beta", "For acme")):
        live = (await window(page)).locator("#live")
        await expect(live).to_contain_text(own)
        await expect(live).not_to_contain_text(other)

    clerk = await kommo.account("beta", CLERK)
    await expect(clerk.get_by_text("Only administrators install and uninstall.")).to_be_visible()
    assert await clerk.get_by_role("button", name="Uninstall").count() == 0
    ours = await window(clerk)
    await expect(ours.locator("#live")).to_contain_text("For beta")
    await expect(ours.get_by_text("Only administrators of the account may change something")).to_be_visible()
    assert await ours.get_by_role("button").count() == 0


async def test_a_window_speaks_the_users_language_each_time_it_is_opened(kommo: Kommo) -> None:
    page = await kommo.account()
    await kommo.upload(page)
    await press(page, "Install", "Installed. The integration answered 200.")
    for language, title in (
        ("es", "Conexión"),
        ("pt", "Conexão"),
        ("ru", "Подключение"),
        ("en", "Connection"),
    ):
        await page.get_by_label("Language").select_option(label=language)
        await page.get_by_role("button", name="Show").click()
        ours = await window(page)
        await expect(ours.locator("#connection")).to_have_text(title)
        await back(page)


async def test_where_kommo_gives_no_token_the_window_opens_all_the_same(kommo: Kommo) -> None:
    """Kommo's page sends the token to our service then, from the account's own address."""
    page = await kommo.account()
    await kommo.upload(page)
    await press(page, "Install", "Installed. The integration answered 200.")
    await kommo.story.fault("crm.one_time", "404")
    ours = await window(page)
    await expect(ours.get_by_text("Messages flow between the messenger and Kommo.")).to_be_visible()
    await ours.get_by_role("button", name="Send a test message").click()
    await expect(ours.locator("#live")).to_contain_text("This is a test message.")


async def test_where_kommo_gives_no_token_at_all_the_window_says_so(kommo: Kommo) -> None:
    page = await kommo.account()
    await kommo.upload(page)
    await press(page, "Install", "Installed. The integration answered 200.")
    await kommo.story.fault("crm.one_time", "404", times=None)
    ours = await window(page)
    await expect(ours.get_by_role("heading", name="Open this page in Kommo")).to_be_visible()
    await expect(ours.get_by_role("alert").first).to_contain_text("(404)")
