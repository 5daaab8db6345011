"""A browser stays signed in for 12 hours by a signed cookie that every web process with our keys can read.

Nothing is stored: the cookie is a random id and the time of signing in, signed by itsdangerous. The key comes
from the master key and the admin key, so a change of either signs everybody out. A form carries a token that
is signed over the id of its session, so a token of another session, or of another site, is worth nothing.
"""

import secrets
import time
from collections.abc import Callable
from hashlib import sha256

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from itsdangerous import BadSignature, Signer, TimestampSigner
from msgspec import Struct

from app.config.settings import Keys

SESSION_SECONDS = 12 * 3600  # Chosen: a working day, so that nobody signs in twice a day.
ID_BYTES = 16
KEY_MARK = "~"  # Stands in no id and no key.
COOKIE_CHARACTERS_MAX = 200  # Ours has up to 112: a longer one is not worth a signature.


class Session(Struct, frozen=True):
    """A signed-in browser; `key` is the id of the key that it gave, None for the admin key that we have."""

    id: bytes
    key: str | None = None


class Sessions:
    """Makes and reads session cookies, and the tokens that bind a form to a session."""

    def __init__(self, keys: Keys, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` is in unix seconds, the same on every process with our keys."""
        salt = sha256(keys.admin.encode()).digest()
        key = HKDF(SHA256(), 32, salt, b"chatledger console session").derive(keys.master)
        self._cookies = _CookieSigner(key, clock)
        self._forms = Signer(key, salt=b"form", key_derivation="hmac", digest_method=sha256)

    def start(self, key: str | None = None) -> str:
        """The cookie of a new session of a key, by its id; None is the admin key."""
        return self._cookies.sign(f"{secrets.token_urlsafe(ID_BYTES)}{KEY_MARK}{key or ''}").decode()

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None if the cookie is not ours or too old."""
        if len(cookie) > COOKIE_CHARACTERS_MAX:
            return None
        try:
            text = self._cookies.unsign(cookie, max_age=SESSION_SECONDS)
        except BadSignature:
            return None
        _, _, key = text.decode().partition(KEY_MARK)
        return Session(text, key or None)

    def form_token(self, bound_to: bytes) -> str:
        """The token for forms of the session, or of the visit to the login page, with this id."""
        return self._forms.get_signature(bound_to).decode()

    def is_form_token(self, token: str, bound_to: bytes) -> bool:
        """Whether a form came from a page of ours, compared in constant time."""
        return self._forms.verify_signature(bound_to, token)


class _CookieSigner(TimestampSigner):
    """Signs with SHA-256 in place of the library's SHA-1, and with the time of `clock`."""

    def __init__(self, key: bytes, clock: Callable[[], float]) -> None:
        super().__init__(key, salt=b"session", key_derivation="hmac", digest_method=sha256)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock())
