"""The sandbox takes the archives that Kommo would take, and plays what an account's users do with them."""

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from click.testing import CliRunner

from app.cli.widget import archive
from ops.sandbox import OAuthClient, crm_account
from ops.sandbox.cli import sandbox
from ops.sandbox.widget.archive import Refused, unpacked
from tests.support.crm_client import OTHER, Office, fresh_office, office
from tests.support.documents.archives import Files, opened, packed
from tests.support.ids import ACCOUNT, CLIENT, CLIENT_SECRET, CRM_ID

WIDGET = archive("https://chat.example.com", CLIENT, "Acme chat", "1.2.3")


def said(**changed: Any) -> Callable[[Files], None]:
    """Changes in the manifest; `widget` is changed inside."""

    def change(files: Files) -> None:
        told = json.loads(files["manifest.json"])
        told["widget"] |= changed.get("widget", {})
        told |= {name: value for name, value in changed.items() if name != "widget"}
        files["manifest.json"] = json.dumps(told).encode()

    return change


def without(name: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        del files[name]

    return change


def put(name: str, content: bytes) -> Callable[[Files], None]:
    return lambda files: files.update({name: content})


def in_a_folder(files: Files) -> None:
    found = {f"widget/{name}": content for name, content in files.items()}
    files.clear()
    files.update(found)


PNG = opened(WIDGET)["images/logo.png"]
WRONG = {
    "no manifest": (without("manifest.json"), "manifest.json: is missing"),
    "all in a folder": (in_a_folder, "pack what is in the folder of widget/manifest.json"),
    "a manifest that is no JSON": (put("manifest.json", b"{"), "manifest.json: is not JSON"),
    "a manifest that is a list": (put("manifest.json", b"[]"), "manifest.json: must be a JSON object"),
    "a version of words": (said(widget={"version": "1.0.dev"}), "`widget.version` must be numbers"),
    "an old interface": (said(widget={"interface_version": 1}), "`widget.interface_version` must be 2"),
    "no name": (said(widget={"name": None}), "`widget.name` must be the place of a text"),
    "no support": (said(widget={"support": {}}), "`widget.support` must have a link or an email"),
    "no language": (said(widget={"locale": []}), "`widget.locale` must be a list of languages"),
    "a language without texts": (said(widget={"locale": ["en", "fr"]}), "i18n/fr.json: is missing"),
    "a text that is nowhere": (
        said(widget={"name": "widget.title"}),
        "i18n/en.json: has no text at widget.title",
    ),
    "a page without a title": (
        said(advanced={}),
        "manifest.json: `advanced.title` must be the place of a text",
    ),
    "an area of its own": (said(locations=["settings", "moon"]), "`locations` has 'moon'"),
    "no area": (said(locations=[]), "`locations` must be a list"),
    "a field of another type": (
        said(settings={"a": {"name": "widget.name", "type": "date"}}),
        "`settings.a.type`",
    ),
    "a pipeline without its logo": (said(locations=["digital_pipeline"]), "images/logo_dp.png: is missing"),
    "no logo": (without("images/logo_min.png"), "images/logo_min.png: is missing"),
    "a logo of another size": (put("images/logo_main.png", PNG), "is 130x100, and must be 400x272"),
    "a logo that is no picture": (put("images/logo.png", b"GIF89a"), "images/logo.png: is no PNG"),
    "a heavy logo": (
        put("images/logo.png", PNG + bytes(300 * 1024)),
        "images/logo.png: has more than 300 KB",
    ),
    "a script that is no module": (put("script.js", b"alert(1)"), "script.js: is no module"),
    "a way out": (put("../x.js", b""), "../x.js: leads out of the archive"),
}


@pytest.mark.parametrize(("spoil", "words"), WRONG.values(), ids=WRONG)
def test_an_archive_that_kommo_would_not_take_is_refused_in_words(
    spoil: Callable[[Files], None], words: str
) -> None:
    files = opened(WIDGET)
    spoil(files)
    with pytest.raises(Refused) as refused:
        unpacked(packed(files))
    assert [one for one in refused.value.faults if words in one], refused.value.faults


def test_all_faults_are_told_at_once() -> None:
    files = opened(WIDGET)
    for spoil in (without("i18n/ru.json"), without("images/logo.png"), said(widget={"version": ""})):
        spoil(files)
    with pytest.raises(Refused) as refused:
        unpacked(packed(files))
    assert len(refused.value.faults) == 3


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 6_000_000, WIDGET[:-40]])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    with pytest.raises(Refused):
        unpacked(content)


