"""A pusher that a test drives itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.delivery.prepare import Pusher
from app.http_client import Client
from app.kommo.chats.client import Kommo
from app.messengers.kinds import messengers
from app.operations.services import Services

PROBE_SECONDS = 1.0


@asynccontextmanager
async def pushing(services: Services) -> AsyncIterator[Pusher]:
    """A pusher in the hands of the test: it probes every second."""
    client = Client()
    kommo = Kommo(client, services.settings.kommo_url, services.budget)
    url = services.settings.database_url or ""
    pusher = Pusher(url, services.channels, kommo, messengers(client), probe_seconds=PROBE_SECONDS)
    try:
        yield pusher
    finally:
        await pusher.close()
        await client.close()
