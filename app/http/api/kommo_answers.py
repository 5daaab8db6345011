"""What an account's CRM answers, as our callers get it: its content as it is, its refusals as problems.

Whose fault it is decides the status: what Kommo finds wrong with the request is 400, 404 or 422 with Kommo's
own words, what it finds wrong with us or the account 409 or 502, what may pass 503.
"""

from collections.abc import Mapping
from typing import TypeVar, cast

import msgspec
from msgspec import Struct

from app.config.file import Uuid
from app.http_client import Answer, Unreached
from app.kommo.crm.client import NoPlace, NotAuthorized
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.operations.services import Services
from app.problems import Fault, ProblemError
from app.vault import WrongMasterKey

FAULTS_MAX = 50
WAIT_SECONDS = 5
PASSED_ON = frozenset({400, 404, 422})
HINTS = {
    401: "consent anew with POST /v1/accounts/{account_id}/authorize",
    402: "the account's plan in Kommo does not cover this",
    403: "the integration, or who consented, lacks the right: consent anew as an administrator",
}
Shape = TypeVar("Shape", bound=Struct)


def known_account(account_id: str) -> str:
    """An amojo id in lower case, as Kommo writes it; raises ProblemError (400) if it is none."""
    try:
        return msgspec.convert(account_id, Uuid).lower()
    except msgspec.ValidationError:
        raise ProblemError(400, "account_id: give the account's amojo id, a UUID") from None


async def ask(
    services: Services,
    account_id: str,
    method: str,
    path: str,
    payload: object = None,
    query: Mapping[str, str] | None = None,
) -> Answer:
    """Kommo's answer if it succeeded, else raises ProblemError with its words. `path` follows `/api/v4/`."""
    account = known_account(account_id)
    try:
        answer = await services.crm.call(account, method, f"/api/v4/{path}", payload, query)
    except (NotAuthorized, WrongMasterKey) as error:
        raise ProblemError(409, str(error)) from None
    except (LedgerFull, LedgerUnavailable):  # The ledger, which has to know of a consent that is withdrawn.
        raise ProblemError(503, "the ledger cannot take it now: ask again", retry_after=1) from None
    except NoPlace as error:
        raise ProblemError(503, f"{error.reason}: ask again later", retry_after=WAIT_SECONDS) from None
    except Unreached as error:
        raise ProblemError(502, f"Kommo could not be reached ({error.reason}): ask again") from None
    if answer.html or answer.status == 429:
        wait = int(answer.retry_after) or WAIT_SECONDS
        raise ProblemError(503, f"Kommo asks account {account} to wait: ask again later", retry_after=wait)
    if not 200 <= answer.status < 300:
        raise _refused(answer)
    return answer


def told(answer: Answer, shape: type[Shape]) -> Shape:
    """An object from Kommo with every field as it came, also those not in `shape`; raises ProblemError."""
    if answer.status == 204:
        raise ProblemError(404, "Kommo has nothing with this id, or no more")
    return _checked(answer.json(), shape)


def listed(answer: Answer, name: str, shape: type[Shape]) -> list[Shape]:
    """The things of one kind in an answer, likewise; none if Kommo answered that there are none (204)."""
    embedded = answer.json().get("_embedded")
    found = embedded.get(name) if isinstance(embedded, dict) else None
    return [_checked(each, shape) for each in found or ()] if isinstance(found, list) else []


def _checked(value: object, shape: type[Shape]) -> Shape:
    """The value itself, once it fits: what Kommo adds to its answers shall reach who asked."""
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise ProblemError(502, f"Kommo's answer is not as documented ({error}): look at it there") from None
    return cast("Shape", value)


def _refused(answer: Answer) -> ProblemError:
    problem = answer.json()
    said = problem.get("detail") or problem.get("hint") or problem.get("title") or answer.text
    faults = list(_faults(problem))[:FAULTS_MAX]
    more = "; ".join(f"{fault.path}: {fault.message}" for fault in faults)
    detail = f"Kommo answered HTTP {answer.status}: {said or 'no reason given'}"
    if more:
        detail = f"{detail} ({more})"
    if answer.status in PASSED_ON:
        return ProblemError(answer.status, detail, errors=faults)
    hint = HINTS.get(answer.status, "ask again later")
    return ProblemError(502, f"{detail}; {hint}")


def _faults(problem: Mapping[str, object]) -> list[Fault]:
    """Kommo's `validation-errors`, by the part of the request that each is about."""
    found: list[Fault] = []
    parts = problem.get("validation-errors")
    for part in parts if isinstance(parts, list) else ():
        errors = part.get("errors") if isinstance(part, dict) else None
        for error in errors if isinstance(errors, list) else ():
            if isinstance(error, dict):
                place = f"{part.get('request_id', 0)}.{error.get('path', '')}"
                found.append(Fault(place, f"{error.get('detail') or error.get('code') or 'does not fit'}"))
    return found
