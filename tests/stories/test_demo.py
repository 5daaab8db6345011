"""Who starts the demo can use all of it: its account lets the service into its CRM by itself, and once."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import aiohttp
import pytest

from tests.support.ids import ACCOUNT, ADMIN_KEY, MESSENGER_SECRET
from tests.support.processes import Process, run_command, started
from tests.support.system import Story, free_port

COME_SECONDS = 60.0
pytestmark = pytest.mark.timeout(300)
OURS = f"/v1/accounts/{ACCOUNT}"
Found = TypeVar("Found")


@pytest.fixture
def folder(data_folder: Path) -> Path:
    """A data folder as a demo without a CRM left it; `sandbox_port` is one that no other test is given."""
    path = data_folder / "demo" / "demo.json"
    path.parent.mkdir()
    for each in (data_folder, path.parent):
        each.chmod(0o711)  # PostgreSQL may run as another user.
    path.write_text(
        json.dumps({"kommo": "5ec3e7", "messenger": MESSENGER_SECRET, "sandbox_port": free_port()})
    )
    return data_folder


@asynccontextmanager
async def demo(folder: Path, log: Path) -> AsyncIterator[Story]:
    """A demo as a person runs it, until Ctrl-C; each has another port."""
    own = {
        "CHATLEDGER_DATA": str(folder),
        "CHATLEDGER_PORT": str(free_port()),
        "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
    }
    process = Process(log, "app", "demo", **own)
    async with started(process) as url, aiohttp.ClientSession() as client:
        story = Story(client, None, url)
        (account,) = (await story.api("GET", "/v1/accounts"))["items"]
        assert (account["account_id"], account["state"]) == (ACCOUNT, "authorized")
        story.sandbox = SimpleNamespace(url=account["crm_url"])
        yield story
        assert await process.end(signal.SIGINT) == 0


async def once(ask: Callable[[], Awaitable[Found]]) -> Found:
    """Ask until the answer is something."""
    async with asyncio.timeout(COME_SECONDS):
        while True:
            if found := await ask():
                return found
            await asyncio.sleep(0.05)


async def recorded(story: Story, kind: str, many: int) -> list[dict[str, Any]]:
    """The events of a type, once there are so many."""

    async def ask() -> list[dict[str, Any]]:
        return found if len(found := await story.events(type=kind)) >= many else []

    return await once(ask)


async def contacts(story: Story, **wanted: int) -> dict[str, tuple[str, int]]:
    """The ids of conversations and of their contacts by the messenger's name of each, once they are so."""

    async def ask() -> dict[str, tuple[str, int]]:
        items = (await story.api("GET", f"/v1/conversations?at_least={await story.head()}"))["items"]
        found = {one["conversation_id"]: (one["id"], one["contact_id"]) for one in items if one["contact_id"]}
        so = all(found.get(name, ("", 0))[1] == contact for name, contact in wanted.items())
        return found if so and len(found) == len(items) else {}

    return await once(ask)


async def written(story: Story, name: str) -> None:
    """A customer writes."""
    order = {"conversation_id": name, "sender": {"id": f"u-{name}", "name": name}, "text": "Hello"}
    assert (await story.order("POST", "/customer/messages?wait=1", order))["state"] == "accepted"


async def test_the_crm_of_the_demo_is_there_at_once_and_lets_us_in_only_once(
    folder: Path, tmp_path: Path
) -> None:
    async with demo(folder, tmp_path) as story:
        users = (await story.api("GET", f"{OURS}/users"))["items"]
        assert "Maria Keller" in {user["name"] for user in users}
        for name in ("ann", "bob"):
            await written(story, name)
        talks, leads = await recorded(story, "talk.added", 2), await recorded(story, "lead.received", 2)
        assert {one["chat_id"] for one in talks} == {one["chat_id"] for one in leads}
        talk = await story.api("GET", f"{OURS}/talks/{talks[0]['talk_id']}")
        assert (talk["chat_id"], talk["is_in_work"]) == (talks[0]["chat_id"], True)
        for name in ("ann", "bob"):
            await story.manager(name)  # His answer is what tells which chat of Kommo's it is.
        before = await contacts(story)
        (ann, first), (_, second) = before["ann"], before["bob"]
        assert first != second
        await story.api("POST", f"/v1/conversations/{ann}/link", {"contact_id": second})
        await contacts(story, ann=second)
        await story.settled(COME_SECONDS)
    async with demo(folder, tmp_path) as story:
        assert len(await story.events(type="account.authorized")) == 1
        assert await story.events(type="account.withdrawn") == []
        assert await story.events(type="channel.changed") == []
        (hook,) = (await story.api("GET", f"{OURS}/webhooks"))["items"]
        assert hook["destination"].startswith(f"{story.url}/crm/")
        await written(story, "eve")
        await recorded(story, "lead.received", 3)


async def test_the_link_works_while_the_demo_runs_and_commands_find_the_demo(
    folder: Path, tmp_path: Path
) -> None:
    own = {"CHATLEDGER_DATA": str(folder), "CHATLEDGER_PORT": str(free_port())}
    process = Process(tmp_path, "app", "demo", **own)
    async with started(process) as url:
        link = re.search(r"http\S+/login\?token=\S+", process.said)
        assert link
        for _ in range(2):  # In another browser too, and after a reload.
            async with aiohttp.ClientSession() as browser, browser.get(link[0]) as answer:
                assert answer.status == 200, await answer.text()
        shown = re.search(r"curl .*", process.said)
        assert shown
        curl = await asyncio.create_subprocess_shell(shown[0] + " -s", stdout=-1, stderr=-1)
        told = json.loads((await curl.communicate())[0])
        for more in ({}, {"CHATLEDGER_PORT": url.rpartition(":")[2]}):
            status = await run_command("status", "--json", CHATLEDGER_DATA=str(folder), **more)
            assert (status.code, json.loads(status.out)["ledger"]) == (0, told["ledger"]), status
        assert not (folder / "admin.key").exists()
        assert await process.end(signal.SIGINT) == 0
    gone = await run_command("status", CHATLEDGER_DATA=str(folder))
    assert gone.code == 2
    assert "there is no admin key" in gone.err
    assert not (folder / "admin.key").exists()


async def test_a_sandbox_that_has_forgotten_the_consent_gives_it_again(folder: Path, tmp_path: Path) -> None:
    async with demo(folder, tmp_path) as story:
        before = (await story.api("GET", f"{OURS}/webhooks"))["items"]
    (folder / "demo" / "sandbox.db").unlink()
    async with demo(folder, tmp_path) as story:
        assert len(await story.events(type="account.authorized")) == 2
        assert len((await story.api("GET", f"{OURS}/webhooks"))["items"]) == len(before) == 1


async def test_what_the_demo_cannot_read_is_one_sentence(folder: Path) -> None:
    (folder / "demo" / "demo.json").write_text("{")
    told = await run_command("demo", CHATLEDGER_DATA=str(folder), CHATLEDGER_PORT="0")
    assert (told.code, told.out, len(told.err.splitlines())) == (1, "", 1), told
    assert "demo.json cannot be read: delete it" in told.err
