"""The messenger's credentials of an account: tried at once, kept sealed, used, and never shown again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio
from aiohttp import web

from ops.sandbox import OAuthClient, Sandbox, crm_account
from tests.support import pigeon
from tests.support.crm_service import Office
from tests.support.ids import (
    ACCOUNT,
    ADMIN_KEY,
    BOT,
    CHANNEL,
    CHANNEL_SECRET,
    CLIENT,
    CLIENT_SECRET,
    CRM_ID,
    NOWHERE,
    OTHER_ACCOUNT,
)
from tests.support.processes import WAIT_SECONDS, Process
from tests.support.settings.visits import Visit, visit
from tests.support.system import config, free_port, until

SECOND = "tests.support.pigeon"
GOOD, BAD, RING = "seed-of-the-right-kind", "seed-of-another-kind", "ring-7"
HERE = f"/v1/channels/loft/connections/{ACCOUNT}/messenger"


class Loft:
    """A messenger that knows one seed, and keeps the letters that come with what they came with."""

    def __init__(self) -> None:
        self.url = ""
        self.seed = GOOD
        self.letters: list[dict[str, Any]] = []

    async def take(self, request: web.Request) -> web.Response:
        headers = request.headers
        found = {"perch": headers.get(pigeon.PERCH), "seed": headers.get(pigeon.SEED)}
        self.letters.append(await request.json() | found)
        return web.json_response({"landed": f"perch-{len(self.letters)}"})

    async def coo(self, request: web.Request) -> web.Response:
        seed = request.headers.get(pigeon.SEED)
        return web.Response(status=403 if seed is not None and seed != self.seed else 204)


@asynccontextmanager
async def loft_at() -> AsyncIterator[Loft]:
    loft, app = Loft(), web.Application()
    app.router.add_post("/", loft.take)
    app.router.add_get("/", loft.coo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    loft.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield loft
    finally:
        await runner.cleanup()


class Keeper(Office):
    """A service with the second kind, as a process of its own, and the loft that it serves."""

    def __init__(self, url: str, sandbox: Sandbox, client: aiohttp.ClientSession, loft: Loft) -> None:
        self.url, self.sandbox, self.client, self.loft = url, sandbox, client, loft

    async def put(self, fields: object, **more: Any) -> Any:
        return await self.ask("PUT", more.pop("path", HERE), fields, **more)


def file_of(sandbox: Sandbox, loft: Loft, here: str) -> str:
    """A --config file: the channel's messenger is of the second kind, and who installs gets the channel."""
    port = sandbox.url.rpartition(":")[2]
    return f"""
[oauth]
client_id = "{CLIENT}"
client_secret = "{CLIENT_SECRET}"
redirect_url = "{here}/oauth/callback"
authorize_url = "{sandbox.url}/oauth"
domains = ["127.0.0.1:{port}"]

[install]
channels = ["loft"]
title = "Loft"

[[channels]]
name = "loft"
kommo = {{ channel_id = "{CHANNEL}", secret = "{CHANNEL_SECRET}", bot_id = "{BOT}" }}
messenger = {{ kind = "{pigeon.KIND}", url = "{loft.url}", secret = "{RING}" }}
"""


@pytest_asyncio.fixture(scope="module")
async def keeper(module_folder: Path) -> AsyncIterator[Keeper]:
    port = free_port()
    here = f"http://127.0.0.1:{port}"
    crm = {
        "oauth": (OAuthClient(CLIENT, CLIENT_SECRET, f"{here}/oauth/callback"),),
        "crm_accounts": (crm_account(ACCOUNT, CRM_ID, "acme"), crm_account(OTHER_ACCOUNT)),
        "crm_per_second": 0,
    }
    async with (
        loft_at() as loft,
        Sandbox(config(here, **crm)) as sandbox,
        aiohttp.ClientSession() as client,
    ):
        file = module_folder / "chatledger.toml"
        file.write_text(file_of(sandbox, loft, here))
        settings = {
            "CHATLEDGER_DATA": str(module_folder / "data"),
            "CHATLEDGER_PORT": str(port),
            "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
            "CHATLEDGER_KOMMO_URL": sandbox.url,
            "CHATLEDGER_PUBLIC_URL": here,
            "CHATLEDGER_TRUSTED_PROXIES": "127.0.0.1",
        }
        process = Process(module_folder, SECOND, "--config", str(file), "serve", **settings)
        try:
            one = Keeper(await process.start(), sandbox, client, loft)
            assert (await one.install()).status == 200
            await connected(one)
            yield one
        finally:
            await process.end()


