"""Orders to the CRM: consent without a browser, and everything that users do there.

`account_id` is an account's amojo id or its CRM id, `client_id` an integration; either may be left out where
there is only one.
"""

import asyncio
from typing import Literal, TypeVar

import msgspec
from litestar import Response, Router, get, post
from msgspec import Struct

from ops.sandbox.api.crm import Wrong
from ops.sandbox.api.reviews import begin
from ops.sandbox.config import CrmAccount, OAuthClient
from ops.sandbox.crm.consent import Consent
from ops.sandbox.crm.webhooks import Sent
from ops.sandbox.errors import Impossible
from ops.sandbox.pages.consent import granted, redirect_of, with_query
from ops.sandbox.responses import Call, json, same_origin, sandbox_of
from ops.sandbox.widget.installs import uninstall, visit

WAIT_SECONDS_MAX = 60
T = TypeVar("T")


class ConsentOrder(Struct, forbid_unknown_fields=True, kw_only=True):
    """An account's consent; `deliver` follows the redirect like a browser, `url` is notified of the end."""

    account_id: str | int = ""
    client_id: str = ""
    redirect_uri: str = ""
    state: str = ""
    deliver: bool = False
    url: str = ""


@post("/control/crm/authorize", status_code=201)
async def authorize(request: Call) -> Response[bytes]:
    """The admin agrees: a code, and where a browser would go; `deliver` or `?wait=1` goes there."""
    order = await ordered(request, ConsentOrder)
    _, account, client = whose(request, order)
    where = redirect_of(client, order.redirect_uri)
    given = granted(request, client, account, where, order.state)
    url = with_query(where, given)
    told: dict[str, object] = {**given, "redirect_uri": where, "url": url, "account_id": account.amojo_id}
    if order.deliver or request.query_params.get("wait", "0") not in ("", "0"):
        told |= await visit(sandbox_of(request), url)
    return json(201, told)


@post("/control/crm/expire", status_code=200)
async def expire(request: Call) -> Response[bytes]:
    """The access tokens expire now; refresh tokens still work."""
    consent, account, client = whose(request, await ordered(request, ConsentOrder))
    return json(200, {"expired": consent.expire(account, client)})


@post("/control/crm/revoke", status_code=200)
async def revoke(request: Call) -> Response[bytes]:
    """The consent is withdrawn: nothing works until somebody agrees again."""
    consent, account, client = whose(request, await ordered(request, ConsentOrder))
    return json(200, {"revoked": consent.revoke(account, client)})


@post("/control/crm/disable", status_code=200)
async def disable(request: Call) -> Response[bytes]:
    """The account disables the integration: its channels are disconnected and its address is notified."""
    order = await ordered(request, ConsentOrder)
    sandbox = sandbox_of(request)
    _, account, client = whose(request, order)
    return json(200, await uninstall(sandbox, account, client, order.url or sandbox.config.disabled_url))


class TalkOrder(Struct, forbid_unknown_fields=True, kw_only=True):
    """A talk, or the latest of a chat: read, rated, closed, opened again."""

    talk_id: int = 0
    chat_id: str = ""
    is_read: bool | None = None
    rate: int | None = None
    close: bool = False


class IncomingOrder(Struct, forbid_unknown_fields=True, kw_only=True):
    """An incoming lead, by its uid or chat; `link` names the lead it belongs to, `update` tells anew."""

    uid: str = ""
    chat_id: str = ""
    action: Literal["accept", "decline", "link", "update"]
    lead_id: int = 0
    contact_id: int = 0
    user_id: int = 0


class ReviewOrder(Struct, forbid_unknown_fields=True):
    """A template that goes out for review."""

    template_id: int


class RepeatOrder(Struct, forbid_unknown_fields=True):
    """A webhook, by its number."""

    n: int


@post("/control/crm/talks", status_code=201)
async def talk(request: Call) -> Response[bytes]:
    """A manager reads or closes a talk, or its client rates it."""
    order, rules = await ordered(request, TalkOrder), sandbox_of(request).crm_rules
    state = sandbox_of(request).crm_state
    found = state.talks.get(order.talk_id) if order.talk_id else state.talk(order.chat_id)
    if found is None:
        raise Impossible(404, "talk_id, chat_id: no such talk")
    fields: dict[str, bool | int] = {}
    if order.is_read is not None:
        fields["is_read"] = order.is_read
    if order.rate is not None:
        fields["rate"] = order.rate
    if order.close:
        fields["is_in_work"] = False
    return await _hooked(request, rules.change(found, **fields), {"talk_id": found.id})


