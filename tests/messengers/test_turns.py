"""Bodies of many actions leave the event loop to others between their actions."""

import asyncio
import json

from app.messengers import checks
from app.turns import Turns
from tests.support.service import sent


async def test_four_bodies_of_500_actions_are_read_in_many_turns() -> None:
    body = json.dumps([sent(n) for n in range(500)]).encode()
    turns, together = 0, Turns(64)
    reading = [asyncio.create_task(checks.parse(body, together)) for _ in range(4)]
    while not all(each.done() for each in reading):
        await asyncio.sleep(0)
        turns += 1
    assert [len((await each).actions) for each in reading] == [500] * 4
    assert turns >= 2_000 // 64
