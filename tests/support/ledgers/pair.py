"""A PostgreSQL of a test's own, which listens on TCP and lets everybody in, with a standby or without."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ops.benches.cluster.postgres import DATABASE, Pair
from tests.support.databases import make_without_a_secret


@asynccontextmanager
async def paired(folder: Path, *, standby: bool = True) -> AsyncIterator[Pair]:
    """The servers while the block runs, with an empty database; `standby` is synchronous."""
    pair = Pair(folder)
    try:
        await (pair.start() if standby else pair.start_primary())
        await make_without_a_secret(url_of(pair.primary.port))
        yield pair
    finally:
        for node in pair.nodes:
            node.kill()


def url_of(*ports: int, more: str = "") -> str:
    """The URL of the database on these ports of this machine."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://postgres@{hosts}/{DATABASE}{more}"
