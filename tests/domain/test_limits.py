"""What one message may have is limited, and what is more is refused or changes nothing."""

import pytest
from msgspec.structs import replace

from domain import events as e
from domain.decide import CONFLICTS_MAX, TooManyFacts
from domain.facts import EDITS_MAX, REACTIONS_MAX, WAITING_MAX
from domain.state import CONTENTS_BYTES_MAX, Message
from tests.support.ledgers.decisions import Ledger, Now, customer, edit, own, react


def message(ledger: Ledger, name: str = "m-1") -> Message:
    state = ledger.states[own(name)]
    assert isinstance(state, Message)
    return state


def test_a_message_is_edited_so_often_and_not_more() -> None:
    ledger = Ledger().after(customer(1))
    for n in range(2, EDITS_MAX + 2):
        ledger.record(edit(n, own("m-1"), words=f"edit {n}"))
    with pytest.raises(TooManyFacts, match="edited 1000 times"):
        ledger.record(edit(EDITS_MAX + 2, own("m-1"), words="one more"))
    assert message(ledger).edits == EDITS_MAX
    assert ledger.record(
        edit(EDITS_MAX + 1, own("m-1"), words=f"edit {EDITS_MAX + 1}")
    ).duplicate  # is no edit more


def test_a_message_has_so_many_reactions_and_not_more() -> None:
    ledger = Ledger().after(customer(1))
    for n in range(2, REACTIONS_MAX + 2):
        ledger.record(react(n, own("m-1"), emoji="👍👎"[n % 2]))
    with pytest.raises(TooManyFacts, match="1000 reactions"):
        ledger.record(react(REACTIONS_MAX + 2, own("m-1"), emoji="❤"))
    assert len(message(ledger).reactions) == 1


def test_so_many_facts_wait_for_an_unknown_name_and_all_apply_when_it_is_known() -> None:
    ledger = Ledger()
    for n in range(2, WAITING_MAX + 2):
        ledger.record(edit(n, own("m-1"), words=f"edit {n}"))
    with pytest.raises(TooManyFacts, match="send the message first"):
        ledger.record(edit(WAITING_MAX + 2, own("m-1"), words="one more"))
    ledger.record(customer(WAITING_MAX + 3))
    edited = message(ledger).edited
    assert edited is not None
    assert edited.content.text == f"edit {WAITING_MAX + 1}"
    ledger.record(edit(WAITING_MAX + 4, own("m-1"), words="now it is known"))


def test_conflicts_beyond_the_limit_are_answered_alike_and_not_recorded() -> None:
    ledger = Ledger().after(customer(1))
    for n in range(2, CONFLICTS_MAX + 12):
        again = replace(customer(n, words=f"other {n}"), id=Now(n).stamp("messenger")["id"])
        assert ledger.record(again).conflict
    noticed = [event for event in ledger.events if isinstance(event, e.ConflictNoticed)]
    assert len(noticed) == CONFLICTS_MAX


@pytest.mark.parametrize("known", [True, False])
def test_whoever_acts_on_a_message_reads_no_more_than_so_many_bytes(known: bool) -> None:
    """Else five hundred small actions on such messages, in one body, are gigabytes to read."""
    ledger, size = Ledger().after(*([customer(1)] if known else [])), 300 * 1024
    edits = -(-CONTENTS_BYTES_MAX // size)
    for n in range(2, edits + 2):
        ledger.record(edit(n, own("m-1"), words=f"{n}".ljust(size)))
    with pytest.raises(TooManyFacts, match="too large in all"):
        ledger.record(edit(edits + 2, own("m-1"), words="one more"))
    assert CONTENTS_BYTES_MAX <= message(ledger).contents_bytes < CONTENTS_BYTES_MAX + 2 * size


def test_conflicts_are_not_recorded_beyond_so_many_bytes() -> None:
    ledger, size = Ledger().after(customer(1)), 300 * 1024
    for n in range(2, 30):
        again = replace(customer(n, words=f"{n}".ljust(size)), id=Now(n).stamp("messenger")["id"])
        assert ledger.record(again).conflict
    assert message(ledger).contents_bytes < CONTENTS_BYTES_MAX + 2 * size
