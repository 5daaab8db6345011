"""This version and 0.2.1 work beside each other on one database, under traffic both ways.

0.2.1 is taken out of the history of this repository; a copy without that history skips these tests, and
`test_upgrade` shows with its database and its statements what they need.
"""

import asyncio
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from app.servers.servers import Servers
from ops.sandbox import Sandbox
from tests.support.databases import database
from tests.support.failover.deliverers import all_is_well
from tests.support.ids import ADMIN_KEY, AS_ADMIN, MASTER_KEY
from tests.support.processes import ROOT, Process, run_command
from tests.support.system import Story, Traffic, broker, config, free_port

OLD_COMMIT = "16714ec91e3597b1c8b8e68e4e8c628e1e5f941c"
BESIDE_SECONDS = 3.0


@pytest.fixture(scope="module")
def old_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of chatledger 0.2.1."""
    words = ["git", "-C", str(ROOT), "archive", OLD_COMMIT, "app", "domain", "projections", "ops"]
    try:
        packed = subprocess.run(words, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"this copy of the repository does not have 0.2.1, {OLD_COMMIT[:7]}, in its history")
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Door:
    """What stands in front of several processes: each connection goes to the next that is there."""

    def __init__(self) -> None:
        self.port, self.targets, self._next = free_port(), list[int](), 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", self.port):
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self.targets:
            self._next += 1
            with suppress(OSError):
                target = self.targets[self._next % len(self.targets)]
                to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target)
                await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))
                return
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while some := await reader.read(65536):
            writer.write(some)
            await writer.drain()
    writer.close()


class Site:
    """A database of 0.2.1, NATS, the sandbox, a door; and a process of each version, not yet running."""

    def __init__(self, story: Story, door: Door, old: Process, new: Process, url: str) -> None:
        self.story, self.door, self.old, self.new, self.url = story, door, old, new, url

    async def start(self, process: Process) -> None:
        """Start it and let it have its share of what comes in."""
        where = await process.start()
        self.door.targets.append(int(where.rpartition(":")[2]))

    async def end(self, process: Process) -> None:
        """Stop it as an operator does: first nothing new comes to it."""
        port = int(process.settings["CHATLEDGER_PORT"])
        self.door.targets.remove(port)
        assert await process.end() == 0

    async def has_all(self, traffic: Traffic) -> None:
        """All that was acknowledged has arrived once and in its order, and hardly anything was refused."""
        await all_is_well(self.story, traffic)
        # 0: a connection that was kept alive ended as its process did; whoever sent something repeats it.
        assert set(traffic.refused) <= {0}
        assert len(traffic.refused) < sum(map(len, traffic.taken.values())) / 20
        status = await self.story.api("GET", "/v1/status")
        assert status["refused"] == 0
        assert status["deliveries"]["parked"] == 0


@pytest.fixture
async def site(servers: Servers, old_program: Path, tmp_path: Path) -> AsyncIterator[Site]:
    door = Door()
    where = f"http://127.0.0.1:{door.port}"
    async with (
        database(servers, keyed=True) as url,
        broker() as nats,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client,
        Sandbox(config(where)) as sandbox,
        door.open(),
    ):
        made = []
        for name in ("old", "new"):
            folder = tmp_path / name
            folder.mkdir()
            given = {"CHATLEDGER_ADMIN_KEY": ADMIN_KEY, "CHATLEDGER_MASTER_KEY": MASTER_KEY}
            given |= {"CHATLEDGER_DATABASE_URL": url, "CHATLEDGER_NATS_URL": nats.url}
            given |= {"CHATLEDGER_DATA": str(folder), "CHATLEDGER_KOMMO_URL": sandbox.url}
            made.append(Process(folder, "app", "serve", **given, CHATLEDGER_PORT=str(free_port())))
        old, new = made
        old.folder = old_program
        migrated = Process(tmp_path, "app", "migrate", CHATLEDGER_DATABASE_URL=url)
        migrated.folder = old_program
        with pytest.raises(AssertionError, match="migrated: ledger"):  # It ends, and never is ready.
            await migrated.start()
        yield Site(Story(client, sandbox, where), door, old, new, url)
        for process in made:
            if process.child and process.child.returncode is None:
                process.child.kill()
                await process.child.wait()


async def test_this_version_starts_beside_the_old_one_and_takes_over(site: Site) -> None:
    story = site.story
    await site.start(site.old)
    await story.connect()
    traffic = Traffic(story)
    traffic.begin()
    await asyncio.sleep(1)
    assert (await run_command("migrate", CHATLEDGER_DATABASE_URL=site.url)).code == 0
    await site.start(site.new)
    await asyncio.sleep(BESIDE_SECONDS)
    await site.end(site.old)
    await asyncio.sleep(1)
    await traffic.end()
    await site.has_all(traffic)


async def test_the_old_version_starts_beside_this_one_and_takes_over_again(site: Site) -> None:
    """A rollback: what this version recorded, the old one reads, and the other way round."""
    story = site.story
    assert (await run_command("migrate", CHATLEDGER_DATABASE_URL=site.url)).code == 0
    await site.start(site.new)
    await story.connect()
    traffic = Traffic(story)
    traffic.begin()
    await asyncio.sleep(1)
    await site.start(site.old)
    await asyncio.sleep(BESIDE_SECONDS)
    await site.end(site.new)
    await asyncio.sleep(2)
    await site.start(site.new)
    await asyncio.sleep(BESIDE_SECONDS)
    await traffic.end()
    await site.end(site.old)
    await site.has_all(traffic)
    status, _ = await story.call("GET", f"{story.url}/v1/conversations", headers=AS_ADMIN)
    assert status == 200
