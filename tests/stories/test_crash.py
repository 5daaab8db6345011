"""Killed at any moment of traffic, the service loses nothing that it acknowledged, and doubles nothing."""

import asyncio
import json
import os
import random
from collections import defaultdict
from pathlib import Path
from signal import SIGKILL

import aiohttp
import psycopg
import pytest

from tests.support.ledgers.stream_ledger import differing
from tests.support.processes import RemoteSandbox, sandbox_process, servers_end, service_process, started
from tests.support.system import CHATS, Story, Traffic, free_port, make_public

ROUNDS = 5
SECONDS_MIN, SECONDS_MAX = 0.3, 1.5
SETTLE_SECONDS = 45.0


async def arrived(story: Story) -> dict[tuple[str, str], list[str]]:
    """Our ids of what is on the other side, by conversation and sender's side, in order of arrival."""
    kommo, phone = await story.order("GET", "/kommo"), await story.order("GET", "/messenger")
    names = {one["id"]: one["client_id"] for one in kommo["chats"]}
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for message in kommo["messages"]:
        if message["direction"] == "in":
            found[names[message["chat_id"]], "messenger"].append(message["client_id"])
    for push in phone["pushes"]:
        if push["type"] == "message.send":
            found[push["conversation_id"], "kommo"].append(push["id"])
    return found


async def stored(folder: Path) -> dict[int, bytes]:
    """The ledger by position."""
    url = f"postgresql://postgres@/postgres?host={folder}/data/postgres/socket"
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await connection.execute("SELECT notification_id, state FROM ledger.stored_events")
        return dict(await rows.fetchall())


def stream_url(folder: Path) -> str:
    """The private nats-server, as it says itself."""
    [ports] = (folder / "data" / "nats" / "run").glob("*.ports")
    token = (folder / "data" / "nats" / "token").read_text()
    return str(json.loads(ports.read_bytes())["nats"][0]).replace("nats://", f"nats://chatledger:{token}@")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("duplicates", ["accept", "refuse"])
async def test_what_was_acknowledged_arrives_once_and_in_order_whenever_we_are_killed(
    data_folder: Path, duplicates: str
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice, port = random.Random(seed), free_port()
    url = f"http://127.0.0.1:{port}"
    os.chmod(data_folder, 0o711)  # PostgreSQL, as another user, must get to what is below.
    await make_public(data_folder / "data")
    async with (
        aiohttp.ClientSession() as client,
        started(sandbox_process(data_folder, url, "--duplicates", duplicates)) as kommo_url,
        started(chatledger := service_process(data_folder, port, kommo_url)),
    ):
        story = Story(client, RemoteSandbox(kommo_url), url)
        await story.connect()
        traffic = Traffic(story, seed)
        traffic.begin()
        for _ in range(ROUNDS):
            await asyncio.sleep(dice.uniform(SECONDS_MIN, SECONDS_MAX))
            await chatledger.end(SIGKILL)
            await chatledger.start()
        await asyncio.sleep(SECONDS_MIN)
        await traffic.end()
        await story.settled(SETTLE_SECONDS)

        found = await arrived(story)
        for key, taken in traffic.taken.items():
            assert [one for one in found[key] if one in set(taken)] == taken
        assert all(len(found[key]) == len(set(found[key])) for key in found)
        assert sum(map(len, traffic.taken.values())) > ROUNDS * CHATS
        assert await story.events(type="message.failed") == []

        rows = await stored(data_folder)
        assert sorted(rows) == list(range(1, len(rows) + 1))
        assert await differing(stream_url(data_folder), rows) == []
        assert await chatledger.end() == 0
    assert servers_end(data_folder)
