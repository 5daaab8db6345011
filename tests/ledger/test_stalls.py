"""A database that stalls costs an answer within Kommo's 5 seconds, and nothing else."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from app.messengers import webhook
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
