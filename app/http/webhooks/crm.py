"""What Kommo's CRM says of an account: talks, incoming leads and templates' reviews become events; what we
know already does not.

Source: Kommo's CRM webhooks, a form with bracket keys whose values are all texts. They are not signed: the
path has a key that nobody can guess. Kommo waits 2 s, sends again up to four times what was not answered with
a success, and stops for good after a hundred failures in two hours. So a hook that we cannot read is kept
and taken: sent again it would be the same, and in the end it would cost us those we can read.
"""

import asyncio
import hmac
import time
from typing import Any, cast

import psycopg
from litestar import Response, post
from litestar.params import FromPath

from app import metrics
from app.database.pool import ViewsMissing
from app.http.openapi.responses import answers, takes
from app.http.request import Call, services_of
from app.http.webhooks.body import BUSY, RETRY_AFTER_SECONDS, HangUp, Receive, read
from app.kommo import refused
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.operations import hooks
from app.operations.services import Services
from app.problems import ProblemError
from app.vault import WrongMasterKey

ANSWER_SECONDS = 1.5
UNKNOWN = "there is no webhook at this path: subscribe with POST /v1/accounts/{account_id}/webhooks"
UNREADABLE = "unreadable"

EXAMPLES = {
    "talk": {
        "account[id]": "29081",
        "talk[update][0][talk_id]": "1170",
        "talk[update][0][updated_at]": "1795334401",
        "talk[update][0][contact_id]": "4215",
        "talk[update][0][chat_id]": "c-1",
        "talk[update][0][entity_id]": "77",
        "talk[update][0][entity_type]": "lead",
        "talk[update][0][is_in_work]": "1",
    },
    "lead": {
        "unsorted[delete][0][uid]": "u-1",
        "unsorted[delete][0][action]": "accept",
        "unsorted[delete][0][accept_result][leads][0]": "77",
    },
    "review": {
        "add[0][id]": "5",
        "add[0][type]": "waba",
        "add[0][reviews][0][id]": "9",
        "add[0][reviews][0][source_id]": "11",
        "add[0][reviews][0][status]": "review",
    },
}


@post(
    "/crm/{account_id:str}/{key:str}",
    status_code=200,
    summary="A webhook of Kommo's CRM",
    tags=["webhooks"],
    responses=answers(415, 503, said={404: UNKNOWN}),
    opt=takes(dict[str, str], "application/x-www-form-urlencoded", **EXAMPLES) | {"writes": False},
)
async def crm_hook(request: Call, account_id: FromPath[str], key: FromPath[str]) -> Response[bytes]:
    """A form about talks, incoming leads, templates or messages: 200 once it is durable, repeats too."""
    begin, status = time.perf_counter(), 500
    try:
        await _answered(request, account_id, key)
        status = 200
    except ProblemError as wrong:
        status = wrong.status
        raise
    finally:
        metrics.WEBHOOKS.answered("crm", status, time.perf_counter() - begin)
    return Response(b"", status_code=200)


async def _answered(request: Call, account_id: str, key: str) -> None:
    services = services_of(request)
    try:
        right = await services.addresses.path(account_id)
    except (WrongMasterKey, psycopg.Error, ViewsMissing):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None
    if not hmac.compare_digest(f"/crm/{account_id}/{key}".encode(), right.encode()):
        raise ProblemError(404, UNKNOWN)
    try:
        body = await read(dict(request.scope["headers"]), cast("Receive", request.receive))
        async with asyncio.timeout(ANSWER_SECONDS):
            await take(services, account_id, body)
    except HangUp:
        raise ProblemError(400, "the body is not complete: send it again") from None
    except (TimeoutError, psycopg.OperationalError, ViewsMissing, LedgerFull, LedgerUnavailable):
        raise ProblemError(503, BUSY, retry_after=RETRY_AFTER_SECONDS) from None


async def take(services: Services, account: str, body: bytes) -> None:
    """Record the facts of a webhook, and keep it if anything of it is left out; durable then.

    Raises LedgerFull, LedgerUnavailable, ViewsMissing and psycopg.OperationalError.
    """
    _, unread = await hooks.take_crm(services, account, body)
    if unread:
        scope_id = f"{hooks.CRM}{account}"
        await refused.keep(services.pool, scope_id, unread, body, why=UNREADABLE, what="a CRM webhook")


routes: list[Any] = [crm_hook]
