"""`./ops/bench [NAME…]`: exit code 1 if a target is missed."""

import gc
import sys
from collections.abc import Awaitable, Callable

import uvloop

from app.service.web import settle_memory
from ops.benches import append, busy, bytes, fair, growth, imports, ingest, memory, relay, tenants, views
from ops.benches.cluster.run import cluster
from ops.benches.end_to_end import far, flow, latency
from ops.benches.measure import Figure, say, show

BENCHES: dict[str, Callable[[], Awaitable[list[Figure]]]] = {
    "ingest": ingest.ingest,
    "append": append.append,
    "append_limit": append.append_limit,
    "growth": growth.growth,
    "growth_limit": growth.growth_limit,
    "bytes": bytes.bytes_,
    "relay": relay.relay,
    "latency": latency.latency,
    "flow": flow.flow,
    "far": far.far,
    "fair": fair.fair,
    "busy": busy.busy,
    "tenants": tenants.tenants,
    "rebuild": views.rebuild,
    "history": views.history,
    "memory": memory.memory,
    "import": imports.imports,
    "cluster": cluster,
}


async def run(names: list[str]) -> bool:
    """Measure and print; returns whether all targets hold."""
    good = True
    settle_memory()  # as a service does
    for name in names:
        say(name)
        for figure in await BENCHES[name]():
            show(figure)
            good = good and figure.holds
        gc.collect()
    return good


def main() -> int:
    """Exit code 2 for an unknown name, 1 for a missed target."""
    names = sys.argv[1:] or list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        print(f"no such figure: {', '.join(unknown)}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    return 0 if uvloop.run(run(names)) else 1


if __name__ == "__main__":
    sys.exit(main())
