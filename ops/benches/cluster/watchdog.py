"""`python -m ops.benches.cluster.watchdog FOLDER` waits for the end of its parent, then sweeps the folder."""

import sys
from pathlib import Path

from ops.benches.cluster.children import sweep


def main() -> None:
    """Our standard input is a pipe that only the parent holds open."""
    sys.stdin.buffer.read()
    sweep(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
