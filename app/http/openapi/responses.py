"""How a route tells `/schema` what it takes and what it answers; what routes have in common is added there.

A route says `responses=answers(404, 409)`, and gets its shapes from its own types. 400 (where there is
something to give), 401 and 503 (where a key is wanted) and 413 (where there is a body) need not be said.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from litestar.openapi import ResponseSpec
from msgspec import Struct

from app import problems
from app.problems import Fault, Problem

DETAILS = {
    400: "limit: give a whole number from 1 to 1000",
    401: "give a key: Authorization: Bearer KEY (the admin key is in the data folder, admin.key)",
    403: "the signature is missing or wrong: sign the exact bytes of the body with the channel's secret",
    404: "there is nothing at this path: /schema lists what there is",
    409: "this is there already with other content, which stands: give another name or id",
    413: "a body holds at most 256 KB: send less",
    415: "the body is compressed: send it as it is",
    429: "the account is not connected, and 10000 deliveries wait for it already: connect it",
    422: "Kommo does not accept this any more: read it again",
    502: "Kommo answered 403: check the channel's id and secret",
    503: "the ledger cannot take it now: send it again",
}


@dataclass
class Said(ResponseSpec):
    """An answer: a shape (None: no body), and texts of other media types instead of it or beside it."""

    texts: Mapping[str, str] = field(default_factory=dict)


class Taken(Struct, frozen=True):
    """A body that the route reads by itself: its shape, its media type and examples by their names."""

    shape: Any
    examples: Mapping[str, Any]
    media_type: str = "application/json"
    required: bool = True


def answers(
    *statuses: int,
    said: Mapping[int, str] = {},
    also: Mapping[int, Any] = {},
    texts: Mapping[int, Mapping[str, str]] = {},
) -> dict[int, ResponseSpec]:
    """What a route may answer beside its success.

    Problems by their `statuses`, their detail as in `said` if it says more than usual; shapes of other
    successes in `also`; examples of bodies that are no JSON in `texts`, by status and media type.
    """
    found: dict[int, ResponseSpec] = {}
    for status in sorted({*statuses, *said}):
        found[status] = problem(status, said.get(status, ""))
    for status in sorted({*also, *texts}):
        found[status] = Said(
            data_container=also.get(status),
            description="",
            generate_examples=False,
            texts=texts.get(status, {}),
        )
    return found


def problem(status: int, detail: str = "", *faults: Fault) -> Said:
    """An answer that is a problem; its example has this detail, or what is usual."""
    example = Problem(problems.TITLES[status], status, detail or DETAILS[status], list(faults))
    return Said(
        data_container=Problem,
        description=problems.TITLES[status],
        media_type=problems.MEDIA_TYPE,
        generate_examples=False,
        texts={problems.MEDIA_TYPE: problems.encode(example).decode()},
    )


def takes(shape: Any, media_type: str = "application/json", **examples: Any) -> dict[str, Taken]:
    """For a route's `opt`: the body that it reads by itself, with examples by their names."""
    return {"takes": Taken(shape, examples, media_type)}
