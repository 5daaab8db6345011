"""What follows when an operator sends, when the business writes on its phone, and when history comes in."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.kommo.chats import payloads
from domain import commands as c
from domain import events as e
from domain import ids
from domain.decide import OwnMessage, Unknown
from domain.state import Message
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import (
    ANN,
    BOT,
    START_MS,
    Ledger,
    Now,
    accept,
    cells,
    confirm,
    customer,
    end,
    kommo,
    manager,
    operator,
    own,
    react,
    reject,
)

OURS, X, K = ids.message_id(SCOPE, "operator", "o-1"), own("x-1"), kommo("k-1")
laws = settings(deadline=None)


def copied(n: int, stream: str, name: str | None = "k-1") -> c.Accept:
    """Kommo took the copy of a message."""
    return replace(accept(n, stream, "kommo", name), copy=True)


def phoned(n: int, message: str = "p-1", **more: Any) -> c.Send:
    """The business wrote on its phone."""
    fields: dict[str, Any] = {"direction": "out", "sender": replace(BOT, id="phone"), "receiver": ANN}
    return customer(n, message, **(fields | more))


def told(command: c.AnyCommand, *before: c.AnyCommand) -> str:
    """The types of what is decided, with what they are pushed to."""
    ledger = Ledger().after(customer(1), *before)
    try:
        events = ledger.record(command).events
    except (OwnMessage, Unknown) as error:
        return type(error).__name__
    found = []
    for event in events:
        name = e.tag(event).removeprefix("message.").removeprefix("reaction.").replace("conflict.", "")
        if isinstance(event, e.MessageAccepted) and event.copy:
            name = "copied"
        found.append(name + (f">{push[0]}" if (push := getattr(event, "push", None)) else ""))
    return "+".join(found) or "-"


COMMANDS: dict[str, c.AnyCommand] = {
    "send": operator(9),
    "other": operator(9, words="Something else"),
    "delivered": confirm(9, OURS, "delivered"),
    "failed": confirm(9, X, "failed"),
    "react": react(9, X),
    "re-react": react(9, K, OURS, side="kommo"),
    "accept": accept(9, OURS, "messenger", "x-1"),
    "copied": copied(9, OURS),
    "reject": reject(9, OURS),
    "echo": manager(9),
}
STATES: dict[str, tuple[c.AnyCommand, ...]] = {
    "unknown": (),
    "sent": (operator(2),),
    "accepted": (operator(2), accept(3, OURS, "messenger", "x-1")),
    "copied": (operator(2), copied(3, OURS)),
    "both": (operator(2), accept(3, OURS, "messenger", "x-1"), copied(4, OURS)),
    "read": (operator(2), accept(3, OURS, "messenger", "x-1"), copied(4, OURS), confirm(5, OURS, "read")),
}
DECISIONS = """
           unknown            sent            accepted      copied          both         read
