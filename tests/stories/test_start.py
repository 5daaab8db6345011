"""A start says only what somebody must know, and names what is in its way."""

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.ids import AS_ADMIN, NOWHERE
from tests.support.processes import ENVIRONMENT, Process, run_command, service_process, started
from tests.support.service import channel
from tests.support.system import free_port

ALARMS = re.compile(r" (WARNING|ERROR|CRITICAL) ")
QUIET_SECONDS = 3.0
LINE_SECONDS = 10.0


def alarms(process: Process) -> list[str]:
    return [line for line in process.log.read_text().splitlines() if ALARMS.search(line)]


async def register(url: str) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/v1/channels", json=channel(), headers=AS_ADMIN) as answer,
    ):
        assert answer.status == 201


async def first_lines(program: Path, many: int) -> list[str]:
    """What a Python program prints first."""
    child = await asyncio.create_subprocess_exec(sys.executable, program, stdout=-1, env=ENVIRONMENT)
    assert child.stdout is not None
    try:
        async with asyncio.timeout(LINE_SECONDS):
            return [(await child.stdout.readline()).decode() for _ in range(many)]
    finally:
        child.kill()
        await child.wait()


async def test_a_healthy_start_logs_no_warning_and_an_analyst_reads_the_stream(data_folder: Path) -> None:
    process = service_process(data_folder, free_port(), NOWHERE)
    data = {"CHATLEDGER_DATA": str(data_folder / "data")}
    before = await run_command("nats", **data)
    assert (before.code, before.out) == (1, "")
    assert f"no private NATS server runs in {data_folder}/data/nats: start chatledger serve" in before.err
    async with started(process) as url:
        await register(url)
        shown = await run_command("nats", **data)
        assert (shown.code, shown.err) == (0, "")
        (data_folder / "shown.py").write_text(shown.out)
        [line] = await first_lines(data_folder / "shown.py", 1)
        position, _, body = line.partition(" ")
        assert (position, json.loads(body)["type"]) == ("1", "channel.registered")
        access = json.loads((await run_command("nats", "--json", **data)).out)
        assert access["user"] == "analyst"
        assert all(value in shown.out for value in access.values())
        await asyncio.sleep(QUIET_SECONDS)
        assert await process.end() == 0
    async with started(process):
        await asyncio.sleep(QUIET_SECONDS)
        assert await process.end() == 0
    assert alarms(process) == []


async def test_of_other_servers_the_address_is_shown_without_the_credentials_of_the_service() -> None:
    given = {"CHATLEDGER_NATS_URL": "nats://chatledger:secret@one:4222,nats://chatledger:secret@two"}
    shown = await run_command("nats", **given)
    assert (shown.code, "secret" in shown.out) == (0, False)
    assert 'connect(["nats://one:4222", "nats://two:4222"], user="analyst", password=os.environ[' in shown.out


# What is in the way.


@pytest.mark.parametrize(
    ("setting", "value", "code", "says"),
    [
        (
            "HOST",
            "nowhere.invalid",
            1,
            "listen on nowhere.invalid:0: that is no address of this machine: set",
        ),
        (
            "HOST",
            "192.0.2.1",
            1,
            "listen on 192.0.2.1:0: that is no address of this machine: set CHATLEDGER_HOST",
        ),
        ("HOST", "2001:db8::1", 1, "that is no address of this machine: set CHATLEDGER_HOST"),
        ("PORT", "65536", 2, "CHATLEDGER_PORT: give a whole number from 0 (any free port) to 65535"),
        ("DATA", "FILE", 2, "CHATLEDGER_DATA: FILE is a file, FILE needs a folder"),
        ("DATA", "FILE/below/it", 2, "CHATLEDGER_DATA: FILE is a file, FILE/below/it needs a folder"),
        ("DATA", "/proc/chatledger", 2, "CHATLEDGER_DATA: /proc/chatledger cannot be made"),
    ],
)
async def test_what_is_wrong_with_host_port_and_folder_is_a_sentence(
    setting: str, value: str, code: int, says: str, data_folder: Path
) -> None:
    file = data_folder / "file"
    file.touch()
    given = {"CHATLEDGER_DATA": str(data_folder / "data"), "CHATLEDGER_PORT": "0"}
    given |= {f"CHATLEDGER_{setting}": value.replace("FILE", str(file))}
    told = await run_command("serve", **given)
    assert (told.code, told.out, len(told.err.splitlines())) == (code, "", 1), told
    assert says.replace("FILE", str(file)) in told.err


@pytest.fixture
def small_disk(data_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on a disk of its own, so small that it fills."""
    disk = data_folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param},mode=0711", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("only who may mount can have a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize(
    ("small_disk", "says"),
    [
        ("4k", "chatledger: the disk is full: free some space in the data folder, CHATLEDGER_DATA"),
        (
            "20m",
            "chatledger: PostgreSQL did not start: the disk of DISK/data/postgres is full: free some space",
        ),
    ],
    indirect=["small_disk"],
)
async def test_a_start_on_a_full_disk_says_so(small_disk: Path, says: str) -> None:
    told = await run_command("serve", CHATLEDGER_DATA=str(small_disk / "data"), CHATLEDGER_PORT="0")
    assert (told.code, told.out, "Traceback" in told.err) == (1, "", False), told
    assert says.replace("DISK", str(small_disk)) in told.err.splitlines()[-1]


def fill(disk: Path) -> Path:
    """Write until nothing more can be written; returns the file."""
    path, block = disk / "filler", bytes(4096)
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(block) == len(block):
                pass
        except OSError:
            return path
    return path


def another(number: int) -> dict[str, object]:
    """A channel that takes much room."""
    told = channel(f"c-{number}", channel_id=str(uuid.uuid4()), secret=secrets.token_hex(20))
    told["messenger"]["url"] += "/" + "x" * 1900
    return told


@pytest.mark.parametrize("small_disk", ["80m"], indirect=True)
async def test_a_disk_that_fills_stops_nothing_and_is_named(small_disk: Path) -> None:
    process = service_process(small_disk, free_port(), NOWHERE)
    process.log = small_disk.parent / "serve.log"
    async with started(process) as url, aiohttp.ClientSession(headers=AS_ADMIN) as client:
        filler, answers = fill(small_disk), []
        for number in range(1000):
            async with client.post(f"{url}/v1/channels", json=another(number)) as answer:
                answers.append((answer.status, (await answer.json()).get("detail")))
                if answer.status != 201:
                    break
        assert answers[-1][0] == 503, answers[-1]
        assert "the disk of PostgreSQL is full: free some space on it" in str(answers[-1][1])
        async with client.get(f"{url}/v1/channels") as answer:
            assert answer.status == 200
        filler.unlink()
        async with client.post(f"{url}/v1/channels", json=another(1000)) as answer:
            assert answer.status == 201
        assert await process.end() == 0
    assert "Traceback" not in process.log.read_text()
