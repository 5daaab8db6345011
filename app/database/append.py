"""DOC"""

from psycopg import sql

from app.database.names import APPEND_LOCK, EVENTS

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
