"""Routes of the Chats API: a request reaches the rules only if its signature fits its raw bytes."""

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from litestar import Response, delete, get, post
from litestar.params import FromPath

from ops.sandbox.chats.checks import Refused
from ops.sandbox.chats.signatures import refusal
from ops.sandbox.responses import HTML, Call, behave, headers_of, json, sandbox_of

ORIGIN = "/v2/origin/custom/{origin:str}"
TYPES = {400: "bad_request", 403: "forbidden", 404: "not_found", 429: "too_many_requests"}

Work = Callable[[bytes], object]


@post(ORIGIN + "/connect", status_code=200)
async def connect(request: Call, origin: FromPath[str]) -> Response[bytes]:
    """Connect an account to a channel."""
    kommo = sandbox_of(request).kommo
    return await _answer(request, "connect", origin, lambda body: kommo.connect(origin, body))


@delete(ORIGIN + "/disconnect", status_code=200)
async def disconnect(request: Call, origin: FromPath[str]) -> Response[bytes]:
    """Disconnect an account from a channel."""
    kommo = sandbox_of(request).kommo
    return await _answer(request, "disconnect", origin, lambda body: kommo.disconnect(origin, body))


@post(ORIGIN, status_code=200)
async def message(request: Call, origin: FromPath[str]) -> Response[bytes]:
    """A new or an edited message."""
    kommo = sandbox_of(request).kommo
    return await _answer(request, "message", origin, lambda body: kommo.message(origin, body))


@post(ORIGIN + "/chats", status_code=200)
async def chats(request: Call, origin: FromPath[str]) -> Response[bytes]:
    """Create a chat before its first message."""
    kommo = sandbox_of(request).kommo
    return await _answer(request, "chats", origin, lambda body: kommo.new_chat(origin, body))


@post(ORIGIN + "/{message_id:str}/delivery_status", status_code=200)
async def delivery_status(request: Call, origin: FromPath[str], message_id: FromPath[str]) -> Response[bytes]:
    """Report the delivery status of a message to the client."""
    kommo = sandbox_of(request).kommo
    return await _answer(
        request, "delivery_status", origin, lambda body: kommo.delivery_status(origin, message_id, body)
    )


@post(ORIGIN + "/typing", status_code=200)
async def typing(request: Call, origin: FromPath[str]) -> Response[bytes]:
    """Report that the client is typing."""
    kommo = sandbox_of(request).kommo
    return await _answer(request, "typing", origin, lambda body: kommo.typing(origin, body), empty=204)


@post(ORIGIN + "/react", status_code=200)
async def react(request: Call, origin: FromPath[str]) -> Response[bytes]:
    """Add or remove a reaction."""
    kommo = sandbox_of(request).kommo
    return await _answer(request, "react", origin, lambda body: kommo.react(origin, body))


@get(ORIGIN + "/chats/{chat_id:str}/history")
async def history(request: Call, origin: FromPath[str], chat_id: FromPath[str]) -> Response[bytes]:
    """A chat's messages, newest first."""
    kommo = sandbox_of(request).kommo

    def work(_: bytes) -> object:
        offset, limit = _number(request, "offset", 0), _number(request, "limit", 50)
        messages = kommo.history(origin, chat_id, offset, limit)
        return {"messages": messages} if messages else None

    return await _answer(request, "history", origin, work, empty=204)


ROUTES = [connect, disconnect, message, chats, delivery_status, typing, react, history]


async def _answer(
    request: Call, endpoint: str, origin: str, work: Work, *, empty: int = 200
) -> Response[bytes]:
    """Check, do the work and answer; `origin` is a channel id, or a scope id, which begins with one."""
    sandbox = sandbox_of(request)
    body = await request.body()
    fault = None
    if sandbox.faults.faults:
        where, conversation = _named(endpoint, body)
        fault = sandbox.faults.take(f"kommo.{where}", conversation)

    if status := sandbox.chats_rate.ask(origin.partition("_")[2] or origin):
        return _limited(status)

    def checked() -> Response[bytes]:
        try:
            channel = sandbox.kommo.channel(origin.partition("_")[0])
            if reason := refusal(
                channel.secret, request.method, _path(request), headers_of(request), body, datetime.now(UTC)
            ):
                raise Refused(403, reason)
            if endpoint not in ("connect", "disconnect"):
                sandbox.kommo.connected(origin)
            content = work(body)
        except Refused as refused:
            return _refused(refused.status, refused.text)
        return json(200 if content else empty, content)

    return await behave(request, fault, checked)


def _refused(status: int, text: str) -> Response[bytes]:
    return json(status, {"error_code": status, "error_type": TYPES[status], "error_description": text})


def _limited(status: int) -> Response[bytes]:
    """Too many requests: 429 with `Retry-After`, and after a while the firewall's page."""
    if status == 403:
        return Response(HTML, status_code=403, media_type="text/html")
    answered = _refused(429, "too many requests")
    answered.headers["Retry-After"] = "1"
    return answered


def _path(request: Call) -> str:
    """The path exactly as sent, because the signature covers it."""
    return request.scope["raw_path"].decode("latin-1")


def _named(endpoint: str, body: bytes) -> tuple[str, str]:
    """The endpoint and conversation by which an ordered fault finds this request."""
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return endpoint, ""
    if not isinstance(told, dict):
        return endpoint, ""
    payload = told.get("payload")
    if endpoint == "message" and isinstance(payload, dict):
        return str(told.get("event_type")), str(payload.get("conversation_id", ""))
    return endpoint, str(told.get("conversation_id", ""))


def _number(request: Call, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refused(400, f"{name}: must be a number")
    return int(text)
