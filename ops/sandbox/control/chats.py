"""Tests and integrators order what Kommo's and the messenger's people do, and read what both sides received.

JSON over HTTP on the sandbox's own port, without a key. A bad order is 400 `{"error": …}`, one that cannot be
carried out now 404, 409 or 503. `sandbox --help` lists the calls; the shapes are in `orders.py`.
"""

import asyncio
from typing import TypeVar

import aiohttp
import msgspec
from litestar import Response, Router, delete, get, post

from ops.sandbox.chats.hooks import Hook, Sent
from ops.sandbox.chats.manager import Address
from ops.sandbox.config import RECORDS_MAX
from ops.sandbox.control.orders import (
    CustomerDelete,
    CustomerEdit,
    CustomerMessage,
    CustomerReaction,
    CustomerStatus,
    CustomerTyping,
    ManagerMessage,
    ManagerReaction,
    ManagerTyping,
    RawHook,
)
from ops.sandbox.errors import Impossible
from ops.sandbox.faults import FAULTS_MAX, Fault
from ops.sandbox.messenger.rules import Messenger, react
from ops.sandbox.responses import Call, json, same_origin, sandbox_of
from ops.sandbox.state.chats import Message
from ops.sandbox.state.messenger import Action, Customer, MessengerMessage, Push, new_id

WAIT_SECONDS_MAX = 60
T = TypeVar("T")
Numbered = TypeVar("Numbered", Message, Push, Hook)


# Faults.


@post("/control/faults", status_code=201)
async def add_fault(request: Call) -> Response[bytes]:
    """Order a fault."""
    faults = sandbox_of(request).faults
    fault = await _order(request, Fault)
    if problem := fault.problem():
        raise Impossible(400, problem)
    if len(faults.faults) >= FAULTS_MAX:
        raise Impossible(400, f"at most {FAULTS_MAX} faults: DELETE /control/faults first")
    faults.add(fault)
    return json(201, fault)


@get("/control/faults")
async def list_faults(request: Call) -> Response[bytes]:
    """The faults that have not been used up."""
    return json(200, {"faults": sandbox_of(request).faults.faults})


@delete("/control/faults", status_code=204)
async def clear_faults(request: Call) -> None:
    """Remove all faults."""
    sandbox_of(request).faults.clear()


# The manager.


@post("/control/manager/messages", status_code=201)
async def manager_message(request: Call) -> Response[bytes]:
    """A manager writes; `?wait=1` answers when the hook has been tried."""
    order = await _order(request, ManagerMessage)
    address = Address(
        scope_id=order.scope_id,
        chat_id=order.chat_id,
        conversation_id=order.conversation_id,
        phone=order.phone,
        receiver=order.receiver,
        source=order.source,
    )
    desk = sandbox_of(request).managers
    if not order.message and not order.template_id:
        raise Impossible(400, "message: required without template_id")
    said = order.message
    if order.template_id:
        said = desk.from_template(order.template_id, order.params) | said
    message, sent = desk.write(address, said, order.sender_id)
    return await _hooked(request, sent, {"id": message.id, "chat_id": message.chat_id})


@post("/control/manager/typing", status_code=201)
async def manager_typing(request: Call) -> Response[bytes]:
    """A manager types."""
    order = await _order(request, ManagerTyping)
    address = Address(
        scope_id=order.scope_id,
        chat_id=order.chat_id,
        conversation_id=order.conversation_id,
        phone=order.phone,
    )
    return await _hooked(
        request, sandbox_of(request).managers.type(address, order.sender_id, order.variant), {}
    )


@post("/control/manager/reactions", status_code=201)
async def manager_reaction(request: Call) -> Response[bytes]:
    """A manager reacts."""
    sandbox = sandbox_of(request)
    order = await _order(request, ManagerReaction)
    scope_id = sandbox.managers.connection(order.scope_id).scope_id
    message = sandbox.chat_state.message(scope_id, id=order.id, client_id=order.msgid)
    if message is None:
        raise Impossible(404, "id, msgid: no such message")
    sent = sandbox.managers.react(message, order.emoji, order.sender_id, order.variant)
    return await _hooked(request, sent, {"id": message.id})


@post("/control/hooks", status_code=201)
async def raw_hook(request: Call) -> Response[bytes]:
    """Any bytes, signed and sent as a hook."""
    sandbox = sandbox_of(request)
    order = await _order(request, RawHook)
    body = order.raw.encode() if order.body is None else msgspec.json.encode(order.body)
    return await _hooked(
        request, sandbox.hooks.send_raw("raw", sandbox.managers.connection(order.scope_id), body), {}
    )


# The customer.


