"""The ledger's tables: `migrate` creates them, `check` compares them, the database refuses UPDATE and DELETE.

Two numbers in `ledger.meta` let programs of two versions work on one database. `tables` is the version of the
tables, which only grow: a program needs its own or a later one. `version` is the program that a ledger needs
at least, and refuses older ones: it rises only when something is there that these would misread. Programs up
to 0.2.1 know only `version`, and want exactly theirs.

Schema `ledger` holds what must never be lost; schema `views`, which the projector creates, can be dropped at
will.
"""

import asyncio
import secrets
import time
from typing import NamedTuple, cast

import psycopg
from msgspec import Struct
from psycopg import sql

from app.database import call_budgets, leases
from app.database.append import recorder_statements
from app.database.connection import Db
from app.database.names import APPEND_LOCK, EVENTS, LEDGER_SCHEMA, MIGRATE_LOCK, ROLE

VERSION = 10
# A ledger of 0.2.1 that is migrated can still be used by it; one whose ids have a secret needs version 3.
# So can one of before version 8, unless its events are stored packed.
OLDEST, OLDEST_KEYED, OLDEST_PACKED = 2, 3, 8
# Steps of a migration by the version that brought them, for whoever asks before it runs.
STEPS = {
    1: "make the tables of a new ledger, and the role chatledger",
    2: "add tables for links, tokens, consents and imports",
    3: "add tables for keys, attempts, rests and sessions; columns to meta, refused and connecting",
    4: "add the table of leases, and ledger.append_leased",
    5: "add tables for keys of the API and for who looked",
    6: "add tables for installations and accounts; columns to tokens",
    7: "add a column to the keys of the API, for admin keys that were replaced",
    8: "add a column to meta: whether events are stored packed",
    9: "add a table for the processes that write who looked",
    10: "add tables for messengers' credentials and for Kommo's one-time tokens",
}
# Chosen: an append waits for the migration no longer than this; a backup or an export may hold its locks for
# hours, so the migration gives way, and tries again.
LOCK_SECONDS, PAUSE_SECONDS, BUSY_SECONDS = 0.5, 0.5, 60.0

