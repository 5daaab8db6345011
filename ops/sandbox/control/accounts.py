"""Orders about an account itself: how the CRM describes it, and where it is."""

import msgspec
from litestar import Response, post
from msgspec import Struct

from ops.sandbox.control.crm import ordered
from ops.sandbox.responses import Call, json, same_origin, sandbox_of
from ops.sandbox.state.crm import Profile


class ProfileOrder(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is left out becomes what it usually is; at other hosts than `host` the CRM answers 301."""

    account_id: str | int = ""
    name: str = ""
    subdomain: str = ""
    time_zone: str = "UTC"
    currency: str = "USD"
    country: str = "US"
    language: str = ""
    plan: str = ""
    host: str = ""


@post("/control/crm/account", status_code=200, before_request=same_origin)
async def describe(request: Call) -> Response[bytes]:
    """The account is so from now on."""
    order, sandbox = await ordered(request, ProfileOrder), sandbox_of(request)
    account = sandbox.consent.account(str(order.account_id))
    fields = {name: value for name, value in msgspec.to_builtins(order).items() if name != "account_id"}
    return json(200, sandbox.crm_state.profiles.save(Profile(id=account.amojo_id, **fields)))
