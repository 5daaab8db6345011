"""Kommo's one-time tokens: which user of which account opens our page, said by Kommo and believed once.

A token is a JWT that Kommo signs with the integration's secret (HS256); no other algorithm is taken, whatever
a token says of itself. Its `aud` is the origin of our redirect URL. Its `jti` is good once on all processes
together: the database keeps the used ones until they have expired. Whether `iss` is the account's address is
for the caller to check, who knows the account.
"""

from hashlib import sha256
from typing import Annotated
from urllib.parse import urlsplit

import jwt
import msgspec
from msgspec import Meta, Struct

from app.config.file import OAuthApp
from app.database.pool import Pool

ALGORITHM = "HS256"
LEEWAY_SECONDS = 60  # Chosen: what two clocks that are set by NTP differ by at most, and more.
TOKEN_CHARACTERS_MAX = 4096  # Chosen: Kommo's have some 600.
REQUIRED = ["iss", "aud", "jti", "iat", "nbf", "exp", "account_id", "client_uuid"]
FORGET = "DELETE FROM ledger.one_time_tokens WHERE expires_at < now()"
USE = """INSERT INTO ledger.one_time_tokens (id, expires_at) VALUES (%s, to_timestamp(%s))
 ON CONFLICT (id) DO NOTHING"""
Number = Annotated[int, Meta(gt=0, lt=2**53)]


class TokenUnusable(Exception):
    """A one-time token proves nothing; the message says why."""


class Claims(Struct, frozen=True):
    """A token's claims, as Kommo documents them; times are in unix seconds."""

    iss: str
    jti: Annotated[str, Meta(min_length=1, max_length=255)]
    exp: float
    account_id: Number
    client_uuid: str
    user_id: Number | None = None
    subdomain: str = ""
    is_admin: bool = False


def read(token: str, app: OAuthApp) -> Claims:
    """The claims of a token that Kommo signed for this integration, now. Raises TokenUnusable."""
    if not token or len(token) > TOKEN_CHARACTERS_MAX:
        raise TokenUnusable("it is missing")
    try:
        found = jwt.decode(
            token,
            app.client_secret,
            algorithms=[ALGORITHM],
            audience=origin_of(app.redirect_url),
            leeway=LEEWAY_SECONDS,
            options={"require": REQUIRED},
        )
        claims = msgspec.convert(found, Claims)
    except jwt.ExpiredSignatureError:
        raise TokenUnusable("it has expired") from None
    except (jwt.InvalidTokenError, msgspec.ValidationError) as error:
        raise TokenUnusable(str(error)) from None
    if claims.client_uuid.lower() != app.client_id.lower():
        raise TokenUnusable("it is for another integration")
    return claims


async def use(pool: Pool, claims: Claims) -> bool:
    """Whether this is the first use of a token on any process. Raises psycopg.OperationalError."""
    name = sha256(claims.jti.encode()).digest()
    async with pool.connection() as db:
        await db.execute(FORGET)
        cursor = await db.execute(USE, (name, claims.exp + LEEWAY_SECONDS))
        return cursor.rowcount == 1


def origin_of(url: str) -> str:
    """The origin of an address as browsers write it: scheme, host, and a port that is not the usual one."""
    parts = urlsplit(url)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, usual) else f":{parts.port}"
    return f"{parts.scheme}://{(parts.hostname or '').lower()}{port}"