send       sent>m+mirrored>k  -               -             -               -            -
other      sent>m+mirrored>k  noticed         noticed       noticed         noticed      noticed
delivered  delivered          delivered>k     delivered>k   delivered>k     delivered>k  delivered
failed     failed             failed          failed>k      failed          failed>k     failed
react      added              added           added>k       added           added>k      added>k
re-react   added              added>m         added>m       added>m         added>m      added>m
accept     Unknown            accepted+named  -             accepted+named  -            -
copied     Unknown            copied+named    copied+named  -               -            -
reject     Unknown            failed>k        failed>k      failed>k        failed>k     failed
echo       bound              bound           bound         -               -            -
"""


def test_every_decision_about_an_operators_message_is_deliberate() -> None:
    grid = [
        [name, *(told(command, *before) for before in STATES.values())] for name, command in COMMANDS.items()
    ]
    for row in grid:
        if row[0] == "echo":
            row[1:] = [cell.split("+")[0].replace("conversation.", "") for cell in row[1:]]
    assert cells(DECISIONS)[1:] == grid


def test_the_copy_says_all_that_kommo_needs() -> None:
    ledger = Ledger().after(customer(1), operator(2, source="shop"))
    [sent] = [event for event in ledger.events if isinstance(event, e.MessageSent) and event.stream == OURS]
    [copy] = [event for event in ledger.events if isinstance(event, e.MessageMirrored)]
    assert (sent.sent_by, sent.push, copy.push) == ("operator", "messenger", "kommo")
    assert (copy.message, copy.cause, copy.msec) == (OURS, sent.id, sent.msec)
    path, payload = payloads.request(SCOPE.scope_id, copy)
    assert (path, payload) == (
        SCOPE.scope_id,
        {
            "event_type": "new_message",
            "payload": {
                "timestamp": copy.msec // 1000,
                "msec_timestamp": copy.msec,
                "msgid": OURS,
                "conversation_id": "conv-1",
                "silent": True,
                "sender": {"id": "bot", "name": "Bot", "ref_id": "bot"},
                "receiver": {"id": "u-1", "name": "Ann"},
                "source": {"external_id": "shop"},
                "message": {"type": "text", "text": "Hi"},
            },
        },
    )


def test_a_copy_raises_no_rank_and_names_the_message_in_kommo() -> None:
    ledger = Ledger().after(customer(1), operator(2), copied(3, OURS))
    state = ledger.states[OURS]
    assert isinstance(state, Message)
    assert (state.rank, state.remote_id, state.kommo_id) == (0, None, "k-1")
    echo = ledger.record(manager(4))
    assert (echo.duplicate, echo.message) == (True, OURS)


@laws
@given(
    order=st.permutations(
        [
            accept(3, OURS, "messenger", "x-1"),
            copied(4, OURS),
            confirm(5, X, "delivered"),
            confirm(6, OURS, "read"),
            react(7, X),
        ]
    )
)
def test_whatever_comes_first_a_message_ends_the_same(order: list[c.AnyCommand]) -> None:
    ledger = Ledger().after(customer(1), operator(2), *order)
    state = ledger.states[OURS]
    assert isinstance(state, Message)
    assert (state.rank, state.remote_id, state.kommo_id) == (4, "x-1", "k-1")
    assert {"message.delivered", "message.read"} <= state.seen.keys()
    for status in ledger.events:
        if isinstance(status, e.MessageDelivered | e.MessageRead) and status.stream == OURS:
            known = ledger.events.index(status) > _index(ledger, copy=True)
            assert status.remote_id == ("k-1" if known else None)
    for command in (operator(2), *order):
        assert ledger.record(command).events == []


def _index(ledger: Ledger, *, copy: bool) -> int:
    return next(
        n for n, one in enumerate(ledger.events) if isinstance(one, e.MessageAccepted) and one.copy is copy
    )


# On the phone.


def test_what_the_business_writes_on_its_phone_goes_to_kommo_alone() -> None:
    ledger = Ledger().after(phoned(1))
    sent = ledger.events[-1]
    assert isinstance(sent, e.MessageSent)
    assert (sent.direction, sent.sent_by, sent.push, e.author(sent)) == (
        "out",
        "messenger",
        "kommo",
        "messenger",
    )
    _, payload = payloads.request(SCOPE.scope_id, sent)
    told = payload["payload"]
    assert isinstance(told, dict)
    assert (told["sender"], told["receiver"]) == (
        {"id": "phone", "name": "Bot", "ref_id": "bot"},
        {"id": "u-1", "name": "Ann"},
    )


def test_it_has_no_status_of_the_messengers() -> None:
    with pytest.raises(OwnMessage):
        Ledger().after(phoned(1), confirm(2, own("p-1"), "read"))


@pytest.mark.parametrize("send", [phoned(2), operator(2, ends=(end("messenger", "conv-w"),))])
def test_what_goes_to_a_chat_that_kommo_began_says_which(send: c.Send) -> None:
    ledger = Ledger().after(manager(1, chat="chat-w", own_chat=None))
    ledger.after(accept(2, K, "messenger", "x-1", "conv-w"))
    send = replace(send, ends=(end("messenger", "conv-w"),))
    ledger.record(replace(send, content=replace(send.content, conversation_id="conv-w")))
    pushed = next(one for one in reversed(ledger.events) if getattr(one, "push", None) == "kommo")
    assert isinstance(pushed, e.MessageSent | e.MessageMirrored)
    assert pushed.receiver is not None
    assert (pushed.content.chat_id, pushed.receiver.ref_id) == ("chat-w", "r-1")


# What was written before.


def test_history_keeps_its_own_times_though_the_chat_has_gone_on() -> None:
    ledger = Ledger().after(customer(1_000_000))
    for n, moment in enumerate((10, 20, 30)):
        ledger.record(customer(moment, f"old-{n}", imported=True))
    imported = [one for one in ledger.events if isinstance(one, e.MessageSent) and one.imported]
    assert [one.msec for one in imported] == [START_MS + moment * 1000 for moment in (10, 20, 30)]
    later = ledger.record(customer(1_000_000, "m-2")).events[0]
    assert isinstance(later, e.MessageSent)
    assert later.msec == START_MS + 1_000_000_001


# A chat before any message.


def begin(n: int, chat: str = "chat-1", name: str = "conv-1") -> c.Begin:
    return c.Begin(
        **Now(n).stamp("operator"), ends=(end("messenger", name), end("kommo", chat)), receiver=ANN
    )


def test_a_chat_begins_once_and_is_known_by_both_names() -> None:
    ledger = Ledger()
    first, again = ledger.record(begin(1)), ledger.record(begin(2))
    assert [e.tag(one) for one in first.events] == ["conversation.started"] + ["conversation.bound"] * 2
    assert (again.events, again.duplicate, again.stream) == ([], True, first.stream)
    assert ledger.root(end("kommo", "chat-1").stream) == first.stream


def test_a_chat_that_is_there_learns_kommos_name() -> None:
    ledger = Ledger().after(customer(1))
    assert [e.tag(one) for one in ledger.record(begin(2)).events] == ["conversation.bound"] * 2


def test_a_chat_that_kommo_began_learns_the_messengers() -> None:
    ledger = Ledger().after(manager(1, own_chat=None))
    begun = ledger.record(begin(2))
    assert (begun.stream, begun.duplicate) == (end("kommo", "chat-1").stream, False)
