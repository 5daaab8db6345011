"""Where everything stands: ledger, views, relay, deliveries and connections, as this process knows it."""

from typing import Literal

from msgspec import Struct

from app.channels import attempts
from app.channels.unconnected import Waiting, waiting
from app.delivery import rests
from app.kommo.refused import count_refused
from app.operations.services import Services
from app.stream.standstill import Standing
from app.views import status
from app.views.deliveries import DeliveryCounts
from app.views.status import view_status
from domain import ids


class Relayed(Struct, frozen=True):
    """How far the stream is; `active` is whether this process relays.

    `replicas` is how often NATS keeps the stream, 0 if this process has not opened it. `stands` is since when
    and why nothing can be published, null while it can.
    """

    active: bool
    position: int
    lag: int
    replicas: int = 0
    stands: Standing | None = None


class Status(Struct, frozen=True):
    """Where everything stands. `queue` is the number of commands that wait for the ledger.

    `unconnected` are the accounts without a connection for which deliveries wait.
    `refused` is the number of hooks that were not taken and are kept: GET /v1/refused lists them.

    `ids` is "keyed" if ids are made with a secret of the ledger, "public" in one from before there was one.
    `connections` are the channels that could not be registered or connected at the last attempt, and why.
    `resting` are the accounts and messengers that refuse us, so that what is for them waits.
    """

    ledger: str
    head: int
    queue: int
    views: list[status.ViewStatus]
    projection: status.Projection
    relay: Relayed | None
    deliveries: DeliveryCounts
    connections: list[attempts.Problem] = []
    unconnected: list[Waiting] = []
    refused: int = 0
    resting: list[rests.Resting] = []
    ids: Literal["keyed", "public"] = "public"


async def read_status(services: Services) -> Status:
    """The status at this moment. Raises ViewsMissing, psycopg.OperationalError."""
    now = await view_status(services.pool)
    relay = services.relay
    relayed = None
    if relay:
        lag, stands = max(0, now.head - relay.position), relay.standstill.now
        relayed = Relayed(relay.active, relay.position, lag, relay.replicas, stands)
    return Status(
        services.ledger_id,
        now.head,
        services.ledger.depth,
        now.views,
        now.projection,
        relayed,
        now.deliveries,
        await services.pool.fetch(attempts.Problem, attempts.PROBLEMS, {}),
        await waiting(services.pool),
        await count_refused(services.pool),
        await services.pool.fetch(rests.Resting, rests.RESTS, {}),
        "keyed" if ids.are_keyed() else "public",
    )
