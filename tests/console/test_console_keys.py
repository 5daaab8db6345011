"""The console signs in with any key and shows what that key may see, until the key is deleted."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.console import Browser, System, browsing, text_message, whole_system
from tests.support.ids import ACCOUNT, OTHER_ACCOUNT


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    with tempfile.TemporaryDirectory(prefix="chatledger-test-", dir="/tmp") as folder:
        async with whole_system(Path(folder)) as one:
            yield one


async def make(system: System, *scopes: str, accounts: list[str] | None = None) -> tuple[str, str]:
    order = {"name": f"console {'-'.join(scopes)}", "scopes": list(scopes), "accounts": accounts}
    made = await system.api("POST", "/v1/keys", order)
    return made["id"], made["key"]


async def sign_in(browser: Browser, key: str) -> int:
    token = await browser.form_token("/login")
    answer, _ = await browser.post("/login", key=key, csrf=token)
    return answer.status


@pytest.fixture
async def browser(system: System) -> AsyncIterator[Browser]:
    async with browsing(system) as one:
        yield one


async def test_a_key_sees_the_pages_of_its_rights(system: System, browser: Browser) -> None:
    _, key = await make(system, "read")
    assert await sign_in(browser, key) == 200
    for path, status in (("/", 200), ("/events", 200), ("/status", 200), ("/access", 403), ("/refused", 403)):
        answer, text = await browser.get(path)
        assert answer.status == status, (path, text)
    _, text = await browser.get("/")
    assert 'href="/access"' not in text
    answer, _ = await browser.post("/deliveries/resume", csrf=await browser.form_token("/"))
    assert answer.status == 403


async def test_a_limited_key_sees_no_other_account(system: System, browser: Browser) -> None:
    await system.act(text_message("Hello from the first account", "limited"))
    chat = await system.chat_of("limited")
    _, mine = await make(system, "read", accounts=[ACCOUNT])
    _, others = await make(system, "audit", accounts=[OTHER_ACCOUNT])
    assert await sign_in(browser, others) == 200
    for path in (
        *("/", f"/conversations/{chat}", "/events", "/deliveries", "/fragments/conversations", "/access"),
    ):
        _, text = await browser.get(path)
        assert "Hello from the first account" not in text, path
        assert ACCOUNT not in text, path
    for path in (f"/conversations/{chat}", f"/live?conversation={chat}"):
        assert (await browser.get(path))[0].status == 404
    for path in ("/status", "/channels"):
        assert (await browser.get(path))[0].status == 403
    async with browsing(system) as own:
        assert await sign_in(own, mine) == 200
        answer, text = await own.get(f"/conversations/{chat}")
        assert answer.status == 200
        assert "Hello from the first account" in text


async def test_a_deleted_key_signs_its_browsers_out(system: System, browser: Browser) -> None:
    key_id, key = await make(system, "read")
    assert await sign_in(browser, key) == 200
    assert (await browser.get("/events"))[0].status == 200
    await system.api("DELETE", f"/v1/keys/{key_id}")
    answer, _ = await browser.get("/events")
    assert (answer.status, answer.headers["Location"]) == (303, "/login?next=%2Fevents")


async def test_who_looked_is_shown_with_the_sign_in(system: System, browser: Browser) -> None:
    _, key = await make(system, "audit")
    assert await sign_in(browser, key) == 200
    await browser.get("/events")
    await system.run.services.access_log.flush()
    _, text = await browser.get("/access?key=console+audit")
    assert "POST /login" in text
    assert "GET /events" in text
