"""`chatledger import`: a file goes to a running service, which tells how far it is, and last the report."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp

Json = dict[str, Any]
CHUNK_BYTES = 256 * 1024
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 120.0
AGAIN = "run the same command again: it goes on where it stopped"


class Refused(OSError):
    """The service does not take the file, or went away; the message says what to do."""


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

    `place` is the query: channel, account_id, again. `sent` is called with the bytes sent so far, `told` with
    each line of progress.
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
        raise Refused(f"the connection to {url} broke ({type(error).__name__}): {AGAIN}") from None


def summary(report: Json) -> Iterator[str]:
    """The report in lines for people: what became of the file, and what is wrong with which line."""
    state = report["state"] if report["state"] == "done" else f"stopped: {report['detail']}"
    yield f"import     {state}"
    for name in ("lines", "imported", "duplicates", "conflicts", "skipped"):
        yield f"{name:<10} {report[name]}"
    if report["backwards"]:
        yield f"backwards  {report['backwards']} (older than a line before of their chat: Kommo orders them)"
    for each in report["problems"]:
        yield f"line {each['line']}: {each['problem']}"
    if report["left_off"]:
        yield f"and {report['left_off']} more"


async def _pieces(file: Path, sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    done = 0
    with file.open("rb") as source:
        while piece := await asyncio.to_thread(source.read, CHUNK_BYTES):
            yield piece
            done += len(piece)
            sent(done)


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
