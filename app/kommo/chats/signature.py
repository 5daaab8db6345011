"""X-Signature of Kommo's Chats API, both ways.

A request's is the HMAC-SHA1 over METHOD, Content-MD5, Content-Type, Date and path, each on a line, keyed with
the channel's secret as text, in lower-case hex. A hook's is the HMAC-SHA1 over its body.

Source: https://developers.kommo.com/reference/chats-api-authorization-and-headers.
"""

import hashlib
import hmac
from functools import lru_cache

from msgspec import Struct

from app.channels.directory import ActiveScope

# Chosen: the connections that are busy at the same time; an entry takes less than 1 KB.
KEYS_KEPT = 1024
BLOCK = 64  # bytes of SHA-1's block

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
    """Kommo's X-Signature: HMAC-SHA1 of the body as sent, or without the newline that it may append.

    Kommo may still sign with the secret before the last change of it.
    """
    received = signature.lower().encode("latin-1", "replace")
    if _signed(scope.key, body, received):
        return True
    old = scope.old_key()
    return old is not None and _signed(old, body, received)


def _signed(key: bytes, body: bytes, received: bytes) -> bool:
    return _matches(key, body, received) or (
        body[-1:] in (b"\n", b"\r") and _matches(key, body.rstrip(b"\r\n"), received)
    )


def _matches(key: bytes, body: bytes, received: bytes) -> bool:
    inner, outer = (each.copy() for each in _padded(key))
    inner.update(body)
    outer.update(inner.digest())
    return hmac.compare_digest(received, outer.hexdigest().encode())


@lru_cache(maxsize=KEYS_KEPT)
def _padded(key: bytes) -> "tuple[hashlib._Hash, hashlib._Hash]":
    """The two hashes of an HMAC (RFC 2104), which have their pads: copying these costs half of what `hmac`
    takes with its key at hand, and a third of what it takes without.
    """
    block = (hashlib.sha1(key, usedforsecurity=False).digest() if len(key) > BLOCK else key).ljust(
        BLOCK, b"\0"
    )
    pads = (bytes(each ^ pad for each in block) for pad in (0x36, 0x5C))
    inner, outer = (hashlib.sha1(pad, usedforsecurity=False) for pad in pads)
    return inner, outer
