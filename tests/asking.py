"""What schemathesis loads: what it sends to the two webhooks is signed, as by Kommo and by a messenger."""

import json
from typing import Any

import schemathesis
from served import signature, signed


def _sign(request: Any) -> Any:
    """Sign a request that is ready to be sent; `request` is one of the library requests."""
    body = request.body or b""
    body = body.encode() if isinstance(body, str) else body
    if request.path_url.startswith("/kommo/"):
        request.headers["X-Signature"] = signature(body)
    if request.path_url.startswith("/messengers/"):
        request.headers.update(signed(body))
    return request


@schemathesis.serializer("application/x-ndjson")
def _lines(_context: Any, value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


@schemathesis.hook
def before_call(_context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    if case.meta and case.meta.generation.mode.is_positive and case.query:
        case.query.pop("cursor", None)  # Only the service can make one.
    if "webhooks" in (case.operation.tags or ()):
        kwargs["auth"] = _sign
