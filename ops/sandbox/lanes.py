"""Jobs of one lane run one after another, in the order they came; lanes do not wait for each other."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

Job = Callable[[], Awaitable[None]]


class Full(Exception):
    """Too many jobs are queued."""


class Lanes:
    """A queue per conversation; a task lives only while its lane has work."""

    def __init__(self, waiting_max: int) -> None:
        self.waiting_max = waiting_max
        self.waiting = 0
        self._lanes: dict[str, deque[tuple[Job, asyncio.Future[None]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, lane: str, job: Job) -> asyncio.Future[None]:
        """Run the job after the lane's earlier ones; the future is done when it has run. Raises Full."""
        if self.waiting >= self.waiting_max:
            raise Full
        self.waiting += 1
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._lanes.get(lane)
        if queue is not None:
            queue.append((job, done))
            return done
        self._lanes[lane] = deque([(job, done)])
        task = asyncio.create_task(self._run(lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return done

    async def _run(self, lane: str) -> None:
        queue = self._lanes[lane]
        while queue:
            job, done = queue[0]
            try:
                await job()
            finally:
                self.waiting -= 1
                queue.popleft()
                if not done.done():
                    done.set_result(None)
                if not queue:
                    del self._lanes[lane]

    async def close(self) -> None:
        """Drop what is queued and cancel what runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in self._lanes.values():
            for _, done in queue:
                done.cancel()
        self._lanes.clear()
        self.waiting = 0
