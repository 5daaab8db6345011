"""Kommo's one-time tokens, as Kommo and as a forger would make them, and a visitor of the settings page."""

import time
from typing import Any, NamedTuple
from uuid import uuid4

import jwt

from tests.support.crm_service import Office
from tests.support.ids import ACCOUNT, CLIENT, CLIENT_SECRET, CRM_ID
from tests.support.service import Answer

Json = dict[str, Any]


def claims_of(office: Office, **changed: Any) -> Json:
    """The claims of a token for an administrator of the account; what is given as None is left out."""
    now = int(time.time())
    claims = {
        "iss": office.sandbox.url,
        "aud": office.url,
        "jti": str(uuid4()),
        "iat": now,
        "nbf": now,
        "exp": now + 1800,
        "account_id": CRM_ID,
        "subdomain": "acme",
        "client_uuid": CLIENT,
        "user_id": 7_700_001,
        "is_admin": True,
    } | changed
    return {name: value for name, value in claims.items() if value is not None}


def token_of(office: Office, *, key: str = CLIENT_SECRET, algorithm: str = "HS256", **changed: Any) -> str:
    """A token of Kommo's, or one that is spoilt."""
    return jwt.encode(claims_of(office, **changed), key, algorithm)


class Visit(NamedTuple):
    """A session of the settings page, and what it asks: by its cookie, or by its bearer."""

    office: Office
    began: Json
    cookie: str
    account: str = ACCOUNT

    async def get(self, part: str = "", **more: Any) -> Answer:
        """A part of the page, in English unless `lang` says otherwise."""
        return await self.ask("GET", part, **more)

    async def post(self, part: str, fields: Json | None = None, **more: Any) -> Answer:
        """A change."""
        return await self.ask("POST", part, data=fields or {}, **more)

    async def ask(self, method: str, part: str, **more: Any) -> Answer:
        bearer, csrf = more.pop("bearer", False), more.pop("csrf", self.began["csrf"])
        account, lang = more.pop("account", self.account), more.pop("lang", "en")
        headers = {"Authorization": f"Bearer {self.began['bearer']}"} if bearer else {"Cookie": self.cookie}
        headers |= {"X-CSRF-Token": csrf} if csrf else {}
        path = f"/settings/accounts/{account}{part}"
        return await self.office.request(method, path, params={"lang": lang}, headers=headers, **more)


async def enter(office: Office, token: str, **headers: str) -> Answer:
    """Exchange a token for a session."""
    return await office.request("POST", "/settings/session", headers={"X-Auth-Token": token, **headers})


async def visit(office: Office, **changed: Any) -> Visit:
    """A visitor who is let in."""
    answer = await enter(office, token_of(office, **changed))
    assert answer.status == 200, answer
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    return Visit(office, answer.body, cookie, answer.body["account_id"])
