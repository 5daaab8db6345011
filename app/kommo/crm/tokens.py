"""Our consents to use the CRM of accounts: the tokens sealed at rest, refreshed by one process at a time.

A refresh token is good once. So a refresh holds the account's lock in the database while Kommo answers, and
whoever waited for it uses what the first one got. If no answer comes, the old tokens stay and are tried
again; only when Kommo says that the refresh token is no longer good the consent is withdrawn, and nobody
calls again until an administrator has consented anew.

After a refresh that failed, and after one that gave a token that Kommo's CRM does not take either, this
process lets the account rest, ever longer: calls of the CRM must not become calls for tokens.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import psycopg
from msgspec import Struct
from psycopg.rows import class_row

from app import clock
from app.database import connection
from app.database.names import TOKEN_LOCK
from app.database.pool import Pool, ViewsMissing
from app.http_client import Unreached
from app.kommo.crm.backoff import Rests
from app.kommo.crm.oauth import NotNow, OAuth, Pair, State, TokenRefused, WrongApp
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.vault import Vault, WrongMasterKey
from domain import commands as c
from domain import ids
from domain.ids import Scope

AHEAD_SECONDS = 300.0
REST_SECONDS = 1.0
CLOSE_SECONDS = 3.0
SAVES_MAX = 6
UNUSED_SECONDS = 30 * 86_400.0
KEEP_ALIVE_SECONDS = 6 * 3600.0
AUTHORIZED = "authorized"
WITHDRAWN = "withdrawn"
Record = Callable[[c.AnyCommand], Awaitable[object]]
log = logging.getLogger("chatledger.tokens")

WAIT = "SET LOCAL lock_timeout = '30s'"
PATIENT = "SET LOCAL idle_in_transaction_session_timeout = 0"  # Kommo may take its time.
ALONE = "SELECT pg_advisory_xact_lock(%s, hashtext(%s))"
COLUMNS = """SELECT account_id, crm_id, crm_url, sealed, extract(epoch FROM expires_at)::float8 AS expires,
 state, reason, generation FROM ledger.tokens"""
ONE = f"{COLUMNS} WHERE account_id = %(account)s"
ALL = f"{COLUMNS} ORDER BY account_id"
OF_CRM = f"{COLUMNS} WHERE crm_id = %(crm_id)s ORDER BY account_id LIMIT 1"
KEEP = """INSERT INTO ledger.tokens AS t
 (account_id, crm_id, crm_url, sealed, expires_at, state, reason, generation)
 VALUES (%(account)s, %(crm_id)s, %(crm_url)s, %(sealed)s, to_timestamp(%(expires)s), 'authorized', '', 1)
 ON CONFLICT (account_id) DO UPDATE SET crm_id = excluded.crm_id, crm_url = excluded.crm_url,
 sealed = excluded.sealed, expires_at = excluded.expires_at, state = excluded.state, reason = '',
 generation = t.generation + 1"""
RENEW = """UPDATE ledger.tokens SET sealed = %(sealed)s, expires_at = to_timestamp(%(expires)s),
 generation = generation + 1 WHERE account_id = %(account)s AND generation = %(generation)s"""
WITHDRAW = """UPDATE ledger.tokens SET sealed = '', state = 'withdrawn', reason = %(reason)s,
 generation = generation + 1 WHERE account_id = %(account)s"""
FORGET_STATES = "DELETE FROM ledger.consents WHERE expires_at < now()"
USE_STATE = """INSERT INTO ledger.consents (nonce, expires_at) VALUES (%(nonce)s, to_timestamp(%(expires)s))
 ON CONFLICT (nonce) DO NOTHING"""


class NotAuthorized(Exception):
    """We may not use the account's CRM: the message says why, and what to do."""

    def __init__(self, account: str, reason: str, remedy: str = "") -> None:
        remedy = remedy or f"ask for its consent with POST /v1/accounts/{account}/authorize"
        super().__init__(f"{reason}: {remedy}")
        self.account = account


class Unusable(NotAuthorized):
    """The consent may be good, but our app in the file is not."""


FAILURES = (
    NotAuthorized,
    Unreached,
    WrongMasterKey,
    LedgerFull,
    LedgerUnavailable,
    ViewsMissing,
    psycopg.Error,
)


class Consent(Struct, frozen=True):
    """What is known of an account. `crm_id` is the CRM's own number of it, `expires` in unix seconds."""

    account_id: str
    crm_id: int
    crm_url: str
    sealed: bytes
    expires: float
    state: Literal["authorized", "withdrawn"]
    reason: str
    generation: int

    def __repr__(self) -> str:
        """Without the tokens, even sealed."""
        return f"Consent({self.account_id}, {self.state})"


class Access(Struct, frozen=True):
    """What a call of the CRM needs."""

    crm_url: str
    token: str

    def __repr__(self) -> str:
        """Without the token."""
        return f"Access({self.crm_url})"


