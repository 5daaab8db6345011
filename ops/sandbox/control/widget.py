"""Orders about widgets: an archive, an installation and a one-time token without a browser."""

from typing import Literal

from litestar import Response, Router, post

from ops.sandbox.api.accounts import users_of
from ops.sandbox.control.crm import ConsentOrder, ordered, whose
from ops.sandbox.errors import Impossible
from ops.sandbox.pages.consent import redirect_of
from ops.sandbox.responses import Call, json, same_origin, sandbox_of
from ops.sandbox.widget import installs
from ops.sandbox.widget.archive import ARCHIVE_BYTES_MAX, Refused
from ops.sandbox.widget.tokens import claims_of, one_time


class InstallOrder(ConsentOrder, kw_only=True):
    """The account installs the integration; without `deliver` the redirect URL is not called, only named."""

    deliver: bool = True


class TokenOrder(ConsentOrder, kw_only=True):
    """A one-time token of a user, by default the first; `claims` take the place of those it would have."""

    user_id: int = 0
    claims: dict[str, object] = {}  # noqa: RUF012 - msgspec makes a new one for each
    algorithm: Literal["HS256", "none"] = "HS256"


@post("/control/crm/widget", status_code=201, request_max_body_size=ARCHIVE_BYTES_MAX)
async def archive(request: Call) -> Response[bytes]:
    """The body is the archive of the integration's widget; 422 with what is wrong with it."""
    sandbox = sandbox_of(request)
    client = sandbox.consent.client(request.query_params.get("client_id", ""))
    try:
        taken = installs.upload(sandbox, client, await request.body())
    except Refused as refused:
        return json(422, {"error": "Kommo would not take this archive", "faults": refused.faults})
    told = {"client_id": client.id, "version": installs.version_of(taken), "files": sorted(taken.files)}
    return json(201, told)


@post("/control/crm/install", status_code=201)
async def install(request: Call) -> Response[bytes]:
    """The administrator presses "Install" in the account: a code by a call, without a state."""
    order = await ordered(request, InstallOrder)
    _, account, client = whose(request, order)
    host = request.headers.get("host", "")
    told = await installs.install(sandbox_of(request), account, client, host, deliver=order.deliver)
    return json(201, told | {"account_id": account.amojo_id})


@post("/control/crm/token", status_code=201)
async def token(request: Call) -> Response[bytes]:
    """A one-time token as Kommo's pages get it, or a false one."""
    order = await ordered(request, TokenOrder)
    _, account, client = whose(request, order)
    users = users_of(sandbox_of(request).config)
    user = next((one for one in users if one.number == order.user_id), None if order.user_id else users[0])
    if user is None:
        raise Impossible(404, "user_id: no such user; GET /api/v4/users lists them")
    claims = claims_of(
        client,
        account,
        address=f"http://{request.headers.get('host', '')}",
        redirect_uri=redirect_of(client, order.redirect_uri),
        user_id=user.number,
        is_admin=user.is_admin,
    )
    claims |= order.claims
    return json(201, {"token": one_time(client, claims, algorithm=order.algorithm), "claims": claims})


ROUTER = Router(path="/", before_request=same_origin, route_handlers=[archive, install, token])