@post("/control/customer/messages", status_code=201)
async def customer_message(request: Call) -> Response[bytes]:
    """A customer writes; `?wait=1` answers when chatledger has taken or refused it."""
    messenger = _telling(request)
    order = await _order(request, CustomerMessage)
    who = messenger.state.customer(order.sender.id, order.sender.name, order.sender.phone)
    more: dict[str, object] = {}
    if order.source is not None:
        more["source"] = order.source
    if order.silent is not None:
        more["silent"] = order.silent
    _, action, done = messenger.write(
        who,
        order.conversation_id or new_id("conv"),
        order.message or {"type": "text", "text": order.text},
        message_id=order.message_id,
        at=order.at,
        reply_to=order.reply_to,
        more=more,
    )
    return await _told(request, action, done)


@post("/control/customer/edits", status_code=201)
async def customer_edit(request: Call) -> Response[bytes]:
    """A customer edits a message."""
    order = await _order(request, CustomerEdit)
    letter = _letter(request, order.message_id)
    action, done = _telling(request).edit(letter, order.message, order.at)
    return await _told(request, action, done)


@post("/control/customer/deletes", status_code=201)
async def customer_delete(request: Call) -> Response[bytes]:
    """A customer deletes a message."""
    order = await _order(request, CustomerDelete)
    action, done = _telling(request).delete(_letter(request, order.message_id), order.at)
    return await _told(request, action, done)


@post("/control/customer/statuses", status_code=201)
async def customer_status(request: Call) -> Response[bytes]:
    """The messenger reports the status of a message that was pushed to it."""
    messenger = _telling(request)
    order = await _order(request, CustomerStatus)
    letter = messenger.state.letters.get(order.message_id)
    conversation = order.conversation_id or (letter.conversation_id if letter else "")
    if not conversation:
        raise Impossible(404, "message_id: no such message; name conversation_id to tell it all the same")
    if not order.message_id and not order.id:
        raise Impossible(400, "name message_id or id")
    body: dict[str, object] = {
        name: value
        for name in ("message_id", "id", "code", "text", "at")
        if (value := getattr(order, name)) not in ("", None)
    }
    action, done = messenger.tell(f"message.{order.status}", conversation, body)
    return await _told(request, action, done)


@post("/control/customer/typing", status_code=201)
async def customer_typing(request: Call) -> Response[bytes]:
    """A customer is typing: reported once, not repeated."""
    order = await _order(request, CustomerTyping)
    sender = {"id": order.sender.id, "name": order.sender.name or order.sender.id}
    at: dict[str, object] = {"at": order.at} if order.at else {}
    action, done = _telling(request).tell("typing", order.conversation_id, {"sender": sender, **at})
    return await _told(request, action, done)


@post("/control/customer/reactions", status_code=201)
async def customer_reaction(request: Call) -> Response[bytes]:
    """A customer reacts."""
    messenger = _telling(request)
    order = await _order(request, CustomerReaction)
    letter = messenger.state.letters.get(order.message_id)
    conversation = order.conversation_id or (letter.conversation_id if letter else "")
    if not conversation:
        raise Impossible(404, "message_id: no such message; name conversation_id to tell it all the same")
    if letter is not None:
        react(letter, order.sender.id, order.emoji)
        messenger.state.save_letter(letter)
    action, done = messenger.tell_reaction(
        conversation,
        order.message_id,
        Customer(id=order.sender.id, name=order.sender.name),
        order.emoji,
        order.at,
    )
    return await _told(request, action, done)


@post("/control/customer/actions", status_code=200)
async def customer_actions(request: Call) -> Response[bytes]:
    """Any body, signed and posted once as it is: `{"status", "body"}` of the answer."""
    messenger = _telling(request)
    try:
        status, text = await messenger.post(new_id("act"), await request.body())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Impossible(502, f"chatledger did not answer: {type(error).__name__}") from error
    return json(200, {"status": status, "body": text})


# Reading.


@get("/control/kommo")
async def read_kommo(request: Call) -> Response[bytes]:
    """The state of Kommo. `?after=n&limit=m` pages the messages, `?only=messages` leaves the rest out."""
    sandbox, crm = sandbox_of(request), sandbox_of(request).chat_state
    messages = _page(request, list(crm.messages.values()))
    shown: dict[str, object] = {"messages": [_shown(one) for one in messages]}
    if request.query_params.get("only") != "messages":
        shown |= {
            "channels": [{"id": one.id, "bot_id": one.bot_id} for one in sandbox.config.channels],
            "managers": sandbox.config.managers,
            "connections": list(crm.connections.values()),
            "people": list(crm.people.values()),
            "chats": list(crm.chats.values()),
            "statuses": list(crm.statuses),
            "typings": list(crm.typings),
            "reactions": list(crm.reactions),
        }
    return json(200, shown)


