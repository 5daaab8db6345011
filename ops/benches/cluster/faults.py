"""The faults: what breaks, what an operator or supervisor does about it meanwhile, and how it is mended."""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from ops.benches.cluster.cluster import Cluster
from ops.benches.cluster.proxy import Proxy, Way
from ops.benches.cluster.services import Service

Step = Callable[[Cluster], Awaitable[None]]
# As long as whoever decides on a failover takes to be sure that a primary is gone.
FAILOVER_SECONDS = 2.0
TAKEN_OVER_SECONDS = 15.0  # what is promised


class Fault(Struct, frozen=True):
    """`delivers`: what is accepted arrives while the fault lasts, because somebody takes over."""

    name: str
    begin: Step
    mend: Step
    seconds: float = 6.0
    delivers: bool = True


def catalogue() -> list[Fault]:
    """Every fault, by role and kind."""
    ways: tuple[Way, ...] = ("stall", "cut", "drop")
    return [
        Fault("PostgreSQL primary killed", _primary_killed, _rejoin),
        Fault("PostgreSQL primary vanished", _primary_vanished, _rejoin, seconds=12),
        Fault("PostgreSQL primary stopped", _primary_stopped, _rejoin, seconds=12),
        Fault("PostgreSQL standby killed", _standby_killed, _standby_back, delivers=False),
        Fault("PostgreSQL standby stopped", _standby_stopped, _standby_goes_on, delivers=False),
        Fault("NATS leader killed", _nats("kill", leads=True), _nats_back),
        Fault("NATS leader stopped", _nats("stop", leads=True), _nats_goes_on),
        Fault("NATS follower killed", _nats("kill", leads=False), _nats_back),
        Fault("two of three NATS servers killed", _nats_majority_killed, _nats_back),
        *(Fault(f"service {n} killed", _service_killed(i), _service_back(i)) for i, n in enumerate("ab")),
        *(Fault(f"service {n} stopped", _service_stopped(i), _service_up(i)) for i, n in enumerate("ab")),
        Fault("service a stopped for 20 s", _service_stopped(0), _service_up(0), seconds=20),
        *(_partition(f"service a, database: {way}", _to_postgres, way, delivers=True) for way in ways),
        *(_partition(f"service a, NATS: {way}", _to_nats, way, delivers=True) for way in ways),
        *(_partition(f"service a, Kommo: {way}", _to_kommo, way, delivers=False) for way in ways),
        *(_partition(f"messenger: {way}", _to_messenger, way, delivers=False) for way in ways),
    ]


async def _primary_killed(cluster: Cluster) -> None:
    cluster.pair.primary.kill()
    await _fail_over(cluster)


async def _primary_vanished(cluster: Cluster) -> None:
    """Its host is gone: nobody hears anything of it, not even that its connections have ended."""
    cluster.turn(_to_primary(cluster), "drop")
    cluster.pair.primary.kill()
    await _fail_over(cluster)


async def _primary_stopped(cluster: Cluster) -> None:
    child = cluster.pair.primary.child
    assert child
    child.stop()
    await _fail_over(cluster)


async def _fail_over(cluster: Cluster) -> None:
    await asyncio.sleep(FAILOVER_SECONDS)
    await cluster.pair.fail_over()


async def _rejoin(cluster: Cluster) -> None:
    await cluster.pair.rejoin()
    cluster.turn([proxy for each in cluster.services for proxy in each.postgres], "pass")


async def _standby_killed(cluster: Cluster) -> None:
    cluster.pair.standby.kill()


async def _standby_back(cluster: Cluster) -> None:
    await cluster.pair.standby.start()
    await cluster.pair.in_sync()


async def _standby_stopped(cluster: Cluster) -> None:
    child = cluster.pair.standby.child
    assert child
    child.stop()


async def _standby_goes_on(cluster: Cluster) -> None:
    child = cluster.pair.standby.child
    assert child
    child.go_on()
    await cluster.pair.in_sync()


def _nats(what: str, *, leads: bool) -> Step:
    async def begin(cluster: Cluster) -> None:
        leader = await cluster.trio.leader()
        node = leader if leads else next(one for one in cluster.trio.nodes if one is not leader)
        assert node.child
        getattr(node.child, what)()

    return begin


async def _nats_majority_killed(cluster: Cluster) -> None:
    for node in cluster.trio.nodes[:2]:
        node.kill()


async def _nats_back(cluster: Cluster) -> None:
    for node in cluster.trio.nodes:
        if node.child and node.child.process.poll() is not None:
            node.start()
    await cluster.trio.caught_up()


async def _nats_goes_on(cluster: Cluster) -> None:
    for node in cluster.trio.nodes:
        if node.child:
            node.child.go_on()
    await cluster.trio.caught_up()


def _service_killed(number: int) -> Step:
    async def begin(cluster: Cluster) -> None:
        cluster.services[number].kill()

    return begin


def _service_back(number: int) -> Step:
    async def mend(cluster: Cluster) -> None:
        await cluster.services[number].start()

    return mend


def _service_stopped(number: int) -> Step:
    async def begin(cluster: Cluster) -> None:
        cluster.services[number].stop()

    return begin


def _service_up(number: int) -> Step:
    async def mend(cluster: Cluster) -> None:
        cluster.services[number].go_on()

    return mend


def _partition(name: str, between: Callable[[Cluster], list[Proxy]], way: Way, *, delivers: bool) -> Fault:
    async def begin(cluster: Cluster) -> None:
        cluster.turn(between(cluster), way)

    async def mend(cluster: Cluster) -> None:
        cluster.turn(between(cluster), "pass")

    return Fault(name, begin, mend, delivers=delivers)


def _first(cluster: Cluster) -> Service:
    return cluster.services[0]


def _to_postgres(cluster: Cluster) -> list[Proxy]:
    return _first(cluster).postgres


def _to_primary(cluster: Cluster) -> list[Proxy]:
    number = cluster.pair.nodes.index(cluster.pair.primary)
    return [each.postgres[number] for each in cluster.services]


def _to_nats(cluster: Cluster) -> list[Proxy]:
    return _first(cluster).nats


def _to_kommo(cluster: Cluster) -> list[Proxy]:
    return [_first(cluster).kommo]


def _to_messenger(cluster: Cluster) -> list[Proxy]:
    return [cluster.messenger]
