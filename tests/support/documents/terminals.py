"""Terminals for the tests of the tutorials: each is a shell, as a reader has several of them open."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from tests.support.documents.pages import ROOT

SHOWN_SECONDS = 60.0  # A first start makes a database, and the machine may be busy.
END_SECONDS = 30.0
AGAIN_SECONDS = 0.25
ENDED = b"\0\n"
# Ids, times, ports and one-time tokens differ from run to run.
DIFFERENT = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "<time>"),
    (re.compile(r"127\.0\.0\.1:\d+"), "<address>"),
    (re.compile(r"token=[\w-]+"), "<token>"),
)
# A command that only reads may be typed again, as a reader is slower than a test.
WRITES = re.compile(r" -d | -X |\.py |>")


class Terminal:
    """A shell; `shown` is what it has printed since its last block."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.process, self.errors = process, errors
        self.shown = ""
        self.typed = self.ended = 0
        self.news = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            self.ended += line == ENDED
            self.shown += line.decode() if line != ENDED else ""
            self.news.set()

    async def run(self, text: str, shows: str | None) -> None:
        """Type a block. Returns when it has ended, or when it shows what it shall, as a server does."""
        async with asyncio.timeout(SHOWN_SECONDS):
            while True:
                self.shown = ""
                await self._type(text)
                if await self.has_shown(shows):
                    break
                assert not WRITES.search(text), (text, shows, self.shown, self.errors.read_text())
                await asyncio.sleep(AGAIN_SECONDS)
        self.shown = ""

    async def _type(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{text}\nprintf '\\0\\n'\n".encode())
        self.typed += 1
        await self.process.stdin.drain()

    async def has_shown(self, shows: str | None) -> bool:
        """Whether the block shows this when it ends, or while it runs; None: whatever it shows at its end."""
        async with asyncio.timeout(SHOWN_SECONDS):
            while True:
                same = shows is not None and normal(self.shown) == normal(shows)
                if same or self.ended == self.typed:
                    return same or shows is None
                self.news.clear()
                await self.news.wait()

    def interrupt(self) -> None:
        """Ctrl-C: what runs in the shell ends, and the shell stays."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for child in children.split():
            os.kill(int(child), signal.SIGINT)

    async def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.interrupt()
        await asyncio.wait_for(self.process.wait(), END_SECONDS)
        await self.reading


Open: TypeAlias = Callable[[str], Awaitable[Terminal]]


@asynccontextmanager
async def terminals(folder: Path, **environment: str) -> AsyncIterator[Open]:
    """`await open_("Terminal 1")` opens it in the repository, unless it is open; all end with the test."""
    found: dict[str, Terminal] = {}
    every = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}

    async def open_(title: str) -> Terminal:
        if title not in found:
            errors = folder / f"{title}.log"
            with errors.open("wb") as log:
                shell = await asyncio.create_subprocess_exec(
                    "bash",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    cwd=ROOT,
                    env=every,
                )
            found[title] = Terminal(shell, errors)
        return found[title]

    yield open_
    await asyncio.gather(*(terminal.close() for terminal in found.values()))


def normal(text: str) -> str:
    """A text without what differs from run to run."""
    for pattern, instead in DIFFERENT:
        text = pattern.sub(instead, text)
    return text.strip()
