"""A name counts only inside its scope, in its conversation and for its kind, whoever writes it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import commands as c
from domain import events as e
from domain import ids
from domain.decide import NotConnected, OwnMessage, Unknown
from domain.ids import Scope
from domain.state import Message, Misfit, evolve, skip
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import (
    START_MS,
    Ledger,
    Now,
    accept,
    confirm,
    customer,
    delete,
    edit,
    end,
    kommo,
    manager,
    operator,
    own,
    react,
    text,
)

OTHER = ids.scope_of("rival", "11111111-f8ca-454d-af3d-396180102ac7", "22222222-c98f-4255-8495-827210138c81")
M, K, X = own("m-1"), kommo("k-1"), own("x-1")
VICTIM: tuple[c.AnyCommand, ...] = (
    customer(1),
    manager(2),
    accept(3, K, "messenger", "x-1"),
    accept(4, M, "kommo", "k-9"),
    operator(5),
    customer(6, "m-2", chat="conv-2"),
)
STREAMS = sorted(Ledger().after(*VICTIM).states)
NAMES = st.sampled_from(["m-1", "k-1", "x-1", "conv-1", "chat-1", *STREAMS])


def of_rival(command: c.AnyCommand) -> c.AnyCommand:
    return replace(command, scope=OTHER)


def claimed(ours: str, side: e.Side = "messenger", name: str | None = None) -> dict[str, Any]:
    """A fact that names our id, and perhaps an id of its own, in the rival's scope."""
    streams = (ids.message_id(OTHER, side, name),) if name else (ids.claimed_id(OTHER, side, ours),)
    chat = ids.conversation_id(OTHER, side, "conv-1")
    return {"streams": streams, "ours": ours, "ends": (c.End(side, chat, e.Ends(conversation_id="conv-1")),)}


@st.composite
def attacks(draw: st.DrawFn) -> c.AnyCommand:
    n, ours = draw(st.integers(20, 99)), draw(NAMES)
    name, own_name = draw(NAMES | st.none()), draw(NAMES)
    about = claimed(ours, name=name)
    commands: list[c.AnyCommand] = [
        edit(n, "", **about),
        delete(n, "", **about),
        confirm(n, "", draw(st.sampled_from(["delivered", "read", "failed"])), **about),
        react(n, **about),
        react(n, side="kommo", **claimed(ours, "kommo", name)),
        rival_send(n, own_name, ours),
    ]
    return of_rival(draw(st.sampled_from(commands)))


def rival_send(n: int, own_id: str, answered: str) -> c.Send:
    """A customer of the rival's writes, with ids and a quoted message of another's."""
    chat = ids.conversation_id(OTHER, "messenger", "conv-1")
    return customer(
        n,
        own_id,
        stream=ids.message_id(OTHER, "messenger", own_id),
        ends=(c.End("messenger", chat, e.Ends(conversation_id="conv-1")),),
        content=text("Hello", conversation_id="conv-1", reply_to=e.Reply("m-1")),
        reply_stream=answered,
    )


@settings(deadline=None)
@given(st.lists(attacks(), max_size=12))
def test_commands_of_one_scope_leave_every_stream_of_another_as_it_is(commands: list[c.AnyCommand]) -> None:
    ledger = Ledger().after(*VICTIM)
    before = {stream: ledger.states[stream] for stream in STREAMS}
    count = len(ledger.events)
    for command in commands:
        try:
            ledger.record(command)
        except (Unknown, OwnMessage, NotConnected):
            continue
    assert {stream: ledger.states[stream] for stream in STREAMS} == before
    for event in ledger.events[count:]:
        assert (event.channel, event.account) == (OTHER.channel, OTHER.account)
        assert event.stream not in STREAMS
        assert event.message is None or event.message not in STREAMS
        if isinstance(event, e.MessageSent):
            assert event.content.reply_to is None or event.content.reply_to.message is None


