"""Windows of a real browser on the console, signed in; whatever goes wrong in their pages fails the test."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    async_playwright,
    expect,
)

from tests.support.console import System
from tests.support.service import Served

CHROMIUM = "/usr/bin/chromium"
SWITCHES = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync"),
]
WIDTHS = {"wide": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Debian's chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        await browser.close()


class Watched:
    """A browser window; whatever goes wrong in its pages is kept in `problems`."""

    def __init__(self, context: BrowserContext, system: System | Served) -> None:
        self.context, self.system = context, system
        self.problems: list[str] = []

    async def page(self, url: str) -> Page:
        page = await self.context.new_page()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", self._asked)
        page.on("request", self._requested)
        await page.goto(url)
        return page

    async def console(self) -> Page:
        """The console, signed in by a one-time link."""
        page = await self.page(self.system.run.services.login_links.make(self.system.url))
        await expect(page.locator("#chats")).to_be_visible()
        return page

    def _requested(self, request: Request) -> None:
        if urlsplit(request.url).hostname != "127.0.0.1":
            self.problems.append(f"a request to a stranger: {request.url}")

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    async def _asked(self, dialog: Any) -> None:
        self.problems.append(f"a dialog: {dialog.message}")
        await dialog.dismiss()


@contextlib.asynccontextmanager
async def window(chromium: Browser, system: System | Served, **more: Any) -> AsyncIterator[Watched]:
    settings = {"viewport": WIDTHS["wide"], "reduced_motion": "reduce", "locale": "en-GB"} | more
    context = await chromium.new_context(**settings)
    context.set_default_timeout(15_000)
    watched = Watched(context, system)
    yield watched
    await context.close()
    assert watched.problems == []
