"""`POST /v1/import`: a file of messages is kept aside whole, then imported, and its progress told in lines.

One import at a time goes into a channel's account, by a lock of the database that ends with its connection.
When nobody listens to the progress any more the import stops at once, and the same file again goes on from
there; it does so too after the process was killed. The file lies in the data folder without a name, so that
nothing of it is left behind, whatever happens.
"""

import asyncio
import errno
import logging
import tempfile
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import IO, Annotated
from zlib import crc32

import msgspec
from litestar import post
from litestar.exceptions import InternalServerException
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream
from msgspec import Struct

from app import problems
from app.channels.directory import Channel, Connection
from app.config.settings import prepare_folder
from app.database import names
from app.database.connection import Db
from app.history.importer import Import, LineProblem, Place, Report, Stage
from app.http.openapi.responses import answers, takes
from app.messengers.contract import Sent
from app.operations.services import Call, Services, services_of
from app.problems import ProblemError
from domain import ids

NDJSON = "application/x-ndjson"
SPOOL_BYTES = 1024 * 1024
LOCK_SECONDS = 2.0
LOCK_POLL_SECONDS = 0.1
PROGRESS_SECONDS = 0.5
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRY_LOCK = "SELECT pg_try_advisory_lock(%s, %s)"
COMPRESSED = "the body is compressed: send it as it is"
BUSY = "an import into this channel and account is at work: wait until it has ended, then send it again"
FULL = "the data folder has no room for the file: make room there, or split the file"
UNKNOWN = "no channel has this name: register it with POST /v1/channels"
UNCONNECTED = "the channel is not connected to this account: POST /v1/channels/{name}/connections"
SEVERAL = "account_id: name the account, for the channel has several"


class Progress(Struct, frozen=True, tag="progress"):
    """How far it is: all lines are checked, then imported; `lines` is how many there are, once known."""

    stage: Stage
    line: int
    lines: int | None
    imported: int
    duplicates: int
    conflicts: int
    skipped: int


class Ended(Report, tag="report"):
    """The last line: what was imported, and why what is not."""


EXAMPLE = Ended(
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
    msgspec.json.encode(EXAMPLE),
)
FILE = """{"type":"message.sent","direction":"in","conversation_id":"conv-1","message_id":"m-1",\
"at":"2026-11-22T08:00:00.000Z","sender":{"id":"u-1","name":"Ann"},"message":{"type":"text","text":"Hello"}}
"""

log = logging.getLogger("chatledger.import")
_at_work: "set[asyncio.Task[Report]]" = set()


@post(
    "/import",
    status_code=200,
    summary="Import messages, one a line",
    tags=["import"],
    request_max_body_size=None,
    opt=takes(Sent, NDJSON, line=FILE) | {"writes": False},  # While it answers, its head is long sent.
    responses=answers(
        said={404: UNKNOWN, 409: BUSY, 415: COMPRESSED, 507: FULL},
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

    Answers lines of JSON: `progress`, and last a `report`. The same file again goes on where it was cut off,
    and does nothing once it is done. Kommo is told in the background, silently but for each chat's newest.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ProblemError(415, COMPRESSED)
    services = services_of(request)
    place = await _place(services, channel, account_id)
    database = await _locked(services, place)
    try:
        spool, digest = await _spooled(request, services)
        name = ids.uuid5(place.scope.namespace, f"import:{digest}")
        work = Import(database, services.ledger, place, spool, name)
        await work.begin(again=again)
    except BaseException:
        await asyncio.shield(database.close())
        raise
    work.view_position = lambda: services.projector.position
    work.in_force = lambda: services.channels.scope(place.scope.scope_id)
    task = asyncio.create_task(_worked(work, spool, database), name="import")
    _at_work.add(task)
    task.add_done_callback(_at_work.discard)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Stream(_told(services, work, task), media_type=NDJSON, headers=headers)


async def _place(services: Services, name: str, account: str | None) -> Place:
    channel = await services.channels.channel(name)
    if channel is None:
        raise ProblemError(404, UNKNOWN)
    return Place(_connection(channel, account).scope, channel.bot_id)


def _connection(channel: Channel, account: str | None) -> Connection:
    accounts = channel.accounts
    if account is None and len(accounts) > 1:
        raise ProblemError(400, SEVERAL)
    for connection in accounts:
        if account is None or connection.scope.account == account.lower():
            return connection
    raise ProblemError(409, UNCONNECTED)


async def _locked(services: Services, place: Place) -> Db:
    """A connection that holds the lock of the place; one that was just cut off gets a moment to let go."""
    database = await services.pool.connect_dedicated()
    loop = asyncio.get_running_loop()
    until = loop.time() + LOCK_SECONDS
    number = crc32(place.scope.scope_id.encode()) - (1 << 31)
    try:
        while True:
            cursor = await database.execute(TRY_LOCK, (names.IMPORT_LOCK, number))
            if await cursor.fetchone() == (True,):
                return database
            if loop.time() > until:
                raise ProblemError(409, BUSY)
            await asyncio.sleep(LOCK_POLL_SECONDS)
    except BaseException:
        await asyncio.shield(database.close())
        raise


async def _spooled(request: Call, services: Services) -> tuple[IO[bytes], str]:
    """The body in a file, and its SHA-256; raises ProblemError (507) if there is no room for it."""
    prepare_folder(services.settings.data)
    spool: IO[bytes] = tempfile.TemporaryFile(dir=services.settings.data)  # noqa: SIM115  # the task closes it
    digest, part = sha256(), bytearray()

    def write(piece: bytes) -> None:
        digest.update(piece)
        spool.write(piece)

    try:
        async for chunk in request.stream():
            part += chunk
            if len(part) >= SPOOL_BYTES:
                await asyncio.to_thread(write, bytes(part))
                part.clear()
        await asyncio.to_thread(write, bytes(part))
        await asyncio.to_thread(spool.flush)
    except InternalServerException:
        spool.close()
        raise ProblemError(400, "the body ended early: send it again") from None
    except OSError as error:
        spool.close()
        if error.errno in NO_ROOM:
            raise ProblemError(507, FULL) from None
        raise
    except BaseException:
        spool.close()
        raise
    return spool, digest.hexdigest()


async def _worked(work: Import, spool: IO[bytes], database: Db) -> Report:
    try:
        return await work.run()
    finally:
        spool.close()
        await database.close()


async def _told(services: Services, work: Import, task: "asyncio.Task[Report]") -> AsyncIterator[bytes]:
    """Progress as lines, and the report as the last; whoever stops listening stops the import."""
    try:
        while not task.done():
            work.stopping = work.stopping or services.stopping.is_set()
            yield _line(_progress(work))
            await asyncio.wait([task], timeout=PROGRESS_SECONDS)
        if error := task.exception():
            log.error("import %s", work.report.id, exc_info=error)
            work.report.state, work.report.detail = "stopped", problems.OURS
        yield _line(Ended(**msgspec.structs.asdict(work.report)))
    finally:
        work.stopping = True


def _progress(work: Import) -> Progress:
    report = work.report
    counts = (report.imported, report.duplicates, report.conflicts, report.skipped)
    line = work.seen if work.stage == "checking" else report.lines
    return Progress(work.stage, line, work.total or None, *counts)


def _line(told: Progress | Ended) -> bytes:
    return msgspec.json.encode(told) + b"\n"


routes = [import_messages]
