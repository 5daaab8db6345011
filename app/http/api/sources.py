"""Sources of an account: the entry points under which Kommo shows where a chat came from."""

from typing import Annotated, Literal

from litestar import delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct

from app.http.api.parameters import AT_ONCE, NOT_TO_LEDGER, REFUSALS, Link, Name, Number
from app.http.request import Call, services_of
from app.operations import crm
from app.problems import ProblemError
from domain.events import Json

ExternalId = Annotated[str, Meta(pattern=r"^[ -~]{1,36}$(?!\n)")]
SOURCES = "/accounts/{account_id:str}/sources"
SOURCE = SOURCES + "/{source_id:int}"


class ServiceParams(Struct, frozen=True, omit_defaults=True):
    """What a source's WhatsApp can do."""

    waba: bool | None = None
    is_supports_list_message: bool | None = None


class ServicePage(Struct, frozen=True):
    """An account of the messenger that the source stands for."""

    id: Name
    name: Name
    link: Link


class SourceService(Struct, frozen=True, omit_defaults=True):
    """The messenger behind a source, for Kommo's button on web pages."""

    type: Literal["whatsapp"]
    params: ServiceParams | None = None
    pages: tuple[ServicePage, ...] | None = None


class NewSource(Struct, frozen=True, omit_defaults=True):
    """A source. `external_id` (1 to 36 printable ASCII characters) is what messages name it by, for ever."""

    name: Name
    external_id: ExternalId
    pipeline_id: Number | None = None
    default: bool | None = None
    origin_code: Name | None = None
    services: tuple[SourceService, ...] | None = None
    request_id: Name | None = None


class SourceChange(Struct, frozen=True, omit_defaults=True):
    """What to change of the source with this id; what is left out stays."""

    id: Number
    name: Name | None = None
    pipeline_id: Number | None = None
    default: bool | None = None
    origin_code: Name | None = None
    services: tuple[SourceService, ...] | None = None
    request_id: Name | None = None


class NewSources(Struct, frozen=True):
    """1 to 50 sources; at most one is the default."""

    items: Annotated[list[NewSource], Meta(min_length=1, max_length=AT_ONCE)]


class SourceChanges(Struct, frozen=True):
    """1 to 50 changes."""

    items: Annotated[list[SourceChange], Meta(min_length=1, max_length=AT_ONCE)]


class SourceShown(Struct, frozen=True):
    """A source as Kommo has it. Kommo may add fields."""

    id: int
    name: str | None = None
    external_id: str | None = None
    pipeline_id: int | None = None
    default: bool | None = None
    origin_code: str | None = None
    services: list[Json] | None = None
    request_id: str | int | None = None


class SourcesShown(Struct, frozen=True):
    """Sources of our integration."""

    items: list[SourceShown]


@get(SOURCES, summary="Sources", tags=["sources"], responses=REFUSALS)
async def sources(
    request: Call, account_id: FromPath[str], external_id: FromQuery[str | None] = None
) -> SourcesShown:
    """All of our integration, or the one that messages name so."""
    query = {"filter[external_id]": external_id} if external_id else None
    answer = await crm.call(services_of(request), account_id, "GET", "sources", query=query)
    return SourcesShown(crm.contents(answer, "sources", SourceShown))


@get(SOURCE, summary="A source", tags=["sources"], responses=REFUSALS)
async def source(request: Call, account_id: FromPath[str], source_id: FromPath[int]) -> SourceShown:
    """As Kommo has it."""
    answer = await crm.call(services_of(request), account_id, "GET", f"sources/{source_id}")
    return crm.content(answer, SourceShown)


@post(
    SOURCES,
    opt=NOT_TO_LEDGER,
    status_code=201,
    summary="Create sources",
    tags=["sources"],
    responses=REFUSALS,
)
async def create_sources(
    request: Call, account_id: FromPath[str], data: JSONBody[NewSources]
) -> SourcesShown:
    """With the ids that Kommo gave them."""
    _one_default(data.items)
    answer = await crm.call(services_of(request), account_id, "POST", "sources", data.items)
    return SourcesShown(crm.contents(answer, "sources", SourceShown))


@patch(SOURCES, opt=NOT_TO_LEDGER, summary="Change sources", tags=["sources"], responses=REFUSALS)
async def change_sources(
    request: Call, account_id: FromPath[str], data: JSONBody[SourceChanges]
) -> SourcesShown:
    """As they are then."""
    _one_default(data.items)
    answer = await crm.call(services_of(request), account_id, "PATCH", "sources", data.items)
    return SourcesShown(crm.contents(answer, "sources", SourceShown))


@delete(SOURCE, opt=NOT_TO_LEDGER, summary="Delete a source", tags=["sources"], responses=REFUSALS)
async def delete_source(request: Call, account_id: FromPath[str], source_id: FromPath[int]) -> None:
    """Messages that name it go to the default source from then on."""
    await crm.call(services_of(request), account_id, "DELETE", f"sources/{source_id}")


def _one_default(items: list[NewSource] | list[SourceChange]) -> None:
    if sum(bool(each.default) for each in items) > 1:
        raise ProblemError(400, "$.items: only one source can be the default")


routes: list[HTTPRouteHandler] = [sources, source, create_sources, change_sources, delete_source]
