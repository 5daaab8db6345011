"""Three NATS servers in a cluster, as ops/nats.conf has them."""

import asyncio
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from app.servers.nats import nats_binary
from app.stream import jetstream
from ops.benches.cluster.children import POLL_SECONDS, ROOT, Child, free_port
from ops.benches.cluster.postgres import Failed

READY_SECONDS = 30.0
PASSWORD = "p4ss-of-the-benches"  # noqa: S105
# Lines of the shipped configuration that name a place. Clients are told of no address but those they have,
# because they come through proxies.
LISTEN, MONITOR, STORE, ROUTES = (
    'listen: "0.0.0.0:4222"',
    'http: "127.0.0.1:8222"',
    'store_dir: "/data"',
    'listen: "0.0.0.0:6222"',
)


class Peer(Struct, frozen=True):
    """Another server of a stream."""

    name: str
    current: bool = False


class Group(Struct, frozen=True):
    """Who keeps a stream; `leader` is empty while there is none."""

    leader: str = ""
    replicas: tuple[Peer, ...] = ()


class Kept(Struct, frozen=True):
    """The part of a stream's information that says where it is kept."""

    cluster: Group = Group()


class Node:
    """One of the servers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder / name
        self.port, self.route, self.monitor = free_port(), free_port(), free_port()
        self.child: Child | None = None
        passwords = ("NATS_PASSWORD", "NATS_ANALYST_PASSWORD", "NATS_ROUTE_PASSWORD")
        self.settings = {"NATS_NAME": name, **dict.fromkeys(passwords, PASSWORD)}
        self.folder.mkdir()

    @property
    def url(self) -> str:
        """The address of this server itself, past the proxies."""
        return f"nats://chatledger:{PASSWORD}@127.0.0.1:{self.port}"

    def configure(self, nodes: "list[Node]") -> None:
        """Write the configuration."""
        routes = ", ".join(f"nats://route:{PASSWORD}@127.0.0.1:{node.route}" for node in nodes)
        self.settings["NATS_ROUTES"] = f"[{routes}]"
        text = (ROOT / "ops/nats.conf").read_text()
        for old, new in (
            (LISTEN, f'listen: "127.0.0.1:{self.port}"'),
            (MONITOR, f'http: "127.0.0.1:{self.monitor}"'),
            (STORE, 'store_dir: "store"'),
            (ROUTES, f'listen: "127.0.0.1:{self.route}"\n  no_advertise: true'),
        ):
            if old not in text:
                raise Failed(f"ops/nats.conf has no line {old}")
            text = text.replace(old, new)
        (self.folder / "nats.conf").write_text(text)
        accounts = (ROOT / "ops/nats-accounts.conf").read_text()
        (self.folder / "nats-accounts.conf").write_text(accounts)

    def start(self) -> None:
        """Start it; it is there when the cluster has a leader for it."""
        self.child = Child([nats_binary(), "-c", "nats.conf"], self.folder, settings=self.settings)

    def kill(self) -> None:
        """Kill it."""
        if self.child:
            self.child.kill()


class Trio:
    """The cluster."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(f"nats-{number}", folder) for number in (1, 2, 3)]

    async def start(self) -> None:
        """Start all of them, and wait until they have a leader."""
        for node in self.nodes:
            node.configure(self.nodes)
            node.start()
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                await self.kept()
                return
            except jetstream.JetStreamError as error:
                if time.monotonic() > end:
                    raise Failed(f"NATS: {error}") from error
            await asyncio.sleep(POLL_SECONDS)

    async def kept(self) -> Group:
        """Who keeps the stream LEDGER; nobody yet if there is none. Raises JetStreamError."""
        urls = ",".join(node.url for node in self.nodes)
        connection = await jetstream.connect(urls, name="bench")
        try:
            raw = await jetstream.call(connection, f"STREAM.INFO.{jetstream.STREAM}")
            return msgspec.json.decode(raw, type=Kept).cluster
        except jetstream.StreamRefused as refusal:
            if refusal.code == jetstream.STREAM_GONE:
                return Group()
            raise
        finally:
            await connection.close()

    async def leader(self) -> Node:
        """The server that leads the stream LEDGER."""
        name = (await self.kept()).leader
        return next(node for node in self.nodes if node.name == name)

    async def caught_up(self) -> None:
        """Wait until every server that keeps the stream has all of it."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            try:
                group = await self.kept()
            except jetstream.JetStreamError:
                continue
            if group.leader and all(peer.current for peer in group.replicas):
                return
            await asyncio.sleep(POLL_SECONDS)
        raise Failed("the servers of NATS do not catch up")
