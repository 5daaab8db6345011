"""What schemathesis loads: its questions are about what is there, and to the webhooks signed as by strangers.

`ASKED` in the environment names a file with what is there, by operation, as `asked.things` made it, and
`TOLD` one that gets a line of each question: its operation and the status that answered it. A text of
`HIDDEN_FROM_KEY` in an answer is another line.
"""

import json
import os
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation

from tests.support.ids import ACCOUNT
from tests.support.service import signature, signed

THINGS: dict[str, list[dict[str, Any]]] = json.loads(Path(os.environ["ASKED"]).read_text())
HIDDEN: list[str] = json.loads(os.environ.get("HIDDEN_FROM_KEY", "[]"))
OF_ACCOUNT = {"path": {"account_id": ACCOUNT}}


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
    """What is right in a question is about a thing that is there; what is wrong stays as it is."""
    label, positive = case.operation.label, bool(case.meta and case.meta.generation.mode.is_positive)
    if positive and case.query:
        case.query.pop("cursor", None)  # Only the service can make one.
    there = THINGS.get(label, [])
    thing = there.pop(0) if positive and len(there) > 1 else there[0] if there else {}
    if not there and "{account_id}" in label:
        thing = OF_ACCOUNT
    for where, name in (("path", "path_parameters"), ("query", "query"), ("body", "body")):
        if where in thing and case.meta and not case.meta.is_negative_at(ParameterLocation(where)):
            setattr(case, name, _about(getattr(case, name), thing[where]))
    if "webhooks" in (case.operation.tags or ()):
        kwargs["auth"] = _sign


@schemathesis.hook
def after_call(_context: Any, case: Any, response: Any) -> None:
    leak = any(one in response.text for one in HIDDEN)
    with Path(os.environ["TOLD"]).open("a") as file:
        file.write(
            f"{response.status_code} {case.operation.label}\n" + f"LEAK {case.operation.label}\n" * leak
        )


def _about(asked: Any, thing: Any) -> Any:
    """A part of a question with what is there in its place; None leaves something out."""
    if isinstance(thing, dict):
        asked = dict(asked) if isinstance(asked, dict) or hasattr(asked, "keys") else {}
        told = asked | {name: _about(asked.get(name), value) for name, value in thing.items()}
        return {name: value for name, value in told.items() if name not in thing or value is not None}
    if isinstance(thing, list):
        rest = asked[len(thing) :] if isinstance(asked, list) else []
        firsts = asked if isinstance(asked, list) else [None] * len(thing)
        return [*(_about(one, part) for one, part in zip(firsts, thing, strict=False)), *rest]
    return thing
