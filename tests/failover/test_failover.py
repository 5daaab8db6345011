"""Servers fall and come back, processes die: every message still arrives, once and in its order."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from app.servers.servers import Servers
from app.stream import jetstream
from app.views.rebuild import rebuild
from tests.support.databases import database
from tests.support.failover.deliverers import KEYS, all_is_well, deliverer
from tests.support.processes import living_servers, started
from tests.support.system import Traffic, broker, chat, on_its_own_servers, story_on, telling


def kill(folder: Path, program: bytes) -> None:
    """Kill one of a data folder's servers, as a lack of memory would."""
    for pid in living_servers(folder):
        if program in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("program", [b"nats-server", b"postgres"], ids=bytes.decode)
async def test_a_server_that_is_killed_costs_only_time(data_folder: Path, program: bytes) -> None:
    async with on_its_own_servers(data_folder) as story:
        traffic = Traffic(story)
        traffic.begin()
        for _ in range(2):
            await asyncio.sleep(1)
            kill(data_folder, program)
            await asyncio.sleep(2)
        await traffic.end()
        await all_is_well(story, traffic)


async def test_a_stream_that_is_made_anew_costs_nothing(servers: Servers) -> None:
    async with database(servers) as url, broker() as nats, telling(nats.folder, url, nats.url) as story:
        traffic, connection = Traffic(story), await jetstream.connect(nats.url, name="test")
        traffic.begin()
        for _ in range(2):
            await asyncio.sleep(0.7)
            await jetstream.delete_stream(connection)
        await asyncio.sleep(0.5)
        await traffic.end()
        await connection.close()
        await all_is_well(story, traffic)


async def test_what_the_stream_does_not_bring_comes_from_the_ledger(servers: Servers) -> None:
    name, words = chat(), [f"{n}" for n in range(5)]
    async with database(servers) as url, broker() as nats, telling(nats.folder, url, nats.url) as story:
        await nats.stop()
        for word in words:
            await story.customer(name, word)
        assert [one.message["text"] for one in await story.arrived(name, 5)] == words
        await nats.start()
        await story.customer(name, "after")
        assert [one.message["text"] for one in await story.arrived(name, 6)] == [*words, "after"]
        assert [one.repeats for one in story.kommo(name)] == [0] * 6


async def test_views_that_are_made_anew_disturb_no_delivery(servers: Servers, tmp_path: Path) -> None:
    async with story_on(servers) as story:
        assert story.run
        database_url = story.run.services.settings.database_url
        assert database_url
        traffic = Traffic(story)
        traffic.begin()
        for _ in range(5):
            await rebuild(database_url)
        await traffic.end()
        await all_is_well(story, traffic)
        assert traffic.refused == []
        assert all(one.repeats == 0 for one in story.sandbox.chat_state.messages.values())


async def test_the_work_of_a_process_that_dies_is_taken_over(servers: Servers, tmp_path: Path) -> None:
    """Web, relay and views in this process; delivery in two others, one of which is killed at a time."""
    async with (
        database(servers) as url,
        broker() as nats,
        telling(nats.folder, url, nats.url, roles="web,relay,project") as story,
    ):
        given = KEYS | {"CHATLEDGER_DATABASE_URL": url, "CHATLEDGER_NATS_URL": nats.url}
        given |= {"CHATLEDGER_KOMMO_URL": story.sandbox.url}
        both = deliverer(tmp_path / "a", **given), deliverer(tmp_path / "b", **given)
        async with started(both[0]), started(both[1]):
            traffic = Traffic(story)
            traffic.begin()
            for process in both:
                await asyncio.sleep(1)
                await process.end(signal.SIGKILL)
                await asyncio.sleep(2)
                await process.start()
            await traffic.end()
            await all_is_well(story, traffic)
