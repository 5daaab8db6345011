"""`chatledger` as an installed package: `__main__.py` of the wheel, which `ops/wheel.py` puts there.

Our packages `app`, `domain`, `projections` and `ops` lie inside the package `chatledger`, so that they take
nobody else's names in site-packages. Only in a process of ours, the folder of `chatledger` comes first.
"""

import sys
from pathlib import Path


def main() -> int:
    """The console script."""
    sys.path.insert(0, str(Path(__file__).parent))
    from ops.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
