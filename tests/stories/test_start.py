"""A start says only what somebody must know, and names what is in its way."""

import asyncio
import json
import re
import sys
from pathlib import Path

import aiohttp

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
