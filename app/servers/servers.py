"""The servers that we need are there and new enough: the operator's, or private ones started here.

AlreadyRunning   another chatledger has this data folder
ServerFailed     a private server does not start
OldServer        the operator's server is not one that we build on
"""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psycopg
from msgspec import Struct
from psycopg.conninfo import make_conninfo

from app.config.settings import Settings, prepare_folder
from app.database.connection import OnlyStandby, reach
from app.database.pooler import check_sessions
from app.servers.nats import PrivateNats
from app.servers.postgres import PrivatePostgres
from app.servers.process import Child, ServerFailed

__all__ = ["AlreadyRunning", "OldServer", "ServerFailed", "Servers", "check_versions", "servers"]

POSTGRES_OLDEST, POSTGRES_NEWEST = 15, 18
NATS_OLDEST, NATS_PORT = (2, 14), 4222
CONNECT_SECONDS = 10  # chosen: an overloaded server still answers, and a start does not hang
log = logging.getLogger("chatledger")
LOCK_BYTES_MAX = 20  # a process number and a line end


class AlreadyRunning(Exception):
    """Another chatledger has this data folder; the message names both."""


class OldServer(Exception):
    """A server is older than what chatledger needs, or a PostgreSQL not yet tried; the message names it."""


class Servers(Struct, frozen=True):
    """The addresses of both servers. The URLs contain credentials and belong in no log."""

    database_url: str
    nats_url: str
    database_private: bool
    nats_private: bool

    def __repr__(self) -> str:
        """Without the credentials."""
        return f"Servers(database_private={self.database_private}, nats_private={self.nats_private})"


@asynccontextmanager
async def servers(settings: Settings) -> AsyncIterator[Servers]:
    """Start the servers that have no URL in the settings, keep them running, and stop them at the end.

    Must run in the main thread. Raises AlreadyRunning at once, ServerFailed, BadSettings.
    """
    data, user = settings.data, settings.servers_user
    postgres = None if settings.database_url else PrivatePostgres(data / "postgres", user)
    broker = None if settings.nats_url else PrivateNats(data / "nats", user)
    children: list[Child] = [child for child in (broker, postgres) if child]
    with _instance(settings.data) if children else contextlib.nullcontext():
        try:
            await _together(*(child.start() for child in children))
            yield Servers(
                database_url=settings.database_url or (postgres.url if postgres else ""),
                nats_url=settings.nats_url or (broker.url if broker else ""),
                database_private=postgres is not None,
                nats_private=broker is not None,
            )
        finally:
            # Both at once, because the callers have stopped and neither server needs the other.
            await _together(*(child.stop() for child in children))


async def check_versions(database_url: str, nats_url: str | None) -> None:
    """Check the servers' versions, NATS only where its URL is given.

    Raises OldServer; ServerFailed if one does not answer.
    """
    await _together(check_postgres(database_url), *([check_nats(nats_url)] if nats_url else []))


async def check_postgres(url: str) -> None:
    """Raises OldServer, ServerFailed if it does not answer or is a standby, Pooled if sessions are shared."""
    url = make_conninfo(url, connect_timeout=CONNECT_SECONDS)
    try:
        async with await reach(url) as connection:
            number = connection.info.server_version
        await check_sessions(url)
    except OnlyStandby as error:
        raise ServerFailed(str(error)) from error
    except psycopg.OperationalError as error:
        raise ServerFailed(f"PostgreSQL at CHATLEDGER_DATABASE_URL does not answer: {error}") from error
    found = f"{number // 10000}.{number % 10000}"
    if number // 10000 < POSTGRES_OLDEST:
        raise OldServer(
            f"PostgreSQL {found} is too old: chatledger needs {POSTGRES_OLDEST} to {POSTGRES_NEWEST}"
        )
    if number // 10000 > POSTGRES_NEWEST:
        raise OldServer(
            f"PostgreSQL {found} is too new: chatledger needs {POSTGRES_OLDEST} to {POSTGRES_NEWEST}"
        )


async def check_nats(urls: str) -> None:
    """Check each server of a cluster by its greeting, which it sends before it asks for credentials.

    Raises OldServer, and ServerFailed if none answers: one that does can let us in while another is down.
    """
    servers = urls.split(",")
    silent = [told for told in await asyncio.gather(*map(_silence, servers)) if told]
    if len(silent) == len(servers):
        raise ServerFailed("; ".join(silent))
    for told in silent:
        log.warning("%s", told)


async def _silence(url: str) -> str | None:
    """Returns why a server does not answer, None if it does. Raises OldServer."""
    place = urlsplit(url.strip())
    host, port = place.hostname or "", place.port or NATS_PORT
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            version = await _nats_version(host, port)
    except (OSError, ValueError, LookupError) as error:
        return f"NATS at {host}:{port} does not answer: {str(error) or type(error).__name__}"
    if version < NATS_OLDEST:
        raise OldServer(
            f"NATS {_dotted(version)} is too old: chatledger needs {_dotted(NATS_OLDEST)} or newer"
        )
    return None


async def _nats_version(host: str, port: int) -> tuple[int, ...]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        verb, _, greeting = (await reader.readline()).partition(b" ")
        if verb != b"INFO":
            raise ValueError("it does not greet like a NATS server")
        major, minor, *_ = str(msgspec.json.decode(greeting)["version"]).split(".")
        return int(major), int(minor)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def is_in_use(folder: Path) -> bool:
    """Whether a chatledger of this user runs on a data folder; changes nothing."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def _instance(folder: Path) -> Iterator[None]:
    """Lock the data folder for this process; the lock file names the process."""
    prepare_folder(folder)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, LOCK_BYTES_MAX, 0).decode().strip() or "unknown"
            raise AlreadyRunning(
                f"another chatledger (process {holder}) uses {folder}:"
                " stop it, or set CHATLEDGER_DATA to another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


async def _together(*steps: Coroutine[None, None, None]) -> None:
    """Run all steps to their end, then raise the first error."""
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
