"""Kommo's one-time token opens the settings page of its account, once; nothing else opens it."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from litestar.routes import HTTPRoute

from app.access.settings_sessions import SECONDS, SettingsSessions, Visitor
from app.config.settings import Keys
from app.servers.servers import Servers
from app.service.application import routed
from tests.support.crm_service import Office, office_of
from tests.support.ids import ACCOUNT, ADMIN_KEY, CLIENT_SECRET, CRM_ID, MASTER_BYTES, OTHER_ACCOUNT
from tests.support.settings.visits import claims_of, enter, token_of, visit

Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module")
async def office(servers: Servers) -> AsyncIterator[Office]:
    async with office_of(servers) as one:
        await one.consent()
        yield one


async def test_a_token_becomes_a_session_of_its_account_alone(office: Office) -> None:
    answer = await enter(office, token_of(office))
    assert answer.status == 200, answer
    assert (answer.body["account_id"], answer.body["is_admin"]) == (ACCOUNT, True)
    cookie = answer.headers["Set-Cookie"]
    for attribute in ("HttpOnly", "Secure", "SameSite=None", "Partitioned", "Path=/settings"):
        assert f"; {attribute}" in cookie
    visitor = await visit(office)
    for bearer in (False, True):
        assert (await visitor.get(bearer=bearer)).status == 200
        for part in ("", "/live", "/crm"):
            assert (await visitor.get(part, account=OTHER_ACCOUNT, bearer=bearer)).status == 404
    # A session of the page is no key of the API, and its cookie is no bearer.
    assert (await office.ask("GET", "/v1/accounts", key=visitor.began["bearer"])).status == 401
    swapped = visitor._replace(began=visitor.began | {"bearer": visitor.cookie.partition("=")[2]})
    assert (await swapped.get(bearer=True)).status == 401


def parts() -> Iterator[tuple[str, str]]:
    """Each route of an account's page: its method, and what follows the account in its path."""
    for route in routed({}).routes:
        if isinstance(route, HTTPRoute) and route.path.startswith("/settings/accounts/"):
            path = (
                route.path.partition("}")[2].replace("{channel:str}", "acme").replace("{source_id:int}", "1")
            )
            yield from ((method, path) for method in route.route_handler_map if method in ("GET", "POST"))


async def test_no_part_of_another_accounts_page_is_there(office: Office) -> None:
    assert (await office.register()).status == 201
    assert (await office.connect(account=OTHER_ACCOUNT)).status == 201
    visitor, head = await visit(office), await office.head()
    found = list(parts())
    assert len(found) >= 10
    for method, part in found:
        for bearer in (False, True):
            answer = await visitor.ask(method, part, account=OTHER_ACCOUNT, bearer=bearer)
            assert answer.status == 404, (method, part, answer)
    # Of a channel that another account has, nothing is told either.
    assert (await visitor.post("/channels/acme/connect")).status == 404
    assert b"data-channel" not in (await visitor.get()).raw
    assert await office.head() == head


def unsigned(office: Office) -> str:
    """A token that says of itself that it needs no signature."""
    parts = (json.dumps({"alg": "none", "typ": "JWT"}), json.dumps(claims_of(office)))
    return ".".join(base64.urlsafe_b64encode(one.encode()).rstrip(b"=").decode() for one in parts) + "."


NOW = int(time.time())
SPOILT: dict[str, Json] = {
    "forged": {"key": "another secret, as long as those of Kommo's integrations are"},
    "of another algorithm": {"algorithm": "HS512"},
    "expired": {"exp": NOW - 3600, "iat": NOW - 5400, "nbf": NOW - 5400},
    "not good yet": {"nbf": NOW + 3600},
    "made in the future": {"iat": NOW + 3600},
    "for another site": {"aud": "https://elsewhere.example"},
    "for a path of ours": {"aud": "http://127.0.0.1/oauth/callback"},
    "of another issuer": {"iss": "https://elsewhere.kommo.com"},
    "for another integration": {"client_uuid": "00000000-0000-4000-8000-000000000000"},
    "of an account that is not here": {"account_id": 999},
    "of no account": {"account_id": None},
    "of an account by its name": {"account_id": "acme"},
    **{f"without {name}": {name: None} for name in ("iss", "aud", "jti", "iat", "nbf", "exp", "client_uuid")},
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT.keys())
async def test_a_token_that_proves_nothing_is_refused(office: Office, spoilt: Json) -> None:
    answer = await enter(office, token_of(office, **spoilt))
    assert answer.status == 401, answer
    assert "Set-Cookie" not in answer.headers
    assert answer.body["detail"].startswith("the one-time token is refused: ")