TABLES = """
CREATE SCHEMA IF NOT EXISTS ledger;
CREATE TABLE IF NOT EXISTS ledger.meta (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  id uuid NOT NULL DEFAULT gen_random_uuid(), version integer NOT NULL);
ALTER TABLE ledger.meta ADD COLUMN IF NOT EXISTS id_secret bytea;
ALTER TABLE ledger.meta ADD COLUMN IF NOT EXISTS tables integer;
ALTER TABLE ledger.meta ADD COLUMN IF NOT EXISTS packed boolean NOT NULL DEFAULT false;
CREATE TABLE IF NOT EXISTS ledger.clocks (conversation uuid PRIMARY KEY, msec bigint NOT NULL)
  WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS ledger.secrets (
  channel text PRIMARY KEY, channel_id text NOT NULL UNIQUE, sealed bytea NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.keyring (name text PRIMARY KEY, sealed bytea NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.refused (
  id uuid PRIMARY KEY, scope_id text NOT NULL, received_at timestamptz NOT NULL,
  reason text NOT NULL, body bytea NOT NULL);
ALTER TABLE ledger.refused ADD COLUMN IF NOT EXISTS first_at timestamptz;
ALTER TABLE ledger.refused ADD COLUMN IF NOT EXISTS times integer NOT NULL DEFAULT 1;
ALTER TABLE ledger.refused ADD COLUMN IF NOT EXISTS why text NOT NULL DEFAULT 'unreadable';
CREATE INDEX IF NOT EXISTS refused_body ON ledger.refused (scope_id, sha256(body));
CREATE INDEX IF NOT EXISTS refused_received_at ON ledger.refused (received_at);
CREATE TABLE IF NOT EXISTS ledger.chat_questions (
  conversation uuid PRIMARY KEY, tries integer NOT NULL, again_at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.crm_addresses (
  account_id text PRIMARY KEY, nonce bytea NOT NULL, renewed_at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.links (
  account_id text NOT NULL, chat_id text NOT NULL, PRIMARY KEY (account_id, chat_id),
  contact_id bigint NOT NULL, lead_id bigint, changed bigint NOT NULL, told_at timestamptz NOT NULL);
CREATE INDEX IF NOT EXISTS links_told_at ON ledger.links (told_at);
CREATE TABLE IF NOT EXISTS ledger.connecting (
  channel text NOT NULL, account_id text NOT NULL DEFAULT '', tried_at timestamptz NOT NULL, problem text,
  PRIMARY KEY (channel, account_id));
CREATE TABLE IF NOT EXISTS ledger.rests (
  channel text NOT NULL, account_id text NOT NULL, destination text NOT NULL, since timestamptz NOT NULL,
  next_at timestamptz NOT NULL, tries integer NOT NULL DEFAULT 1, nudges integer NOT NULL DEFAULT 0,
  reason text NOT NULL, answer text NOT NULL, PRIMARY KEY (channel, account_id, destination));
CREATE TABLE IF NOT EXISTS ledger.tries (
  delivery uuid PRIMARY KEY, attempts integer NOT NULL, tried_at timestamptz NOT NULL,
  next_try_at timestamptz) WITH (fillfactor = 70);
ALTER TABLE ledger.connecting ADD COLUMN IF NOT EXISTS answer text;
CREATE TABLE IF NOT EXISTS ledger.tokens (
  account_id text PRIMARY KEY, crm_id bigint NOT NULL, crm_url text NOT NULL, sealed bytea NOT NULL,
  expires_at timestamptz NOT NULL, state text NOT NULL, reason text NOT NULL, generation bigint NOT NULL);
CREATE INDEX IF NOT EXISTS tokens_crm_id ON ledger.tokens (crm_id);
CREATE TABLE IF NOT EXISTS ledger.consents (nonce bytea PRIMARY KEY, expires_at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.ended_sessions (id bytea PRIMARY KEY, ended_at timestamptz NOT NULL);
CREATE INDEX IF NOT EXISTS ended_sessions_ended_at ON ledger.ended_sessions (ended_at);
CREATE TABLE IF NOT EXISTS ledger.keys (
  id uuid PRIMARY KEY, name text NOT NULL, hash bytea NOT NULL UNIQUE, scopes text[] NOT NULL,
  accounts text[], created_at timestamptz NOT NULL DEFAULT now(), expires_at timestamptz,
  last_used_at timestamptz);
ALTER TABLE ledger.keys ADD COLUMN IF NOT EXISTS admin boolean NOT NULL DEFAULT false;
CREATE TABLE IF NOT EXISTS ledger.access (
  position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL, key_id uuid,
  key_name text NOT NULL, method text NOT NULL, route text NOT NULL, account_id text, conversation text,
  message text, address text NOT NULL, status integer NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.access_writers (id uuid PRIMARY KEY, seen_at timestamptz NOT NULL);
CREATE INDEX IF NOT EXISTS access_account ON ledger.access (account_id, position);
CREATE INDEX IF NOT EXISTS access_key ON ledger.access (key_name, position);
CREATE INDEX IF NOT EXISTS access_at ON ledger.access (at);
CREATE TABLE IF NOT EXISTS ledger.install_steps (
  account_id text NOT NULL, step text NOT NULL, number integer NOT NULL, done_at timestamptz, error text,
  tries integer NOT NULL DEFAULT 0, next_at timestamptz NOT NULL, PRIMARY KEY (account_id, step));
CREATE INDEX IF NOT EXISTS install_steps_next_at ON ledger.install_steps (next_at) WHERE done_at IS NULL;
CREATE TABLE IF NOT EXISTS ledger.accounts (
  account_id text PRIMARY KEY, name text, subdomain text, time_zone text, currency text, country text,
  language text, plan text, problem text, check_at timestamptz NOT NULL);
CREATE INDEX IF NOT EXISTS accounts_check_at ON ledger.accounts (check_at);
ALTER TABLE ledger.tokens ADD COLUMN IF NOT EXISTS answer bytea;
ALTER TABLE ledger.tokens ADD COLUMN IF NOT EXISTS configured_url text;
ALTER TABLE ledger.tokens ADD COLUMN IF NOT EXISTS ended boolean NOT NULL DEFAULT false;
CREATE INDEX IF NOT EXISTS tokens_answer ON ledger.tokens (answer);
CREATE TABLE IF NOT EXISTS ledger.one_time_tokens (id bytea PRIMARY KEY, expires_at timestamptz NOT NULL);
CREATE INDEX IF NOT EXISTS one_time_tokens_expires_at ON ledger.one_time_tokens (expires_at);
CREATE INDEX IF NOT EXISTS tokens_crm_url ON ledger.tokens (crm_url);
CREATE TABLE IF NOT EXISTS ledger.credentials (
  connection text PRIMARY KEY, sealed bytea NOT NULL, number bigint NOT NULL);
CREATE INDEX IF NOT EXISTS credentials_number ON ledger.credentials (number);
CREATE TABLE IF NOT EXISTS ledger.credential_changes (
  one boolean PRIMARY KEY DEFAULT true CHECK (one), number bigint NOT NULL);
CREATE TABLE IF NOT EXISTS ledger.imports (
  id uuid PRIMARY KEY, channel text NOT NULL, account_id text NOT NULL, began bigint NOT NULL,
  lines bigint NOT NULL, done boolean NOT NULL, report bytea NOT NULL, updated_at timestamptz NOT NULL);
"""


