"""A browser stays signed in for 12 hours by a sealed cookie that every web process with our keys can read.

Nothing is kept: the cookie is a random id and an expiry under an HMAC. Its key comes from the master key and
the admin key, so changing either signs everybody out.
"""

import base64
import hmac
import secrets
import time
from collections import deque
from hashlib import sha256

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from app.config.settings import Keys

SESSION_SECONDS = 12 * 3600
ID_BYTES = 16
EXPIRY_BYTES = 8
COOKIE_CHARACTERS_MAX = 200
TRIES_MAX = 10
TRIES_SECONDS = 60.0
ADDRESSES_MAX = 1000


class Session(Struct, frozen=True):
    """A signed-in browser; `expires` is in unix seconds."""

    id: bytes
    expires: int


class Sessions:
    """Makes and reads session cookies, and the tokens that bind a form to a session."""

    def __init__(self, keys: Keys) -> None:
        salt = sha256(keys.admin.encode()).digest()
        self._key = HKDF(SHA256(), 32, salt, b"chatledger console session").derive(keys.master)

    def start(self, now: float | None = None) -> str:
        """The cookie of a new session."""
        expires = int(time.time() if now is None else now) + SESSION_SECONDS
        body = secrets.token_bytes(ID_BYTES) + expires.to_bytes(EXPIRY_BYTES)
        return _text(body + self._mac(b"session", body))

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None if it is not ours or too old."""
        if len(cookie) > COOKIE_CHARACTERS_MAX or not (raw := _bytes(cookie)):
            return None
        body, mac = raw[: ID_BYTES + EXPIRY_BYTES], raw[ID_BYTES + EXPIRY_BYTES :]
        if len(body) < ID_BYTES + EXPIRY_BYTES or not hmac.compare_digest(mac, self._mac(b"session", body)):
            return None
        session = Session(body[:ID_BYTES], int.from_bytes(body[ID_BYTES:]))
        return session if session.expires > time.time() else None

    def form_token(self, bound_to: bytes) -> str:
        """What a form of this session, or of this visit to the login page, must carry."""
        return _text(self._mac(b"form", bound_to))

    def is_form_token(self, token: str, bound_to: bytes) -> bool:
        """Whether a form came from a page of ours, compared in constant time."""
        return hmac.compare_digest(token.encode(), self.form_token(bound_to).encode())

    def _mac(self, purpose: bytes, body: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"\0" + body, "sha256")


class Tries:
    """Wrong keys by the address they came from: at most ten a minute."""

    def __init__(self) -> None:
        self._failed: dict[str, deque[float]] = {}

    def wait_seconds(self, address: str) -> int:
        """How long this address has to wait before it may try again; 0: it may."""
        failed = self._failed.get(address)
        if failed is None or len(failed) < TRIES_MAX:
            return 0
        return max(0, int(failed[0] + TRIES_SECONDS - time.monotonic() + 0.999))

    def failed(self, address: str) -> None:
        """Remember a wrong key; of very many addresses the oldest are forgotten."""
        failed = self._failed.pop(address, None) or deque(maxlen=TRIES_MAX)
        failed.append(time.monotonic())
        self._failed[address] = failed
        if len(self._failed) > ADDRESSES_MAX:
            del self._failed[next(iter(self._failed))]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return b""
