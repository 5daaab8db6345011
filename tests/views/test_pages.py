"""What the views show does not depend on where the pages of events end: they only follow the ledger."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from app.views.rebuild import rebuild
from domain import events as e
from tests.support.ledgers.view_events import SIDES, EventLog, prepare, random_log, store, tables


def lives(seed: int, count: int) -> EventLog:
    """Messages to which everything happens that can happen to a delivery, in any order."""
    log, chance = EventLog(seed), random.Random(seed)
    chats = [log.start(f"conv-{n}") for n in range(2)]
    while len(log.events) < count:
        side = chance.choice(SIDES)
        sent = log.send(
            chance.choice(chats), f"m-{len(log.events)}", side=side, imported=chance.random() < 0.2
        )
        for _ in range(chance.randrange(7)):
            happens(log, chance, sent)
    return log


def happens(log: EventLog, chance: random.Random, sent: e.MessageSent) -> None:
    """One of the facts that open, change or close the deliveries of a message."""
    push = chance.choice((None, "kommo"))
    causes = [sent.id, *(one.id for one in log.events if one.message == sent.message)]
    told: dict[str, Any] = {"cause": chance.choice(causes), "by": "system"}
    facts: list[Callable[[], object]] = [
        lambda: log.accept(sent, f"x-{len(log.events)}"),
        lambda: log.about(e.MessageFailed, sent, code=905, text=chance.choice(("", "no")), push=push),
        lambda: log.about(e.MessageDelivered, sent, push=push),
        lambda: log.about(e.MessageRead, sent, push=push),
        lambda: log.about(e.DeliveryResumed, sent, **told, was=chance.choice(("parked", "failed"))),
        lambda: log.about(e.DeliveryDeferred, sent, **told, reason="HTTP 500"),
        lambda: log.about(e.DeliveryParked, sent, **told, reason="HTTP 404", answer="gone"),
        lambda: log.about(e.DeliveryCompleted, sent, **told),
        lambda: log.add(e.MessageNamed, sent.stream, message=sent.message),
        lambda: log.about(e.MessageEdited, sent, content=sent.content, push=push),
    ]
    chance.choice(facts)()


@pytest.mark.parametrize("make", [lives, random_log])
async def test_views_are_the_same_however_the_events_are_cut_into_pages(
    database_url: str, make: Callable[[int, int], EventLog]
) -> None:
    await prepare(database_url)
    await store(database_url, make(99, 500).events)
    await rebuild(database_url, page_events=1)
    right = await tables(database_url)
    for page_events in (2, 3, 7, 50, 2_000):
        await rebuild(database_url, page_events=page_events)
        found = await tables(database_url)
        for name, rows in right.items():
            assert found[name] == rows, (page_events, name)
