"""Chat templates (§4.3): an integration's own; WhatsApp's can be changed only while drafts."""

import time
from typing import Annotated, Literal

from litestar import Response, delete, get, patch, post
from litestar.params import FromPath
from msgspec import UNSET, Meta, Struct, UnsetType, to_builtins

from ops.sandbox.api.crm import BadPart, Caller, Reply, Wrong, answer, collection, few, page_of, request_id
from ops.sandbox.api.reviews import hook_fields, review_status, shown_review
from ops.sandbox.responses import Call
from ops.sandbox.state.crm import Template

PATH = "/api/v4/chats/templates"
PARTS_MAX = 50
TEMPLATES_MAX = 200
Text = Annotated[str, Meta(min_length=1, max_length=255)]
Content = Annotated[str, Meta(min_length=1, max_length=65_535)]
RequestId = str | int | UnsetType


class Button(Struct, omit_defaults=True):
    type: Literal["inline", "url"]
    text: Text
    url: Annotated[str, Meta(pattern=r"^https?://")] | UnsetType = UNSET


class Attachment(Struct):
    """`id` is the file's in the Files API."""

    id: Text
    name: str
    type: Literal["picture", "file", "document", "video"]
    is_external: bool = False


class Fields(Struct, kw_only=True):
    """The fields that a template may have; none is required here."""

    name: Text | UnsetType = UNSET
    content: Content | UnsetType = UNSET
    is_editable: bool | UnsetType = UNSET
    type: Literal["amocrm", "waba"] | UnsetType = UNSET
    buttons: list[Button] | UnsetType = UNSET
    attachment: Attachment | UnsetType | None = UNSET
    external_id: Text | UnsetType = UNSET
    waba_footer: Annotated[str, Meta(max_length=60)] | UnsetType | None = UNSET
    waba_category: Literal["UTILITY", "AUTHENTICATION", "MARKETING"] | UnsetType | None = UNSET
    waba_language: str | UnsetType | None = UNSET
    waba_examples: dict[str, str] | UnsetType | None = UNSET
    waba_header: Annotated[str, Meta(max_length=60)] | UnsetType | None = UNSET
    waba_header_type: Literal["text", "media"] | UnsetType | None = UNSET
    request_id: RequestId = UNSET

    def told(self) -> dict[str, object]:
        """The fields that were given."""
        told: dict[str, object] = to_builtins(self)
        return {name: value for name, value in told.items() if name not in ("request_id", "id")}


class NewTemplate(Fields, kw_only=True):
    name: Text
    content: Content


class ChangeOf(Fields, kw_only=True):
    id: int


class Named(Struct):
    id: int


@get(PATH)
async def list_templates(request: Call) -> Response[bytes]:
    """The integration's templates; 204 without any."""

    def work(caller: Caller) -> Reply:
        wanted = caller.all("filter")
        found = [one for one in own(caller) if not wanted or str(one.told.get("external_id", "")) in wanted]
        told = [shown(caller, one) for one in found]
        return page_of(caller, "chats/templates", "chat_templates", told, PARTS_MAX)

    return await answer(request, "templates", work)


@get(PATH + "/{template_id:int}")
async def read_template(request: Call, template_id: FromPath[int]) -> Response[bytes]:
    """One template; 204 when there is none."""

    def work(caller: Caller) -> Reply:
        found = [one for one in own(caller) if one.id == template_id]
        return Reply(200, shown(caller, found[0])) if found else Reply(204)

    return await answer(request, "templates", work)


@post(PATH, status_code=200)
async def create_templates(request: Call) -> Response[bytes]:
    """New templates, all or none of them; 422 beyond the limit."""
    return await answer(request, "templates", _create)


@patch(PATH)
async def change_templates(request: Call) -> Response[bytes]:
    """Changed templates, all or none of them."""

    def work(caller: Caller) -> Reply:
        changed = _change(caller, [(one.id, one) for one in few(caller.read(list[ChangeOf]), PARTS_MAX)])
        return Reply(200, collection(caller, "chats/templates", "chat_templates", changed))

    return await answer(request, "templates", work)


@patch(PATH + "/{template_id:int}")
async def change_template(request: Call, template_id: FromPath[int]) -> Response[bytes]:
    """One changed template."""

    def work(caller: Caller) -> Reply:
        return Reply(200, _change(caller, [(template_id, caller.read(Fields))])[0])

    return await answer(request, "templates", work)


