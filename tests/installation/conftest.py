"""A service that any account may install, for each test."""

from collections.abc import AsyncIterator

import pytest_asyncio

from app.servers.servers import Servers
from tests.support.crm_service import INSTALL, Office, office_of


@pytest_asyncio.fixture
async def office(servers: Servers) -> AsyncIterator[Office]:
    async with office_of(servers, install=INSTALL) as one:
        assert (await one.register()).status == 201
        yield one
