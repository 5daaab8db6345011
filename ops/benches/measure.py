"""A figure is a median of rounds in which both sides take turns, because machines drift."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median

import msgspec
import psycopg
from msgspec import Struct

from app.config.settings import load_settings
from app.database import schema
from app.servers.servers import Servers, servers


class Figure(Struct, frozen=True):
    """One line of output. `ratio` is value to baseline; `holds` is whether the target is met."""

    name: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    target: str
    holds: bool


def show(figure: Figure) -> None:
    """Print a figure as one line of JSON."""
    print(msgspec.json.encode(figure).decode(), flush=True)


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"  {text}", file=sys.stderr, flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def compared(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The medians of values and baselines, and of their ratios round by round."""
    return (
        round(median(value for value, _ in pairs), 3),
        round(median(baseline for _, baseline in pairs), 3),
        round(median(value / baseline for value, baseline in pairs), 3),
    )


def cpu_seconds() -> float:
    """CPU time of this process and of those below it, also of those that ended; of user and kernel."""
    parents, spent = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # It has ended.
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
            spent[int(stat.parent.name)] = sum(map(int, fields[11:15]))
    family = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(spent.get(one, 0) for one in family) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def private_servers() -> AsyncIterator[tuple[Servers, Path]]:
    """PostgreSQL and NATS of the bench's own, in a folder that is deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="chatledger-bench-"))
    try:
        settings = load_settings(environment={"CHATLEDGER_DATA": str(folder)})
        async with servers(settings) as where:
            yield where, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def new_database(where: Servers, name: str) -> str:
    """A fresh database with the ledger's tables; returns its URL."""
    async with await psycopg.AsyncConnection.connect(where.database_url, autocommit=True) as connection:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        await connection.execute(f"CREATE DATABASE {name}".encode())
    url = where.database_url.replace("/postgres?", f"/{name}?")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await schema.migrate(connection, keyed=False)  # Samples and services are of several processes.
    return url
