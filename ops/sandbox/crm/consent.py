"""A code works once within 20 minutes, a refresh token once, an access token until it expires."""

import secrets
import time

from msgspec import Struct

from ops.sandbox.config import Config, CrmAccount, OAuthClient, crm_account
from ops.sandbox.errors import Impossible
from ops.sandbox.state.chats import Crm
from ops.sandbox.state.crm import CrmState, Disabled, Installed, Token

CODE_SECONDS = 20 * 60
REFRESH_SECONDS = 90 * 24 * 60 * 60
FORGET_SECONDS = 60 * 60  # an expired token is answered as expired, not as unknown, for so long


class Denied(Exception):
    """No token is given; with the HTTP status and the reason."""

    def __init__(self, status: int, hint: str) -> None:
        super().__init__(hint)
        self.status, self.hint = status, hint


class TokenOrder(Struct, kw_only=True):
    """The body of `/oauth2/access_token`."""

    client_id: str = ""
    client_secret: str = ""
    grant_type: str = ""
    code: str = ""
    refresh_token: str = ""
    redirect_uri: str = ""


class Consent:
    """The consents: which integration may use which account."""

    def __init__(self, config: Config, crm: Crm, state: CrmState) -> None:
        self.config, self.crm, self.crm_state = config, crm, state

    def accounts(self) -> list[CrmAccount]:
        """The accounts with a CRM: the configured ones, the whitelist, and all that ever connected."""
        found = {one.amojo_id: one for one in self.config.crm_accounts}
        connected = [one.account_id for one in self.crm.connections.values()]
        for amojo_id in (*self.config.accounts, *connected):
            found.setdefault(amojo_id, crm_account(amojo_id))
        return list(found.values())

    def account(self, named: str) -> CrmAccount:
        """The account by its amojo id or CRM id, or the only one; raises Impossible."""
        known = self.accounts()
        if not known:
            raise Impossible(409, "no account: start the sandbox with --account or --crm-account")
        for one in known:
            if named in (one.amojo_id, str(one.id)):
                return one
        if named:
            raise Impossible(404, "account_id: no such account")
        if len(known) > 1:
            raise Impossible(400, "account_id: there are several accounts, name one")
        return known[0]

    def client(self, named: str) -> OAuthClient:
        """The integration by its id, or the only one; raises Impossible."""
        known = self.config.oauth
        if not known:
            raise Impossible(409, "no integration: start the sandbox with --oauth CLIENT_ID:SECRET")
        for one in known:
            if named == one.id:
                return one
        if named or len(known) > 1:
            raise Impossible(404 if named else 400, "client_id: name one of the integrations")
        return known[0]

    def code(self, client: OAuthClient, account: CrmAccount, redirect_uri: str) -> str:
        """The account's admin agrees: a code for one exchange. The integration is installed by it."""
        where = f"{account.amojo_id}/{client.id}"
        if known := self.crm_state.disabled.get(where):
            self.crm_state.disabled.delete(known)
        self.crm_state.installed.save(Installed(id=where, installed_at=int(time.time())))
        return self._issue("code", account.amojo_id, client.id, CODE_SECONDS, redirect_uri)

    def exchange(self, order: TokenOrder) -> dict[str, object]:
        """Tokens for a code or a refresh token, which is spent by it. Raises Denied."""
        self._authenticate(order)
        if order.grant_type == "authorization_code":
            spent = self._spend("code", "authorization code", order.code, order.client_id)
            if order.redirect_uri != spent.redirect_uri:
                raise Denied(400, "Invalid redirect URI")
        elif order.grant_type == "refresh_token":
            spent = self._spend("refresh", "refresh token", order.refresh_token, order.client_id)
        else:
            raise Denied(400, "Check the `grant_type` parameter")
        who = (spent.account, spent.client)
        return {
            "token_type": "Bearer",
            "expires_in": int(self.config.token_seconds),
            "access_token": self._issue("access", *who, self.config.token_seconds),
            "refresh_token": self._issue("refresh", *who, REFRESH_SECONDS),
        }

    def bearer(self, header: str) -> Token | None:
        """The consent behind an Authorization header; None if it is unknown, expired or withdrawn."""
        kind, _, value = header.partition(" ")
        token = self.crm_state.tokens.get(value.strip())
        if kind.lower() != "bearer" or token is None or token.kind != "access":
            return None
        return token if token.expires > time.time() else None

    def expire(self, account: CrmAccount, client: OAuthClient) -> int:
        """Expires all access tokens; returns how many."""
        found = [one for one in self._of(account, client) if one.kind == "access"]
        for token in found:
            token.expires = 0.0
            self.crm_state.tokens.save(token)
        return len(found)

    def revoke(self, account: CrmAccount, client: OAuthClient) -> int:
        """Withdraws the consent, so that no code or token works any more; returns how many there were."""
        found = self._of(account, client)
        for token in found:
            self.crm_state.tokens.delete(token)
        return len(found)

    def disable(self, account: CrmAccount, client: OAuthClient) -> None:
        """Disables the integration in the account, which withdraws its consent too."""
        where = f"{account.amojo_id}/{client.id}"
        self.revoke(account, client)
        if known := self.crm_state.installed.get(where):
            self.crm_state.installed.delete(known)
        self.crm_state.disabled.save(Disabled(id=where))

    def is_installed(self, account: CrmAccount, client: OAuthClient) -> bool:
        """Whether the integration stands in the account."""
        return self.crm_state.installed.get(f"{account.amojo_id}/{client.id}") is not None

    def _of(self, account: CrmAccount, client: OAuthClient) -> list[Token]:
        return [one for one in self.crm_state.tokens.of(account.amojo_id) if one.client == client.id]

    def _authenticate(self, order: TokenOrder) -> None:
        for name in ("client_id", "client_secret", "grant_type", "redirect_uri"):
            if not getattr(order, name):
                raise Denied(400, f"Check the `{name}` parameter")
        known = {one.id: one for one in self.config.oauth}.get(order.client_id)
        if known is None or not secrets.compare_digest(known.secret.encode(), order.client_secret.encode()):
            raise Denied(401, "Client authentication failed")
        if known.redirect_uri and order.redirect_uri != known.redirect_uri:
            raise Denied(400, "Invalid redirect URI")

    def _spend(self, kind: str, name: str, value: str, client_id: str) -> Token:
        if not value:
            raise Denied(400, f"Check the `{'code' if kind == 'code' else 'refresh_token'}` parameter")
        token = self.crm_state.tokens.get(value)
        if token is None or token.kind != kind:
            raise Denied(400, f"The {name} is unknown, used or revoked")
        if token.client != client_id:
            raise Denied(400, f"The {name} was not issued to this client")
        self.crm_state.tokens.delete(token)
        if token.expires <= time.time():
            raise Denied(400, f"The {name} has expired")
        return token

    def _issue(self, kind: str, account: str, client: str, seconds: float, redirect_uri: str = "") -> str:
        now = time.time()
        for old in self.crm_state.tokens:
            if old.expires and old.expires < now - FORGET_SECONDS:
                self.crm_state.tokens.delete(old)
        token = Token(
            id=secrets.token_urlsafe(48),
            kind=kind,
            account=account,
            client=client,
            expires=now + seconds,
            redirect_uri=redirect_uri,
        )
        return self.crm_state.tokens.save(token).id
