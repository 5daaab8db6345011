"""A PostgreSQL primary with a synchronous standby, as ops/postgresql.conf has it, and a failover by hand.

Who decides on a failover (Patroni, an operator) also makes sure that the old primary is dead before the
standby is promoted. The promoted one waits for no standby until `rejoin` has made the other one its standby.
"""

import asyncio
import shutil
import time
from pathlib import Path

import psycopg

from app.servers.postgres import binaries
from app.servers.user import give, server_user
from ops.benches.cluster.children import POLL_SECONDS, ROOT, Child, free_port

READY_SECONDS = 60.0
DATABASE = "chatledger"
# What the shipped configuration leaves to the place, and less memory and disk than production has.
CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
shared_buffers = 64MB
min_wal_size = 80MB
max_wal_size = 1GB
primary_conninfo = 'host=127.0.0.1 port={source} user=postgres application_name={name}'
synchronous_standby_names = '{standby}'
"""
IN_SYNC = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"


class Failed(Exception):
    """A program of the cluster did not do what it should; the message has the end of its log."""


class Node:
    """One of the two servers."""

    def __init__(self, name: str, folder: Path, tools: Path) -> None:
        self.name, self.folder, self.tools = name, folder / name, tools
        self.data, self.port = self.folder / "data", free_port()
        self.user = server_user()
        self.child: Child | None = None
        self.folder.mkdir(mode=0o700)
        give(self.folder, self.user)

    @property
    def url(self) -> str:
        """The address of this server itself, past the proxies."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?connect_timeout=5"

    def run(self, program: str, *words: str | Path) -> Child:
        """Start a program of PostgreSQL as its user."""
        return Child([self.tools / program, *words], self.folder, user=self.user.ids if self.user else None)

    def configure(self, *, source: int, standby: str) -> None:
        """Write the configuration: `source` is the port of the primary, `standby` who must have a commit."""
        text = (ROOT / "ops/postgresql.conf").read_text() + CONFIGURATION.format(
            port=self.port, source=source, name=self.name, standby=standby
        )
        (self.data / "postgresql.conf").write_text(text)

    async def start(self) -> None:
        """Start it and wait until it lets us in."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.child = self.run("postgres", "-D", self.data)
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                await self.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > end or self.child.process.poll() is not None:
                    raise Failed(self.child.log.read_text()[-2000:]) from error
            await asyncio.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """Kill all of its processes."""
        if self.child:
            self.child.kill()

    async def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Rows of a statement at this server itself."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as db:
            cursor = await db.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []


class Pair:
    """The primary and its synchronous standby, which change their parts."""

    def __init__(self, folder: Path) -> None:
        user = server_user()
        tools = binaries(folder, shared=user is not None)
        self.nodes = [Node(name, folder, tools) for name in ("pg_1", "pg_2")]
        self.primary, self.standby = self.nodes

    async def start(self) -> None:
        """Make both, and an empty database."""
        await self.start_primary()
        await self.rejoin()

    async def start_primary(self) -> None:
        """Make the primary, with an empty database."""
        node = self.primary
        words = ["-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-instructions", "--no-sync"]
        words += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        await _ended(node.run("initdb", "-D", node.data, *words))
        node.configure(source=self.standby.port, standby="")
        await node.start()
        await node.execute(f"CREATE DATABASE {DATABASE}")

    async def rejoin(self) -> None:
        """Make the standby from a copy of the primary, which then waits for it at each commit."""
        self.standby.kill()
        shutil.rmtree(self.standby.data, ignore_errors=True)
        source = f"host=127.0.0.1 port={self.primary.port} user=postgres"
        words = ["-D", str(self.standby.data), "-d", source, "-X", "stream", "-c", "fast", "--no-sync"]
        await _ended(self.standby.run("pg_basebackup", *words))
        (self.standby.data / "standby.signal").touch()
        self.standby.configure(source=self.primary.port, standby="")
        await self.standby.start()
        self.primary.configure(source=self.standby.port, standby=self.standby.name)
        await self.primary.execute("SELECT pg_reload_conf()")
        await self.in_sync()

    async def in_sync(self) -> None:
        """Wait until the standby has all that the primary has."""
        async with asyncio.timeout(READY_SECONDS):
            while await self.primary.execute(IN_SYNC) != [(1,)]:  # noqa: ASYNC110 - a server has no event
                await asyncio.sleep(POLL_SECONDS)

    async def fail_over(self) -> None:
        """Promote the standby; the old primary must be dead, and is made its standby by `rejoin`."""
        self.primary.kill()
        await self.standby.execute("SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary


async def _ended(child: Child) -> None:
    if code := await asyncio.to_thread(child.end):
        raise Failed(f"exit code {code}: {child.log.read_text()[-2000:]}")
