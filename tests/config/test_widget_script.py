"""The widget's script frames our page in Kommo's page, and hands the user's token to it and nobody else."""

import io
import json
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Page, expect

from app.cli.widget import archive
from tests.support.browser.windows import browser
from tests.support.ids import CLIENT

pytestmark = pytest.mark.browser

# A page of Kommo's with a place for the window and one for the page of advanced settings.
KOMMO = """<!doctype html><title>Kommo</title><link rel="icon" href="data:,">
<div id="window"></div><div id="work-area-acme"></div>
<script>
let Widget;
window.define = (names, make) => { Widget = make(); };
</script>
<script src="/script.js"></script>
<script>
const texts = TEXTS;
Object.assign(Widget.prototype, {
  i18n: (name) => texts[name],
  get_settings: () => ({ widget_code: "acme" }),
  get_install_status: () => window.status || "installed",
  $authorizedAjax: (options) => {
    const answer = fetch(options.url, { method: options.method, body: options.data });
    const told = answer.then((one) => (one.ok ? one.json() : Promise.reject(one)));
    const one = {
      done(then) { told.then(then, () => {}); return one; },
      fail(then) { told.catch(then); return one; },
    };
    return one;
  },
});
const widget = new Widget();
</script>"""
# Our page asks as often as its button is pressed, and shows what it is told and by whom.
OURS = """<!doctype html><title>Settings</title><link rel="icon" href="data:,">
<button>Ask</button><pre></pre><script>
const told = document.querySelector("pre");
addEventListener("message", (event) => {
  told.textContent += JSON.stringify(event.data) + event.origin + "\\n";
});
document.querySelector("button").onclick = () => parent.postMessage({ type: "chatledger.token" }, "*");
</script>"""


class Kommo:
    """Kommo's page at `localhost` and ours at `127.0.0.1`: to a browser these are strangers."""

    def __init__(self) -> None:
        self.url = self.ours = ""
        self.tokens = 0
        self.status = self.session_status = 200
        self.asked: list[str] = []
        self.languages: list[str] = []

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/kommo", self.page)
        app.router.add_get("/script.js", self.script)
        app.router.add_get("/settings", self.settings)
        app.router.add_post("/settings/session", self.session)
        app.router.add_get("/ajax/v2/integrations/{client}/disposable_token", self.token)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        self.url, self.ours = f"http://localhost:{port}", f"http://127.0.0.1:{port}"
        self.packed = zipfile.ZipFile(io.BytesIO(archive(self.ours, CLIENT, 'Ann & "Co"', "1.2.3")))
        return runner

    async def page(self, request: web.Request) -> web.Response:
        texts = json.loads(self.packed.read(f"i18n/{request.query.get('lang', 'en')}.json"))
        return web.Response(text=KOMMO.replace("TEXTS", json.dumps(texts)), content_type="text/html")

    async def script(self, request: web.Request) -> web.Response:
        return web.Response(body=self.packed.read("script.js"), content_type="text/javascript")

    async def settings(self, request: web.Request) -> web.Response:
        self.languages.append(request.query["lang"])
        return web.Response(text=OURS, content_type="text/html")

    async def session(self, request: web.Request) -> web.Response:
        assert await request.json() == {}
        headers = {"Access-Control-Allow-Origin": self.url}
        return web.json_response({"bearer": "b-1"}, status=self.session_status, headers=headers)

    async def token(self, request: web.Request) -> web.Response:
        self.asked.append(request.match_info["client"])
        self.tokens += 1
        return web.json_response({"token": f"token-{self.tokens}"}, status=self.status)


@pytest_asyncio.fixture
async def kommo() -> AsyncIterator[Kommo]:
    one = Kommo()
    runner = await one.start()
    yield one
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module")
async def chromium() -> AsyncIterator[Any]:
    async with browser() as one:
        yield one


@pytest_asyncio.fixture
async def page(kommo: Kommo, chromium: Any) -> AsyncIterator[Page]:
    context = await chromium.new_context()
    context.set_default_timeout(15_000)
    page = await context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    await page.goto(f"{kommo.url}/kommo")
    yield page
    await context.close()
    assert wrong == []


