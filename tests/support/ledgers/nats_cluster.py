"""NATS servers as operators run them: alone or in a cluster, with any configuration, to kill and to start."""

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from app.servers.nats import nats_binary

READY_SECONDS = 20
CONFIGURATION = """
server_name: "{name}"
listen: "127.0.0.1:{port}"
ports_file_dir: "{folder}"
log_file: "{folder}/log"
{more}
"""
JETSTREAM = """
jetstream {{ store_dir: "{folder}/store", sync_interval: always, {limits} }}
"""
CLUSTER = """
cluster {{ name: "test", listen: "127.0.0.1:{route}", routes: [{routes}] }}
"""


class NatsServer:
    """A server in a folder of its own; `port` stays the same when it is started again."""

    def __init__(self, folder: Path, more: str = "", *, limits: str = "", jetstream: bool = True) -> None:
        """`more` is configuration; `limits` belong to JetStream's part of it."""
        self.folder = folder
        self.port = free_port()
        self.more = (JETSTREAM.format(folder=folder, limits=limits) if jetstream else "") + more
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and wait until it lets clients in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = CONFIGURATION.format(name=self.folder.name, port=self.port, folder=self.folder, more=self.more)
        (self.folder / "nats.conf").write_text(text)
        with (self.folder / "errors").open("wb") as errors:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
                [nats_binary(), "-c", self.folder / "nats.conf"], stderr=errors, stdout=errors
            )
        ports = self.folder / f"nats-server_{self.process.pid}.ports"
        async with asyncio.timeout(READY_SECONDS):
            while not ports.exists() or not ports.read_text():
                assert self.process.poll() is None, (self.folder / "errors").read_text()
                await asyncio.sleep(0.02)
        assert json.loads(ports.read_text())["nats"]

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, or stop it for a while with SIGSTOP and SIGCONT."""
        if self.process:
            self.process.send_signal(number)
            if number in (signal.SIGKILL, signal.SIGTERM):
                self.process.wait()
                self.process = None

    async def reload(self, more: str) -> None:
        """Take another configuration in without a restart."""
        assert self.process
        self.more = more
        text = CONFIGURATION.format(name=self.folder.name, port=self.port, folder=self.folder, more=more)
        (self.folder / "nats.conf").write_text(text)
        self.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.3)


class NatsCluster:
    """Three servers: the first two know each other, and the third, which joins them, knows both.

    A cluster begins once all that it was told of are there, so a test may start the third one later.
    """

    def __init__(self, folder: Path, more: str = "") -> None:
        routes = [free_port() for _ in range(3)]
        known = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes[:2])
        self.servers = [
            NatsServer(folder / f"n{number}", CLUSTER.format(route=route, routes=known) + more)
            for number, route in enumerate(routes, 1)
        ]

    @property
    def url(self) -> str:
        """The list of all servers."""
        return ",".join(server.url for server in self.servers)

    async def start(self, servers: Sequence[NatsServer] = ()) -> None:
        """Start some servers, or all."""
        await asyncio.gather(*(server.start() for server in servers or self.servers))

    def named(self, name: str) -> NatsServer:
        """The server that the others know by this name."""
        return next(server for server in self.servers if server.folder.name == name)

    def stop(self) -> None:
        for server in self.servers:
            server.kill()


@asynccontextmanager
async def nats_server(folder: Path, more: str = "", *, limits: str = "") -> AsyncIterator[NatsServer]:
    """A server with JetStream, running."""
    server = NatsServer(folder, more, limits=limits)
    await server.start()
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
