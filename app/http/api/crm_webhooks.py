"""Where an account's CRM tells what happens in it: to a path of ours that nobody can guess."""

from litestar import get, post
from litestar.params import FromPath
from msgspec import Struct

from app.http.api.parameters import NOT_TO_LEDGER, REFUSALS
from app.http.openapi.responses import answers
from app.http.request import Call, services_of
from app.operations import crm


class WebhookShown(Struct, frozen=True):
    """A subscription of the account's; Kommo may add fields."""

    destination: str
    id: int | None = None
    settings: list[str] | None = None
    disabled: bool | None = None


class WebhooksShown(Struct, frozen=True):
    """The account's subscriptions, also those of other integrations."""

    items: list[WebhookShown]


@get("/accounts/{account_id:str}/webhooks", summary="CRM webhooks", tags=["accounts"], responses=REFUSALS)
async def webhooks(request: Call, account_id: FromPath[str]) -> WebhooksShown:
    """Where Kommo's CRM tells what happens in the account."""
    answer = await crm.call(services_of(request), account_id, "GET", "webhooks")
    return WebhooksShown(crm.contents(answer, "webhooks", WebhookShown))


@post(
    "/accounts/{account_id:str}/webhooks",
    status_code=201,
    summary="Subscribe to CRM webhooks",
    tags=["accounts"],
    opt=NOT_TO_LEDGER,
    responses=answers(404, 422, 502, said={409: crm.NO_URL}),
)
async def subscribe(request: Call, account_id: FromPath[str]) -> WebhookShown:
    """Talks, messages, template reviews and incoming leads are told to us; the same again changes nothing."""
    return crm.content(await crm.subscribe(services_of(request), account_id), WebhookShown)


@post(
    "/accounts/{account_id:str}/webhooks/renew",
    status_code=200,
    summary="Renew the address of CRM webhooks",
    tags=["accounts"],
    opt=NOT_TO_LEDGER,
    responses=answers(404, 422, 502, said={409: crm.NO_URL}),
)
async def renew(request: Call, account_id: FromPath[str]) -> WebhookShown:
    """Subscribe at another secret address, because the old one became known; that one is then refused."""
    return crm.content(await crm.renew_address(services_of(request), account_id), WebhookShown)


routes = [webhooks, subscribe, renew]
