"""In a real browser the sandbox is to a widget what Kommo's page is, and its buttons do what they say."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, expect

from app.cli.widget import archive
from ops.sandbox import OAuthClient, crm_account
from tests.support.browser.windows import browser
from tests.support.crm_client import OTHER, Office, office
from tests.support.documents.archives import opened, packed
from tests.support.ids import ACCOUNT, CLIENT, CLIENT_SECRET, CRM_ID

pytestmark = pytest.mark.browser

# What our settings page does first, and nothing else: it asks its parent, and keeps what it is told.
PAGE = """<!doctype html><title>Settings</title><p id="told"></p><script>
addEventListener("message", (event) => {
  if (event.source !== parent || event.origin !== "%s") return;
  document.getElementById("told").textContent = JSON.stringify(event.data);
});
parent.postMessage({type: "chatledger.token"}, "*");
</script>"""
# Another integrator's widget: it calls its own server by $authorizedAjax, twice.
OTHERS = b"""define(["jquery"], function ($) {
  return function () {
    var self = this;
    this.callbacks = {
      init: function () { return true; }, render: function () { return true; },
      bind_actions: function () { return true; }, onSave: function () { return true; },
      settings: function ($body) {
        function ask(next) {
          self.$authorizedAjax({ url: "%s/api", method: "POST", dataType: "json", data: { a: 1 } })
            .done(function (told) {
              $body.append("<p class='good'>" + told.said + "</p>");
              if (next) next();
            })
            .fail(function (request) { $body.append("<p class='bad'>" + request.status + "</p>"); });
        }
        ask(ask);
      }
    };
    return this;
  };
});"""


class Home:
    """An integration with a settings page and an API, at another site than the sandbox."""

    def __init__(self) -> None:
        self.url, self.kommo, self.status, self.allows = "", "", 200, True
        self.tokens: list[str] = []

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(text=PAGE % self.kommo, content_type="text/html")

    async def api(self, request: web.Request) -> web.Response:
        headers = {"Access-Control-Allow-Origin": self.kommo, "Access-Control-Allow-Headers": "x-auth-token"}
        headers = headers if self.allows else {}
        if request.method == "OPTIONS":
            return web.Response(headers=headers)
        self.tokens.append(request.headers["X-Auth-Token"])
        assert dict(await request.post()) == {"a": "1"}
        return web.json_response({"said": "hello"}, status=self.status, headers=headers)

    async def callback(self, _: web.Request) -> web.Response:
        return web.Response()


class Kommo:
    """The sandbox as a browser sees it, with our widget installed."""

    def __init__(self, crm: Office, home: Home, chromium: Browser) -> None:
        self.crm, self.home, self.chromium = crm, home, chromium

    async def window(self, area: str = "settings", query: str = f"account={ACCOUNT}") -> Page:
        page = await self.chromium.new_page()
        await page.goto(f"{self.home.kommo}/integrations/window?area={area}&{query}")
        return page


async def told(page: Page) -> dict[str, Any]:
    """What the script has posted to our page."""
    place = page.frame_locator("iframe").locator("#told")
    await expect(place).not_to_be_empty()
    found: dict[str, Any] = json.loads(await place.inner_text())
    assert found.pop("type") == "chatledger.token"
    return found


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return found


@pytest_asyncio.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as one:
        yield one


@pytest_asyncio.fixture
async def kommo(chromium: Browser) -> AsyncIterator[Kommo]:
    home, app = Home(), web.Application()
    app.router.add_get("/settings", home.page)
    app.router.add_get("/oauth/callback", home.callback)
    app.router.add_route("*", "/api", home.api)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    home.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with office(
        oauth=(OAuthClient(CLIENT, CLIENT_SECRET, f"{home.url}/oauth/callback"),),
        crm_accounts=(crm_account(ACCOUNT, CRM_ID, "acme"), crm_account(OTHER, 77, "other")),
        widget=archive(home.url, CLIENT, "Acme chat", "1.2.3"),
    ) as crm:
        home.kommo = crm.chats.url.replace("127.0.0.1", "localhost")  # Another site, as Kommo is.
        assert (await crm.order("/install", account_id=ACCOUNT))[0] == 201
        yield Kommo(crm, home, chromium)
    await runner.cleanup()


@pytest.mark.parametrize("area", ["settings", "lead_sources", "advanced_settings"])
async def test_each_place_opens_our_page_with_a_token_of_its_account(kommo: Kommo, area: str) -> None:
    page = await kommo.window(area, f"account={ACCOUNT}&lang=pt")
    found = claims((await told(page))["token"])
    assert (found["account_id"], found["is_admin"], found["iss"]) == (CRM_ID, True, kommo.home.kommo)
    assert await page.locator("iframe").get_attribute("title") == "Configurações de Acme chat"


async def test_another_user_of_another_account_has_another_token(kommo: Kommo) -> None:
    await kommo.crm.order("/install", account_id=OTHER)
    page = await kommo.chromium.new_page()
    await page.goto(f"{kommo.home.kommo}/integrations")
    await page.get_by_label("Account").select_option(label="other")
    await page.get_by_label("You are").select_option(label="Oleg Brandt")
    await page.get_by_role("button", name="Show").click()
    await page.get_by_role("link", name="Settings", exact=True).click()
    found = claims((await told(page))["token"])
    assert (found["account_id"], found["subdomain"], found["is_admin"]) == (77, "other", False)


async def test_an_account_without_the_integration_has_no_token(kommo: Kommo) -> None:
    page = await kommo.window("advanced_settings", f"account={OTHER}")
    assert await told(page) == {"error": 403}


async def test_a_widget_that_calls_its_server_sends_one_token_for_25_minutes(kommo: Kommo) -> None:
    await put(kommo)
    page = await kommo.window()
    await expect(page.locator(".good")).to_have_count(2)
    assert len(kommo.home.tokens) == 2
    assert len(set(kommo.home.tokens)) == 1


@pytest.mark.parametrize(("status", "allows", "shown"), [(503, True, "503"), (200, False, "0")])
async def test_a_widget_is_told_that_its_server_fails(
    kommo: Kommo, status: int, allows: bool, shown: str
) -> None:
    await put(kommo)
    kommo.home.status, kommo.home.allows = status, allows
    page = await kommo.window()
    await expect(page.locator(".bad")).to_have_text(shown)


async def test_what_the_sandbox_lacks_is_said_on_the_page(kommo: Kommo) -> None:
    await put(kommo, b'define(["jquery", "twigjs"], function () {})')
    page = await kommo.window()
    await expect(page.get_by_role("alert").last).to_have_text("The sandbox has no module twigjs")


async def test_upload_install_and_uninstall_are_pressed(kommo: Kommo) -> None:
    page = await kommo.chromium.new_page()
    await page.goto(f"{kommo.home.kommo}/integrations")
    await page.get_by_role("button", name="Uninstall").click()
    await expect(page.get_by_role("status")).to_contain_text("Uninstalled.")
    await page.get_by_text("For its developer").click()
    content = archive(kommo.home.url, CLIENT, "Acme chat", "1.2.4")
    file: Any = {"name": "widget.zip", "mimeType": "application/zip", "buffer": content}
    await page.locator("input[type=file]").set_input_files(file)
    await page.get_by_role("button", name="Upload").click()
    await expect(page.get_by_role("status")).to_have_text("The widget was uploaded: version 1.2.4.")
    await page.get_by_role("button", name="Install").click()
    await expect(page.get_by_role("status")).to_have_text("Installed. The integration answered 200.")
    await page.get_by_role("link", name="Settings", exact=True).click()
    assert claims((await told(page))["token"])["account_id"] == CRM_ID


async def put(kommo: Kommo, script: bytes = b"") -> None:
    """Another integrator's script in the archive."""
    files = opened(archive(kommo.home.url, CLIENT, "Acme chat", "1.2.3"))
    files["script.js"] = script or OTHERS % kommo.home.url.encode()
    answered = await kommo.crm.chats.request("POST", "/control/crm/widget", data=packed(files))
    assert answered[0] == 201, answered
