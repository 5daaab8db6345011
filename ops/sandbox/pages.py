"""Three calm pages: what the sandbox is, the customer's phone, and the manager's inbox."""

from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Response, Router, get, post
from litestar.response import Stream
from msgspec import Meta, Struct, ValidationError, convert

from ops.sandbox import views
from ops.sandbox.crm import Chat, Message
from ops.sandbox.desk import Address, Impossible, Receiver
from ops.sandbox.messenger import react
from ops.sandbox.phone import Conversation, Customer, Letter, new_id
from ops.sandbox.web import Call, same_origin, sandbox_of

TEXT_MAX = 4000
EMOJI = ("👍", "❤️", "😂", "🙏")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: https: http:; "
    "media-src 'self' https: http:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
STATIC = {
    "sandbox.css": ("text/css", files("ops.sandbox") / "static/sandbox.css"),
    "sandbox.js": ("text/javascript", files("ops.sandbox") / "static/sandbox.js"),
    "htmx.min.js": ("text/javascript", files("js_lib_htmx") / "static/htmx/htmx.min.js"),
}
TEMPLATES = Environment(
    loader=PackageLoader("ops.sandbox"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Short = Annotated[str, Meta(max_length=255)]
Kind = Literal["picture", "file", "video", "voice", "audio"]
FormShape = TypeVar("FormShape", bound=Struct)


class Written(Struct, kw_only=True):
    """The composer: text, a link to media, or both; `editing` names the message that is changed."""

    chat: Short
    text: Text = ""
    media: Annotated[str, Meta(max_length=2000)] = ""
    kind: Kind = "picture"
    editing: Short = ""

    def message(self) -> dict[str, object]:
        """The message it makes; Impossible when there is nothing to send."""
        text, media = self.text.strip(), self.media.strip()
        if media and not media.startswith(("https://", "http://")):
            raise Impossible(400, "The link must begin with https:// or http://")
        if not text and not media:
            raise Impossible(400, "Write something first")
        if not media:
            return {"type": "text", "text": text}
        name = urlsplit(media).path.rpartition("/")[2] or self.kind
        told: dict[str, object] = {"type": self.kind, "media": media, "file_name": name}
        return told | {"text": text} if text else told


class NewCustomer(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=80)]
    phone: Annotated[str, Meta(max_length=40)] = ""


class First(Struct):
    phone: Annotated[str, Meta(pattern=r"^\+?[0-9 ()-]{3,40}$")]
    text: Annotated[str, Meta(min_length=1, max_length=TEXT_MAX)]
    name: Short = ""


class Picked(Struct):
    id: Short
    emoji: Annotated[str, Meta(max_length=16)] = ""


class Opened(Struct):
    chat: Short


class Chosen(Struct):
    who: Short


@get("/")
async def home(request: Call) -> Response[str]:
    """What this is."""
    sandbox = sandbox_of(request)
    active = [one for one in sandbox.crm.connections.values() if one.active]
    return _page("home.html", side="home", connections=active, config=sandbox.config)


@get("/static/{name:str}", sync_to_thread=False)
def static(request: Call) -> Response[bytes]:
    """Our style and script, and htmx from its wheel."""
    found = STATIC.get(request.path_params["name"])
    if found is None:
        raise Impossible(404, "no such file")
    return Response(found[1].read_bytes(), media_type=found[0], headers={"Cache-Control": "max-age=60"})


@get("/{side:str}/events")
async def events(request: Call) -> Stream:
    """What changes, as it changes."""
    side = request.path_params["side"]
    if side not in ("manager", "customer"):
        raise Impossible(404, "no such page")

    async def lines() -> AsyncIterator[bytes]:
        async for line in sandbox_of(request).feed.follow(side):
            yield line

    return Stream(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


# The manager.


@get("/manager")
async def manager(request: Call) -> Response[str]:
    """The inbox, with a chat open or none."""
    sandbox = sandbox_of(request)
    chat = sandbox.crm.chats.get(request.query_params.get("chat", ""))
    return _page(
        "manager.html",
        side="manager",
        who="",
        chat=chat.id if chat else "",
        face=views.manager_face(sandbox.crm, chat) if chat else None,
        bubbles=views.manager_bubbles(sandbox.crm, chat) if chat else [],
        lines=views.manager_lines(sandbox.crm, chat.id if chat else ""),
        connections=[one for one in sandbox.crm.connections.values() if one.active],
        hook_url=sandbox.config.hook_url,
        me=sandbox.config.managers[0].name if sandbox.config.managers else "Manager",
    )


@get("/manager/list")
async def manager_list(request: Call) -> Response[str]:
    """The list of chats alone."""
    lines = views.manager_lines(sandbox_of(request).crm, request.query_params.get("chat", ""))
    return _page("_lines.html", side="manager", lines=lines)


@get("/manager/messages")
async def manager_messages(request: Call) -> Response[str]:
    """The messages of a chat alone."""
    chat = _chat(request, request.query_params.get("chat", ""))
    return _page(
        "_bubbles.html", side="manager", bubbles=views.manager_bubbles(sandbox_of(request).crm, chat)
    )


@get("/manager/message")
async def manager_message(request: Call) -> Response[str]:
    """One message alone."""
    message = _message(request, request.query_params.get("id", ""))
    bubble = views.manager_bubble(sandbox_of(request).crm, message)
    return _page("_bubbles.html", side="manager", bubbles=[bubble])


@post("/manager/send", status_code=204)
async def manager_send(request: Call) -> None:
    """The manager answers."""
    order = await _form(request, Written)
    sandbox_of(request).desk.write(Address(chat_id=_chat(request, order.chat).id), order.message())


@post("/manager/first", status_code=204)
async def manager_first(request: Call) -> Response[None]:
    """The manager writes first, to a phone number."""
    order = await _form(request, First)
    receiver = Receiver(name=order.name, phone=order.phone)
    content: dict[str, object] = {"type": "text", "text": order.text}
    message, _ = sandbox_of(request).desk.write(Address(phone=order.phone, receiver=receiver), content)
    return _go("/manager?" + urlencode({"chat": message.chat_id}))


@post("/manager/typing", status_code=204)
async def manager_typing(request: Call) -> None:
    """The manager types."""
    order = await _form(request, Opened)
    desk = sandbox_of(request).desk
    desk.type_sometimes(_chat(request, order.chat).id, "")


@post("/manager/seen", status_code=204)
async def manager_seen(request: Call) -> None:
    """The manager sees the chat."""
    order = await _form(request, Opened)
    chat = _chat(request, order.chat)
    if chat.unread:
        chat.unread = 0
        sandbox_of(request).crm.save_chat(chat)
        sandbox_of(request).feed.publish("manager", "chats")


@post("/manager/react", status_code=204)
async def manager_react(request: Call) -> None:
    """The manager reacts, or takes the same reaction away."""
    order = await _form(request, Picked)
    sandbox, message = sandbox_of(request), _message(request, order.id)
    own = {one.id for one in sandbox.config.managers}
    standing = any(one.by in own and one.emoji == order.emoji for one in message.reactions)
    sandbox.desk.react(message, "" if standing else order.emoji)


# The customer.


@get("/customer")
async def customer(request: Call) -> Response[str]:
    """The phone of one customer, with a chat open or none."""
    phone = sandbox_of(request).phone
    chat = phone.conversations.get(request.query_params.get("chat", ""))
    who = chat.customer_id if chat else request.query_params.get("who", "")
    if not chat and not who and phone.customers:
        who = next(reversed(phone.customers))
    known = phone.customers.get(who)
    return _page(
        "customer.html",
        side="customer",
        who=known.id if known else "",
        customer=known,
        chat=chat.id if chat else "",
        bubbles=views.customer_bubbles(phone, chat) if chat else [],
        lines=views.customer_lines(phone, who, chat.id if chat else ""),
        customers=views.customers(phone, who),
        told=bool(sandbox_of(request).config.messenger_url),
    )


@get("/customer/list")
async def customer_list(request: Call) -> Response[str]:
    """The list of chats alone."""
    query = request.query_params
    lines = views.customer_lines(sandbox_of(request).phone, query.get("who", ""), query.get("chat", ""))
    return _page("_lines.html", side="customer", lines=lines)


@get("/customer/messages")
async def customer_messages(request: Call) -> Response[str]:
    """The messages of a chat alone."""
    chat = _conversation(request, request.query_params.get("chat", ""))
    bubbles = views.customer_bubbles(sandbox_of(request).phone, chat)
    return _page("_bubbles.html", side="customer", bubbles=bubbles)


@get("/customer/message")
async def customer_message(request: Call) -> Response[str]:
    """One message alone."""
    letter = _letter(request, request.query_params.get("id", ""))
    bubble = views.customer_bubble(sandbox_of(request).phone, letter)
    return _page("_bubbles.html", side="customer", bubbles=[bubble])


@post("/customer/new", status_code=204)
async def customer_new(request: Call) -> Response[None]:
    """A new customer with a first chat."""
    order = await _form(request, NewCustomer)
    phone = sandbox_of(request).phone
    made = phone.customer(new_id("u"), order.name.strip(), order.phone.strip())
    return _go(views.customer_href(_new_chat(request, made)))


@post("/customer/chat", status_code=204)
async def customer_chat(request: Call) -> Response[None]:
    """Another chat of the same customer."""
    order = await _form(request, Chosen)
    known = sandbox_of(request).phone.customers.get(order.who)
    if known is None:
        raise Impossible(404, "No such customer")
    return _go(views.customer_href(_new_chat(request, known)))


@post("/customer/send", status_code=204)
async def customer_send(request: Call) -> None:
    """The customer writes, or changes what he wrote."""
    order = await _form(request, Written)
    sandbox, chat = sandbox_of(request), _conversation(request, order.chat)
    if not sandbox.config.messenger_url:
        raise Impossible(409, "Nobody to tell: start the sandbox with --messenger-url")
    if order.editing:
        sandbox.messenger.edit(_letter(request, order.editing), {"text": order.message()["text"]})
    else:
        sandbox.messenger.write(sandbox.phone.customers[chat.customer_id], chat.id, order.message())


@post("/customer/delete", status_code=204)
async def customer_delete(request: Call) -> None:
    """The customer takes a message back."""
    order = await _form(request, Picked)
    sandbox_of(request).messenger.delete(_letter(request, order.id))


@post("/customer/again", status_code=204)
async def customer_again(request: Call) -> None:
    """The customer sends a refused message again."""
    order = await _form(request, Picked)
    sandbox_of(request).messenger.again(_letter(request, order.id))


@post("/customer/react", status_code=204)
async def customer_react(request: Call) -> None:
    """The customer reacts, or takes the same reaction away."""
    order = await _form(request, Picked)
    sandbox, letter = sandbox_of(request), _letter(request, order.id)
    chat = sandbox.phone.conversations[letter.conversation_id]
    who = sandbox.phone.customers[chat.customer_id]
    standing = any(one.by == who.id and one.emoji == order.emoji for one in letter.reactions)
    emoji = "" if standing else order.emoji
    react(letter, who.id, emoji)
    sandbox.phone.save_letter(letter)
    sandbox.messenger.tell_reaction(chat.id, letter.id, who, emoji)
    sandbox.feed.publish("customer", "message", chat=chat.id, message=letter.id)


@post("/customer/typing", status_code=204)
async def customer_typing(request: Call) -> None:
    """The customer types; a chat nobody has seen yet has nobody to show it to."""
    order = await _form(request, Opened)
    sandbox, chat = sandbox_of(request), _conversation(request, order.chat)
    if sandbox.config.messenger_url and sandbox.phone.timelines[chat.id]:
        sandbox.messenger.tell_typing(sandbox.phone.customers[chat.customer_id], chat.id)


@post("/customer/seen", status_code=204)
async def customer_seen(request: Call) -> None:
    """The customer has the chat before his eyes."""
    order = await _form(request, Opened)
    sandbox_of(request).messenger.read(_conversation(request, order.chat).id)


ROUTER = Router(
    path="/",
    route_handlers=[
        home,
        static,
        events,
        manager,
        manager_list,
        manager_messages,
        manager_message,
        manager_send,
        manager_first,
        manager_typing,
        manager_seen,
        manager_react,
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
    ],
    before_request=same_origin,
)


def _page(template: str, **shown: object) -> Response[str]:
    text = TEMPLATES.get_template(template).render(emoji=EMOJI, **shown)
    return Response(text, media_type="text/html", headers=HEADERS)


def _go(href: str) -> Response[None]:
    return Response(None, status_code=204, headers={"HX-Redirect": href})


async def _form(request: Call, shape: type[FormShape]) -> FormShape:
    form = await request.form()
    try:
        return convert(dict(form), shape)
    except ValidationError as error:
        raise Impossible(400, f"That does not fit: {error}") from error


def _chat(request: Call, chat_id: str) -> Chat:
    chat = sandbox_of(request).crm.chats.get(chat_id)
    if chat is None:
        raise Impossible(404, "No such chat")
    return chat


def _message(request: Call, message_id: str) -> Message:
    message = sandbox_of(request).crm.messages.get(message_id)
    if message is None:
        raise Impossible(404, "No such message")
    return message


def _conversation(request: Call, conversation_id: str) -> Conversation:
    conversation = sandbox_of(request).phone.conversations.get(conversation_id)
    if conversation is None:
        raise Impossible(404, "No such chat")
    return conversation


def _letter(request: Call, message_id: str) -> Letter:
    letter = sandbox_of(request).phone.letters.get(message_id)
    if letter is None:
        raise Impossible(404, "No such message")
    return letter


def _new_chat(request: Call, customer: Customer) -> Conversation:
    account = sandbox_of(request).config.messenger_account
    return sandbox_of(request).phone.conversation(new_id("conv"), customer.id, account)
