"""Sources (§4.2): at most 100, one of them the default, each with an external id that stays."""

from typing import Annotated, Literal

from litestar import Response, delete, get, patch, post
from litestar.params import FromPath
from msgspec import UNSET, Meta, Struct, UnsetType, to_builtins

from ops.sandbox.api.crm import BadPart, Caller, Reply, Wrong, answer, collection, few, request_id
from ops.sandbox.responses import Call
from ops.sandbox.state.crm import Source

PATH = "/api/v4/sources"
ACTIVE_MAX = 100
PARTS_MAX = 50

External = Annotated[str, Meta(min_length=1, max_length=36, pattern=r"^[\x20-\x7e]+$")]
Text = Annotated[str, Meta(min_length=1, max_length=255)]
RequestId = str | int | UnsetType


class WhatsAppParams(Struct, omit_defaults=True):
    waba: bool = False
    is_supports_list_message: bool | UnsetType = UNSET


class ServicePage(Struct, omit_defaults=True):
    id: Text
    name: Text
    link: str


class Service(Struct, omit_defaults=True):
    type: Literal["whatsapp"]
    params: WhatsAppParams | UnsetType = UNSET
    pages: list[ServicePage] | UnsetType = UNSET


class NewSource(Struct, kw_only=True):
    name: Text
    external_id: External
    pipeline_id: int | UnsetType = UNSET
    default: bool = False
    origin_code: str | None = None
    services: list[Service] | UnsetType = UNSET
    request_id: RequestId = UNSET


class Change(Struct, kw_only=True):
    """The given fields are changed; an `external_id` must be the present one."""

    name: Text | UnsetType = UNSET
    external_id: str | UnsetType = UNSET
    pipeline_id: int | UnsetType = UNSET
    default: bool | UnsetType = UNSET
    origin_code: str | UnsetType | None = UNSET
    services: list[Service] | UnsetType = UNSET
    request_id: RequestId = UNSET


class ChangeOf(Change, kw_only=True):
    id: int


class Named(Struct):
    id: int


@get(PATH)
async def list_sources(request: Call) -> Response[bytes]:
    """The integration's own sources, or those with the external ids asked for; 204 without any."""

    def work(caller: Caller) -> Reply:
        wanted = [value for value in caller.all("filter") if value]
        found = [one for one in own(caller) if not wanted or one.external_id in wanted]
        if not found:
            return Reply(204)
        return Reply(200, collection(caller, "sources", "sources", [shown(caller, one) for one in found]))

    return await answer(request, "sources", work)


@get(PATH + "/{source_id:int}")
async def read_source(request: Call, source_id: FromPath[int]) -> Response[bytes]:
    """One source; 204 when there is none."""

    def work(caller: Caller) -> Reply:
        found = [one for one in own(caller) if one.id == source_id]
        return Reply(200, shown(caller, found[0])) if found else Reply(204)

    return await answer(request, "sources", work)


@post(PATH, status_code=200)
async def create_sources(request: Call) -> Response[bytes]:
    """New sources, all or none of them."""
    return await answer(request, "sources", _create)


@patch(PATH)
async def change_sources(request: Call) -> Response[bytes]:
    """Changed sources, all or none of them."""

    def work(caller: Caller) -> Reply:
        return _change(caller, [(one.id, one) for one in few(caller.read(list[ChangeOf]), PARTS_MAX)])

    return await answer(request, "sources", work)


@patch(PATH + "/{source_id:int}")
async def change_source(request: Call, source_id: FromPath[int]) -> Response[bytes]:
    """One changed source."""

    def work(caller: Caller) -> Reply:
        reply = _change(caller, [(source_id, caller.read(Change))])
        found = own_by_id(caller).get(source_id)
        return Reply(reply.status, shown(caller, found)) if found else reply

    return await answer(request, "sources", work)


@delete(PATH, status_code=200)
async def delete_sources(request: Call) -> Response[bytes]:
    """Delete sources; 404 names those that do not exist, and the others are deleted nevertheless."""

    def work(caller: Caller) -> Reply:
        return _delete(caller, [one.id for one in few(caller.read(list[Named]), PARTS_MAX)])

    return await answer(request, "sources", work)


