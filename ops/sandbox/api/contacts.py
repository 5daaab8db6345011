"""Contacts, with the fields that a chat needs, and the links between chats and contacts (§4.1)."""

import time
from typing import Annotated

from litestar import Response, get, post
from litestar.params import FromPath
from msgspec import UNSET, Meta, Struct, UnsetType, field

from ops.sandbox.api.crm import BadPart, Caller, Reply, Wrong, answer, collection, few, page_of, request_id
from ops.sandbox.responses import Call
from ops.sandbox.state.crm import Contact, Link

PARTS_MAX = 250
Name = Annotated[str, Meta(max_length=255)]
Number = Annotated[int, Meta(ge=1)]


class NewContact(Struct, kw_only=True):
    name: Name = ""
    first_name: Name = ""
    last_name: Name = ""
    custom_fields_values: list[dict[str, object]] = field(default_factory=list)
    request_id: str | int | UnsetType = UNSET


class NewLink(Struct, kw_only=True):
    contact_id: Number
    chat_id: Annotated[str, Meta(min_length=1, max_length=255)]
    request_id: str | int | UnsetType = UNSET


@get("/api/v4/contacts")
async def list_contacts(request: Call) -> Response[bytes]:
    """The contacts, except those that are still inside an incoming lead."""

    def work(caller: Caller) -> Reply:
        found = [one for one in caller.sandbox.crm_state.contacts.of(caller.amojo_id) if not one.hidden]
        return page_of(caller, "contacts", "contacts", [_shown(caller, one) for one in found], PARTS_MAX)

    return await answer(request, "contacts", work)


@get("/api/v4/contacts/{contact_id:int}")
async def read_contact(request: Call, contact_id: FromPath[int]) -> Response[bytes]:
    """One contact; 204 when there is none."""

    def work(caller: Caller) -> Reply:
        found = _contact(caller, contact_id)
        return Reply(200, _shown(caller, found)) if found and not found.hidden else Reply(204)

    return await answer(request, "contacts", work)


@post("/api/v4/contacts", status_code=200)
async def create_contacts(request: Call) -> Response[bytes]:
    """New contacts."""
    return await answer(request, "contacts", _create)


@post("/api/v4/contacts/chats", status_code=200)
async def link_chats(request: Call) -> Response[bytes]:
    """Link chats to contacts, all or none of them. As at Kommo, a request with a cookie is refused."""
    return await answer(request, "links", _link)


@get("/api/v4/contacts/chats")
async def list_links(request: Call) -> Response[bytes]:
    """The chats of contacts, or the contacts of chats; 204 when there are none."""
    return await answer(request, "links", _links)


ROUTES = [list_contacts, read_contact, create_contacts, link_chats, list_links]


def _create(caller: Caller) -> Reply:
    made = []
    now = int(time.time())
    table = caller.sandbox.crm_state.contacts
    for index, order in enumerate(few(caller.read(list[NewContact]), PARTS_MAX)):
        contact = Contact(
            id=table.next(),
            account=caller.amojo_id,
            name=order.name or f"{order.first_name} {order.last_name}".strip(),
            first_name=order.first_name,
            last_name=order.last_name,
            fields=order.custom_fields_values,
            created_at=now,
            updated_at=now,
        )
        table.save(contact)
        links = caller.link(f"contacts/{contact.id}")
        named = request_id(index, order.request_id)
        made.append({"id": contact.id, "request_id": named, "_links": links})
    return Reply(200, collection(caller, "contacts", "contacts", made))


def _link(caller: Caller) -> Reply:
    if caller.request.headers.get("cookie"):
        raise Wrong(403, "Send no session cookies with this call")
    sandbox = caller.sandbox
    orders = few(caller.read(list[NewLink]), PARTS_MAX)
    bad = []
    for index, order in enumerate(orders):
        named = request_id(index, order.request_id)
        chat = sandbox.chat_state.chats.get(order.chat_id)
        if chat is None or sandbox.crm_rules.account(chat).amojo_id != caller.amojo_id:
            bad.append(BadPart("NotFound", "chat_id", "There is no such chat.", named))
        elif (channel := sandbox.crm_rules.channel(chat)) and channel.client not in ("", caller.client):
            raise Wrong(403, "The settings of the chat's channel name another integration")
        if _contact(caller, order.contact_id) is None:
            bad.append(BadPart("NotFound", "contact_id", "There is no such contact.", named))
    if bad:
        raise Wrong(400, "Request validation failed", tuple(bad))
    made: list[dict[str, object]] = []
    for index, order in enumerate(orders):
        link = sandbox.crm_rules.link(sandbox.chat_state.chats[order.chat_id], order.contact_id)
        made.append(_shown_link(link) | {"request_id": request_id(index, order.request_id)})
    return Reply(200, {"_total_items": len(made), "_embedded": {"chats": made}})


def _links(caller: Caller) -> Reply:
    chats, contacts = caller.all("chat_id"), caller.all("contact_id")
    if not chats and not contacts:
        raise Wrong(
            400, "Name contact_id[] or chat_id[]", (BadPart("FieldMissing", "contact_id", "Or chat_id"),)
        )
    found = [
        _shown_link(one)
        for one in caller.sandbox.crm_state.links.of(caller.amojo_id)
        if one.id in chats or str(one.contact_id) in contacts
    ]
    if not found:
        return Reply(204)
    return Reply(200, {"_total_items": len(found), "_embedded": {"chats": found}})


def _shown_link(link: Link) -> dict[str, object]:
    return {"chat_id": link.id, "contact_id": link.contact_id, "id": link.number}


def _contact(caller: Caller, contact_id: int) -> Contact | None:
    found = caller.sandbox.crm_state.contacts.get(contact_id)
    return found if found is not None and found.account == caller.amojo_id else None


def _shown(caller: Caller, contact: Contact) -> dict[str, object]:
    values = list(contact.fields)
    for code, value in (("PHONE", contact.phone), ("EMAIL", contact.email)):
        if value:
            values.append({"field_code": code, "values": [{"value": value, "enum_code": "WORK"}]})
    return {
        "id": contact.id,
        "name": contact.name,
        "first_name": contact.first_name,
        "last_name": contact.last_name,
        "created_at": contact.created_at,
        "updated_at": contact.updated_at,
        "custom_fields_values": values or None,
        "account_id": caller.account.id,
        "_links": caller.link(f"contacts/{contact.id}"),
    }
