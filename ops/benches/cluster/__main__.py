"""`python -m ops.benches.cluster [WORDS…]`: the faults whose names contain one of the words, or all of them.

One JSON object a fault, as soon as it is measured; exit code 1 if a law is broken.
"""

import sys

import uvloop

from ops.benches.cluster.faults import Fault, catalogue
from ops.benches.cluster.run import costs
from ops.benches.measure import show


async def run(faults: list[Fault]) -> bool:
    """Measure and print; returns whether all laws hold."""
    good = True
    async for figure in costs(faults):
        show(figure)
        good = good and figure.holds
    return good


def main() -> int:
    """Exit code 2 if no fault has such a name."""
    words = sys.argv[1:]
    faults = [one for one in catalogue() if not words or any(word in one.name for word in words)]
    if not faults:
        print("there are: " + "; ".join(one.name for one in catalogue()), file=sys.stderr)
        return 2
    return 0 if uvloop.run(run(faults)) else 1


if __name__ == "__main__":
    sys.exit(main())
