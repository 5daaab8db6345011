"""Nobody sees the console without the key, and no form works from elsewhere."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yarl import URL

from app.access.sessions import SESSION_SECONDS, Sessions
from app.config.settings import Keys
from tests.support.console import Browser, System, browsing, whole_system

PAGES = ["/", "/deliveries", "/channels", "/events", "/status"]


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


# Signing in.


@pytest.mark.parametrize("path", [*PAGES, "/conversations/x", "/messages/x?y=1"])
async def test_without_a_session_a_page_leads_to_the_login(stranger: Browser, path: str) -> None:
    answer, _ = await stranger.get(path)
    assert answer.status == 303
    assert URL(answer.headers["Location"]).path == "/login"
    assert URL(answer.headers["Location"]).query["next"] == path


@pytest.mark.parametrize("path", ["/live", "/fragments/conversations", "/deliveries"])
async def test_a_program_without_a_session_is_told_so(stranger: Browser, path: str) -> None:
    answer, text = await stranger.get(path, Accept="*/*")
    assert (answer.status, answer.content_type) == (401, "application/problem+json")
    assert "sign in" in text


async def test_the_key_signs_in_and_leads_to_where_one_wanted_to_go(stranger: Browser) -> None:
    token = await stranger.form_token("/login")
    key = stranger.system.run.services.keys.admin
    answer, text = await stranger.post("/login", key=key, csrf=token, next="/status")
    assert answer.status == 200
    assert 'content="0;url=/status"' in text
    (set_cookie,) = [one for one in answer.headers.getall("Set-Cookie") if "_visit" not in one]
    assert "HttpOnly" in set_cookie
    assert "SameSite=strict" in set_cookie
    assert "Secure" not in set_cookie
    assert f"Max-Age={SESSION_SECONDS}" in set_cookie
    answer, _ = await stranger.get("/status")
    assert answer.status == 200


async def test_over_https_the_cookie_stays_on_https(system: System) -> None:
    async with browsing(system, **{"X-Forwarded-Proto": "https"}) as one:
        answer, _ = await one.get("/login")
    assert "Secure" in answer.headers["Set-Cookie"]


async def test_a_wrong_key_is_told_and_slow(stranger: Browser) -> None:
    token, start = await stranger.form_token("/login"), time.monotonic()
    answer, text = await stranger.post("/login", key="wrong", csrf=token, next="/")
    assert answer.status == 401
    assert "This key is wrong, or not good any more." in text
    assert time.monotonic() - start > 0.4
    assert not [one for one in answer.headers.getall("Set-Cookie") if "_visit" not in one]


async def test_after_ten_wrong_keys_an_address_has_to_wait(system: System) -> None:
    async with browsing(system, **{"X-Forwarded-For": "203.0.113.7"}) as one:
        token = await one.form_token("/login")
        tries = [one.post("/login", key=f"wrong {n}", csrf=token) for n in range(10)]
        assert {answer.status for answer, _ in await asyncio.gather(*tries)} == {401}
        answer, text = await one.post("/login", key=system.run.services.keys.admin, csrf=token)
    assert answer.status == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert "Too many wrong keys" in text


async def test_a_login_link_works_once(system: System, stranger: Browser) -> None:
    link = URL(system.run.services.login_links.make(system.url))
    answer, _ = await stranger.get(link.path_qs)
    assert answer.status == 200
    assert (await stranger.get("/"))[0].status == 200
    async with browsing(system) as other:
        answer, text = await other.get(link.path_qs)
        assert (answer.status, "older than ten minutes" in text) == (403, True)
        assert (await other.get("/"))[0].status == 303


async def test_a_login_link_is_good_for_ten_minutes(system: System, stranger: Browser) -> None:
    link = URL(system.run.services.login_links.make(system.url))
    expiries = system.run.services.login_links.expiries
    assert 590 < expiries[link.query["token"]] - time.monotonic() <= 600
    expiries[link.query["token"]] = time.monotonic() - 0.001
    assert (await stranger.get(link.path_qs))[0].status == 403


@pytest.mark.parametrize(
    "elsewhere",
    [
        *(
            "https://example.com/",
            "//example.com",
            "/\\example.com",
            "/\t/example.com",
            "javascript:alert(1)",
        ),
        *("\\\\example.com", "example.com", "/\r\nSet-Cookie: a=b", "/" + "x" * 3000, ""),
    ],
)
async def test_the_login_leads_nowhere_else(stranger: Browser, elsewhere: str) -> None:
    token = await stranger.form_token("/login")
    key = stranger.system.run.services.keys.admin
    answer, text = await stranger.post("/login", key=key, csrf=token, next=elsewhere)
    assert answer.status == 200
    assert 'content="0;url=/"' in text


async def test_a_link_from_another_site_does_not_sign_out(browser: Browser) -> None:
    async with browsing(browser.system) as kept_back:
        answer, text = await kept_back.get("/events?after=3", Sec_Fetch_Site="cross-site")
    assert answer.status == 200
    assert 'content="0;url=/events?after=3"' in text


async def test_a_cookie_that_is_forged_or_cut_or_too_old_is_none(browser: Browser) -> None:
    (good,) = [one for one in browser.client.cookie_jar if "_visit" not in one.key]
    services = browser.system.run.services
    old = Sessions(services.keys, clock=lambda: time.time() - SESSION_SECONDS - 1).start()
    other_key = Sessions(Keys("another key", services.keys.master)).start()
    swapped = ("A" if good.value[0] != "A" else "B") + good.value[1:]
    for forged in (old, other_key, swapped, good.value[:-8], "x", "é", "A" * 5000, ""):
        async with browsing(browser.system, Cookie=f"{good.key}={forged}") as one:
            assert (await one.get("/"))[0].status == 303, forged


def test_every_process_with_the_same_keys_reads_a_session() -> None:
    keys = Keys("key", b"m" * 32)
    session = Sessions(keys).read(Sessions(keys).start())
    assert session
    token = Sessions(keys).form_token(session.id)
    assert Sessions(keys).is_form_token(token, session.id)
    assert not Sessions(keys).is_form_token(token, b"another session")


# Forms.


@pytest.mark.parametrize("path", ["/deliveries/resume", "/logout"])
async def test_a_form_from_elsewhere_does_nothing(browser: Browser, path: str) -> None:
    async with browsing(browser.system) as other:
        others = await (await other.sign_in()).form_token("/")
    for token in ("", "x", "é", others):
        answer, text = await browser.post(path, csrf=token)
        assert answer.status == 403
        assert "came from elsewhere" in text
    assert (await browser.get("/"))[0].status == 200


async def test_the_login_form_works_only_for_whom_it_was_made(system: System, stranger: Browser) -> None:
    async with browsing(system) as other:
        token = await other.form_token("/login")
    answer, text = await stranger.post("/login", key=system.run.services.keys.admin, csrf=token)
    assert (answer.status, "too old" in text) == (403, True)


async def test_signing_out_forgets_the_cookie(browser: Browser) -> None:
    answer, _ = await browser.post("/logout", csrf=await browser.form_token("/"))
    assert (answer.status, answer.headers["Location"]) == (303, "/login")
    assert (await browser.get("/"))[0].status == 303


async def test_a_copy_of_a_cookie_ends_with_its_session(browser: Browser) -> None:
    (good,) = [one for one in browser.client.cookie_jar if "_visit" not in one.key]
    async with browsing(browser.system, Cookie=f"{good.key}={good.value}") as copy:
        assert (await copy.get("/"))[0].status == 200
        await browser.post("/logout", csrf=await browser.form_token("/"))
        assert (await copy.get("/"))[0].status == 303
        assert (await copy.get("/login"))[0].status == 200
        assert (await copy.get("/live", Accept="*/*"))[0].status == 401


async def test_an_open_stream_ends_with_its_session(browser: Browser) -> None:
    async with browser.client.get(f"{browser.system.url}/live") as stream:
        assert stream.status == 200
        await browser.post("/logout", csrf=await browser.form_token("/"))
        async with asyncio.timeout(10):
            await stream.content.read()


async def test_the_api_takes_no_cookie(browser: Browser) -> None:
    answer, _ = await browser.get("/v1/status")
    assert (answer.status, answer.content_type) == (401, "application/problem+json")
