"""What is read is what was recorded: complete, in a stable order, page by page."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

import msgspec
import psycopg
import pytest

from app import clock
from app.database.pool import BadFilter, Pool, ViewsMissing
from app.views.conversations import get_conversation, list_conversations
from app.views.cursor import BadCursor
from app.views.deliveries import list_deliveries
from app.views.events import Filter, list_events, stream_events
from app.views.messages import get_message, list_messages
from app.views.rebuild import rebuild
from app.views.status import list_channels, view_status
from domain import events as e
from domain.ids import message_id
from tests.support.ids import NOBODY, SCOPE
from tests.support.ledgers.view_events import START_MS, EventLog, prepare, random_log, store

Open = Callable[[EventLog], Any]


@pytest.fixture
async def reads(database_url: str) -> AsyncIterator[Pool]:
    pool = Pool(database_url)
    yield pool
    await pool.close()


@pytest.fixture
async def of(database_url: str, reads: Pool) -> Open:
    """`await of(log)` gives the reads of a ledger that holds the log."""

    async def of(log: EventLog) -> Pool:
        await prepare(database_url, log.events)
        await rebuild(database_url)
        return reads

    return of


async def everything(page: Callable[..., Any], pool: Pool, **fields: object) -> list[Any]:
    """All items of a list, by its cursors."""
    items: list[Any] = []
    cursor = None
    while True:
        found = await page(pool, cursor=cursor, **fields)
        items += found.items
        cursor = found.next
        if cursor is None:
            return items


async def test_conversations_come_with_the_latest_activity_first(of: Open) -> None:
    log = random_log(1, 300)
    reads = await of(log)
    items = await everything(list_conversations, reads, limit=2)
    positions = [item.position for item in items]
    assert positions == sorted(positions, reverse=True)
    assert items == (await list_conversations(reads, limit=1000)).items
    assert len({item.id for item in items}) == len(items) > 2


async def test_conversations_are_found_by_any_of_their_names(of: Open) -> None:
    log = EventLog()
    chat = log.start("conv-1")
    log.start("conv-2")
    bound = e.Ends(chat_id="chat-1")
    log.add(e.ConversationBound, chat, conversation=chat, side="kommo", content=bound)
    log.add(e.ConversationLinked, chat, conversation=chat, contact_id=5, lead_id=6)
    log.send(chat, "m-1")
    reads = await of(log)
    for page in (
        await list_conversations(reads, conversation_id="conv-1"),
        await list_conversations(reads, chat_id="chat-1"),
    ):
        (item,) = page.items
        assert (item.id, item.contact_id, item.lead_id, item.messages) == (chat, 5, 6, 1)
        assert item.last
        assert (item.last.text, item.last.direction) == ("Hello, this is m-1", "in")
    assert len((await list_conversations(reads, channel="acme", account_id=SCOPE.account)).items) == 2
    assert (await list_conversations(reads, channel="none")).items == []


async def test_a_merged_conversation_is_read_as_the_other(of: Open) -> None:
    log = EventLog()
    winner, loser = log.start("conv-1"), log.start("conv-2")
    log.send(winner, "m-1")
    log.send(loser, "m-2")
    log.add(e.ConversationMerged, loser, conversation=loser, into=winner)
    log.send(loser, "m-3")
    reads = await of(log)
    found = await get_conversation(reads, loser)
    assert found
    assert (found.id, found.messages) == (winner, 3)
    for conversation in (winner, loser):
        messages = await everything(list_messages, reads, conversation=conversation, limit=2)
        assert [message.remote.messenger for message in messages] == ["m-1", "m-2", "m-3"]
        events = await list_events(reads, only=Filter(conversation=conversation))
        assert [item.position for item in events.items] == list(range(1, len(log.events) + 1))


async def test_messages_come_by_position_either_way(of: Open) -> None:
    log = EventLog()
    chat = log.start("conv-1")
    sent = [log.send(chat, f"m-{number}").message for number in range(7)]
    reads = await of(log)
    for limit in (1, 3, 7, 50):
        up = await everything(list_messages, reads, conversation=chat, limit=limit)
        down = await everything(list_messages, reads, conversation=chat, limit=limit, order="desc")
        assert [message.id for message in up] == sent == [message.id for message in reversed(down)]


async def test_reports_find_in_sql_what_the_ledger_keeps_of_a_message(of: Open, database_url: str) -> None:
    log = EventLog()
    chat = log.start("conv-1")
    sent = log.send(chat, "m\0-1", content=e.Content(type="text", text="a\0b", conversation_id="conv-1"))
    log.about(e.MessageEdited, sent, content=e.Content(type="text", text="Now this"))
    plain = log.send(chat, "m-2")
    await of(log)
    columns = "own_id, channel, account_id, silent, imported, recorded_at, sender, content"
    async with await psycopg.AsyncConnection.connect(database_url) as link:
        rows = await link.execute(f"SELECT {columns} FROM views.messages ORDER BY position".encode())
        found = await rows.fetchall()
    scope = (sent.channel, sent.account, False, False)
    times = [datetime.fromisoformat(one.recorded_at) for one in (sent, plain)]
    assert [row[:-2] for row in found] == [("m\ufffd-1", *scope, times[0]), ("m-2", *scope, times[1])]
    assert [msgspec.json.decode(row[-2], type=e.Party) for row in found] == [sent.sender, plain.sender]
    contents = [msgspec.json.decode(row[-1], type=e.Content) for row in found]
    assert contents == [e.Content(type="text", text="Now this"), plain.content]


async def test_a_message_says_how_it_stands(of: Open) -> None:
    log = EventLog()
    chat = log.start("conv-1")
    content = e.Content(type="picture", text="Look", media="http://localhost/a.png", conversation_id="conv-1")
    sent = log.send(chat, "m-1", content=content, at="2026-11-22T08:00:00.000Z", receiver=e.Party(id="u-2"))
    log.accept(sent, "k-1")
    later, earlier = clock.text(START_MS + 9), clock.text(START_MS)
    edited = e.Content(type="text", text="Now this")
    log.about(e.MessageEdited, sent, content=edited, at=later)
    log.about(e.MessageEdited, sent, content=content, at=earlier)
    for sender, emoji in (("b", "👎"), ("a", "👍")):
        party = e.Party(id=sender)
        log.about(e.ReactionAdded, sent, sender=party, emoji=emoji, content=e.Ends(), at=later)
    log.about(e.ReactionRemoved, sent, sender=e.Party(id="b"), content=e.Ends(), at=earlier)
    reads = await of(log)
    (message,) = (await list_messages(reads, chat)).items
    told = msgspec.to_builtins(message)
    assert {name: value for name, value in told.items() if value not in (None, False, 0)} == {
        "id": sent.message,
        "position": 2,
        "conversation": chat,
        "channel": "acme",
        "account_id": SCOPE.account,
        "direction": "in",
        "sent_by": "messenger",
        "type": "text",
        "text": "Now this",
        "sender": {"id": "u-1", "name": "Ann", "phone": "+15550100"},
        "receiver": {"id": "u-2"},
        "sent_at": "2026-11-22T08:00:00.000Z",
        "recorded_at": sent.recorded_at,
        "status": "accepted",
        "remote": {"kommo": "k-1", "messenger": "m-1"},
        "edited": True,
        "edited_at": later,
        "reactions": [
            {"emoji": "👎", "by": "messenger", "sender_id": "b", "at": later},
            {"emoji": "👍", "by": "messenger", "sender_id": "a", "at": later},
        ],
    }


async def test_a_deleted_message_keeps_its_place_and_loses_its_content(of: Open) -> None:
    log = EventLog()
    chat = log.start("conv-1")
    sent = log.send(chat, "m-1")
    log.about(e.MessageDeleted, sent)
    reads = await of(log)
    (message,) = (await list_messages(reads, chat)).items
    assert (message.deleted, message.text, message.type) == (True, None, "text")
    (conversation,) = (await list_conversations(reads)).items
    assert conversation.last
    assert (conversation.last.deleted, conversation.last.text) == (True, None)


async def test_a_failure_is_told_until_the_message_arrives_after_all(of: Open, database_url: str) -> None:
    log = EventLog()
    sent = log.send(log.start("conv-1"), "m-1", side="kommo")
    log.about(e.MessageFailed, sent, code=904, text="not a user", push="kommo")
    reads = await of(log)
    message = await get_message(reads, sent.stream)
    assert message
    assert message.failure
    assert (message.status, message.failure.code, message.failure.text) == ("failed", 904, "not a user")
    delivered = log.about(e.MessageDelivered, sent)
    await store(database_url, [delivered], first=len(log.events))
    await rebuild(database_url)
    message = await get_message(reads, sent.stream)
    assert message
    assert (message.status, message.failure) == ("delivered", None)
    assert [moment.type for moment in message.timeline] == [
        "message.sent",
        "message.failed",
        "message.delivered",
    ]
    assert (message.timeline[1].code, message.timeline[1].push) == (904, "kommo")


async def test_a_message_is_found_by_the_name_of_the_other_side(of: Open) -> None:
    log = EventLog()
    log.exchange(log.start("conv-1"), "m-1")
    reads = await of(log)
    found = await get_message(reads, message_id(SCOPE, "messenger", "x-m-1"))
    assert found
    assert found.remote.kommo == "m-1"
    assert (found.remote.messenger, found.status) == ("x-m-1", "read")


@pytest.mark.parametrize("unknown", ["x", NOBODY, "a" * 10_000, "\x00"])
async def test_what_nobody_recorded_is_not_found(of: Open, unknown: str) -> None:
    reads = await of(random_log(1, 20))
    assert await get_message(reads, unknown) is None
    assert await get_conversation(reads, unknown) is None
    assert (await list_messages(reads, unknown)).items == []


FILTERS = [
    Filter(type="message.sent"),
    Filter(type="nothing.such"),
    Filter(channel="acme"),
    Filter(channel="beta"),
    Filter(channel="none"),
    Filter(account_id=SCOPE.account),
    Filter(channel="acme", account_id=SCOPE.account),
    Filter(channel="acme", type="channel.registered"),
    Filter(since=clock.text(START_MS + 1000)),
    Filter(until=clock.text(START_MS + 1000)),
    Filter(since=clock.text(START_MS + 1000), until=clock.text(START_MS + 1500), type="message.sent"),
    Filter(since="2030-01-01T00:00:00.000Z"),
    Filter(until="2020-01-01T00:00:00.000Z"),
]


def fits(event: e.AnyEvent, only: Filter) -> bool:
    return (
        only.type in (None, e.tag(event))
        and only.channel in (None, event.channel)
        and only.account_id in (None, event.account)
        and (only.since is None or event.recorded_at >= only.since)
        and (only.until is None or event.recorded_at < only.until)
    )


async def test_events_are_filtered_exactly_and_come_as_stored(of: Open) -> None:
    log = random_log(5, 400)
    reads = await of(log)
    for only in (Filter(), *FILTERS):
        wanted = [(n, e.encode(event)) for n, event in enumerate(log.events, 1) if fits(event, only)]
        found = []
        after: int | None = 0
        while after is not None:
            page = await list_events(reads, after=after, limit=33, only=only)
            found += [(item.position, bytes(item.event)) for item in page.items]
            after = page.next
        assert found == wanted, only
        streamed = [row async for rows in stream_events(reads, after=10, only=only) for row in rows]
        assert streamed == [row for row in wanted if row[0] > 10]


async def test_events_are_found_in_views_of_before_there_were_runs(of: Open, database_url: str) -> None:
    log = random_log(5, 100)
    reads = await of(log)
    filters = [*FILTERS, Filter(conversation=log.events[0].conversation)]
    found = [await list_events(reads, limit=100, only=only) for only in filters]
    async with await psycopg.AsyncConnection.connect(database_url) as link:
        await link.execute(
            "CREATE TABLE views.older AS SELECT position, place, recorded_at, conversation, kind"
            " FROM views.events"
        )
        await link.execute("GRANT SELECT ON views.older TO chatledger")
        await link.execute("DROP VIEW views.events; ALTER TABLE views.older RENAME TO events")
    assert [await list_events(reads, limit=100, only=only) for only in filters] == found


async def test_a_stream_of_events_goes_on_as_long_as_it_may(of: Open, database_url: str) -> None:
    log = random_log(5, 40)
    later = log.events[20:]
    del log.events[20:]
    reads = await of(log)

    async def wait() -> None:
        await store(database_url, later, first=21)

    seen: list[int] = []
    async for rows in stream_events(reads, after=15, wait=wait):
        seen += [position for position, _ in rows]
        if seen[-1] == 20 + len(later):
            break
    assert seen == list(range(16, 21 + len(later)))


async def test_deliveries_are_listed_and_handed_out_in_order(of: Open) -> None:
    log = EventLog()
    sent = [log.send(log.start(f"conv-{number}"), f"m-{number}") for number in range(6)]
    log.about(e.DeliveryDeferred, sent[1], cause=sent[1].id, reason="HTTP 500")
    log.about(e.DeliveryParked, sent[2], cause=sent[2].id, reason="HTTP 404")
    log.accept(sent[3], "k-3")
    reads = await of(log)
    items = await everything(list_deliveries, reads, limit=2)
    assert [item.id for item in items] == [sent[number].id for number in (0, 1, 2, 4, 5)]
    (parked,) = (await list_deliveries(reads, states=["parked"])).items
    assert (parked.reason, parked.destination, parked.attempts) == ("HTTP 404", "kommo", 0)
    counts = (await view_status(reads)).deliveries
    assert (counts.pending, counts.deferred, counts.parked) == (3, 1, 1)
    assert counts.oldest_position == 2


async def test_the_status_says_how_far_views_are(of: Open, database_url: str) -> None:
    log = random_log(2, 30)
    reads = await of(log)
    await store(database_url, [EventLog(3).send(NOBODY, "m-1")], first=len(log.events) + 1)
    standing = await view_status(reads)
    assert standing.head == len(log.events) + 1
    assert {(view.position, view.lag) for view in standing.views} == {(len(log.events), 1)}
    assert len(standing.views) == 6


async def test_channels_are_listed_with_their_connections(of: Open) -> None:
    log = EventLog()
    where = {"channel": "acme", "account": None}
    new = {"channel_id": "c-1", "url": "http://localhost/"}
    registered = log.add(e.ChannelRegistered, message_id(SCOPE, "x", "c"), **where, **new, kind="webhook")
    stream = message_id(SCOPE, "x", "d")
    log.add(e.ChannelConnected, stream, scope_id="c-1_a", title="Acme chat", at=clock.text(START_MS))
    log.add(e.ChannelChanged, registered.stream, **where, url="http://localhost/new")
    reads = await of(log)
    (channel,) = await list_channels(reads)
    assert (channel.name, channel.url, channel.position) == ("acme", "http://localhost/new", 3)
    (connection,) = channel.connections
    assert (connection.title, connection.connected) == ("Acme chat", True)
    assert connection.connected_at == clock.text(START_MS)
    assert [one.connections for one in await list_channels(reads, ["other"])] == [[]]
    assert [one.connections for one in await list_channels(reads, limit=0)] == [[]]


@pytest.mark.parametrize("cursor", ["x", "!!!", "WzFd", "bnVsbA", "é", "\x00"])
async def test_a_cursor_of_another_list_is_refused(of: Open, cursor: str) -> None:
    reads = await of(random_log(1, 20))
    with pytest.raises(BadCursor, match="start without"):
        await list_conversations(reads, cursor=cursor)
    with pytest.raises(BadCursor):
        await list_messages(reads, NOBODY, cursor=cursor)


async def test_what_cannot_be_looked_for_is_refused(of: Open) -> None:
    reads = await of(random_log(1, 20))
    with pytest.raises(BadFilter):
        await list_conversations(reads, channel="\x00")
    with pytest.raises(BadFilter):
        await list_conversations(reads, chat_id="a\x00")
    for only in (Filter(conversation="x"), Filter(since="yesterday, perhaps")):
        with pytest.raises(BadFilter):
            await list_events(reads, only=only)


async def test_without_views_a_reader_is_told_to_come_back(database_url: str, reads: Pool) -> None:
    await prepare(database_url)
    with pytest.raises(ViewsMissing):
        await list_conversations(reads)


async def test_reads_go_on_while_views_are_switched_and_links_break(of: Open, database_url: str) -> None:
    log = random_log(9, 200)
    reads = await of(log)
    before = await list_conversations(reads)
    for _ in range(3):
        await rebuild(database_url)
        assert await list_conversations(reads) == before
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert await list_conversations(reads) == before
