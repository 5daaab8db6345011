"""Sessions of the settings page: one user of one account, for an hour, signed and kept nowhere.

The same session comes as a cookie, or as a bearer that the page keeps in memory where the browser refuses a
cookie to a framed page. A bearer is short-lived, because a script can read it. The key comes from the master
key and the admin key, as that of the console's sessions, so every web process reads them.
"""

import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Literal, TypeAlias

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from itsdangerous import BadSignature, Signer, TimestampSigner
from itsdangerous.encoding import base64_decode, base64_encode
from msgspec import Struct

from app.config.settings import Keys

Kind: TypeAlias = Literal["cookie", "bearer"]
# Chosen: Kommo gives another token whenever the page asks for one, so nobody notices that these end.
SECONDS: dict[Kind, int] = {"cookie": 3600, "bearer": 900}
ID_BYTES = 16
CHARACTERS_MAX = 1000  # Ours have some 350: a longer one is not worth a signature.


class Visitor(Struct, frozen=True):
    """A user of an account, by the CRM's numbers, and the account by its amojo id; `id` is the session's."""

    account_id: str
    crm_id: int
    user_id: int | None
    is_admin: bool
    id: str = ""


class SettingsSessions:
    """Makes and reads sessions, and the tokens that bind a change to a session."""

    def __init__(self, keys: Keys, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` is in unix seconds, the same on every process with our keys."""
        salt = sha256(keys.admin.encode()).digest()
        key = HKDF(SHA256(), 32, salt, b"chatledger settings session").derive(keys.master)
        self._signers: dict[Kind, TimestampSigner] = {
            kind: _Timed(key, f"settings {kind}", clock) for kind in SECONDS
        }
        self._forms = Signer(key, salt=b"form", key_derivation="hmac", digest_method=sha256)

    def start(self, visitor: Visitor) -> dict[Kind, str]:
        """A session of a visitor, as a cookie and as a bearer."""
        session = msgspec.structs.replace(visitor, id=secrets.token_urlsafe(ID_BYTES))
        text = base64_encode(msgspec.json.encode(session))
        return {kind: signer.sign(text).decode() for kind, signer in self._signers.items()}

    def read(self, kind: Kind, text: str) -> Visitor | None:
        """Whose session it is; None if it is not ours, is too old, or is of the other kind."""
        if not text or len(text) > CHARACTERS_MAX:
            return None
        try:
            signed = self._signers[kind].unsign(text, max_age=SECONDS[kind])
        except BadSignature:
            return None
        return msgspec.json.decode(base64_decode(signed), type=Visitor)

    def form_token(self, visitor: Visitor) -> str:
        """The token that a change needs which comes with this session's cookie."""
        return self._forms.get_signature(visitor.id).decode()

    def is_form_token(self, token: str, visitor: Visitor) -> bool:
        """Whether a change comes from a page of this session, compared in constant time."""
        return self._forms.verify_signature(visitor.id, token)


class _Timed(TimestampSigner):
    """Signs with SHA-256 in place of the library's SHA-1, and with the time of `clock`."""

    def __init__(self, key: bytes, salt: str, clock: Callable[[], float]) -> None:
        super().__init__(key, salt=salt.encode(), key_derivation="hmac", digest_method=sha256)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock())
