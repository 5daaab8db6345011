"""How a key of the API is written: `cl_`, 256 random bits and a checksum, in letters and digits.

By its form scanners find a key that has leaked: `cl_[0-9A-Za-z]{49}`. The last six characters are the CRC-32
of all before them, in base 62, so that hardly any other text passes for a key, and a mistyped one is refused
without a question to the database.
"""

import secrets
import zlib

PREFIX = "cl_"
SECRET_BYTES = 32
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET_DIGITS, CHECK_DIGITS = 43, 6  # as many as 256 and 32 bits have in base 62


def make_secret() -> str:
    """Returns a new key as it is shown."""
    body = PREFIX + _digits(int.from_bytes(secrets.token_bytes(SECRET_BYTES)), SECRET_DIGITS)
    return body + _checksum(body)


def is_key(text: str) -> bool:
    """Whether a text has the form of a key, and its checksum is right."""
    body, check = text[:-CHECK_DIGITS], text[-CHECK_DIGITS:]
    fits = len(text) == len(PREFIX) + SECRET_DIGITS + CHECK_DIGITS and body.startswith(PREFIX)
    return fits and text.isascii() and _checksum(body) == check


def _checksum(body: str) -> str:
    return _digits(zlib.crc32(body.encode()), CHECK_DIGITS)


def _digits(number: int, width: int) -> str:
    """A number in base 62."""
    found = []
    for _ in range(width):
        number, rest = divmod(number, len(DIGITS))
        found.append(DIGITS[rest])
    return "".join(reversed(found))
