"""The database for a command: the operator's, the running service's, or one started as long as it takes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.config.settings import Settings
from app.servers.postgres import PrivatePostgres
from app.servers.servers import AlreadyRunning, servers
from app.service.service import migrate


@asynccontextmanager
async def reach_database(settings: Settings) -> AsyncIterator[str]:
    """The URL of the database; a private one is migrated unless the service runs.

    Raises AlreadyRunning if a service runs whose private PostgreSQL is not to be found.
    """
    if settings.database_url:
        yield settings.database_url
        return
    running = None
    try:
        async with servers(settings) as where:
            await migrate(where.database_url)
            yield where.database_url
            return
    except AlreadyRunning:
        running = PrivatePostgres(settings.data / "postgres").running_url()
        if running is None:
            raise
    yield running
