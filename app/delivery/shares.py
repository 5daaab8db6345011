"""Which partitions this process delivers: an even share, by leases, moved when a process comes or goes.

Every process looks once in LOOK_SECONDS who is at work (each holds a lease that says so) and who has which
partition. Its share is the partitions divided by the processes; the remainder goes to the first by their
names. Who has more gives the surplus up, once what is in flight there has ended; who has less takes what is
free. So each partition has one owner at any time, and a process that is gone is followed when its leases end.
"""

from typing import NamedTuple

from app.database import names
from app.database.leases import Fence, LeaseLost, Leases
from domain import ids

# Chosen: a partition that is given up or has ended is taken within this time.
LOOK_SECONDS = 1.0
GROUP = "deliver"
MEMBER = f"{GROUP} member "
# Partitions that an older version of this program leases as one.
QUARTER = ids.PARTITIONS // 4


class Moved(NamedTuple):
    """Partitions that are ours now, that we are to give up, and that are not ours any more."""

    gained: list[int]
    surplus: list[int]
    lost: list[int]


def lease_of(partition: int) -> str:
    """The name of a partition's lease."""
    return f"{GROUP} {partition:02d}"


def share_of(member: str, members: list[str]) -> int:
    """How many partitions one of some processes is to have."""
    place = sorted(members).index(member)
    return ids.PARTITIONS // len(members) + (place < ids.PARTITIONS % len(members))


class Shares:
    """The partitions of this process; `look` says how they move."""

    def __init__(self, leases: Leases) -> None:
        self.mine: set[int] = set()
        self._leases = leases
        self._leaving: set[int] = set()
        self._member = f"{MEMBER}{leases.holder}"

    def fence(self, partition: int) -> Fence | None:
        """What to record under for a partition; None if it is not ours any more."""
        try:
            return self._leases.fence(lease_of(partition))
        except LeaseLost:
            return None

    def check(self, fence: Fence) -> None:
        """Raises LeaseLost unless this very lease is still ours."""
        if self._leases.fence(fence.lease) != fence:
            raise LeaseLost(f"the lease {fence.lease} was another one")

    async def look(self) -> Moved:
        """Take what is our share, and say what has moved. Raises psycopg.Error."""
        lost = [one for one in self.mine if not self._leases.holds(lease_of(one))]
        self.mine.difference_update(lost)
        self._leaving.difference_update(lost)
        if not self._leases.holds(self._member) and await self._leases.take({self._member: None}):
            await self._leases.forget(MEMBER)  # Each process that ever delivered had a name of its own.
        if not self._leases.holds(self._member):  # The database is away.
            return Moved([], [], lost)
        held = await self._leases.look(GROUP)
        members = [holder for name, holder in held.items() if name.startswith(MEMBER)]
        share = share_of(self._leases.holder, members) if self._leases.holder in members else 0
        staying = sorted(self.mine - self._leaving)
        if len(staying) > share:
            surplus = staying[share:]
            self._leaving.update(surplus)
            return Moved([], surplus, lost)
        free = [one for one in range(ids.PARTITIONS) if lease_of(one) not in held and one not in self.mine]
        due = free[: share - len(staying)]
        wanted: dict[str, int | None] = {lease_of(one): names.PARTITION_LOCK + one // QUARTER for one in due}
        taken = set(await self._leases.take(wanted))
        gained = [one for one in free if lease_of(one) in taken]
        self.mine.update(gained)
        return Moved(gained, [], lost)

    async def give_up(self, partitions: list[int]) -> None:
        """Let other processes have partitions in which nothing is in flight any more."""
        await self._leases.release(lease_of(one) for one in partitions)
        self.mine.difference_update(partitions)
        self._leaving.difference_update(partitions)

    async def finish(self) -> None:
        """Give up what was about to be: nothing is in flight any more."""
        await self.give_up(list(self._leaving))

    async def leave(self) -> None:
        """Let other processes have everything: this one delivers nothing more."""
        await self._leases.release([self._member, *(lease_of(one) for one in self.mine)])
        self.mine.clear()
        self._leaving.clear()