def test_a_fact_that_names_our_id_finds_the_message_of_its_own_scope() -> None:
    ledger = Ledger().after(manager(1))
    about = {
        "streams": (ids.claimed_id(SCOPE, "messenger", K),),
        "ours": K,
        "ends": (end("messenger", "conv-1"),),
    }
    assert ledger.record(confirm(2, "", "read", **about)).message == K


def in_chat(name: str, own_id: str) -> dict[str, Any]:
    """How a messenger names a message and its conversation."""
    within = ids.message_id_within(SCOPE, name, "messenger", own_id)
    return {"streams": (own(own_id), within), "ends": (end("messenger", name),)}


def answered(n: int, stream: str, own_id: str, chat: str) -> c.Accept:
    within = ids.message_id_within(SCOPE, chat, "messenger", own_id)
    return replace(accept(n, stream, "messenger", own_id), alias_within=within)


def test_two_messages_with_one_id_in_two_chats_each_have_their_facts() -> None:
    ledger = Ledger().after(
        manager(1, "k-1", chat="chat-1", own_chat="conv-1"),
        manager(2, "k-2", chat="chat-2", own_chat="conv-2"),
        confirm(3, "", "delivered", **in_chat("conv-2", "57")),
        answered(4, K, "57", "conv-1"),
        answered(5, kommo("k-2"), "57", "conv-2"),
    )
    assert ranks(ledger) == (1, 3)  # What waited for the second chat's message came to that one.
    assert ledger.record(confirm(6, "", "read", **in_chat("conv-1", "57"))).message == K
    assert ledger.record(confirm(7, "", "read", **in_chat("conv-2", "57"))).message == kommo("k-2")
    assert ranks(ledger) == (4, 4)
    conflicts = [one for one in ledger.events if isinstance(one, e.ConflictNoticed)]
    assert [(one.message, one.about, one.remote_id) for one in conflicts] == [
        (kommo("k-2"), "message_id", "57")
    ]


def ranks(ledger: Ledger) -> tuple[int, int]:
    one, two = ledger.states[K], ledger.states[kommo("k-2")]
    assert isinstance(one, Message)
    assert isinstance(two, Message)
    return one.rank, two.rank


def test_a_fact_about_a_message_of_another_conversation_waits_and_is_applied_there() -> None:
    first, second = customer(1, "57"), customer(5, "57", chat="conv-2")
    ledger = Ledger().after(first, edit(2, "", **in_chat("conv-2", "57")))
    assert ledger.events[-1].message is None
    early = Ledger().after(edit(2, "", **in_chat("conv-2", "57")), first)
    assert [one.message for one in early.events if isinstance(one, e.MessageEdited)] == [None]
    there = Ledger().after(edit(2, "", **in_chat("conv-2", "57")), second)
    assert [one.message for one in there.events if isinstance(one, e.MessageEdited)] == [None, own("57")]


def test_a_customers_message_with_the_id_of_our_message_elsewhere_is_a_message_of_its_own() -> None:
    within = ids.message_id_within(SCOPE, "conv-2", "messenger", "57")
    ledger = Ledger().after(manager(1), answered(2, K, "57", "conv-1"))
    assert ledger.record(customer(3, "57", stream_within=within)).duplicate
    other = customer(4, "57", chat="conv-2", stream_within=within)
    decision = ledger.record(other)
    assert (decision.message, decision.duplicate) == (within, False)
    assert ledger.record(other).duplicate
    assert ledger.record(edit(6, "", **in_chat("conv-2", "57"))).message == within


def test_a_reply_names_a_message_of_its_own_conversation_only() -> None:
    ledger = Ledger().after(
        customer(1), customer(2, "m-2", chat="conv-2", reply=e.Reply("m-1"), reply_stream=M)
    )
    sent = ledger.states[own("m-2")]
    assert isinstance(sent, Message)
    assert sent.sent
    assert sent.sent.content.reply_to == e.Reply("m-1")


