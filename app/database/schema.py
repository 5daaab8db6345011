"""The ledger's tables: made by `migrate`, checked at start, and closed to UPDATE and DELETE by the database.

Schema `ledger` holds what must never be lost; schema `views`, made by the projector, can be dropped at will.
"""

import asyncio
from typing import TypeAlias, cast

import psycopg
from psycopg import AsyncConnection, sql

from app.database import call_budgets

Database: TypeAlias = AsyncConnection[tuple[object, ...]]

VERSION = 2
LEDGER = "ledger"
EVENTS = "stored_events"
CHANNEL = "ledger_stored_events"
APPEND_LOCK = 0x6368_6174_0001
MIGRATE_LOCK = 0x6368_6174_0002
PROJECT_LOCK = 0x6368_6174_0003
RELAY_LOCK = 0x6368_6174_0004
CONNECT_LOCK = 0x6368_6174_0005
PARTITION_LOCK = 0x6368_6174_1000
IMPORT_LOCK = 0x6368_6174
ROLE = "chatledger"

TABLES = """
CREATE SCHEMA IF NOT EXISTS ledger;
CREATE TABLE IF NOT EXISTS ledger.meta (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  id uuid NOT NULL DEFAULT gen_random_uuid(), version integer NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.clocks (conversation uuid PRIMARY KEY, msec bigint NOT NULL)
  WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS ledger.secrets (
  channel text PRIMARY KEY, channel_id text NOT NULL UNIQUE, sealed bytea NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.refused (
  id uuid PRIMARY KEY, scope_id text NOT NULL, received_at timestamptz NOT NULL,
  reason text NOT NULL, body bytea NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.links (
  account_id text NOT NULL, chat_id text NOT NULL, PRIMARY KEY (account_id, chat_id),
  contact_id bigint NOT NULL, lead_id bigint, changed bigint NOT NULL, told_at timestamptz NOT NULL);
CREATE INDEX IF NOT EXISTS links_told_at ON ledger.links (told_at);
CREATE TABLE IF NOT EXISTS ledger.connecting (
  channel text NOT NULL, account_id text NOT NULL DEFAULT '', tried_at timestamptz NOT NULL, problem text,
  PRIMARY KEY (channel, account_id));
CREATE TABLE IF NOT EXISTS ledger.tokens (
  account_id text PRIMARY KEY, crm_id bigint NOT NULL, crm_url text NOT NULL, sealed bytea NOT NULL,
  expires_at timestamptz NOT NULL, state text NOT NULL, reason text NOT NULL, generation bigint NOT NULL);
CREATE INDEX IF NOT EXISTS tokens_crm_id ON ledger.tokens (crm_id);
CREATE TABLE IF NOT EXISTS ledger.consents (nonce bytea PRIMARY KEY, expires_at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.imports (
  id uuid PRIMARY KEY, channel text NOT NULL, account_id text NOT NULL, began bigint NOT NULL,
  lines bigint NOT NULL, done boolean NOT NULL, report bytea NOT NULL, updated_at timestamptz NOT NULL);
"""

# The table of the eventsourcing library's recorders, but that no sequence gives the positions.
EVENTS_TABLE = """
CREATE TABLE IF NOT EXISTS {schema}.{table} (
  originator_id uuid NOT NULL, originator_version bigint NOT NULL, topic text, state bytea,
  notification_id bigint NOT NULL, PRIMARY KEY (originator_id, originator_version));
ALTER TABLE {schema}.{table} SET (autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_analyze_threshold = 1000, autovacuum_analyze_scale_factor = 0.05);
CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {schema}.{table} (notification_id);
ALTER TABLE {schema}.{table} ALTER COLUMN state SET STORAGE EXTERNAL;
"""

