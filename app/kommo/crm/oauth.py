"""Kommo's OAuth 2.0: the page where an administrator consents, and the exchange of a code or a token.

A `state` is ours, for one account, for twenty minutes, and every process with our master key can read it.
No exception, log or `repr` of this file holds a token, a code or a secret.
Source: Kommo's developer documentation, "OAuth 2.0"; RFC 6749 for the names of its errors.
"""

import base64
import hmac
import os
import re
from collections.abc import Collection
from typing import Annotated
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Meta, Struct

from app.config.file import KOMMO_DOMAINS, OAuthApp
from app.http_client import TEXT_CHARACTERS_MAX, Answer, Client, Unreached
from app.kommo.budget import CallBudget
from app.kommo.crm.account import PATH, QUERY, Described, described

AGENT = "chatledger/1"
STATE_SECONDS = 20 * 60  # Documented: Kommo's code is good for 20 minutes, so a state need not live longer.
NONCE_BYTES = 16  # Chosen: 128 random bits; no two states are the same.
MAC_BYTES = 32  # HMAC-SHA256.
PATIENCE_SECONDS = 5.0  # Chosen: as a call of the CRM, which waits for the refreshed token.
STATE_CHARACTERS_MAX = 400  # Chosen: four times what `make` returns for a UUID; longer texts are not decoded.
TOKEN_PATH = "/oauth2/access_token"  # noqa: S105 - an address
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
MOVED = frozenset({301, 302, 307, 308})  # Kommo documents 301; the others mean the same to a caller.
APP_REFUSED = frozenset({"invalid_client", "unauthorized_client", "unsupported_grant_type"})
# Kommo's words, as observed, for an app that it does not know: it has no documented code for each case.
APP_REFUSED_HINTS = ("client authentication", "redirect", "`client_")
REASONS = ("hint", "detail", "error_description", "error")
Token = Annotated[str, Meta(min_length=1)]


class TokenRefused(Exception):
    """Kommo refuses the code or the refresh token; `answer` is Kommo's text, which belongs in no log."""

    def __init__(self, reason: str, answer: str) -> None:
        super().__init__(reason)
        self.reason, self.answer = reason, answer


class AppRefused(Exception):
    """Kommo refuses our app: client_id, client_secret or redirect_url; `answer` is Kommo's text."""

    def __init__(self, reason: str, answer: str) -> None:
        super().__init__(reason)
        self.reason, self.answer = reason, answer


class TokensUnavailable(Unreached):
    """No tokens came, and ours may still be good; Kommo asks to wait `after_seconds` (0: it does not ask)."""

    def __init__(self, reason: str, *, unknown: bool, after_seconds: float = 0.0) -> None:
        super().__init__(reason, unknown=unknown)
        self.after_seconds = after_seconds


class PlanRefused(Exception):
    """The account's plan in Kommo does not allow calls of its CRM (402); `answer` is Kommo's text."""

    def __init__(self, answer: str) -> None:
        super().__init__("HTTP 402: the account's plan in Kommo does not allow it")
        self.answer = answer


class StateRefused(Exception):
    """The state is not one of ours, or has expired."""


class Pair(Struct, frozen=True):
    """An access token that lives for `expires_in` seconds, and a refresh token, good for one refresh."""

    access_token: Token
    refresh_token: Token
    expires_in: Annotated[int, Meta(gt=0)] = 86_400

    def __repr__(self) -> str:
        """Without the tokens, which belong in no log."""
        return "Pair(…)"


class State(Struct, frozen=True):
    """The content of a state: its account, a number that makes it good only once, unix seconds of its end.

    A state that was given to a browser, before the account is known, has the browser's name in its place.
    """

    account: str
    nonce: bytes
    expires: int


class States:
    """Makes and reads states. They are signed, so that none is stored before it is used."""

    def __init__(self, master: bytes) -> None:
        self._key = hmac.digest(master, b"oauth-state", "sha256")

    def make(self, account: str, now_seconds: float) -> str:
        """Returns a new state for an account."""
        expires = int(now_seconds) + STATE_SECONDS
        body = os.urandom(NONCE_BYTES) + expires.to_bytes(8) + account.encode()
        return base64.urlsafe_b64encode(self._mac(body) + body).rstrip(b"=").decode()

    def read(self, text: str, now_seconds: float) -> State:
        """Returns the content of a state; raises StateRefused."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise StateRefused from None
        mac, body = raw[:MAC_BYTES], raw[MAC_BYTES:]
        if len(text) > STATE_CHARACTERS_MAX or not hmac.compare_digest(mac, self._mac(body)):
            raise StateRefused
        nonce, expires = body[:NONCE_BYTES], int.from_bytes(body[NONCE_BYTES : NONCE_BYTES + 8])
        if expires <= now_seconds:
            raise StateRefused
        return State(body[NONCE_BYTES + 8 :].decode(), nonce, expires)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")


def disabled_signature(secret: str, client_uuid: str, crm_id: str) -> str:
    """Returns Kommo's signature of the integration-disabled call: HMAC-SHA256, lower-case hex."""
    return hmac.digest(secret.encode(), f"{client_uuid}|{crm_id}".encode(), "sha256").hex()


