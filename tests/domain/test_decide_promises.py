"""What the contract promises of ids, aliases, echoes, conflicts and conversations, one sentence a test."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import commands as c
from domain import events as e
from domain import ids
from domain.state import Chat, Message, evolve
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import (
    ANN,
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
    own,
    react,
    reject,
    text,
    typing,
)

M, K, X = own("m-1"), kommo("k-1"), own("x-1")


def sent(ledger: Ledger, stream: str) -> e.MessageSent:
    message = ledger.states[stream]
    assert isinstance(message, Message)
    assert message.sent
    return message.sent


def tags(events: list[e.AnyEvent]) -> list[str]:
    return [e.tag(event) for event in events]


def chat(ledger: Ledger, stream: str) -> Chat:
    state = ledger.states[ledger.root(stream)]
    assert isinstance(state, Chat)
    return state


def test_an_echo_is_the_message_we_sent() -> None:
    ledger = Ledger().after(manager(1), accept(2, K, "messenger", "x-1"))
    decision = ledger.record(customer(3, "x-1"))
    assert (decision.message, decision.duplicate, decision.events) == (K, True, [])


def test_a_name_that_is_another_message_covers_nothing_and_the_conflict_is_noticed() -> None:
    ledger = Ledger().after(manager(1), customer(2, "x-1"))
    events = ledger.record(accept(3, K, "messenger", "x-1")).events
    assert tags(events) == ["message.accepted", "conflict.noticed"]
    conflict = events[1]
    assert isinstance(conflict, e.ConflictNoticed)
    assert (conflict.message, conflict.about, conflict.remote_id) == (K, "message_id", "x-1")
    assert ledger.record(edit(4, X)).message == X
    assert {sent(ledger, K).own_id, sent(ledger, X).own_id} == {"k-1", "x-1"}


def test_kommos_hook_of_a_copy_that_comes_before_its_name_is_that_copy() -> None:
    copy = manager(3, "k-7")
    ledger = Ledger().after(customer(1), manager(2), copy, accept(4, M, "kommo", "k-7"))
    assert ledger.record(manager(5, "k-7")).message == M
    assert ledger.record(react(6, kommo("k-7"), side="kommo")).message == M


def test_a_repeat_that_differs_only_in_names_and_times_is_no_conflict() -> None:
    other = replace(ANN, name="Anna", avatar="http://a/b.png")
    assert Ledger().after(customer(1)).record(customer(9, sender=other)).duplicate


@pytest.mark.parametrize(
    "changed",
    [
        customer(9, words="Other"),
        customer(9, chat="conv-2"),
        customer(9, sender=e.Party(id="u-2")),
        customer(9, source="web"),
        customer(9, reply=e.Reply("m-0"), reply_stream=own("m-0")),
    ],
    ids=["message", "conversation", "sender", "source", "reply"],
)
def test_the_same_id_with_other_content_is_a_conflict_noticed_once(changed: c.Send) -> None:
    ledger = Ledger().after(customer(1))
    assert tags(ledger.record(changed).events) == ["conflict.noticed"]
    again = ledger.record(changed)
    assert again.conflict
    assert again.events == []


def test_conflicts_that_differ_only_in_source_are_two() -> None:
    ledger = Ledger().after(customer(1), customer(2, source="web"), customer(3, source="app"))
    assert tags(ledger.events).count("conflict.noticed") == 2


def test_a_conflict_names_the_position_of_the_first() -> None:
    decision = Ledger().after(edit(1, M), customer(2)).record(customer(3, words="Other"))
    assert (decision.stream, decision.version) == (M, 2)


def test_a_reply_is_resolved_through_an_alias() -> None:
    ledger = Ledger().after(manager(1), accept(2, K, "messenger", "x-1"))
    reply = sent(ledger.after(customer(3, reply=e.Reply("x-1"), reply_stream=X)), M).content.reply_to
    assert reply == e.Reply("x-1", K, "kommo", "k-1", "x-1")


def test_a_reply_to_nothing_known_keeps_its_name_alone() -> None:
    ledger = Ledger().after(customer(1, reply=e.Reply("m-0"), reply_stream=own("m-0")))
    assert sent(ledger, M).content.reply_to == e.Reply("m-0")


def test_a_reply_that_is_resolved_later_is_still_the_same_message() -> None:
    first = customer(1, reply=e.Reply("m-0"), reply_stream=own("m-0"))
    assert Ledger().after(first, customer(2, "m-0")).record(replace(first, id=customer(3).id)).duplicate


def test_statuses_that_wait_for_a_name_keep_their_time_and_cause() -> None:
    ledger = Ledger().after(manager(1), confirm(2, X, "read"), accept(3, K, "messenger", "x-1"))
    waiting, applied = (event for event in ledger.events if isinstance(event, e.MessageRead))
    assert (applied.cause, applied.at, applied.message) == (waiting.id, waiting.at, K)
    assert (applied.push, applied.remote_id, waiting.push) == ("kommo", "k-1", None)


def test_a_status_of_the_messengers_own_message_that_came_first_is_applied_and_not_pushed() -> None:
    events = Ledger().after(confirm(1, M, "read")).record(customer(2)).events[1:]
    assert tags(events) == ["message.sent", "message.read"]
    assert isinstance(events[1], e.MessageRead)
    assert (events[1].message, events[1].push) == (M, None)


def test_a_fact_known_by_both_names_is_recorded_once() -> None:
    ledger = Ledger().after(manager(1), confirm(2, X, "read"), confirm(3, K, "read"))
    assert tags(ledger.record(accept(4, K, "messenger", "x-1")).events) == [
        "message.accepted",
        "message.named",
    ]


def test_hundreds_of_facts_that_wait_all_get_ids_of_their_own() -> None:
    ledger = Ledger().after(manager(1), *(react(n, X, removed=n % 2 == 1) for n in range(2, 100)))
    events = ledger.record(accept(100, K, "messenger", "x-1")).events
    assert len({event.id for event in events}) == len(events) == 100
    assert {len(event.id) for event in events} == {36}


def test_the_first_name_stays_if_two_messages_claim_it() -> None:
    ledger = Ledger().after(manager(1), manager(2, "k-2"), accept(3, K, "messenger", "x-1"))
    events = ledger.record(accept(4, kommo("k-2"), "messenger", "x-1")).events
    assert tags(events) == ["message.accepted", "conflict.noticed"]
    assert ledger.record(customer(5, "x-1")).message == K


def test_an_answer_without_a_name_is_accepted_too() -> None:
    assert tags(Ledger().after(manager(1)).record(accept(2, K, "messenger")).events) == ["message.accepted"]


def test_a_customers_message_that_kommo_refuses_names_no_message_of_kommos() -> None:
    failed = Ledger().after(customer(1)).record(reject(2, M)).events[-1]
    assert isinstance(failed, e.MessageFailed)
    assert (failed.remote_id, failed.push) == (None, None)


def test_an_older_edit_is_recorded_and_not_pushed() -> None:
    ledger = Ledger().after(customer(1), edit(5, M, "late"))
    older = ledger.record(edit(6, M, "early", at=2)).events[-1]
    assert isinstance(older, e.MessageEdited)
    assert older.push is None


def test_deleted_is_final() -> None:
    ledger = Ledger().after(customer(1), delete(2, M))
    late = ledger.record(edit(3, M)).events[-1]
    assert isinstance(late, e.MessageEdited)
    assert late.push is None


def test_a_managers_reaction_finds_the_message_by_whichever_name_is_known() -> None:
    by_name = Ledger().after(customer(1)).record(react(2, kommo("k-9"), M, side="kommo")).events[-1]
    assert isinstance(by_name, e.ReactionAdded)
    assert (by_name.message, by_name.sent_by, by_name.own_id) == (M, "messenger", "m-1")


def test_times_rise_within_a_conversation_whatever_the_senders_clock_says() -> None:
    ledger = Ledger().after(customer(1), manager(20), customer(3, "m-2"), customer(3, "m-3"))
    start = START_MS + 20_000
    assert [sent(ledger, own(name)).msec for name in ("m-2", "m-3")] == [start + 1, start + 2]


def test_a_conversation_keeps_the_id_of_the_first_name_seen() -> None:
    ledger = Ledger().after(customer(1), manager(2))
    assert sent(ledger, K).conversation == sent(ledger, M).conversation == end("messenger", "conv-1").stream


def test_each_side_learns_the_others_name_of_the_conversation() -> None:
    ledger = Ledger().after(customer(1), manager(2))
    found = chat(ledger, end("kommo", "chat-1").stream)
    assert (found.conversation_id, found.chat_id) == ("conv-1", "chat-1")


def test_a_chat_that_kommo_began_is_bound_by_the_messengers_answer() -> None:
    ledger = Ledger().after(
        manager(1, own_chat=None), accept(2, K, "messenger", "x-1", "conv-1"), customer(3)
    )
    first = sent(ledger, M)
    assert first.conversation == sent(ledger, K).conversation
    assert (first.content.chat_id, first.sender.ref_id) == ("chat-1", "r-1")


def test_two_conversations_that_are_one_are_merged_into_the_earlier() -> None:
    ledger = Ledger().after(manager(1, own_chat=None), customer(2))
    events = ledger.record(accept(3, K, "messenger", "x-1", "conv-1")).events
    assert "conversation.merged" in tags(events)
    assert ledger.root(end("messenger", "conv-1").stream) == end("kommo", "chat-1").stream


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3) | st.none(), st.booleans()), min_size=1, max_size=12
    )
)
def test_names_that_fit_become_one_conversation_and_two_customers_never_do(
    told: list[tuple[int, int | None, bool]],
) -> None:
    ledger, partners = Ledger(), dict[str, set[str]]()
    for n, (one, two, hers) in enumerate(told, start=1):
        if hers:
            ledger.record(customer(n, f"m-{n}", chat=f"conv-{one}"))
            partners.setdefault(f"conv-{one}", set())
            continue
        own_chat = f"conv-{two}" if two is not None else None
        ledger.record(manager(n, f"k-{n}", chat=f"chat-{one}", own_chat=own_chat))
        partners.setdefault(f"chat-{one}", set()).update({own_chat} if own_chat else ())
        if own_chat:
            partners.setdefault(own_chat, set())
            home = sent(ledger, kommo(f"k-{n}")).conversation or ""
            assert ledger.root(home) == ledger.root(end("messenger", own_chat).stream)
    roots = {
        name: ledger.root(end("kommo" if "chat" in name else "messenger", name).stream) for name in partners
    }
    customers = [root for name, root in roots.items() if name.startswith("conv")]
    assert len(set(customers)) == len(customers)
    for name, names in partners.items():
        if len(names) == 1:
            assert roots[name] == roots[names.pop()]


def test_typing_names_the_conversation_as_far_as_it_is_known() -> None:
    found = Ledger().after(customer(1), manager(2)).record(typing(3)).events[-1]
    assert isinstance(found, e.TypingStarted)
    assert (found.content, found.push) == (e.Ends("conv-1", "chat-1"), "kommo")


def operator(kind: Callable[..., c.AnyCommand], n: int, **more: object) -> c.AnyCommand:
    return kind(**Now(n).stamp("operator"), stream=ids.connection_stream(SCOPE), **more)


@pytest.mark.parametrize(
    "command",
    [
        operator(c.Change, 9, url="http://b", bot_id=None, secrets=()),
        operator(c.Connect, 9, title="Acme", again=True),
        operator(c.Disconnect, 9),
    ],
    ids=["change", "reconnect", "disconnect"],
)
def test_an_operators_command_decided_anew_after_a_broken_link_is_recorded_once(
    command: c.AnyCommand,
) -> None:
    ledger = Ledger().after(operator(c.Connect, 1, title="Acme"))
    first = ledger.record(command)
    again = ledger.record(command)
    assert (again.events, again.stream, again.version) == ([], first.stream, first.version)


def test_a_reply_to_a_name_that_is_none_of_ours_keeps_it() -> None:
    ledger = Ledger().after(manager(1, content=text("Hi", reply_to=e.Reply("who"))))
    assert sent(ledger, K).content.reply_to == e.Reply("who")


def test_a_link_to_a_contact_changes_nothing_that_is_decided() -> None:
    ledger = Ledger().after(customer(1))
    stream = end("messenger", "conv-1").stream
    before = ledger.states[stream]
    linked = e.ConversationLinked(
        id="0", stream=stream, version=2, channel="acme", at="", recorded_at="", by="", schema=1, contact_id=7
    )
    assert replace(evolve(before, linked), version=1, contact_id=None, linked=0) == before


def test_an_operator_names_streams_that_nothing_else_does() -> None:
    names = {ids.channel_stream("acme"), ids.channel_stream("acme2"), ids.connection_stream(SCOPE)}
    assert len(names) == 3


def test_a_subject_says_where_an_event_belongs() -> None:
    conversation = "7afb6a4e-8e96-529c-9f40-8dd54ae6414b"
    assert ids.subject(conversation, "acc", "message.sent") == f"ledger.p57.acc.{conversation}.message_sent"
    assert ids.subject(None, None, "channel.registered") == "ledger.p00.-.-.channel_registered"
