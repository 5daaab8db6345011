"""A call of an account's CRM for a caller of ours: Kommo's content passes as it is, its refusals as errors.

What Kommo finds wrong with the request has Kommo's own words and is the caller's fault; what Kommo finds
wrong with us or with the account is KommoFailed or StateConflict; what passes by itself is NotYet.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import TypeVar, cast

import msgspec
from msgspec import Struct

from app.config.file import Uuid
from app.http_client import Answer, Unreached
from app.kommo.crm.account import PATH, QUERY, Described, described
from app.kommo.crm.addresses import new_nonce
from app.kommo.crm.client import BudgetExhausted, NotAuthorized
from app.kommo.crm.tokens import AppUnusable
from app.kommo.crm.users import PAGE, PAGES_MAX, User
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.operations.errors import (
    InvalidInput,
    KommoFailed,
    LedgerBusy,
    NotFound,
    NotPossible,
    NotYet,
    OperationError,
    StateConflict,
)
from app.operations.services import Services
from app.printable import printable
from app.vault import WrongMasterKey

FAULTS_MAX = 50  # Chosen: nobody reads more, and the answer stays small.
WAIT_SECONDS = 5  # Chosen: the budget gives no place within 5 s either.
CALLERS_FAULT: dict[int, type[OperationError]] = {400: InvalidInput, 404: NotFound, 422: NotPossible}
HINTS = {
    401: "consent anew with POST /v1/accounts/{account_id}/authorize",
    402: "the account's plan in Kommo does not cover this",
    403: "the integration, or who consented, lacks the right: consent anew as an administrator",
}
NO_URL = "Kommo does not know where to call: set CHATLEDGER_PUBLIC_URL to the address it reaches us at"
EVENTS = ("add_talk", "update_talk", "add_message", "add_chat_template_review")
log = logging.getLogger("chatledger.crmhooks")
LEAD_EVENTS = ("add_unsorted", "update_unsorted", "delete_unsorted")
Shape = TypeVar("Shape", bound=Struct)


def known_account(account_id: str) -> str:
    """An amojo id in lower case, as Kommo writes it; raises InvalidInput if it is none."""
    try:
        return msgspec.convert(account_id, Uuid).lower()
    except msgspec.ValidationError:
        raise InvalidInput("account_id: give the account's amojo id, a UUID") from None


async def call(
    services: Services,
    account_id: str,
    method: str,
    path: str,
    payload: object = None,
    query: Mapping[str, str] | None = None,
) -> Answer:
    """Kommo's answer, if it is a success; `path` follows `/api/v4/`. Raises an OperationError."""
    account = known_account(account_id)
    try:
        answer = await services.crm.call(account, method, f"/api/v4/{path}", payload, query)
    except NotAuthorized as error:
        raise StateConflict(str(error), text=error.answer) from None
    except WrongMasterKey as error:
        raise StateConflict(str(error)) from None
    except (LedgerFull, LedgerUnavailable):  # The ledger must record a consent that is withdrawn.
        raise LedgerBusy("ask again") from None
    except BudgetExhausted as error:
        raise NotYet(f"{error.reason}: ask again later", WAIT_SECONDS) from None
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason}): ask again") from None
    if answer.html or answer.status == 429:
        wait = int(answer.retry_after) or WAIT_SECONDS
        raise NotYet(f"Kommo asks account {account} to wait: ask again later", wait)
    if not 200 <= answer.status < 300:
        raise _refusal(answer)
    return answer


async def ask_account(services: Services, account: str) -> Described | None:
    """Ask Kommo about an account; None if it refuses our tokens, so that we are no longer let in.

    Raises KommoFailed if that stays open, LedgerBusy, NotYet.
    """
    try:
        answer = await services.crm.call(account, "GET", PATH, query=QUERY)
    except AppUnusable as error:
        raise KommoFailed(str(error), text=error.answer) from None
    except WrongMasterKey as error:
        raise KommoFailed(str(error)) from None
    except NotAuthorized:
        return None
    except (LedgerFull, LedgerUnavailable):
        raise LedgerBusy("call again") from None
    except BudgetExhausted as error:
        raise NotYet(f"{error.reason}: call again", WAIT_SECONDS) from None
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason}); nothing is ended") from None
    found = None if answer.html or not 200 <= answer.status < 300 else described(answer)
    if found is None:
        hint = f": {HINTS[402]}" if answer.status == 402 else ""
        message = f"Kommo answered HTTP {answer.status} to our token{hint}; nothing is ended"
        raise KommoFailed(message, answer)
    return found