# READ COMMITTED, because the snapshot of `max` must be taken after the lock; positions have no gaps because
# they are assigned under it; one statement is one transaction, so a batch is stored or not, never half.
# A unit (all commands of a batch that share a stream or a conversation) stands or falls together: it is `bad`
# if one of its events' versions is taken or another writer moved one of its conversations' clocks. A row
# without a topic is not stored: it is a version that must not be taken, of a stream that was remembered.
# As nothing is bad in nearly every batch, all is written first, and only if the indexes refuse that is it
# taken back (the inner block is a savepoint) and looked at unit by unit. What joins an array with a table is
# planned each time (EXECUTE): a plan made while the table was small reads the whole index, and is kept.
APPEND = """
CREATE OR REPLACE FUNCTION {schema}.{append}(
  unit int[], stream uuid[], version bigint[], topic text[], state bytea[],
  clock_unit int[], chat uuid[], before bigint[], after bigint[],
  OUT bad int[], OUT head bigint)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  moved bigint;
  made bigint;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE 'an append needs READ COMMITTED';
  END IF;
  PERFORM pg_advisory_xact_lock({lock});
  SELECT coalesce(max(notification_id), 0) INTO head FROM {schema}.{table};
  BEGIN
    IF EXISTS (SELECT FROM unnest(stream, version, topic) AS i(o, v, t)
        JOIN {schema}.{table} e ON e.originator_id = i.o AND e.originator_version = i.v
        WHERE i.t IS NULL) THEN
      RAISE unique_violation;
    END IF;
    IF cardinality(chat) > 0 THEN
      EXECUTE 'UPDATE {schema}.clocks k SET msec = i.a FROM unnest($1, $2, $3) AS i(c, b, a)
        WHERE k.conversation = i.c AND k.msec = i.b' USING chat, before, after;
      GET DIAGNOSTICS moved = ROW_COUNT;
      IF moved < cardinality(chat) THEN
        INSERT INTO {schema}.clocks AS k
          SELECT i.c, i.a FROM unnest(chat, before, after) AS i(c, b, a) WHERE i.b = 0
          ON CONFLICT (conversation) DO NOTHING;
        GET DIAGNOSTICS made = ROW_COUNT;
        IF moved + made < cardinality(chat) THEN
          RAISE unique_violation;
        END IF;
      END IF;
    END IF;
    INSERT INTO {schema}.{table}
        (originator_id, originator_version, topic, state, notification_id)
      SELECT i.o, i.v, i.t, i.s, head + i.n
      FROM unnest(stream, version, topic, state) WITH ORDINALITY AS i(o, v, t, s, n)
      WHERE i.t IS NOT NULL;
  EXCEPTION WHEN unique_violation THEN
    EXECUTE 'SELECT coalesce(array_agg(DISTINCT i.u), ''{{}}'') FROM unnest($1, $2, $3) AS i(u, o, v)
      JOIN {schema}.{table} e ON e.originator_id = i.o AND e.originator_version = i.v'
      INTO bad USING unit, stream, version;
    IF cardinality(chat) > 0 THEN
      EXECUTE 'SELECT $4 || coalesce(array_agg(DISTINCT i.u), ''{{}}'') FROM unnest($1, $2, $3) AS i(u, c, b)
        JOIN {schema}.clocks k ON k.conversation = i.c AND k.msec <> i.b'
        INTO bad USING clock_unit, chat, before, bad;
      INSERT INTO {schema}.clocks AS k
        SELECT i.c, i.a FROM unnest(clock_unit, chat, after) AS i(u, c, a) WHERE i.u <> ALL (bad)
        ON CONFLICT (conversation) DO UPDATE SET msec = excluded.msec;
    END IF;
    INSERT INTO {schema}.{table}
        (originator_id, originator_version, topic, state, notification_id)
      SELECT i.o, i.v, i.t, i.s, head + row_number() OVER (ORDER BY i.n)
      FROM unnest(unit, stream, version, topic, state) WITH ORDINALITY AS i(u, o, v, t, s, n)
      WHERE i.u <> ALL (bad) AND i.t IS NOT NULL;
  END;
  NOTIFY {channel};
END $$
"""

IMMUTABLE = """
CREATE OR REPLACE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the ledger is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger.stored_events
  FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
"""