async def connected(keeper: Keeper) -> None:
    """Wait for the channel, which the start may register after the installation has asked for it."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not any(one["connected"] for one in (await keeper.account())["channels"]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def page(keeper: Keeper) -> Visit:
    return await visit(keeper)


async def letter(keeper: Keeper, words: str) -> dict[str, Any]:
    """A manager writes to a customer who has written, and the loft gets it."""
    first = {"loft": "ann", "number": f"n-{words}", "text": "Coo"}
    headers = {pigeon.RING: RING}
    answer = await keeper.request("POST", f"/pigeon/loft/{ACCOUNT}", json=first, headers=headers)
    assert answer.status == 200, answer
    await keeper.order(
        "/manager/messages", {"conversation_id": "ann", "message": {"type": "text", "text": words}}
    )
    await until(lambda: [one for one in keeper.loft.letters if one["text"] == words])
    return next(one for one in keeper.loft.letters if one["text"] == words)


def _kommo(keeper: Keeper, conversation: str) -> list[Any]:
    """The customer's messages that Kommo has."""
    crm = keeper.sandbox.chat_state
    found = crm.chat(f"{CHANNEL}_{ACCOUNT}", conversation)
    return [one for one in crm.timelines[found.id] if one.direction == "in"] if found else []


async def shows(page: Visit, text: str, *, part: str = "/live", gone: bool = False) -> str:
    """A part of the page, once a text is in it, or is gone."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (text in (shown := (await page.get(part)).raw.decode())) == gone:  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(0.05)
    return shown


async def test_credentials_are_tried_kept_and_used(keeper: Keeper) -> None:
    refused = await keeper.put({"perch": "3", "seed": BAD})
    assert (refused.status, refused.body["detail"]) == (
        400,
        "the messenger refuses them: the loft does not know this seed: ask the loft for it",
    )
    assert (await letter(keeper, "before"))["seed"] is None
    answer = await keeper.put({"perch": "3", "seed": GOOD})
    assert (answer.status, answer.body) == (200, {"health": "ok", "name": "Perch 3"})
    sent = await letter(keeper, "after")
    assert (sent["perch"], sent["seed"]) == ("3", GOOD)
    assert (await keeper.put({"perch": "4", "seed": BAD})).status == 400
    assert (await letter(keeper, "still"))["perch"] == "3"
    for path in ("/v1/channels", "/v1/events", "/v1/accounts", f"/v1/access?account_id={ACCOUNT}"):
        assert GOOD.encode() not in (await keeper.ask("GET", path)).raw


async def test_only_what_the_kind_declares_is_taken(keeper: Keeper) -> None:
    for fields, path in (
        ({"perch": "3"}, "$.seed"),
        ({"perch": "", "seed": GOOD}, "$.perch"),
        ({"perch": "3", "seed": GOOD, "token": "x"}, "$.token"),
        ({"perch": "3", "seed": "a\nb"}, "$.seed"),
        ({"perch": "3", "seed": "x" * 5000}, "$.seed"),
    ):
        answer = await keeper.put(fields)
        assert (answer.status, [one["path"] for one in answer.body["errors"]]) == (400, [path]), answer
    for wrong in ({"perch": 3, "seed": GOOD}, ["perch"], None):
        assert (await keeper.put(wrong)).status == 400
    for path in (HERE.replace("loft", "dove"), HERE.replace(ACCOUNT, OTHER_ACCOUNT)):
        assert (await keeper.put({"perch": "3", "seed": GOOD}, path=path)).status == 404


async def test_what_cannot_be_tried_now_is_kept(keeper: Keeper) -> None:
    change = {"messenger": {"url": NOWHERE}}
    assert (await keeper.ask("PUT", "/v1/channels/loft", change)).status == 200
    answer = await keeper.put({"perch": "5", "seed": GOOD})
    assert answer.status == 200
    assert answer.body["health"].startswith("the messenger could not be reached: ")
    change = {"messenger": {"url": keeper.loft.url}}
    assert (await keeper.ask("PUT", "/v1/channels/loft", change)).status == 200
    assert (await letter(keeper, "kept"))["perch"] == "5"


async def test_the_page_asks_for_what_the_kind_declares_and_shows_no_secret_again(
    keeper: Keeper, page: Visit
) -> None:
    shown = (await page.get()).raw.decode()
    assert ">Perch</label>" in shown
    assert 'type="password"' in shown
    assert "The loft gives it to you." in shown
    refused = await page.post("/channels/loft/messenger", {"perch": "7", "seed": BAD, "do": "save"})
    assert refused.status == 400
    assert "ask the loft for it" in refused.body["detail"]
    checked = await page.post("/channels/loft/messenger", {"perch": "7", "seed": GOOD, "do": "check"})
    assert "The messenger accepts them." in checked.raw.decode()
    assert 'value="7"' not in checked.raw.decode()  # Checked, and not kept.
    saved = (await page.post("/channels/loft/messenger", {"perch": "7", "seed": GOOD, "do": "save"})).raw
    assert b"Saved. The messenger accepts them. <bdi>Perch 7</bdi>" in saved
    for part in ("", "/live", "/crm"):
        assert GOOD.encode() not in (await page.get(part)).raw
    again = (await page.get()).raw.decode()
    assert 'value="7"' in again
    assert "Leave it empty to keep it" in again
    # A secret that is left empty is the one that is kept.
    assert (
        await page.post("/channels/loft/messenger", {"perch": "8", "seed": "", "do": "save"})
    ).status == 200
    sent = await letter(keeper, "kept secret")
    assert (sent["perch"], sent["seed"]) == ("8", GOOD)
    looker = await visit(keeper, is_admin=False)
    assert b'name="seed"' not in (await looker.get()).raw


async def test_the_page_speaks_its_readers_language(keeper: Keeper, page: Visit) -> None:
    for language, title in (
        ("es", "Conexión"),
        ("pt-BR", "Conexão"),
        ("ru", "Подключение"),
        ("fr", "Connection"),
    ):
        assert f">{title}</h2>" in (await page.get(lang=language)).raw.decode()
    shell = await keeper.request("GET", "/settings", headers={"Accept-Language": "fr, ru;q=0.8, es;q=0.5"})
    assert '<html lang="ru">' in shell.raw.decode()


async def test_a_test_message_arrives_in_kommo_and_is_shown_with_its_tick(
    keeper: Keeper, page: Visit
) -> None:
    answer = await page.post("/channels/loft/test", lang="es")
    assert answer.status == 200, answer
    text = "Este es un mensaje de prueba"
    assert text in answer.raw.decode()
    found = await until(lambda: _kommo(keeper, "chatledger-test"))
    assert found[-1].message["text"].startswith(text)
    await shows(page, 'data-status="accepted"')


async def test_disconnected_and_connected_again(keeper: Keeper, page: Visit) -> None:
    assert (await keeper.put({"perch": "9", "seed": GOOD})).status == 200
    answer = await page.post("/channels/loft/disconnect")
    assert "Not connected" in answer.raw.decode()
    assert (await page.post("/channels/loft/test")).status == 404
    await keeper.order("/faults", {"where": "kommo.connect", "action": "403", "times": 1})
    refused = await page.post("/channels/loft/connect")
    assert refused.status == 502
    assert "The last attempt to connect failed" in (await page.get()).raw.decode()
    answer = await page.post("/channels/loft/connect")
    assert "The channel is connected." in answer.raw.decode()
    assert (await page.post("/channels/dove/connect")).status == 404
    assert (await letter(keeper, "again"))["seed"] == GOOD


async def test_what_is_stuck_is_told_and_tried_again(keeper: Keeper, page: Visit) -> None:
    fault = {"where": "kommo.new_message", "action": "400", "times": None, "conversation_id": "stuck"}
    await keeper.order("/faults", fault)
    first = {"loft": "stuck", "number": "s-1", "text": "Hello?"}
    headers = {pigeon.RING: RING}
    assert (
        await keeper.request("POST", f"/pigeon/loft/{ACCOUNT}", json=first, headers=headers)
    ).status == 200
    shown = await shows(page, "data-delivery")
    assert "<strong>Not delivered</strong>" in shown
    await keeper.order("/faults", method="DELETE")
    answer = (await page.post("/retry")).raw.decode()
    assert "Tried again: <bdi>1</bdi>" in answer
    await until(lambda: _kommo(keeper, "stuck"))
    await shows(page, "data-delivery", gone=True)


async def test_sources_are_added_renamed_made_the_default_and_deleted(keeper: Keeper, page: Visit) -> None:
    assert (await page.post("/sources", {"name": " ", "pipeline_id": ""})).status == 400
    assert (await page.post("/sources", {"name": "Shop", "pipeline_id": "x"})).status == 400
    for name in ("Shop", "Fair"):
        answer = await page.post("/sources", {"name": name, "pipeline_id": "3100001"})
        assert b"The source is added." in answer.raw, answer
    listed = {one["name"]: one for one in (await keeper.get(f"/v1/accounts/{ACCOUNT}/sources"))["items"]}
    assert listed["Shop"]["pipeline_id"] == 3100001
    shop, fair = listed["Shop"]["id"], listed["Fair"]["id"]
    fields = {"name": "Market", "pipeline_id": "3100002", "do": "change"}
    assert b'value="Market"' in (await page.post(f"/sources/{shop}", fields)).raw
    assert b"the default now" in (await page.post(f"/sources/{shop}", {"do": "default"})).raw
    assert (await page.post(f"/sources/{fair}", {"do": "delete"})).status == 200
    listed = {one["name"]: one for one in (await keeper.get(f"/v1/accounts/{ACCOUNT}/sources"))["items"]}
    assert (listed["Market"]["default"], listed["Market"]["pipeline_id"]) == (True, 3100002)
    assert "Fair" not in listed


async def test_managers_and_a_crm_that_does_not_answer(keeper: Keeper, page: Visit) -> None:
    shown = (await page.get("/crm")).raw.decode()
    assert "Maria" in shown
    assert "May write" in shown
    await keeper.order("/faults", {"where": "crm.sources", "action": "402", "times": None})
    shown = (await page.get("/crm")).raw.decode()
    assert "CRM does not answer:" in shown
    assert "the account&#39;s plan in Kommo does not cover this" in shown
    await keeper.order("/faults", method="DELETE")
