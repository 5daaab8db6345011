"""A chat of 10,000 messages in a real browser: nothing freezes, and every message is in reach."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from app.servers.servers import Servers
from tests.support.browser.windows import window
from tests.support.service import Served, sent, serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

MESSAGES = 10_000
AT_ONCE = 500
# Measured: 17 ms on two busy cores.
FREEZE_MS_MAX = 150
SHOWN_MAX = 400
PAGES = 10
# Frames are asked for all the time; the longest gap between two of them is how long the page stood still.
WATCH = """() => {
  window.gap = 0;
  let before = performance.now();
  const frame = (now) => {
    window.gap = Math.max(window.gap, now - before);
    before = now;
    window.watching = requestAnimationFrame(frame);
  };
  window.watching = requestAnimationFrame(frame);
}"""
DAYS = """() => new Set([...document.querySelectorAll("#messages [data-message]")].map(
  (one) => new Date(one.dataset.at).toDateString())).size"""
GAP = "() => { cancelAnimationFrame(window.watching); return window.gap; }"
# Older pages are loaded as by a reader who clicks on and on; returns how many messages the page has at most.
LOAD_PAGES = """async (pages) => {
  const shown = () => [...document.querySelectorAll("#messages [data-message]")];
  const first = () => Number(shown()[0].dataset.position);
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  let most = 0;
  for (let page = 0; page < pages; page += 1) {
    const before = first();
    document.querySelector("#messages .older button").click();
    while (first() === before) await sleep(1);
    await sleep(25);  // Until htmx has settled.
    most = Math.max(most, shown().length);
  }
  return most;
}"""


@pytest.fixture(scope="module")
async def served(servers: Servers) -> AsyncIterator[Served]:
    async with serving(servers) as service:
        assert (await service.register()).status == 201
        assert (await service.connect()).status == 201
        for first in range(0, MESSAGES, AT_ONCE):
            actions = [message(number) for number in range(first, first + AT_ONCE)]
            while (answer := await service.act(actions)).status == 503:
                pass  # A busy machine: what is stored already is a duplicate then.
            assert answer.status == 200
        await service.get("/v1/status", at_least=await service.head())
        yield service


def message(number: int) -> dict[str, Any]:
    """Two customers' worth of days: a message every ten minutes."""
    day, rest = divmod(number * 10, 24 * 60)
    hour, minute = divmod(rest, 60)
    at = f"2026-{1 + day // 28:02d}-{1 + day % 28:02d}T{hour:02d}:{minute:02d}:00Z"
    return sent(number, at=at, message={"type": "text", "text": f"Message {number}"})


async def chat_of(service: Served) -> str:
    found = await service.get("/v1/conversations", conversation_id="conv-1")
    return str(found["items"][0]["id"])


async def opened(window: Any, service: Served) -> Page:
    page: Page = await window.console()
    await page.goto(f"{service.url}/conversations/{await chat_of(service)}")
    await expect(page.locator("#live-words")).to_have_text("Live")
    return page


async def test_a_message_in_a_chat_of_10_000_freezes_nothing(chromium: Browser, served: Served) -> None:
    async with window(chromium, served) as one:
        page = await opened(one, served)
        assert await page.evaluate(LOAD_PAGES, PAGES) == SHOWN_MAX
        times = await page.locator("#messages .bubble time").evaluate_all(
            "all => all.filter(one => one.title === '').length"
        )
        assert times == 0
        assert await page.locator("#messages .day").count() == await page.evaluate(DAYS)
        await page.get_by_role("button", name="Latest messages").click()
        await page.evaluate(WATCH)
        assert (await served.act(message(MESSAGES))).status == 200
        await expect(page.locator("#messages > :last-child")).to_contain_text(f"Message {MESSAGES}")
        edit: dict[str, Any] = {"type": "message.edited", "conversation_id": "conv-1", "message_id": "m-9990"}
        edit |= {"at": "2026-11-22T08:00:00Z", "message": {"type": "text", "text": "Edited in the middle"}}
        assert (await served.act(edit)).status == 200
        await expect(page.get_by_text("Edited in the middle")).to_be_attached()
        gap = await page.evaluate(GAP)
        assert gap < FREEZE_MS_MAX


async def test_a_day_and_a_message_that_are_not_loaded_are_a_jump_away(
    chromium: Browser, served: Served
) -> None:
    async with window(chromium, served, timezone_id="Asia/Tokyo") as one:
        page = await opened(one, served)
        await page.locator("#head summary").click()
        await page.locator("#day").fill("2026-02-03")
        await page.get_by_role("button", name="Show that day").click()
        # Midnight in Tokyo is 15:00 in UTC of the day before: message 4,266, for there is one in ten minutes.
        found = page.locator("#messages .bubble.found")
        await expect(found).to_contain_text("Message 4266")
        await expect(found).to_be_in_viewport()
        assert await page.locator("[data-message]").count() == 50
        await page.get_by_role("button", name="Show newer messages").click()
        await expect(page.get_by_text("Message 4340", exact=True)).to_be_attached()
        await page.get_by_role("button", name="Show older messages").click()
        await expect(page.get_by_text("Message 4191", exact=True)).to_be_attached()
        positions = await page.locator("[data-message]").evaluate_all(
            "all => all.map(one => Number(one.dataset.position))"
        )
        assert positions == sorted(positions)
        assert len(positions) == 150

        assert (await served.act(message(MESSAGES + 1))).status == 200
        await expect(page.locator("#chats")).to_contain_text(f"Message {MESSAGES + 1}")
        await expect(page.locator("#messages")).not_to_contain_text(f"Message {MESSAGES + 1}")
        await page.get_by_role("button", name="Latest messages").click()
        await expect(page.locator("#messages > :last-child")).to_contain_text(f"Message {MESSAGES + 1}")

        reply = {"reply_to": {"message_id": "m-77"}}
        assert (await served.act(message(MESSAGES + 2) | reply)).status == 200
        await page.locator("#messages .quote a").click()
        await expect(found).to_contain_text("Message 77")
        await expect(found).to_be_in_viewport()


async def test_a_deleted_text_is_only_on_the_messages_own_page(chromium: Browser, served: Served) -> None:
    secret = message(MESSAGES + 3) | {"message": {"type": "text", "text": "Forget this"}}
    answer = await served.act(secret)
    chat = await chat_of(served)
    id_ = answer.body["results"][0]["id"]
    quoting = message(MESSAGES + 4) | {"reply_to": {"message_id": secret["message_id"]}}
    await served.act(quoting)
    gone = {"type": "message.deleted", "conversation_id": "conv-1", "at": "2026-11-22T08:00:00Z"}
    await served.act(gone | {"message_id": secret["message_id"]})
    await served.get("/v1/status", at_least=await served.head())
    async with window(chromium, served) as one:
        page = await opened(one, served)
        lists = ["/", f"/conversations/{chat}", f"/conversations/{chat}?message={id_}", "/events"]
        for path in [
            *lists,
            f"/events?conversation={chat}&after={answer.body['results'][0]['position'] - 1}",
        ]:
            await page.goto(served.url + path)
            assert "Forget this" not in await page.content()
        await expect(page.get_by_text("the message was deleted: its own page").first).to_be_attached()
        await page.goto(f"{served.url}/messages/{id_}")
        await page.get_by_text("Show the deleted text").click()
        await expect(page.get_by_text("Forget this")).to_be_visible()
