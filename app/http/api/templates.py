"""Sources and chat templates of an account: what Kommo would refuse for its form never reaches it."""

from typing import Annotated, Literal

from litestar import delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct, field

from app.http.api.parameters import AT_ONCE, NOT_TO_LEDGER, REFUSALS, Link, Name, Number
from app.http.request import Call, services_of
from app.operations import crm
from domain.events import Json

Text = Annotated[str, Meta(min_length=1, max_length=65_535)]
Page = Annotated[int, QueryParameter(ge=1, le=10_000, description="which page")]
Limit = Annotated[int, QueryParameter(ge=1, le=50, description="how many at most")]


class Button(Struct, frozen=True, omit_defaults=True):
    """A button under a template; `url` for those of that type."""

    type: Literal["inline", "url"]
    text: Name
    url: Link | None = None


class Attachment(Struct, frozen=True, omit_defaults=True):
    """A file of the account's Files API."""

    id: Name
    name: Name
    type: Literal["picture", "file", "document", "video"]
    is_external: bool | None = None


class TemplateFields(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a template may have beside its name and content; the `waba_…` are WhatsApp's."""

    is_editable: bool | None = None
    type: Literal["amocrm", "waba"] | None = None
    buttons: tuple[Button, ...] | None = None
    attachment: Attachment | None = None
    external_id: Name | None = None
    request_id: Name | None = None
    waba_footer: Text | None = None
    waba_category: Literal["UTILITY", "AUTHENTICATION", "MARKETING"] | None = None
    waba_language: Name | None = None
    waba_examples: dict[str, str] | None = None
    waba_header: Annotated[str, Meta(max_length=60)] | None = None
    waba_header_type: Literal["text", "media"] | None = None


class NewTemplate(TemplateFields, frozen=True, omit_defaults=True, kw_only=True):
    """A chat template; `content` may hold the Salesbot's markers, such as `{{lead.name}}`."""

    name: Name
    content: Text


class TemplateChange(TemplateFields, frozen=True, omit_defaults=True, kw_only=True):
    """What to change of the template with this id; WhatsApp's only while it is a draft."""

    id: Number
    name: Name | None = None
    content: Text | None = None


class NewTemplates(Struct, frozen=True):
    """1 to 50 templates."""

    items: Annotated[list[NewTemplate], Meta(min_length=1, max_length=AT_ONCE)]


class TemplateChanges(Struct, frozen=True):
    """1 to 50 changes."""

    items: Annotated[list[TemplateChange], Meta(min_length=1, max_length=AT_ONCE)]


class ReviewShown(Struct, frozen=True):
    """How a template stands with the WhatsApp of a source."""

    id: int
    source_id: int | None = None
    status: str | None = None
    reject_reason: str | None = None


class ReviewsShown(Struct, frozen=True):
    """One for each source of WhatsApp."""

    items: list[ReviewShown]


class Embedded(Struct, frozen=True):
    """What comes with a template."""

    reviews: list[ReviewShown] | None = None


class TemplateShown(Struct, frozen=True):
    """A template as Kommo has it; times are unix seconds. Kommo may add fields.

    Its reviews are in `_embedded`, where it is read; the `waba_…` are WhatsApp's, null for other templates.
    """

    id: int
    account_id: int | None = None
    name: str | None = None
    content: str | None = None
    type: str | None = None
    is_editable: bool | None = None
    external_id: str | None = None
    created_at: int | None = None
    updated_at: int | None = None
    review_status: str | None = None
    is_on_review: bool | None = None
    buttons: list[Json] | None = None
    attachment: Json | None = None
    request_id: str | int | None = None
    waba_footer: str | None = None
    waba_category: str | None = None
    waba_language: str | None = None
    waba_examples: Json | list[Json] | None = None
    waba_header: str | None = None
    waba_header_type: str | None = None
    embedded: Embedded | None = field(default=None, name="_embedded")


class TemplatesShown(Struct, frozen=True):
    """Templates that our integration made."""

    items: list[TemplateShown]


class ReviewVerdict(Struct, frozen=True, omit_defaults=True):
    """What WhatsApp said; `reject_reason` is shown to the managers."""

    status: Literal["approved", "paused", "rejected"]
    reject_reason: Annotated[str, Meta(max_length=65_535)] | None = None


TEMPLATES = "/accounts/{account_id:str}/templates"
TEMPLATE = TEMPLATES + "/{template_id:int}"


@get(TEMPLATES, summary="Chat templates", tags=["templates"], responses=REFUSALS)
async def templates(
    request: Call,
    account_id: FromPath[str],
    external_id: FromQuery[str | None] = None,
    page: Page = 1,
    limit: Limit = 50,
) -> TemplatesShown:
    """A page of those that our integration made, with their reviews."""
    query = {"with": "reviews", "page": str(page), "limit": str(limit)}
    query |= {"filter[external_id]": external_id} if external_id else {}
    answer = await crm.call(services_of(request), account_id, "GET", "chats/templates", query=query)
    return TemplatesShown(crm.contents(answer, "chat_templates", TemplateShown))


@get(TEMPLATE, summary="A chat template", tags=["templates"], responses=REFUSALS)
async def template(request: Call, account_id: FromPath[str], template_id: FromPath[int]) -> TemplateShown:
    """With its reviews."""
    path = f"chats/templates/{template_id}"
    answer = await crm.call(services_of(request), account_id, "GET", path, query={"with": "reviews"})
    return crm.content(answer, TemplateShown)


@post(
    TEMPLATES,
    opt=NOT_TO_LEDGER,
    status_code=201,
    summary="Create chat templates",
    tags=["templates"],
    responses=REFUSALS,
)
async def create_templates(
    request: Call, account_id: FromPath[str], data: JSONBody[NewTemplates]
) -> TemplatesShown:
    """With the ids that Kommo gave them; 422 if the account has too many."""
    answer = await crm.call(services_of(request), account_id, "POST", "chats/templates", data.items)
    return TemplatesShown(crm.contents(answer, "chat_templates", TemplateShown))


@patch(TEMPLATES, opt=NOT_TO_LEDGER, summary="Change chat templates", tags=["templates"], responses=REFUSALS)
async def change_templates(
    request: Call, account_id: FromPath[str], data: JSONBody[TemplateChanges]
) -> TemplatesShown:
    """As they are then."""
    answer = await crm.call(services_of(request), account_id, "PATCH", "chats/templates", data.items)
    return TemplatesShown(crm.contents(answer, "chat_templates", TemplateShown))


@delete(TEMPLATE, opt=NOT_TO_LEDGER, summary="Delete a chat template", tags=["templates"], responses=REFUSALS)
async def delete_template(request: Call, account_id: FromPath[str], template_id: FromPath[int]) -> None:
    """It can be sent no more."""
    await crm.call(services_of(request), account_id, "DELETE", f"chats/templates/{template_id}")


@post(
    TEMPLATE + "/review",
    opt=NOT_TO_LEDGER,
    status_code=200,
    summary="Send a template to review",
    tags=["templates"],
    responses=REFUSALS,
)
async def review(request: Call, account_id: FromPath[str], template_id: FromPath[int]) -> ReviewsShown:
    """One review for each source of WhatsApp; Kommo's webhook asks us to hand it in there."""
    path = f"chats/templates/{template_id}/review"
    answer = await crm.call(services_of(request), account_id, "POST", path, {})
    return ReviewsShown(crm.contents(answer, "reviews", ReviewShown))


@post(
    TEMPLATE + "/review/{review_id:int}",
    opt=NOT_TO_LEDGER,
    status_code=200,
    summary="Say how a review ended",
    tags=["templates"],
    responses=REFUSALS,
)
async def review_status(
    request: Call,
    account_id: FromPath[str],
    template_id: FromPath[int],
    review_id: FromPath[int],
    data: JSONBody[ReviewVerdict],
) -> ReviewShown:
    """The review as it is then."""
    path = f"chats/templates/{template_id}/review/{review_id}"
    answer = await crm.call(services_of(request), account_id, "POST", path, data)
    return crm.content(answer, ReviewShown)


routes: list[HTTPRouteHandler] = [
    templates,
    template,
    create_templates,
    change_templates,
    delete_template,
    review,
    review_status,
]
