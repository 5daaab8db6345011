"""Routes of the CRM: a request reaches the rules only with a valid token and within the rate limit."""

import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec
from litestar import Response
from msgspec import UNSET, Struct, UnsetType

from ops.sandbox.config import CrmAccount
from ops.sandbox.crm.profiles import elsewhere
from ops.sandbox.faults import Fault
from ops.sandbox.responses import HTML, Call, behave, sandbox_of
from ops.sandbox.world import World

PROBLEM_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    415: "Unsupported Media Type",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
}
AT = re.compile(r"^(?P<what>.*?) - at `\$(?:\[(?P<index>\d+)\])?\.?(?P<path>.*)`$")
T = TypeVar("T")


class Wrong(Exception):
    """The answer is a problem with this status; `errors` names the parts of the body at fault."""

    def __init__(self, status: int, detail: str, errors: "tuple[BadPart, ...]" = ()) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors


class BadPart(Struct, frozen=True):
    """The fault of one part of a body; `request_id` names the part."""

    code: str
    path: str
    detail: str
    request_id: str = "0"


class Reply(NamedTuple):
    """The status and the body of an answer."""

    status: int
    content: object = None


class Caller(Struct, frozen=True):
    """A request of an integration for an account."""

    sandbox: World
    account: CrmAccount
    client: str
    request: Call
    body: bytes

    @property
    def amojo_id(self) -> str:
        """The account's id in chats."""
        return self.account.amojo_id

    def all(self, name: str) -> list[str]:
        """Every value of a query parameter, with or without the brackets of PHP."""
        pairs = self.request.query_params.multi_items()
        return [str(value) for key, value in pairs if key.partition("[")[0] == name]

    def link(self, path: str) -> dict[str, object]:
        """The `_links` of a thing at this path."""
        return {"self": {"href": f"{self.sandbox.url}/api/v4/{path}"}}

    def number(self, name: str, default: int, most: int) -> int:
        """A number of the query, 1 and at most this; Wrong 400 otherwise."""
        text = self.request.query_params.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
            raise Wrong(400, f"{name}: 1..{most}", (BadPart("InvalidValue", name, f"1..{most}"),))
        return int(text)

    def read(self, shape: type[T]) -> T:
        """The body in its shape; Wrong 400 naming what does not fit."""
        try:
            return msgspec.json.decode(self.body, type=shape)
        except msgspec.ValidationError as error:
            raise Wrong(400, "Request validation failed", (_bad_part(str(error)),)) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Wrong(400, f"The body is not JSON: {error}") from error


Work = Callable[[Caller], Reply]


async def answer(request: Call, where: str, work: Work) -> Response[bytes]:
    """Check the token and the rate, do the work and answer; faults name this route `crm.{where}`."""
    sandbox, body = sandbox_of(request), await request.body()
    token = sandbox.consent.bearer(request.headers.get("authorization", ""))
    if token is None:
        return told(401, "The access token is missing, expired or revoked: refresh it, or ask for consent")
    if away := elsewhere(request, token.account):
        return away
    if (status := sandbox.crm_rate.ask(token.account)) == 403:
        return Response(HTML, status_code=403, media_type="text/html")
    if status:
        answered = told(429, "Too many requests")
        answered.headers["Retry-After"] = "1"
        return answered
    fault = sandbox.faults.take(f"crm.{where}")
    caller = Caller(sandbox, sandbox.consent.account(token.account), token.client, request, body)

    def checked() -> Response[bytes]:
        try:
            reply = work(caller)
        except Wrong as wrong:
            return told(wrong.status, wrong.detail, wrong.errors)
        content = b"" if reply.content is None else msgspec.json.encode(reply.content)
        return Response(content, status_code=reply.status, media_type="application/hal+json")

    return faulty(fault) or await behave(request, fault, checked)


def faulty(fault: Fault | None) -> Response[bytes] | None:
    """The ordered status as a problem; None if the fault is of another kind."""
    if fault is None or not fault.is_status:
        return None
    status = int(fault.action)
    answered = told(status, f"this {status} was ordered by POST /control/faults")
    if fault.body is not None:
        answered = problem(status, fault.body)
    if fault.retry_after is not None:
        answered.headers["Retry-After"] = f"{fault.retry_after:g}"
    return answered


def told(status: int, detail: str, errors: tuple[BadPart, ...] = ()) -> Response[bytes]:
    """A problem of the v4 API."""
    content: dict[str, object] = {
        "title": PROBLEM_TITLES.get(status, "Error"),
        "type": f"https://httpstatus.es/{status}",
        "status": status,
        "detail": detail,
    }
    if errors:
        by_request: dict[str, list[dict[str, str]]] = {}
        for one in errors:
            part = {"code": one.code, "path": one.path, "detail": one.detail}
            by_request.setdefault(one.request_id, []).append(part)
        content["validation-errors"] = [
            {"request_id": request_id, "errors": parts} for request_id, parts in by_request.items()
        ]
    return problem(status, content)


def problem(status: int, content: dict[str, object]) -> Response[bytes]:
    """An answer of problem+json."""
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/problem+json")


def _bad_part(message: str) -> BadPart:
    found = AT.match(message)
    what = found["what"] if found else message
    path, index = (found["path"], found["index"] or "0") if found else ("", "0")
    missing = re.search(r"missing required field `(\w+)`", what)
    if missing:
        path = f"{path}.{missing[1]}".strip(".")
        return BadPart("FieldMissing", path, "This field is required.", index)
    code = "InvalidType" if what.startswith("Expected") else "InvalidValue"
    return BadPart(code, path, what, index)


def collection(
    caller: Caller, path: str, name: str, items: list[dict[str, object]], total: int = -1
) -> dict[str, object]:
    """A collection in the shape that every list of the v4 API has."""
    return {
        "_total_items": len(items) if total < 0 else total,
        "_links": caller.link(path),
        "_embedded": {name: items},
    }


def page_of(caller: Caller, path: str, name: str, items: list[dict[str, object]], most: int) -> Reply:
    """One page of a list (`page`, `limit`); 204 if the page is empty."""
    page, limit = caller.number("page", 1, 1_000_000), caller.number("limit", most, most)
    shown = items[(page - 1) * limit : page * limit]
    if not shown:
        return Reply(204)
    return Reply(200, {"_page": page} | collection(caller, path, name, shown))


def few(parts: list[T], most: int) -> list[T]:
    """The parts of a body; raises Wrong (400) if there are none or too many."""
    if not 1 <= len(parts) <= most:
        raise Wrong(400, f"The body holds {len(parts)} things: send 1..{most}")
    return parts


def request_id(index: int, told: str | int | UnsetType) -> str:
    """The name of a part of the body in the answer: its `request_id`, else its index."""
    return str(index) if told is UNSET else str(told)
