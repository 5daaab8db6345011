"""The program on its command line: what it says, how it ends, and what it leaves behind."""

import asyncio
import contextlib
import json
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psycopg
import pytest
from click.testing import CliRunner

from app.servers.servers import Servers
from ops.main import cli
from ops.sandbox import Sandbox
from tests.support.databases import database
from tests.support.ids import ADMIN_KEY, AS_ADMIN
from tests.support.processes import Process, run_command, servers_end, service_process, started
from tests.support.system import Story, broker, chat, config, free_port, until

COMMANDS = ["serve", "demo", "sandbox", "migrate", "status", "rebuild"]


@pytest.fixture(scope="module")
async def given(servers: Servers) -> AsyncIterator[dict[str, str]]:
    """Settings with servers that somebody else runs."""
    async with database(servers) as database_url, broker() as nats:
        yield {
            "CHATLEDGER_DATA": str(nats.folder / "service"),
            "CHATLEDGER_DATABASE_URL": database_url,
            "CHATLEDGER_NATS_URL": nats.url,
            "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
            "CHATLEDGER_PORT": "0",
        }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    told = CliRunner().invoke(cli, [command, "--help"], prog_name="chatledger")
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout.startswith(f"Usage: chatledger {command}")
    assert command in CliRunner().invoke(cli, ["--help"]).stdout


@pytest.mark.parametrize(
    "arguments", [["serve", "--prot", "1"], ["serve", "--port", "x"], ["nothing"]], ids=" ".join
)
def test_bad_usage_is_2(arguments: list[str]) -> None:
    told = CliRunner().invoke(cli, arguments)
    assert (told.exit_code, told.stdout, "Error" in told.stderr) == (2, "", True)


async def test_a_private_database_needs_no_migration() -> None:
    told = await run_command("migrate")
    assert (told.code, told.out, "CHATLEDGER_DATABASE_URL" in told.err) == (2, "", True)


async def test_a_bad_setting_is_2_and_named() -> None:
    told = await run_command("serve", CHATLEDGER_PORT="none")
    assert told.code == 2
    assert "CHATLEDGER_PORT" in told.err


async def test_an_old_database_is_refused_and_migrate_mends_it(given: dict[str, str], tmp_path: Path) -> None:
    old = await run_command("serve", **given)
    assert (old.code, "chatledger migrate" in old.err) == (1, True)
    assert (await run_command("migrate", **given)).out.startswith("migrated: ledger ")
    process = Process(tmp_path, "app", "serve", **given)
    async with started(process) as url:
        assert url.startswith("http://127.0.0.1:")
        assert await process.end() == 0


async def test_status_and_rebuild_tell_of_a_running_service(given: dict[str, str], tmp_path: Path) -> None:
    await run_command("migrate", **given)
    async with started(Process(tmp_path, "app", "serve", **given)) as url:
        told = await run_command("status", "--url", url, "--json", **given)
        shown = json.loads(told.out)
        assert (told.code, {view["lag"] for view in shown["views"]}) == (0, {0})
        assert (await run_command("status", "--url", url, **given)).out.startswith("head ")
        assert (await run_command("rebuild", **given)).out == "rebuilt\n"
        wrong = await run_command("status", "--url", url, **{**given, "CHATLEDGER_ADMIN_KEY": "other" * 4})
        assert (wrong.code, wrong.out, "401" in wrong.err) == (1, "", True)


async def test_rebuild_and_retry_work_beside_a_service_with_private_servers(data_folder: Path) -> None:
    where = {"CHATLEDGER_DATA": str(data_folder / "data")}
    async with started(process := service_process(data_folder, 0, "http://127.0.0.1:9")):
        before = (data_folder / "data" / "admin.key").exists()
        rebuilt = await run_command("rebuild", **where)
        assert (rebuilt.code, rebuilt.out) == (0, "rebuilt\n"), rebuilt
        assert (await run_command("views", "retry", **where)).out == "nothing is parked\n"
        assert (data_folder / "data" / "admin.key").exists() == before
        assert await process.end() == 0
    assert servers_end(data_folder)
    assert (await run_command("rebuild", **where)).out == "rebuilt\n"  # It starts what it needs.
    assert servers_end(data_folder)


def keys_in(folder: Path) -> list[Path]:
    return list(folder.glob("**/*.key"))


async def test_a_command_that_reads_makes_no_keys(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text("{}")
    folder = tmp_path / "data"
    for arguments in (["status"], ["import", str(tmp_path / "lines.jsonl"), "--channel", "acme"], ["doctor"]):
        told = await run_command(*arguments, CHATLEDGER_DATA=str(folder))
        assert told.code in (1, 2)
        assert "Traceback" not in told.err
        if arguments != ["doctor"]:
            assert "there is no admin key" in told.err
        assert keys_in(tmp_path) == []


async def test_status_says_that_nobody_answers(given: dict[str, str]) -> None:
    told = await run_command("status", "--url", "http://127.0.0.1:9", **given)
    assert (told.code, told.out) == (1, "")
    assert len(told.err.splitlines()) == 1
    assert "no service answers at http://127.0.0.1:9: start it" in told.err


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("admin.key", "two words", "admin.key does not hold a key"),
        ("master.key", "AAAA", "master.key: give 32 bytes"),
    ],
)
async def test_a_spoiled_key_is_one_sentence_whoever_needs_it(
    tmp_path: Path, file: str, text: str, says: str
) -> None:
    (tmp_path / file).write_text(text)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("{}")
    for arguments in (["serve"], ["status"], ["import", str(lines), "--channel", "acme"]):
        told = await run_command(*arguments, CHATLEDGER_DATA=str(tmp_path), CHATLEDGER_PORT="0")
        assert (told.code, told.out, len(told.err.splitlines())) == (2, "", 1), told
        assert says in told.err


