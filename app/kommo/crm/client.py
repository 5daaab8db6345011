"""Calls of an account's CRM (`/api/v4/…`): signed in, within the account's budget, repeated only if harmless.

A call that may have been received is repeated only if the method is idempotent; one that Kommo turned away
(429, a page of its firewall) was not received. A page of a gateway (502, 504) does not say which it was. Who
waits too long gets Kommo's own answer.
"""

import asyncio
import random
from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

from app.http_client import Answer, Client, Unreached
from app.kommo.budget import Budget
from app.kommo.crm.oauth import AGENT
from app.kommo.crm.tokens import NotAuthorized, Tokens

__all__ = ["Crm", "NoPlace", "NotAuthorized"]

ATTEMPTS_MAX = 3
PAUSE_SECONDS = 0.25
WAIT_SECONDS_MAX = 5.0
IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})


class NoPlace(Unreached):
    """Nothing was sent, for the account's budget of calls is used up, or Kommo asked us to wait."""


class Crm:
    """One call at a time of any account; `tokens` says where its CRM is and signs in."""

    def __init__(self, client: Client, tokens: Tokens, budget: Budget) -> None:
        self._client, self._tokens, self._budget = client, tokens, budget

    async def call(
        self,
        account: str,
        method: str,
        path: str,
        payload: object = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """Kommo's answer, whatever its status; `path` begins with `/api/v4/`.

        Raises NotAuthorized, and Unreached when no answer came or the budget gave no place within 5 s.
        """
        where = f"{path}?{urlencode(query)}" if query else path
        body = b"" if payload is None else msgspec.json.encode(payload)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            pause = PAUSE_SECONDS * 2**attempt * random.random()
            try:
                answer = await self._signed_in(account, method, where, body)
            except NoPlace:
                raise
            except Unreached as error:
                if attempt == ATTEMPTS_MAX or (error.unknown and method not in IDEMPOTENT):
                    raise
            else:
                if attempt == ATTEMPTS_MAX or not _again(method, answer):
                    return answer
                pause = max(pause, answer.retry_after)
                if pause > WAIT_SECONDS_MAX:
                    return answer
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _signed_in(self, account: str, method: str, where: str, body: bytes) -> Answer:
        """A call with the account's token; once more with another one if Kommo does not take it."""
        access = await self._tokens.access(account)
        answer = await self._once(account, method, access.crm_url + where, body, access.token)
        if answer.status != 401 or answer.html:
            return answer
        refused = access.token
        access = await self._tokens.access(account, refused=refused)
        if access.token == refused:
            return answer
        return await self._once(account, method, access.crm_url + where, body, access.token)

    async def _once(self, account: str, method: str, url: str, body: bytes, token: str) -> Answer:
        headers = {"Authorization": f"Bearer {token}", "User-Agent": AGENT, "Accept": "application/json"}
        if body:
            headers["Content-Type"] = "application/json"
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._budget.take(account, "crm")
        except TimeoutError:
            raise NoPlace("the account's budget of calls gave no place in time", unknown=False) from None
        answer = await self._client.call(method, url, body, headers)
        await self._budget.told(account, "crm", answer)
        return answer


def _again(method: str, answer: Answer) -> bool:
    """Whether a repeat may help and cannot do harm."""
    if answer.status == 429 or (answer.html and answer.status < 500):
        return True
    return method in IDEMPOTENT and (answer.html or answer.status in (408, 500, 502, 503, 504))
