"""Accounts of Kommo and what belongs to their chats: users, talks, incoming leads, contacts."""

import re
from typing import Literal

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Struct, to_builtins

from app.http.api.parameters import NOT_TO_LEDGER, REFUSALS, Number, ledger_position
from app.http.guard import REACHED, READ, caller_of
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.kommo.crm.users import User
from app.operations import accounts as operations
from app.operations import crm
from app.operations.accounts import AccountShown, LinkShown
from app.operations.channels import ConnectionNeeded
from app.problems import ProblemError

UID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class AccountsShown(Struct, frozen=True):
    """The accounts that are configured, connected to a channel, or ever consented."""

    items: list[AccountShown]


class UsersShown(Struct, frozen=True):
    """The account's users."""

    items: list[User]


class TalkShown(Struct, frozen=True):
    """A talk as Kommo has it; times are unix seconds. Kommo may add fields."""

    talk_id: int
    created_at: int | None = None
    updated_at: int | None = None
    rate: int | None = None
    contact_id: int | None = None
    chat_id: str | None = None
    entity_id: int | None = None
    entity_type: str | None = None
    is_in_work: bool | None = None
    is_read: bool | None = None
    origin: str | None = None
    missed_at: int | None = None
    account_id: int | None = None


class CloseTalk(Struct, frozen=True):
    """`force_close` false lets the NPS bot ask the customer first, if there is one."""

    force_close: bool = True


class AcceptLead(Struct, frozen=True, omit_defaults=True):
    """The CRM's numbers of the user who accepts it and of the pipeline's stage where the lead begins."""

    user_id: Number | None = None
    status_id: Number | None = None


class DeclineLead(Struct, frozen=True, omit_defaults=True):
    """The CRM's number of the user who declines it."""

    user_id: Number | None = None


class LinkLead(Struct, frozen=True, omit_defaults=True):
    """The lead or customer that the incoming lead is joined with, for this contact of it if given."""

    entity_id: Number
    entity_type: Literal["leads", "customers"] = "leads"
    contact_id: Number | None = None
    user_id: Number | None = None


class LeadShown(Struct, frozen=True):
    """What Kommo says of an incoming lead that is settled; Kommo adds fields."""

    uid: str | None = None


class ChatLink(Struct, frozen=True):
    """A chat and the contact it belongs to; `id` is the link's own. Kommo may add fields."""

    chat_id: str
    contact_id: int
    id: int | None = None


class ChatLinks(Struct, frozen=True):
    """Chats and their contacts."""

    items: list[ChatLink]


class LinkChat(Struct, frozen=True):
    """The CRM's number of the contact that the chat belongs to."""

    contact_id: Number


@get("/accounts", summary="Accounts, and whether they let us in", tags=["accounts"], opt=READ | REACHED)
async def accounts(request: Call) -> AccountsShown:
    """By account id."""
    caller, found = caller_of(request), await operations.list_accounts(services_of(request))
    return AccountsShown([one for one in found if caller.reaches(one.account_id)])


@get(
    "/accounts/{account_id:str}/users",
    summary="The users",
    tags=["accounts"],
    opt=READ,
    responses=REFUSALS,
)
async def users(request: Call, account_id: FromPath[str]) -> UsersShown:
    """All of them, with their amojo ids, by which chats name them."""
    return UsersShown(await crm.list_users(services_of(request), account_id))


@get(
    "/accounts/{account_id:str}/talks/{talk_id:int}",
    summary="A talk",
    tags=["accounts"],
    opt=READ,
    responses=REFUSALS,
)
async def talk(request: Call, account_id: FromPath[str], talk_id: FromPath[int]) -> TalkShown:
    """How it stands in Kommo now."""
    answer = await crm.call(services_of(request), account_id, "GET", f"talks/{talk_id}")
    return crm.content(answer, TalkShown)


@post(
    "/accounts/{account_id:str}/talks/{talk_id:int}/close",
    status_code=202,
    summary="Close a talk",
    tags=["accounts"],
    opt=NOT_TO_LEDGER,
    responses=REFUSALS,
)
async def close_talk(
    request: Call, account_id: FromPath[str], talk_id: FromPath[int], data: JSONBody[CloseTalk]
) -> Response[None]:
    """202 when Kommo will close it; 422 if it is closed or being closed."""
    await crm.call(services_of(request), account_id, "POST", f"talks/{talk_id}/close", data)
    return Response(None, status_code=202)


