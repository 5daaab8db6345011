"""How long and how much a client may keep us waiting, and how many may be connected at a time.

uvicorn ends a connection only when it is idle between two requests. Here every state in which we wait for a
client has a limit, and one sweep over all connections, at most once a second, ends those that are over it: a
request costs no timer of its own.

| waiting for | since | limit |
|---|---|---|
| a head, also the first of a connection | it began, or the connection was made | `head_seconds` |
| a body | its head was complete | `body_seconds`; a long body (an import) has them for each 64 KB |
| the next request | the last answer | `idle_seconds` |
| the client to read our answer | we stopped writing | `unread_seconds` |

When the bound on connections is reached, those that have kept us waiting longest make room for a new one,
so that idle or slow clients lock nobody out; a request that is being answered is never ended for that. If
all are being answered, the new connection is refused (503).
"""

import asyncio
import heapq
import logging
import resource
from typing import Any, Protocol

from msgspec import Struct

from app import metrics
from app.bad_requests import BAD_REQUESTS
from app.places import PLACES

BACKLOG_MAX = 2048  # uvicorn's default: connections that wait while the loop is busy.
CONNECTIONS_MAX = 10_000  # Chosen: some 20 KB each; a reverse proxy needs a few hundred.
DESCRIPTORS_MAX = 65_536  # Chosen: far above CONNECTIONS_MAX, and not the billion that some systems allow.
OWN_DESCRIPTORS = 128  # Measured: a busy process with all roles has 60 for its databases.
CALLS_SHARE = 8  # Chosen: an eighth of the descriptors is for calls to Kommo and messengers, up to PLACES.
FEW = 1000  # Below that the operator is warned: a few hundred slow clients would be felt.
SWEEP_SECONDS = 1.0
EVICTED_SHARE = 50  # A fiftieth makes room at once, so that a flood does not look at all for each newcomer.
BEGUN_SECONDS = 1.0  # A head or body that has just begun makes no room: most are complete within a second.
log = logging.getLogger("chatledger.web")


class Limits(Struct, frozen=True):
    """Seconds and bytes that a client has, and how many may be connected."""

    head_seconds: float = 10.0
    body_seconds: float = 20.0
    idle_seconds: float = 75.0  # Chosen: longer than a proxy keeps one idle (nginx: 60), so it closes first.
    unread_seconds: float = 60.0
    head_bytes: int = 64 * 1024
    connections: int = CONNECTIONS_MAX
    pipelined: int = 100  # Chosen: no client that we know sends more requests ahead than a few.


class Waiting(Protocol):
    """A connection as the sweep sees it."""

    def overdue(self, now: float) -> None:
        """End it if the client has kept us waiting too long."""

    def waits_since(self) -> float | None:
        """Since when we wait for the client to send; None while a request is being answered."""

    def evict(self) -> None:
        """Close it at once."""

    def refuse(self) -> None:
        """Answer 503 and close it."""


class Perimeter:
    """The limits of one HTTP server, and the sweep that keeps them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        shortest = min(limits.head_seconds, limits.body_seconds, limits.idle_seconds, limits.unread_seconds)
        self._pause = min(SWEEP_SECONDS, shortest / 4)
        self._swept = 0.0
        metrics.CONNECTIONS_MAX.set(limits.connections)

    def admit(self, newcomer: Waiting, connections: "set[Any]") -> bool:
        """Whether a new connection may stay; makes room for it if there is none."""
        if len(connections) <= self.limits.connections:
            return True
        self._make_room(newcomer, connections)
        if len(connections) <= self.limits.connections:
            return True
        detail = f"all {self.limits.connections} connections are busy"
        BAD_REQUESTS.count("no_room", "a new connection", detail)
        newcomer.refuse()
        return False

    def sweep(self, connections: "set[Any]") -> None:
        """End the connections that are over a limit; does nothing if the last sweep was just before."""
        now = asyncio.get_running_loop().time()
        if now - self._swept < self._pause:
            return
        self._swept = now
        metrics.CONNECTIONS.set(len(connections))
        BAD_REQUESTS.flush()
        for connection in list(connections):
            connection.overdue(now)

    def _make_room(self, newcomer: Waiting, connections: "set[Any]") -> None:
        """Close those that have kept us waiting longest."""
        waiting = [
            (since, id(each), each)
            for each in connections
            if each is not newcomer and (since := each.waits_since()) is not None
        ]
        longest = heapq.nsmallest(self.limits.connections // EVICTED_SHARE + 1, waiting)
        for _, _, each in longest:
            connections.discard(each)
            each.evict()
        if longest:
            detail = f"all {self.limits.connections} connections are taken: {len(longest)} that waited"
            BAD_REQUESTS.count("evicted", "a new connection", f"{detail} longest are closed")


def raise_descriptor_limit() -> int:
    """Raise this process' limit of open files as far as is allowed and useful; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    allowed = DESCRIPTORS_MAX if hard == infinite else min(hard, DESCRIPTORS_MAX)
    if soft == infinite or soft >= allowed:
        return DESCRIPTORS_MAX if soft == infinite else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def backlog(descriptors: int) -> int:
    """How many connections may wait to be taken: they are taken all at once, and each needs a descriptor."""
    return min(BACKLOG_MAX, descriptors // 4)


def calls_for(descriptors: int) -> int:
    """How many calls to Kommo and messengers may be in flight at a time: each needs a descriptor."""
    return min(PLACES, descriptors // CALLS_SHARE)


def limits_for(descriptors: int) -> Limits:
    """The limits where so many files may be open: what we need ourselves is kept free."""
    free = descriptors - backlog(descriptors) - calls_for(descriptors) - OWN_DESCRIPTORS
    connections = min(CONNECTIONS_MAX, max(free, descriptors // 4))
    if connections < FEW:
        log.warning(
            "only %d connections at a time, because %d files may be open: raise the limit (ulimit -n, or"
            " LimitNOFILE of systemd)",
            connections,
            descriptors,
        )
    return Limits(connections=connections)
