"""In a real browser: Kommo's window frames the page and gives it a token, with cookies and without."""

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, FrameLocator, Page, async_playwright, expect

from app.servers.servers import Servers
from tests.support.browser.windows import CHROMIUM, SWITCHES, WIDTHS, browser
from tests.support.crm_service import Office, office_of
from tests.support.ids import ACCOUNT, CRM_ID, OTHER_ACCOUNT
from tests.support.service import sent
from tests.support.settings.visits import token_of, visit
from tests.support.system import free_port

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / ".artifacts" / "screenshots"
# What Kommo's page does: it frames ours, and gives a token to whoever asks from there, and to nobody else.
WINDOW = """<!doctype html><title>Kommo</title>
<style>iframe {{ width: 100%; height: 780px; border: 0 }}</style>
<iframe src="{ours}/settings?lang={language}"></iframe><script>
const tokens = {tokens}; // What to answer, in turn: a token, or {{session}} or {{error}}.
window.asked = 0;
addEventListener("message", (event) => {{
  if (event.origin !== "{ours}" || event.data.type !== "chatledger.token") return;
  window.asked += 1;
  const one = tokens.shift();
  const told = typeof one === "string" ? {{ token: one }} : one;
  event.source.postMessage({{ type: "chatledger.token", ...told }}, event.origin);
}});
</script>"""
# Chromium's setting "block all cookies", as a person chooses it.
NO_COOKIES = {"profile": {"default_content_setting_values": {"cookies": 2}}}


@pytest_asyncio.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    expect.set_options(timeout=15_000)
    async with browser() as one:
        yield one


class Site:
    """A web server with the windows of Kommo's pages: `localhost` is another site than ours, 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pages: list[str] = []

    async def show(self, request: web.Request) -> web.Response:
        return web.Response(text=self.pages[int(request.match_info["number"])], content_type="text/html")

    async def icon(self, request: web.Request) -> web.Response:
        return web.Response(status=204)

    def add(self, page: str) -> str:
        """The path of a new page."""
        self.pages.append(page)
        return f"/{len(self.pages) - 1}"


@pytest_asyncio.fixture(scope="module")
async def site() -> AsyncIterator[Site]:
    site, app = Site(free_port()), web.Application()
    app.router.add_get(r"/{number:\d+}", site.show)
    app.router.add_get("/favicon.ico", site.icon)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", site.port).start()
    yield site
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module")
async def office(servers: Servers, site: Site) -> AsyncIterator[Office]:
    async with office_of(servers, domains=(f"localhost:{site.port}",)) as one:
        await one.consent()
        assert (await one.led_back(await one.state(OTHER_ACCOUNT), of=OTHER_ACCOUNT)).status == 200
        assert (await one.register()).status == 201
        for account in (ACCOUNT, OTHER_ACCOUNT):
            assert (await one.connect(account=account)).status == 201
            words = sent(f"of {account}", account_id=account, conversation_id=f"chat-{account}")
            assert (await one.act(words)).status == 200
        yield one


def number_of(office: Office, account: str) -> int:
    """The account's number in the CRM."""
    accounts = office.sandbox.config.crm_accounts
    return next(one.id for one in accounts if one.amojo_id == account)


