"""`POST /v1/import`: lines of messages in, lines of progress out, and last the report."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated

import msgspec
import psycopg
from litestar import post
from litestar.exceptions import InternalServerException
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream

from app.access.callers import Caller
from app.history.importer import LineProblem
from app.http.guard import REACHED, SEND, caller_of, check_account, still_good
from app.http.openapi.responses import answers, takes
from app.http.request import Call, services_of
from app.messengers.contract import Sent
from app.operations import imports
from app.operations.channels import UnknownChannel
from app.operations.imports import DataFolderFull, Ended, ImportRunning, Progress
from app.operations.services import Services
from app.problems import ProblemError

NDJSON = "application/x-ndjson"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
COMPRESSED = "the body is compressed: send it as it is"
REPORT = Ended(
    id="5d3c1f0e-8f0b-5a57-9d0a-6f6b0c2f7a11",
    state="done",
    lines=3,
    imported=1,
    duplicates=1,
    skipped=1,
    problems=[LineProblem(3, "$.at: Object missing required field `at`")],
    position=12,
)
LINES = b"%b\n%b\n" % (
    msgspec.json.encode(Progress("importing", 2, 3, 1, 1, 0, 0)),
    msgspec.json.encode(REPORT),
)
FILE = """{"type":"message.sent","direction":"in","conversation_id":"conv-1","message_id":"m-1",\
"at":"2026-11-22T08:00:00.000Z","sender":{"id":"u-1","name":"Ann"},"message":{"type":"text","text":"Hello"}}
"""


@post(
    "/import",
    status_code=200,
    summary="Import messages, one a line",
    tags=["import"],
    request_max_body_size=None,
    opt=takes(Sent, NDJSON, line=FILE)
    | SEND
    | REACHED
    | {"writes": False},  # Its head is sent before anything is written.
    responses=answers(
        said={
            404: UnknownChannel.MESSAGE,
            409: ImportRunning.MESSAGE,
            415: COMPRESSED,
            507: DataFolderFull.MESSAGE,
        },
        texts={200: {NDJSON: LINES.decode()}},
    ),
)
async def import_messages(
    request: Call,
    channel: FromQuery[str],
    account_id: FromQuery[str | None] = None,
    again: Annotated[bool, QueryParameter(description="begin at the first line, whatever was done")] = False,
) -> Stream:
    """NDJSON of `message.sent` with their own times, a line at most 256 KB; the whole has no limit.

    A file packed by gzip is unpacked.

    Answers lines of JSON: `progress`, and last a `report`. The same file again goes on where it was cut off,
    and does nothing once it is done. Kommo is told in the background, silently but for each chat's newest.
    """
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity", "gzip"):
        raise ProblemError(415, COMPRESSED)
    check_account(request, account_id)
    progress = await imports.start(services_of(request), channel, account_id, _body(request), again=again)
    return Stream(
        _lines(services_of(request), caller_of(request), progress), media_type=NDJSON, headers=HEADERS
    )


async def _body(request: Call) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except InternalServerException:
        raise ProblemError(400, "the body ended early: send it again") from None


async def _lines(
    services: Services, caller: Caller, progress: AsyncGenerator[Progress | Ended, None]
) -> AsyncIterator[bytes]:
    """Each step as a line; when the client goes away, or the key is over, the import stops at once."""
    async with aclosing(progress):
        async for step in progress:
            yield msgspec.json.encode(step) + b"\n"
            with suppress(psycopg.OperationalError):  # The import waits for a database that is away.
                if not await still_good(services, caller):
                    return


routes = [import_messages]
