"""Where an account's CRM tells what happens in it: to a path of ours that nobody can guess."""

from litestar import get, post
from litestar.params import FromPath
from msgspec import Struct

from app.http.api.kommo_answers import ask, known_account, listed, told
from app.http.api.parameters import REFUSALS
from app.http.openapi.responses import answers
from app.kommo.crm.hooks import hook_path
from app.operations.services import Call, services_of
from app.problems import ProblemError

NO_URL = "Kommo does not know where to call: set CHATLEDGER_PUBLIC_URL to the address it reaches us at"
SETTINGS = ("add_talk", "update_talk", "add_message", "add_chat_template_review")
LEAD_SETTINGS = ("add_unsorted", "update_unsorted", "delete_unsorted")


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
    answer = await ask(services_of(request), account_id, "GET", "webhooks")
    return WebhooksShown(listed(answer, "webhooks", WebhookShown))


@post(
    "/accounts/{account_id:str}/webhooks",
    status_code=201,
    summary="Subscribe to CRM webhooks",
    tags=["accounts"],
    opt={"writes": False},
    responses=answers(404, 422, 502, said={409: NO_URL}),
)
async def subscribe(request: Call, account_id: FromPath[str]) -> WebhookShown:
    """Talks, messages, template reviews and incoming leads are told to us; the same again changes nothing."""
    services, account = services_of(request), known_account(account_id)
    if services.settings.public_url is None:
        raise ProblemError(409, NO_URL)
    destination = services.settings.public_url.rstrip("/") + hook_path(services.keys.master, account)
    order = {"destination": destination, "settings": [*SETTINGS, *LEAD_SETTINGS]}
    try:
        answer = await ask(services, account, "POST", "webhooks", order)
    except ProblemError as wrong:
        if wrong.status not in (400, 422):
            raise
        # The names of the incoming leads' events are not documented: without them, if they are not known.
        answer = await ask(services, account, "POST", "webhooks", order | {"settings": [*SETTINGS]})
    return told(answer, WebhookShown)


routes = [webhooks, subscribe]
