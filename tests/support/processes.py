"""Programs of ours run as processes of their own, and the servers that they leave behind."""

import asyncio
import os
import signal
import sys
import sysconfig
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.support.ids import ACCOUNT, ADMIN_KEY, CHANNEL, CHANNEL_SECRET, MESSENGER_SECRET

WAIT_SECONDS = 20
READY_SECONDS = 60.0
END_SECONDS = 20.0
COMMAND_SECONDS = 150.0
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PATH": os.defpath, "PYTHONPATH": sysconfig.get_path("purelib"), "HOME": ""}


class Process:
    """A program of ours as it is run, with settings of its own; what it wrote to stderr is in `log`, and what
    it wrote to stdout until it was ready in `said`.

    It is started in `folder`, the repository, by `python`, unless these are changed before.
    """

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        self.log = folder / f"{arguments[0]}.log"
        self.arguments = arguments
        self.settings = ENVIRONMENT | settings
        self.folder = ROOT
        self.python = [sys.executable]
        self.child: asyncio.subprocess.Process | None = None
        self.said = ""

    async def start(self) -> str:
        """Start it and wait until it says that it is ready; returns its URL."""
        with self.log.open("ab") as log:
            self.child = await asyncio.create_subprocess_exec(
                *self.python,
                "-m",
                *self.arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self.settings,
                cwd=self.folder,
            )
        assert self.child.stdout is not None
        self.said = ""
        async with asyncio.timeout(READY_SECONDS):
            async for line in self.child.stdout:
                self.said += line.decode()
                if b" ready" in line:
                    return self.said.split()[-1]
        raise AssertionError((self.said, self.log.read_text()[-2000:]))

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; its exit code."""
        assert self.child is not None
        with suppress(ProcessLookupError):
            self.child.send_signal(number)
        async with asyncio.timeout(END_SECONDS):
            return await self.child.wait()


@asynccontextmanager
async def started(process: Process) -> AsyncIterator[str]:
    """The program for as long as the block lasts; gives its URL."""
    try:
        yield await process.start()
    finally:
        await process.end(signal.SIGKILL)


class Result(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


async def run_command(*arguments: str, **settings: str) -> Result:
    """Runs a command of chatledger that ends by itself."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", *arguments, stdout=-1, stderr=-1, env=ENVIRONMENT | settings, cwd=ROOT
    )
    async with asyncio.timeout(COMMAND_SECONDS):
        out, err = await child.communicate()
    return Result(child.returncode or 0, out.decode(), err.decode())


class RemoteSandbox(NamedTuple):
    """A sandbox that runs as a process of its own."""

    url: str


def service_process(folder: Path, port: int, kommo_url: str) -> Process:
    """`chatledger serve` with private servers in `folder`."""
    folder.chmod(0o711)  # PostgreSQL, as another user, must get to what is below.
    settings = {
        "CHATLEDGER_DATA": str(folder / "data"),
        "CHATLEDGER_PORT": str(port),
        "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
        "CHATLEDGER_KOMMO_URL": kommo_url,
    }
    return Process(folder, "app", "serve", **settings)


def sandbox_process(folder: Path, url: str, *more: str) -> Process:
    """A sandbox that survives whatever happens to the service at `url`."""
    given = ["--channel", f"{CHANNEL}:{CHANNEL_SECRET}", "--account", ACCOUNT, "--messenger-account", ACCOUNT]
    given += ["--hook-url", f"{url}/kommo/:scope_id", "--messenger-url", f"{url}/messengers/acme"]
    return Process(folder, "ops.sandbox", *given, "--messenger-secret", MESSENGER_SECRET, *more)


def living_servers(folder: Path) -> list[int]:
    """The ids of the servers that run in a data folder; a zombie has no command line."""
    wanted = os.fsencode(folder) + b"/"
    lines = {entry: entry.read_bytes() for entry in Path("/proc").glob("[0-9]*/cmdline") if entry.exists()}
    return [int(entry.parent.name) for entry, line in lines.items() if wanted in line]


def servers_end(folder: Path) -> bool:
    """Waits until no server runs in a data folder; False if one still does."""
    end = time.monotonic() + WAIT_SECONDS
    while living_servers(folder) and time.monotonic() < end:
        time.sleep(0.02)
    return not living_servers(folder)
