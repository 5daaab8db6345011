"""What all commands share: settings, lines for people, and failures as a sentence and an exit code."""

import asyncio
import errno
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psycopg
import uvloop

from app.access.rotation import NotRotated, RotationRuns
from app.cli.target import Target, find_target
from app.config.settings import BadSettings, Settings, load_settings
from app.database.pooler import Pooled
from app.database.schema import Busy, NewerSchema, OldSchema, OwnerIsRole, WrongEncoding
from app.printable import printable
from app.servers.process import ServerFailed
from app.servers.servers import AlreadyRunning, OldServer
from app.service.service import RoleFailed
from app.stream.jetstream import JetStreamError
from app.stream.ledger_stream import ForeignStream
from app.views.rebuild import RebuildRefused

Result = TypeVar("Result")
FAILURES = (
    AlreadyRunning,
    JetStreamError,
    ServerFailed,
    OldServer,
    Pooled,
    Busy,
    OldSchema,
    WrongEncoding,
    NewerSchema,
    OwnerIsRole,
    ForeignStream,
    RoleFailed,
    BadSettings,
    NotRotated,
    RotationRuns,
    RebuildRefused,
    OSError,
    TimeoutError,
    aiohttp.ClientError,
    psycopg.Error,
)


def settings_of(config: Path | None, given: dict[str, str | None]) -> Settings:
    """Returns the settings, with what the command line gives over them; exits with 2 if they are wrong."""
    overrides = {f"CHATLEDGER_{name}": value for name, value in given.items() if value is not None}
    try:
        return load_settings(config, overrides=overrides)
    except BadSettings as error:
        tell(f"chatledger: {error}", error=True)
        sys.exit(2)


def find_service(config: Path | None, url: str | None) -> Target:
    """Returns the service to ask; exits with 2 if a setting is wrong or there is no key."""
    settings = settings_of(config, {})

    async def find() -> Target:
        return find_target(settings, url)

    return asyncio.run(failing(find()))


def tell(*lines: str, error: bool = False) -> None:
    """Print lines for people; what a stranger wrote in them controls no terminal."""
    for line in lines:
        print(printable(line), file=sys.stderr if error else sys.stdout)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Await what a command does, on the loop of the service."""
    uvloop.run(failing(work))


async def failing(work: Coroutine[Any, Any, Result], *, code: int = 1) -> Result:
    """Await, and turn what we know can fail into a line and the exit code; 2 for what is wrongly set."""
    try:
        return await work
    except FAILURES as error:
        tell(f"chatledger: {sentence(error)}", error=True)
        sys.exit(2 if isinstance(error, BadSettings) else code)


def sentence(error: Exception) -> str:
    """Returns what an error says, or what it is; PostgreSQL's words without the place in our statement."""
    said = str(error).strip() or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        where = f"http://{error.host}:{error.port}"
        return f"no service answers at {where}: start it with `chatledger serve`, or name another with --url"
    if isinstance(error, psycopg.errors.DiskFull):
        return f"the disk of PostgreSQL is full: free some space on it ({said.splitlines()[0]})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{where}: free some space in the data folder, CHATLEDGER_DATA"
    if isinstance(error, psycopg.OperationalError) or not isinstance(error, psycopg.Error):
        return said
    advice = ": give CHATLEDGER_DATABASE_URL the user who owns the database, or who may make roles"
    return f"PostgreSQL refuses: {said.splitlines()[0]}" + (
        advice if isinstance(error, psycopg.errors.InsufficientPrivilege) else ""
    )
