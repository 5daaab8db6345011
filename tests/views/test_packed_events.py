"""Events that are stored packed are read as the JSON that they are; only a ledger that says so has any."""

import re
from pathlib import Path

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.database import schema
from app.database.connection import open_session
from app.database.packed import BYTES_MAX, MARK, pack, unpack
from app.ledger.recorder import open_recorder
from app.servers.servers import Servers
from app.service.service import migrate, running
from app.views.rebuild import rebuild
from domain import events as e
from tests.support.ledgers.view_events import random_log
from tests.support.processes import ROOT
from tests.support.system import Story, chat, installed

FIRST = bytes.fromhex(
    "012043350100a382062f6a6422b40ee75aad905d4ae8ad1c75b1227a4d57696e481c4a02cc39c5d6d947500b"
)
STORED = "SELECT notification_id, state FROM ledger.stored_events ORDER BY 1"


def test_every_event_comes_back_as_it_was_and_nearly_all_take_half() -> None:
    events = [e.encode(event) for seed in range(5) for event in random_log(seed, 300).events]
    packed = [pack(event) for event in events]
    assert [unpack(one) for one in packed] == events
    assert sum(map(len, packed)) < sum(map(len, events)) / 2


@given(st.binary(max_size=2 * BYTES_MAX))
def test_any_json_comes_back_however_long(text: bytes) -> None:
    event = b'{"text":"' + text + b'"}'
    stored = pack(event)
    assert unpack(stored) == event
    assert len(stored) <= len(event)
    assert stored == event or len(event) <= BYTES_MAX


@given(st.binary(max_size=300))
def test_what_is_damaged_never_raises(rest: bytes) -> None:
    assert isinstance(unpack(MARK + rest), bytes)
    assert unpack(b"{" + rest) == b"{" + rest


def test_a_packed_event_of_the_first_dictionary_is_read_for_ever() -> None:
    assert unpack(FIRST) == b'{"type":"message.sent","id":"01a21df6-14b1-7a57-88e4-a5bb043b6600"}'


# What they read is unpacked by `content_of` and `customer_in`, and by who folds it.
READ_BY_OTHERS = {"app/views/conversations.py", "app/operations/conversations.py", "app/ledger/streams.py"}


@pytest.mark.parametrize("path", sorted((ROOT / "app").rglob("*.py")), ids=str)
def test_whoever_selects_an_event_unpacks_it(path: Path) -> None:
    text = path.read_text()
    selects = re.search(r"SELECT (?:(?!FROM).)*\bstate\b(?:(?!SELECT).)*ledger\.stored_events", text, re.S)
    if selects and str(path.relative_to(ROOT)) not in READ_BY_OTHERS:
        assert "unpack(" in text


async def stored(url: str) -> list[tuple[int, bytes]]:
    async with await psycopg.AsyncConnection.connect(url) as link:
        return [(int(n), bytes(state)) for n, state in await (await link.execute(STORED)).fetchall()]


async def exchange(story: Story, name: str) -> str:
    """A message each way, delivered; the customer's."""
    message = await story.customer(name)
    await story.arrived(name)
    await story.manager(name)
    await story.pushed(name)
    await story.settled()
    return message


async def test_a_ledger_that_is_packed_on_its_way_works_as_before(servers: Servers) -> None:
    async with installed(servers) as (story, settings):
        url = settings.database_url or ""
        async with running(settings):
            await story.connect()
            name = chat()
            before = await exchange(story, name)
        await migrate(url, packed=True)
        async with running(settings):
            after = await exchange(story, name)
            rows = await stored(url)
            assert {row[:1] for _, row in rows} == {b"{", MARK}
            assert rows[-1][1][:1] == MARK
            for message in (before, after):
                assert (await story.shown(message))["text"] == "Hello"
            listed = await story.api("GET", "/v1/events?limit=1000")
            assert [(item["position"], item["event"]) for item in listed["items"]] == [
                (position, msgspec.json.decode(unpack(row))) for position, row in rows
            ]
        recorder = open_recorder(url)
        with recorder.datastore:
            notes = recorder.select_notifications(start=1, limit=1000)
            assert [note.state for note in notes] == [unpack(row) for _, row in rows]
            last = recorder.select_events(notes[-1].originator_id)
            assert last[-1].state == notes[-1].state
        await rebuild(url)
        async with await psycopg.AsyncConnection.connect(url) as link:
            found = await (await link.execute("SELECT silent, content FROM views.messages")).fetchall()
        assert {row[0] for row in found} == {False, None}  # SQL reads JSON only.


async def test_no_program_of_before_uses_a_packed_ledger(database_url: str) -> None:
    await migrate(database_url)
    async with await open_session(database_url) as db:
        assert not (await schema.check(db)).packed
        assert (await schema.plan(db, packed=True)).steps == ["store events packed from now on"]
    assert (await migrate(database_url, packed=True)).packed
    assert (await migrate(database_url)).packed  # It stays so until it is told otherwise.
    identity = await migrate(database_url, packed=False)
    assert (identity.packed, identity.version) == (False, schema.OLDEST_PACKED)
