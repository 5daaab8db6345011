"""Keeps our access to each account's CRM alive: tokens sealed at rest, refreshed by one process at a time.

Theory of operation. A refresh token is good once: two refreshes with one token, or a lost answer, cost the
account's consent. So the row in `ledger.tokens` has a `generation`, and a refresh holds the account's lock in
the database while Kommo answers. A process that waited for the lock sees a newer generation and uses those
tokens. If the transaction breaks after Kommo has answered, the tokens are saved again for some seconds.

A row is authorized or withdrawn. `save` authorizes it, after an administrator consented. It is withdrawn
when Kommo refuses the refresh token with a reason, or disables the integration; then nobody calls Kommo for
this account until an administrator consents again. Every other failure leaves the row as it is: the tokens
may still be good. Both changes are recorded in the ledger within the same lock.

A refresh that failed puts the account off in this process, ever longer, and so does a new token that the CRM
refuses as well: calls of the CRM must not become calls for tokens.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Literal

import psycopg
from msgspec import Struct
from psycopg.rows import class_row

from app import clock
from app.database import connection
from app.database.names import TOKEN_LOCK
from app.database.pool import Pool, ViewsMissing
from app.http_client import Unreached
from app.kommo.crm.backoff import Backoff
from app.kommo.crm.installs import FORGET_STEPS
from app.kommo.crm.oauth import AppRefused, OAuth, Pair, State, TokenRefused, TokensUnavailable
from app.kommo.crm.token_rows import (
    ADOPT,
    ALL,
    DELETE_STATES,
    END,
    LOCK,
    LOCK_TIMEOUT,
    MOVE,
    NO_IDLE_TIMEOUT,
    OF_ANSWER,
    OF_CRM,
    ONE,
    RENEW,
    SAVE,
    TO_ADOPT,
    USE_STATE,
    WITHDRAW,
)
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.vault import Vault, WrongMasterKey
from domain import commands as c
from domain import ids
from domain.ids import Scope

AHEAD_SECONDS = 300.0  # Chosen: a token lives a day, and an outage of Kommo may last some minutes.
BACKOFF_SECONDS = 1.0  # Chosen: the first wait after a failed refresh; it grows up to a minute.
CLOSE_SECONDS = 3.0  # Chosen: as the service drains, which has 10 s to end.
SAVES_MAX = 6  # Chosen: 6.3 s in all, longer than a restart of PostgreSQL takes.
SAVE_PAUSE_SECONDS = 0.1  # Chosen: before the first of them; then it doubles.
UNUSED_SECONDS = 30 * 86_400.0  # Chosen: a third of the three months after which Kommo ends an unused token.
KEEP_ALIVE_SECONDS = 6 * 3600.0  # Chosen: often enough for a limit of months, also if some rounds fail.
AUTHORIZED = "authorized"
WITHDRAWN = "withdrawn"
Record = Callable[[c.AnyCommand], Awaitable[object]]
log = logging.getLogger("chatledger.tokens")

LOCK_PATIENCE_SECONDS = 35.0  # Longer than LOCK_TIMEOUT, which the server keeps itself.


class NotAuthorized(Exception):
    """We may not use the account's CRM; the message has the reason and the remedy, `answer` Kommo's text."""

    def __init__(self, account: str, reason: str, remedy: str = "", *, answer: str = "") -> None:
        remedy = remedy or f"ask for its consent with POST /v1/accounts/{account}/authorize"
        super().__init__(f"{reason}: {remedy}")
        self.account = account
        self.answer = answer


class AppUnusable(NotAuthorized):
    """The account's consent may be good, but our app in the configuration is not."""


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
    """An account's row: `crm_id` is its number in the CRM, `expires` its access token's end, unix seconds.

    `ended`: it was withdrawn, and all that comes with that is done.
    """

    account_id: str
    crm_id: int
    crm_url: str
    sealed: bytes
    expires: float
    state: Literal["authorized", "withdrawn"]
    reason: str
    generation: int
    ended: bool

    def __repr__(self) -> str:
        """Without the tokens, even sealed."""
        return f"Consent({self.account_id}, {self.state})"


class _Account(Struct):
    account_id: str


class Access(Struct, frozen=True):
    """The address of an account's CRM, and a token that is good for a call."""

    crm_url: str
    token: str

    def __repr__(self) -> str:
        """Without the token."""
        return f"Access({self.crm_url})"


