"""`chatledger import`: a file goes to a running service, which tells how far it is, and last the report."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.target import find_target
from app.config.settings import Settings

Json = dict[str, Any]
CHUNK_BYTES = 256 * 1024
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 120.0
STANDARD_INPUT = Path("-")
GZIP = b"\x1f\x8b"
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)
INTERRUPTED = 130  # As shells have it: 128 and the number of SIGINT.
AGAIN = "run the same command again: it goes on where it stopped"


class Refused(OSError):
    """The service does not take the file, or went away; the message says what to do."""


async def run_import(
    settings: Settings, url: str | None, file: Path, size: int | None, query: dict[str, str]
) -> Json:
    """Send a file of `size` bytes to the service, and show on a terminal how far it is; returns the report.

    Ctrl-C ends the process with exit code 130, once it says where the import goes on. Raises Refused,
    BadSettings, and OSError of the file.
    """
    where, key = find_target(settings, url)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    reached = Reached()
    with progress:
        tasks = {"sending": progress.add_task("sending (bytes)", total=size)}

        def told(said: Json) -> None:
            reached.take(said)
            if said["stage"] not in tasks:
                tasks[said["stage"]] = progress.add_task(said["stage"], total=None)
            progress.update(tasks[said["stage"]], completed=said["line"], total=said["lines"])

        def sent(done: int) -> None:
            progress.update(tasks["sending"], completed=done)

        work = asyncio.ensure_future(upload(where, key, file, query, sent=sent, told=told))
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, work.cancel)
        try:
            return await work
        except asyncio.CancelledError:
            progress.stop()
            print(f"chatledger: {reached.words()}", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)  # A thread may wait for standard input, and nobody else can end that.


class Reached:
    """How far an import is, by its lines of progress."""

    def __init__(self) -> None:
        self._latest: Json = {}

    def take(self, said: Json) -> None:
        """Note a line of progress."""
        self._latest = said

    def words(self) -> str:
        """What to say when it is interrupted."""
        if self._latest.get("stage") != "importing":
            return "stopped before the first line was imported: run the same command again"
        lines = self._latest.get("lines") or "?"
        return f"stopped after line {self._latest['line']} of {lines}: {AGAIN}"


async def upload(
    url: str,
    key: str,
    file: Path,
    place: dict[str, str],
    *,
    sent: Callable[[int], None],
    told: Callable[[Json], None],
) -> Json:
    """Send a file to the service at `url`; returns the report. Raises Refused, and OSError of the file.

    `place` is the query: channel, account_id, again. `sent` is called with the bytes of the file sent so far,
    `told` with each line of progress.
    """
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.post(
                f"{url}/v1/import", params=place, data=_pieces(file, sent), expect100=True
            ) as answer,
        ):
            return await _heard(url, answer, told)
    except aiohttp.ClientConnectorError:
        raise Refused(
            f"no service answers at {url}: start it with `chatledger serve`, or name another with --url"
        ) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        if isinstance(damage := error.__cause__ or error.__context__, DAMAGED):
            raise Refused(f"{file} is no whole gzip file ({damage}): compress it again") from None
        raise Refused(f"the connection to {url} broke ({type(error).__name__}): {AGAIN}") from None
    except DAMAGED as damage:
        raise Refused(f"{file} is no whole gzip file ({damage}): compress it again") from None


def summary(report: Json) -> Iterator[str]:
    """The report in lines for people: what became of the file, and what is wrong with which line."""
    if report.get("already"):
        yield "import     done already, and nothing was read: this is its report; --again reads every line"
    else:
        state = report["state"] if report["state"] == "done" else f"stopped: {report['detail']}"
        yield f"import     {state}"
    for name in ("lines", "imported", "duplicates", "conflicts", "skipped"):
        yield f"{name:<10} {report[name]}"
    if report.get("resumed"):
        yield f"resumed    {report['resumed']} (they had failed, and are sent again)"
    if report["backwards"]:
        yield f"backwards  {report['backwards']} (older than a line before of their chat: Kommo orders them)"
    for each in report["problems"]:
        yield f"line {each['line']}: {each['problem']}"
    if report["left_off"]:
        yield f"and {report['left_off']} more"


def _opened(file: Path) -> BufferedReader:
    if file == STANDARD_INPUT:
        return open(0, "rb", closefd=False)  # the caller closes it
    return file.open("rb")


async def _pieces(file: Path, sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(_opened(file))
        begins = await asyncio.to_thread(raw.peek, len(GZIP))
        packed = begins[: len(GZIP)] == GZIP
        source = stack.enter_context(gzip.open(raw)) if packed else raw
        done = 0
        while piece := await asyncio.to_thread(source.read, CHUNK_BYTES):
            yield piece
            done += len(piece)
            sent(raw.tell() if packed and raw.seekable() else done)


async def _heard(url: str, answer: aiohttp.ClientResponse, told: Callable[[Json], None]) -> Json:
    if answer.status != 200:
        problem = await answer.json(content_type=None)
        raise Refused(f"{url} answered {answer.status}: {problem.get('detail')}")
    async for line in answer.content:
        said: Json = json.loads(line)
        if said.pop("type") == "report":
            return said
        told(said)
    raise Refused(f"{url} went away: {AGAIN}")
