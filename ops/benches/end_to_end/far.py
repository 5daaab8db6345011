"""far: messages delivered to a far side that takes 200 ms for each answer."""

import asyncio
import contextlib

from ops.benches import service
from ops.benches.end_to_end import flow
from ops.benches.measure import Figure, say

ROUNDS = 3
MESSAGES, CHATS = 20_000, 1_000
ANSWER_SECONDS = 0.2
RATE_MIN = 2_500
SAMPLE_SECONDS = 0.2
# Chosen: what the memory of a process may rise from the first round to the last.
RISE_MAX = 1.1


async def far() -> list[Figure]:
    """The best round's messages a second each way, and the resident megabytes at its highest."""
    async with flow.both("far", str(ANSWER_SECONDS)) as parts:
        figures = []
        for side, name in flow.SIDES.items():
            rates, memory = [], []
            await flow.delivered(parts.url, parts.strangers, side, MESSAGES, CHATS)
            for number in range(ROUNDS):
                peak = [0.0]
                watch = asyncio.create_task(_watch(parts.pid, peak))
                rates.append(await flow.delivered(parts.url, parts.strangers, side, MESSAGES, CHATS))
                watch.cancel()
                memory.append(peak[0])
                say(f"far {name} {number + 1}: {rates[-1]:.0f}/s, {peak[0]:.0f} MB")
            rate, rise = round(sorted(rates)[ROUNDS // 2]), round(memory[-1] / memory[0], 2)
            figures += [
                Figure(f"far, {name}", rate, "messages/s", None, None, f">= {RATE_MIN}", rate >= RATE_MIN),
                Figure(f"far, {name}: memory", round(memory[-1], 1), "MB", round(memory[0], 1), rise,
                       f"ratio <= {RISE_MAX}", rise <= RISE_MAX),
            ]  # fmt: skip
        return figures


async def _watch(pid: int, peak: list[float]) -> None:
    """Keep the highest resident size of a process, until cancelled."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            peak[0] = max(peak[0], service.resident_megabytes(pid))
            await asyncio.sleep(SAMPLE_SECONDS)
