"""Delivery reads events from the ledger only: whatever else comes on the stream reaches nobody."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
import pytest
from msgspec.structs import replace

from app.delivery.ledger_tail import PAGE_OF_NEWS, Arrival, LedgerTail
from app.stream import jetstream
from domain import ids
from tests.support.ledgers.stream_ledger import Ledger, message, until
from tests.support.system import Story, chat

FORGED = "FORGED"


async def forge(story: Story, event: dict[str, Any], many: int) -> None:
    """Publish copies of a recorded event with other ids and another text, as the service's own user may."""
    assert story.run is not None
    nats = await jetstream.connect(story.run.services.settings.nats_url or "", name="stranger")
    for number in range(many):
        content = event["content"] | {"text": f"{FORGED} {number}"}
        copy = {
            name: str(value).replace(event["message"][:8], f"{number:08x}")
            for name, value in event.items()
            if name in ("id", "stream", "message")
        }
        body = msgspec.json.encode(event | copy | {"content": content, "own_id": f"forged-{number}"})
        subject = ids.subject(event["conversation"], event["account"], event["type"])
        assert (await nats.request(subject, body, timeout=5)).data
    await nats.close()


def everything(story: Story) -> list[str]:
    """All texts that were pushed to either side."""
    pushed = [str(push) for push in story.sandbox.messenger_state.pushes.values()]
    return pushed + [str(one) for each in story.sandbox.chat_state.timelines.values() for one in each]


@pytest.mark.parametrize("many", [1, 5], ids=["a sequence that fits", "sequences beyond the ledger"])
async def test_nothing_forged_in_the_stream_is_pushed(own_story: Story, many: int) -> None:
    story, name = own_story, chat()
    await story.customer(name, "one")
    await story.manager(name, "two")
    await story.pushed(name)
    await story.settled()
    for event in await story.events(type="message.sent"):
        await forge(story, event, many)
    await story.customer(name, "three")
    await story.manager(name, "four")
    await story.pushed(name, 2)
    await story.arrived(name, 2)
    await story.settled()
    assert not [text for text in everything(story) if FORGED in text]
    assert [push.body["message"]["text"] for push in story.pushes(name)] == ["two", "four"]
    assert [one.message["text"] for one in story.kommo(name)] == ["one", "three"]


# The tail of the ledger, which brings every event once and in order to every range.


class Reader:
    """Keeps the positions that it is given, as a range does: what it has had, it skips."""

    def __init__(self, upto: int = 0) -> None:
        self.upto = upto
        self.seen: list[int] = []

    def read(self, news: Sequence[Arrival], upto: int) -> None:
        """Takes what is later than all that it has had."""
        self.seen += [one.position for one in news if one.position > self.upto]
        self.upto = max(self.upto, upto)


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[LedgerTail]:
    tail = LedgerTail(url)
    task = asyncio.create_task(tail.run())
    yield tail
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


def pushed(count: int) -> list[int]:
    return list(range(1, count + 1))


@pytest.fixture
async def ledger(database_url: str) -> Ledger:
    return await Ledger(database_url).open()


async def fill(ledger: Ledger, count: int) -> None:
    """Messages that ask to be pushed."""
    first = len(ledger.rows) + 1
    numbers = range(first, first + count)
    await ledger.write(*(replace(message(number), push="kommo") for number in numbers))


async def test_pages_come_in_order_and_a_reader_that_joins_late_misses_nothing(ledger: Ledger) -> None:
    many = 5 * PAGE_OF_NEWS + 7
    await fill(ledger, many)
    first, second, third = Reader(), Reader(), Reader(many - 3)
    async with reading(ledger.url) as tail:
        tail.join(first, 0)
        await until(lambda: bool(first.seen))
        tail.join(second, 0)
        tail.join(third, many - 3)
        await until(lambda: first.upto == second.upto == third.upto == many)
    assert first.seen == second.seen == pushed(many)
    assert third.seen == [many - 2, many - 1, many]


async def test_a_position_of_the_stream_wakes_and_one_that_is_made_up_moves_nothing(ledger: Ledger) -> None:
    reader = Reader()
    await fill(ledger, 1)
    async with reading(ledger.url) as tail:
        tail.join(reader, 0)
        await until(lambda: reader.upto == 1)
        await fill(ledger, 2)
        await asyncio.sleep(0.1)
        assert reader.seen == [1]
        tail.reached(2)
        await until(lambda: reader.upto == 3)
        tail.reached(1_000_000)
        await asyncio.sleep(0.1)
        assert reader.upto == 3
        await fill(ledger, 1)
        tail.reached(4)
        await until(lambda: reader.upto == 4)
    assert reader.seen == pushed(4)


@pytest.mark.parametrize(
    "damaged", [b'{"type":7}', b'{"type":"\xff"}', b'{"z":' + b"[" * 5_000], ids=["kind", "letters", "depth"]
)
async def test_an_event_that_cannot_be_read_stops_no_other(ledger: Ledger, damaged: bytes) -> None:
    reader = Reader()
    await fill(ledger, 2)
    ledger.rows[2] = damaged
    async with reading(ledger.url) as tail:
        await damage(ledger, 2)
        await fill(ledger, 1)
        tail.join(reader, 0)
        await until(lambda: reader.upto == 3)
    assert reader.seen == [1, 3]


async def damage(ledger: Ledger, position: int) -> None:
    """Replace a stored event by its damaged bytes, as a fault of the disk would."""
    async with await psycopg.AsyncConnection.connect(ledger.url, autocommit=True) as db:
        await db.execute("ALTER TABLE ledger.stored_events DISABLE TRIGGER append_only")
        await db.execute(
            "UPDATE ledger.stored_events SET state = %s WHERE notification_id = %s",
            (ledger.rows[position], position),
        )
