"""Incoming leads (§4.5), which chats make by themselves, and leads, with the fields a chat needs."""

from typing import Annotated, Literal

from litestar import Response, delete, get, post
from litestar.params import FromPath
from msgspec import UNSET, Meta, Struct, UnsetType, field

from ops.sandbox.api.accounts import user_number
from ops.sandbox.api.crm import BadPart, Caller, Reply, Wrong, answer, collection, few, page_of, request_id
from ops.sandbox.crm.payloads import metadata
from ops.sandbox.responses import Call
from ops.sandbox.state.crm import Incoming, Lead

UNSORTED = "/api/v4/leads/unsorted"
PARTS_MAX = 250
Number = Annotated[int, Meta(ge=1)]


class Accept(Struct):
    user_id: int = 0
    status_id: int = 0


class Decline(Struct):
    user_id: int = 0


class LinkMetadata(Struct):
    contact_id: int = 0


class LinkTo(Struct):
    entity_id: Number
    entity_type: Literal["leads", "customers"]
    metadata: LinkMetadata = field(default_factory=LinkMetadata)


class Join(Struct, kw_only=True):
    link: LinkTo
    user_id: int = 0


class OfSource(Struct):
    external_id: str
    type: Literal["widget"] = "widget"


class Named(Struct):
    id: Number


class Embedded(Struct):
    contacts: list[Named] = field(default_factory=list)
    source: OfSource | UnsetType = UNSET


class NewLead(Struct, kw_only=True):
    name: str = ""
    price: int = 0
    status_id: int = 0
    embedded: Embedded = field(default_factory=Embedded, name="_embedded")
    request_id: str | int | UnsetType = UNSET


@get(UNSORTED)
async def list_incoming(request: Call) -> Response[bytes]:
    """The incoming leads that are not settled; 204 if there are none."""

    def work(caller: Caller) -> Reply:
        uids = [value for value in caller.all("filter") if len(value) == 32]
        found = [
            one
            for one in caller.sandbox.crm_state.incoming.of(caller.amojo_id)
            if not one.action and (not uids or one.id in uids)
        ]
        told = [_shown(caller, one) for one in found]
        return page_of(caller, "leads/unsorted", "unsorted", told, PARTS_MAX)

    return await answer(request, "unsorted", work)


@get(UNSORTED + "/{uid:str}")
async def read_incoming(request: Call, uid: FromPath[str]) -> Response[bytes]:
    """One incoming lead; 204 when there is none, or no more."""

    def work(caller: Caller) -> Reply:
        found = caller.sandbox.crm_state.incoming.get(uid)
        if found is None or found.account != caller.amojo_id or found.action:
            return Reply(204)
        return Reply(200, _shown(caller, found))

    return await answer(request, "unsorted", work)


@post(UNSORTED + "/{uid:str}/accept", status_code=200)
async def accept(request: Call, uid: FromPath[str]) -> Response[bytes]:
    """Accept an incoming lead: it becomes a lead."""

    def work(caller: Caller) -> Reply:
        order = caller.read(Accept) if caller.body else Accept()
        found = _waiting(caller, uid, order.user_id)
        caller.sandbox.crm_rules.accept(found, order.user_id, order.status_id)
        return Reply(200, _settled(caller, found))

    return await answer(request, "unsorted", work)


@delete(UNSORTED + "/{uid:str}/decline", status_code=200)
async def decline(request: Call, uid: FromPath[str]) -> Response[bytes]:
    """Decline an incoming lead."""

    def work(caller: Caller) -> Reply:
        order = caller.read(Decline) if caller.body else Decline()
        found = _waiting(caller, uid, order.user_id)
        caller.sandbox.crm_rules.decline(found, order.user_id)
        return Reply(200, _settled(caller, found))

    return await answer(request, "unsorted", work)


@post(UNSORTED + "/{uid:str}/link", status_code=200)
async def join(request: Call, uid: FromPath[str]) -> Response[bytes]:
    """Link an incoming lead to an existing lead."""
    return await answer(request, "unsorted", lambda caller: _join(caller, uid))


@post("/api/v4/leads", status_code=200)
async def create_leads(request: Call) -> Response[bytes]:
    """New leads."""
    return await answer(request, "leads", _create)


@get("/api/v4/leads")
async def list_leads(request: Call) -> Response[bytes]:
    """The leads."""

    def work(caller: Caller) -> Reply:
        told = [_shown_lead(caller, one) for one in caller.sandbox.crm_state.leads.of(caller.amojo_id)]
        return page_of(caller, "leads", "leads", told, PARTS_MAX)

    return await answer(request, "leads", work)


@get("/api/v4/leads/{lead_id:int}")
async def read_lead(request: Call, lead_id: FromPath[int]) -> Response[bytes]:
    """One lead; 204 when there is none."""

    def work(caller: Caller) -> Reply:
        found = caller.sandbox.crm_state.leads.get(lead_id)
        if found is None or found.account != caller.amojo_id:
            return Reply(204)
        return Reply(200, _shown_lead(caller, found))

    return await answer(request, "leads", work)


