"""A delivery whose channel's secrets do not open waits for the right master key."""

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from app.channels.directory import Channel, Connection, Secrets
from app.delivery.job import Job, Push
from app.delivery.prepare import Preparer
from app.vault import WrongMasterKey
from domain import events as e
from domain.ids import scope_of
from domain.state import State

GOLDEN = Path(__file__).parents[1] / "golden" / "events"


async def test_a_delivery_waits_for_secrets_that_do_not_open() -> None:
    """It is neither parked nor failed, and the process goes on: the right key is all that it needs."""
    event = e.decode((GOLDEN / "message.sent.json").read_bytes())
    assert isinstance(event, e.MessageSent)
    scope = scope_of(event.channel, "c-1", event.account or "")
    connection = Connection(scope, "Acme", True, "")
    secrets = Secrets("k", "m")
    channel = Channel(event.channel, "c-1", "webhook", "", None, secrets, {event.account or "": connection})
    directory = Late(channel)
    found = await Preparer(Nothing(), directory).prepare(Job(1, replace(event, push="kommo")))
    assert (found[0], directory.asked) == (scope, 2)
    assert isinstance(found[1], Push)


class Late:
    """A directory whose channel opens when it is asked a second time."""

    def __init__(self, channel: Channel) -> None:
        self.known, self.asked = channel, 0

    async def channel(self, _: str) -> Channel | None:
        self.asked += 1
        if self.asked == 1:
            raise WrongMasterKey("the secrets of channel acme were sealed with another master key")
        return self.known


class Nothing:
    """A ledger without streams."""

    async def states(self, _: Sequence[str]) -> dict[str, State]:
        return {}

    async def sends(self, _: str) -> list[e.AnyEvent]:
        return []
