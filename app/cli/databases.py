"""The database for a command: the operator's, the running service's, or one started as long as it takes.

The operator's is migrated by a command, which can also say what it would do.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.config.settings import Settings
from app.database import schema
from app.database.connection import open_session
from app.servers.postgres import PrivatePostgres
from app.servers.servers import AlreadyRunning, check_postgres, servers
from app.service import service


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
            await service.migrate(where.database_url, packed=settings.pack_events)
            yield where.database_url
            return
    except AlreadyRunning:
        running = PrivatePostgres(settings.data / "postgres").running_url()
        if running is None:
            raise
    yield running


async def migrate(url: str, *, packed: bool | None = None) -> schema.Identity:
    """Migrate the operator's database; returns whose ledger it is.

    Raises OldServer, ServerFailed and Pooled, and what `schema.migrate` raises.
    """
    await check_postgres(url)
    return await service.migrate(url, packed=packed)


async def plan(url: str, *, packed: bool | None = None) -> schema.Plan:
    """Returns what a migration of the operator's database would do. Raises as `migrate`."""
    await check_postgres(url)
    async with await open_session(url) as db:
        return await schema.plan(db, packed=packed)


def explain(plan: schema.Plan) -> list[str]:
    """A plan in lines."""
    if not plan.steps:
        return [f"nothing to do: the database is at schema version {plan.version}, {plan.needs} is needed"]
    now = "has no chatledger tables" if plan.version is None else f"is at schema version {plan.version}"
    return [f"to migrate: the database {now}, {plan.needs} is needed", *plan.steps]
