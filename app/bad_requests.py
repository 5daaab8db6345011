"""Bad requests: each is counted under its kind, and a kind is logged at most once a second."""

import logging
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

from msgspec import Struct

from app import metrics

Kind: TypeAlias = Literal[
    "head_timeout",
    "body_timeout",
    "head_too_large",
    "malformed",
    "pipelined",
    "unread",
    "evicted",
    "no_room",
    "wrong_key",
    "wrong_signature",
]
LOG_SECONDS = 1.0  # Chosen: a flood of bad requests writes at most a line a second for each kind.
log = logging.getLogger("chatledger.web")


class _Latest(Struct):
    """When a kind was logged last, and what has come since."""

    logged: float
    unlogged: int = 0
    source: str = ""
    detail: str = ""


class BadRequests:
    """The counts of this process; `clock` is in monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: dict[str, _Latest] = {}

    def count(self, kind: Kind, source: str, detail: str) -> None:
        """Count one, and log it unless one of its kind was logged within the last second.

        `detail` is ours or a parser's sentence, never a text of the client.
        """
        metrics.BAD_REQUESTS.labels(kind).inc()
        now = self._clock()
        latest = self._latest.get(kind)
        if latest is None or now - latest.logged >= LOG_SECONDS:
            more = latest.unlogged if latest else 0
            self._latest[kind] = _Latest(now)
            _write(kind, source, detail, more)
            return
        latest.unlogged += 1
        latest.source, latest.detail = source, detail

    def flush(self) -> None:
        """Log what was held back, once its second is over."""
        now = self._clock()
        for kind, latest in self._latest.items():
            if latest.unlogged and now - latest.logged >= LOG_SECONDS:
                source, detail, more = latest.source, latest.detail, latest.unlogged - 1
                self._latest[kind] = _Latest(now)
                _write(kind, source, detail, more)


def _write(kind: str, source: str, detail: str, more: int) -> None:
    others = f" (and {more} more)" if more else ""
    log.warning("bad request: %s from %s: %s%s", kind, source or "?", detail, others)


BAD_REQUESTS = BadRequests()
