"""Kommo's OAuth 2.0: where an administrator consents, and how a code or a refresh token becomes tokens.

A `state` is ours, for one account, for twenty minutes, and every process with our master key can read it.
No exception, log or `repr` of this file holds a token, a code or a secret.
"""

import base64
import hmac
import os
import re
from typing import Annotated
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Meta, Struct

from app.config.file import OAuthApp
from app.http_client import TEXT_CHARACTERS_MAX, Answer, Client, Unreached
from app.kommo.budget import Budget

AGENT = "chatledger/1"
STATE_SECONDS = 20 * 60
NONCE_BYTES = 16
MAC_BYTES = 32
PATIENCE_SECONDS = 5.0
STATE_CHARACTERS_MAX = 400
TOKEN_PATH = "/oauth2/access_token"  # noqa: S105 - an address
KOMMO_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+(?:kommo\.com|amocrm\.ru|amocrm\.com)")
WRONG_APP = frozenset({"invalid_client", "unauthorized_client", "unsupported_grant_type"})
WRONG_APP_HINTS = ("client authentication", "redirect", "`client_")
REASONS = ("hint", "detail", "error_description", "error")
Token = Annotated[str, Meta(min_length=1)]


class TokenRefused(Exception):
    """Kommo does not take the code or the refresh token: `reason` is its answer, for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongApp(Exception):
    """Kommo does not know our app by this client_id, client_secret and redirect_url; it says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotNow(Unreached):
    """No tokens came, and nothing is known of those we have; Kommo asks to wait so long (0: no matter)."""

    def __init__(self, reason: str, *, unknown: bool, after_seconds: float = 0.0) -> None:
        super().__init__(reason, unknown=unknown)
        self.after_seconds = after_seconds


class BadState(Exception):
    """A state that we did not give out, or too long ago."""


class Pair(Struct, frozen=True):
    """An access token, how many seconds it lives, and the refresh token for the next one, good once."""

    access_token: Token
    refresh_token: Token
    expires_in: Annotated[int, Meta(gt=0)] = 86_400

    def __repr__(self) -> str:
        """Nothing: a token belongs in no log."""
        return "Pair(…)"


class WhoAmI(Struct, frozen=True):
    """The account that a token is for: the CRM's number of it, and its amojo id."""

    id: int
    amojo_id: str


class State(Struct, frozen=True):
    """What a state says: the account it is for, and a number that makes it good only once."""

    account: str
    nonce: bytes
    expires: int


