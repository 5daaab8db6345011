"""In a real browser: what is said on either side is seen on all pages, at once, and harms none of them."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support.browser.windows import WIDTHS, window
from tests.support.console import System, now, text_message, whole_system

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / ".artifacts" / "screenshots"
ANN = {"id": "u-ann", "name": "Ann Weber", "phone": "+1 555 0100"}
NASTY = [
    "<script>alert('text')</script><img src=x onerror=alert('image')>",
    "</p></li></ol><iframe srcdoc='<script>alert(1)</script>'></iframe>",
    '{{ 7 * 7 }} ${alert(1)} javascript:alert(1) " onmouseover=alert(1) x="',
    "left \u202eot thgir\u2066 and \u200f back",
    "W" * 64_000,
]
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="120"/>'


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    with tempfile.TemporaryDirectory(prefix="chatledger-test-", dir="/tmp") as folder:
        async with whole_system(Path(folder)) as one:
            yield one


async def keep(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png")


async def write(page: Page, text: str) -> None:
    await page.locator("#text").fill(text)
    await page.locator("#text").press("Enter")


async def test_a_chat_is_seen_on_all_three_pages_without_reloading(chromium: Browser, system: System) -> None:
    async with window(chromium, system) as one:
        console = await one.console()
        await expect(console.get_by_text("No conversations yet.")).to_be_visible()
        await keep(console, "empty-wide-light")
        phone = await one.page(f"{system.sandbox.url}/customer")
        await phone.locator("#new-name").fill("Ann Weber")
        await phone.get_by_text("Create and start a chat").click()
        await write(phone, "Is my order on its way?")
        manager = await one.page(f"{system.sandbox.url}/manager")
        await manager.locator("#chats a").first.click()
        await expect(manager.get_by_text("Is my order on its way?").last).to_be_visible()
        await expect(console.locator("[data-conversation]")).to_contain_text("Is my order on its way?")
        await console.locator("[data-conversation] a").click()
        await expect(console.locator(".bubble.in[data-status=accepted]")).to_have_count(1)
        await console.evaluate("window.marked = true")
        await phone.bring_to_front()
        await write(manager, "Yes, it left last night.")
        await expect(phone.locator(".bubble.other")).to_contain_text("Yes, it left last night.")
        answer = console.locator(".bubble.out")
        await expect(answer).to_contain_text("Yes, it left last night.")
        await expect(answer).to_have_attribute("data-status", "read")
        await expect(manager.locator(".bubble.own")).to_have_attribute("data-status", "read")
        assert await console.evaluate("window.marked")
        await expect(console.locator("#announce")).to_have_text("Maria Keller: Yes, it left last night.")
        for page, name in ((phone, "sandbox-phone"), (manager, "sandbox-manager"), (console, "chat-first")):
            await keep(page, name)


async def test_edits_reactions_deletions_and_typing_are_seen_as_they_happen(
    chromium: Browser, system: System
) -> None:
    first, second = text_message("Befor", "conv-edit"), text_message("Oops", "conv-edit")
    sent, _ = await system.act(first, second)
    about = {"conversation_id": "conv-edit", "sender": ANN}
    async with window(chromium, system) as one:
        console = await one.console()
        await console.goto(f"{system.url}/conversations/{await system.chat_of('conv-edit')}")
        bubble = console.locator(f"[data-message='{sent['id']}']")
        await expect(bubble).to_contain_text("Befor")
        await system.act({"type": "typing", "at": now()} | about)
        await expect(console.locator("#typing")).to_have_text("Ann Weber is typing")
        edit = {"message_id": first["message_id"], "message": {"type": "text", "text": "Before"}}
        await system.act({"type": "message.edited", "at": now()} | about | edit)
        await expect(bubble.locator(".text")).to_have_text("Before")
        await expect(bubble).to_contain_text("edited")
        reaction = {"message_id": first["message_id"], "emoji": "👍"}
        await system.act({"type": "reaction.added", "at": now()} | about | reaction)
        await expect(bubble.locator(".reactions")).to_contain_text("👍")
        gone = {"message_id": second["message_id"]}
        await system.act({"type": "message.deleted", "at": now()} | about | gone)
        await expect(console.locator(".bubble").last).to_contain_text("Message deleted")


async def test_a_reader_of_older_messages_stays_there(chromium: Browser, system: System) -> None:
    await system.act(*(text_message(f"number {n}", "conv-old") for n in range(70)))
    async with window(chromium, system) as one:
        console = await one.console()
        await console.goto(f"{system.url}/conversations/{await system.chat_of('conv-old')}")
        await expect(console.locator("[data-message]")).to_have_count(50)
        top = "document.getElementById('scroll').scrollTop"
        assert await console.evaluate(top) > 500
        first = console.locator("[data-message]").first
        await first.scroll_into_view_if_needed()
        await console.get_by_text("Show older messages").click()
        await expect(console.locator("[data-message]")).to_have_count(70)
        await expect(console.locator(".day")).to_have_count(1)
        await expect(console.get_by_text("number 20", exact=True)).to_be_in_viewport()
        before = await console.evaluate(top)
        await system.act(text_message("the newest", "conv-old"))
        await expect(console.locator("#down")).to_be_visible()
        assert await console.evaluate(top) == before
        await console.locator("#down").click()
        await expect(console.locator(".text", has_text="the newest")).to_be_in_viewport()


async def test_what_changed_while_the_line_was_cut_is_caught_up(chromium: Browser, system: System) -> None:
    await system.act(text_message("before", "conv-cut"))
    async with window(chromium, system) as one:
        console = await one.console()
        await console.goto(f"{system.url}/conversations/{await system.chat_of('conv-cut')}")
        await expect(console.locator("#live-words")).to_have_text("Live")
        await console.evaluate("close()")
        await system.act(text_message("meanwhile", "conv-cut"))
        await console.evaluate("open()")
        await expect(console.locator(".bubble").last).to_contain_text("meanwhile")
        await expect(console.locator("#live-words")).to_have_text("Live")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_a_customer_writes_runs(chromium: Browser, system: System, scheme: Any) -> None:
    chat_name = f"conv-nasty-{scheme}"
    sender = {"id": "u-nasty", "name": NASTY[0]}
    await system.act(*(text_message(one, chat_name) | {"sender": sender} for one in NASTY))
    async with window(chromium, system, color_scheme=scheme) as one:
        console = await one.console()
        await console.goto(f"{system.url}/conversations/{await system.chat_of(chat_name)}")
        await system.act(text_message(NASTY[1], chat_name) | {"sender": sender})
        await expect(console.locator("[data-message]")).to_have_count(len(NASTY) + 1)
        for text in NASTY[:4]:
            await expect(console.locator(".text").get_by_text(text, exact=True).first).to_have_count(1)
        assert await console.locator("iframe, main img, script:not([src])").count() == 0
        width = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert await console.evaluate(width)
        inside = "(e => e.scrollWidth <= e.clientWidth)(document.getElementById('scroll'))"
        assert await console.evaluate(inside)
        await console.locator("summary", has_text="Show the rest").click()
        await console.locator("#scroll").evaluate("scroll => scroll.scrollTo(0, 0)")
        await keep(console, f"nasty-wide-{scheme}")


async def test_a_picture_is_fetched_only_when_somebody_asks_for_it(chromium: Browser, system: System) -> None:
    files = {"type": "picture", "media": "https://files.example.com/a.svg", "file_name": "a.svg"}
    await system.act(text_message("", "conv-picture", **files))
    async with window(chromium, system) as one:
        await one.context.route(
            "https://files.example.com/**",
            lambda route: route.fulfill(body=PICTURE, content_type="image/svg+xml"),
        )
        console = await one.console()
        await console.goto(f"{system.url}/conversations/{await system.chat_of('conv-picture')}")
        assert one.problems == []
        await console.get_by_text("Show, from files.example.com").click()
        picture = console.locator(".picture.shown img")
        await expect(picture).to_be_visible()
        assert await picture.evaluate("image => image.naturalWidth") == 200
        assert one.problems == ["a request to a stranger: https://files.example.com/a.svg"]
        one.problems.clear()
        await system.act(
            {"type": "reaction.added", "conversation_id": "conv-picture", "emoji": "👍", "at": now()}
            | {"message_id": (await named(system, "conv-picture")), "sender": ANN}
        )
        await expect(console.locator(".reactions")).to_be_visible()
        await expect(picture).to_be_visible()


async def named(system: System, conversation_id: str) -> str:
    """What the messenger calls the last message of a chat."""
    return str((await last(system, await system.chat_of(conversation_id)))["remote"]["messenger"])


# Every page, in both widths and both schemes, for people to look at.


async def furnished(system: System) -> str:
    """A chat that has a bit of everything."""
    files = "https://files.example.com"
    kinds: list[dict[str, Any]] = [
        {"type": "text", "text": "Good morning! I ordered a desk lamp last week. Is it on its way?"},
        {"type": "picture", "media": f"{files}/lamp.jpg", "file_name": "lamp.jpg", "text": "This one"},
        {"type": "voice", "media": f"{files}/note.ogg", "media_duration": 14},
        {"type": "file", "media": f"{files}/i.pdf", "file_name": "invoice-2026-118.pdf", "file_size": 48213},
        {"type": "location", "location": {"lon": 13.40495, "lat": 52.52001}},
        {"type": "contact", "contact": {"name": "Tom Weber", "phone": "+1 555 0177"}},
        {"type": "video", "media": f"{files}/lamp.mp4", "media_duration": 9},
    ]
    actions = [text_message("", "conv-rich") | {"sender": ANN, "message": one} for one in kinds]
    await system.act(*actions)
    for text in ("Good morning Ann, thank you for the papers.", "It arrives on Tuesday between 9 and 11."):
        order = {"conversation_id": "conv-rich", "message": {"type": "text", "text": text}}
        await system.order("POST", "/manager/messages?wait=1", order)
    quoted = {"reply_to": {"message_id": actions[0]["message_id"]}, "sender": ANN}
    await system.act(text_message("Wonderful, somebody will be in.", "conv-rich") | quoted)
    about = {"conversation_id": "conv-rich", "sender": ANN, "at": now()}
    love = {"type": "reaction.added", "message_id": actions[0]["message_id"], "emoji": "❤️"}
    edit = {"type": "message.edited", "message_id": actions[0]["message_id"], "message": kinds[0]}
    await system.act(love | about, edit | about)
    for name, text in (("Bo Larsen", "Can I change the colour?"), ("Chiara Neri", "Grazie, a presto!")):
        person = {"id": name, "name": name}
        await system.act(text_message(text, f"conv-{name[:2]}") | {"sender": person})
    refused = {"code": 904, "text": "the number is not a user of this messenger"}
    await system.order("POST", "/faults", {"where": "messenger.hook", "action": "422", "body": refused})
    order = {"conversation_id": "conv-rich", "message": {"type": "text", "text": "Anything else?"}}
    await system.order("POST", "/manager/messages?wait=1", order)
    return await system.chat_of("conv-rich")


@pytest.fixture(scope="module")
async def chat(system: System) -> str:
    chat = await furnished(system)
    async with asyncio.timeout(10):
        while (await last(system, chat))["status"] != "failed":  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(0.05)
    fault = {"where": "kommo.new_message", "action": "503", "times": None, "conversation_id": "conv-stuck"}
    await system.order("POST", "/faults", fault)
    await system.act(text_message("Is anybody there?", "conv-stuck") | {"sender": {"id": "d", "name": "Dee"}})
    return chat


async def last(system: System, chat: str) -> dict[str, Any]:
    page = await system.api("GET", f"/v1/conversations/{chat}/messages?order=desc&limit=1")
    message: dict[str, Any] = page["items"][0]
    return message


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["wide", "phone"])
async def test_every_page_fits_and_is_kept_as_a_picture(
    chromium: Browser, system: System, chat: str, width: str, scheme: Any
) -> None:
    stuck, message = await system.chat_of("conv-stuck"), (await last(system, chat))["id"]
    pages = {"chats": "/", "chat": f"/conversations/{chat}", "stuck": f"/conversations/{stuck}"}
    pages |= {"message": f"/messages/{message}", "deliveries": "/deliveries", "channels": "/channels"}
    pages |= {"events": "/events", "status": "/status"}
    async with window(chromium, system, viewport=WIDTHS[width], color_scheme=scheme) as one:
        login = await one.page(f"{system.url}/login")
        await keep(login, f"login-{width}-{scheme}")
        console = await one.console()
        for name, path in pages.items():
            await console.goto(system.url + path)
            await expect(console.locator("h1, h2").first).to_be_attached()
            if "chat" in name or name == "stuck":
                await expect(console.locator("#live-words")).to_have_text("Live")
            fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            assert await console.evaluate(fits), name
            await keep(console, f"{name}-{width}-{scheme}")
            if name == "chat":
                await console.locator("#scroll").evaluate("scroll => scroll.scrollTo(0, 0)")
                await keep(console, f"chat-top-{width}-{scheme}")


async def test_the_console_is_used_by_keyboard(chromium: Browser, system: System, chat: str) -> None:
    async with window(chromium, system) as one:
        console = await one.console()
        focused = "document.activeElement.textContent.trim().slice(0, 15)"
        await console.keyboard.press("Tab")
        assert await console.evaluate(focused) == "Skip to content"
        await console.keyboard.press("Enter")
        await console.keyboard.press("Tab")
        await expect(console.locator("#q")).to_be_focused()
        await console.keyboard.type("conv-rich")
        await console.keyboard.press("Enter")
        await expect(console.locator("[data-conversation]")).to_have_count(1)
        await console.locator("#q").focus()
        await console.keyboard.press("Tab")
        await console.keyboard.press("Enter")
        await expect(console.locator("#messages")).to_be_visible()
        assert console.url.split("?")[0] == f"{system.url}/conversations/{chat}"


async def test_a_key_signs_in_and_the_button_signs_out(chromium: Browser, system: System) -> None:
    async with window(chromium, system) as one:
        page = await one.page(f"{system.url}/status")
        await page.get_by_label("Key", exact=True).fill("wrong")
        await page.get_by_label("Key", exact=True).press("Enter")
        await expect(page.get_by_role("alert").last).to_have_text("This key is wrong, or not good any more.")
        one.problems.clear()  # Chromium reports the 401 itself.
        await page.get_by_label("Key", exact=True).fill(system.run.services.keys.admin)
        await page.get_by_label("Key", exact=True).press("Enter")
        await expect(page.get_by_role("heading", name="Status")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
