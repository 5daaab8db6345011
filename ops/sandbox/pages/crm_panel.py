"""The CRM panel of an open chat: its contact, its talk, its incoming lead and the templates."""

from typing import Literal

from litestar import Response, get, post
from msgspec import Struct

from ops.sandbox.errors import Impossible
from ops.sandbox.pages.forms import Short, form, page
from ops.sandbox.responses import Call, sandbox_of
from ops.sandbox.state.chats import Chat
from ops.sandbox.state.crm import CrmState


class File(Struct, frozen=True):
    """The line above the messages."""

    contact: str
    lead: str
    talk: str
    talk_open: bool
    incoming: bool


class Settled(Struct):
    chat: Short
    action: Literal["accept", "decline", "close"]


@get("/manager/crm")
async def manager_crm(request: Call) -> Response[str]:
    """The line alone; empty where there is no CRM."""
    sandbox = sandbox_of(request)
    chat = sandbox.chat_state.chats.get(request.query_params.get("chat", ""))
    return page("_crm.html", file=file_of(sandbox.crm_state, chat) if chat else None)


@post("/manager/crm", status_code=204)
async def manager_settle(request: Call) -> None:
    """The manager accepts or declines the incoming lead, or closes the talk."""
    order, sandbox = await form(request, Settled), sandbox_of(request)
    if order.action == "close":
        talk = sandbox.crm_state.talk(order.chat)
        if talk is None or not talk.is_in_work:
            raise Impossible(409, "The talk is closed already")
        sandbox.crm_rules.change(talk, is_in_work=False)
        return
    incoming = sandbox.crm_state.waiting(order.chat)
    if incoming is None:
        raise Impossible(409, "The incoming lead is settled already")
    if order.action == "accept":
        sandbox.crm_rules.accept(incoming)
    else:
        sandbox.crm_rules.decline(incoming)


ROUTES = [manager_crm, manager_settle]


def file_of(state: CrmState, chat: Chat) -> File | None:
    """The panel's content; None if the CRM knows nothing of the chat."""
    link, talk = state.link(chat.id), state.talk(chat.id)
    if link is None and talk is None:
        return None
    contact = state.contacts.get(link.contact_id) if link else None
    lead = state.leads.get(talk.entity_id) if talk else None
    words = ""
    if talk is not None:
        words = "Talk open, answered" if talk.is_read else "Talk open, unread"
        words = words if talk.is_in_work else "Talk closed"
        words += f", rated {talk.rate}" if talk.rate else ""
    return File(
        contact=(contact.name or f"#{contact.id}") if contact else "none",
        lead=lead.name if lead else "",
        talk=words,
        talk_open=bool(talk and talk.is_in_work),
        incoming=state.waiting(chat.id) is not None,
    )


def templates_of(state: CrmState, account: str) -> list[tuple[int, str]]:
    """The templates of an account to choose from, by name."""
    return [(one.id, str(one.told["name"])) for one in state.templates.of(account)]