class Tokens:
    """The tokens of all accounts. `record` submits a command to the ledger; `pool` reads.

    `backoff_seconds`: how long an account is put off after the first failure.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        vault: Vault,
        oauth: OAuth | None,
        record: Record,
        *,
        backoff_seconds: float = BACKOFF_SECONDS,
    ) -> None:
        self._url, self._pool, self._oauth, self._record = url, pool, oauth, record
        self._vault = vault
        self._renewals: dict[str, asyncio.Task[Access]] = {}
        self._failed: Backoff[Unreached | AppUnusable] = Backoff(backoff_seconds)
        self._replaced: Backoff[str] = Backoff(backoff_seconds)  # The token that came for a refused one.

    async def keep_alive(self) -> None:
        """Refresh unused tokens from time to time, until cancelled: Kommo ends them after three months."""
        while True:
            try:
                await self.refresh_unused()
            except (psycopg.Error, ViewsMissing) as error:
                log.warning("unused tokens: %s", str(error).strip())
            await asyncio.sleep(KEEP_ALIVE_SECONDS)

    async def refresh_unused(self) -> None:
        """Refresh the tokens that were unused for a month; an account that fails does not stop the others.

        Raises ViewsMissing and psycopg.Error.
        """
        for consent in await self.all():
            if consent.state == AUTHORIZED and consent.expires < time.time() - UNUSED_SECONDS:
                account = consent.account_id
                try:
                    await self.access(account)
                except FAILURES as error:
                    reason = str(error).strip() or type(error).__name__
                    log.warning("account %s: its unused tokens are not refreshed: %s", account, reason)

    async def close(self) -> None:
        """Wait up to 3 s for refreshes under way: an answer that is not saved costs the account's consent."""
        if running := list(self._renewals.values()):
            _, late = await asyncio.wait(running, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()

    async def all(self) -> list[Consent]:
        """Returns every account that ever consented."""
        return await self._pool.fetch(Consent, ALL, {})

    async def of(self, account: str) -> Consent | None:
        """Returns an account's consent, in force or withdrawn; None if it never consented."""
        rows = await self._pool.fetch(Consent, ONE, {"account": account})
        return rows[0] if rows else None

    async def note_end(self, consent: Consent) -> None:
        """Note that all is done that comes with the withdrawal, unless the account has consented again."""
        async with self._pool.connection() as conn:
            await conn.execute(END, {"account": consent.account_id, "generation": consent.generation})

    async def consent_of(self, crm_id: int) -> Consent | None:
        """Returns the consent of the account with this number in the CRM."""
        rows = await self._pool.fetch(Consent, OF_CRM, {"crm_id": crm_id})
        return rows[0] if rows else None

    async def use_state(self, state: State) -> bool:
        """Whether this is the first use of the state on any process."""
        async with self._pool.connection() as conn:
            await conn.execute(DELETE_STATES)
            cursor = await conn.execute(USE_STATE, {"nonce": state.nonce, "expires": state.expires})
            return cursor.rowcount == 1

    async def account_of(self, answer: bytes) -> str | None:
        """Returns the account whose consent in force came with this answer of Kommo's, by its digest."""
        rows = await self._pool.fetch(_Account, OF_ANSWER, {"answer": answer})
        return rows[0].account_id if rows else None

    async def save(
        self,
        account: str,
        crm_id: int,
        crm_url: str,
        pair: Pair,
        *,
        answer: bytes | None = None,
        configured: str | None = None,
        beside: Callable[[connection.Db], Awaitable[None]] | None = None,
    ) -> None:
        """Record that the account consented, and save its tokens. Raises what `record` raises.

        `answer` is the digest of the answer of Kommo's that they came with, `configured` the address of the
        CRM in the file, if any; what `beside` writes is in the same transaction.
        """
        stream, stamp = _stamp(account, ids.OPERATOR)
        values = {"account": account, "crm_id": crm_id, "crm_url": crm_url, **self._sealed(account, pair)}
        async with self._locked(account) as conn:
            await self._record(c.Authorize(**stamp, stream=stream, crm_url=crm_url))
            await conn.execute(SAVE, values | {"answer": answer, "configured": configured})
            if beside:
                await beside(conn)
        self._failed.clear(account)
        self._replaced.clear(account)
        log.info("account %s: authorized", account)

    async def move(self, account: str, before: str, crm_url: str) -> None:
        """Keep the address that an account's CRM has moved to. Raises what `record` raises."""
        async with self._locked(account) as conn:
            cursor = await conn.execute(MOVE, {"account": account, "before": before, "crm_url": crm_url})
            if cursor.rowcount:
                await self._record_move(account, crm_url, ids.KOMMO)

    async def adopt(self, configured: Mapping[str, str]) -> None:
        """Keep the addresses that the file gives to accounts, where it gave others before or none.

        Raises what `record` raises.
        """
        values = {"accounts": list(configured), "urls": list(configured.values())}
        for row in await self._pool.fetch(_Account, TO_ADOPT, values):
            account, crm_url = row.account_id, configured[row.account_id]
            async with self._locked(account) as conn:
                await conn.execute(ADOPT, {"account": account, "crm_url": crm_url})
                await self._record_move(account, crm_url, "system")

    async def _record_move(self, account: str, crm_url: str, by: str) -> None:
        stream, stamp = _stamp(account, by)
        await self._record(c.Move(**stamp, stream=stream, crm_url=crm_url))
        log.info("account %s: its CRM is at %s", account, crm_url)

    async def withdraw(self, account: str, reason: str) -> None:
        """Record that we may no longer use the account's CRM, and delete its tokens."""
        async with self._locked(account) as conn:
            await self._withdraw(conn, account, reason)

    async def access(self, account: str, *, refused: str | None = None) -> Access:
        """Returns a token that is good for some minutes, and not the one that Kommo has `refused`.

        If the refused token itself came just now in place of another refused one, it is returned again: a
        third would not help either. Raises NotAuthorized, AppUnusable, WrongMasterKey, Unreached (Kommo gave
        no token, now or a moment ago), and what the database and `record` raise.
        """
        rows = await self._pool.fetch(Consent, ONE, {"account": account})
        if not rows:
            raise NotAuthorized(account, f"account {account} has not let us into its CRM")
        consent = rows[0]
        access = self._opened(consent)
        good = access.token != refused
        if not good and self._replaced.reason(account) == refused:
            return access
        left = consent.expires - time.time() if good else 0.0
        failure = self._failed.reason(account)
        if left > AHEAD_SECONDS or (left > 0 and failure):
            return access
        if failure:
            raise _repeated(failure)
        try:
            renewed = await asyncio.shield(self._renewal(consent))
        except (Unreached, AppUnusable):
            if left <= 0:
                raise
            return access
        if not good and self._replaced.reason(account) != renewed.token:
            self._replaced.start(account, renewed.token)
        return renewed

    def _renewal(self, consent: Consent) -> "asyncio.Task[Access]":
        """The refresh that is under way in this process, or a new one; it goes on if its callers give up."""
        account = consent.account_id
        if (task := self._renewals.get(account)) is None:
            task = self._renewals[account] = asyncio.create_task(self._renew(consent), name="refresh")
            task.add_done_callback(lambda ended: self._ended(account, ended))
        return task

    def _ended(self, account: str, task: "asyncio.Task[Access]") -> None:
        del self._renewals[account]
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._failed.clear(account)
        else:
            if isinstance(error, Unreached | AppUnusable):
                asked_seconds = error.after_seconds if isinstance(error, TokensUnavailable) else 0.0
                self._failed.start(account, error, asked_seconds)
            log.warning("account %s: no new token: %s", account, str(error) or type(error).__name__)

    async def _renew(self, stale: Consent) -> Access:
        """Returns the tokens after `stale`: those that another process got, or new ones."""
        account, refused, answer = stale.account_id, "", ""
        new: Pair | None = None
        crm_url = stale.crm_url
        try:
            async with self._locked(account) as conn:
                consent = await _consent(conn, account)
                access = self._opened(consent)
                if consent.generation != stale.generation:
                    return access  # Another process has refreshed.
                try:
                    new, crm_url = await self._refreshed(consent)
                except TokenRefused as error:
                    refused = f"Kommo no longer takes our refresh token ({error.reason})"
                    answer = error.answer
                    await self._withdraw(conn, account, refused, answer)
                else:
                    await conn.execute(RENEW, self._renewed(consent, new, crm_url))
        except psycopg.Error:
            if new is None:
                raise
            await self._save_late(stale, new, crm_url)
        if new is None:
            raise NotAuthorized(account, refused, answer=answer)
        log.info("account %s: tokens refreshed", account)
        if crm_url != stale.crm_url:
            with contextlib.suppress(LedgerFull, LedgerUnavailable):  # The tokens are kept all the same.
                await self._record_move(account, crm_url, ids.KOMMO)
        return Access(crm_url, new.access_token)

    async def _refreshed(self, consent: Consent) -> tuple[Pair, str]:
        account = consent.account_id
        if self._oauth is None:
            remedy = "give client_id, client_secret and redirect_url there"
            raise AppUnusable(account, "the configuration has no table [oauth]", remedy)
        try:
            return await self._oauth.refresh(account, consent.crm_url, self._pair(consent).refresh_token)
        except AppRefused as error:
            remedy = "correct the table [oauth] of the configuration"
            reason = f"Kommo does not know our app ({error.reason})"
            raise AppUnusable(account, reason, remedy, answer=error.answer) from None

    async def _save_late(self, stale: Consent, new: Pair, crm_url: str) -> None:
        """Save tokens whose transaction broke: Kommo no longer accepts the old ones."""
        values = self._renewed(stale, new, crm_url)
        for attempt in range(SAVES_MAX):
            await asyncio.sleep(SAVE_PAUSE_SECONDS * 2**attempt)
            with contextlib.suppress(psycopg.Error):
                async with self._locked(stale.account_id) as conn:
                    await conn.execute(RENEW, values)  # Changes nothing if the broken commit had arrived.
                return
        log.error("account %s: the database was away, its new tokens are lost", stale.account_id)
        raise psycopg.OperationalError("the new tokens could not be kept")

    async def _withdraw(self, conn: connection.Db, account: str, reason: str, answer: str = "") -> None:
        stream, stamp = _stamp(account, ids.KOMMO)
        await self._record(c.Withdraw(**stamp, stream=stream, reason=reason, answer=answer or None))
        await conn.execute(WITHDRAW, {"account": account, "reason": reason})
        await conn.execute(FORGET_STEPS.encode(), {"account": account})
        log.warning("account %s: withdrawn: %s", account, reason)

    @contextlib.asynccontextmanager
    async def _locked(self, account: str) -> AsyncIterator[connection.Db]:
        """A transaction in which no other process changes the account's tokens."""
        db = await connection.connect(self._url, patience_seconds=LOCK_PATIENCE_SECONDS)
        async with db as conn, conn.transaction():
            await conn.execute(LOCK_TIMEOUT)
            await conn.execute(NO_IDLE_TIMEOUT)
            await conn.execute(LOCK, (TOKEN_LOCK, account))
            yield conn

    def _sealed(self, account: str, pair: Pair) -> dict[str, object]:
        sealed = self._vault.seal(_sealed_name(account), pair)
        return {"sealed": sealed, "expires": time.time() + pair.expires_in}

    def _renewed(self, consent: Consent, pair: Pair, crm_url: str) -> dict[str, object]:
        key = {"account": consent.account_id, "generation": consent.generation, "crm_url": crm_url}
        return {**key, **self._sealed(consent.account_id, pair)}

    def _opened(self, consent: Consent) -> Access:
        """Raises NotAuthorized if the consent was withdrawn, WrongMasterKey if its tokens do not open."""
        if consent.state == WITHDRAWN:
            raise NotAuthorized(consent.account_id, consent.reason)
        return Access(consent.crm_url, self._pair(consent).access_token)

    def _pair(self, consent: Consent) -> Pair:
        account = consent.account_id
        subject = f"the tokens of account {account}"
        return self._vault.open(_sealed_name(account), consent.sealed, Pair, subject=subject)


async def _consent(conn: connection.Db, account: str) -> Consent:
    async with conn.cursor(row_factory=class_row(Consent)) as cursor:
        await cursor.execute(ONE, {"account": account})
        consent = await cursor.fetchone()
    if consent is None:
        raise NotAuthorized(account, f"account {account} has not let us into its CRM")
    return consent


def _repeated(failure: Unreached | AppUnusable) -> Unreached | AppUnusable:
    """The failure of a moment ago, for a caller for whom nothing was sent."""
    if isinstance(failure, Unreached):
        return TokensUnavailable(f"{failure.reason}, a moment ago", unknown=False)
    return failure.with_traceback(None)


def _stamp(account: str, by: str) -> tuple[str, c.Stamp]:
    """The stream of an account, and a stamp for a command about it."""
    stream = ids.account_stream(account)
    return stream, clock.stamp(Scope("", account, "", b""), stream, by, now=clock.now_ms())


def _sealed_name(account: str) -> str:
    """The vault's name for an account's tokens."""
    return f"tokens:{account}"
