"""CRM webhook subscriptions (§5.2): at most 100 destinations per account, each of them once."""

import time
from typing import Annotated

from litestar import Response, delete, get, post
from msgspec import Meta, Struct

from ops.sandbox.api.crm import BadPart, Caller, Reply, Wrong, answer, collection
from ops.sandbox.responses import Call
from ops.sandbox.state.crm import Subscription

PATH = "/api/v4/webhooks"
DESTINATIONS_MAX = 100
# The events that the sandbox sends. The CRM has many more, of tasks and the like, which may be subscribed to.
CHATS = {
    "add_talk",
    "update_talk",
    "add_message",
    "add_outgoing_message",
    "add_chat_template_review",
    "add_unsorted",
    "update_unsorted",
    "delete_unsorted",
}
THINGS = ("lead", "contact", "company", "customer", "task")
OTHERS = {f"{verb}_{thing}" for verb in ("add", "update", "delete", "responsible") for thing in THINGS}
OTHERS |= {f"{verb}_{thing}" for verb in ("restore", "note") for thing in THINGS[:4]} | {"status_lead"}
SETTINGS = CHATS | OTHERS

Destination = Annotated[str, Meta(pattern=r"^https?://[^\s/]", max_length=2048)]


class Subscribe(Struct):
    destination: Destination
    settings: Annotated[list[str], Meta(min_length=1)]


class Unsubscribe(Struct):
    destination: str


@get(PATH)
async def list_subscriptions(request: Call) -> Response[bytes]:
    """The subscriptions, or the one with the destination asked for; 204 without any."""

    def work(caller: Caller) -> Reply:
        wanted = caller.all("filter")
        found = [one for one in _all(caller) if not wanted or one.destination in wanted]
        if not found:
            return Reply(204)
        return Reply(200, collection(caller, "webhooks", "webhooks", [_shown(caller, one) for one in found]))

    return await answer(request, "webhooks", work)


@post(PATH, status_code=201)
async def subscribe(request: Call) -> Response[bytes]:
    """A new subscription; one with the same destination is changed, and enabled again."""
    return await answer(request, "webhooks", _subscribe)


@delete(PATH, status_code=200)
async def unsubscribe(request: Call) -> Response[bytes]:
    """Delete a subscription."""

    def work(caller: Caller) -> Reply:
        order = caller.read(Unsubscribe)
        for one in _all(caller):
            if one.destination == order.destination:
                caller.sandbox.crm_state.subscriptions.delete(one)
                return Reply(204)
        raise Wrong(404, "There is no webhook with this destination")

    return await answer(request, "webhooks", work)


ROUTES = [list_subscriptions, subscribe, unsubscribe]


def _subscribe(caller: Caller) -> Reply:
    order = caller.read(Subscribe)
    if unknown := sorted(set(order.settings) - SETTINGS):
        bad = tuple(BadPart("NotSupportedChoice", "settings", f"There is no event {one}.") for one in unknown)
        raise Wrong(400, "Request validation failed", bad)
    table, now = caller.sandbox.crm_state.subscriptions, int(time.time())
    known = next((one for one in _all(caller) if one.destination == order.destination), None)
    if known is None and len(_all(caller)) >= DESTINATIONS_MAX:
        raise Wrong(422, f"An account has at most {DESTINATIONS_MAX} webhooks: delete some first")
    if known is None:
        known = Subscription(
            id=table.next(),
            account=caller.amojo_id,
            destination=order.destination,
            settings=[],
            created_at=now,
            updated_at=now,
        )
    known.settings, known.updated_at, known.disabled = list(dict.fromkeys(order.settings)), now, False
    caller.sandbox.crm_hooks.enabled(known.id)
    table.save(known)
    return Reply(201, _shown(caller, known))


def _all(caller: Caller) -> list[Subscription]:
    return caller.sandbox.crm_state.subscriptions.of(caller.amojo_id)


def _shown(caller: Caller, one: Subscription) -> dict[str, object]:
    return {
        "id": one.id,
        "destination": one.destination,
        "created_at": one.created_at,
        "updated_at": one.updated_at,
        "account_id": caller.account.id,
        "created_by": 0,
        "sort": 1,
        "disabled": one.disabled,
        "settings": one.settings,
        "_links": caller.link(f"webhooks/{one.id}"),
    }