async def test_a_token_without_a_signature_is_refused(office: Office) -> None:
    whole = token_of(office)
    others = ("", "x", "a.b.c", whole[:-3], whole.rpartition(".")[0] + ".", whole * 20, unsigned(office))
    for token in others:
        assert (await enter(office, token)).status == 401, token


async def test_a_token_is_good_once_whoever_is_first(office: Office) -> None:
    token = token_of(office)
    answers = await asyncio.gather(*(enter(office, token) for _ in range(8)))
    assert sorted(one.status for one in answers) == [200, *[401] * 7]
    assert (
        (await enter(office, token))
        .body["detail"]
        .startswith("the one-time token is refused: it was used already")
    )


async def test_used_tokens_are_forgotten_once_they_have_expired(office: Office) -> None:
    old = token_of(office, exp=int(time.time()) - 50)  # Within the tolerance.
    assert (await enter(office, old)).status == 200
    async with await psycopg.AsyncConnection.connect(office.database_url, autocommit=True) as db:
        await db.execute("UPDATE ledger.one_time_tokens SET expires_at = now() - interval '1 second'")
        await visit(office)
        row = await (await db.execute("SELECT count(*) FROM ledger.one_time_tokens")).fetchone()
    assert row == (1,)


async def test_only_the_accounts_own_pages_may_send_its_token(office: Office) -> None:
    own, sandbox = office.url, office.sandbox.url
    answer = await enter(office, token_of(office), Origin=sandbox)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, sandbox)
    assert "Access-Control-Allow-Credentials" not in answer.headers
    answer = await enter(office, token_of(office), Origin=own)
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers
    for origin in ("https://evil.example", "null", sandbox + ".evil.example", "https://other.kommo.com"):
        token = token_of(office)
        answer = await enter(office, token, Origin=origin)
        assert answer.status == 403, origin
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert (await enter(office, token)).status == 200  # It is not used up by who may not use it.


async def test_a_preflight_is_granted_to_accounts_alone(office: Office) -> None:
    async def preflight(origin: str) -> Any:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-auth-token,content-type",
        }
        return await office.request("OPTIONS", "/settings/session", headers=headers)

    granted = await preflight(office.sandbox.url)
    assert granted.status == 204
    assert granted.headers["Access-Control-Allow-Origin"] == office.sandbox.url
    assert granted.headers["Access-Control-Allow-Headers"] == "x-auth-token, content-type"
    for origin in ("https://evil.example", "https://other.kommo.com", "null", ""):
        refused = await preflight(origin)
        assert refused.status == 403
        assert "Access-Control-Allow-Origin" not in refused.headers


async def test_only_administrators_change_something(office: Office) -> None:
    looker = await visit(office, is_admin=False)
    for part in ("", "/live", "/crm"):
        answer = await looker.get(part)
        assert answer.status == 200, answer
        assert b"<form" not in answer.raw
    for part in ("/retry", "/sources", "/channels/acme/connect", "/channels/acme/messenger"):
        assert (await looker.post(part)).status == 403, part


async def test_a_change_by_cookie_needs_the_pages_token(office: Office) -> None:
    one, other = await visit(office), await visit(office)
    assert (await one.post("/retry", csrf="")).status == 403
    assert (await one.post("/retry", csrf=other.began["csrf"])).status == 403
    assert (await one.post("/retry")).status == 200
    assert (await one.post("/retry", csrf="", bearer=True)).status == 200


