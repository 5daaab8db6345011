"""Long work is done in pieces, and whoever else is ready goes on between them."""

import asyncio

# Measured with `./ops/bench fair`: a neighbour's p99 is 16 ms with 3, 22 with 1; the crowd is stored as fast.
REST_TIMES, REST_SECONDS_MAX = 3, 0.1


def rest_after(seconds: float) -> float:
    """For how long whoever crowds rests after work that took so long, in seconds: others have room then."""
    return min(REST_TIMES * seconds, REST_SECONDS_MAX)


class Turns:
    """So many pieces in one turn of the event loop, whoever does them: many at once freeze it no longer."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._done = 0
        self._renewed = asyncio.Event()

    async def take(self) -> None:
        """Wait for a turn in which one more piece may be done."""
        while self._done >= self._most:
            self._renewed.clear()
            await self._renewed.wait()
        if not self._done:
            asyncio.get_running_loop().call_soon(self._renew)
        self._done += 1

    def _renew(self) -> None:
        self._done = 0
        self._renewed.set()