class Kommo:
    """A page of Kommo's, on a site of its own, whose window shows ours."""

    def __init__(self, office: Office, site: Site, context: BrowserContext) -> None:
        self.office, self.site, self.context = office, site, context
        self.problems: list[str] = []

    async def open(self, tokens: list[Any], *, language: str = "en", host: str = "localhost") -> Page:
        """The window, with these tokens to give; under another `host` it is none of Kommo's."""
        page = await self.context.new_page()
        page.on("console", lambda one: self.problems.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        html = WINDOW.format(ours=self.office.url, language=language, tokens=json.dumps(tokens))
        await page.goto(f"http://{host}:{self.site.port}{self.site.add(html)}")
        return page

    async def window(self, account: str = ACCOUNT, *, many: int = 1, **more: Any) -> FrameLocator:
        """The page in the window of an administrator of the account."""
        claims = {"account_id": number_of(self.office, account)} | more.pop("claims", {})
        tokens = [token_of(self.office, **claims) for _ in range(many)]
        return (await self.open(tokens, **more)).frame_locator("iframe")

    async def says(self, script: str) -> Any:
        """What a script in our page, in the last window, gives."""
        return await self.context.pages[-1].frames[1].evaluate(script)

    async def cookies(self) -> list[Any]:
        """The session cookies that the browser has kept."""
        return [
            one
            for one in await self.context.cookies(f"{self.office.url}/settings")
            if "settings" in one["name"]
        ]


@contextlib.asynccontextmanager
async def kommo_in(chromium: Browser, office: Office, site: Site, **more: Any) -> AsyncIterator[Kommo]:
    context = await chromium.new_context(**{"viewport": WIDTHS["wide"], "reduced_motion": "reduce"} | more)
    context.set_default_timeout(15_000)
    yield Kommo(office, site, context)
    await context.close()


@contextlib.asynccontextmanager
async def without_cookies(office: Office, site: Site) -> AsyncIterator[Kommo]:
    """A browser whose user has switched all cookies off."""
    with tempfile.TemporaryDirectory(prefix="chatledger-test-", dir="/tmp") as folder:
        (Path(folder) / "Default").mkdir()
        (Path(folder) / "Default/Preferences").write_text(json.dumps(NO_COOKIES))
        async with async_playwright() as playwright:
            context = await playwright.chromium.launch_persistent_context(
                folder,
                executable_path=CHROMIUM,
                args=SWITCHES,
                viewport=WIDTHS["wide"],  # type: ignore[arg-type]
            )
            context.set_default_timeout(15_000)
            yield Kommo(office, site, context)
            await context.close()


async def use(frame: FrameLocator, account: str) -> None:
    """What an administrator does: look, try again, add a source, disconnect and connect again."""
    await expect(frame.get_by_role("heading", name="Connection")).to_be_visible()
    await expect(frame.get_by_text(f"of {account}")).to_be_visible()
    await frame.get_by_role("button", name="Send a test message").click()
    await expect(frame.get_by_text("A test message is on its way to Kommo.")).to_be_visible()
    await frame.get_by_placeholder("Name of a new source").fill("Shop & <b>Co</b>")
    await frame.get_by_role("button", name="Add", exact=True).click()
    await expect(frame.get_by_text("The source is added.")).to_be_visible()
    await frame.get_by_role("button", name="Delete").last.click()
    await expect(frame.get_by_text("The source is deleted.")).to_be_visible()
    await frame.get_by_role("button", name="Disconnect").click()
    await expect(frame.get_by_text("Not connected")).to_be_visible()
    await frame.get_by_role("button", name="Connect", exact=True).click()
    await expect(frame.get_by_text("The channel is connected.")).to_be_visible()


async def test_the_framed_page_works_with_a_cookie_of_its_own(
    chromium: Browser, office: Office, site: Site
) -> None:
    async with kommo_in(chromium, office, site) as kommo:
        frame = await kommo.window()
        await use(frame, ACCOUNT)
        [cookie] = await kommo.cookies()
        assert await kommo.says("usesBearer") is False
        assert (cookie["sameSite"], cookie["secure"], cookie["httpOnly"]) == ("None", True, True)
        assert await kommo.context.pages[0].evaluate("window.asked") == 1
        assert kommo.problems == []
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        await kommo.context.pages[0].screenshot(path=SCREENSHOTS / "settings.png")


async def test_the_framed_page_works_where_the_browser_refuses_cookies(office: Office, site: Site) -> None:
    async with without_cookies(office, site) as kommo:
        frame = await kommo.window()
        await use(frame, ACCOUNT)
        assert await kommo.cookies() == []
        assert await kommo.says("usesBearer") is True
        assert await kommo.context.pages[-1].evaluate("window.asked") == 1
        assert {one for one in kommo.problems if "401" not in one} == set()  # Chromium reports the first one.


async def test_a_session_that_has_ended_begins_again_by_itself(
    chromium: Browser, office: Office, site: Site
) -> None:
    async with kommo_in(chromium, office, site) as kommo:
        frame = await kommo.window(many=2)
        await expect(frame.get_by_role("button", name="Disconnect")).to_be_visible()
        await kommo.context.clear_cookies()
        spoil = "session.bearer = 'ended'"
        await kommo.says(spoil)
        await frame.get_by_role("button", name="Send a test message").click()
        await expect(frame.get_by_text("A test message is on its way to Kommo.")).to_be_visible()
        assert await kommo.context.pages[0].evaluate("window.asked") == 2


async def test_two_browsers_of_two_accounts_see_nothing_of_each_other(
    chromium: Browser, office: Office, site: Site
) -> None:
    async with kommo_in(chromium, office, site) as one, kommo_in(chromium, office, site) as other:
        for kommo, mine, others in ((one, ACCOUNT, OTHER_ACCOUNT), (other, OTHER_ACCOUNT, ACCOUNT)):
            frame = await kommo.window(mine)
            await expect(frame.get_by_text(f"of {mine}")).to_be_visible()
            assert f"of {others}" not in await frame.locator("body").inner_text()
            asked = f"fetch('/settings/accounts/{others}').then((answer) => answer.status)"
            assert await kommo.says(asked) == 404


async def test_two_accounts_in_one_browser_stay_apart(chromium: Browser, office: Office, site: Site) -> None:
    async with kommo_in(chromium, office, site) as kommo:
        first = await kommo.window(ACCOUNT)
        await expect(first.get_by_text(f"of {ACCOUNT}")).to_be_visible()
        second = await kommo.window(OTHER_ACCOUNT)
        await expect(second.get_by_text(f"of {OTHER_ACCOUNT}")).to_be_visible()
        assert f"of {ACCOUNT}" not in await second.locator("body").inner_text()
        await first.get_by_role("button", name="Send a test message").click()
        await expect(first.get_by_text("A test message is on its way to Kommo.")).to_be_visible()
        assert f"of {OTHER_ACCOUNT}" not in await first.locator("body").inner_text()


async def test_no_other_site_frames_the_page(chromium: Browser, office: Office, site: Site) -> None:
    async with kommo_in(chromium, office, site) as kommo:
        page = await kommo.open([token_of(office)], host="127.0.0.1")
        await expect(page.locator("iframe")).to_be_visible()
        assert any("frame-ancestors" in one for one in kommo.problems)
        assert await page.evaluate("window.asked") == 0


async def test_a_token_of_another_site_is_not_taken(chromium: Browser, office: Office, site: Site) -> None:
    """A window that is no page of Kommo's may open ours, and answer its question: in vain."""
    async with kommo_in(chromium, office, site) as kommo:
        page = await kommo.open([], host="127.0.0.1")
        async with page.expect_popup() as opened:
            await page.evaluate("url => { window.opened = open(url); }", f"{office.url}/settings?lang=en")
        popup = await opened.value
        await popup.wait_for_load_state()
        text = {"type": "chatledger.token", "token": token_of(office)}
        await page.evaluate("text => window.opened.postMessage(text, '*')", text)
        closed = popup.get_by_text("Open this page in Kommo")
        await expect(closed).to_be_visible()  # The page waits 10 s for Kommo.
        assert await kommo.cookies() == []


async def test_a_refused_token_is_told_in_words(chromium: Browser, office: Office, site: Site) -> None:
    async with kommo_in(chromium, office, site) as kommo:
        frame = await kommo.window(claims={"aud": "https://elsewhere.example"})
        await expect(frame.get_by_role("heading", name="Open this page in Kommo")).to_be_visible()
        await expect(frame.get_by_role("alert").first).to_contain_text("the one-time token is refused")


async def test_a_session_that_kommos_page_began_is_taken(
    chromium: Browser, office: Office, site: Site
) -> None:
    async with kommo_in(chromium, office, site) as kommo:
        began = (await visit(office)).began
        frame = (await kommo.open([{"session": began}])).frame_locator("iframe")
        await use(frame, ACCOUNT)
        assert await kommo.says("usesBearer") is True
        assert kommo.problems == []


async def test_where_kommo_gives_nothing_the_page_says_so(
    chromium: Browser, office: Office, site: Site
) -> None:
    async with kommo_in(chromium, office, site) as kommo:
        frame = (await kommo.open([{"error": 403}])).frame_locator("iframe")
        await expect(frame.get_by_role("alert").first).to_contain_text("Kommo could not say who you are.")


async def test_whoever_may_only_look_has_no_buttons(chromium: Browser, office: Office, site: Site) -> None:
    async with kommo_in(chromium, office, site) as kommo:
        frame = await kommo.window(claims={"is_admin": False}, language="ru")
        await expect(frame.get_by_role("heading", name="Подключение")).to_be_visible()
        await expect(frame.get_by_role("heading", name="Источники")).to_be_visible()
        assert await frame.get_by_role("button").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["wide", "phone"])
async def test_the_page_fits_every_window(
    chromium: Browser, office: Office, site: Site, width: str, scheme: Any
) -> None:
    async with kommo_in(chromium, office, site, viewport=WIDTHS[width], color_scheme=scheme) as kommo:
        frame = await kommo.window(language="es")
        await expect(frame.get_by_role("heading", name="Fuentes")).to_be_visible()
        fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert await kommo.says(fits)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        await kommo.context.pages[0].screenshot(path=SCREENSHOTS / f"settings-{width}-{scheme}.png")


def test_the_first_account_has_the_number_that_tokens_name(office: Office) -> None:
    assert number_of(office, ACCOUNT) == CRM_ID
