"""Kommo's one-time token: who of which account opened a window, signed with the integration's secret.

https://developers.kommo.com/docs/one-time-tokens
"""

import base64
import hmac
import json
import time
from urllib.parse import urlsplit
from uuid import uuid4

from ops.sandbox.config import CrmAccount, OAuthClient

TOKEN_SECONDS = 30 * 60


def one_time(client: OAuthClient, claims: dict[str, object], *, algorithm: str = "HS256") -> str:
    """The token of these claims; with the algorithm `none` it has no signature."""
    head = {"typ": "JWT", "alg": algorithm}
    text = f"{_part(json.dumps(head).encode())}.{_part(json.dumps(claims).encode())}"
    signed = hmac.digest(client.secret.encode(), text.encode(), "sha256") if algorithm == "HS256" else b""
    return f"{text}.{_part(signed)}"


def claims_of(
    client: OAuthClient, account: CrmAccount, *, address: str, redirect_uri: str, user_id: int, is_admin: bool
) -> dict[str, object]:
    """What the token says; `address` is the account's, like https://acme.kommo.com."""
    now, home = int(time.time()), urlsplit(redirect_uri)
    return {
        "iss": address,
        "aud": f"{home.scheme}://{home.netloc}",
        "jti": str(uuid4()),
        "iat": now,
        "nbf": now,
        "exp": now + TOKEN_SECONDS,
        "account_id": account.id,
        "user_id": user_id,
        "client_uuid": client.id,
        "subdomain": account.subdomain,
        "is_admin": is_admin,
    }


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
