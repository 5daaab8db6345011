"""The baseline of `flow`: checks a signature, signs and posts on with aiohttp, and stores nothing.

`python -m ops.benches.processes.naive URL` forwards hooks to the messenger at URL and actions to the Kommo
there, each before it answers, under the settings of our own server.
"""

import hashlib
import hmac
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime

import aiohttp
import standardwebhooks
from litestar import Litestar, Request, post
from litestar.datastructures import State
from litestar.exceptions import PermissionDeniedException
from litestar.params import FromPath

from ops.benches import samples
from ops.benches.processes.server import serve

WEBHOOK = standardwebhooks.Webhook(samples.MESSENGER_SECRET)
Asked = Request[None, None, State]


@post("/kommo/{scope_id:str}", status_code=200)
async def hook(scope_id: FromPath[str], request: Asked) -> None:
    """From Kommo to the messenger."""
    body = await request.body()
    right = hmac.digest(samples.SECRET.encode(), body, "sha1").hex()
    if not hmac.compare_digest(right, request.headers["x-signature"]):
        raise PermissionDeniedException
    now, name = datetime.now(UTC), hashlib.sha1(body, usedforsecurity=False).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": WEBHOOK.sign(name, now, body.decode()),
    }
    await _forward(request, "/messenger", body, headers)


@post("/messengers/{channel:str}", status_code=200)
async def action(channel: FromPath[str], request: Asked) -> None:
    """From the messenger to Kommo."""
    body = await request.body()
    WEBHOOK.verify(body, dict(request.headers), json_parse=False)
    path, date = f"/v2/origin/custom/{samples.LINK.scope_id}", format_datetime(datetime.now(UTC))
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    text = "\n".join(("POST", md5, "application/json", date, path))
    headers = {
        "Date": date,
        "Content-Type": "application/json",
        "Content-MD5": md5,
        "X-Signature": hmac.digest(samples.SECRET.encode(), text.encode(), "sha1").hex(),
    }
    await _forward(request, path, body, headers)


async def _forward(request: Asked, path: str, body: bytes, headers: dict[str, str]) -> None:
    async with request.app.state.session.post(sys.argv[1] + path, data=body, headers=headers) as answer:
        answer.raise_for_status()
        await answer.read()


@asynccontextmanager
async def session(app: Litestar) -> AsyncIterator[None]:
    """One pool of connections for all requests."""
    async with aiohttp.ClientSession() as opened:
        app.state.session = opened
        yield


def main() -> None:
    """Listen on a free port and say which."""
    serve(
        Litestar([hook, action], lifespan=[session], openapi_config=None, logging_config=None), lifespan=True
    )


if __name__ == "__main__":
    main()
