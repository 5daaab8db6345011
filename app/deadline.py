"""A wait that ends in time, also if what is waited for cannot be cancelled in time.

A query whose server stands still is such a thing: psycopg first asks the server to cancel it, and waits for
the answer. `asyncio.timeout` waits until that has ended; `within` leaves it to end by itself.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

# Kommo hangs up after 5 s (documented). Chosen: the rest is for the way there and back.
ANSWER_SECONDS = 4.5


async def within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Returns the result of `work`; cancels it after `seconds` and raises TimeoutError at once."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if done:
        return task.result()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # It is nobody's any more.
    task.cancel()
    raise TimeoutError
