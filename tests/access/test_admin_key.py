"""The admin key is replaced while two processes run, which need no restart, and no old key comes back."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from multidict import CIMultiDict

from app.config import key_text
from app.servers.servers import Servers
from tests.support.databases import database
from tests.support.ids import ACCOUNT, ADMIN_KEY, MASTER_KEY
from tests.support.processes import Process, run_command, started

Json = dict[str, Any]


class Pair(NamedTuple):
    """Two processes on one ledger, with what the commands need to ask either of them."""

    urls: tuple[str, str]
    given: Mapping[str, str]
    folder: Path
    client: aiohttp.ClientSession

    async def ask(
        self, number: int, method: str, path: str, key: str, body: object = None
    ) -> tuple[int, Any]:
        headers = CIMultiDict({"Authorization": f"Bearer {key}"})
        url = self.urls[number] + path
        async with self.client.request(method, url, json=body, headers=headers) as answer:
            raw = await answer.read()
            return answer.status, json.loads(raw) if raw else None

    async def statuses(self, key: str) -> list[int]:
        """What each process answers to a key."""
        return [(await self.ask(number, "GET", "/v1/keys", key))[0] for number in (0, 1)]

    async def command(self, *arguments: str, **changed: str) -> Json:
        """The JSON that a command prints."""
        given = {**self.given, **changed}
        done = await run_command(*arguments, "--url", self.urls[0], "--json", **given)
        assert done.code == 0, done
        made: Json = json.loads(done.out)
        return made


def process(folder: Path, name: str, given: Mapping[str, str], **more: str) -> Process:
    own = folder / name
    own.mkdir(exist_ok=True)
    settings = {**given, "CHATLEDGER_DATA": str(own / "data"), "CHATLEDGER_PORT": "0", **more}
    return Process(own, "app", "serve", **settings)


@pytest.fixture
async def pair(servers: Servers, tmp_path: Path) -> AsyncIterator[Pair]:
    async with database(servers) as url, aiohttp.ClientSession() as client:
        given = {
            "CHATLEDGER_DATABASE_URL": url,
            "CHATLEDGER_NATS_URL": servers.nats_url,
            "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
            "CHATLEDGER_MASTER_KEY": MASTER_KEY,
        }
        assert (await run_command("migrate", **given)).code == 0
        first = process(tmp_path, "first", given, CHATLEDGER_ROLES="web,project")
        second = process(tmp_path, "second", given, CHATLEDGER_ROLES="web")
        async with started(first) as one, started(second) as two:
            yield Pair((one, two), given, tmp_path, client)


async def test_a_key_is_good_and_over_on_both_processes_at_once(pair: Pair) -> None:
    order = {"name": "reports", "scopes": ["read"], "accounts": [ACCOUNT]}
    for number in (0, 1):
        status, made = await pair.ask(number, "POST", "/v1/keys", ADMIN_KEY, order)
        assert status == 201
        for other in (0, 1):
            assert (await pair.ask(other, "GET", "/v1/events", made["key"]))[0] == 200
        assert (await pair.ask(1 - number, "DELETE", f"/v1/keys/{made['id']}", ADMIN_KEY))[0] == 204
        for other in (0, 1):
            assert (await pair.ask(other, "GET", "/v1/events", made["key"]))[0] == 401


async def test_a_key_expires_on_both_processes(pair: Pair) -> None:
    _, made = await pair.ask(0, "POST", "/v1/keys", ADMIN_KEY, {"name": "short", "scopes": ["admin"]})
    path = f"/v1/keys/{made['id']}/replace"
    status, new = await pair.ask(1, "POST", path, ADMIN_KEY, {"overlap_seconds": 2})
    assert status == 201
    assert await pair.statuses(made["key"]) == [200, 200]
    await asyncio.sleep(2.1)
    assert (await pair.statuses(made["key"]), await pair.statuses(new["key"])) == ([401, 401], [200, 200])


async def test_the_admin_key_of_a_setting_is_replaced_on_both_processes(pair: Pair) -> None:
    made = await pair.command("keys", "replace", "admin", "--overlap", "2s")
    new = made["key"]
    assert key_text.is_key(new)
    assert (await pair.statuses(ADMIN_KEY), await pair.statuses(new)) == ([200, 200], [200, 200])
    await asyncio.sleep(2.1)
    assert (await pair.statuses(ADMIN_KEY), await pair.statuses(new)) == ([401, 401], [200, 200])
    # It is replaced again, without overlap; whoever has the one before is out at once.
    again = await pair.command("keys", "replace", "admin", "--overlap", "0s", CHATLEDGER_ADMIN_KEY=new)
    newest = again["key"]
    assert (await pair.statuses(new), await pair.statuses(newest)) == ([401, 401], [200, 200])
    # A process that is still started with the old key takes the newest alone, and so does one that has it.
    for key in (ADMIN_KEY, newest):
        third = process(pair.folder, "third", pair.given, CHATLEDGER_ROLES="web", CHATLEDGER_ADMIN_KEY=key)
        async with started(third) as url:
            three = pair._replace(urls=(url, url))
            assert [(await three.statuses(one))[0] for one in (ADMIN_KEY, new, newest)] == [401, 401, 200]
            told = f"the admin key {again['id']}" in third.log.read_text()
            assert told == (key == ADMIN_KEY)
            await third.end()
            third.log.unlink()
    # Deleting what is left of the old ones brings none of them back.
    _, listed = await pair.ask(0, "GET", "/v1/keys", newest)
    over = [one["id"] for one in listed["items"] if one["name"] == "admin key" and one["id"] != again["id"]]
    assert len(over) == 2
    for one in over:
        assert (await pair.ask(1, "DELETE", f"/v1/keys/{one}", newest))[0] == 204
    assert (await pair.statuses(ADMIN_KEY), await pair.statuses(new)) == ([401, 401], [401, 401])


async def test_of_many_who_replace_the_admin_key_at_once_one_has_a_lasting_key(pair: Pair) -> None:
    asks = (
        pair.ask(number % 2, "POST", "/v1/keys/admin/replace", ADMIN_KEY, {"overlap_seconds": 1})
        for number in range(8)
    )
    made = [told["key"] for status, told in await asyncio.gather(*asks) if status == 201]
    assert len(made) == 8
    await asyncio.sleep(1.1)
    assert sorted([await pair.statuses(key) for key in made]) == [[200, 200]] + [[401, 401]] * 7


async def test_a_session_ends_with_the_admin_key_that_opened_it(pair: Pair) -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, headers={"Accept": "text/html"}) as browser:

        async def page() -> int:
            async with browser.get(f"{pair.urls[1]}/events", allow_redirects=False) as answer:
                return answer.status

        async def sign_in(key: str) -> int:
            async with browser.get(f"{pair.urls[1]}/login") as answer:
                token = (await answer.text()).split('name="csrf" value="')[1].split('"')[0]
            async with browser.post(f"{pair.urls[1]}/login", data={"key": key, "csrf": token}) as answer:
                return answer.status

        assert (await sign_in(ADMIN_KEY), await page()) == (200, 200)
        _, made = await pair.ask(0, "POST", "/v1/keys/admin/replace", ADMIN_KEY, {"overlap_seconds": 0})
        assert await page() == 303
        assert (await sign_in(ADMIN_KEY), await page()) == (401, 303)
        assert (await sign_in(made["key"]), await page()) == (200, 200)
        path = f"/v1/keys/{made['id']}/replace"
        assert (await pair.ask(0, "POST", path, made["key"], {"overlap_seconds": 0}))[0] == 201
        assert await page() == 303


async def test_an_admin_key_in_the_data_folder_is_replaced_there(data_folder: Path) -> None:
    data = data_folder / "data"
    serving = Process(data_folder, "app", "serve", CHATLEDGER_DATA=str(data), CHATLEDGER_PORT="0")
    async with started(serving) as url:
        file = data / "admin.key"
        first = file.read_text().strip()
        assert key_text.is_key(first)
        where = {"CHATLEDGER_DATA": str(data)}
        done = await run_command("keys", "replace", "admin", "--overlap", "0s", "--url", url, **where)
        assert (done.code, str(data) in done.err) == (0, True), done
        kept = file.read_text().strip()
        assert (kept, kept != first) == (done.out.strip(), True)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [one.name for one in data.glob("admin.key*")] == ["admin.key"]
        shown = await run_command("keys", "list", "--url", url, **where)
        assert (shown.code, shown.out.count("admin key: admin")) == (0, 2), shown
        old = await run_command("keys", "list", "--url", url, **where, CHATLEDGER_ADMIN_KEY=first)
        assert (old.code, "401" in old.err) == (1, True)
        await serving.end()
    async with started(serving) as url:
        shown = await run_command("keys", "list", "--url", url, **where)
        assert shown.code == 0, shown
        await serving.end()
