"""An import that is cut off goes on where it stopped: killed, hung up on, or out of room."""

import asyncio
import json
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple

import aiohttp
import pytest

from app.history.importer import CHECKPOINT_LINES
from app.servers.servers import Servers
from tests.stories.test_crash import Where, service, strangers
from tests.support.import_files import HEADERS, Json, imported, line, mixed, ndjson
from tests.support.system import ENVIRONMENT, ROOT, Story, chat, free_port, started, story_on

LINES, CHATS = 10_000, 40
RUN_SECONDS = 150


class Ended(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
async def story(servers: Servers) -> AsyncIterator[Story]:
    async with story_on(servers) as story:
        yield story


async def chatledger(file: Path, *more: str) -> Ended:
    """`chatledger import FILE`, as it is run."""
    settings = ENVIRONMENT | {"CHATLEDGER_ADMIN_KEY": "key", "CHATLEDGER_DATA": str(file.parent / "cli")}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "import", str(file), "--channel", "acme", *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=settings,
        cwd=ROOT,
    )
    async with asyncio.timeout(RUN_SECONDS):
        out, err = await child.communicate()
    return Ended(child.returncode or 0, out.decode(), err.decode())


def written(folder: Path, lines: list[Any]) -> Path:
    file = folder / "history.ndjson"
    file.write_bytes(ndjson(lines))
    return file


async def test_killed_in_the_middle_it_goes_on_where_it_stopped(data_folder: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    file = written(data_folder, mixed([f"kept-{n}" for n in range(CHATS)], LINES // CHATS))
    async with started(strangers(data_folder, url)) as kommo_url, aiohttp.ClientSession() as client:
        process = service(data_folder, port, kommo_url)
        await process.start()
        story = Story(client, Where(kommo_url), url)
        await story.connect()
        first = asyncio.create_task(chatledger(file, "--url", url, "--json"))
        async with asyncio.timeout(RUN_SECONDS):
            while await story.head() < CHECKPOINT_LINES * 1.3:  # noqa: ASYNC110  # another process is asked
                await asyncio.sleep(0.05)
        await process.end(SIGKILL)
        broken = await first
        assert broken.code == 1
        assert "run the same command again" in broken.err
        await process.start()
        again = await chatledger(file, "--url", url, "--json")
        assert again.code == 0, again
        told = json.loads(again.out)
        assert (told["lines"], told["imported"], told["duplicates"]) == (LINES, LINES, 0)
        found = await story.api("GET", f"/v1/conversations?limit=1000&at_least={await story.head()}")
        assert {one["messages"] for one in found["items"]} == {LINES // CHATS}
        assert len(found["items"]) == CHATS
        await process.end()


async def test_when_nobody_listens_any_more_it_stops_and_the_same_again_goes_on(story: Story) -> None:
    body, before = ndjson(mixed([chat() for _ in range(20)], 400)), await story.head()
    url = f"{story.url}/v1/import?channel=acme"
    async with story.client.post(url, data=_whole(body), headers=HEADERS) as answer:
        async for told in answer.content:
            if json.loads(told).get("imported"):
                break
    told = (await imported(story, _whole(body))).report
    assert (told["state"], told["lines"], told["imported"], told["duplicates"]) == ("done", 8000, 8000, 0)
    sent = [one async for one in _messages(story, before)]
    assert len(sent) == len(set(sent)) == 8000


async def test_without_room_for_the_file_nothing_is_taken(data_folder: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    async with (
        started(strangers(data_folder, url)) as kommo_url,
        aiohttp.ClientSession() as client,
        started(process := service(data_folder, port, kommo_url)),
    ):
        story = Story(client, Where(kommo_url), url)
        await story.connect()
        assert process.child
        resource.prlimit(process.child.pid, resource.RLIMIT_FSIZE, (100_000, -1))
        file = written(data_folder, mixed(["full"], 2000))
        ended = await chatledger(file, "--url", url)
        assert ended.code == 1
        assert "answered 507: the data folder has no room" in ended.err
        resource.prlimit(process.child.pid, resource.RLIMIT_FSIZE, (-1, -1))
        ended = await chatledger(file, "--url", url)
        assert ended.code == 0, ended
        await process.end()


async def test_the_command_reports_and_its_exit_code_says_whether_all_is_in(
    story: Story, data_folder: Path
) -> None:
    file = written(data_folder, [line(chat(), 0), "{}", line(chat(), 1)])
    ended = await chatledger(file, "--url", story.url)
    assert ended.code == 1
    assert "imported   2" in ended.out
    assert "line 2: $: Object missing required field `type`" in ended.out
    good = await chatledger(written(data_folder, [line(chat(), 0)]), "--url", story.url, "--json")
    assert (good.code, json.loads(good.out)["imported"]) == (0, 1)


async def test_without_a_service_the_command_says_what_to_do(data_folder: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ended = await chatledger(written(data_folder, []), "--url", url)
    assert ended.code == 1
    assert ended.err.startswith(f"chatledger: no service answers at {url}: start it with `chatledger serve`")


async def test_a_large_file_is_refused_before_it_is_sent(story: Story, data_folder: Path) -> None:
    file = written(data_folder, mixed([chat()], 20_000))
    ended = await chatledger(file, "--url", story.url, "--channel", "nobody")
    assert ended.code == 1
    assert "answered 404: no channel has this name" in ended.err


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _messages(story: Story, after: int) -> AsyncIterator[str]:
    """The ids of all messages recorded since."""
    headers: Json = {"Authorization": "Bearer key", "Accept": "application/x-ndjson"}
    url = f"{story.url}/v1/events?after={after}&type=message.sent&at_least={await story.head()}"
    async with story.client.get(url, headers=headers) as answer:
        async for one in answer.content:
            yield json.loads(one)["event"]["message"]
