"""The ledger keeps what the eventsourcing library asks of a recorder: its own shipped tests pass on ours."""

import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from eventsourcing.persistence import IntegrityError, StoredEvent
from eventsourcing.postgres import PostgresDatastore
from eventsourcing.tests import persistence as contract
from psycopg.conninfo import conninfo_to_dict

from app.ledger.recorder import LedgerRecorder, open_recorder
from app.ledger.writer import Ledger
from app.service.service import migrate
from domain import events as e
from tests.support.ledgers.decisions import customer


@pytest.fixture
def datastore(database_url: str) -> Iterator[PostgresDatastore]:
    where = conninfo_to_dict(database_url)
    dbname, host, port, user, password = (
        str(where.get(name) or "") for name in ("dbname", "host", "port", "user", "password")
    )
    with PostgresDatastore(
        dbname, host, port, user, password, schema="public", pool_size=2, max_overflow=20, max_waiting=100
    ) as found:
        yield found


@pytest.fixture
def recorder(datastore: PostgresDatastore) -> LedgerRecorder:
    made = LedgerRecorder(datastore)
    made.create_table()
    return made


class Ours:
    """The library's contract tests ask for a recorder by this method."""

    recorder: LedgerRecorder

    @pytest.fixture(autouse=True)
    def give(self, recorder: LedgerRecorder) -> None:
        self.recorder = recorder

    def create_recorder(self) -> LedgerRecorder:
        return self.recorder


class TestItRecords(Ours, contract.ApplicationRecorderTestCase[LedgerRecorder]):
    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestItDoesNotInterleave(Ours, contract.NonInterleavingNotificationIDsBaseCase):
    pass


def event(stream: Any = None, version: int = 1) -> StoredEvent:
    return StoredEvent(stream or uuid4(), version, "topic", b"state")


def test_positions_have_no_gaps_after_refused_appends(recorder: LedgerRecorder) -> None:
    first = event()
    assert recorder.insert_events([first]) == [1]
    for refused in ([first], [event(), first], [first, event()]):
        with pytest.raises(IntegrityError):
            recorder.insert_events(refused)
    same = uuid4()
    with pytest.raises(IntegrityError):
        recorder.insert_events([event(same), event(same)])
    assert recorder.insert_events([event(), event()]) == [2, 3]


def test_threads_that_race_leave_no_gap_and_lose_nothing(recorder: LedgerRecorder) -> None:
    given: list[int] = []
    rounds = 20

    def write() -> None:
        for _ in range(rounds):
            given.extend(recorder.insert_events([event(), event()]) or ())

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 6 * rounds * 2 + 1))


def test_tables_of_two_recorders_are_apart(datastore: PostgresDatastore) -> None:
    one, two = (LedgerRecorder(datastore, events_table_name=name) for name in ("one", "two"))
    for each in (one, two):
        each.create_table()
        assert each.insert_events([event()]) == [1]
    assert one.channel_name != two.channel_name


async def test_the_library_reads_the_ledger_of_the_service(database_url: str) -> None:
    await migrate(database_url)
    ledger = Ledger(database_url, lambda _: None)
    await ledger.open()
    await ledger.submit(customer(1))
    await ledger.close()
    recorder = open_recorder(database_url)
    with recorder.datastore:
        notes = recorder.select_notifications(start=1, limit=10)
        assert [note.id for note in notes] == [1, 2]
        assert [note.topic for note in notes] == ["conversation.started", "message.sent"]
        assert e.tag(e.decode(notes[1].state)) == "message.sent"
        with recorder.subscribe(gt=1) as subscription:
            assert next(subscription).id == 2


async def test_only_the_append_gives_positions(database_url: str) -> None:
    await migrate(database_url)
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        with pytest.raises(psycopg.errors.NotNullViolation):
            await connection.execute(
                "INSERT INTO ledger.stored_events VALUES (gen_random_uuid(), 1, 't', 's')"
            )