def crm_url_of(
    referer: str | None, configured: str | None, domains: Collection[str] = KOMMO_DOMAINS
) -> str | None:
    """Returns the URL of the CRM to exchange a code at: that of the host in `referer`, if it is allowed.

    Allowed are the configured address and hosts within `domains`, which an account may have moved to since.
    Without a `referer` it is the configured address. None if there is no such address.
    """
    host = (referer or "").strip().lower()
    host = urlsplit(host).netloc if "://" in host else host
    if configured:
        parts = urlsplit(configured.lower())
        if host in ("", parts.netloc, parts.hostname):
            return configured.rstrip("/")
    return url_within(host, domains)


def url_within(host: str, domains: Collection[str]) -> str | None:
    """Returns the URL of a host that is one label below a domain, or that is listed with its port."""
    if ":" in host:
        return f"http://{host}" if host in domains else None
    label, _, domain = host.partition(".")
    return f"https://{host}" if LABEL.fullmatch(label) and domain in domains else None


def moved_to(answer: Answer, domains: Collection[str]) -> str | None:
    """Returns the URL of the CRM that a redirect leads to, if it is within the domains; None if it is not."""
    if answer.status not in MOVED:
        return None
    try:
        parts = urlsplit(answer.location)
    except ValueError:
        return None
    url = url_within(parts.netloc.lower(), domains)
    return url if url and url.startswith(f"{parts.scheme}://") else None


class OAuth:
    """The calls of our app; `crm_url` is the address of the account's CRM.

    Refreshes stay within the account's `budget`, if there is one. An exchange does not: a person waits for
    it, and its code is good once.
    """

    def __init__(self, client: Client, app: OAuthApp, budget: CallBudget | None = None) -> None:
        self._client = client
        self._budget = budget
        self.app = app

    def authorize_url(self, state: str) -> str:
        """Returns the URL of the page where an administrator consents."""
        query = urlencode({"client_id": self.app.client_id, "state": state, "mode": "popup"})
        return f"{self.app.authorize_url}{'&' if '?' in self.app.authorize_url else '?'}{query}"

    async def exchange(self, crm_url: str, code: str) -> Pair:
        """Exchange a code for tokens. Raises TokenRefused, AppRefused, Unreached."""
        return pair_of(await self._post(crm_url, {"grant_type": "authorization_code", "code": code}))

    async def refresh(self, account: str, crm_url: str, refresh_token: str) -> tuple[Pair, str]:
        """Spend a refresh token; returns the next tokens and the CRM's address, which may be a new one.

        Raises TokenRefused, AppRefused, Unreached.
        """
        grant = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        answer = await self._within_budget(account, crm_url, grant)
        if url := moved_to(answer, self.app.domains):
            crm_url, answer = url, await self._within_budget(account, url, grant)
        return pair_of(answer), crm_url

    async def _within_budget(self, account: str, crm_url: str, grant: dict[str, str]) -> Answer:
        if self._budget:
            await self._budget.take(account, "crm", within_seconds=PATIENCE_SECONDS)
        answer = await self._post(crm_url, grant)
        if self._budget:
            await self._budget.observe(account, "crm", answer)
        return answer

    async def who_am_i(self, crm_url: str, pair: Pair) -> Described:
        """Returns the account that the tokens are for. Raises PlanRefused, Unreached."""
        url = f"{crm_url}{PATH}?{urlencode(QUERY)}"
        headers = {"Authorization": f"Bearer {pair.access_token}", "User-Agent": AGENT}
        answer = await self._client.call("GET", url, b"", headers)
        if answer.status == 402:
            raise PlanRefused(answer.text)
        owner = described(answer) if answer.status == 200 else None
        if owner is None:
            raise Unreached(f"HTTP {answer.status}, and no account to read", unknown=False)
        return owner

    async def _post(self, crm_url: str, grant: dict[str, str]) -> Answer:
        app = self.app
        credentials = {"client_id": app.client_id, "client_secret": app.client_secret}
        body = msgspec.json.encode({**credentials, **grant, "redirect_uri": app.redirect_url})
        headers = {"Content-Type": "application/json", "User-Agent": AGENT}
        return await self._client.call("POST", crm_url + TOKEN_PATH, body, headers)


def pair_of(answer: Answer) -> Pair:
    """Returns the tokens in an answer. Raises TokenRefused, AppRefused, TokensUnavailable.

    Only an answer that gives a reason means that a token is spent or withdrawn: a bare 400 or 401 may come
    from a proxy in between.
    """
    if answer.status == 200 and not answer.html:
        try:
            return msgspec.json.decode(answer.body, type=Pair)
        except (msgspec.DecodeError, UnicodeError):
            raise TokensUnavailable("HTTP 200, and no tokens to read", unknown=True) from None
    where = f"HTTP {answer.status} at {TOKEN_PATH}"
    if answer.html or answer.status not in (400, 401):
        raise TokensUnavailable(where, unknown=answer.status >= 500, after_seconds=answer.retry_after)
    texts = {name: text for name, text in answer.json().items() if isinstance(text, str)}
    explanation = next((text for name in REASONS if (text := texts.get(name, "").strip())), "")
    if not explanation:
        raise TokensUnavailable(f"{where}, and no reason", unknown=False, after_seconds=answer.retry_after)
    reason, text = f"HTTP {answer.status}", explanation[:TEXT_CHARACTERS_MAX].replace("\0", "\ufffd")
    hint = texts.get("hint", "").lower()
    if texts.get("error") in APP_REFUSED or any(part in hint for part in APP_REFUSED_HINTS):
        raise AppRefused(reason, text)
    raise TokenRefused(reason, text)