IMMUTABLE = """
CREATE OR REPLACE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the ledger is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger.stored_events
  FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
"""

# The service works as this role. It may read the ledger and write to it only through the append function,
# which runs with its owner's rights; the role owns only the views.
GRANTS = """
GRANT USAGE ON SCHEMA ledger TO {role};
REVOKE INSERT ON ledger.stored_events FROM {role};
GRANT SELECT ON ledger.stored_events TO {role};
REVOKE EXECUTE ON FUNCTION ledger.append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.append TO {role};
GRANT SELECT ON ledger.meta TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.clocks, ledger.secrets, ledger.refused TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.connecting, ledger.links TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.rests, ledger.tries TO {role};
GRANT SELECT, INSERT, UPDATE ON ledger.crm_addresses TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.chat_questions TO {role};
GRANT SELECT, INSERT, UPDATE ON ledger.imports TO {role};
GRANT SELECT, INSERT, DELETE ON ledger.ended_sessions TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.keys TO {role};
GRANT SELECT, INSERT, DELETE ON ledger.access TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.access_writers TO {role};
GRANT SELECT, INSERT, DELETE ON ledger.one_time_tokens TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.credentials TO {role};
GRANT SELECT, INSERT, UPDATE ON ledger.credential_changes TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.install_steps, ledger.accounts TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.tokens, ledger.consents, ledger.keyring TO {role};
"""


ID_SECRET_BYTES = 32  # as many as the HMAC that it keys gives


class _Found(NamedTuple):
    ledger: str
    version: int
    tables: int


class Identity(Struct, frozen=True):
    """A ledger's id (a UUID as text), and the secret of its ids: None if it began before there was one.

    `version` is the oldest program that may use it, `packed` whether events are stored packed from now on.
    """

    ledger: str
    id_secret: bytes | None
    version: int = VERSION
    packed: bool = False

    @property
    def keyed(self) -> bool:
        """Whether no program of before version 3 will read what is sealed in it."""
        return self.version >= OLDEST_KEYED

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Identity({self.ledger})"


# Before the column `tables` there was one number.
FIND = (
    "SELECT id::text, version, coalesce((to_jsonb(m) ->> 'tables')::integer, version) FROM ledger.meta AS m"
)
WRITE_VERSIONS = """
INSERT INTO ledger.meta AS m (version, tables, id_secret, packed)
 VALUES (%(new)s, %(tables)s, %(secret)s, coalesce(%(packed)s::boolean, false))
 ON CONFLICT (one) DO UPDATE SET tables = excluded.tables, version = greatest(m.version, %(least)s),
  packed = coalesce(%(packed)s::boolean, m.packed)
"""
BUSY = (
    "another session has held a table of the ledger all the time, and nothing was changed: let the backup or"
    " export that runs end, then migrate again"
)


class OldSchema(Exception):
    """The database has no tables of this version: run `chatledger migrate`."""


class WrongEncoding(Exception):
    """The database is not of the encoding UTF8."""


class NewerSchema(Exception):
    """The database belongs to a newer chatledger: run that one, this program would misread the database."""


class OwnerIsRole(Exception):
    """The user who migrates has the name of the role that the service works as, which may own nothing."""


class Busy(Exception):
    """Another session holds one of the tables for so long that the migration gave up, and changed nothing."""


class Plan(Struct, frozen=True):
    """What `migrate` would do: the version of the tables, None without tables, the one needed, the steps."""

    version: int | None
    needs: int
    steps: list[str]


async def plan(db: Db, *, packed: bool | None = None) -> Plan:
    """Returns what `migrate` would do, and changes nothing. Raises WrongEncoding and NewerSchema."""
    await _check_encoding(db)
    found = await _find_ledger(db)
    version = found.tables if found else None
    steps = [f"version {number}: {step}" for number, step in STEPS.items() if number > (version or 0)]
    if packed is not None and packed != await _is_packed(db, version):
        steps.append(f"store events {'packed' if packed else 'as JSON'} from now on")
    return Plan(version, VERSION, steps)


async def _is_packed(db: Db, version: int | None) -> bool:
    if version is None or version < OLDEST_PACKED:
        return False
    row = await (await db.execute("SELECT packed FROM ledger.meta")).fetchone()
    return row == (True,)