class States:
    """Makes and reads states; they are signed, so nothing is kept until one is used."""

    def __init__(self, master: bytes) -> None:
        self._key = hmac.digest(master, b"oauth-state", "sha256")

    def make(self, account: str, now_seconds: float) -> str:
        """A state for an account."""
        expires = int(now_seconds) + STATE_SECONDS
        body = os.urandom(NONCE_BYTES) + expires.to_bytes(8) + account.encode()
        return base64.urlsafe_b64encode(self._mac(body) + body).rstrip(b"=").decode()

    def read(self, text: str, now_seconds: float) -> State:
        """What it says; raises BadState."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise BadState from None
        mac, body = raw[:MAC_BYTES], raw[MAC_BYTES:]
        if len(text) > STATE_CHARACTERS_MAX or not hmac.compare_digest(mac, self._mac(body)):
            raise BadState
        nonce, expires = body[:NONCE_BYTES], int.from_bytes(body[NONCE_BYTES : NONCE_BYTES + 8])
        if expires <= now_seconds:
            raise BadState
        return State(body[NONCE_BYTES + 8 :].decode(), nonce, expires)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")


def disabled_signature(secret: str, client_uuid: str, crm_id: str) -> str:
    """What Kommo signs the integration-disabled call with: HMAC-SHA256, lower-case hex."""
    return hmac.digest(secret.encode(), f"{client_uuid}|{crm_id}".encode(), "sha256").hex()


def crm_url_of(referer: str | None, configured: str | None) -> str | None:
    """The CRM to exchange a code at: the configured one, else Kommo's own host in `referer`.

    None if `referer` names another host than the configured one, or a host that is not Kommo's.
    """
    host = (referer or "").strip().lower()
    host = urlsplit(host).netloc if "://" in host else host
    if configured:
        parts = urlsplit(configured.lower())
        return configured.rstrip("/") if host in ("", parts.netloc, parts.hostname) else None
    return f"https://{host}" if KOMMO_HOST.fullmatch(host) else None


class OAuth:
    """The calls of our app; `crm_url` is the address of the account's CRM.

    What we do of ourselves is within the account's `budget`, if there is one; what a person waits for is not.
    """

    def __init__(self, client: Client, app: OAuthApp, budget: Budget | None = None) -> None:
        self._client = client
        self._budget = budget
        self.app = app

    def authorize_url(self, state: str) -> str:
        """Where an administrator of the account consents."""
        query = urlencode({"client_id": self.app.client_id, "state": state, "mode": "popup"})
        return f"{self.app.authorize_url}{'&' if '?' in self.app.authorize_url else '?'}{query}"

    async def exchange(self, crm_url: str, code: str) -> Pair:
        """The tokens of a code. Raises TokenRefused, WrongApp, Unreached."""
        return pair_of(await self._ask(crm_url, {"grant_type": "authorization_code", "code": code}))

    async def refresh(self, account: str, crm_url: str, refresh_token: str) -> Pair:
        """The next tokens; the refresh token is spent with it. Raises TokenRefused, WrongApp, Unreached."""
        if self._budget:
            await self._budget.take(account, "crm", within_seconds=PATIENCE_SECONDS)
        answer = await self._ask(crm_url, {"grant_type": "refresh_token", "refresh_token": refresh_token})
        if self._budget:
            await self._budget.told(account, "crm", answer)
        return pair_of(answer)

    async def who_am_i(self, crm_url: str, pair: Pair) -> WhoAmI:
        """The account that the tokens are for. Raises Unreached."""
        url = f"{crm_url}/api/v4/account?with=amojo_id"
        headers = {"Authorization": f"Bearer {pair.access_token}", "User-Agent": AGENT}
        answer = await self._client.call("GET", url, b"", headers)
        try:
            if answer.status == 200:
                return msgspec.json.decode(answer.body, type=WhoAmI)
        except (msgspec.DecodeError, UnicodeError):
            pass
        raise Unreached(f"HTTP {answer.status}, and no account to read", unknown=False)

    async def _ask(self, crm_url: str, grant: dict[str, str]) -> Answer:
        app = self.app
        known = {"client_id": app.client_id, "client_secret": app.client_secret}
        body = msgspec.json.encode({**known, **grant, "redirect_uri": app.redirect_url})
        headers = {"Content-Type": "application/json", "User-Agent": AGENT}
        return await self._client.call("POST", crm_url + TOKEN_PATH, body, headers)


def pair_of(answer: Answer) -> Pair:
    """The tokens in an answer. Only an answer that says so means that a token is spent or taken back.

    A bare 400 or 401 may be that of a proxy in between. Raises TokenRefused, WrongApp, NotNow.
    """
    if answer.status == 200 and not answer.html:
        try:
            return msgspec.json.decode(answer.body, type=Pair)
        except (msgspec.DecodeError, UnicodeError):
            raise NotNow("HTTP 200, and no tokens to read", unknown=True) from None
    where = f"HTTP {answer.status} at {TOKEN_PATH}"
    if answer.html or answer.status not in (400, 401):
        raise NotNow(where, unknown=answer.status >= 500, after_seconds=answer.retry_after)
    told = {name: text for name, text in answer.json().items() if isinstance(text, str)}
    said = next((text for name in REASONS if (text := told.get(name, "").strip())), "")
    if not said:
        raise NotNow(f"{where}, and no reason", unknown=False, after_seconds=answer.retry_after)
    reason = f"HTTP {answer.status}: {said[:TEXT_CHARACTERS_MAX]}"
    hint = told.get("hint", "").lower()
    if told.get("error") in WRONG_APP or any(part in hint for part in WRONG_APP_HINTS):
        raise WrongApp(reason)
    raise TokenRefused(reason)
