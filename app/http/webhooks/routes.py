"""The two webhooks once more as Litestar routes, so that `/schema` has them; `front` answers them faster."""

from typing import Annotated, cast

from litestar import Response, post
from litestar.params import FromPath
from msgspec import Meta

from app.http.openapi import document, examples
from app.http.openapi.responses import answers, takes
from app.http.request import Call, services_of
from app.http.webhooks import kommo as kommo_webhook
from app.http.webhooks import messenger as messenger_webhook
from app.http.webhooks.body import UNSIGNED, Receive, as_text, headers_of, read
from app.http.webhooks.messenger import Outcomes
from app.kommo.chats.hook_schema import Hook
from app.messengers.adapter import Request
from app.messengers.checks import ACTIONS_MAX
from app.messengers.contract import Action

Actions = Annotated[list[Action], Meta(min_length=1, max_length=ACTIONS_MAX)]
REFUSALS = {
    401: UNSIGNED,
    409: "the channel is not connected to any account yet: name the account (account_id)",
}


TOO_MANY = f"{UNSIGNED}; there were too many wrong ones from your address: wait 60 seconds"


@post(
    "/kommo/{scope_id:str}",
    status_code=200,
    summary="A hook of Kommo",
    tags=["webhooks"],
    security=[{document.KOMMO: []}],
    responses=answers(403, 404, 415, 503, said={429: TOO_MANY}),
    opt=takes(Hook, **examples.HOOKS) | {"writes": False},
)
async def kommo(request: Call, scope_id: FromPath[str]) -> Response[bytes]:
    """A v2 hook, signed with `X-Signature`: 200 with an empty body once it is durable, also for a repeat."""
    headers, body = await _raw(request)
    signature = kommo_webhook.signature_of(headers)
    answer = await kommo_webhook.take(services_of(request), scope_id, signature, body)
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


@post(
    "/messengers/{channel:str}",
    status_code=200,
    summary="Actions of a messenger",
    tags=["webhooks"],
    security=[{document.MESSENGER: []}],
    responses=answers(404, 409, 415, 429, 503, said=REFUSALS, also={200: Outcomes}),
    opt=takes(Action | Actions, **examples.ACTIONS),
)
async def messenger(request: Call, channel: FromPath[str]) -> Response[bytes]:
    """One action or an array of 1 to 500, signed by Standard Webhooks: 200 once all are durable."""
    headers, body = await _raw(request)
    asked = Request({"channel": channel}, as_text(headers), body)
    answer = await messenger_webhook.take(services_of(request), "webhook", asked)
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


async def _raw(request: Call) -> tuple[dict[bytes, bytes], bytes]:
    headers = headers_of(request.scope)
    return headers, await read(headers, cast("Receive", request.receive))


routes = [kommo, messenger]