@post(
    "/accounts/{account_id:str}/leads/{uid:str}/accept",
    status_code=200,
    summary="Accept an incoming lead",
    tags=["accounts"],
    opt=NOT_TO_LEDGER,
    responses=REFUSALS,
)
async def accept_lead(
    request: Call, account_id: FromPath[str], uid: FromPath[str], data: JSONBody[AcceptLead]
) -> LeadShown:
    """It becomes a lead in the pipeline; the CRM's webhook tells which."""
    return await _settle(request, account_id, "POST", f"{_part(uid)}/accept", data)


@post(
    "/accounts/{account_id:str}/leads/{uid:str}/decline",
    status_code=200,
    summary="Decline an incoming lead",
    tags=["accounts"],
    opt=NOT_TO_LEDGER,
    responses=REFUSALS,
)
async def decline_lead(
    request: Call, account_id: FromPath[str], uid: FromPath[str], data: JSONBody[DeclineLead]
) -> LeadShown:
    """It is gone from the incoming leads."""
    return await _settle(request, account_id, "DELETE", f"{_part(uid)}/decline", data)


@post(
    "/accounts/{account_id:str}/leads/{uid:str}/link",
    status_code=200,
    summary="Join an incoming lead with one that is there",
    tags=["accounts"],
    opt=NOT_TO_LEDGER,
    responses=REFUSALS,
)
async def link_lead(
    request: Call, account_id: FromPath[str], uid: FromPath[str], data: JSONBody[LinkLead]
) -> LeadShown:
    """Its chat belongs to that lead or customer from then on."""
    link: dict[str, object] = {"entity_id": data.entity_id, "entity_type": data.entity_type}
    if data.contact_id is not None:
        link["metadata"] = {"contact_id": data.contact_id}
    order = {"link": link} | ({} if data.user_id is None else {"user_id": data.user_id})
    return await _settle(request, account_id, "POST", f"{_part(uid)}/link", order)


@get(
    "/accounts/{account_id:str}/links",
    summary="Which contacts chats belong to",
    tags=["accounts"],
    opt=READ,
    responses=REFUSALS,
)
async def links(
    request: Call,
    account_id: FromPath[str],
    chat_id: FromQuery[str | None] = None,
    contact_id: FromQuery[int | None] = None,
) -> ChatLinks:
    """The contact of a chat, or the chats of a contact, as Kommo has them now."""
    query = {"chat_id[]": chat_id} if chat_id else {}
    query |= {"contact_id[]": str(contact_id)} if contact_id is not None else {}
    if not query:
        raise ProblemError(400, "chat_id or contact_id: give one of them")
    answer = await crm.call(services_of(request), account_id, "GET", "contacts/chats", query=query)
    return ChatLinks(crm.contents(answer, "chats", ChatLink))


@post(
    "/conversations/{conversation:str}/link",
    status_code=201,
    summary="Say which contact a chat belongs to",
    tags=["accounts"],
    responses=answers(404, 422, 502, said={409: ConnectionNeeded.MESSAGE}, also={200: LinkShown}),
)
async def link_chat(
    request: Call, conversation: FromPath[str], data: JSONBody[LinkChat]
) -> Response[LinkShown]:
    """201 when Kommo has linked it, 200 if it was so before; if Kommo refuses, no link is recorded."""
    link, recorded = await operations.link_contact(services_of(request), conversation, data.contact_id)
    return Response(link, status_code=200 if recorded.duplicate else 201, headers=ledger_position(recorded))


async def _settle(request: Call, account_id: str, method: str, path: str, order: object) -> LeadShown:
    path = f"leads/unsorted/{path}"
    answer = await crm.call(services_of(request), account_id, method, path, to_builtins(order))
    return crm.content(answer, LeadShown)


def _part(uid: str) -> str:
    """The uid as one part of a path, and no more than that; raises ProblemError (404)."""
    if not UID.fullmatch(uid):
        raise ProblemError(404, "there is no such incoming lead: give the uid that lead.received tells")
    return uid


routes: list[HTTPRouteHandler] = [
    accounts,
    users,
    talk,
    close_talk,
    accept_lead,
    decline_lead,
    link_lead,
    links,
    link_chat,
]
