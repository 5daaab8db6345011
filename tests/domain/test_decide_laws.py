"""Whatever the order in which facts arrive, and however often, everybody ends up seeing the same."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from psycopg.rows import dict_row

from app.database import names
from app.views import tables
from domain import commands as c
from domain import events as e
from domain.decide import OwnMessage, Unknown, decide
from domain.state import RANKS, Message
from tests.support.ledgers.decisions import (
    Ledger,
    accept,
    confirm,
    customer,
    delete,
    edit,
    end,
    kommo,
    manager,
    own,
    react,
    typing,
)
from tests.support.ledgers.view_events import prepare

laws = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
M, K, W = own("m-1"), kommo("k-1"), kommo("k-w")
POOL: tuple[c.AnyCommand, ...] = (
    customer(1),
    customer(2, "m-2", reply=e.Reply("k-1"), reply_stream=own("x-1")),
    customer(3, "m-3", chat="conv-2"),
    manager(4),
    manager(5, "k-2", own_chat=None),
    manager(6, "k-w", chat="chat-w", own_chat=None),
    edit(7, M, "once"),
    edit(8, M, "twice"),
    edit(9, own("x-1"), "by alias"),
    delete(10, own("m-2")),
    delete(11, own("x-w")),
    confirm(12, own("x-1"), "delivered"),
    confirm(13, own("x-1"), "read"),
    confirm(14, K, "delivered"),
    confirm(15, own("x-w"), "failed"),
    confirm(16, W, "delivered"),
    react(17, own("x-1")),
    react(18, own("x-1"), removed=True),
    react(19, kommo("k-9"), M, side="kommo"),
    react(20, kommo("k-9"), side="kommo", emoji="👎"),
    accept(21, M, "kommo", "k-9"),
    accept(22, K, "messenger", "x-1"),
    accept(23, W, "messenger", "x-w", "conv-2"),
    typing(24),
)
orders = st.permutations(range(len(POOL)))
mixtures = st.lists(st.sampled_from(POOL), max_size=40)


def record_all(ledger: Ledger, commands: Sequence[c.AnyCommand]) -> Ledger:
    """Give the commands in their order; an answer to a push follows the message that was pushed."""
    waiting = list(commands)
    while waiting:
        again = []
        for command in waiting:
            try:
                ledger.record(command)
            except Unknown:
                again.append(command)
            except OwnMessage:
                continue
        if len(again) == len(waiting):
            break
        waiting = again
    return ledger


def meaning(ledger: Ledger) -> object:
    """What anybody could see of the messages, and of which conversations they are in by their names."""
    ends = [end("kommo", name) for name in ("chat-1", "chat-w")]
    ends += [end("messenger", name) for name in ("conv-1", "conv-2")]
    messages = {}
    for stream, state in ledger.states.items():
        if isinstance(state, Message) and state.sent and not state.alias:
            conversation = ledger.root(state.sent.conversation or "")
            chat = frozenset(str(one.ends) for one in ends if ledger.root(one.stream) == conversation)
            known = {key for key in state.seen if key != "message.named"}
            messages[stream] = (
                chat,
                state.rank,
                state.remote_id,
                state.edited and state.edited.at,
                state.deleted,
                frozenset(map(str, known)),
            )
    return messages


@laws
@given(order=orders, more=mixtures)
def test_any_order_and_repetition_ends_in_the_same_state(order: list[int], more: list[c.AnyCommand]) -> None:
    shuffled = [POOL[n] for n in order]
    assert meaning(record_all(Ledger(), [*shuffled, *more])) == meaning(record_all(Ledger(), POOL))


@laws
@given(commands=mixtures)
def test_a_command_given_twice_records_nothing_new(commands: list[c.AnyCommand]) -> None:
    ledger = record_all(Ledger(), commands)
    count = len(ledger.events)
    record_all(ledger, commands)
    assert len(ledger.events) == count


@laws
@given(commands=mixtures)
def test_deciding_is_pure(commands: list[c.AnyCommand]) -> None:
    ledger = record_all(Ledger(), commands)
    for command in POOL:
        try:
            first = decide(command, ledger.snapshot(command))
        except (Unknown, OwnMessage):
            continue
        assert first == decide(command, ledger.snapshot(command))


@laws
@given(commands=mixtures)
def test_what_a_command_does_not_name_has_no_say(commands: list[c.AnyCommand]) -> None:
    ledger = record_all(Ledger(), commands)
    every = ledger.snapshot(POOL[0]).__class__(ledger.states, ledger.clocks)
    for command in POOL:
        try:
            loaded = decide(command, ledger.snapshot(command))
        except (Unknown, OwnMessage):
            continue
        assert loaded == decide(command, every)


@laws
@given(order=orders)
def test_a_status_is_pushed_only_when_it_rises(order: list[int]) -> None:
    pushed: dict[str, list[int]] = {}
    for event in record_all(Ledger(), [POOL[n] for n in order]).events:
        if isinstance(event, e.MessageDelivered | e.MessageRead | e.MessageFailed) and event.push:
            rank = RANKS[e.tag(event).removeprefix("message.")]
            pushed.setdefault(event.message or "", []).append(rank)
    assert all(one < two for ranks in pushed.values() for one, two in pairwise(ranks))


@laws
@given(order=orders)
def test_the_edit_pushed_last_is_the_latest(order: list[int]) -> None:
    edits = [
        one
        for one in record_all(Ledger(), [POOL[n] for n in order]).events
        if isinstance(one, e.MessageEdited)
    ]
    pushed = [one.at for one in edits if one.push]
    assert pushed == sorted(pushed)
    assert pushed[-1] == edit(8, M).at


@laws
@given(order=orders)
def test_the_messages_of_a_conversation_have_rising_times(order: list[int]) -> None:
    ledger = record_all(Ledger(), [POOL[n] for n in order])
    last: dict[str, int] = {}
    for event in ledger.events:
        if isinstance(event, e.MessageSent) and event.direction == "in":
            conversation = event.conversation or ""
            assert event.msec > last.get(conversation, 0)
        if isinstance(event, e.MessageSent):
            last[event.conversation or ""] = max(event.msec, last.get(event.conversation or "", 0))


@pytest.fixture
async def url(database_url: str) -> str:
    await prepare(database_url)
    return database_url


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=orders, more=mixtures)
async def test_the_view_is_the_same_for_every_order(
    url: str, order: list[int], more: list[c.AnyCommand]
) -> None:
    shuffled = record_all(Ledger(), [*(POOL[n] for n in order), *more])
    assert await views_of(url, shuffled) == await views_of(url, record_all(Ledger(), POOL))


async def views_of(url: str, ledger: Ledger) -> object:
    """The rows of the view of messages, conversations compared by which messages share them."""
    async with await tables.connect(url, names.VIEWS_NEXT_SCHEMA) as link:
        await tables.create_views(link)
        await tables.apply(link, list(enumerate(ledger.events, start=1)), 0)
        cursor = link.cursor(row_factory=dict_row)
        await cursor.execute(
            "SELECT m.id, status, deleted, outgoing, position, edit, remote_id, edited_at, failure_code, "
            "array(SELECT id FROM messages x WHERE x.conversation = m.conversation ORDER BY 1) AS chat,"
            ' array(SELECT ("by", emoji, removed, at)::text FROM reactions WHERE message = m.id ORDER BY 1)'
            " AS reactions FROM messages m ORDER BY id"
        )
        rows = await cursor.fetchall()
    for row in rows:
        sent: Any = ledger.events[row["position"] - 1]
        edited: Any = ledger.events[(row["edit"] or row["position"]) - 1]
        row["own_id"], content = sent.own_id, edited.content
        row["sender"] = replace(sent.sender, ref_id=None)
        row["content"] = replace(content, chat_id=None, conversation_id=None, reply_to=None)
        del row["position"], row["edit"]
    return rows
