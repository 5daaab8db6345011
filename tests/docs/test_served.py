"""The service serves the documents to everyone, under every page's policy, and they work in a browser."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, Request, Response, async_playwright, expect

from app.http.security import HEADERS
from app.servers.servers import Servers
from tests.support.service import Served, serving

CHROMIUM = "/usr/bin/chromium"
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest_asyncio.fixture(scope="module")
async def service(servers: Servers) -> AsyncIterator[Served]:
    async with serving(servers) as one:
        yield one


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("tutorials/first-message.html", "text/html; charset=utf-8"),
        ("search.json", "application/json"),
        ("console.png", "image/png"),
        ("icon.svg", "image/svg+xml"),
    ],
)
async def test_a_file_comes_without_a_key_and_under_the_policy(
    service: Served, path: str, media_type: str
) -> None:
    answer = await service.ask("GET", f"/docs/{path}", key=None)
    assert (answer.status, answer.headers["Content-Type"]) == (200, media_type)
    for name in HEADERS.keys() - {"Cache-Control"}:
        assert answer.headers[name] == HEADERS[name]


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
async def test_the_documents_begin_at_their_first_page(service: Served, path: str) -> None:
    answer = await service.ask("GET", path, key=None)
    assert (answer.status, answer.headers["Location"]) == (307, "/docs/index.html")


@pytest.mark.parametrize(
    "path", ["nothing.html", "tutorials", "../guard.py", "..%2fguard.py", "assets/", "%00"]
)
async def test_nothing_else_is_there(service: Served, path: str) -> None:
    answer = await service.ask("GET", f"/docs/{path}", key=None)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")


async def test_what_never_changes_is_kept_and_a_page_only_for_a_while(service: Served) -> None:
    page = await service.ask("GET", "/docs/index.html", key=None)
    assert page.headers["Cache-Control"] == "public, max-age=300"
    style = page.raw.decode().partition('stylesheet" href="./')[2].partition('"')[0]
    assert style.startswith("assets/")
    kept = await service.ask("GET", f"/docs/{style}", key=None)
    assert "immutable" in kept.headers["Cache-Control"]


@pytest_asyncio.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield launched
        await launched.close()


async def watched(browser: Browser, url: str) -> tuple[Page, list[str]]:
    """A page, and all that goes wrong on it or leaves the service."""
    page, problems = await browser.new_page(), list[str]()

    def written(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(message.text)

    def requested(request: Request) -> None:
        if not request.url.startswith((url, "data:")):
            problems.append(request.url)

    def responded(response: Response) -> None:
        if response.status >= 400:
            problems.append(response.url)

    page.on("console", written)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", requested)
    page.on("response", responded)
    return page, problems


@pytest.mark.browser
async def test_a_reader_finds_and_reads_a_page(service: Served, browser: Browser) -> None:
    page, problems = await watched(browser, service.url)
    await page.goto(f"{service.url}/docs/")
    await page.get_by_role("link", name="Your first message").first.click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Your first message")
    await page.get_by_role("button", name="Search").first.click()
    await page.keyboard.type("parked")
    await page.get_by_role("option", name="Resume", exact=True).click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Resume deliveries")
    assert problems == []
    await page.close()
