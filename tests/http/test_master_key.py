"""A wrong master key is one sentence and 503, and a rotation is noticed by nobody who posts to us."""

import base64
import logging
from collections.abc import AsyncIterator

import psycopg
import pytest
from msgspec.structs import replace

from app.channels.directory import Channels
from app.cli.keys import rotate_master
from app.config.settings import load_masters
from app.database.connection import connect
from app.kommo.crm.hooks import hook_path
from app.servers.servers import Servers
from app.service import service as serve
from app.vault import Vault
from tests.support.ids import ACCOUNT, SCOPE_ID
from tests.support.service import Answer, Served, channel, sent, serving, wrote

OTHER_KEY = base64.b64encode(b"q" * 32).decode()
NEW_WHSEC = "whsec_" + base64.b64encode(b"n" * 32).decode()
SPOIL = "UPDATE ledger.secrets SET sealed = overlay(sealed PLACING '\\x00' FROM 60) WHERE channel = 'alone'"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
async def kept(servers: Servers) -> AsyncIterator[Served]:
    """A service whose master key is a file, with a connected channel."""
    async with serving(servers, changed={"CHATLEDGER_MASTER_KEY": ""}) as one:
        await one.register()
        await one.connect()
        yield one


async def posted(service: Served, number: str, path: str, *, url: str = "") -> list[Answer]:
    """The answers to a hook, an action, a webhook of the CRM."""
    return [
        await service.hook(wrote(number), url=url),
        await service.act(sent(number), url=url),
        await service.request("POST", path, url=url, data=b"talk[add][0][talk_id]=7", headers=FORM),
    ]


async def test_a_rotation_is_not_noticed_by_kommo_or_a_messenger(kept: Served) -> None:
    services = kept.run.services
    first = load_masters(services.settings)
    path = hook_path(first[0], ACCOUNT)
    assert [one.status for one in await posted(kept, "before", path)] == [200, 200, 200]
    await rotate_master(services.settings)
    assert [one.status for one in await posted(kept, "after", path)] == [200, 200, 200]
    for change in ({"url": "http://elsewhere"}, {"secret": NEW_WHSEC, "revoke_old": True}):
        assert (await kept.ask("PUT", "/v1/channels/acme", {"messenger": change})).status == 200
    assert (await kept.act(sent("sealed"), secret=NEW_WHSEC)).status == 200
    second = load_masters(services.settings)
    assert second != first
    channels = Channels(str(services.settings.database_url), Vault(*second))  # As after a restart.
    assert (await channels.all())["acme"].secrets.messenger == NEW_WHSEC
    await channels.close()


async def test_a_wrong_master_key_is_one_sentence_and_503(
    service: Served, caplog: pytest.LogCaptureFixture
) -> None:
    services = service.run.services
    path = hook_path(services.keys.master, ACCOUNT)
    settings = replace(services.settings, master_key=OTHER_KEY)
    async with serve.running(settings) as other:
        url = str(other.url)
        answers = [
            *await posted(service, "wrong", path, url=url),
            *await posted(service, "wrong", path, url=url),
        ]
        answers.append(await service.ask("GET", "/v1/channels", url=url))
        answers.append(await service.ask("PUT", "/v1/channels/acme", {}, url=url))
        answers.append(await service.hook(wrote("strange"), scope=SCOPE_ID[:-1] + "0", url=url))
        assert {one.status for one in answers} == {503}
        assert all("Retry-After" in one.headers for one in answers)
        ready = await service.request("GET", "/readyz", url=url)
        assert (ready.status, "CHATLEDGER_MASTER_KEY" in ready.raw.decode()) == (503, True)
        assert (await service.request("GET", "/healthz", url=url)).status == 200
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len([one for one in told if "master key" in one]) == 1, told
    assert (await service.request("GET", "/readyz")).status == 200
    assert [one.status for one in await posted(service, "right", path)] == [200, 200, 200]


async def test_a_channel_whose_secrets_do_not_open_stops_no_other(service: Served) -> None:
    where = str(service.run.services.settings.database_url)
    order = channel("alone", channel_id="344a5002-f8ca-454d-af3d-3961801020aa", whsec=NEW_WHSEC)
    assert (await service.ask("POST", "/v1/channels", order)).status == 201
    async with await connect(where) as db:
        await db.execute(SPOIL)
    assert (await service.ask("PUT", "/v1/channels/acme", {"messenger": {"url": "http://y"}})).status == 200
    assert (await service.act(sent(1), channel="alone", secret=NEW_WHSEC)).status == 503
    assert (await service.ask("PUT", "/v1/channels/alone", {})).status == 503
    assert (await service.act(sent("other"))).status == 200
    assert (await service.hook(wrote("other"))).status == 200
    assert (await service.request("GET", "/readyz")).status == 200
    async with await psycopg.AsyncConnection.connect(where, autocommit=True) as db:
        await db.execute("DELETE FROM ledger.secrets WHERE channel = 'alone'")