OPEN = "widget.callbacks.settings({ jquery: '3', 0: document.getElementById('window') })"


async def ask(page: Page, times: int = 1) -> None:
    for _ in range(times):
        await page.frame_locator("iframe").locator("button").click()


async def test_each_question_of_our_page_is_answered_with_a_new_token(kommo: Kommo, page: Page) -> None:
    await page.evaluate(OPEN)
    told = page.frame_locator("#window iframe").locator("pre")
    await ask(page)
    await expect(told).to_have_text('{"token":"token-1","type":"chatledger.token"}' + kommo.url)
    await ask(page)
    await expect(told).to_contain_text("token-2")
    assert (kommo.asked, kommo.languages) == ([CLIENT, CLIENT], ["en"])
    assert await page.locator("iframe").get_attribute("title") == 'Settings of Ann & "Co"'


async def test_a_window_that_is_opened_again_has_one_frame(page: Page) -> None:
    for number in (1, 2):
        await page.evaluate(OPEN)
        await ask(page)
        told = page.frame_locator("iframe").locator("pre")
        await expect(told).to_contain_text(f"token-{number}")
        await expect(page.locator("iframe")).to_have_count(1)
    await page.evaluate("widget.callbacks.destroy()")
    await expect(page.locator("iframe")).to_have_count(0)


async def test_the_page_of_advanced_settings_is_the_same(kommo: Kommo, page: Page) -> None:
    await page.goto(f"{kommo.url}/kommo?lang=ru")
    await page.evaluate("widget.callbacks.advancedSettings()")
    await ask(page)
    told = page.frame_locator("#work-area-acme iframe").locator("pre")
    await expect(told).to_contain_text("token-1")
    assert kommo.languages == ["ru"]


async def test_before_it_is_installed_nothing_is_framed(kommo: Kommo, page: Page) -> None:
    await page.evaluate("window.status = 'install'")
    await page.evaluate(OPEN)
    await expect(page.locator("#window")).to_have_text(
        "Install the integration first. Its settings are here afterwards."
    )
    assert (await page.locator("iframe").count(), kommo.asked) == (0, [])


async def test_where_kommo_gives_no_token_it_sends_it_to_our_service(kommo: Kommo, page: Page) -> None:
    kommo.status = 404
    await page.evaluate(OPEN)
    await ask(page)
    told = page.frame_locator("iframe").locator("pre")
    await expect(told).to_contain_text('{"session":{"bearer":"b-1"},"type":"chatledger.token"}')


async def test_without_both_our_page_is_told_why(kommo: Kommo, page: Page) -> None:
    kommo.status, kommo.session_status = 404, 403
    await page.evaluate(OPEN)
    await ask(page)
    told = page.frame_locator("iframe").locator("pre")
    await expect(told).to_contain_text('{"error":403,"type":"chatledger.token"}')


async def test_nobody_else_gets_a_token(kommo: Kommo, page: Page) -> None:
    """Not another frame of the same page, not Kommo's own page, and not a stranger inside our frame."""
    await page.evaluate(OPEN)
    other = "const one = document.body.appendChild(document.createElement('iframe')); one.id = 'other';"
    await page.evaluate(f"() => {{ {other} one.src = '{kommo.ours}/settings?lang=en'; }}")
    await page.frame_locator("#other").locator("button").click()
    await page.evaluate("window.postMessage({ type: 'chatledger.token' }, '*')")
    await page.evaluate(f"() => {{ document.querySelector('iframe').src = '{kommo.url}/settings?lang=en'; }}")
    stranger = page.frame(url=f"{kommo.url}/settings?lang=en")
    while stranger is None:
        await page.wait_for_timeout(20)
        stranger = page.frame(url=f"{kommo.url}/settings?lang=en")
    await stranger.locator("button").click()
    await page.wait_for_timeout(300)
    assert kommo.asked == []
