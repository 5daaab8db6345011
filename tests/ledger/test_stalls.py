"""A database that stalls costs an answer within Kommo's 5 seconds, and nothing else."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psycopg
import pytest

from app.database.binary import Prepared
from app.database.connection import NO_ANSWER, connect
from app.messengers import webhook
from app.servers.postgres import PrivatePostgres
from app.service.service import migrate
from tests.support.ids import AS_ADMIN, MESSENGER_SECRET, SCOPE
from tests.support.processes import living_servers
from tests.support.system import Story, chat, on_its_own_servers


@contextmanager
def stalled(folder: Path) -> Iterator[None]:
    """Every process of the folder's PostgreSQL stands still, as on a machine that is suspended."""
    pids = [pid for pid in living_servers(folder) if b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    children = [
        int(one.parent.name)
        for one in Path("/proc").glob("[0-9]*/stat")
        if one.exists() and int(one.read_text().rpartition(")")[2].split()[1]) in pids
    ]
    for pid in (*pids, *children):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (*pids, *children):
            os.kill(pid, signal.SIGCONT)


READS = ("conversations", "status", "events", "channels", "deliveries", "accounts", "refused")


async def timed(
    story: Story, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, float]:
    """The status of an answer, and the seconds until it came."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with story.client.request(method, story.url + path, data=body, headers=headers) as answer:
        await answer.read()
        return answer.status, loop.time() - began


async def test_nobody_waits_longer_than_kommo_does(data_folder: Path) -> None:
    """Reads, signed and unsigned webhooks, twice: the second finds connections that the first left behind."""
    async with on_its_own_servers(data_folder) as story:
        name = chat()
        await story.customer(name)
        await story.arrived(name)
        action = msgspec.json.encode({"type": "typing"})
        signed = webhook.signed(MESSENGER_SECRET, "stalled", action)
        with stalled(data_folder):
            for _ in range(2):
                found = await asyncio.gather(
                    *(timed(story, "GET", f"/v1/{path}", headers=AS_ADMIN) for path in READS),
                    timed(story, "GET", "/readyz"),
                    timed(story, "POST", f"/kommo/{SCOPE.scope_id}", b"{}", {"X-Signature": "0" * 40}),
                    timed(story, "POST", "/messengers/acme", action, signed),
                    timed(story, "POST", "/messengers/acme", action),
                )
                assert all(seconds < 5 for _, seconds in found), found
            assert {status for status, _ in found} == {503}, found
        await story.settled(45)
        await story.customer(name, "After")
        await story.arrived(name, 2)


async def test_a_connection_without_an_answer_is_given_up(data_folder: Path) -> None:
    """A proxy keeps a connection open whose server has vanished: neither keepalives nor the system end it."""
    server = PrivatePostgres(data_folder / "postgres")
    await server.start()
    try:
        await migrate(server.url)
        async with (
            await connect(server.url, patience_seconds=0.5) as asked,
            await connect(server.url, patience_seconds=0.5) as prepared,
        ):
            await prepared.execute("PREPARE one AS SELECT 1")
            row = Prepared(prepared, "one").row
            assert await row([]) == [b"\0\0\0\1"]
            with stalled(data_folder):
                for waiting in (asked.execute("SELECT 1"), row([])):
                    with pytest.raises(psycopg.OperationalError, match=NO_ANSWER):
                        await waiting
            assert asked.closed
            assert prepared.closed
    finally:
        await server.stop()
