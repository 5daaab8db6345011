"""Wrong keys are few: at most ten a minute from one address, counted in this process."""

import math
import time
from collections import deque

TRIES_MAX = 10  # Chosen: a person mistypes a few times; a guess of a 32-byte key stays hopeless.
TRIES_SECONDS = 60.0
ADDRESSES_MAX = 1000  # Chosen: memory stays bounded however many addresses try.


class Tries:
    """The latest wrong keys by the address that gave them."""

    def __init__(self) -> None:
        self._failed: dict[str, deque[float]] = {}

    def wait_seconds(self, address: str) -> int:
        """Seconds until this address may try again; 0 if it may now."""
        failed = self._failed.get(address)
        if failed is None or len(failed) < TRIES_MAX:
            return 0
        return max(0, math.ceil(failed[0] + TRIES_SECONDS - time.monotonic()))

    def failed(self, address: str) -> None:
        """Count a wrong key; beyond the limit the address that failed longest ago is forgotten."""
        failed = self._failed.pop(address, None) or deque(maxlen=TRIES_MAX)
        failed.append(time.monotonic())
        self._failed[address] = failed
        if len(self._failed) > ADDRESSES_MAX:
            del self._failed[next(iter(self._failed))]