@post("/control/crm/incoming", status_code=201)
async def incoming(request: Call) -> Response[bytes]:
    """A manager accepts, declines or links an incoming lead."""
    order, sandbox = await ordered(request, IncomingOrder), sandbox_of(request)
    state, rules = sandbox.crm_state, sandbox.crm_rules
    found = state.incoming.get(order.uid) if order.uid else state.waiting(order.chat_id)
    if found is None:
        raise Impossible(404, "uid, chat_id: no such incoming lead")
    if found.action:
        raise Impossible(409, f"the incoming lead is settled: {found.action}")
    match order.action:
        case "accept":
            sent = rules.accept(found, order.user_id)[1]
        case "decline":
            sent = rules.decline(found, order.user_id)
        case "update":
            sent = rules.update(found)
        case "link":
            lead = state.leads.get(order.lead_id)
            if lead is None:
                raise Impossible(404, "lead_id: no such lead; make one with POST /api/v4/leads")
            contact_id = order.contact_id or lead.contact_id or found.contact_id
            sent = rules.join(found, lead, contact_id, order.user_id)
    return await _hooked(request, sent, {"uid": found.id, "lead_id": found.lead_id})


@post("/control/crm/reviews", status_code=201)
async def review(request: Call) -> Response[bytes]:
    """A manager sends a WhatsApp template out for review."""
    order, sandbox = await ordered(request, ReviewOrder), sandbox_of(request)
    found = sandbox.crm_state.templates.get(order.template_id)
    if found is None:
        raise Impossible(404, "template_id: no such template")
    account = sandbox.consent.account(found.account)
    try:
        reviews, sent = begin(sandbox.crm_state, sandbox.crm_hooks, account, found)
    except Wrong as wrong:
        raise Impossible(409, wrong.detail) from wrong
    return await _hooked(request, sent, {"reviews": reviews})


@get("/control/crm/hooks")
async def read_hooks(request: Call) -> Response[bytes]:
    """The CRM webhooks in the order they were made, with every try."""
    hooks = sandbox_of(request).crm_hooks
    return json(200, {"hooks": list(hooks.sent), "waiting": sum(one.waiting for one in hooks.sent)})


@post("/control/crm/hooks/repeat", status_code=201)
async def repeat(request: Call) -> Response[bytes]:
    """A webhook is sent once more, though it was taken."""
    order, hooks = await ordered(request, RepeatOrder), sandbox_of(request).crm_hooks
    found = next((one for one in hooks.sent if one.n == order.n), None)
    if found is None:
        raise Impossible(404, "n: no such webhook; GET /control/crm/hooks lists them")
    return await _hooked(request, [hooks.repeat(found)], {})


@get("/control/crm")
async def read_crm(request: Call) -> Response[bytes]:
    """The state of the CRM, of all accounts; of tokens only the last characters."""
    sandbox = sandbox_of(request)
    state = sandbox.crm_state
    tokens = [
        {"kind": one.kind, "account": one.account, "client": one.client, "expires": one.expires}
        for one in state.tokens
    ]
    return json(
        200,
        {
            "accounts": [
                msgspec.to_builtins(one) | {"rate": sandbox.crm_rate.state(one.amojo_id)}
                for one in sandbox.consent.accounts()
            ],
            "tokens": tokens,
            "disabled": [one.id for one in state.disabled],
            "installed": list(state.installed),
            "contacts": list(state.contacts),
            "links": list(state.links),
            "sources": list(state.sources),
            "templates": list(state.templates),
            "talks": list(state.talks),
            "incoming": list(state.incoming),
            "leads": list(state.leads),
            "subscriptions": list(state.subscriptions),
        },
    )


ROUTER = Router(
    path="/",
    before_request=same_origin,
    route_handlers=[
        authorize,
        expire,
        revoke,
        disable,
        talk,
        incoming,
        review,
        read_hooks,
        repeat,
        read_crm,
    ],
)


async def ordered(request: Call, shape: type[T]) -> T:
    """The order in its shape; an empty body is an order without fields. Raises Impossible (400)."""
    try:
        return msgspec.json.decode(await request.body() or b"{}", type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Impossible(400, str(error)) from error


def whose(request: Call, order: ConsentOrder) -> tuple[Consent, CrmAccount, OAuthClient]:
    """The account and the integration that an order names."""
    consent = sandbox_of(request).consent
    return consent, consent.account(str(order.account_id)), consent.client(order.client_id)


async def _hooked(request: Call, sent: list[Sent], told: dict[str, object]) -> Response[bytes]:
    """201 at once, or with `?wait=1` when every webhook has been tried."""
    if request.query_params.get("wait", "0") not in ("", "0") and sent:
        await asyncio.wait([done for _, done in sent], timeout=WAIT_SECONDS_MAX)
    shown = [{"n": hook.n, "event": hook.event, "outcome": hook.outcome} for hook, _ in sent]
    return json(201, told | {"hooks": shown})