@delete(PATH + "/{source_id:int}", status_code=200)
async def delete_source(request: Call, source_id: FromPath[int]) -> Response[bytes]:
    """Delete one source."""
    return await answer(request, "sources", lambda caller: _delete(caller, [source_id]))


ROUTES = [
    list_sources,
    read_source,
    create_sources,
    change_sources,
    change_source,
    delete_sources,
    delete_source,
]


def own(caller: Caller) -> list[Source]:
    """The integration's sources in the account."""
    return [
        one for one in caller.sandbox.crm_state.sources.of(caller.amojo_id) if one.client == caller.client
    ]


def own_by_id(caller: Caller) -> dict[int, Source]:
    """The same by id."""
    return {one.id: one for one in own(caller)}


def shown(caller: Caller, source: Source) -> dict[str, object]:
    """A source as the CRM shows it."""
    return {
        "id": source.id,
        "name": source.name,
        "pipeline_id": source.pipeline_id or None,
        "external_id": source.external_id,
        "services": source.services,
        "default": source.default,
        "origin_code": source.origin_code,
        "_links": caller.link(f"sources/{source.id}"),
    }


def _create(caller: Caller) -> Reply:
    orders = few(caller.read(list[NewSource]), PARTS_MAX)
    table = caller.sandbox.crm_state.sources
    taken = {one.external_id for one in own(caller)}
    bad = []
    for index, order in enumerate(orders):
        if order.external_id in taken:
            told = "A source with this external_id exists."
            bad.append(BadPart("NotUnique", "external_id", told, request_id(index, order.request_id)))
        taken.add(order.external_id)
    if bad:
        raise Wrong(400, "Request validation failed", tuple(bad))
    if len(taken) > ACTIVE_MAX:
        raise Wrong(400, f"An integration has at most {ACTIVE_MAX} sources: delete some first")
    made = []
    for index, order in enumerate(orders):
        source = Source(
            id=table.next(),
            account=caller.amojo_id,
            client=caller.client,
            name=order.name,
            external_id=order.external_id,
            pipeline_id=order.pipeline_id if isinstance(order.pipeline_id, int) else 0,
            default=order.default,
            origin_code=order.origin_code,
            services=_services(order.services),
        )
        table.save(source)
        if source.default:
            caller.sandbox.crm_rules.default(source)
        made.append((source, request_id(index, order.request_id)))
    told_ = [shown(caller, source) | {"request_id": named} for source, named in made]
    return Reply(200, collection(caller, "sources", "sources", told_))


def _change(caller: Caller, orders: "list[tuple[int, ChangeOf]] | list[tuple[int, Change]]") -> Reply:
    known = own_by_id(caller)
    bad = []
    for index, (id, order) in enumerate(orders):
        source, named = known.get(id), request_id(index, order.request_id)
        if source is None:
            bad.append(BadPart("EntityNotFound", "id", "There is no such source.", named))
        elif order.external_id not in (UNSET, source.external_id):
            bad.append(BadPart("Immutable", "external_id", "The external_id cannot be changed.", named))
    if bad:
        raise Wrong(400, "Request validation failed", tuple(bad))
    for id, order in orders:
        source = known[id]
        for name in ("name", "pipeline_id", "default", "origin_code"):
            if (value := getattr(order, name)) is not UNSET:
                setattr(source, name, value)
        if order.services is not UNSET:
            source.services = _services(order.services)
        caller.sandbox.crm_state.sources.save(source)
        if order.default is True:
            caller.sandbox.crm_rules.default(source)
    changed = [
        shown(caller, known[id]) | {"request_id": request_id(index, order.request_id)}
        for index, (id, order) in enumerate(orders)
    ]
    return Reply(200, collection(caller, "sources", "sources", changed))


def _delete(caller: Caller, ids: list[int]) -> Reply:
    known = own_by_id(caller)
    errors = []
    for index, id in enumerate(ids):
        if id in known:
            caller.sandbox.crm_state.sources.delete(known[id])
        else:
            part = {"code": "EntityNotFound", "path": "id", "detail": "There is no such source."}
            errors.append({"request_id": str(index), "errors": part})
    return Reply(404, {"errors": errors}) if errors else Reply(204)


def _services(services: list[Service] | UnsetType) -> list[dict[str, object]]:
    told: list[dict[str, object]] = [] if services is UNSET else to_builtins(services)
    return told
