"""chatledger as it runs in production: its own processes, a registered channel, and fast counterparts."""

import asyncio
import base64
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp

from app.servers.servers import Servers
from ops.benches import samples

READY_SECONDS = 60
ADMIN_KEY = "the-admin-key-of-the-benches"
MASTER_KEY = base64.b64encode(bytes(32)).decode()


def environment(where: Servers, url: str, folder: Path, kommo_url: str) -> dict[str, str]:
    """Settings of a chatledger on the bench's own servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHATLEDGER_")}
    return kept | {
        "CHATLEDGER_DATA": str(folder / "service"),
        "CHATLEDGER_DATABASE_URL": url,
        "CHATLEDGER_NATS_URL": where.nats_url,
        "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
        "CHATLEDGER_MASTER_KEY": MASTER_KEY,
        "CHATLEDGER_KOMMO_URL": kommo_url,
        "CHATLEDGER_PORT": "0",
    }


@contextlib.asynccontextmanager
async def process(
    *arguments: str, settings: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A Python process that prints `… ready on URL`; it is stopped at the end."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, env=settings
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(READY_SECONDS):
            line = (await child.stdout.readline()).decode()
        if " on " not in line:
            raise RuntimeError(f"{' '.join(arguments)} did not start: {line!r}")
        yield child, line.split()[-1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


async def register(
    url: str,
    messenger_url: str,
    *,
    channel: str = "bench",
    channel_id: str = samples.CHANNEL_ID,
    account: str = samples.ACCOUNT,
) -> None:
    """Register a channel, by default the bench's, and connect its account, through the API."""
    body = {
        "name": channel,
        "kommo": {"channel_id": channel_id, "secret": samples.SECRET},
        "messenger": {"kind": "webhook", "url": messenger_url, "secret": samples.MESSENGER_SECRET},
    }
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        for path, content in (
            ("/v1/channels", body),
            (f"/v1/channels/{channel}/connections", {"account_id": account, "title": channel}),
        ):
            async with session.post(path, json=content) as answer:
                if answer.status not in (200, 201):
                    raise RuntimeError(f"{path} answered {answer.status}: {await answer.text()}")


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)
