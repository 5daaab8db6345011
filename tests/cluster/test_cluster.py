"""Machines of the production form die under traffic: what was acknowledged arrives, once and in order."""

from collections.abc import AsyncIterator

import pytest

from ops.benches.cluster.cluster import Cluster, running
from ops.benches.cluster.faults import Fault, catalogue
from ops.benches.cluster.run import cost

# Those that say most in the time that a run of all tests has; `./ops/bench cluster` runs all of them.
CHOSEN = ("PostgreSQL primary killed", "NATS leader killed", "service a killed", "service a, database: drop")
FAULTS = [fault for fault in catalogue() if fault.name in CHOSEN]


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with running() as whole:
        yield whole


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_costs_only_time(cluster: Cluster, fault: Fault) -> None:
    found = await cost(cluster, fault)
    assert (found.lost, found.doubled, found.misordered) == (0, 0, 0), found
    assert found.holds, found
    assert found.accepted, found


def test_every_chosen_fault_is_there() -> None:
    assert len(FAULTS) == len(CHOSEN)