def test_an_answer_that_names_another_customers_chat_is_a_conflict_and_its_other_half_counts() -> None:
    ledger = Ledger().after(customer(1), customer(2, "m-2", chat="conv-2"), manager(3))
    ledger.record(accept(4, K, "messenger", "x-1", "conv-2"))
    roots = [ledger.root(end("messenger", name).stream) for name in ("conv-1", "conv-2")]
    assert len(set(roots)) == 2
    conflict = ledger.events[-1]
    assert isinstance(conflict, e.ConflictNoticed)
    assert (conflict.about, conflict.remote_id) == ("conversation_id", "conv-2")
    assert ledger.record(confirm(5, X, "read")).message == K
    assert ledger.record(customer(6, "m-6", chat="conv-2")).events[-1].conversation == roots[1]


@pytest.mark.parametrize("side", ["messenger", "kommo"])
def test_a_repeat_is_what_equals_the_present_state(side: e.Side) -> None:
    ledger = Ledger().after(customer(1), accept(2, M, "kommo", "k-9"))
    steps = [(3, "👍", False), (4, "👍", True), (5, "👍", False), (6, "👍", False), (7, "👎", False)]
    found = [
        ledger.record(react(n, M, side=side, at=3, emoji=emoji, removed=removed))
        for n, emoji, removed in steps
    ]
    assert [len(one.events) for one in found] == [1, 1, 1, 0, 1]
    assert all(getattr(event, "push", None) for one in found for event in one.events)


def test_an_edit_back_to_an_earlier_text_is_news_and_the_same_request_is_not() -> None:
    ledger = Ledger().after(customer(1))
    requests = [("e1", "r:0"), ("e2", "r:1"), ("e1", "r:2"), ("e2", "r:1"), ("e1", "r:0")]
    found = [
        ledger.record(edit(2 + n, M, text, at=2, request=name)) for n, (text, name) in enumerate(requests)
    ]
    assert [len(one.events) for one in found] == [1, 1, 1, 0, 0]
    message = ledger.states[M]
    assert isinstance(message, Message)
    assert message.edited
    assert message.edited.content.text == "e1"


def test_a_reaction_that_is_older_than_the_one_in_force_is_kept_and_not_pushed() -> None:
    ledger = Ledger().after(customer(1), react(5, M, side="kommo"))
    (event,) = ledger.record(react(6, M, side="kommo", emoji="👎", at=3)).events
    assert getattr(event, "push", None) is None
    assert not ledger.record(react(7, M, side="kommo", emoji="👎", at=3)).events


def test_an_event_that_does_not_fit_its_stream_is_refused_and_an_old_one_is_left_out() -> None:
    ledger = Ledger().after(customer(1))
    chat = end("messenger", "conv-1").stream
    read = e.MessageRead(
        id=f"{START_MS:012x}",
        stream=chat,
        version=9,
        channel="acme",
        at="",
        recorded_at="",
        by="messenger",
        schema=1,
    )
    with pytest.raises(Misfit, match=r"message\.read in the stream of a chat"):
        evolve(ledger.states[chat], read)
    after = skip(ledger.states[chat], read)
    assert (after.version, replace(after, version=1)) == (9, replace(ledger.states[chat], version=1))


def test_names_within_a_conversation_do_not_collide() -> None:
    scope: Scope = SCOPE
    names = [("c", "1:2"), ("c:1", "2"), ("c:1:", "2"), ("", "c:1:2")]
    assert len({ids.message_id_within(scope, chat, "messenger", own_id) for chat, own_id in names}) == len(
        names
    )


def test_what_is_claimed_too_far_ahead_is_kept_in_the_event() -> None:
    stamp = Now(3).stamp("messenger") | {"claimed_at": "2026-01-02T00:00:00.000Z"}
    ledger = Ledger().after(replace(customer(3), **stamp))
    sent = ledger.events[-1]
    assert (sent.at, sent.claimed_at) == (stamp["at"], stamp["claimed_at"])
