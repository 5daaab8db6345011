"""The customer's pages: chats, ticks and everything that can be done to a message."""

from litestar import Response, get, post

from ops.sandbox.errors import Impossible
from ops.sandbox.messenger.rules import react
from ops.sandbox.pages import formatting
from ops.sandbox.pages.forms import Chosen, NewCustomer, Opened, Picked, Written, form, go, page
from ops.sandbox.responses import Call, sandbox_of
from ops.sandbox.state.messenger import Conversation, Customer, MessengerMessage, new_id


@get("/customer")
async def customer(request: Call) -> Response[str]:
    """One customer's page, with a chat open or none."""
    phone = sandbox_of(request).messenger_state
    chat = phone.conversations.get(request.query_params.get("chat", ""))
    who = chat.customer_id if chat else request.query_params.get("who", "")
    if not chat and not who and phone.customers:
        who = next(reversed(phone.customers))
    known = phone.customers.get(who)
    return page(
        "customer.html",
        templates=[],
        side="customer",
        who=known.id if known else "",
        customer=known,
        chat=chat.id if chat else "",
        bubbles=formatting.customer_bubbles(phone, chat) if chat else [],
        lines=formatting.customer_lines(phone, who, chat.id if chat else ""),
        customers=formatting.customers(phone, who),
        told=bool(sandbox_of(request).config.messenger_url),
    )


@get("/customer/list")
async def customer_list(request: Call) -> Response[str]:
    """The list of chats alone."""
    query = request.query_params
    lines = formatting.customer_lines(
        sandbox_of(request).messenger_state, query.get("who", ""), query.get("chat", "")
    )
    return page("_lines.html", side="customer", lines=lines)


@get("/customer/messages")
async def customer_messages(request: Call) -> Response[str]:
    """The messages of a chat alone."""
    chat = _conversation(request, request.query_params.get("chat", ""))
    bubbles = formatting.customer_bubbles(sandbox_of(request).messenger_state, chat)
    return page("_bubbles.html", side="customer", bubbles=bubbles)


@get("/customer/message")
async def customer_message(request: Call) -> Response[str]:
    """One message alone."""
    letter = _letter(request, request.query_params.get("id", ""))
    bubble = formatting.customer_bubble(sandbox_of(request).messenger_state, letter)
    return page("_bubbles.html", side="customer", bubbles=[bubble])


@post("/customer/new", status_code=204)
async def customer_new(request: Call) -> Response[None]:
    """A new customer with a first chat."""
    order = await form(request, NewCustomer)
    phone = sandbox_of(request).messenger_state
    made = phone.customer(new_id("u"), order.name.strip(), order.phone.strip())
    return go(formatting.customer_href(_new_chat(request, made)))


@post("/customer/chat", status_code=204)
async def customer_chat(request: Call) -> Response[None]:
    """Another chat of the same customer."""
    order = await form(request, Chosen)
    known = sandbox_of(request).messenger_state.customers.get(order.who)
    if known is None:
        raise Impossible(404, "No such customer")
    return go(formatting.customer_href(_new_chat(request, known)))


@post("/customer/send", status_code=204)
async def customer_send(request: Call) -> None:
    """The customer writes, or changes what he wrote."""
    order = await form(request, Written)
    sandbox, chat = sandbox_of(request), _conversation(request, order.chat)
    if not sandbox.config.messenger_url:
        raise Impossible(409, "Nobody to tell: start the sandbox with --messenger-url")
    if order.editing:
        sandbox.messenger.edit(_letter(request, order.editing), {"text": order.message()["text"]})
    else:
        sandbox.messenger.write(sandbox.messenger_state.customer(chat.customer_id), chat.id, order.message())


@post("/customer/delete", status_code=204)
async def customer_delete(request: Call) -> None:
    """The customer takes a message back."""
    order = await form(request, Picked)
    sandbox_of(request).messenger.delete(_letter(request, order.id))


@post("/customer/again", status_code=204)
async def customer_again(request: Call) -> None:
    """The customer sends a refused message again."""
    order = await form(request, Picked)
    sandbox_of(request).messenger.again(_letter(request, order.id))


@post("/customer/react", status_code=204)
async def customer_react(request: Call) -> None:
    """The customer reacts, or takes the same reaction away."""
    order = await form(request, Picked)
    sandbox, letter = sandbox_of(request), _letter(request, order.id)
    chat = sandbox.messenger_state.conversations[letter.conversation_id]
    who = sandbox.messenger_state.customer(chat.customer_id)
    standing = any(one.by == who.id and one.emoji == order.emoji for one in letter.reactions)
    emoji = "" if standing else order.emoji
    react(letter, who.id, emoji)
    sandbox.messenger_state.save_letter(letter)
    sandbox.messenger.tell_reaction(chat.id, letter.id, who, emoji)
    sandbox.feed.publish("customer", "message", chat=chat.id, message=letter.id)


@post("/customer/typing", status_code=204)
async def customer_typing(request: Call) -> None:
    """The customer is typing; nothing is reported from a chat without messages."""
    order = await form(request, Opened)
    sandbox, chat = sandbox_of(request), _conversation(request, order.chat)
    if sandbox.config.messenger_url and sandbox.messenger_state.timelines[chat.id]:
        sandbox.messenger.tell_typing(sandbox.messenger_state.customer(chat.customer_id), chat.id)


@post("/customer/seen", status_code=204)
async def customer_seen(request: Call) -> None:
    """The customer has the chat open."""
    order = await form(request, Opened)
    sandbox_of(request).messenger.read(_conversation(request, order.chat).id)


ROUTES = [
    customer,
    customer_list,
    customer_messages,
    customer_message,
    customer_new,
    customer_chat,
    customer_send,
    customer_delete,
    customer_again,
    customer_react,
    customer_typing,
    customer_seen,
]


def _conversation(request: Call, conversation_id: str) -> Conversation:
    conversation = sandbox_of(request).messenger_state.conversations.get(conversation_id)
    if conversation is None:
        raise Impossible(404, "No such chat")
    return conversation


def _letter(request: Call, message_id: str) -> MessengerMessage:
    letter = sandbox_of(request).messenger_state.letters.get(message_id)
    if letter is None:
        raise Impossible(404, "No such message")
    return letter


def _new_chat(request: Call, customer: Customer) -> Conversation:
    account = sandbox_of(request).config.messenger_account
    return sandbox_of(request).messenger_state.conversation(new_id("conv"), customer.id, account)
