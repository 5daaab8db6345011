"""A messenger for tests that answers as it was told to, over real HTTP, and remembers when it was called."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple

from aiohttp import web
from standardwebhooks import Webhook

from tests.support.ids import MESSENGER_SECRET
from tests.support.system import until

_numbers = count(1)


class Call(NamedTuple):
    """A push as it came, in seconds of the loop."""

    at: float
    webhook_id: str
    body: dict[str, Any]


class Answering:
    """A messenger that answers each conversation's pushes with what it was told to, then with 200."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, list[web.Response | float]] = defaultdict(list)
        self.calls: dict[str, list[Call]] = defaultdict(list)

    async def take(self, request: web.Request) -> web.Response:
        """A number among the answers is so many seconds of silence before a 200."""
        body = Webhook(MESSENGER_SECRET).verify(await request.read(), dict(request.headers))
        name = str(body["conversation_id"])
        at = asyncio.get_running_loop().time()
        self.calls[name].append(Call(at, request.headers["webhook-id"], body))
        answer = self.answers[name].pop(0) if self.answers[name] else taken()
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return taken()
        return answer

    def texts(self, name: str) -> list[str]:
        """What was said in a conversation, with all repetitions."""
        return [call.body["message"]["text"] for call in self.calls[name]]

    async def called(self, name: str, many: int) -> list[Call]:
        return await until(lambda: found if len(found := self.calls[name]) >= many else [])


def taken() -> web.Response:
    return web.json_response({"message_id": f"x-{next(_numbers)}"})


def refusing(status: int, body: object = None, **headers: str) -> web.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response(body, status=status, headers=named)


@asynccontextmanager
async def answering() -> AsyncIterator[Answering]:
    """A messenger on a free port."""
    one, app = Answering(), web.Application()
    app.router.add_post("/hook", one.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield one
    finally:
        await runner.cleanup()