def content(answer: Answer, shape: type[Shape]) -> Shape:
    """An object from Kommo, with every field as it came, also those that `shape` lacks.

    Raises NotFound if Kommo has none (204), and KommoFailed if the object does not fit.
    """
    if answer.status == 204:
        raise NotFound("Kommo has nothing with this id, or no more")
    return _fitting(answer.json(), shape)


def contents(answer: Answer, name: str, shape: type[Shape]) -> list[Shape]:
    """The embedded objects of one kind in an answer, likewise; none if Kommo has none (204)."""
    embedded = answer.json().get("_embedded")
    found = embedded.get(name) if isinstance(embedded, dict) else None
    return [_fitting(each, shape) for each in found or ()] if isinstance(found, list) else []


async def list_users(services: Services, account_id: str) -> list[User]:
    """All users of an account, page after page. Raises an OperationError."""
    found: list[User] = []
    for page in range(1, PAGES_MAX + 1):
        query = {"with": "amojo_id", "page": str(page), "limit": str(PAGE)}
        more = contents(await call(services, account_id, "GET", "users", query=query), "users", User)
        found += more
        if len(more) < PAGE:
            break
    return found


async def subscribe(services: Services, account_id: str) -> Answer:
    """Subscribe to the CRM's webhooks; the same again changes nothing. Raises an OperationError."""
    account = known_account(account_id)
    return await _subscribe(services, account, await services.addresses.path(account))


async def renew_address(services: Services, account_id: str) -> Answer:
    """Give an account's webhooks another secret address; the old one is refused from then on.

    Subscribes at the new one first, so that Kommo repeats what comes in between. Raises an OperationError.
    """
    account = known_account(account_id)
    old, nonce = await services.addresses.path(account), new_nonce()
    answer = await _subscribe(services, account, await services.addresses.path_of(account, nonce))
    await services.addresses.renew(account, nonce)
    try:
        await call(services, account, "DELETE", "webhooks", {"destination": _destination(services, old)})
    except OperationError as error:
        log.warning("account %s: Kommo still calls the old address, which is refused: %s", account, error)
    return answer


async def _subscribe(services: Services, account: str, path: str) -> Answer:
    destination = _destination(services, path)
    body = {"destination": destination, "settings": [*EVENTS, *LEAD_EVENTS]}
    try:
        return await call(services, account, "POST", "webhooks", body)
    except (InvalidInput, NotPossible):
        # Kommo does not document the names of the leads' events: without them, if it does not know them.
        return await call(services, account, "POST", "webhooks", body | {"settings": [*EVENTS]})


def _destination(services: Services, path: str) -> str:
    if services.settings.public_url is None:
        raise StateConflict(NO_URL)
    return services.settings.public_url.rstrip("/") + path


def _fitting(value: object, shape: type[Shape]) -> Shape:
    """The value itself, once it fits: the caller gets the fields that Kommo adds."""
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise KommoFailed(f"Kommo's answer is not as documented ({error}): look at it there") from None
    return cast("Shape", value)


def _refusal(answer: Answer) -> OperationError:
    body = answer.json()
    reason = body.get("detail") or body.get("hint") or body.get("title") or answer.text
    faults = list(_faults(body))[:FAULTS_MAX]
    text = str(reason or "no reason given")
    if faults:
        text = f"{text} ({'; '.join(f'{path}: {fault}' for path, fault in faults)})"
    message = f"Kommo answered HTTP {answer.status}"
    if kind := CALLERS_FAULT.get(answer.status):
        return kind(message, faults=faults, text=text)
    return KommoFailed(f"{message}: {HINTS.get(answer.status, 'ask again later')}", answer, text=text)


def _faults(body: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Kommo's `validation-errors`, each by the part of the request that it is about."""
    parts = body.get("validation-errors")
    for part in parts if isinstance(parts, list) else ():
        errors = part.get("errors") if isinstance(part, dict) else None
        for error in errors if isinstance(errors, list) else ():
            if isinstance(error, dict):
                path = f"{part.get('request_id', 0)}.{error.get('path', '')}"
                fault = f"{error.get('detail') or error.get('code') or 'does not fit'}"
                yield printable(path), printable(fault)
