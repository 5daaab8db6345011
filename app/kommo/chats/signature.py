"""DOC"""

import hashlib
import hmac
from functools import lru_cache

from msgspec import Struct

from app.channels.directory import ActiveScope

KEYS_KEPT = 1024

CONTENT_TYPE = "application/json"


class Credentials(Struct, frozen=True):
    """A channel of Kommo: the path's id and the secret that signs."""

    channel_id: str
    secret: str

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Credentials({self.channel_id})"


def sign(secret: str, method: str, path: str, body: bytes, date: str) -> dict[str, str]:
    """The four headers of a request (`path` without host and query)."""
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    text = "\n".join((method, md5, CONTENT_TYPE, date, path))
    signature = hmac.digest(secret.encode(), text.encode(), "sha1").hex()
    return {"Date": date, "Content-Type": CONTENT_TYPE, "Content-MD5": md5, "X-Signature": signature}


def signed(scope: ActiveScope, signature: str, body: bytes) -> bool:
    """Kommo's X-Signature: HMAC-SHA1 of the body as sent, or without the newline that it may append."""
    given = signature.lower().encode("latin-1", "replace")
    return _signs(scope.key, body, given) or (
        body[-1:] in (b"\n", b"\r") and _signs(scope.key, body.rstrip(b"\r\n"), given)
    )


def _signs(key: bytes, body: bytes, given: bytes) -> bool:
    right = _keyed(key).copy()
    right.update(body)
    return hmac.compare_digest(given, right.hexdigest().encode())


@lru_cache(maxsize=KEYS_KEPT)
def _keyed(key: bytes) -> hmac.HMAC:
    """What signs with a key; to begin with a copy costs less than to look the algorithm up each time."""
    return hmac.new(key, digestmod="sha1")
