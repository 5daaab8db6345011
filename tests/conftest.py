"""Every test that stores or publishes does so on a real PostgreSQL and a real nats-server, started once."""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from app.config.settings import load_settings
from app.servers.nats import PrivateNats
from app.servers.servers import Servers
from app.servers.servers import servers as start_servers

NewDatabase = Callable[..., Awaitable[str]]


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """A data folder that the unprivileged user of PostgreSQL can reach: pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="chatledger-test-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """The same for one test that starts servers of its own."""
    folder = Path(tempfile.mkdtemp(prefix="chatledger-test-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
async def servers(session_folder: Path) -> AsyncIterator[Servers]:
    """One PostgreSQL and one nats-server for all tests, as `chatledger serve` starts them."""
    settings = load_settings(environment={"CHATLEDGER_DATA": str(session_folder)})
    async with start_servers(settings) as running:
        yield running


@pytest.fixture
async def new_database(servers: Servers) -> AsyncIterator[NewDatabase]:
    """`await new_database(template="…")` makes a database and gives its URL; they are dropped after the test.

    A template (another database of the same test, to which nobody is connected) is copied in milliseconds.
    """
    made: list[str] = []

    async def new(template: str = "template0") -> str:
        made.append(f"test_{secrets.token_hex(8)}")
        await _execute(servers.database_url, "CREATE DATABASE {} TEMPLATE {}", made[-1], template)
        return servers.database_url.replace("/postgres?", f"/{made[-1]}?")

    yield new
    await asyncio.gather(
        *(_execute(servers.database_url, "DROP DATABASE {} WITH (FORCE)", name) for name in made)
    )


@pytest.fixture
async def database_url(new_database: NewDatabase) -> str:
    """The URL of a new and empty database."""
    return await new_database()


@pytest.fixture
def nats_url(servers: Servers) -> str:
    """The URL of the nats-server that all tests share: name streams uniquely."""
    return servers.nats_url


@pytest.fixture
async def nats_own(data_folder: Path) -> AsyncIterator[PrivateNats]:
    """A nats-server of the test's own, to `stop()` and `start()` again; `.url` stays the same."""
    own = PrivateNats(data_folder / "nats")
    await own.start()
    yield own
    await own.stop()


async def _execute(url: str, statement: str, *names: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
