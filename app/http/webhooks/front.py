"""The two webhook routes in front of Litestar, for speed: what they do not take, they pass on untouched."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from app import metrics, problems
from app.access.proxies import client_of
from app.bad_requests import BAD_REQUESTS
from app.http.webhooks import kommo, messenger
from app.http.webhooks.body import (
    OK,
    Answer,
    HangUp,
    Message,
    Receive,
    WrongSignature,
    as_text,
    check_charset,
    check_encoding,
    headers_of,
    read,
    refuse,
)
from app.http.webhooks.messenger import Routes
from app.messengers.adapter import Request
from app.operations.services import Services
from app.problems import ProblemError

Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
BODILESS = ("GET", "HEAD")
OK_START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
OK_BODY: Message = {"type": "http.response.body", "body": b""}
log = logging.getLogger("chatledger.webhooks")


class Front:
    """An ASGI application that answers `POST /kommo/x` and what messengers send, and passes on the rest."""

    def __init__(self, app: App, services: Services) -> None:
        self.app = app
        self._services = services
        self._routes = Routes(services.messengers)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] == "http":
            method, parts = scope["method"], scope["path"].split("/")
            if len(parts) == 3 and parts[1] == "kommo" and method == "POST" and parts[2]:
                await self._take("kommo", self._hook(parts[2], scope, receive), scope, send)
                return
            first, *rest = parts[1:] or parts
            if found := self._routes.find(method, first, rest):
                await self._take("messenger", self._actions(*found, scope, receive), scope, send)
                return
            if method not in BODILESS and (refusal := _wrong_encoding(scope)):
                await _tell(send, refusal)
                return
        await self.app(scope, receive, send)

    async def _take(self, side: str, answering: Awaitable[Answer], scope: Message, send: Send) -> None:
        start = time.perf_counter()
        try:
            answer = await answering
        except HangUp:
            return
        except WrongSignature as error:
            answer = refuse(await self._slowed(error, scope))
        except ProblemError as error:
            answer = refuse(error)
        except Exception:
            await _tell(send, refuse(ProblemError(500, problems.OURS)))
            raise
        metrics.WEBHOOKS.answered(side, answer.status, time.perf_counter() - start)
        await _tell(send, answer)

    async def _slowed(self, error: WrongSignature, scope: Message) -> ProblemError:
        """The same error, or a slower one (429) for a source of many wrong signatures."""
        address = client_of(self._services.proxies, scope)
        BAD_REQUESTS.count("wrong_signature", address, "its signature is missing or wrong")
        if seconds := await self._services.tries.slow_down("signature", address):
            detail = f"{error}; there were too many wrong ones from your address: wait {seconds} seconds"
            return ProblemError(429, detail, retry_after=seconds)
        return error

    async def _hook(self, scope_id: str, scope: Message, receive: Receive) -> Answer:
        headers = headers_of(scope)
        body = await read(headers, receive)
        return await kommo.take(self._services, scope_id, kommo.signature_of(headers), body)

    async def _actions(self, kind: str, parts: dict[str, str], scope: Message, receive: Receive) -> Answer:
        headers = headers_of(scope)
        check_charset(headers)
        body = await read(headers, receive)
        return await messenger.take(self._services, kind, Request(parts, as_text(headers), body))


def _wrong_encoding(scope: Message) -> Answer | None:
    """The answer to a body that no route can read; an import reads some of its own."""
    if scope["path"] == "/v1/import":
        return None
    try:
        headers = headers_of(scope)
        check_encoding(headers)
        if scope["path"].startswith("/v1/"):
            check_charset(headers)
    except ProblemError as error:
        return refuse(error)
    return None


async def _tell(send: Send, answer: Answer) -> None:
    if answer is OK:
        await send(OK_START)
        await send(OK_BODY)
        return
    headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
