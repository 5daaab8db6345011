"""Parameters and headers that several routes of the API share."""

from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

import msgspec
from litestar.params import QueryParameter
from msgspec import Meta

from app import clock
from app.http.openapi.responses import answers
from app.http.request import Call
from app.ledger.writer import Recorded
from app.problems import ProblemError

POSITION_MAX = 2**53  # The largest whole number that every JSON reader takes exactly.
AT_ONCE = 50  # Kommo takes at most so many sources or templates in one call.
REFUSALS = answers(404, 409, 422, 502)  # Of routes that call the CRM.
NOT_TO_LEDGER = {"writes": False}  # Of routes that write to the CRM alone: no Ledger-Position.
Number = Annotated[int, Meta(ge=1, le=POSITION_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Link = Annotated[str, Meta(max_length=4096)]
Moment = Annotated[datetime, Meta(tz=True)]
# In a body a number would pass for a `Moment`.
MomentText = Annotated[str, Meta(max_length=64, extra_json_schema={"format": "date-time"})]
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="how many at most")]
AtLeast = Annotated[
    int | None,
    QueryParameter(ge=0, le=POSITION_MAX, description="wait until the views have seen this position"),
]


def read_moment(text: str | None) -> datetime | None:
    """The time that a body has as text; raises ProblemError if it is none."""
    try:
        return msgspec.convert(text, Moment) if text is not None else None
    except msgspec.ValidationError:
        raise ProblemError(
            400, "since and until are times with a zone, such as 2026-11-22T08:00:00Z"
        ) from None


def moment_text(moment: datetime | None) -> str | None:
    """A time as views compare it; raises ProblemError if it has no zone or lies outside what they hold."""
    if moment and moment.tzinfo is None:
        raise ProblemError(400, "since and until are times with a zone, such as 2026-11-22T08:00:00Z")
    try:
        return clock.text(clock.milliseconds(moment)) if moment else None
    except (OverflowError, ValueError):
        raise ProblemError(400, "since and until lie in the years 1 to 9999 of UTC") from None


def next_link(request: Call, name: str, following: str | int | None) -> dict[str, str]:
    """The header Link (RFC 8288) to the page whose parameter `name` is `following`; none on the last page."""
    if following is None:
        return {}
    kept = [(key, value) for key, value in request.query_params.multi_items() if key != name]
    url = f"{request.url.path}?{urlencode([*kept, (name, str(following))])}"
    return {"Link": f'<{url}>; rel="next"'}


def ledger_position(recorded: Recorded | None) -> dict[str, str]:
    """The header Ledger-Position: the last event that a write made or met; none if it made none."""
    if recorded is None:
        return {}
    return {"Ledger-Position": str(max(recorded.position or 0, recorded.last or 0))}
