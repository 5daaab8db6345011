"""Every page of the console says what the views say, and what strangers write stays text."""

import asyncio
import hmac
import json
import re
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import aiohttp
import psycopg
import pytest

from app.http.console.formatting import reason, web_link
from app.http.security import POLICY
from app.operations.services import views_reach
from app.views.events import ledger_head
from tests.support.console import NAME, Browser, System, browsing, connect_account, text_message, whole_system
from tests.support.ids import ACCOUNT, CHANNEL, CHANNEL_SECRET

PAGES = ["/", "/deliveries", "/refused", "/channels", "/events", "/status"]
NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`{{7*7}}\u202edesrever"
INLINE = re.compile(r"<script(?![^>]*\bsrc=)|<style|\son[a-z]+=|\sstyle=|javascript:", re.IGNORECASE)


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    with tempfile.TemporaryDirectory(prefix="chatledger-test-", dir="/tmp") as folder:
        async with whole_system(Path(folder)) as one:
            yield one


@pytest.fixture
async def stranger(system: System) -> AsyncIterator[Browser]:
    async with browsing(system) as one:
        yield one


@pytest.fixture
async def browser(system: System) -> AsyncIterator[Browser]:
    async with browsing(system) as one:
        yield await one.sign_in()


async def test_every_page_is_under_the_policy_and_has_nothing_inline(browser: Browser) -> None:
    (sent,) = await browser.system.act(text_message("Hello", "conv-policy"))
    chat = await browser.system.chat_of("conv-policy")
    pages = [*PAGES, f"/conversations/{chat}", f"/messages/{sent['id']}", "/nothing", "/login"]
    for path in pages:
        answer, text = await browser.get(path)
        if answer.status == 303:
            continue
        assert answer.headers["Content-Security-Policy"] == POLICY, path
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert not INLINE.search(text), (path, INLINE.search(text))


async def test_text_of_strangers_is_text(browser: Browser) -> None:
    action = text_message(NASTY, "conv-nasty", type="file", media="https://e.example/", file_name=NASTY)
    action["sender"] = {"id": "<script>alert(1)</script>", "name": NASTY, "phone": NASTY}
    (sent,) = await browser.system.act(action)
    chat = await browser.system.chat_of("conv-nasty")
    for path in (f"/conversations/{chat}", f"/messages/{sent['id']}", "/", "/events"):
        _, text = await browser.get(path)
        assert "&lt;script&gt;alert(1)" in text
        assert "<script>alert" not in text
        assert "<img" not in text


@pytest.mark.parametrize(
    ("address", "is_link"),
    [
        *(("https://files.example.com/a.png", True), ("HTTP://example.com/b?c=d#e", True)),
        *(("javascript:alert(1)", False), ("data:text/html,x", False), ("//example.com/x", False)),
        *(("https:///x", False), ("java\nscript:x", False), ("https://example.com/a b", False), ("", False)),
        *(("https://[bad", False), ("https://example.com/" + "x" * 5000, False), (None, False), (7, False)),
    ],
)
def test_only_links_to_the_web_are_links(address: object, is_link: bool) -> None:
    assert bool(web_link(address)) == is_link


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("HTTP 503 from Kommo", "HTTP 503 from Kommo."),
        ('refused: {"error_code":400,"error_description":"user not found"}', "Refused: user not found."),
        ("refused: {not JSON", "Refused: {not JSON."),
        ('refused: {"code":1}', 'Refused: {"code":1}.'),
    ],
)
def test_a_reason_is_told_in_words(told: str, said: str) -> None:
    assert reason(told) == said


async def test_links_of_strangers_learn_nothing_from_us(browser: Browser) -> None:
    media = "https://files.example.com/a.png?x=1&y=<2>"
    kinds = ["picture", "file", "sticker"]
    await browser.system.act(*(text_message("", "conv-links", type=one, media=media) for one in kinds))
    _, text = await browser.get(f"/conversations/{await browser.system.chat_of('conv-links')}")
    assert "<img" not in text
    links = re.findall(r'<a [^>]*href="https://[^>]*>', text)
    assert len(links) == 3
    assert all('rel="noopener noreferrer"' in one and "&lt;2&gt;" in one for one in links)


async def test_an_unknown_chat_is_not_there(browser: Browser) -> None:
    for path in ("/conversations/not-an-id", f"/conversations/{'0' * 8}-0000-4000-8000-{'0' * 12}"):
        answer, text = await browser.get(path)
        assert (answer.status, answer.content_type) == (404, "text/html")
        assert "There is nothing at this address." in text


async def test_an_unknown_path_is_a_page_for_people_and_a_problem_for_programs(browser: Browser) -> None:
    answer, text = await browser.get("/nowhere")
    assert (answer.status, answer.content_type) == (404, "text/html")
    assert "Not found" in text
    answer, _ = await browser.get("/nowhere", Accept="*/*")
    assert (answer.status, answer.content_type) == (404, "application/problem+json")
    answer, _ = await browser.get("/v1/nowhere")
    assert (answer.status, answer.content_type) == (404, "application/problem+json")


async def test_a_value_that_cannot_be_is_a_400(browser: Browser) -> None:
    for path in ("/?q=%00", "/?cursor=nonsense", "/deliveries?cursor=nonsense", "/events?conversation=x"):
        answer, _ = await browser.get(path)
        assert (answer.status, answer.content_type) == (400, "text/html"), path


async def test_static_files_are_kept_for_long_and_named_by_their_content(stranger: Browser) -> None:
    _, text = await stranger.get("/login")
    (style,) = re.findall(r'href="(/static/console.css\?v=[0-9a-f]{12})"', text)
    answer, _ = await stranger.get(style)
    assert (answer.status, answer.content_type) == (200, "text/css")
    assert "immutable" in answer.headers["Cache-Control"]
    answer, text = await stranger.get("/static/htmx.min.js")
    assert "htmx" in text
    assert (await stranger.get("/static/../pages.py"))[0].status in (303, 404)
    assert (await stranger.get("/static/pages.py"))[0].status == 404


async def test_the_list_is_found_by_either_sides_id_and_filtered(browser: Browser) -> None:
    await browser.system.act(text_message("Where is it?", "conv-find"))
    chat = await browser.system.chat_of("conv-find")
    for query in (
        "q=conv-find",
        f"q={chat}",
        f"q=conv-find&channel={NAME}",
        f"q=conv-find&account={ACCOUNT}",
    ):
        _, text = await browser.get(f"/?{query}")
        assert re.findall(r'data-conversation="([^"]+)"', text) == [chat], query
    _, text = await browser.get("/?q=conv-find&channel=other")
    assert "No matching chats." in text


async def test_older_messages_come_on_demand(browser: Browser) -> None:
    await browser.system.act(*(text_message(f"number {n}", "conv-long") for n in range(60)))
    chat = await browser.system.chat_of("conv-long")
    _, text = await browser.get(f"/conversations/{chat}")
    assert len(re.findall(r"data-message=", text)) == 50
    (older,) = re.findall(r'hx-get="(/fragments/conversations/[^"]+/messages\?before=[^"]+)"', text)
    _, text = await browser.get(older)
    assert re.findall(r"number \d+", text) == [f"number {n}" for n in range(10)]


async def test_buttons_templates_forwards_and_posts_of_the_manager_are_shown(browser: Browser) -> None:
    system = browser.system
    await system.act(text_message("Hello", "conv-told-more"))
    forwarded = {"type": "text", "text": "what Bo wrote", "timestamp": 1, "msec_timestamp": 1}
    told: dict[str, object] = {
        "id": str(uuid4()),
        "type": "text",
        "text": "Choose",
        "markup": {
            "mode": "inline",
            "buttons": [[{"text": "Yes"}, {"text": "Site", "url": "https://e.example"}]],
        },
        "template": {"id": 7, "external_id": "greeting", "content": "Choose", "params": []},
        "forwards": {"messages": [forwarded | {"sender": {"name": "Bo"}}], "conversation_ref_id": "x"},
        "shared_post": {"url": "javascript:alert(1)", "type": "post", "site_name": "Site of Bo"},
    }
    menu = {"header": "Menu", "button": "Open", "sections": [{"title": "A", "rows": [{"title": "Row one"}]}]}
    listed: dict[str, object] = told | {
        "id": str(uuid4()),
        "markup": {"list_message": menu},
        "template": None,
    }
    odd: dict[str, object] = told | {
        "id": str(uuid4()),
        "markup": {"buttons": [7, [8]]},
        "forwards": {"messages": "none"},
    }
    for message in (told, listed, odd):
        await hook(system, "conv-told-more", message)
    _, text = await browser.get(f"/conversations/{await system.chat_of('conv-told-more')}")
    for words in ("Yes", 'href="https://e.example"', "Row one", "Template greeting", "Bo", "what Bo wrote"):
        assert words in text, words
    assert "Site of Bo" in text
    assert 'href="javascript' not in text


async def hook(system: System, conversation: str, message: dict[str, object]) -> None:
    """What Kommo sends for a manager's message."""
    now = int(time.time())
    body = {
        "account_id": ACCOUNT,
        "time": now,
        "message": {
            "receiver": {"id": str(uuid4()), "client_id": "u-1", "phone": "", "email": ""},
            "sender": {"id": str(uuid4())},
            "conversation": {"id": "6f1c9a0e-0000-4000-8000-000000000001", "client_id": conversation},
            "timestamp": now,
            "msec_timestamp": now * 1000,
            "message": message,
        },
    }
    sent = await system.order("POST", "/hooks?wait=1", {"body": body})
    assert "200" in str(sent), sent
    await views_reach(system.run.services, await ledger_head(system.run.services.pool))


async def test_a_message_tells_everything_that_happened_to_it(browser: Browser) -> None:
    system = browser.system
    await system.act(text_message("Hello", "conv-told"))
    answered = await system.order(
        "POST",
        "/manager/messages?wait=1",
        {"conversation_id": "conv-told", "message": {"type": "text", "text": "Yes"}},
    )
    assert answered
    chat = await system.chat_of("conv-told")
    sent = await until_status(system, chat, "delivered")
    _, text = await browser.get(f"/messages/{sent}")
    for words in ("Accepted by the messenger", "Delivered", "Delivery time", "position "):
        assert words in text


async def until_status(system: System, chat: str, status: str) -> str:
    async with asyncio.timeout(10):
        while True:
            page = await system.api("GET", f"/v1/conversations/{chat}/messages")
            found = [one["id"] for one in page["items"] if one["status"] == status]
            if found:
                return str(found[0])
            await asyncio.sleep(0.05)


# Deliveries.


async def test_a_refused_hook_is_shown_and_can_be_taken_up(browser: Browser) -> None:
    system = browser.system
    where = f"{system.url}/kommo/{CHANNEL}_{ACCOUNT}"
    late = {
        "account_id": ACCOUNT,
        "time": int(time.time()) - 100_000,
        "message": {"conversation": {"id": "late"}, "message": {"id": "k-late", "text": "Late"}},
    }
    for body in (json.dumps(late).encode(), b"<script>alert(1)</script>"):
        headers = {"X-Signature": hmac.digest(CHANNEL_SECRET.encode(), body, "sha1").hex()}
        async with system.client.post(where, data=body, headers=headers):
            pass
    assert '2</span><span class="muted"><a id="to-refused"' in (await browser.get("/status"))[1]
    _, text = await browser.get("/refused")
    assert "27.8 hours old" in text
    unreadable, readable = re.findall(r'data-refused="([^"]+)"', text)
    token = await browser.form_token("/refused")
    answer, _ = await browser.post(f"/refused/{readable}/retry", csrf=token)
    assert answer.status == 303
    answer, text = await browser.post(f"/refused/{unreadable}/retry", csrf=token)
    assert (answer.status, "Not taken:" in text) == (409, True)
    assert re.findall(r'data-refused="([^"]+)"', text) == [unreadable]
    answer, _ = await browser.post(f"/refused/{unreadable}/retry", csrf="forged")
    assert answer.status == 403


REST = """INSERT INTO ledger.rests (channel, account_id, destination, since, next_at, reason, answer)
 VALUES ('acme', %s, 'kommo', '2026-11-22T08:00:00Z', '2026-11-22T08:05:00Z', 'HTTP 402', '<pay first>')"""


async def test_who_rests_after_a_refusal_is_shown_with_the_next_try_and_the_reason(browser: Browser) -> None:
    _, calm = await browser.get("/status")
    assert "At rest" not in calm
    url = browser.system.run.services.settings.database_url or ""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as database:
        await database.execute(REST, (ACCOUNT,))
        _, text = await browser.get("/status")
        await database.execute("DELETE FROM ledger.rests")
    assert "At rest after refusals" in text
    for shown in (ACCOUNT, "2026-11-22T08:05:00.000Z", "HTTP 402: &lt;pay first&gt;"):
        assert shown in text


async def test_what_is_parked_is_shown_with_its_reason_and_taken_up_again(browser: Browser) -> None:
    system = browser.system
    await system.order(
        "POST",
        "/faults",
        {"where": "kommo.new_message", "action": "503", "times": None, "conversation_id": "conv-parked"},
    )
    await system.act(text_message("Stuck", "conv-parked"))
    chat = await system.chat_of("conv-parked")
    assert "503" in await until_shown(browser, f"/conversations/{chat}", "Not delivered yet")
    assert "retrying" in await until_shown(browser, "/deliveries", 'data-state="deferred"')
    await system.api("DELETE", f"/v1/channels/{NAME}/connections/{ACCOUNT}")
    await until_shown(browser, "/deliveries?state=parked", 'data-state="parked"')
    await system.order("DELETE", "/faults")
    await connect_account(system)
    token = await browser.form_token("/deliveries")
    answer, _ = await browser.post("/deliveries/resume", csrf=token, conversation=chat)
    assert answer.status == 303
    _, text = await browser.get(answer.headers["Location"])
    assert " resumed." in text
    await until_status(system, chat, "accepted")
    _, text = await browser.get(f"/conversations/{chat}")
    assert "Parked" not in text
    answer, _ = await browser.post("/deliveries/resume", csrf=token)  # All, also of other chats.
    assert answer.status == 303


async def until_shown(browser: Browser, path: str, words: str) -> str:
    async with asyncio.timeout(10):
        while True:
            _, text = await browser.get(path)
            if words in text:
                return text
            await asyncio.sleep(0.05)


async def test_the_console_is_no_part_of_the_documented_api(stranger: Browser) -> None:
    _, text = await stranger.get("/schema")
    assert "/v1/messages/{message}" in text
    assert '"/login"' not in text
    assert '"/fragments' not in text


# Live.


async def lines(answer: aiohttp.ClientResponse, until: str) -> str:
    text = ""
    async with asyncio.timeout(5):
        while until not in text:
            text += (await answer.content.readany()).decode()
    return text


async def test_a_change_is_told_with_its_position_and_resumed_after_it(browser: Browser) -> None:
    (first,) = await browser.system.act(text_message("One", "conv-live"))
    chat = await browser.system.chat_of("conv-live")
    url = f"{browser.system.url}/live?conversation={chat}"
    async with browser.client.get(url) as answer:
        assert answer.content_type == "text/event-stream"
        (second,) = await browser.system.act(text_message("Two", "conv-live"))
        told = await lines(answer, second["id"])
        assert "id: " in told
    (third,) = await browser.system.act(text_message("Three", "conv-live"))
    headers = {"Last-Event-ID": str(second["position"])}
    async with browser.client.get(url, headers=headers) as answer:
        told = await lines(answer, third["id"])
    async with browser.client.get(f"{url}&after={first['position']}") as answer:
        told = await lines(answer, third["id"])
    assert second["id"] in told


async def test_typing_is_told_while_it_lasts(browser: Browser) -> None:
    await browser.system.act(text_message("One", "conv-typing"))
    chat = await browser.system.chat_of("conv-typing")
    async with browser.client.get(f"{browser.system.url}/live?conversation={chat}") as answer:
        action = text_message("", "conv-typing") | {"type": "typing"}
        await browser.system.act(action)
        assert '"name":"Ann"' in await lines(answer, "event: typing")


async def test_an_open_stream_does_not_hold_up_the_end(data_folder: Path) -> None:
    async with whole_system(data_folder) as own, browsing(own) as one:
        await one.sign_in()
        answer = await one.client.get(f"{own.url}/live")
        await lines(answer, "retry:")
        start = time.monotonic()
        own.run.services.stopping.set()
        await answer.content.read()
        assert time.monotonic() - start < 2
