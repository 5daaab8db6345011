"""The table of events and the one function that writes it: positions without gaps, units stored whole.

The function is the only writer (the role `chatledger` may execute it, but not INSERT), and it runs as one
statement:

- The lock comes first, then the snapshot. In READ COMMITTED each statement inside the function sees what was
  committed before it, so `max(notification_id)` includes the append that held the lock before.
- Positions are assigned under the lock, so they have no gaps and their order is the order of commits.
- A unit is all commands of a batch that share a stream or a conversation. It is `bad`, and nothing of it is
  stored, if a version of its events is taken or another writer has moved the clock of one of its
  conversations.
- A row without a topic is not stored. It names a version that must be free, of a stream whose state the
  caller has cached.

In nearly every batch nothing is bad. So everything is written first, inside a block that is a savepoint; only
if the indexes refuse that, the block is rolled back and the batch is checked unit by unit.
"""

from psycopg import sql

from app.database.names import APPEND_LOCK, EVENTS

# The table of the eventsourcing library's recorders, except that positions do not come from a sequence, which
# would leave gaps. Autovacuum runs early, so that statistics keep up with a table that only grows. EXTERNAL
# spares each append the compression of its events; to set it waits for every reader, so it is set once.
EVENTS_TABLE = """
CREATE TABLE IF NOT EXISTS {schema}.{table} (
  originator_id uuid NOT NULL, originator_version bigint NOT NULL, topic text, state bytea,
  notification_id bigint NOT NULL, PRIMARY KEY (originator_id, originator_version));
ALTER TABLE {schema}.{table} SET (autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_analyze_threshold = 1000, autovacuum_analyze_scale_factor = 0.05);
CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {schema}.{table} (notification_id);
DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = {regclass}::regclass AND attname = 'state'
      AND attstorage <> 'e') THEN
    ALTER TABLE {schema}.{table} ALTER COLUMN state SET STORAGE EXTERNAL;
  END IF;
END $$;
"""
# A join of an array with a table is planned each time (EXECUTE), because a plan that was made while the table
# was small reads the whole index, and plpgsql would keep it.
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


def append_name(table: str) -> str:
    """Returns the name of the function that appends to a table of events."""
    return "append" if table == EVENTS else f"append_{table}"


def recorder_statements(schema: str, table: str) -> list[sql.Composed]:
    """Returns the statements that create a table of events and the function that writes it."""
    names = {
        "schema": sql.Identifier(schema),
        "table": sql.Identifier(table),
        "regclass": sql.Literal(f'"{schema}"."{table}"'),
        "index": sql.Identifier(f"{table}_notification_id_idx"),
        "append": sql.Identifier(append_name(table)),
        "lock": sql.Literal(APPEND_LOCK),
        "channel": sql.Identifier(f"{schema}_{table}"),
    }
    return [sql.SQL(text).format(**names) for text in (EVENTS_TABLE, APPEND)]