async def test_whoever_is_not_signed_in_sees_nothing(office: Office) -> None:
    visitor = await visit(office)
    spoilt = visitor._replace(cookie=visitor.cookie[:-2] + "xx")
    for one in (spoilt, visitor._replace(cookie="a=b")):
        for part in ("", "/live", "/crm"):
            assert (await one.get(part)).status == 401
        assert (await one.post("/retry")).status == 401
    shell = await office.request("GET", "/settings")
    assert shell.status == 200
    assert ACCOUNT.encode() not in shell.raw
    mine = await office.request("GET", "/settings", headers={"Cookie": visitor.cookie})
    assert ACCOUNT.encode() in mine.raw  # On its own address a session goes on ...
    framed = {"Cookie": visitor.cookie, "Sec-Fetch-Dest": "iframe"}
    assert ACCOUNT.encode() not in (await office.request("GET", "/settings", headers=framed)).raw  # ... only.


async def test_only_kommos_pages_may_frame_it(office: Office) -> None:
    headers = (await office.request("GET", "/settings")).headers
    port = office.sandbox.url.rpartition(":")[2]
    policy = headers["Content-Security-Policy"]
    assert policy.endswith(f"frame-ancestors 'self' http://127.0.0.1:{port} http://localhost:{port}")
    assert "script-src 'self';" in policy
    assert "X-Frame-Options" not in headers
    assert headers["Cache-Control"] == "no-store"


async def test_who_looked_is_written_down_as_the_user_of_kommo(office: Office) -> None:
    visitor = await visit(office, user_id=42)
    assert (await visitor.get("/live")).status == 200
    assert (await visitor.post("/retry")).status == 200
    assert (await visitor.get("/live", account=OTHER_ACCOUNT)).status == 404
    await office.run.services.access_log.flush()
    listed = await office.get("/v1/access", key="Kommo user 42")
    seen = [(one["method"], one["route"], one["account_id"], one["status"]) for one in listed["items"]]
    here = "/settings/accounts/{account_id}"
    assert seen == [
        ("GET", f"{here}/live", OTHER_ACCOUNT, 404),
        ("POST", f"{here}/retry", ACCOUNT, 200),
        ("GET", f"{here}/live", ACCOUNT, 200),
        ("POST", "/settings/session", ACCOUNT, 200),
    ]


async def test_sessions_end_with_the_integration(servers: Servers) -> None:
    async with office_of(servers) as office:
        await office.consent()
        visitor = await visit(office)
        unused = token_of(office)
        await office.order("/crm/disable", {"account_id": ACCOUNT})
        assert (await visitor.get()).status == 401
        answer = await enter(office, unused)
        assert (answer.status, "is not installed" in answer.body["detail"]) == (401, True)
        await office.consent()
        assert (await (await visit(office)).get()).status == 200


async def test_many_refused_tokens_of_one_source_are_slowed_down(office: Office) -> None:
    source = {"X-Forwarded-For": "198.51.100.77"}
    statuses = {(await enter(office, "x", **source)).status for _ in range(10)}
    assert statuses == {401}
    began = time.monotonic()
    assert (await enter(office, "x", **source)).status == 401
    assert time.monotonic() - began > 0.4
    assert (await enter(office, token_of(office), **source)).status == 200


def test_a_session_ends_by_itself_and_a_bearer_sooner() -> None:
    now = [1_000_000.0]
    sessions = SettingsSessions(Keys(ADMIN_KEY, MASTER_BYTES), clock=lambda: now[0])
    texts = sessions.start(Visitor(ACCOUNT, CRM_ID, 1, True))
    now[0] += SECONDS["bearer"] + 1
    assert sessions.read("bearer", texts["bearer"]) is None
    assert sessions.read("cookie", texts["cookie"]) is not None
    now[0] += SECONDS["cookie"]
    assert sessions.read("cookie", texts["cookie"]) is None
    others = SettingsSessions(Keys("another admin key", MASTER_BYTES), clock=lambda: 1_000_000.0)
    assert others.read("cookie", texts["cookie"]) is None
    assert CLIENT_SECRET not in str(texts)
