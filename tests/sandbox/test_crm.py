"""The fake CRM lets in who has consent, as often as documented, and says why it does not."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from click.testing import CliRunner

from ops.sandbox import OAuthClient, crm_account
from ops.sandbox.cli import sandbox
from tests.support.crm_client import OTHER, Office, fresh_office, no_redirect, office
from tests.support.ids import ACCOUNT, CLIENT, CLIENT_SECRET, CRM_ID, MARIA, REDIRECT


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Office]:
    async with office() as one:
        yield one


@pytest_asyncio.fixture
async def crm(shared: Office) -> Office:
    return await fresh_office(shared)


async def test_the_consent_page_leads_back_with_a_code_and_the_state(crm: Office) -> None:
    page = f"{crm.chats.url}/oauth"
    async with crm.chats.client.get(page, params={"client_id": CLIENT, "state": "s 1"}) as answer:
        assert answer.status == 200
        assert "form-action 'self' http://127.0.0.1:9;" in answer.headers["Content-Security-Policy"]
        assert 'name="decision" value="allow"' in await answer.text()
    form = {"client_id": CLIENT, "state": "s 1", "account_id": ACCOUNT, "decision": "allow"}
    status, where = await no_redirect(crm.chats.client, page, form)
    told = {name: values[0] for name, values in parse_qs(urlsplit(where).query).items()}
    assert (status, where.partition("?")[0]) == (302, REDIRECT)
    assert (told["state"], told["referer"]) == ("s 1", urlsplit(crm.chats.url).netloc)
    assert (await crm.exchange(code=told["code"]))[0] == 200


async def test_a_refused_consent_leads_back_with_the_reason(crm: Office) -> None:
    form = {"client_id": CLIENT, "state": "s1", "account_id": ACCOUNT, "decision": "refuse"}
    _, where = await no_redirect(crm.chats.client, f"{crm.chats.url}/oauth", form)
    assert parse_qs(urlsplit(where).query) == {
        "error": ["access_denied"],
        "state": ["s1"],
        "client_id": [CLIENT],
    }


async def test_a_code_is_good_once(crm: Office) -> None:
    code = (await crm.authorize())["code"]
    status, told = await crm.exchange(code=code)
    assert (status, told["token_type"], told["expires_in"]) == (200, "Bearer", 86400)
    status, problem = await crm.exchange(code=code)
    assert status == 400
    assert set(problem) == {"hint", "title", "type", "status", "detail"}


async def test_a_form_is_taken_as_well_as_json(crm: Office) -> None:
    form = {
        "client_id": CLIENT,
        "client_secret": CLIENT_SECRET,
        "grant_type": "authorization_code",
        "redirect_uri": REDIRECT,
        "code": (await crm.authorize())["code"],
    }
    assert (await crm.chats.request("POST", "/oauth2/access_token", data=form))[0] == 200


DENIED = {
    "another secret": ({"client_secret": "x"}, 401),
    "another client": ({"client_id": "x"}, 401),
    "no secret": ({"client_secret": ""}, 400),
    "another address": ({"redirect_uri": REDIRECT + "x"}, 400),
    "another grant": ({"grant_type": "password"}, 400),
    "no code": ({"code": ""}, 400),
    "an unknown code": ({"code": "x"}, 400),
    "a refresh token that is a code": ({"grant_type": "refresh_token"}, 400),
}


@pytest.mark.parametrize(("wrong", "status"), DENIED.values(), ids=DENIED)
async def test_tokens_are_given_to_nobody_else(crm: Office, wrong: dict[str, str], status: int) -> None:
    code = (await crm.authorize())["code"]
    answered, problem = await crm.exchange(**({"code": code} | wrong))
    assert (answered, problem["status"]) == (status, status)


async def test_a_refresh_token_is_dead_once_it_was_used(crm: Office) -> None:
    status, told = await crm.renew()
    assert status == 200
    assert (await crm.renew())[0] == 400
    assert (await crm.renew(told["refresh_token"]))[0] == 200


async def test_of_many_refreshes_at_once_one_wins(crm: Office) -> None:
    answers = await asyncio.gather(*(crm.renew() for _ in range(8)))
    assert sorted(status for status, _ in answers) == [200] + [400] * 7


async def test_an_expired_token_is_401_and_its_refresh_still_works(crm: Office) -> None:
    assert await crm.order("/expire") == (200, {"expired": 1})
    status, problem = await crm.get("/account")
    assert (status, problem["title"]) == (401, "Unauthorized")
    _, told = await crm.renew()
    crm.token = told["access_token"]
    assert (await crm.get("/account"))[0] == 200


async def test_after_a_withdrawn_consent_nothing_works(crm: Office) -> None:
    await crm.order("/revoke")
    assert [(await crm.get("/account"))[0], (await crm.renew())[0]] == [401, 400]


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic x"}])
async def test_without_a_token_there_is_no_answer(crm: Office, header: dict[str, str]) -> None:
    assert (await crm.chats.request("GET", "/api/v4/account", headers=header))[0] == 401


async def test_the_account_has_its_amojo_id_when_it_is_asked_for(crm: Office) -> None:
    _, told = await crm.get("/account?with=amojo_id,amojo_rights")
    assert (told["id"], told["amojo_id"], told["subdomain"]) == (CRM_ID, ACCOUNT, "acme")
    assert told["_embedded"]["amojo_rights"] == {"can_direct": True, "can_create_groups": True}
    assert "amojo_id" not in (await crm.get("/account"))[1]


async def test_users_come_in_pages_and_one_has_no_amojo_id(crm: Office) -> None:
    _, told = await crm.get("/users?with=amojo_id")
    users = {one["name"]: one["amojo_id"] for one in told["_embedded"]["users"]}
    assert (users["Maria Keller"], users["Back office"]) == (MARIA, None)
    _, second = await crm.get("/users?limit=2&page=2")
    assert (second["_page_count"], len(second["_embedded"]["users"])) == (2, 1)
    assert (await crm.get("/users?page=9"))[0] == 204
    assert (await crm.get("/users?limit=251"))[0] == 400
    one = told["_embedded"]["users"][0]["id"]
    assert [(await crm.get(f"/users/{id}"))[0] for id in (one, 1)] == [200, 404]


async def test_a_disabled_integration_is_told_signed_and_disconnected() -> None:
    told: list[dict[str, str]] = []

    async def listen(request: web.Request) -> web.Response:
        told.append(dict(request.query))
        return web.Response()

    app = web.Application()
    app.router.add_get("/oauth/disabled", listen)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/oauth/disabled"
    async with office(disabled_url=url) as crm:
        await fresh_office(crm)
        _, done = await crm.order("/disable")
        assert (done["status"], len(done["disconnected"])) == (200, 1)
        expected = hmac.new(CLIENT_SECRET.encode(), f"{CLIENT}|{CRM_ID}".encode(), "sha256").hexdigest()
        assert told == [{"account_id": str(CRM_ID), "client_uuid": CLIENT, "signature": expected}]
        assert (await crm.get("/account"))[0] == 401
        assert (await crm.chats.send())[0] == 404
    await runner.cleanup()


async def test_an_order_without_an_integration_says_what_to_do() -> None:
    async with office(oauth=()) as crm:
        status, told = await crm.order("/authorize")
        assert (status, "--oauth" in told["error"]) == (409, True)


async def test_consents_survive_a_restart(tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    async with office(state=state) as crm:
        await fresh_office(crm)
        token, refresh = crm.token, crm.refresh
    async with office(state=state) as crm:
        crm.token, crm.refresh = token, refresh
        assert [(await crm.get("/account"))[0], (await crm.renew())[0]] == [200, 200]


async def test_more_than_7_requests_a_second_are_429_and_then_a_page() -> None:
    async with office(crm_per_second=7) as crm:
        await fresh_office(crm)

        async def ask() -> tuple[int, str, str]:
            headers = {"Authorization": f"Bearer {crm.token}"}
            async with crm.chats.client.get(crm.chats.url + "/api/v4/account", headers=headers) as answer:
                return answer.status, answer.content_type, answer.headers.get("Retry-After", "")

        answers = await asyncio.gather(*(ask() for _ in range(80)))
        assert set(answers) == {
            (200, "application/hal+json", ""),
            (429, "application/problem+json", "1"),
            (403, "text/html", ""),
        }
        assert [one["rate"] for one in (await crm.crm())["accounts"]] == ["blocked"]


async def test_faults_hit_the_crm_as_ordered(crm: Office) -> None:
    await crm.chats.order("POST", "/faults", {"where": "crm.account", "action": "503", "retry_after": 2})
    status, problem = await crm.get("/account")
    assert (status, problem["status"]) == (503, 503)
    await crm.chats.order("POST", "/faults", {"where": "crm.token", "action": "500"})
    assert [(await crm.renew())[0] for _ in range(2)] == [500, 200]
    assert (await crm.get("/account"))[0] == 200


async def test_an_answer_of_the_crm_can_be_a_page_or_be_lost(crm: Office) -> None:
    await crm.chats.order("POST", "/faults", {"where": "crm.users", "action": "html"})
    headers = {"Authorization": f"Bearer {crm.token}"}
    async with crm.chats.client.get(crm.chats.url + "/api/v4/users", headers=headers) as answer:
        assert (answer.status, answer.content_type) == (403, "text/html")
    await crm.chats.order("POST", "/faults", {"where": "crm.token", "action": "drop_after"})
    with pytest.raises(aiohttp.ClientError):
        await crm.renew()
    assert (await crm.renew())[0] == 400  # The tokens were given, and nobody has them.


async def test_an_account_sees_nothing_of_another() -> None:
    accounts = (crm_account(ACCOUNT, CRM_ID), crm_account(OTHER))
    async with office(crm_accounts=accounts) as crm:
        await crm.chats.connect()
        await crm.chats.send()
        assert (await crm.order("/authorize"))[0] == 400  # Which of the two?
        await crm.sign_in(account_id=ACCOUNT)
        await crm.post("/sources", [{"name": "Shop", "external_id": "shop"}])
        _, listed = await crm.get("/leads/unsorted")
        uid, chat = listed["_embedded"]["unsorted"][0]["uid"], (await crm.chats.kommo())["chats"][0]["id"]
        await crm.sign_in(account_id=accounts[1].id)
        assert (await crm.get("/account?with=amojo_id"))[1]["amojo_id"] == OTHER
        assert [(await crm.get(path))[0] for path in ("/sources", "/leads/unsorted", "/contacts")] == [
            204
        ] * 3
        assert (await crm.post(f"/leads/unsorted/{uid}/accept", {}))[0] == 404
        _, made = await crm.post("/contacts", [{"name": "Ann"}])
        link = {"contact_id": made["_embedded"]["contacts"][0]["id"], "chat_id": chat}
        assert (await crm.post("/contacts/chats", [link]))[0] == 400


async def test_an_integration_sees_only_its_own_sources_and_templates() -> None:
    second = OAuthClient("second", "secret", REDIRECT)
    async with office(oauth=(OAuthClient(CLIENT, CLIENT_SECRET, REDIRECT), second)) as crm:
        await crm.sign_in(client_id=CLIENT)
        await crm.post("/sources", [{"name": "Shop", "external_id": "shop"}])
        await crm.post("/chats/templates", [{"name": "Hi", "content": "Hello"}])
        code = (await crm.authorize(client_id="second"))["code"]
        assert (await crm.exchange(code=code))[0] == 400  # It was issued to the other.
        code = (await crm.authorize(client_id="second"))["code"]
        _, told = await crm.exchange(code=code, client_id="second", client_secret="secret")
        crm.token = told["access_token"]
        assert [(await crm.get(path))[0] for path in ("/sources", "/chats/templates")] == [204, 204]
        assert (await crm.post("/sources", [{"name": "Shop", "external_id": "shop"}]))[0] == 200


@pytest.mark.parametrize(
    "given",
    [
        ["--oauth", "client"],
        ["--oauth", "client:secret:ftp://x"],
        ["--crm-account", "a:b"],
        ["--crm-account", "a:1:b:c"],
        ["--channel", "a:b:c:d:e"],
        ["--disabled-url", "x"],
    ],
)
def test_bad_usage_is_told(given: list[str]) -> None:
    assert CliRunner().invoke(sandbox, given).exit_code == 2


def test_the_help_names_every_call_of_the_crm() -> None:
    text = CliRunner().invoke(sandbox, ["--help"]).output
    for word in (
        "/oauth2/access_token",
        "/api/v4/account",
        "contacts/chats",
        "leads/unsorted",
        "--crm-account",
    ):
        assert word in text
