"""Everything that the database keeps secret is sealed here, with AES-256-GCM and the operator's master key.

A sealed value is a mark, the id of its key (`kid`), a random 12-byte nonce, the ciphertext and its tag. The
mark, the kid and the name of the owner are authenticated too, so that a value copied to another owner's row
cannot be opened. Values of chatledger 0.2 have neither mark nor kid: each key is tried on them.

A ledger that 0.2 may still work on beside us, or again after us, gets no marks: see `schema.OLDEST`.

The first key seals; all keys open. So a master key is rotated with two keys at once, in processes that need
not restart at the same moment.
"""

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from time import monotonic
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Raw, Struct

# The size that NIST SP 800-38D recommends for GCM. Random nonces stay safe for 2^32 values under one key.
NONCE_BYTES = 12
MARK = b"\x00clv"
KID_BYTES = 8  # Chosen: no two keys of one installation have the same id, and it says nothing about the key.
HEAD_BYTES = len(MARK) + KID_BYTES
RELOAD_SECONDS = 1.0  # Chosen: with a wrong key, the key files are read no more often than this.

Secret = TypeVar("Secret", bound=Struct | Raw)


class WrongMasterKey(Exception):
    """A sealed value does not open; the message names its subject and says what to set or to put back."""


def kid_of(master: bytes) -> str:
    """Returns the id of a master key, 16 hexadecimal digits; nothing about the key follows from it."""
    return _kid(master).hex()


def head_of(kid: str) -> bytes:
    """Returns what every value begins with that the key with this id sealed."""
    return MARK + bytes.fromhex(kid)


def kid_in(sealed: bytes) -> str | None:
    """Returns the id of the key that sealed a value; None for a value of chatledger 0.2."""
    return sealed[len(MARK) : HEAD_BYTES].hex() if sealed.startswith(MARK) else None


class Vault:
    """Seals structs with the first master key (32 bytes each), and opens what any of the keys sealed.

    `reload` returns the keys that are valid now, the one that seals first, or none for those that we have. It
    is called before a value is sealed, and when one does not open: another process may have rotated the key.
    Values that are not `marked` can be opened by 0.2.
    """

    def __init__(
        self,
        master: bytes,
        *old: bytes,
        reload: Callable[[], Sequence[bytes]] | None = None,
        marked: bool = True,
    ) -> None:
        self._marked = marked
        self._reload = reload
        self._reloaded = monotonic()
        self._ciphers: dict[bytes, AESGCM] = {}
        self._take((master, *old))

    @property
    def kid(self) -> str:
        """The id of the key that seals."""
        return self._first.hex()

    def seal(self, name: str, secrets: Struct | Raw) -> bytes:
        """Encrypts `secrets` as JSON (Raw: JSON already), bound to its owner's `name`."""
        if self._reload:
            self._take(self._reload())
        head, nonce = MARK + self._first if self._marked else b"", os.urandom(NONCE_BYTES)
        plain = msgspec.json.encode(secrets)
        return head + nonce + self._ciphers[self._first].encrypt(nonce, plain, head + name.encode())

    def open(self, name: str, sealed: bytes, kind: type[Secret], *, subject: str) -> Secret:
        """Returns the struct sealed under `name`. Raises WrongMasterKey; its message names the `subject`."""
        plain = self._decrypt(name, sealed)
        if plain is None and self._reload and monotonic() - self._reloaded > RELOAD_SECONDS:
            self._reloaded = monotonic()
            self._take(self._reload())
            plain = self._decrypt(name, sealed)
        if plain is None:
            raise WrongMasterKey(self._reason(sealed, subject))
        return msgspec.json.decode(plain, type=kind)

    def _take(self, masters: Sequence[bytes]) -> None:
        """Keys are only added: what was read before a rotation ended can still be opened after it."""
        if not masters:
            return
        self._ciphers |= {_kid(master): AESGCM(master) for master in masters}
        self._first = _kid(masters[0])

    def _decrypt(self, name: str, sealed: bytes) -> bytes | None:
        kid, owner = sealed[len(MARK) : HEAD_BYTES], name.encode()
        if sealed.startswith(MARK) and (cipher := self._ciphers.get(kid)):
            return _plain(cipher, sealed[HEAD_BYTES:], sealed[:HEAD_BYTES] + owner)
        attempts = (_plain(cipher, sealed, owner) for cipher in self._ciphers.values())
        return next((plain for plain in attempts if plain is not None), None)

    def _reason(self, sealed: bytes, subject: str) -> str:
        kid = kid_in(sealed)
        if kid and bytes.fromhex(kid) in self._ciphers:
            return (
                f"{subject} were sealed with our master key and changed since: "
                "put the row back from a backup, or set them again"
            )
        which = f" (kid {kid}; ours is {self.kid})" if kid else ""
        return (
            f"{subject} were sealed with another master key{which}: "
            "set CHATLEDGER_MASTER_KEY to the one they were sealed with, "
            "or beside a new one CHATLEDGER_MASTER_KEY_OLD"
        )


def _kid(master: bytes) -> bytes:
    return sha256(b"chatledger master key id" + master).digest()[:KID_BYTES]


def _plain(cipher: AESGCM, sealed: bytes, authenticated: bytes) -> bytes | None:
    try:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], authenticated)
    except (InvalidTag, ValueError):  # ValueError: shorter than a nonce.
        return None
