"""Commands that wait for a writer: in the order of their arrival within a scope, while the scopes take turns.

Theory of operation. Deficit round robin, twice: each channel that has commands waiting is in the ring once,
and each of its scopes once in a ring of the channel. At its turn a channel gets `TURN_BYTES` of credit, and
so does each of its scopes that comes up. Commands move into the batch while both have credit; what the last
of them costs too much is a debt, which the next turns pay. So a scope that posts at full speed delays the
commands of another by a turn, not by all that waits, a messenger that names a thousand accounts gets no more
than one that names one, and neither adding nor taking a command costs more the more scopes and commands wait.
A scope that is alone fills the batch without any accounts.

What delivery records has turns of its own, in its channel and in its scope: otherwise each outcome would wait
behind all that the scope posts, and the scope's deliveries would stand still.

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
    """The commands of one place in a channel's ring; `credit` in bytes is what it may still move."""

    def __init__(self, key: str, scope_id: str, channel: "_Channel") -> None:
        self.key, self.scope_id, self.channel = key, scope_id, channel
        self.outcomes = key != scope_id
        self.pending: deque[Pending] = deque()
        self.credit = 0


class _Channel:
    """The places of a channel, or those of its outcomes; `credit` likewise, `count` is of their commands."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.ring: deque[_Waiting] = deque()
        self.credit = 0
        self.count = 0


class Queue:
    """The commands of all scopes; `taken` while some of them are in a writer's batch.

    `count` is how many commands wait, `outcomes` how many of them are outcomes of deliveries, `crowds` how
    many places in the ring have more than CROWD.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.taken = False
        self.crowds = 0
        self.count = self.outcomes = 0
        self._ring: deque[_Channel] = deque()
        self._marked = 0  # `alone`: only what is put back can be
        self._scopes: dict[str, _Waiting] = {}
        self._channels: dict[str, _Channel] = {}

    def __len__(self) -> int:
        """How many commands wait."""
        return self.count

    def __iter__(self) -> Iterator[Pending]:
        """Every command that waits, a scope after the other."""
        for waiting in self._scopes.values():
            yield from waiting.pending

    def waiting(self, scope_id: str) -> int:
        """How many commands of a scope wait, without the outcomes of its deliveries."""
        waiting = self._scopes.get(scope_id)
        return len(waiting.pending) if waiting else 0

    def waiting_of(self, channel: str) -> int:
        """How many commands of a channel wait, without the outcomes of its deliveries."""
        found = self._channels.get(channel)
        return found.count if found else 0

    def put(self, pending: Pending) -> bool:
        """Add a command behind the others of its place; returns whether it is to be stored at once.

        It is not if its scope has a crowd here, or if it is an outcome, for which nobody waits.
        """
        waiting = self._of(pending)
        waiting.pending.append(pending)
        waiting.channel.count += 1
        self.count += 1
        self.outcomes += waiting.outcomes
        self.bytes += pending.size
        if len(waiting.pending) == CROWD + 1:
            self.crowds += 1
        return not (waiting.outcomes or (self.crowds and self._is_crowded(waiting)))

    def _is_crowded(self, waiting: _Waiting) -> bool:
        """Whether the scope of a place has a crowd here, in this place or in its other one."""
        return max(len(waiting.pending), self.waiting(waiting.scope_id)) > CROWD

    def put_back(self, pending: Pending) -> None:
        """Put a command that must be tried again ahead of the others of its place."""
        place = self._of(pending)
        place.channel.count += 1
        waiting = place.pending
        waiting.appendleft(pending)
        self._marked += pending.alone
        self.count += 1
        self.outcomes += place.outcomes
        self.bytes += pending.size
        if len(waiting) == CROWD + 1:
            self.crowds += 1

    def _of(self, pending: Pending) -> _Waiting:
        scope = pending.command.scope
        kind = "outcomes " if type(pending.command) in OUTCOMES else ""
        key = kind + scope.scope_id if kind else scope.scope_id
        waiting = self._scopes.get(key)
        if waiting is None:
            channel = self._channel(kind + scope.channel)
            waiting = self._scopes[key] = _Waiting(key, scope.scope_id, channel)
            channel.ring.append(waiting)
        return waiting

    def _channel(self, key: str) -> _Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = _Channel(key)
            self._ring.append(channel)
        return channel

    def move_to(self, batch: list[Pending], most: int, *, calm: bool = False) -> None:
        """Move commands into a batch until it holds `most`; a command marked `alone` goes alone.

        `calm`: scopes that have a crowd here wait.
        """
        if batch and batch[-1].alone:  # From another queue.
            return
        if len(self._scopes) == 1 and not calm and not self._marked and self.count <= most - len(batch):
            self._move_all(batch)
            return
        skipped = 0
        while self._ring and len(batch) < most and skipped < len(self._ring):
            channel = self._ring[0]
            if calm and all(self._is_crowded(waiting) for waiting in channel.ring):
                self._ring.rotate(-1)
                skipped += 1
                continue
            skipped = 0
            whole = self._turn(channel, batch, most, calm=calm)
            if not channel.ring:
                self._ring.popleft()
                del self._channels[channel.key]
            else:
                self._ring.rotate(-1)
            if whole:
                return

    def _turn(self, channel: _Channel, batch: list[Pending], most: int, *, calm: bool) -> bool:
        """Give a channel its turn; returns whether the batch takes no more, because of one marked `alone`."""
        alone, before, skipped, whole = len(self._ring) == 1, len(batch), 0, False
        channel.credit = 0 if alone else min(channel.credit, 0) + TURN_BYTES
        while len(batch) < most and not whole and skipped < len(channel.ring):
            waiting = channel.ring[0]
            if calm and self._is_crowded(waiting):
                skipped += 1
            elif alone or channel.credit > 0:
                skipped = 0
                whole = self._move(waiting, batch, most, alone=alone)
            else:
                break
            if waiting.pending:
                channel.ring.rotate(-1)
            else:
                channel.ring.popleft()
                del self._scopes[waiting.key]
        self.taken = self.taken or len(batch) > before
        return whole

    def _move_all(self, batch: list[Pending]) -> None:
        """Move what the only place there is has, as nearly always when one scope is at work."""
        batch.extend(self._ring.pop().ring.pop().pending)
        self._scopes.clear()
        self._channels.clear()
        self.count = self.outcomes = self.bytes = self.crowds = 0
        self.taken = True

    def _move(self, waiting: _Waiting, batch: list[Pending], most: int, *, alone: bool) -> bool:
        """Move commands of one place; returns whether the batch takes no more, because of one marked `alone`.

        `alone`: no other channel waits, so the channel's credit does not count, nor that of its only place.
        """
        pending, channel = waiting.pending, waiting.channel
        free = alone and len(channel.ring) == 1
        waiting.credit = 0 if free else min(waiting.credit, 0) + TURN_BYTES
        while (
            pending and len(batch) < most and (free or waiting.credit > 0) and (alone or channel.credit > 0)
        ):
            if batch and (pending[0].alone or batch[-1].alone):
                return True
            one = pending.popleft()
            self._marked -= one.alone
            if len(pending) == CROWD:
                self.crowds -= 1
            self.count -= 1
            self.outcomes -= waiting.outcomes
            channel.count -= 1
            self.bytes -= one.size
            if not free:
                waiting.credit -= one.size + COMMAND_BYTES
            if not alone:
                channel.credit -= one.size + COMMAND_BYTES
            batch.append(one)
        return False

    def older(self, since: float) -> list[Pending]:
        """Returns the commands that came before a time, in seconds of the loop's clock."""
        return [
            one
            for waiting in self._scopes.values()
            for one in takewhile(lambda each: each.since < since, waiting.pending)
        ]
