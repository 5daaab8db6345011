"""A page's values as PostgreSQL's binary arrays, so that one statement stores thousands of rows.

Each function builds one column from values in row order. The classes are bytes, which the connection sends as
they are, with the array type in `OID`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import repeat
from struct import Struct
from typing import ClassVar, TypeAlias

from domain.events import AnyEvent

Page: TypeAlias = Sequence[tuple[int, AnyEvent]]
Statement: TypeAlias = tuple[str, tuple[object, ...]]

# What a view chooses as its `ON_FAULT`, for an event that it cannot take. Either way the event is parked for
# the view, where everybody who looks after the service sees it, and a rebuild takes it up.
GO_ON = "go on"  # without the event: the rest is worth more than nothing
STAND_STILL = "stand still"  # before the event: what comes later is wrong without it

_HEADER = Struct(">iiIii")  # dimensions, has nulls, element type, length, lower bound
_LONG = Struct(">iq")
_INT = Struct(">ii")
_SMALL = Struct(">ih")
_SIZE = Struct(">i").pack
_NULL = _SIZE(-1)
_NULL_DIGITS, _UUID_DIGITS = _NULL.hex(), _SIZE(16).hex()
_TRUE, _FALSE = _SIZE(1) + b"\x01", _SIZE(1) + b"\x00"
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Column(bytes):
    """An array in PostgreSQL's binary format."""

    OID: ClassVar[int]
    ELEMENT: ClassVar[int]


class Longs(Column):
    """bigint[]"""

    OID, ELEMENT = 1016, 20


class Ints(Column):
    """integer[]"""

    OID, ELEMENT = 1007, 23


class Smalls(Column):
    """smallint[]"""

    OID, ELEMENT = 1005, 21


class Booleans(Column):
    """boolean[]"""

    OID, ELEMENT = 1000, 16


class Texts(Column):
    """text[]"""

    OID, ELEMENT = 1009, 25


class Blobs(Column):
    """bytea[]"""

    OID, ELEMENT = 1001, 17


class Uuids(Column):
    """uuid[]"""

    OID, ELEMENT = 2951, 2950


class Times(Column):
    """timestamptz[]"""

    OID, ELEMENT = 1185, 1184


COLUMNS: tuple[type[Column], ...] = (Longs, Ints, Smalls, Booleans, Texts, Blobs, Uuids, Times)


def longs(values: Sequence[int]) -> Longs:
    """Build a column of 64-bit integers without nulls."""
    return Longs(_head(Longs, len(values)) + b"".join(map(_LONG.pack, repeat(8), values)))


def longs_or_null(values: Sequence[int | None]) -> Longs:
    """Build a column of 64-bit integers."""
    items = [_NULL if value is None else _LONG.pack(8, value) for value in values]
    return Longs(_head(Longs, len(values)) + b"".join(items))


def ints(values: Sequence[int]) -> Ints:
    """Build a column of 32-bit integers without nulls."""
    return Ints(_head(Ints, len(values)) + b"".join(map(_INT.pack, repeat(4), values)))


def smalls(values: Sequence[int]) -> Smalls:
    """Build a column of 16-bit integers without nulls."""
    return Smalls(_head(Smalls, len(values)) + b"".join(map(_SMALL.pack, repeat(2), values)))


def booleans(values: Sequence[bool]) -> Booleans:
    """Build a column of booleans without nulls."""
    return Booleans(_head(Booleans, len(values)) + b"".join([_TRUE if v else _FALSE for v in values]))


def texts(values: Sequence[str | None]) -> Texts:
    """Build a column of text; NUL, which PostgreSQL rejects, becomes U+FFFD."""
    return Texts(_head(Texts, len(values)) + b"".join(map(_text, values)))


def texts_repeated(values: Sequence[str | None]) -> Texts:
    """Build the column of `texts`, faster where most values occur several times."""
    packed = {value: _text(value) for value in set(values)}
    return Texts(_head(Texts, len(values)) + b"".join(map(packed.__getitem__, values)))


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    raw = plain(value).encode()
    return _SIZE(len(raw)) + raw


def plain(text: str) -> str:
    """Returns the text with NUL replaced, because no input from outside may stop the views."""
    return text.replace("\0", "\ufffd")


def blobs(values: Sequence[bytes | None]) -> Blobs:
    """Build a column of byte strings."""
    items = [_NULL if v is None else _SIZE(len(v)) + v for v in values]
    return Blobs(_head(Blobs, len(values)) + b"".join(items))


def uuids(values: Sequence[str | None]) -> Uuids:
    """Build a column of UUIDs from their 36 characters, in one conversion."""
    digits = "".join([_NULL_DIGITS if v is None else _UUID_DIGITS + v for v in values])
    return Uuids(_head(Uuids, len(values)) + bytes.fromhex(digits.replace("-", "")))


def uuids_repeated(values: Sequence[str | None]) -> Uuids:
    """Build the column of `uuids`, faster where most values occur several times."""
    unhex = bytes.fromhex
    packed = {v: _NULL if v is None else unhex(_UUID_DIGITS + v.replace("-", "")) for v in set(values)}
    return Uuids(_head(Uuids, len(values)) + b"".join(map(packed.__getitem__, values)))


def times(values: Sequence[str | None]) -> Times:
    """Build a column of instants from the text of events, `2026-11-22T08:00:00.000Z`."""
    seconds, thousandths = _Seconds(), _THOUSANDTHS
    items = [_NULL if v is None else _LONG.pack(8, seconds[v[:19]] + thousandths[v[19:]]) for v in values]
    return Times(_head(Times, len(items)) + b"".join(items))


class _Seconds(dict[str, int]):
    """PostgreSQL's number of a second: microseconds since 2000-01-01 UTC; cached, because a page has few."""

    def __missing__(self, text: str) -> int:
        passed = datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH
        self[text] = number = (passed.days * 86_400 + passed.seconds) * 1_000_000
        return number


_THOUSANDTHS = {f".{number:03d}Z": number * 1000 for number in range(1000)}


def _head(column: type[Column], length: int) -> bytes:
    # The flag for nulls may be set although there are none; an empty array has no dimensions.
    head = _HEADER.pack(1 if length else 0, 1, column.ELEMENT, length, 1)
    return head if length else head[:12]
