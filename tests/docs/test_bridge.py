"""The bridge of ops/examples, as "Write a bridge" shows it, between the real service and the sandbox."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from app.messengers.webhook import signed
from tests.support.ids import MESSENGER_SECRET
from tests.support.processes import ROOT
from tests.support.system import WAIT_SECONDS, Story, chat, free_port

EXAMPLE = ROOT / "ops/examples/bridge.py"


@asynccontextmanager
async def bridge(story: Story, folder: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The example, started as a reader starts it."""
    settings = {
        "MESSENGER_SECRET": MESSENGER_SECRET,
        "ACTIONS_URL": f"{story.url}/messengers/acme",
        "PORT": str(port),
    }
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLE)), stdin=pipe, stdout=pipe, cwd=folder, env=os.environ | settings
    )
    try:
        yield child
    finally:
        child.terminate()
        await child.wait()


async def line(child: asyncio.subprocess.Process) -> str:
    assert child.stdout is not None
    return (await asyncio.wait_for(child.stdout.readline(), WAIT_SECONDS)).decode().strip()


async def say(child: asyncio.subprocess.Process, text: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{text}\n".encode())
    await child.stdin.drain()


def test_the_example_is_short_and_the_page_shows_it() -> None:
    example = EXAMPLE.read_text()
    assert len(example.splitlines()) <= 60
    assert f"```python\n{example}```\n" in (ROOT / "ops/docs/how-to/write-a-bridge.md").read_text()


async def test_the_example_carries_messages_both_ways_and_nothing_twice(
    own_story: Story, tmp_path: Path
) -> None:
    port, name = free_port(), chat()
    url = f"http://127.0.0.1:{port}/"
    await own_story.api("PUT", "/v1/channels/acme", {"messenger": {"url": url}})
    async with bridge(own_story, tmp_path, port) as child:
        await say(child, f"{name} Is it still there?")
        assert await line(child) == "posted"
        assert (await own_story.arrived(name))[0].message["text"] == "Is it still there?"
        told = await own_story.manager(name, "Yes, it is.")
        assert "Yes, it is." in (shown := await line(child))
        assert shown.startswith(f"to {name}: ")
        await own_story.until_recorded(told["ours"], "message.accepted")
        assert (await own_story.shown(told["ours"]))["remote"]["messenger"] == f"x-{told['ours']}"
        body = b'{"type":"probe","id":"p-1","at":"2026-11-22T08:00:00.000Z"}'
        async with aiohttp.ClientSession() as session:
            for secret, status in (
                (MESSENGER_SECRET, 200),
                ("whsec_" + "A" * 44, 401),
                (MESSENGER_SECRET, 200),
            ):
                async with session.post(url, data=body, headers=signed(secret, "p-1", body)) as answer:
                    assert answer.status == status
    async with bridge(own_story, tmp_path, port) as child:  # It remembers what it has taken.
        body = b'{"type":"message.send","id":"m","conversation_id":"c","message":{"type":"text"}}'
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                headers = signed(MESSENGER_SECRET, "repeated", body)
                for _ in range(50):
                    try:
                        async with session.post(url, data=body, headers=headers) as answer:
                            assert (answer.status, await answer.json(content_type=None)) == (
                                200,
                                {"message_id": "x-m"},
                            )
                            break
                    except aiohttp.ClientConnectionError:  # It is starting.
                        await asyncio.sleep(0.1)
        await say(child, f"{name} done")
        assert [await line(child), await line(child)] == ["to c: {'type': 'text'}", "posted"]
