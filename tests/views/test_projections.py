"""A view depends on the facts alone: not on their order, their repetition, or where pages begin."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from psycopg.rows import dict_row

from app import clock
from app.database import names
from app.database.connection import Db
from app.views.tables import PageOutOfOrder, UnreadableEvent, apply, connect, create_views
from domain import events as e
from domain.ids import message_id
from domain.state import Message, State, evolve
from projections import deliveries, events
from projections.columns import Page
from tests.support.ids import SCOPE
from tests.support.ledgers.view_events import COLUMNS, START_MS, TABLES, EventLog, fact, prepare, random_log

laws = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Tables = dict[str, list[dict[str, object]]]


@pytest.fixture
async def url(database_url: str) -> str:
    await prepare(database_url)
    return database_url


@asynccontextmanager
async def views(url: str) -> AsyncIterator[Db]:
    async with await connect(url, names.VIEWS_NEXT_SCHEMA) as link:
        await create_views(link)
        yield link


def pages(log: Sequence[e.AnyEvent], cuts: Sequence[int]) -> list[Page]:
    """The events with their positions, cut before each of `cuts`."""
    numbered = list(enumerate(log, start=1))
    bounds = [0, *sorted({cut % len(numbered) for cut in cuts} - {0}), len(numbered)]
    return [numbered[low:high] for low, high in pairwise(bounds)]


async def projected(url: str, log: Sequence[e.AnyEvent], cuts: Sequence[int] = ()) -> Tables:
    async with views(url) as link:
        for page in pages(log, cuts):
            await apply(link, page, page[0][0] - 1)
        cursor = link.cursor(row_factory=dict_row)
        found: Tables = {}
        for table, key in TABLES:
            await cursor.execute(f"SELECT {COLUMNS.get(table, '*')} FROM {table} ORDER BY {key}")
            found[table] = await cursor.fetchall()
        return found


@laws
@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 400), max_size=30))
@example(seed=335, cuts=[312])  # A page says of one message that it arrived, and then that it failed.
async def test_it_does_not_matter_where_pages_begin(url: str, seed: int, cuts: list[int]) -> None:
    log = random_log(seed, 200).events
    assert await projected(url, log, cuts) == await projected(url, log)


async def test_one_event_a_page_is_the_same_as_one_page(url: str) -> None:
    log = random_log(7, 400).events
    assert await projected(url, log, range(1, 400)) == await projected(url, log)


@laws
@given(seed=st.integers(0, 2**32), count=st.integers(1, 25), cuts=st.lists(st.integers(0, 50), max_size=5))
async def test_facts_in_any_order_and_repetition_give_the_same_message(
    url: str, seed: int, count: int, cuts: list[int]
) -> None:
    log = EventLog(seed)
    sent = log.send(log.start("conv-1"), "m-1", side="kommo")
    facts = [replace(fact(log, sent), at=clock.text(START_MS + n)) for n in range(count)]
    failures = [one for one in facts if isinstance(one, e.MessageFailed)]  # A message fails once.
    facts = [one for one in facts if one not in failures[1:]]
    facts.append(log.about(e.MessageAccepted, sent, side="messenger", remote_id="x-1"))
    begin = log.events[:2]
    shuffled = facts + random.Random(seed).choices(facts, k=count)
    random.Random(seed).shuffle(shuffled)
    one, two = await projected(url, begin + facts), await projected(url, begin + shuffled, cuts)
    for tables in (one, two):
        for name in ("edit", "failure"):
            del tables["messages"][0][name]
        for row in tables["reactions"]:
            del row["position"]
    assert one["messages"] == two["messages"]
    assert one["reactions"] == two["reactions"]


@laws
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), cuts=st.lists(st.integers(0, 50), max_size=5))
async def test_of_facts_with_one_time_the_last_recorded_is_in_force_for_views_and_decisions(
    url: str, seed: int, count: int, cuts: list[int]
) -> None:
    log = EventLog(seed)
    sent = log.send(log.start("conv-1"), "m-1", side="kommo")
    for _ in range(count):
        fact(log, sent)
    state: State = Message(1, sent=sent)
    for event in log.events[2:]:
        state = evolve(state, event)
    assert isinstance(state, Message)
    tables = await projected(url, log.events, cuts)
    (row,) = tables["messages"]
    content = state.edited.content if state.edited else sent.content
    source: Any = log.events[cast("int", row["edit"] or row["position"]) - 1]
    assert (source.content, row["deleted"]) == (content, state.deleted)
    reactions = {(row["by"], row["sender_id"]): (row["emoji"], row["removed"]) for row in tables["reactions"]}
    assert reactions == {who: (one.emoji, one.removed) for who, one in state.reactions.items()}


@laws
@given(seed=st.integers(0, 2**32))
async def test_a_status_never_goes_back(url: str, seed: int) -> None:
    log = EventLog(seed)
    sent = log.send(log.start("conv-1"), "m-1", side="kommo")
    for _ in range(12):
        fact(log, sent)
    async with views(url) as link:
        shown = 0
        for page in pages(log.events, range(1, len(log.events))):
            await apply(link, page, page[0][0] - 1)
            row = await (await link.execute("SELECT status FROM messages")).fetchone()
            assert row is None or int(str(row[0])) >= shown
            shown = int(str(row[0])) if row else 0


async def test_a_whole_exchange_in_one_page_leaves_nothing_to_deliver(url: str) -> None:
    log = EventLog()
    log.exchange(log.start("conv-1"), "m-1")
    tables = await projected(url, log.events)
    assert tables["deliveries"] == []
    assert [row["status"] for row in tables["messages"]] == [4]
    assert [statement for statement, _ in deliveries.project(pages(log.events, ())[0])] == []


async def test_a_refused_message_is_a_delivery_of_its_status_and_not_of_itself(url: str) -> None:
    log = EventLog()
    sent = log.send(log.start("conv-1"), "m-1", side="kommo")
    failed = log.about(e.MessageFailed, sent, code=905, text="HTTP 422 from the messenger", push="kommo")
    for cuts in ((), (2,)):
        refused, row = (await projected(url, log.events, cuts))["deliveries"]
        assert (str(row["id"]), row["destination"], row["type"]) == (failed.id, "kommo", "message.failed")
        assert (str(refused["id"]), refused["state"], row["state"]) == (sent.id, "failed", "open")


async def test_a_failed_message_that_is_sent_again_is_so_in_whatever_pages_that_comes(url: str) -> None:
    log = EventLog()
    sent = log.send(log.start("conv-1"), "m-1", side="kommo")
    steps: list[tuple[type[e.AnyEvent], dict[str, Any], tuple[str, int]]] = [
        (e.MessageFailed, {"code": 905, "text": "no", "reason": "HTTP 422"}, ("failed", 2)),
        (e.DeliveryResumed, {"cause": sent.id, "was": "failed"}, ("open", 0)),
        (e.DeliveryDeferred, {"cause": sent.id, "reason": "HTTP 503"}, ("deferred", 0)),
        (e.MessageFailed, {"code": 904, "text": "who?", "reason": "HTTP 404"}, ("failed", 2)),
        (e.DeliveryResumed, {"cause": sent.id, "was": "failed"}, ("open", 0)),
        (e.MessageFailed, {"code": 904, "text": "who?", "reason": "HTTP 404"}, ("failed", 2)),
        (e.MessageDelivered, {}, ("", 3)),
    ]
    for kind, fields, (state, rank) in steps:
        log.about(kind, sent, **fields)
        cuts = () if kind is e.DeliveryResumed else (len(log.events) - 1,)
        tables = await projected(url, log.events, cuts)
        assert [row["state"] for row in tables["deliveries"]] == ([state] if state else []), cuts
        assert [row["status"] for row in tables["messages"]] == [rank], cuts


async def test_a_delivery_remembers_its_attempts_and_why_it_waits(url: str) -> None:
    log = EventLog()
    sent = log.send(log.start("conv-1"), "m-1")
    log.about(e.DeliveryDeferred, sent, cause=sent.id, reason="HTTP 500")
    log.about(e.DeliveryDeferred, sent, cause=sent.id, reason="timeout")
    (row,) = (await projected(url, log.events, (3,)))["deliveries"]
    assert (row["state"], row["reason"], row["attempts"]) == ("deferred", "timeout", 2)
    log.about(e.DeliveryParked, sent, cause=sent.id, reason="HTTP 404")
    (row,) = (await projected(url, log.events))["deliveries"]
    assert (row["state"], row["reason"]) == ("parked", "HTTP 404")
    log.about(e.DeliveryResumed, sent, cause=sent.id)
    (row,) = (await projected(url, log.events))["deliveries"]
    assert (row["state"], row["reason"], row["attempts"]) == ("open", None, 2)


async def test_nothing_that_an_outside_server_answers_stops_the_views(url: str) -> None:
    log = EventLog()
    sent = log.send(log.start("conv-1"), "m-1", side="kommo", source="a\0b")
    log.about(e.MessageAccepted, sent, side="messenger", remote_id="x\0\U0001f600" * 400)
    for code in (-(2**53), 2**53):
        log.about(e.MessageFailed, sent, code=code, text="no\0", push="kommo")
    log.about(e.DeliveryDeferred, sent, cause=log.events[-1].id, reason="\0")
    for cuts in ((), range(1, 9)):
        (row,) = (await projected(url, log.events, cuts))["messages"]
        assert (row["source"], row["failure_text"], row["failure_code"]) == ("a\ufffdb", "no\ufffd", 2**53)


async def test_a_time_that_is_none_stops_them_and_names_the_page(url: str) -> None:
    log = EventLog()
    log.start("conv-1")
    log.send(log.start("conv-2"), "m-1", at="yesterday")
    with pytest.raises(UnreadableEvent, match="positions 1 to 3"):
        await projected(url, log.events)


async def test_typing_is_never_pending(url: str) -> None:
    log = EventLog()
    chat = log.start("conv-1")
    log.add(
        e.TypingStarted,
        message_id(SCOPE, "messenger", "typing"),
        conversation=chat,
        sender=e.Party(id="u-1"),
        content=e.Ends(),
        expires_at=clock.text(START_MS),
        push="kommo",
    )
    assert (await projected(url, log.events))["deliveries"] == []


async def test_an_early_echo_of_ours_is_no_message(url: str) -> None:
    log = EventLog()
    chat = log.start("conv-1")
    sent = log.send(chat, "m-1", side="kommo")
    echo = log.send(chat, "x-1", side="messenger")
    log.about(e.ReactionAdded, echo, sender=e.Party(id="u-1"), emoji="👍", content=e.Ends())
    log.accept(sent, "x-1")
    for cuts in ((), (4,), (3, 5)):
        tables = await projected(url, log.events, cuts)
        assert [str(row["id"]) for row in tables["messages"]] == [sent.message]
        assert tables["conversations"][0]["messages"] == 1
        assert tables["reactions"] == tables["deliveries"] == []


async def test_a_fact_that_waits_for_its_name_is_not_shown(url: str) -> None:
    log = EventLog()
    log.send(log.start("conv-1"), "m-1", side="kommo")
    log.add(e.MessageRead, message_id(SCOPE, "messenger", "x-1"))
    (row,) = (await projected(url, log.events))["messages"]
    assert row["status"] == 0


async def test_merged_conversations_are_one_however_long_the_chain(url: str) -> None:
    log = EventLog()
    chats = [log.start(f"conv-{number}") for number in range(4)]
    for number, chat in enumerate(chats):
        log.send(chat, f"m-{number}")
    for loser, winner in ((3, 2), (2, 1), (1, 0)):
        log.add(e.ConversationMerged, chats[loser], conversation=chats[loser], into=chats[winner])
    late = log.send(chats[3], "m-late")
    for cuts in ((), range(1, 12), (9,)):
        tables = await projected(url, log.events, cuts)
        (row,) = tables["conversations"]
        assert (str(row["id"]), row["messages"], row["position"]) == (
            chats[0],
            5,
            log.events.index(late) + 1,
        )
        assert {str(message["conversation"]) for message in tables["messages"]} == {chats[0]}
        assert {str(merge["winner"]) for merge in tables["merges"]} == {chats[0]}


async def test_a_page_read_for_another_position_is_refused_whole(url: str) -> None:
    log = random_log(3, 20)
    (page,) = pages(log.events, ())
    async with views(url) as link:
        await apply(link, page, 0)
        with pytest.raises(PageOutOfOrder):
            await apply(link, page, 0)
        row = await (await link.execute("SELECT count(*) FROM events")).fetchone()
        assert row == (len(page),)


def test_every_type_of_event_has_a_number_of_its_own() -> None:
    assert len(set(events.TAGS)) == len(events.TAGS)
    assert "message.sent" in events.TAGS