@delete(PATH, status_code=200)
async def delete_templates(request: Call) -> Response[bytes]:
    """Delete templates, all or none of them."""

    def work(caller: Caller) -> Reply:
        return _delete(caller, [one.id for one in few(caller.read(list[Named]), PARTS_MAX)])

    return await answer(request, "templates", work)


@delete(PATH + "/{template_id:int}", status_code=200)
async def delete_template(request: Call, template_id: FromPath[int]) -> Response[bytes]:
    """Delete one template."""
    return await answer(request, "templates", lambda caller: _delete(caller, [template_id]))


ROUTES = [
    list_templates,
    read_template,
    create_templates,
    change_templates,
    change_template,
    delete_templates,
    delete_template,
]


def own(caller: Caller) -> list[Template]:
    """The integration's templates in the account; it sees no others."""
    mine = caller.sandbox.crm_state.templates.of(caller.amojo_id)
    return [one for one in mine if one.client == caller.client]


def shown(caller: Caller, template: Template) -> dict[str, object]:
    """A template as the CRM shows it, its reviews if they are asked for."""
    told = {"account_id": caller.account.id, **hook_fields(template), "external_id": None, "attachment": None}
    told |= {"buttons": [], "waba_examples": None, "waba_header": None, "waba_header_type": None}
    told |= template.told
    told["_links"] = caller.link(f"chats/templates/{template.id}")
    del told["reviews"]
    if "reviews" in caller.request.query_params.get("with", "").split(","):
        told["review_status"] = review_status(template)
        told["_embedded"] = {"reviews": [shown_review(one) for one in template.reviews]}
    return told


def _create(caller: Caller) -> Reply:
    orders = few(caller.read(list[NewTemplate]), PARTS_MAX)
    table, now = caller.sandbox.crm_state.templates, int(time.time())
    _check([(request_id(index, one.request_id), one) for index, one in enumerate(orders)])
    if len(own(caller)) + len(orders) > TEMPLATES_MAX:
        raise Wrong(422, f"An integration has at most {TEMPLATES_MAX} templates: delete some first")
    made = []
    for index, order in enumerate(orders):
        template = Template(
            id=table.next(),
            account=caller.amojo_id,
            client=caller.client,
            told={"type": "amocrm", "is_editable": False} | order.told(),
            created_at=now,
            updated_at=now,
        )
        table.save(template)
        made.append(shown(caller, template) | {"request_id": request_id(index, order.request_id)})
    return Reply(200, collection(caller, "chats/templates", "chat_templates", made))


def _change(
    caller: Caller, orders: "list[tuple[int, ChangeOf]] | list[tuple[int, Fields]]"
) -> list[dict[str, object]]:
    known = {one.id: one for one in own(caller)}
    bad = []
    for index, (id, order) in enumerate(orders):
        named, template = request_id(index, order.request_id), known.get(id)
        if template is None:
            bad.append(BadPart("EntityNotFound", "id", "There is no such template.", named))
        elif template.told["type"] == "waba" and review_status(template) != "draft":
            bad.append(BadPart("NotSupportedChoice", "id", "It is a draft no more.", named))
    if bad:
        raise Wrong(400, "Request validation failed", tuple(bad))
    _check([(request_id(index, order.request_id), order) for index, (_, order) in enumerate(orders)])
    changed = []
    for index, (id, order) in enumerate(orders):
        template = known[id]
        template.told |= order.told()
        template.updated_at = int(time.time())
        caller.sandbox.crm_state.templates.save(template)
        changed.append(shown(caller, template) | {"request_id": request_id(index, order.request_id)})
    return changed


def _check(orders: list[tuple[str, Fields]]) -> None:
    told = "A url button needs a url."
    bad = [
        BadPart("FieldMissing", "buttons.url", told, named)
        for named, order in orders
        for one in (order.buttons if isinstance(order.buttons, list) else [])
        if one.type == "url" and one.url is UNSET
    ]
    if bad:
        raise Wrong(400, "Request validation failed", tuple(bad))


def _delete(caller: Caller, ids: list[int]) -> Reply:
    known = {one.id: one for one in own(caller)}
    bad = [
        BadPart("EntityNotFound", "id", "There is no such template.", str(index))
        for index, id in enumerate(ids)
        if id not in known
    ]
    if bad:
        raise Wrong(400, "Request validation failed", tuple(bad))
    for id in ids:
        caller.sandbox.crm_state.templates.delete(known[id])
    return Reply(204)