def test_ours_is_taken() -> None:
    assert unpacked(WIDGET) == opened(WIDGET)


def test_the_command_takes_an_archive_or_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "widget.zip"
    path.write_bytes(b"x")
    given = ["--oauth", f"{CLIENT}:x", "--widget", str(path)]
    assert "is no zip file" in CliRunner().invoke(sandbox, given).output
    path.write_bytes(WIDGET)
    assert "--widget needs --oauth" in CliRunner().invoke(sandbox, given[2:]).output
    assert "No such file" in CliRunner().invoke(sandbox, [*given[:3], str(tmp_path / "no")]).output


# The account's pages and orders.


class Home:
    """An integration's own addresses, and the calls that came there."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []

    async def hear(self, request: web.Request) -> web.Response:
        self.calls.append((request.path, dict(request.query)))
        return web.Response()


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[tuple[Office, Home]]:
    home, app = Home(), web.Application()
    app.router.add_get("/oauth/{what}", home.hear)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/oauth"
    async with office(
        oauth=(OAuthClient(CLIENT, CLIENT_SECRET, f"{url}/callback"),),
        crm_accounts=(crm_account(ACCOUNT, CRM_ID, "acme"), crm_account(OTHER, 77, "other")),
        accounts=(ACCOUNT, OTHER),
        disabled_url=f"{url}/disabled",
    ) as one:
        yield one, home
    await runner.cleanup()


@pytest_asyncio.fixture
async def crm(shared: tuple[Office, Home]) -> Office:
    await shared[0].chats.order("DELETE", "/state")
    assert (await uploaded(shared[0]))[0] == 201
    shared[1].calls.clear()
    return shared[0]


@pytest.fixture
def home(shared: tuple[Office, Home]) -> Home:
    return shared[1]


async def uploaded(crm: Office, content: bytes = WIDGET) -> tuple[int, Any]:
    return await crm.chats.request("POST", "/control/crm/widget", data=content)


async def users(crm: Office) -> dict[str, int]:
    """The numbers of the users by name; Maria is the administrator."""
    await crm.chats.connect()
    one = await crm.order("/authorize", account_id=ACCOUNT)
    crm.token = (await crm.exchange(code=one[1]["code"], redirect_uri=one[1]["redirect_uri"]))[1][
        "access_token"
    ]
    found = (await crm.get("/users"))[1]["_embedded"]["users"]
    return {user["name"].partition(" ")[0]: user["id"] for user in found}


def claims(token: str, secret: str = CLIENT_SECRET) -> dict[str, Any]:
    """What a token says, if the secret has signed it."""
    head, body, signature = token.split(".")
    expected = hmac.digest(secret.encode(), f"{head}.{body}".encode(), "sha256")
    assert base64.urlsafe_b64decode(signature + "==") == expected
    assert json.loads(base64.urlsafe_b64decode(head + "=="))["alg"] == "HS256"
    told: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=="))
    return told


async def shown(crm: Office, path: str, form: Any = None) -> tuple[int, str]:
    method = "GET" if form is None else "POST"
    async with crm.chats.client.request(method, crm.chats.url + path, data=form) as answer:
        return answer.status, await answer.text()


async def test_install_calls_the_redirect_url_without_a_state(crm: Office, home: Home) -> None:
    status, told = await crm.order("/install", account_id=OTHER)
    assert (status, told["status"], told["account_id"]) == (201, 200, OTHER)
    [(path, query)] = home.calls
    assert (path, set(query)) == ("/oauth/callback", {"code", "referer", "client_id", "from_widget"})
    assert query["referer"] == urlsplit(crm.chats.url).netloc
    redirect_uri = told["url"].partition("?")[0]
    _, tokens = await crm.exchange(code=query["code"], redirect_uri=redirect_uri)
    crm.token = tokens["access_token"]
    assert (await crm.get("/account"))[1]["id"] == 77
    assert [one["id"] for one in (await crm.crm())["installed"]] == [f"{OTHER}/{CLIENT}"]


async def test_an_installation_may_only_be_named(crm: Office, home: Home) -> None:
    _, told = await crm.order("/install", account_id=ACCOUNT, deliver=False)
    assert parse_qs(urlsplit(told["url"]).query)["from_widget"] == ["1"]
    assert home.calls == []


async def test_uninstall_ends_tokens_and_is_told(crm: Office, home: Home) -> None:
    maria = (await users(crm))["Maria"]
    form = {"client": CLIENT, "account": ACCOUNT, "user": str(maria)}
    status, text = await shown(crm, "/integrations/uninstall", form)
    assert (status, "Uninstalled. The integration answered 200." in text) == (200, True)
    [(path, query)] = home.calls
    expected = hmac.new(CLIENT_SECRET.encode(), f"{CLIENT}|{CRM_ID}".encode(), "sha256").hexdigest()
    assert (path, query["signature"]) == ("/oauth/disabled", expected)
    assert (await crm.get("/account"))[0] == 401
    assert (await crm.crm())["installed"] == []


async def test_only_administrators_install_and_uninstall(crm: Office, home: Home) -> None:
    form = {"client": CLIENT, "account": ACCOUNT, "user": str((await users(crm))["Oleg"])}
    for button in ("install", "uninstall"):
        assert (await shown(crm, f"/integrations/{button}", form))[0] == 403
    assert home.calls == []
    assert "Only administrators install" in (await shown(crm, f"/integrations?user={form['user']}"))[1]


async def test_the_token_says_who_opened_the_window_and_is_new_each_time(crm: Office) -> None:
    found = await users(crm)
    path = f"/ajax/v2/integrations/{CLIENT}/disposable_token?account={ACCOUNT}&user="
    told = [
        claims((await crm.chats.request("GET", f"{path}{found[name]}"))[1]["token"])
        for name in ("Maria", "Oleg")
    ]
    assert [(one["user_id"], one["is_admin"]) for one in told] == [
        (found["Maria"], True),
        (found["Oleg"], False),
    ]
    assert told[0]["jti"] != told[1]["jti"]
    assert told[0]["exp"] - told[0]["iat"] == 1800
    assert (told[0]["iss"], told[0]["account_id"], told[0]["subdomain"]) == (crm.chats.url, CRM_ID, "acme")
    assert told[0]["aud"].startswith("http://127.0.0.1:")
    assert told[0]["client_uuid"] == CLIENT


async def test_no_token_before_the_installation(crm: Office) -> None:
    path = f"/ajax/v2/integrations/{CLIENT}/disposable_token?account={ACCOUNT}"
    assert (await crm.chats.request("GET", path))[0] == 403


async def test_no_other_site_is_given_a_token(crm: Office) -> None:
    await users(crm)
    path = f"/ajax/v2/integrations/{CLIENT}/disposable_token?account={ACCOUNT}"
    assert (await crm.chats.request("GET", path, headers={"Origin": "https://evil.example"}))[0] == 403


async def test_false_tokens_can_be_ordered(crm: Office) -> None:
    _, told = await crm.order("/token", account_id=ACCOUNT, claims={"exp": 1}, algorithm="none")
    assert told["token"].endswith(".")
    assert told["claims"]["exp"] == 1
    assert (await crm.order("/token", account_id=ACCOUNT, user_id=1))[0] == 404


async def test_the_page_shows_the_widget_in_the_users_language(crm: Office) -> None:
    _, text = await shown(crm, "/integrations?lang=ru")
    assert ("Acme chat" in text, "Отвечайте клиентам" in text) == (True, True)
    for area in ("settings", "lead_sources", "advanced_settings"):
        status, text = await shown(crm, f"/integrations/window?area={area}&account={ACCOUNT}")
        assert (status, "/static/widget.js" in text) == (200, True)
    assert (await shown(crm, "/integrations/window?area=digital_pipeline"))[0] == 404


async def test_the_page_tells_what_is_wrong_with_an_archive(crm: Office) -> None:
    files = opened(WIDGET)
    del files["images/logo.png"]
    form = aiohttp.FormData({"client": CLIENT})
    form.add_field("archive", packed(files), filename="widget.zip")
    status, text = await shown(crm, "/integrations/upload", form)
    assert (status, "images/logo.png: is missing" in text) == (422, True)
    status, told = await uploaded(crm, packed(files))
    assert (status, told["faults"]) == (422, ["images/logo.png: is missing"])


async def test_files_of_the_widget_are_served_and_no_others(crm: Office) -> None:
    where = f"/integrations/files/{CLIENT}/"
    assert (await shown(crm, where + "script.js"))[1].startswith("// The integration in Kommo")
    for name in ("no.js", "../x", "%2e%2e/x"):
        assert (await shown(crm, where + name))[0] == 404


async def test_widgets_and_installations_survive_a_restart(tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    async with office(state=state, widget=WIDGET) as crm:
        await fresh_office(crm)
        assert (await uploaded(crm))[0] == 201
    async with office(state=state) as crm:
        assert [one["id"] for one in (await crm.crm())["installed"]] == [f"{ACCOUNT}/{CLIENT}"]
        assert "Acme chat" in (await shown(crm, "/integrations"))[1]
