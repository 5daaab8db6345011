"""A file of messages is stored whole, then imported in the background while its progress is read.

One import at a time goes into a channel's account, by a lock of the database that ends with its connection.
The import stops at once when its reader leaves; the same file again continues there, also after the process
was killed. The file lies in the data folder without a name, so it is gone with the process that reads it.
"""

import asyncio
import errno
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from functools import partial
from hashlib import sha256
from typing import IO
from zlib import crc32

import msgspec
import psycopg
from msgspec import Struct

from app.channels.directory import Channel, Connection
from app.config.settings import prepare_folder
from app.database import names
from app.database.connection import Db
from app.history.gunzip import DamagedGzip, Gunzip
from app.history.importer import Cut, Import, Place, Report, Stage
from app.operations import channels
from app.operations.channels import ConnectionNeeded
from app.operations.deliveries import resume_messages
from app.operations.errors import InvalidInput, LedgerBusy, NoRoom, StateConflict
from app.operations.services import Services
from app.problems import OURS
from app.views.deliveries import has_failed_imports
from domain import ids

SPOOL_BYTES = 1024 * 1024  # Chosen: one write per megabyte keeps threads idle and memory small.
LOCK_SECONDS = 2.0  # Chosen: an import that was just cut off has closed its connection by then.
LOCK_POLL_SECONDS = 0.1
PROGRESS_SECONDS = 0.5  # Chosen: a progress bar that moves twice a second looks alive.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRY_LOCK = "SELECT pg_try_advisory_lock(%s, %s)"
log = logging.getLogger("chatledger.import")
_running: "set[asyncio.Task[Report]]" = set()  # asyncio itself keeps only weak references to tasks.


class ImportRunning(StateConflict):
    """Another import goes into this channel and account."""

    MESSAGE = (
        "an import into this channel and account is at work: wait until it has ended, then send it again"
    )


class DataFolderFull(NoRoom):
    """The file does not fit into the data folder."""

    MESSAGE = "the data folder has no room for the file: make room there, or split the file"


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
    """The last line: what was imported, and why what is not.

    `already`: the file was done before, so nothing of it was read now, and this is what was reported then.
    """

    already: bool = False


async def start(
    services: Services, channel: str, account: str | None, body: AsyncIterator[bytes], *, again: bool
) -> AsyncGenerator[Progress | Ended, None]:
    """Store `body`, start to import it, and return its progress, whose last item is the report.

    Closing the iterator stops the import. `again` begins at the first line, whatever was imported before; so
    does an import that is done while something that was imported has failed, which is sent again.
    Raises UnknownChannel, InvalidInput, ConnectionNeeded, ImportRunning, DataFolderFull, and as `body` does.
    """
    place = _place(await channels.named(services, channel), account)
    db = await _lock(services, place)
    try:
        spool, digest = await _store(services, body)
        name = ids.uuid5(place.scope.namespace, f"import:{digest}")
        work = Import(db, services.ledger, place, spool, name)
        if not again and await work.is_done():
            where = place.scope
            again = await has_failed_imports(services.pool, where.channel, where.account)
        await work.begin(again=again)
    except BaseException:
        await asyncio.shield(db.close())
        raise
    work.view_position = lambda: services.projector.position
    work.reconnect = partial(_lock_again, services, place)
    work.resume = partial(_resume, services, work)
    work.in_force = lambda: services.channels.scope(place.scope.scope_id)
    task = asyncio.create_task(_run(work, spool), name="import")
    _running.add(task)
    task.add_done_callback(_running.discard)
    return _progress(services, work, task)


async def _resume(services: Services, work: Import, messages: list[str]) -> int:
    """Send again what has failed, when the ledger has room; raises Cut."""
    try:
        return await resume_messages(services, messages, lambda: not work.stopping)
    except LedgerBusy:
        raise Cut("it was stopped: run the same command again to go on") from None