ROUTES = [list_incoming, read_incoming, accept, decline, join, create_leads, list_leads, read_lead]


def _join(caller: Caller, uid: str) -> Reply:
    order = caller.read(Join)
    found = _waiting(caller, uid, order.user_id)
    state = caller.sandbox.crm_state
    lead = state.leads.get(order.link.entity_id)
    if order.link.entity_type != "leads" or lead is None or lead.account != caller.amojo_id:
        bad = BadPart("NotFound", "link.entity_id", "There is no such lead.")
        raise Wrong(400, "Request validation failed", (bad,))
    contact_id = order.link.metadata.contact_id or lead.contact_id or found.contact_id
    contact = state.contacts.get(contact_id)
    if contact is None or contact.account != caller.amojo_id:
        bad = BadPart("NotFound", "link.metadata.contact_id", "There is no such contact.")
        raise Wrong(400, "Request validation failed", (bad,))
    caller.sandbox.crm_rules.join(found, lead, contact_id, order.user_id)
    return Reply(200, _settled(caller, found))


def _waiting(caller: Caller, uid: str, user_id: int) -> Incoming:
    found = caller.sandbox.crm_state.incoming.get(uid)
    if found is None or found.account != caller.amojo_id or found.action:
        raise Wrong(404, "There is no such incoming lead, or it is settled")
    users = {user_number(one) for one in caller.sandbox.config.managers}
    if user_id and user_id not in users:
        bad = BadPart("NotSupportedChoice", "user_id", "There is no such user.")
        raise Wrong(400, "Request validation failed", (bad,))
    return found


def _settled(caller: Caller, incoming: Incoming) -> dict[str, object]:
    leads = [{"id": incoming.lead_id, "_links": caller.link(f"leads/{incoming.lead_id}")}]
    return {
        "uid": incoming.id,
        "category": "chats",
        "pipeline_id": incoming.pipeline_id,
        "created_at": incoming.created_at,
        "_embedded": {
            "leads": leads if incoming.lead_id else [],
            "contacts": [{"id": incoming.contact_id}] if incoming.action != "decline" else [],
            "companies": [],
        },
    }


def _shown(caller: Caller, incoming: Incoming) -> dict[str, object]:
    crm = caller.sandbox.chat_state
    chat = crm.chats.get(incoming.chat_id)
    client = crm.client(chat) if chat else None
    newest = crm.timelines[chat.id][-1] if chat and crm.timelines[chat.id] else None
    return {
        "uid": incoming.id,
        "source_uid": incoming.chat_id,
        "source_name": incoming.source_external_id,
        "category": "chats",
        "pipeline_id": incoming.pipeline_id,
        "created_at": incoming.created_at,
        "metadata": metadata(incoming, client, newest),
        "account_id": caller.account.id,
        "_links": caller.link(f"leads/unsorted/{incoming.id}"),
        "_embedded": {"contacts": [{"id": incoming.contact_id}], "leads": [], "companies": []},
    }


def _create(caller: Caller) -> Reply:
    orders = few(caller.read(list[NewLead]), PARTS_MAX)
    known = {one.id for one in caller.sandbox.crm_state.contacts.of(caller.amojo_id)}
    for index, order in enumerate(orders):
        if not {one.id for one in order.embedded.contacts} <= known:
            named = request_id(index, order.request_id)
            bad = BadPart("NotFound", "_embedded.contacts", "There is no such contact.", named)
            raise Wrong(400, "Request validation failed", (bad,))
    made = []
    for index, order in enumerate(orders):
        contact_id = order.embedded.contacts[0].id if order.embedded.contacts else 0
        lead = caller.sandbox.crm_rules.new_lead(caller.amojo_id, order.name, contact_id)
        lead.name, lead.price = order.name or f"Lead #{lead.id}", order.price
        lead.status_id = order.status_id or lead.status_id
        source = order.embedded.source
        lead.source_external_id = source.external_id if isinstance(source, OfSource) else ""
        caller.sandbox.crm_state.leads.save(lead)
        links = caller.link(f"leads/{lead.id}")
        made.append({"id": lead.id, "request_id": request_id(index, order.request_id), "_links": links})
    return Reply(200, collection(caller, "leads", "leads", made))


def _shown_lead(caller: Caller, lead: Lead) -> dict[str, object]:
    embedded: dict[str, object] = {"tags": [], "companies": []}
    if "contacts" in caller.request.query_params.get("with", "").split(","):
        embedded["contacts"] = [{"id": lead.contact_id, "is_main": True}] if lead.contact_id else []
    return {
        "id": lead.id,
        "name": lead.name,
        "price": lead.price,
        "status_id": lead.status_id,
        "pipeline_id": lead.pipeline_id,
        "created_at": lead.created_at,
        "updated_at": lead.updated_at,
        "account_id": caller.account.id,
        "_links": caller.link(f"leads/{lead.id}"),
        "_embedded": embedded,
    }
