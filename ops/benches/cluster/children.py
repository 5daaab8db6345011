"""Processes of a cluster: each works below the cluster's folder, by which all of them are found and ended.

A server that is stopped (SIGSTOP) takes no other signal than SIGKILL and does not notice that its parent is
gone. So a process of its own (`watchdog`) waits for the end of ours, kills what is left and removes the
folder.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from app.servers.process import ENVIRONMENT, SHIM, open_log

ROOT = Path(__file__).parents[3]
KILL_SECONDS = 10.0  # chosen: the kernel ends killed processes within moments, on a busy machine seconds
POLL_SECONDS = 0.02

_started: list[subprocess.Popen[bytes]] = []  # all that have to be waited for


class Child:
    """A process with its descendants; its output is in `log`."""

    def __init__(
        self,
        words: Sequence[str | Path],
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        user: tuple[int, int] | None = None,
    ) -> None:
        """Start it in `folder`, as (uid, gid) if given; it is killed when we die."""
        self.log = folder.parent / f"{folder.name}.log"
        uid, gid = user or (0, 0)
        shim = [sys.executable, "-I", "-S", "-c", SHIM, os.getpid(), int(signal.SIGKILL), uid, gid]
        with open_log(self.log) as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own binaries, no shell
                [*map(str, shim), *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=ENVIRONMENT | dict(settings or {}),
                start_new_session=True,
            )
        _started.append(self.process)

    def pids(self) -> list[int]:
        """Returns the process and its descendants, parents first."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def stop(self) -> None:
        """Stop it as a suspended machine would; parents first, so that none makes a child meanwhile."""
        self._send(signal.SIGSTOP)
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """Kill all of it and wait for the end."""
        self._send(signal.SIGKILL)
        self.process.wait(KILL_SECONDS)

    def end(self) -> int:
        """Wait for a program that ends by itself; returns its exit code."""
        return self.process.wait()

    def _send(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def free_port() -> int:
    """A port that is free now, of those that the system gives to nobody who asks for any."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def swept(keep_logs: Path | None) -> Iterator[Path]:
    """A folder: neither it nor what works below it outlives the block or this process."""
    folder = Path(tempfile.mkdtemp(prefix="chatledger-cluster-", dir="/tmp"))
    folder.chmod(0o711)  # The servers run as another user if we are root.
    with subprocess.Popen(  # noqa: S603 - our own module, no shell
        [sys.executable, "-m", f"{__package__}.watchdog", str(folder)],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    ) as watchdog:
        try:
            yield folder
        finally:
            if keep_logs:
                _copy_logs(folder, keep_logs)
            sweep(folder)
            while _started:
                _started.pop().wait(KILL_SECONDS)
            assert watchdog.stdin is not None
            watchdog.stdin.close()


def _copy_logs(folder: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, to / log.name)


def sweep(folder: Path) -> None:
    """Kill what works below a folder, and remove the folder."""
    end = time.monotonic() + KILL_SECONDS
    while (pids := working_in(folder)) and time.monotonic() < end:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


def working_in(folder: Path) -> list[int]:
    """Returns the processes whose working directory is below a folder; a zombie has none."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if folder in entry.readlink().parents:
                found.append(int(entry.parent.name))
    return found