def _place(channel: Channel, account: str | None) -> Place:
    within = channel.options.message_ids == "per conversation"
    return Place(_connection(channel, account).scope, channel.bot_id, within)


def _connection(channel: Channel, account: str | None) -> Connection:
    """The connection to the account, or the only one there is; raises InvalidInput, ConnectionNeeded."""
    accounts = channel.accounts
    if account is None and len(accounts) > 1:
        raise InvalidInput("account_id: name the account, for the channel has several")
    for connection in accounts:
        if account is None or connection.scope.account == account.lower():
            return connection
    raise ConnectionNeeded


async def _lock(services: Services, place: Place) -> Db:
    """A connection that holds the lock of the place; raises ImportRunning after 2 s."""
    db = await services.pool.connect_dedicated()
    loop = asyncio.get_running_loop()
    until = loop.time() + LOCK_SECONDS
    number = crc32(place.scope.scope_id.encode()) - (1 << 31)
    try:
        while True:
            cursor = await db.execute(TRY_LOCK, (names.IMPORT_LOCK, number))
            if await cursor.fetchone() == (True,):
                return db
            if loop.time() > until:
                raise ImportRunning
            await asyncio.sleep(LOCK_POLL_SECONDS)
    except BaseException:
        await asyncio.shield(db.close())
        raise


async def _lock_again(services: Services, place: Place) -> Db:
    """The same after the connection broke; raises psycopg.OperationalError while another one holds the lock.

    That may be the broken one, until the server notices that nobody is there any more.
    """
    try:
        return await _lock(services, place)
    except ImportRunning as error:
        raise psycopg.OperationalError(str(error)) from None


async def _store(services: Services, body: AsyncIterator[bytes]) -> tuple[IO[bytes], str]:
    """The body, unpacked, in a file without a name, and its SHA-256; raises DataFolderFull, InvalidInput."""
    prepare_folder(services.settings.data)
    spool: IO[bytes] = tempfile.TemporaryFile(dir=services.settings.data)  # noqa: SIM115  # the task closes it
    digest, part = sha256(), bytearray()

    plain = Gunzip()

    def write(pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            digest.update(piece)
            spool.write(piece)

    try:
        async for chunk in body:
            part += chunk
            if len(part) >= SPOOL_BYTES:
                await asyncio.to_thread(write, plain.feed(bytes(part)))
                part.clear()
        await asyncio.to_thread(write, plain.feed(bytes(part)))
        await asyncio.to_thread(write, plain.end())
        await asyncio.to_thread(spool.flush)
    except DamagedGzip as error:
        spool.close()
        raise InvalidInput(str(error)) from None
    except OSError as error:
        spool.close()
        if error.errno in DISK_FULL:
            raise DataFolderFull from None
        raise
    except BaseException:
        spool.close()
        raise
    return spool, digest.hexdigest()


async def _run(work: Import, spool: IO[bytes]) -> Report:
    try:
        return await work.run()
    finally:
        spool.close()
        await work.database.close()


async def _progress(
    services: Services, work: Import, task: "asyncio.Task[Report]"
) -> AsyncGenerator[Progress | Ended, None]:
    """Progress twice a second, and the report; the import stops when this ends, and with the process."""
    already = work.report.state == "done"
    try:
        while not task.done():
            work.stopping = work.stopping or services.stopping.is_set()
            yield _counts(work)
            await asyncio.wait([task], timeout=PROGRESS_SECONDS)
        if error := task.exception():
            log.error("import %s", work.report.id, exc_info=error)
            work.report.state, work.report.detail = "stopped", OURS
        yield Ended(**msgspec.structs.asdict(work.report), already=already)
    finally:
        work.stopping = True


def _counts(work: Import) -> Progress:
    report = work.report
    line = work.seen if work.stage == "checking" else report.lines
    return Progress(
        work.stage,
        line,
        work.total or None,
        report.imported,
        report.duplicates,
        report.conflicts,
        report.skipped,
    )
