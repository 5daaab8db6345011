"""Commands that wait for a writer: in the order of their arrival within a scope, while the scopes take turns.

Theory of operation. Deficit round robin: each scope that has commands waiting is in the ring once. At its
turn a scope gets `TURN_BYTES` of credit, and its commands move into the batch while it has credit; what the
last of them costs too much is a debt, which its next turns pay. So a scope that posts at full speed delays
the commands of another by a turn, not by all that waits, and neither adding nor taking a command costs more
the more scopes and commands wait. A scope that is alone in the ring fills the batch without any accounts.

What delivery records has turns of its own in its scope: otherwise each outcome would wait behind all that the
scope posts, and the scope's deliveries would stand still.

Invariant. Commands of one place in the ring leave in the order in which they came, except those that are put
back: they go first.
"""

from collections import deque
from collections.abc import Iterator
from itertools import takewhile

from app.ledger.batch import Pending
from domain import commands as c

# Chosen: some eight messages.
TURN_BYTES = 16 * 1024
# Chosen: what a command costs beside its bytes, in bytes, so that small ones are not for nothing.
COMMAND_BYTES = 1024
# Chosen: what is posted at full speed has more commands waiting than this, and a person's account never has.
CROWD = 64
OUTCOMES = {c.Accept, c.Complete, c.Defer, c.Park, c.Reject}


class _Waiting:
    """The commands of one place in the ring; `credit` in bytes is what it may still move in its turn."""

    def __init__(self, key: str, scope_id: str) -> None:
        self.key, self.scope_id = key, scope_id
        self.pending: deque[Pending] = deque()
        self.credit = 0


class Queue:
    """Commands of all scopes; `taken` while some of them are in a writer's batch.

    `count` is how many commands wait, `crowds` how many places in the ring have more than CROWD of them.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.taken = False
        self.crowds = 0
        self.count = 0
        self._ring: deque[_Waiting] = deque()
        self._marked = 0  # `alone`: only what is put back can be
        self._scopes: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        """How many commands wait."""
        return self.count

    def __iter__(self) -> Iterator[Pending]:
        """Every command that waits, a scope after the other."""
        for waiting in self._ring:
            yield from waiting.pending

    def waiting(self, scope_id: str) -> int:
        """How many commands of a scope wait, without the outcomes of its deliveries."""
        waiting = self._scopes.get(scope_id)
        return len(waiting.pending) if waiting else 0

    def put(self, pending: Pending) -> bool:
        """Add a command behind the others of its place; returns whether its scope has no crowd here."""
        waiting = self._of(pending)
        waiting.pending.append(pending)
        self.count += 1
        self.bytes += pending.size
        if len(waiting.pending) == CROWD + 1:
            self.crowds += 1
        return not (self.crowds and self._is_crowded(waiting))

    def _is_crowded(self, waiting: _Waiting) -> bool:
        """Whether the scope of a place has a crowd here, in this place or in its other one."""
        return max(len(waiting.pending), self.waiting(waiting.scope_id)) > CROWD

    def put_back(self, pending: Pending) -> None:
        """Put a command that must be tried again ahead of the others of its place."""
        waiting = self._of(pending).pending
        waiting.appendleft(pending)
        self._marked += pending.alone
        self.count += 1
        self.bytes += pending.size
        if len(waiting) == CROWD + 1:
            self.crowds += 1

    def _of(self, pending: Pending) -> _Waiting:
        scope_id = pending.command.scope.scope_id
        key = f"outcomes {scope_id}" if type(pending.command) in OUTCOMES else scope_id
        waiting = self._scopes.get(key)
        if waiting is None:
            waiting = self._scopes[key] = _Waiting(key, scope_id)
            self._ring.append(waiting)
        return waiting

    def move_to(self, batch: list[Pending], most: int, *, calm: bool = False) -> None:
        """Move commands into a batch until it holds `most`; a command marked `alone` goes alone.

        `calm`: scopes that have a crowd here wait.
        """
        if batch and batch[-1].alone:  # From another queue.
            return
        if len(self._ring) == 1 and not calm and not self._marked and self.count <= most - len(batch):
            self._move_all(batch)
            return
        skipped = 0
        while self._ring and len(batch) < most and skipped < len(self._ring):
            waiting = self._ring[0]
            if calm and self._is_crowded(waiting):
                self._ring.rotate(-1)
                skipped += 1
                continue
            skipped = 0
            alone = len(self._ring) == 1
            if not alone:
                waiting.credit += TURN_BYTES
            count = len(batch)
            whole = self._move(waiting, batch, most, alone)
            if len(batch) > count:
                self.taken = True
            if not waiting.pending:
                self._ring.popleft()
                del self._scopes[waiting.key]
            elif not alone:
                self._ring.rotate(-1)
            if whole:
                return

    def _move_all(self, batch: list[Pending]) -> None:
        """Move what the only place in the ring has, as nearly always when one scope is at work."""
        batch.extend(self._ring.pop().pending)
        self._scopes.clear()
        self.count = self.bytes = self.crowds = 0
        self.taken = True

    def _move(self, waiting: _Waiting, batch: list[Pending], most: int, alone: bool) -> bool:
        """Move commands of one place; returns whether the batch takes no more, because of one marked `alone`.

        `alone`: no other scope waits, so credit does not count.
        """
        pending = waiting.pending
        while pending and len(batch) < most and (alone or waiting.credit > 0):
            if batch and (pending[0].alone or batch[-1].alone):
                return True
            one = pending.popleft()
            self._marked -= one.alone
            if len(pending) == CROWD:
                self.crowds -= 1
            self.count -= 1
            self.bytes -= one.size
            if not alone:
                waiting.credit -= one.size + COMMAND_BYTES
            batch.append(one)
        if alone:
            waiting.credit = 0
        return False

    def older(self, since: float) -> list[Pending]:
        """Returns the commands that came before a time, in seconds of the loop's clock."""
        return [
            one
            for waiting in self._ring
            for one in takewhile(lambda each: each.since < since, waiting.pending)
        ]
