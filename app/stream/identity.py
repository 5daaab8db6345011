"""Who we are to NATS servers, and whom we take for one: the files that the settings name."""

import base64
import binascii
import re
import ssl
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Struct

CREDENTIALS, CA, CERTIFICATE = (
    "CHATLEDGER_NATS_CREDENTIALS",
    "CHATLEDGER_NATS_CA",
    "CHATLEDGER_NATS_CERTIFICATE",
)
# An nkey is base32 of its kind (one byte, or two in a seed), 32 bytes of Ed25519, and a CRC-16 of these.
SEED = re.compile(rb"\bSU[A-Z2-7]{56}\b")
SEED_PADDING = b"======"  # which nkeys leave out
USER_KIND = bytes([20 << 3])  # it makes the first letter a U
TOKEN = re.compile(rb"BEGIN NATS USER JWT-+\s+(\S+)\s")


class BadIdentity(OSError):
    """A file cannot be read, or holds something else; the message names its setting and what to do."""


class Identity(Struct, frozen=True):
    """The files; without them the URL alone says who we are, and the system knows the authorities.

    `credentials` is a .creds file, or holds the seed of a user's nkey. `certificate` is ours; its key is in
    the same file, or in `key`.
    """

    credentials: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def options(self) -> dict[str, Any]:
        """The files as arguments of nats-py's `connect`. Raises BadIdentity."""
        found: dict[str, Any] = {"tls": self._tls()} if self.ca or self.certificate else {}
        if self.credentials:
            self.sign("")
            found["signature_cb"] = self.sign
            if not self.public_key():
                found["user_jwt_cb"] = self._token
        return found

    def public_key(self) -> str | None:
        """The name of our nkey, if the credentials are its seed alone. Raises BadIdentity."""
        if not self.credentials or TOKEN.search(_read(CREDENTIALS, self.credentials)):
            return None
        raw = self._key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        named = USER_KIND + raw
        return base64.b32encode(named + _check(named)).rstrip(b"=").decode()

    def sign(self, nonce: str) -> bytes:
        """Our signature of what a server has made up, in base64. Raises BadIdentity.

        The file is read anew for each connection, because credentials are renewed while we run.
        """
        return base64.b64encode(self._key().sign(nonce.encode()))

    def _key(self) -> Ed25519PrivateKey:
        assert self.credentials
        if seed := SEED.search(_read(CREDENTIALS, self.credentials)):
            raw = base64.b32decode(seed[0] + SEED_PADDING)
            if _check(raw[:-2]) == raw[-2:]:
                return Ed25519PrivateKey.from_private_bytes(raw[2:-2])
        raise BadIdentity(
            f"{CREDENTIALS}: {self.credentials} holds no key of a user: give a .creds file, or a file with "
            "the seed of a user's nkey, which begins with SU"
        )

    def _token(self) -> bytearray:
        assert self.credentials
        if found := TOKEN.search(_read(CREDENTIALS, self.credentials)):
            return bytearray(found[1])
        raise BadIdentity(f"{CREDENTIALS}: {self.credentials} no longer holds a user's JWT: put it back")

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:  # Also ssl.SSLError, for what is no certificate.
            raise _unusable(CA, (self.ca,), error) from error
        if self.certificate:
            try:
                context.load_cert_chain(self.certificate, self.key, _no_password)
            except OSError as error:
                raise _unusable(CERTIFICATE, (self.certificate, self.key), error) from error
        return context


def _no_password() -> str:
    """Without it OpenSSL would ask for the password of an encrypted key on the terminal."""
    return ""


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(setting, (path,), error) from error


def _unusable(setting: str, paths: tuple[Path | None, ...], error: OSError) -> BadIdentity:
    names = " and ".join(str(path) for path in paths if path)
    if not isinstance(error, ssl.SSLError):
        return BadIdentity(f"{setting}: {names} cannot be read: {error.strerror}")
    kind = (
        "the PEM certificate of an authority"
        if setting == CA
        else "a PEM certificate and its key, unencrypted"
    )
    return BadIdentity(f"{setting}: {names} cannot be used ({error.reason or error}): give {kind}")


def _check(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")
