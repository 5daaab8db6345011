"""Supervises a child server: restarts it if it crashes, and it dies with us."""

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

LOG = logging.getLogger("chatledger.servers")

POLL_SECONDS = 0.02  # chosen: what a start or a stop may take longer than it must
WATCH_SECONDS, WATCH_POLL_SECONDS = 3600.0, 0.2  # chosen: a crash is noticed after a fifth of a second
ORPHAN_SECONDS = 30.0  # chosen: an orphan may write a large checkpoint before it stops
KILLED_SECONDS = 5.0  # chosen: the kernel ends a killed process within moments
BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = (
    0.1,
    10.0,
)  # chosen: a server that crashes at once is not a busy loop
STEADY_SECONDS = 60.0  # chosen: after running this long, a crash counts as the first one
LOG_TAIL_BYTES = 2000  # chosen: the last twenty lines or so
LOG_BYTES_MAX = 10_000_000  # chosen: a log that people can still open

# Runs in an interpreter of its own and then becomes the server: a `preexec_fn` may deadlock in a process with
# threads. The user is changed first, because that clears the death signal (prctl 1, PR_SET_PDEATHSIG).
SHIM = """
import ctypes, os, sys
parent, death_signal, uid, gid = map(int, sys.argv[1:5])
prctl = ctypes.CDLL(None, use_errno=True).prctl
if uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
prctl(1, death_signal, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(70)
os.umask(0o077)
os.execv(sys.argv[5], sys.argv[5:])
"""

# A child gets nothing of our environment, which may hold keys; the locale C is there on every system.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class ServerFailed(Exception):
    """A private server did not start or stop as it should; the message says why as far as its log does."""


# As the servers' logs and the system say it.
FULL = ("No space left on device", "no space left on device", "Disk quota exceeded", "disk quota exceeded")


def failure(server: str, folder: Path, said: str, log: Path | None = None) -> ServerFailed:
    """Returns the error of a server that did not start, from the end of its log or the system's words."""
    if any(words in said for words in FULL):
        return ServerFailed(f"{server} did not start: the disk of {folder} is full: free some space on it")
    more = f" (its log is {log})" if log else ""
    return ServerFailed(f"{server} did not start in {folder}: {last_words(said)}{more}")


def last_words(tail: str) -> str:
    """Returns the line of a log's end that says most: the last one about something fatal, else the last."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()] or ["its log is empty"]
    fatal = [line for line in lines if re.search(r"\b(FATAL|PANIC)\b|\[FTL\]|error:", line)]
    return (fatal or lines)[-1]


def spawn(
    arguments: Sequence[str | Path],
    *,
    death_signal: signal.Signals,
    log: IO[bytes],
    folder: Path | str = "/",
    user: tuple[int, int] | None = None,
    keep: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that gets `death_signal` when this one dies, as (uid, gid) if given.

    It has its own session, so that Ctrl-C reaches only us, and the descriptors in `keep`.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "servers must be started from the main thread: their death signal follows the thread"
        )
    uid, gid = user or (0, 0)
    shim = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        SHIM,
        str(os.getpid()),
        str(int(death_signal)),
        str(uid),
        str(gid),
    ]
    return subprocess.Popen(  # noqa: S603 - our own binaries, no shell
        [*shim, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=folder,
        env=ENVIRONMENT,
        start_new_session=True,
        pass_fds=keep,
    )


async def ended(process: subprocess.Popen[bytes], seconds: float, poll_seconds: float = POLL_SECONDS) -> bool:
    """Wait until the process has ended; False if it has not within `seconds`.

    Polling works the same under asyncio, uvloop and every kernel.
    """
    end = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > end:
            return False
        await asyncio.sleep(poll_seconds)
    return True


async def take_store(folder: Path, program: str, stop_signal: signal.Signals) -> int:
    """Lock a server's folder and return the descriptor, which the server inherits and holds while it lives.

    A server left behind by a killed chatledger is asked to stop, waited for and at last killed.
    Raises ServerFailed if even then somebody holds the lock.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for number, seconds in ((stop_signal, ORPHAN_SECONDS), (signal.SIGKILL, KILLED_SECONDS)):
            if _locked(descriptor):
                return descriptor
            for orphan in _orphans(folder, program):
                LOG.warning("stopping process %d, left behind in %s, with %s", orphan, folder, number.name)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(orphan, number)
            if await _locks(descriptor, seconds):
                return descriptor
        raise ServerFailed(f"another process still uses {folder}: end it, then start again")
    except BaseException:
        os.close(descriptor)
        raise


async def _locks(descriptor: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not _locked(descriptor):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _orphans(folder: Path, program: str) -> list[int]:
    """Returns the servers started for this folder, by their command lines, which every user may read."""
    inside, binary, found = os.fsencode(folder) + b"/", b"/" + program.encode(), []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if any(word.endswith(binary) for word in words) and any(
                word.startswith(inside) for word in words[1:]
            ):
                found.append(int(entry.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def open_log(path: Path) -> IO[bytes]:
    """Open a server's log to append to it; a long log is renamed first."""
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_name(path.name + ".1"))
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))


def log_tail(path: Path) -> str:
    """Returns the end of a server's log, for the message that says why the server is not running."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()
    return ""


class Child:
    """A server process that is started, watched and stopped; subclasses say how."""

    name = "server"
    stop_signal = signal.SIGTERM
    last_signal = signal.SIGKILL
    stop_seconds = 5.0

    def __init__(self, folder: Path, user_name: str | None = None) -> None:
        """`user_name` is who runs the server if we are root; a user of its own is made if it is None."""
        self.folder = folder
        self.user_name = user_name
        self.process: subprocess.Popen[bytes] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def launch(self) -> subprocess.Popen[bytes]:
        """Start the process and return it once it accepts connections. Raises ServerFailed."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start the server and keep it running until `stop`. Raises ServerFailed."""
        began = time.monotonic()
        try:
            self.process = await self.launch()
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise ServerFailed(
                f"{self.name} did not start in {self.folder}: {error.strerror}{where}"
            ) from error
        LOG.info(
            "%s ready in %.0f ms, process %d", self.name, (time.monotonic() - began) * 1000, self.process.pid
        )
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    async def stop(self) -> None:
        """Stop the server, gracefully if it can; does nothing if it is not running."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._watcher = None
        process, self.process = self.process, None
        if process:
            await self.end(process)

    async def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a process: send the stop signal, then the last signal, then SIGKILL."""
        for number in (self.stop_signal, self.last_signal, signal.SIGKILL):
            process.send_signal(number)  # Nothing happens if it has been reaped.
            if await ended(process, self.stop_seconds):
                return
        raise ServerFailed(f"{self.name}, process {process.pid}, does not end")

    async def _watch(self) -> None:
        pause, since = BACKOFF_SECONDS_MIN, time.monotonic()
        while True:
            while self.process and not await ended(self.process, WATCH_SECONDS, WATCH_POLL_SECONDS):
                pass
            code = self.process.returncode if self.process else "none"
            if time.monotonic() - since > STEADY_SECONDS:
                pause = BACKOFF_SECONDS_MIN
            LOG.error("%s ended by itself (code %s), starting it again in %.1f s", self.name, code, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_SECONDS_MAX)
            try:
                self.process = await self.launch()
            except (ServerFailed, OSError) as error:
                LOG.error("%s did not start again: %s", self.name, error)
                continue
            since = time.monotonic()
            LOG.warning("%s runs again, process %d", self.name, self.process.pid)
