"""The ledger through the eventsourcing library: a recorder whose positions have no gaps.

The service appends in batches (`app.ledger.writer`) through the same PostgreSQL function. This module serves
programs written on the library: `open_recorder(url)` reads the ledger, also as a subscription, and
`APPLICATION_RECORDER_TOPIC=app.recorder:LedgerRecorder` gives their own applications tables like it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from eventsourcing.persistence import IntegrityError, Notification, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from app.database.append import append_name, recorder_statements
from app.database.names import EVENTS, LEDGER_SCHEMA
from app.database.packed import unpack

Stored = TypeVar("Stored", bound=StoredEvent)
INSERT = """SELECT bad, head FROM {schema}.{append}(%b::int[], %b::uuid[], %b::bigint[], %b::text[],
 %b::bytea[], '{{}}', '{{}}', '{{}}', '{{}}')"""


class LedgerRecorder(PostgresApplicationRecorder):
    """Stores events under an advisory lock in one statement, at positions 1, 2, 3 … without gaps.

    Unlike the library's own it locks no table, so it does not wait for VACUUM, and one round trip is enough.
    """

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str = EVENTS) -> None:
        super().__init__(datastore, events_table_name=events_table_name)
        self.channel_name = f"{datastore.schema}_{events_table_name}"
        self.check_identifier_length(self.channel_name)
        self.sql_create_statements = [
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(datastore.schema)),
            *recorder_statements(datastore.schema, events_table_name),
        ]
        append = append_name(events_table_name)
        names = {"schema": sql.Identifier(datastore.schema), "append": sql.Identifier(append)}
        self._insert = sql.SQL(INSERT).format(**names)

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        """Store all events or none; returns their positions. Raises IntegrityError if a version is taken.

        An insert is not repeated after the connection breaks, because the events may be stored already.
        """
        if not stored_events:
            return None
        rows = ((0, e.originator_id, e.originator_version, e.topic, e.state) for e in stored_events)
        columns = [list(column) for column in zip(*rows, strict=True)]
        with self.datastore.get_connection() as connection, connection.cursor(binary=True) as cursor:
            cursor.execute(self._insert, columns, prepare=True)
            [row] = cursor.fetchall()
        if row["bad"]:
            raise IntegrityError("one of the versions is taken")
        first = row["head"] + 1
        return list(range(first, first + len(stored_events)))

    def select_events(self, *args: Any, **kwargs: Any) -> Sequence[StoredEvent]:
        """Returns events of a stream, their states as JSON however the ledger stores them."""
        return [_unpacked(one) for one in super().select_events(*args, **kwargs)]

    def select_notifications(self, *args: Any, **kwargs: Any) -> Sequence[Notification]:
        """Returns events by position, their states as JSON however the ledger stores them."""
        return [_unpacked(one) for one in super().select_notifications(*args, **kwargs)]


def _unpacked(one: Stored) -> Stored:
    state = unpack(one.state)
    return one if state is one.state else replace(one, state=state)


def open_recorder(url: str) -> LedgerRecorder:
    """Open a chatledger database's ledger to read it: `select_notifications`, `select_events`, `subscribe`.

    Close its `datastore` after use.
    """
    where = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    datastore = PostgresDatastore(
        where.get("dbname", ""),
        where.get("host", ""),
        where.get("port", ""),
        where.get("user", ""),
        where.get("password", ""),
        schema=LEDGER_SCHEMA,
        max_overflow=4,
    )
    return LedgerRecorder(datastore)
