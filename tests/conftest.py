"""Every test that stores or publishes does so on a real PostgreSQL and a real nats-server, started once."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.config.settings import load_settings
from app.servers.nats import PrivateNats
from app.servers.servers import Servers
from app.servers.servers import servers as start_servers
from tests.support.databases import NewDatabase, database
from tests.support.service import Served, serving
from tests.support.system import Story, story_on


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
    folder.chmod(0o711)  # The servers run as another user if we are root.
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """The same for the tests of a module that share servers of their own."""
    folder = Path(tempfile.mkdtemp(prefix="chatledger-test-", dir="/tmp"))
    folder.chmod(0o711)
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
    """`await new_database(template="…")` makes a database for the test and gives its URL."""
    async with AsyncExitStack() as stack:

        async def new(template: str = "template0", *, keyed: bool = False) -> str:
            return await stack.enter_async_context(database(servers, template, keyed=keyed))

        yield new


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


@pytest.fixture(scope="module")
async def story(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Story]:
    """One service and sandbox for a module, whose tests each have conversations of their own.

    `pytestmark = pytest.mark.story(duplicates="refuse")` gives `roles` and fields of the sandbox's Config.
    """
    async with story_on(servers, **_options(request)) as story:
        yield story


@pytest.fixture
async def own_story(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Story]:
    """The same for one test, which does something to the whole of it."""
    async with story_on(servers, **_options(request)) as story:
        yield story


@pytest.fixture(scope="module")
async def service(servers: Servers) -> AsyncIterator[Served]:
    """One service for a module, which delivers nothing: the channel is registered, the account connected."""
    async with serving(servers) as service:
        assert (await service.register()).status == 201
        assert (await service.connect()).status == 201
        yield service


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    mark = request.node.get_closest_marker("story")
    return dict(mark.kwargs) if mark else {}
