"""What an installation still has to do for an account, and what is known of the account.

A step is done, or fails and is tried again later, ever more seldom. The rows of an account are written in the
transaction that saves its tokens, so that a process that dies right after leaves the work to another one, and
are deleted in the transaction that withdraws them.
"""

import random
from collections.abc import Sequence

from msgspec import Struct

from app.database.connection import Db
from app.database.pool import Pool
from app.kommo.crm.account import Facts

# Chosen: what passes by itself has passed in seconds; what somebody has to mend in Kommo waits an hour.
RETRY_FIRST_SECONDS, RETRY_SECONDS_MAX = 5.0, 3600.0
GRACE_SECONDS = 15.0  # Chosen: as long as a person waits for the page.
CHECK_SECONDS = 86_400.0  # Chosen: a name or a plan that changes is shown within a day.
CHECK_AGAIN_SECONDS = 3600.0  # Chosen: after an answer that says nothing of the account.
DUE_MAX = 100  # Chosen: bounds one round; the rest comes with the next.

FORGET_STEPS = "DELETE FROM ledger.install_steps WHERE account_id = %(account)s"
ADD_STEPS = """INSERT INTO ledger.install_steps (account_id, step, number, next_at, done_at)
 SELECT %(account)s, s.step, s.number, now() + make_interval(secs => %(seconds)s),
 CASE WHEN s.number = 1 THEN now() END
 FROM unnest(%(steps)s::text[]) WITH ORDINALITY AS s(step, number)"""
KEEP = """INSERT INTO ledger.accounts AS a
 (account_id, name, subdomain, time_zone, currency, country, language, plan, problem, check_at)
 VALUES (%(account)s, %(name)s, %(subdomain)s, %(time_zone)s, %(currency)s, %(country)s, %(language)s,
 %(plan)s, NULL, now() + make_interval(secs => %(seconds)s))
 ON CONFLICT (account_id) DO UPDATE SET name = excluded.name, subdomain = excluded.subdomain,
 time_zone = excluded.time_zone, currency = excluded.currency, country = excluded.country,
 language = coalesce(excluded.language, a.language), plan = excluded.plan, problem = NULL,
 check_at = excluded.check_at"""
PUT_OFF = """INSERT INTO ledger.accounts (account_id, problem, check_at)
 VALUES (%(account)s, %(problem)s, now() + make_interval(secs => %(seconds)s))
 ON CONFLICT (account_id) DO UPDATE SET problem = excluded.problem, check_at = excluded.check_at"""
STEPS = """SELECT account_id, step, error, tries,
 to_char(done_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS done_at FROM ledger.install_steps
 WHERE %(account)s::text IS NULL OR account_id = %(account)s::text ORDER BY account_id, number"""
DONE = """UPDATE ledger.install_steps SET done_at = now(), error = NULL
 WHERE account_id = %(account)s AND step = %(step)s"""
FAILED = """UPDATE ledger.install_steps SET error = %(error)s, tries = tries + 1, next_at = now()
 + make_interval(secs => least(%(first)s * 2 ^ least(tries, 30), %(most)s))
 WHERE account_id = %(account)s AND step = %(step)s"""
DUE = """SELECT account_id FROM ledger.install_steps WHERE done_at IS NULL AND next_at <= now()
 GROUP BY 1 ORDER BY min(next_at) LIMIT %(limit)s"""
ACCOUNTS = """SELECT account_id, name, subdomain, time_zone, currency, country, language, plan, problem
 FROM ledger.accounts WHERE %(account)s::text IS NULL OR account_id = %(account)s::text"""
# Accounts that consented to a version of before there was this table.
ENROL = """INSERT INTO ledger.accounts (account_id, check_at) SELECT account_id, now() FROM ledger.tokens
 ON CONFLICT (account_id) DO NOTHING"""
TO_CHECK = """SELECT account_id FROM ledger.accounts WHERE check_at <= now()
 ORDER BY check_at LIMIT %(limit)s"""


class Step(Struct, frozen=True):
    """A step of an account's installation: when it was done, or why it has failed so far."""

    account_id: str
    step: str
    done_at: str | None
    error: str | None
    tries: int


class Known(Facts, frozen=True, kw_only=True):
    """An account's facts as they were last read, and why Kommo says nothing of it now, if it does not."""

    account_id: str
    problem: str | None


class _Due(Struct):
    account_id: str


class Installs:
    """The tables of all installations."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def steps(self, account: str | None = None) -> list[Step]:
        """Returns the steps of one account, or of all, in their order."""
        return await self._pool.fetch(Step, STEPS, {"account": account})

    async def accounts(self, account: str | None = None) -> dict[str, Known]:
        """Returns what is known of one account, or of all."""
        found = await self._pool.fetch(Known, ACCOUNTS, {"account": account})
        return {one.account_id: one for one in found}

    async def done(self, account: str, step: str) -> None:
        """Note that a step is done."""
        await self._run(DONE, {"account": account, "step": step})

    async def failed(self, account: str, step: str, error: str) -> None:
        """Note why a step failed; it is due again later, each time after twice as long."""
        values = {"account": account, "step": step, "error": error}
        await self._run(FAILED, values | {"first": RETRY_FIRST_SECONDS, "most": RETRY_SECONDS_MAX})

    async def due(self) -> list[str]:
        """Returns accounts with a step that is due."""
        return [one.account_id for one in await self._pool.fetch(_Due, DUE, {"limit": DUE_MAX})]

    async def to_check(self) -> list[str]:
        """Returns accounts that once consented and of which Kommo is to be asked again."""
        return [one.account_id for one in await self._pool.fetch(_Due, TO_CHECK, {"limit": DUE_MAX})]

    async def enrol(self) -> None:
        """Let every account be checked that ever consented."""
        await self._run(ENROL, {})

    async def keep(self, account: str, facts: Facts) -> None:
        """Keep what Kommo says of an account; it is asked again in a day."""
        await self._run(KEEP, _kept(account, facts))

    async def put_off(self, account: str, problem: str | None = None, *, known: bool = False) -> None:
        """Ask again later, and keep why Kommo says nothing of the account; in a day if its end is `known`."""
        seconds = _day() if known else CHECK_AGAIN_SECONDS
        await self._run(PUT_OFF, {"account": account, "problem": problem, "seconds": seconds})

    async def _run(self, statement: str, values: dict[str, object]) -> None:
        async with self._pool.connection() as db:
            await db.execute(statement.encode(), values)


async def begin(db: Db, account: str, facts: Facts, steps: Sequence[str]) -> None:
    """Write what an installation has to do, in the transaction that saves its tokens: the first step.

    For a while the others are the work of the caller, then that of whoever finds them.
    """
    await db.execute(FORGET_STEPS.encode(), {"account": account})
    values = {"account": account, "steps": list(steps), "seconds": GRACE_SECONDS}
    await db.execute(ADD_STEPS.encode(), values)
    await db.execute(KEEP.encode(), _kept(account, facts))


def _kept(account: str, facts: Facts) -> dict[str, object]:
    fields = {name: getattr(facts, name) for name in Facts.__struct_fields__}
    return {**fields, "account": account, "seconds": _day()}


def _day() -> float:
    """About a day, so that accounts that came at the same time are not always checked at the same time."""
    return CHECK_SECONDS * random.uniform(0.8, 1.2)