# The role that the service works as: it may read the ledger, and write to it only through the append, which
# runs with its maker's rights; it owns only the views.
GRANTS = """
GRANT USAGE ON SCHEMA ledger TO {role};
REVOKE INSERT ON ledger.stored_events FROM {role};
GRANT SELECT ON ledger.stored_events TO {role};
REVOKE EXECUTE ON FUNCTION ledger.append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.append TO {role};
GRANT SELECT ON ledger.meta TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.clocks, ledger.secrets, ledger.refused TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.connecting, ledger.links TO {role};
GRANT SELECT, INSERT, UPDATE ON ledger.imports TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.tokens, ledger.consents TO {role};
"""


class OldSchema(Exception):
    """The database has no chatledger tables of this version: run `chatledger migrate`."""


class NewerSchema(Exception):
    """The database belongs to a newer chatledger: run that, this program would not understand all of it."""


async def migrate(connection: Database) -> None:
    """Bring the database to this version's tables, once, whoever calls; needs an owner's rights.

    Makes the role `chatledger` too; the service runs as it (`SET ROLE`), so that not even a mistake in it can
    change the ledger. Raises NewerSchema, and changes nothing then: a version is never set back.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATE_LOCK,))
        await _found(connection)
        await connection.execute(TABLES)
        for text in call_budgets.STATEMENTS:
            await connection.execute(text.encode())
        for statement in recorder_statements(LEDGER, EVENTS):
            await connection.execute(statement)
        await connection.execute(IMMUTABLE)
        await _role(connection)
        await connection.execute(
            "INSERT INTO ledger.meta (version) VALUES (%s)"
            " ON CONFLICT (one) DO UPDATE SET version = excluded.version",
            (VERSION,),
        )


def append_name(table: str) -> str:
    """The function that appends to a table of events."""
    return "append" if table == EVENTS else f"append_{table}"


def recorder_statements(schema: str, table: str) -> list[sql.Composed]:
    """What makes a table of events and the function with which alone it may be written."""
    names = {
        "schema": sql.Identifier(schema),
        "table": sql.Identifier(table),
        "index": sql.Identifier(f"{table}_notification_id_idx"),
        "append": sql.Identifier(append_name(table)),
        "lock": sql.Literal(APPEND_LOCK),
        "channel": sql.Identifier(f"{schema}_{table}"),
    }
    return [sql.SQL(text).format(**names) for text in (EVENTS_TABLE, APPEND)]


async def _role(connection: Database) -> None:
    role = sql.Identifier(ROLE)
    found = await (await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,))).fetchone()
    if found is None:
        await connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(role))
    for grants in (GRANTS, call_budgets.GRANT):
        await connection.execute(sql.SQL(grants).format(role=role))
    row = await (await connection.execute("SELECT current_database(), current_user")).fetchone()
    assert row is not None
    database, user = (sql.Identifier(str(name)) for name in row)
    await connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
    await connection.execute(sql.SQL("GRANT {} TO {}").format(role, user))


async def check(connection: Database) -> str:
    """The ledger's id (a UUID as text); raises OldSchema, NewerSchema if the tables are another version's."""
    found = await _found(connection)
    if found is None:
        raise OldSchema("the database has no chatledger tables: run `chatledger migrate`")
    ledger, version = found
    if version != VERSION:
        raise OldSchema(
            f"the database is at schema version {version}, this program needs {VERSION}: "
            "run `chatledger migrate`"
        )
    return ledger


async def _found(connection: Database) -> tuple[str, int] | None:
    """The ledger's id and the version of its tables, None without any; raises NewerSchema."""
    there = await (await connection.execute("SELECT to_regclass('ledger.meta') IS NOT NULL")).fetchone()
    if there != (True,):
        return None
    row = await (await connection.execute("SELECT id::text, version FROM ledger.meta")).fetchone()
    if row is None:
        return None
    ledger, version = cast("tuple[str, int]", row)
    if version > VERSION:
        raise NewerSchema(
            f"the database is at schema version {version}, this program knows {VERSION}: "
            "run the newer chatledger that brought it there"
        )
    return ledger, version


async def connect(url: str) -> Database:
    """An autocommit connection that works as the role `chatledger`."""
    connection = await AsyncConnection.connect(url, autocommit=True)
    try:
        await connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(ROLE)))
    except (psycopg.Error, asyncio.CancelledError):
        await connection.close()
        raise
    return connection
