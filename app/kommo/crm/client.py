"""Calls an account's CRM (`/api/v4/…`): signed in, within the account's budget, repeated only without harm.

A call that Kommo may have received is repeated only if its method is idempotent. Kommo did not receive a call
that it answered with 429 or with a page of its firewall; a gateway's page (502, 504) leaves that open. When
the next attempt would have to wait too long, the caller gets Kommo's own answer.
"""

import asyncio
import random
from collections.abc import Collection, Mapping
from urllib.parse import urlencode

import msgspec

from app.http_client import Answer, Client, Unreached
from app.kommo.budget import CallBudget
from app.kommo.crm.oauth import AGENT, MOVED, moved_to
from app.kommo.crm.tokens import Access, NotAuthorized, Tokens

__all__ = ["BudgetExhausted", "Crm", "NotAuthorized"]

ATTEMPTS_MAX = 3  # Chosen: a caller of ours waits for the answer, so a longer outage is its own to retry.
PAUSE_SECONDS = 0.25  # Chosen: the first retry waits for 0.25 s on average, the second for 0.5 s.
WAIT_SECONDS_MAX = 5.0  # Chosen: longer than that nobody waits in front of a page.
IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})  # RFC 9110, of those that Kommo has.


class BudgetExhausted(Unreached):
    """Nothing was sent: the account's budget of calls is used up, or Kommo asked us to wait."""


class Crm:
    """Calls the CRM of any account; `tokens` knows where it is and signs in.

    An account that has moved is followed within `domains`.
    """

    def __init__(
        self, client: Client, tokens: Tokens, budget: CallBudget, domains: Collection[str] = ()
    ) -> None:
        self._client, self._tokens, self._budget, self._domains = client, tokens, budget, domains

    async def call(
        self,
        account: str,
        method: str,
        path: str,
        payload: object = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """Returns Kommo's answer, whatever its status; `path` begins with `/api/v4/`.

        Raises what `Tokens.access` raises, BudgetExhausted when the budget gave no permit within 5 s, and
        Unreached when no answer came.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        body = b"" if payload is None else msgspec.json.encode(payload)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            pause = PAUSE_SECONDS * 2**attempt * random.random()
            try:
                answer = await self._signed_in(account, method, target, body)
            except BudgetExhausted:
                raise
            except Unreached as error:
                if attempt == ATTEMPTS_MAX or (error.unknown and method not in IDEMPOTENT):
                    raise
            else:
                if attempt == ATTEMPTS_MAX or not _repeatable(method, answer):
                    return answer
                pause = max(pause, answer.retry_after)
                if pause > WAIT_SECONDS_MAX:
                    return answer
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _signed_in(self, account: str, method: str, target: str, body: bytes) -> Answer:
        """Calls with the account's token; once more with another token if Kommo refuses the first (401)."""
        access = await self._tokens.access(account)
        answer = await self._followed(account, method, access, target, body)
        if answer.status != 401 or answer.html:
            return answer
        refused = access.token
        access = await self._tokens.access(account, refused=refused)
        if access.token == refused:
            return answer
        return await self._followed(account, method, access, target, body)

    async def _followed(self, account: str, method: str, access: Access, target: str, body: bytes) -> Answer:
        """Calls the CRM where it is; if it has moved, once more there, and keeps that once it answers."""
        answer = await self._once(account, method, access.crm_url + target, body, access.token)
        url = moved_to(answer, self._domains)
        if url is None or url == access.crm_url:
            return answer
        answer = await self._once(account, method, url + target, body, access.token)
        is_there = not answer.html and answer.status < 500 and answer.status not in (*MOVED, 401)
        if is_there:
            await self._tokens.move(account, access.crm_url, url)
        return answer

    async def _once(self, account: str, method: str, url: str, body: bytes, token: str) -> Answer:
        headers = {"Authorization": f"Bearer {token}", "User-Agent": AGENT, "Accept": "application/json"}
        if body:
            headers["Content-Type"] = "application/json"
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._budget.take(account, "crm")
        except TimeoutError:
            raise BudgetExhausted(
                "the account's budget of calls gave no place in time", unknown=False
            ) from None
        answer = await self._client.call(method, url, body, headers)
        await self._budget.observe(account, "crm", answer)
        return answer


def _repeatable(method: str, answer: Answer) -> bool:
    """Whether a repeat may help and cannot do harm."""
    if answer.status == 429 or (answer.html and answer.status < 500):
        return True
    return method in IDEMPOTENT and (answer.html or answer.status in (408, 500, 502, 503, 504))