async def test_a_data_folder_that_cannot_be_is_one_sentence_whoever_needs_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (["serve"], ["status"], ["demo"], ["rebuild"]):
        told = await run_command(
            *arguments, CHATLEDGER_DATA=str(tmp_path / "file" / "data"), CHATLEDGER_PORT="0"
        )
        assert (told.code, len(told.err.splitlines())) == (2, 1), told
        assert str(tmp_path / "file" / "data") in told.err


async def test_status_says_that_somebody_else_answers(given: dict[str, str]) -> None:
    async with Sandbox(config("http://127.0.0.1:9")) as sandbox:
        told = await run_command("status", "--url", sandbox.url, **given)
    assert (told.code, len(told.err.splitlines())) == (1, 1), told
    told = await run_command("status", "--url", "nowhere", **given)
    assert (told.code, len(told.err.splitlines())) == (1, 1), told


async def test_who_may_not_migrate_is_told_who_may(servers: Servers) -> None:
    name = f"weak_{secrets.token_hex(4)}"
    async with (
        database(servers) as url,
        await psycopg.AsyncConnection.connect(servers.database_url, autocommit=True) as owner,
    ):
        await owner.execute(f"CREATE ROLE {name}".encode())
        try:
            weak = f"{url}&options=-c%20role%3D{name}"
            told = await run_command("migrate", CHATLEDGER_DATABASE_URL=weak)
        finally:
            await owner.execute(f"DROP ROLE {name}".encode())
    assert (told.code, told.out, len(told.err.splitlines())) == (1, "", 1), told
    assert "permission denied" in told.err
    assert "the user who owns the database" in told.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_start_that_waits_for_others_ends_on_a_signal(
    servers: Servers, given: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    async with database(servers) as url:
        port = free_port()
        own = given | {
            "CHATLEDGER_DATABASE_URL": url,
            "CHATLEDGER_ROLES": "web",
            "CHATLEDGER_PORT": str(port),
        }
        assert (await run_command("migrate", **own)).code == 0
        process = Process(tmp_path, "app", "serve", **own)
        starting = asyncio.create_task(process.start())
        await until(lambda: answers(port))
        await asyncio.sleep(1)
        assert not starting.done()  # It waits for the views, which no process makes.
        began = time.monotonic()
        assert await process.end(number) == 0
        assert time.monotonic() - began < 10
        await asyncio.wait([starting])
        starting.exception()


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


async def test_a_taken_port_is_told_at_once(given: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        told = await run_command("serve", "--port", str(port), **given)
    assert (told.code, told.out) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}" in told.err
    assert "CHATLEDGER_PORT" in told.err


async def test_servers_that_do_not_answer_are_named(given: dict[str, str]) -> None:
    away = given | {"CHATLEDGER_NATS_URL": "nats://127.0.0.1:9"}
    told = await run_command("serve", **away)
    assert (told.code, "NATS at 127.0.0.1:9" in told.err) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_within_10_seconds_and_leaves_no_server(
    data_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    own = {"CHATLEDGER_DATA": str(data_folder), "CHATLEDGER_PORT": "0", "CHATLEDGER_ADMIN_KEY": ADMIN_KEY}
    process = Process(tmp_path, "app", "serve", **own)
    async with started(process) as url:
        second = await run_command("serve", **own)
        assert (second.code, f"uses {data_folder}" in second.err) == (1, True)
        async with aiohttp.ClientSession(headers=AS_ADMIN) as client:
            stream = {"Accept": "text/event-stream"}
            async with client.get(f"{url}/v1/events", headers=stream) as events:
                assert events.status == 200
                began = time.monotonic()
                assert await process.end(number) == 0
                assert time.monotonic() - began < 10
    assert servers_end(data_folder)


async def test_a_signal_while_it_starts_ends_it_too(data_folder: Path, tmp_path: Path) -> None:
    own = {"CHATLEDGER_DATA": str(data_folder), "CHATLEDGER_PORT": "0"}
    process = Process(tmp_path, "app", "serve", **own)
    starting = asyncio.create_task(process.start())
    await until(lambda: (data_folder / "lock").exists())
    assert await process.end() == 0
    await asyncio.wait([starting])
    starting.exception()
    assert servers_end(data_folder)


async def test_what_is_in_flight_ends_before_serve_does(given: dict[str, str], tmp_path: Path) -> None:
    await run_command("migrate", **given)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as client, Sandbox(config(url)) as sandbox:
        settings = given | {"CHATLEDGER_KOMMO_URL": sandbox.url, "CHATLEDGER_PORT": str(port)}
        process, story = Process(tmp_path, "app", "serve", **settings), Story(client, sandbox, url)
        async with started(process):
            await story.connect()
            name = chat()
            await story.fault("kommo.new_message", "slow", seconds=1)
            ours = await story.customer(name)
            await story.customer(name, "next")
            await story.arrived(name)
            assert await process.end() == 0
            await process.start()
            await story.arrived(name, 2)
            await story.settled()
            assert [one.repeats for one in story.kommo(name)] == [0, 0]
            assert (await story.timeline(ours)).count("message.accepted") == 1
