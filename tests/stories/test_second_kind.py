"""A second kind of messenger is one module and one line: the real service carries its messages both ways."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web

from app.messengers.kinds import KINDS
from ops.sandbox import Sandbox
from tests.support import pigeon
from tests.support.ids import ACCOUNT, ADMIN_KEY, AS_ADMIN, BOT, CHANNEL, CHANNEL_SECRET
from tests.support.processes import ENVIRONMENT, ROOT, Process
from tests.support.system import Story, config, free_port, until

SECOND = "tests.support.pigeon"
NUMBER = "ring-7"


class Loft:
    """A messenger of the second kind: it keeps the letters that come, and the rings they came with."""

    def __init__(self) -> None:
        self.url = ""
        self.letters: list[tuple[str, dict[str, Any]]] = []

    async def take(self, request: web.Request) -> web.Response:
        self.letters.append((request.headers[pigeon.RING], await request.json()))
        return web.json_response({"landed": f"perch-{len(self.letters)}"})

    async def coo(self, request: web.Request) -> web.Response:
        return web.Response(status=204)


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


class Keeper(NamedTuple):
    """A service with the second kind, the loft it serves, and its settings."""

    story: Story
    loft: Loft
    settings: dict[str, str]

    async def send(self, text: str, *, ring: str = NUMBER, path: str = f"/pigeon/loft/{ACCOUNT}") -> int:
        letter = {"loft": "ann", "number": text, "text": text}
        url = f"{self.story.url}{path}"
        async with self.story.client.post(url, json=letter, headers={pigeon.RING: ring}) as answer:
            if answer.status == 200:
                assert await answer.json() == {"grain": True}
            return answer.status


def channel(loft: Loft, secret: str = NUMBER) -> dict[str, Any]:
    kommo = {"channel_id": CHANNEL, "secret": CHANNEL_SECRET, "bot_id": BOT}
    return {
        "name": "loft",
        "kommo": kommo,
        "messenger": {"kind": pigeon.KIND, "url": loft.url, "secret": secret},
    }


def service(folder: Path, settings: dict[str, str]) -> Process:
    folder.chmod(0o711)  # PostgreSQL, as another user, must get to what is below.
    return Process(folder, SECOND, "serve", **settings)


@pytest.fixture
async def keeper(data_folder: Path) -> AsyncIterator[Keeper]:
    port = free_port()
    async with (
        loft_at() as loft,
        Sandbox(config(f"http://127.0.0.1:{port}")) as sandbox,
        aiohttp.ClientSession() as client,
    ):
        settings = {
            "CHATLEDGER_DATA": str(data_folder / "data"),
            "CHATLEDGER_PORT": str(port),
            "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
            "CHATLEDGER_KOMMO_URL": sandbox.url,
        }
        process = service(data_folder, settings)
        try:
            yield Keeper(Story(client, sandbox, await process.start()), loft, settings)
        finally:
            await process.end()  # With its servers, whose folder is removed next.


async def test_a_second_kind_needs_one_module_and_one_line(keeper: Keeper) -> None:
    assert pigeon.KIND not in KINDS  # Nothing of it is in the program.
    story, loft = keeper.story, keeper.loft
    url, key = f"{story.url}/v1/channels", AS_ADMIN
    status, problem = await story.call("POST", url, channel(loft, "whsec_AAAA"), headers=key)
    assert (status, problem["errors"][0]["path"]) == (400, "$.messenger.secret")
    await story.api("POST", "/v1/channels", channel(loft))
    await story.api("POST", "/v1/channels/loft/connections", {"account_id": ACCOUNT, "title": "Loft"})

    assert await keeper.send("No", ring="ring-8") == 401
    assert await keeper.send("No", path=f"/pigeon/dove/{ACCOUNT}") == 404
    assert await keeper.send("No", path="/pigeon/loft") == 404
    assert await keeper.send("Coo") == 200
    [message] = await story.arrived("ann")
    assert (message.message["text"], message.sender_name) == ("Coo", "Loft ann")

    await story.order("POST", "/manager/messages", {"conversation_id": "ann", "message": text("Grain?")})
    await until(lambda: loft.letters)
    [(ring, letter)] = loft.letters
    assert (ring, letter["loft"], letter["text"]) == (NUMBER, "ann", "Grain?")
    [accepted] = await story.until_recorded(letter["number"], "message.accepted")
    assert (accepted["side"], accepted["remote_id"]) == ("messenger", "perch-1")

    assert "the loft coos (204)" in await examined(keeper.settings)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


async def examined(settings: dict[str, str]) -> str:
    """What the doctor says."""
    doctor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", SECOND, "doctor"),
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT | settings,
        cwd=ROOT,
    )
    told, _ = await doctor.communicate()
    return told.decode()