class Tokens:
    """The tokens of all accounts. `record` gives a command to the ledger; `pool` reads.

    The first rest of an account lasts `rest_seconds`.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        master: bytes,
        oauth: OAuth | None,
        record: Record,
        *,
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        self._url, self._pool, self._oauth, self._record = url, pool, oauth, record
        self._vault = Vault(master)
        self._renewals: dict[str, asyncio.Task[Access]] = {}
        self._failed: Rests[Unreached | Unusable] = Rests(rest_seconds)
        self._replaced: Rests[str] = Rests(rest_seconds)  # Why: the token that came for a refused one.

    async def keep_alive(self) -> None:
        """Refresh what nobody used for a month, for ever: a refresh token lives three."""
        while True:
            try:
                await self.refresh_unused()
            except (psycopg.Error, ViewsMissing) as error:
                log.warning("unused tokens: %s", str(error).strip())
            await asyncio.sleep(KEEP_ALIVE_SECONDS)

    async def refresh_unused(self) -> None:
        """The same, once; one account that fails keeps no other from it. Raises psycopg.Error."""
        for consent in await self.all():
            if consent.state == AUTHORIZED and consent.expires < time.time() - UNUSED_SECONDS:
                account = consent.account_id
                try:
                    await self.access(account)
                except FAILURES as error:
                    reason = str(error).strip() or type(error).__name__
                    log.warning("account %s: its unused tokens are not refreshed: %s", account, reason)

    async def close(self) -> None:
        """Let refreshes that are under way end, for 3 s: an answer that is not kept costs the consent."""
        if running := list(self._renewals.values()):
            _, late = await asyncio.wait(running, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()

    async def all(self) -> list[Consent]:
        """Every account that ever consented."""
        return await self._pool.fetch(Consent, ALL, {})

    async def account_of(self, crm_id: int) -> str | None:
        """The amojo id of the account with this number in the CRM."""
        found = await self._pool.fetch(Consent, OF_CRM, {"crm_id": crm_id})
        return found[0].account_id if found else None

    async def use(self, state: State) -> bool:
        """Whether a state is used for the first time, on whatever process."""
        async with self._pool.connection() as link:
            await link.execute(FORGET_STATES)
            used = await link.execute(USE_STATE, {"nonce": state.nonce, "expires": state.expires})
            return used.rowcount == 1

    async def keep(self, account: str, crm_id: int, crm_url: str, pair: Pair) -> None:
        """Record that the account consented, and keep its tokens. Raises what `record` does."""
        stream = ids.account_stream(account)
        given = clock.stamp(Scope("", account, "", b""), stream, "operator", now=clock.now_ms())
        values = {"account": account, "crm_id": crm_id, "crm_url": crm_url, **self._sealed(account, pair)}
        async with self._alone(account) as link:
            await self._record(c.Authorize(**given, stream=stream, crm_url=crm_url))
            await link.execute(KEEP, values)
        self._failed.end(account)
        self._replaced.end(account)
        log.info("account %s: authorized", account)

    async def withdraw(self, account: str, reason: str) -> None:
        """Record that we may no longer use the account's CRM, and forget its tokens."""
        async with self._alone(account) as link:
            await self._withdraw(link, account, reason)

    async def access(self, account: str, *, refused: str | None = None) -> Access:
        """A token that is good for some minutes; another one than the one that Kommo has `refused`.

        That one again if it came in place of another refused one just now: a third would not help either.
        Raises NotAuthorized, and Unreached when there is none and Kommo does not answer, or did not just now.
        """
        found = await self._pool.fetch(Consent, ONE, {"account": account})
        if not found:
            raise NotAuthorized(account, f"account {account} has not let us into its CRM")
        consent = found[0]
        access = self._opened(consent)
        taken = access.token != refused
        if not taken and self._replaced.why(account) == refused:
            return access
        left = consent.expires - time.time() if taken else 0.0
        failure = self._failed.why(account)
        if left > AHEAD_SECONDS or (left > 0 and failure):
            return access
        if failure:
            raise _once_more(failure)
        try:
            renewed = await asyncio.shield(self._renewal(consent))
        except (Unreached, Unusable):
            if left <= 0:
                raise
            return access
        if not taken and self._replaced.why(account) != renewed.token:
            self._replaced.begin(account, renewed.token)
        return renewed

    def _renewal(self, consent: Consent) -> "asyncio.Task[Access]":
        """The refresh that is under way in this process, or a new one; it ends whoever still waits for it."""
        account = consent.account_id
        if (task := self._renewals.get(account)) is None:
            task = self._renewals[account] = asyncio.create_task(self._renew(consent), name="refresh")
            task.add_done_callback(lambda ended: self._ended(account, ended))
        return task

    def _ended(self, account: str, task: "asyncio.Task[Access]") -> None:
        del self._renewals[account]
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._failed.end(account)
        else:
            if isinstance(error, Unreached | Unusable):
                asked = error.after_seconds if isinstance(error, NotNow) else 0.0
                self._failed.begin(account, error, asked)
            log.warning("account %s: no new token: %s", account, str(error) or type(error).__name__)

    async def _renew(self, stale: Consent) -> Access:
        """The tokens after `stale`: those that another process got, or new ones."""
        account, refused = stale.account_id, ""
        new: Pair | None = None
        try:
            async with self._alone(account) as link:
                consent = await _locked(link, account)
                access = self._opened(consent)
                if consent.generation != stale.generation:
                    return access  # Another process was first.
                try:
                    new = await self._refreshed(consent)
                except TokenRefused as error:
                    refused = f"Kommo no longer takes our refresh token ({error.reason})"
                    await self._withdraw(link, account, refused)
                else:
                    await link.execute(RENEW, self._renewed(consent, new))
        except psycopg.Error:
            if new is None:
                raise
            await self._save(stale, new)
        if new is None:
            raise NotAuthorized(account, refused)
        log.info("account %s: tokens refreshed", account)
        return Access(stale.crm_url, new.access_token)

    async def _refreshed(self, consent: Consent) -> Pair:
        account = consent.account_id
        if self._oauth is None:
            remedy = "give client_id, client_secret and redirect_url there"
            raise Unusable(account, "the configuration has no table [oauth]", remedy)
        try:
            return await self._oauth.refresh(account, consent.crm_url, self._pair(consent).refresh_token)
        except WrongApp as error:
            remedy = "correct the table [oauth] of the configuration"
            raise Unusable(account, f"Kommo does not know our app ({error.reason})", remedy) from None

    async def _save(self, stale: Consent, new: Pair) -> None:
        """Keep tokens whose transaction broke: Kommo takes the old ones no longer."""
        values = self._renewed(stale, new)
        for attempt in range(SAVES_MAX):
            await asyncio.sleep(0.1 * 2**attempt)
            with contextlib.suppress(psycopg.Error):
                async with self._alone(stale.account_id) as link:
                    await link.execute(RENEW, values)  # Nothing to do if the commit had arrived.
                return
        log.error("account %s: the database was away, its new tokens are lost", stale.account_id)
        raise psycopg.OperationalError("the new tokens could not be kept")

    async def _withdraw(self, link: connection.Db, account: str, reason: str) -> None:
        stream = ids.account_stream(account)
        given = clock.stamp(Scope("", account, "", b""), stream, ids.KOMMO, now=clock.now_ms())
        await self._record(c.Withdraw(**given, stream=stream, reason=reason))
        await link.execute(WITHDRAW, {"account": account, "reason": reason})
        log.warning("account %s: withdrawn: %s", account, reason)

    @contextlib.asynccontextmanager
    async def _alone(self, account: str) -> AsyncIterator[connection.Db]:
        """A transaction in which no other process changes the account's tokens."""
        async with await connection.connect(self._url) as link, link.transaction():
            await link.execute(WAIT)
            await link.execute(PATIENT)
            await link.execute(ALONE, (TOKEN_LOCK, account))
            yield link

    def _sealed(self, account: str, pair: Pair) -> dict[str, object]:
        sealed = self._vault.seal(_sealed_name(account), pair)
        return {"sealed": sealed, "expires": time.time() + pair.expires_in}

    def _renewed(self, consent: Consent, pair: Pair) -> dict[str, object]:
        where = {"account": consent.account_id, "generation": consent.generation}
        return {**where, **self._sealed(consent.account_id, pair)}

    def _opened(self, consent: Consent) -> Access:
        """Raises NotAuthorized if it was withdrawn, WrongMasterKey if it cannot be opened."""
        if consent.state == WITHDRAWN:
            raise NotAuthorized(consent.account_id, consent.reason)
        return Access(consent.crm_url, self._pair(consent).access_token)

    def _pair(self, consent: Consent) -> Pair:
        account = consent.account_id
        subject = f"the tokens of account {account}"
        return self._vault.open(_sealed_name(account), consent.sealed, Pair, subject=subject)


async def _locked(link: connection.Db, account: str) -> Consent:
    async with link.cursor(row_factory=class_row(Consent)) as cursor:
        await cursor.execute(ONE, {"account": account})
        found = await cursor.fetchone()
    if found is None:
        raise NotAuthorized(account, f"account {account} has not let us into its CRM")
    return found


def _once_more(failure: Unreached | Unusable) -> Unreached | Unusable:
    """The same, told again: this time nothing was sent."""
    if isinstance(failure, Unreached):
        return NotNow(f"{failure.reason}, a moment ago", unknown=False)
    return failure.with_traceback(None)


def _sealed_name(account: str) -> str:
    """The vault's name for an account's tokens."""
    return f"tokens:{account}"
