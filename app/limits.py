"""DOC"""

import re

AHEAD_MS_MAX = 24 * 3_600_000
EARLIEST_MS = 946_684_800_000  # 2000-01-01
NESTING_MAX = 64
CODES = (901, 902, 903, 904, 905)
STATUS_CODES = {"delivered": 1, "read": 2, "failed": -1}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID in lower case, as all our ids are."""
    return _UUID.fullmatch(text) is not None


def too_deep(value: object, left: int = NESTING_MAX) -> bool:
    """Whether objects and arrays are nested deeper than every reader of an event can follow."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(too_deep(each, left - 1) for each in inner)
