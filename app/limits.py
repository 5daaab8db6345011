"""Limits that more than one room keeps, and Kommo's codes: each stands here once."""

import math
import re

# Of an id that its sender chooses: chosen, for Kommo documents no limit. Kommo's own ids have 36 characters.
ID_CHARACTERS_MAX = 255
# A reader that holds numbers as doubles keeps no larger one exactly (RFC 8259, section 6).
INTEGER_MAX = 2**53
# The one rule of ids: no control character and no half of a character; whatever else there is, is a name.
_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# How far a sender's clock may be ahead: chosen, so that a clock set to another time zone passes.
AHEAD_MS_MAX = 24 * 3_600_000
# How far it is believed: chosen, as clocks that are kept right differ by seconds. What is further ahead
# counts as arrived now, because one wrong clock would move everything later in its chat.
AHEAD_MS_BELIEVED = 5 * 60_000
# 2000-01-01: an earlier time comes from a clock that was never set, or from seconds taken for milliseconds.
EARLIEST_MS = 946_684_800_000
# Of objects and arrays: chosen, far above any documented object and far below the depth where readers fail.
NESTING_MAX = 64
# `error_code` of Kommo's Chats API: 901 the user deleted the conversation or the message, 902 the channel's
# side switched the integration off, 903 internal error, 904 no conversation can be made, 905 anything else.
FAILURE_CODES = (901, 902, 903, 904, 905)
OTHER_FAILURE = 905
# `delivery_status` of Kommo's Chats API; "sent" has no code.
STATUS_CODES = {"delivered": 1, "read": 2, "failed": -1}
# Of a secret: chosen, so that nobody guesses one however many tries there are.
SECRET_BITS_MIN = 128
_HEX = re.compile(r"[0-9a-fA-F]*")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID in lower case, as all our ids are."""
    return _UUID.fullmatch(text) is not None


def is_weak(secret: str) -> bool:
    """Whether a text of printable ASCII characters holds less than 128 bits, even if drawn at random.

    That takes 20 of them, or 32 hexadecimal digits.
    """
    bits = 4.0 if _HEX.fullmatch(secret) else math.log2(94)
    return len(secret) * bits < SECRET_BITS_MIN


def is_name(text: str) -> bool:
    """Whether a text can be an id that its sender chose; this does not depend on a version of Unicode."""
    return 0 < len(text) <= ID_CHARACTERS_MAX and not _NO_NAME.search(text)


def too_deep(value: object, left: int = NESTING_MAX) -> bool:
    """Whether objects and arrays are nested deeper than every reader of an event can follow."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(too_deep(each, left - 1) for each in inner)
