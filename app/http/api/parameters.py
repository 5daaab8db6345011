"""DOC"""

from typing import Annotated
from urllib.parse import urlencode

from litestar.params import QueryParameter
from msgspec import Meta

from app.http.openapi.responses import answers
from app.operations.services import Call

REFUSALS = answers(404, 409, 422, 502)
READS = {"writes": False}  # the ledger
AT_ONCE = 50
Number = Annotated[int, Meta(ge=1, le=2**53)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Link = Annotated[str, Meta(max_length=4096)]

POSITION_MAX = 2**53
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="how many at most")]
AtLeast = Annotated[
    int | None,
    QueryParameter(ge=0, le=POSITION_MAX, description="wait until the views have seen this position"),
]


def _link(request: Call, name: str, following: str | int | None) -> dict[str, str]:
    """RFC 8288: where the next page is."""
    if following is None:
        return {}
    kept = [(key, value) for key, value in request.query_params.multi_items() if key != name]
    url = f"{request.url.path}?{urlencode([*kept, (name, str(following))])}"
    return {"Link": f'<{url}>; rel="next"'}