async def migrate(
    db: Db, *, keyed: bool = True, packed: bool | None = None, patience_seconds: float = BUSY_SECONDS
) -> None:
    """Bring the tables to this version, one caller at a time; needs an owner's rights.

    A new ledger gets a secret for its ids, unless it is not to be `keyed`. An existing one keeps what it has:
    other ids would be other streams. The secret is not sealed, because without it the ledger would be of no
    use any more, and whoever can read the table reads the messages too. `packed` says how events are to be
    stored from now on (`packed.py`), None that it stays as it is; no program of before reads packed ones.
    Creates the role `chatledger` too. The service runs as this role (`SET ROLE`), so that not even a bug in
    the service can change the ledger. A version is never set back: nothing is done to tables of a later one.
    It waits for no lock for long, because what comes after it in the queue waits, too.
    Raises NewerSchema, Busy, and OwnerIsRole if the owner and the role are one.
    """
    if db.info.user == ROLE:
        raise OwnerIsRole(
            f"the database's user is {ROLE}, as the role is called that the service works as: migrate as an "
            "owner of another name, and let the service log in under a third (ops/postgres-roles.sh)"
        )
    await _check_encoding(db)
    end = time.monotonic() + patience_seconds
    while True:
        try:
            async with db.transaction():
                await _migrate(db, keyed=keyed, packed=packed)
            return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if time.monotonic() > end:
                raise Busy(BUSY) from error
        await asyncio.sleep(PAUSE_SECONDS)


async def _migrate(db: Db, *, keyed: bool, packed: bool | None) -> None:
    await db.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATE_LOCK,))
    found = await _find_ledger(db)
    if found and found.tables > VERSION:
        return  # A later version has been here: its tables are ours with more, its functions newer.
    await db.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{LOCK_SECONDS}s")))
    await db.execute(TABLES)
    await db.execute(leases.TABLES)
    for text in call_budgets.STATEMENTS:
        await db.execute(text.encode())
    for statement in recorder_statements(LEDGER_SCHEMA, EVENTS):
        await db.execute(statement)
    await db.execute(leases.APPEND.format(lock=APPEND_LOCK).encode())
    await db.execute(IMMUTABLE)
    await _grant_role(db)
    secret = secrets.token_bytes(ID_SECRET_BYTES) if keyed else None
    least = OLDEST_PACKED if packed else OLDEST
    oldest = max(least, OLDEST_KEYED) if keyed else least
    given = {"new": oldest, "least": least, "tables": VERSION, "secret": secret, "packed": packed}
    await db.execute(WRITE_VERSIONS, given)


async def _grant_role(db: Db) -> None:
    role = sql.Identifier(ROLE)
    role_row = await (await db.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,))).fetchone()
    if role_row is None:
        await db.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(role))
    for grants in (GRANTS, call_budgets.GRANT, leases.GRANT):
        await db.execute(sql.SQL(grants).format(role=role))
    row = await (await db.execute("SELECT current_database(), current_user")).fetchone()
    assert row is not None
    database, user = (sql.Identifier(str(name)) for name in row)
    await db.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
    await db.execute(sql.SQL("GRANT {} TO {}").format(role, user))


async def check(db: Db) -> Identity:
    """Returns whose ledger it is. Raises WrongEncoding, OldSchema or NewerSchema if it does not fit."""
    await _check_encoding(db)
    found = await _find_ledger(db)
    if found is None:
        raise OldSchema("the database has no chatledger tables: run `chatledger migrate`")
    if found.tables < VERSION:
        raise OldSchema(
            f"the database is at schema version {found.tables}, this program needs {VERSION}: "
            "run `chatledger migrate`"
        )
    row = await (await db.execute("SELECT id_secret, packed FROM ledger.meta")).fetchone()
    secret, packed = cast("tuple[bytes | None, bool]", row or (None, False))
    return Identity(found.ledger, secret, found.version, packed)


async def _check_encoding(db: Db) -> None:
    row = await (await db.execute("SHOW server_encoding")).fetchone()
    if row != ("UTF8",):
        raise WrongEncoding(
            f"the database's encoding is {row[0] if row else 'unknown'}, which cannot hold every message:"
            " make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and give its address in"
            " CHATLEDGER_DATABASE_URL"
        )


async def _find_ledger(db: Db) -> _Found | None:
    """Returns the ledger and its versions, None without tables. Raises NewerSchema."""
    exists = await (await db.execute("SELECT to_regclass('ledger.meta') IS NOT NULL")).fetchone()
    if exists != (True,):
        return None
    row = await (await db.execute(FIND)).fetchone()
    if row is None:
        return None
    found = _Found(*cast("tuple[str, int, int]", row))
    if found.version > VERSION:
        raise NewerSchema(
            f"the database is at schema version {found.version}, this program knows {VERSION}: "
            "run the newer chatledger that brought it there"
        )
    return found
