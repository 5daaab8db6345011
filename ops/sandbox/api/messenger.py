"""Route of the demo messenger: it accepts only pushes signed with its own secret."""

import msgspec
from litestar import Response, post

from ops.sandbox.messenger.schemas import Unfit
from ops.sandbox.responses import Call, behave, headers_of, json, sandbox_of

KINDS = {
    "message.send": "message",
    "typing": "typing",
    "reaction.added": "reaction",
    "reaction.removed": "reaction",
}


@post("/messenger/hook", status_code=200)
async def take(request: Call) -> Response[bytes]:
    """A push of chatledger: 200 with the messenger's ids, 401 unsigned, 4xx with a code and a text."""
    sandbox = sandbox_of(request)
    body = await request.body()
    fault = None
    if sandbox.faults.faults:
        where, conversation = _named(body)
        fault = sandbox.faults.take(where, conversation)

    def checked() -> Response[bytes]:
        headers = headers_of(request)
        webhook_id = headers.get("webhook-id", "")
        if not webhook_id or not sandbox.messenger.webhooks.believes(headers, body):
            return json(401, {"code": 905, "text": "the Standard Webhooks signature does not fit"})
        try:
            return json(200, sandbox.messenger.take(webhook_id, body) or {"ok": True})
        except Unfit as unfit:
            return json(unfit.status, {"code": unfit.code, "text": unfit.text})

    return await behave(request, fault, checked)


ROUTES = [take]


def _named(body: bytes) -> tuple[str, str]:
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "messenger.hook", ""
    if not isinstance(told, dict):
        return "messenger.hook", ""
    kind = KINDS.get(str(told.get("type")), "other")
    return f"messenger.hook.{kind}", str(told.get("conversation_id") or "")
