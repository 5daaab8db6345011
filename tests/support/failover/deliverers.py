"""Processes that deliver and do nothing else, and the law that all of them together keep."""

from pathlib import Path

from tests.support.ids import ADMIN_KEY, MASTER_KEY
from tests.support.processes import Process
from tests.support.system import Story, Traffic

KEYS = {"CHATLEDGER_ADMIN_KEY": ADMIN_KEY, "CHATLEDGER_MASTER_KEY": MASTER_KEY}


async def all_is_well(story: Story, traffic: Traffic) -> None:
    """Everything that was acknowledged has arrived once and in its order."""
    await story.settled(45)
    assert traffic.taken
    for (name, side), taken in traffic.taken.items():
        pushes = [push.id for push in story.pushes(name)]
        there = [one.client_id for one in story.kommo(name)] if side == "messenger" else pushes
        assert [one for one in there if one in set(taken)] == taken
        assert len(there) == len(set(there))
    assert await story.events(type="message.failed") == []


def deliverer(folder: Path, **given: str) -> Process:
    folder.mkdir()
    return Process(folder, "app", "serve", "--roles", "deliver", **given, CHATLEDGER_DATA=str(folder))
