"""The manager's inbox: chats, ticks and replies, as in the CRM."""

from urllib.parse import urlencode

from litestar import Response, get, post

from ops.sandbox.chats.manager import Address, Receiver
from ops.sandbox.errors import Impossible
from ops.sandbox.pages import crm_panel, formatting
from ops.sandbox.pages.forms import First, Opened, Picked, Written, form, go, page
from ops.sandbox.responses import Call, sandbox_of
from ops.sandbox.state.chats import Chat, Message


@get("/manager")
async def manager(request: Call) -> Response[str]:
    """The inbox, with a chat open or none."""
    sandbox = sandbox_of(request)
    chat = sandbox.chat_state.chats.get(request.query_params.get("chat", ""))
    return page(
        "manager.html",
        side="manager",
        who="",
        chat=chat.id if chat else "",
        face=formatting.manager_face(sandbox.chat_state, chat) if chat else None,
        bubbles=formatting.manager_bubbles(sandbox.chat_state, chat) if chat else [],
        lines=formatting.manager_lines(sandbox.chat_state, chat.id if chat else ""),
        connections=[one for one in sandbox.chat_state.connections.values() if one.active],
        hook_url=sandbox.config.hook_url,
        file=crm_panel.file_of(sandbox.crm_state, chat) if chat else None,
        templates=crm_panel.templates_of(sandbox.crm_state, sandbox.crm_rules.account(chat).amojo_id)
        if chat
        else [],
        me=sandbox.config.managers[0].name if sandbox.config.managers else "Manager",
    )


@get("/manager/list")
async def manager_list(request: Call) -> Response[str]:
    """The list of chats alone."""
    lines = formatting.manager_lines(sandbox_of(request).chat_state, request.query_params.get("chat", ""))
    return page("_lines.html", side="manager", lines=lines)


@get("/manager/messages")
async def manager_messages(request: Call) -> Response[str]:
    """The messages of a chat alone."""
    chat = _chat(request, request.query_params.get("chat", ""))
    return page(
        "_bubbles.html",
        side="manager",
        bubbles=formatting.manager_bubbles(sandbox_of(request).chat_state, chat),
    )


@get("/manager/message")
async def manager_message(request: Call) -> Response[str]:
    """One message alone."""
    message = _message(request, request.query_params.get("id", ""))
    bubble = formatting.manager_bubble(sandbox_of(request).chat_state, message)
    return page("_bubbles.html", side="manager", bubbles=[bubble])


@post("/manager/send", status_code=204)
async def manager_send(request: Call) -> None:
    """The manager answers."""
    order = await form(request, Written)
    desk, chat = sandbox_of(request).managers, _chat(request, order.chat)
    said: dict[str, object] = {}
    if order.template:
        said = desk.from_template(int(order.template), {"contact.name": desk.crm.client(chat).name})
    if order.text.strip() or order.media.strip() or not said:
        said |= order.message()
    desk.write(Address(chat_id=chat.id), said)


@post("/manager/first", status_code=204)
async def manager_first(request: Call) -> Response[None]:
    """The manager writes first, to a phone number."""
    order = await form(request, First)
    receiver = Receiver(name=order.name, phone=order.phone)
    content: dict[str, object] = {"type": "text", "text": order.text}
    message, _ = sandbox_of(request).managers.write(Address(phone=order.phone, receiver=receiver), content)
    return go("/manager?" + urlencode({"chat": message.chat_id}))


@post("/manager/typing", status_code=204)
async def manager_typing(request: Call) -> None:
    """The manager is typing."""
    order = await form(request, Opened)
    desk = sandbox_of(request).managers
    desk.type_sometimes(_chat(request, order.chat).id, "")


@post("/manager/seen", status_code=204)
async def manager_seen(request: Call) -> None:
    """The manager has the chat open."""
    order = await form(request, Opened)
    chat = _chat(request, order.chat)
    if chat.unread:
        chat.unread = 0
        sandbox_of(request).chat_state.save_chat(chat)
        sandbox_of(request).feed.publish("manager", "chats")


@post("/manager/react", status_code=204)
async def manager_react(request: Call) -> None:
    """The manager reacts, or takes the same reaction away."""
    order = await form(request, Picked)
    sandbox, message = sandbox_of(request), _message(request, order.id)
    own = {one.id for one in sandbox.config.managers}
    standing = any(one.by in own and one.emoji == order.emoji for one in message.reactions)
    sandbox.managers.react(message, "" if standing else order.emoji)


ROUTES = [
    manager,
    manager_list,
    manager_messages,
    manager_message,
    manager_send,
    manager_first,
    manager_typing,
    manager_seen,
    manager_react,
]


def _chat(request: Call, chat_id: str) -> Chat:
    chat = sandbox_of(request).chat_state.chats.get(chat_id)
    if chat is None:
        raise Impossible(404, "No such chat")
    return chat


def _message(request: Call, message_id: str) -> Message:
    message = sandbox_of(request).chat_state.messages.get(message_id)
    if message is None:
        raise Impossible(404, "No such message")
    return message
