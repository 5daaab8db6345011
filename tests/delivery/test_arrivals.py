"""The few fields that delivery reads of every event agree with the whole event, whatever stands in it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.delivery.job import Pushed, is_imported, lane_key, read_head
from app.delivery.ledger_tail import arrivals
from domain import events as e

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "events").glob("*.json"))
HOSTILE = (
    '"push":"kommo"',
    ',"imported":true,"push":"kommo"}',
    '"type":"delivery.resumed"',
    '"conversation":"x","channel":"y","account":"z"',
    '\\","push":"messenger","x":"',
    "\0\\",
    "Привет 👋",
)
OURS = {"type", "push", "side", "direction", "sent_by"}
words = st.sampled_from(HOSTILE) | st.text(max_size=20)


def hostile(value: object, draw: st.DrawFn) -> object:
    """The same shape in any order of its fields, with hostile words wherever others' words stand."""
    if isinstance(value, dict):
        fields = [(name, each if name in OURS else hostile(each, draw)) for name, each in value.items()]
        return dict(draw(st.permutations(fields)))
    if isinstance(value, list):
        return [hostile(each, draw) for each in value]
    return draw(words) if isinstance(value, str) else value


@st.composite
def stored(draw: st.DrawFn, path: Path) -> bytes:
    """An event of a type as a writer of any version may have stored it."""
    event: Any = hostile(msgspec.json.decode(path.read_bytes()), draw)
    for name in ("conversation", "account", "message", "push", "imported"):
        if draw(st.booleans()):
            event.pop(name, None)
    return msgspec.json.encode(event)


def check(raw: bytes) -> None:
    head, event = read_head(raw), e.decode(raw)
    push = getattr(event, "push", None)
    assert (head.channel, head.account, head.conversation) == (
        event.channel,
        event.account,
        event.conversation,
    )
    assert (head.push, head.imported) == (push, getattr(event, "imported", False))
    assert head.resumes == isinstance(event, e.DeliveryResumed)
    concerns = push is not None or isinstance(event, e.DeliveryResumed)
    assert arrivals([(7, raw)]) == ([(7, head, raw)] if concerns else [])
    if isinstance(event, Pushed) and event.push:
        assert lane_key(head) == lane_key(event)
        assert is_imported(head) == is_imported(event)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_head_of_every_type_of_event_agrees_with_the_event(path: Path) -> None:
    check(path.read_bytes())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@given(data=st.data())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_no_words_and_no_order_of_fields_mislead_delivery(path: Path, data: st.DataObject) -> None:
    check(data.draw(stored(path)))


def test_every_event_that_asks_to_be_pushed_is_of_a_type_that_is_pushed() -> None:
    events = [e.decode(path.read_bytes()) for path in GOLDEN]
    asking = [event for event in events if getattr(event, "push", None)]
    assert asking
    assert all(isinstance(event, Pushed) for event in asking)
