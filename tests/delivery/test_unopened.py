"""A delivery whose channel's secrets do not open waits for the right master key."""

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from app.channels.directory import Channel, Connection, Secrets
from app.delivery.job import Job, Push
from app.delivery.prepare import Preparer
from app.servers.servers import Servers
from app.service.service import running
from app.vault import WrongMasterKey
from domain import events as e
from domain.ids import scope_of
from domain.state import State
from tests.support.system import chat, installed

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


async def test_a_process_with_a_wrong_key_delivers_nothing_and_loses_nothing(servers: Servers) -> None:
    """All its roles stay up; the right key at the next start is all that is needed."""
    async with installed(servers) as (story, settings):
        name = chat()
        async with running(settings) as run:
            story.run = run
            await story.connect()
            await story.fault("kommo.new_message", "503", times=None)
            message = await story.customer(name)
        await story.order("DELETE", "/faults")
        wrong = replace(settings, master_key=base64.b64encode(b"w" * 32).decode())
        async with running(wrong) as run:
            await asyncio.sleep(2.5)  # Twice as long as it takes to try the secrets again.
            assert not run.failed.done()
            assert (await story.call("GET", f"{story.url}/readyz"))[0] == 503
            assert story.kommo(name) == []
            assert (await story.shown(message))["status"] == "sent"
        async with running(settings):
            assert len(await story.arrived(name)) == 1
