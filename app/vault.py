"""Everything that the database keeps secret is sealed here, with AES-256-GCM and the operator's master key.

A sealed value is a random 12-byte nonce, the ciphertext and its tag. The name of the owner is authenticated
too, so that a value copied to another owner's row cannot be opened.
"""

import os
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

# The size that NIST SP 800-38D recommends for GCM. Random nonces stay safe for 2^32 values under one key.
NONCE_BYTES = 12

AnyStruct = TypeVar("AnyStruct", bound=Struct)


class WrongMasterKey(Exception):
    """The secrets in the database were sealed with another master key: set CHATLEDGER_MASTER_KEY to it."""


class Vault:
    """Seals structs with the master key (32 bytes) and opens them again."""

    def __init__(self, master: bytes) -> None:
        self._cipher = AESGCM(master)

    def seal(self, name: str, secrets: Struct) -> bytes:
        """Encrypts `secrets` as JSON, bound to its owner's `name`."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, msgspec.json.encode(secrets), name.encode())

    def open(self, name: str, sealed: bytes, kind: type[AnyStruct], *, subject: str) -> AnyStruct:
        """Returns the struct sealed under `name`. Raises WrongMasterKey; its message names the `subject`."""
        try:
            plain = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())
        except InvalidTag:
            raise WrongMasterKey(
                f"{subject} were sealed with another master key: "
                "set CHATLEDGER_MASTER_KEY to the one they were sealed with"
            ) from None
        return msgspec.json.decode(plain, type=kind)