@get("/control/messenger")
async def read_messenger(request: Call) -> Response[bytes]:
    """The state of the messenger. `?after=n&limit=m` pages the pushes, `?only=pushes` leaves the rest out."""
    phone = sandbox_of(request).messenger_state
    shown: dict[str, object] = {"pushes": _page(request, list(phone.pushes.values()))}
    if request.query_params.get("only") != "pushes":
        shown |= {
            "customers": list(phone.customers.values()),
            "conversations": list(phone.conversations.values()),
            "messages": list(phone.letters.values()),
            "actions": list(phone.actions),
        }
    return json(200, shown)


@get("/control/hooks")
async def read_hooks(request: Call) -> Response[bytes]:
    """The hooks in the order in which they were made, with their outcomes."""
    hooks = sandbox_of(request).hooks
    told: dict[str, object] = {"hooks": _page(request, list(hooks.sent)), "waiting": hooks.lanes.waiting}
    return json(200, told | {"queues": hooks.pace.standings})


@delete("/control/state", status_code=204)
async def clear_state(request: Call) -> None:
    """Forget chats, messages, records and faults; `?keep=connections` stays connected and allowed."""
    sandbox = sandbox_of(request)
    keep = request.query_params.get("keep") == "connections"
    sandbox.chat_state.clear(keep_connections=keep)
    sandbox.crm_state.clear(keep_consent=keep)
    sandbox.crm_rate.clear()
    sandbox.chats_rate.clear()
    sandbox.messenger_state.clear()
    sandbox.faults.clear()
    sandbox.hooks.sent.clear()
    sandbox.hooks.pace.standings.clear()
    sandbox.crm_hooks.sent.clear()
    await sandbox.crm_hooks.close()
    await sandbox.hooks.lanes.close()
    await sandbox.messenger.lanes.close()
    for side in ("manager", "customer"):
        sandbox.feed.publish(side, "resync")


ROUTER = Router(
    path="/",
    before_request=same_origin,
    route_handlers=[
        add_fault,
        list_faults,
        clear_faults,
        manager_message,
        manager_typing,
        manager_reaction,
        raw_hook,
        customer_message,
        customer_edit,
        customer_delete,
        customer_status,
        customer_typing,
        customer_reaction,
        customer_actions,
        read_kommo,
        read_messenger,
        read_hooks,
        clear_state,
    ],
)


async def _order(request: Call, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.body(), type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Impossible(400, str(error)) from error


async def _hooked(request: Call, sent: Sent, ids: dict[str, object]) -> Response[bytes]:
    """201 at once, or, once the hook has been tried, with its answer."""
    hook, done = sent
    told: dict[str, object] = {**ids, "hook": hook.n}
    if await _waited(request, done):
        told |= _tried(hook)
    return json(201, told)


def _tried(hook: Hook) -> dict[str, object]:
    return {
        "status": hook.status,
        "error": hook.error,
        "milliseconds": (hook.answered_ns - hook.sent_ns) / 1e6,
    }


async def _told(request: Call, action: Action, done: "asyncio.Future[None]") -> Response[bytes]:
    """201 at once, or when the action has been taken or refused."""
    told: dict[str, object] = {
        "action": action.n,
        "message_id": action.message_id,
        "conversation_id": action.conversation_id,
    }
    if await _waited(request, done):
        told |= {
            "state": action.state,
            "status": action.status,
            "attempts": action.attempts,
            "answer": action.answer,
        }
    return json(201, told)


async def _waited(request: Call, done: "asyncio.Future[None]") -> bool:
    if request.query_params.get("wait", "0") in ("", "0"):
        return False
    await asyncio.wait([done], timeout=WAIT_SECONDS_MAX)
    return True


def _telling(request: Call) -> Messenger:
    sandbox = sandbox_of(request)
    if not sandbox.config.messenger_url:
        raise Impossible(409, "no messenger URL: start the sandbox with --messenger-url")
    return sandbox.messenger


def _letter(request: Call, message_id: str) -> MessengerMessage:
    letter = sandbox_of(request).messenger_state.letters.get(message_id)
    if letter is None:
        raise Impossible(404, "message_id: no such message")
    return letter


def _page(request: Call, items: list[Numbered]) -> list[Numbered]:
    after, limit = _number(request, "after", 0), _number(request, "limit", RECORDS_MAX)
    return [item for item in items if item.n > after][:limit]


def _number(request: Call, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Impossible(400, f"{name}: must be a number")
    return int(text)


def _shown(message: Message) -> dict[str, object]:
    shown: dict[str, object] = msgspec.to_builtins(message)
    return shown | {"status": message.status}
