"""CRM webhooks: unsigned forms as PHP builds them, with 2 s for an answer and at most five tries."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import count
from urllib.parse import urlencode

import aiohttp
from msgspec import Struct, field

from ops.sandbox.config import RECORDS_MAX, WAITING_MAX, Config, CrmAccount
from ops.sandbox.faults import Faults
from ops.sandbox.lanes import Lanes
from ops.sandbox.state.crm import CrmState, Subscription

AGENT = "amoCRM-Webhooks/3.0"
SECONDS = 2.0
WAITS = (300.0, 900.0, 900.0, 3600.0)  # before the tries 2 to 5
INVALID_MAX = 100
INVALID_SECONDS = 2 * 60 * 60
TIMED_OUT = 499


class Try(Struct, kw_only=True):
    """`status` is the answer's; 499: not in time, 0: no answer at all."""

    status: int
    sent_ns: int
    answered_ns: int
    error: str = ""


class CrmHook(Struct, kw_only=True):
    """One webhook to one subscriber, and its outcome."""

    n: int
    account: str
    event: str
    kind: str
    subscription: int
    url: str
    body: str
    tries: list[Try] = field(default_factory=list)
    waiting: bool = True

    @property
    def outcome(self) -> str:
        """In words: `ok`, `waiting`, `503` …"""
        if self.tries and valid(self.tries[-1].status):
            return "ok"
        return str(self.tries[-1].status) if self.tries else "waiting"


Sent = tuple[CrmHook, "asyncio.Future[None]"]


class CrmHooks:
    """Sends webhooks to the subscribers of an account: first tries in order, repeats when due."""

    def __init__(self, config: Config, state: CrmState, faults: Faults) -> None:
        self.config, self.crm_state, self.faults = config, state, faults
        self.sent: deque[CrmHook] = deque(maxlen=RECORDS_MAX)
        self.lanes = Lanes(WAITING_MAX)
        self._numbers = count(1)
        self._later: set[asyncio.Task[None]] = set()
        self._invalid: defaultdict[int, deque[float]] = defaultdict(deque)
        self._session: aiohttp.ClientSession | None = None

    def start(self, session: aiohttp.ClientSession) -> None:
        """Use this session from now on."""
        self._session = session

    def tell(self, account: CrmAccount, event: str, kind: str, content: dict[str, object]) -> list[Sent]:
        """Queue an event (`event` as subscribed, `kind` as faults name it) for all its subscribers."""
        found = []
        for one in self.crm_state.subscriptions.of(account.amojo_id):
            if event in one.settings and not one.disabled:
                hook = CrmHook(
                    n=next(self._numbers),
                    account=account.amojo_id,
                    event=event,
                    kind=kind,
                    subscription=one.id,
                    url=one.destination,
                    body=form(content),
                )
                self.sent.append(hook)
                found.append(self._queue(hook))
        return found

    def repeat(self, hook: CrmHook) -> Sent:
        """Send it once more, as Kommo does if it believes that the first did not arrive."""
        return self._queue(hook)

    def enabled(self, subscription: int) -> None:
        """Reset the count of invalid answers."""
        self._invalid.pop(subscription, None)

    async def close(self) -> None:
        """Drop what is queued."""
        for task in list(self._later):
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)
        await self.lanes.close()

    def _queue(self, hook: CrmHook) -> Sent:
        hook.waiting = True
        return hook, self.lanes.put(str(hook.subscription), lambda: self._carry(hook))

    async def _carry(self, hook: CrmHook) -> None:
        fault = self.faults.take(f"crmhook.{hook.kind}")
        if fault and fault.action == "slow":
            await asyncio.sleep(fault.seconds)
        if not fault or fault.action != "skip":
            for _ in range(2 if fault and fault.action == "twice" else 1):
                await self._post(hook)
        wait = wait_seconds(hook.tries)
        hook.waiting = wait is not None
        if wait is not None:
            task = asyncio.create_task(self._again(hook, wait * self.config.crm_retry_scale))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _again(self, hook: CrmHook, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._subscription(hook) is not None:
            self._queue(hook)

    async def _post(self, hook: CrmHook) -> None:
        assert self._session is not None
        headers = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": AGENT}
        tried = Try(status=0, sent_ns=time.monotonic_ns(), answered_ns=0)
        timeout = aiohttp.ClientTimeout(total=SECONDS, ceil_threshold=SECONDS + 1)  # not rounded up
        try:
            async with self._session.post(
                hook.url, data=hook.body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                await answer.read()
                tried.status = answer.status
        except TimeoutError:
            tried.status, tried.error = TIMED_OUT, "timeout"
        except (aiohttp.ClientError, ValueError) as error:
            tried.error = type(error).__name__
        tried.answered_ns = time.monotonic_ns()
        hook.tries.append(tried)
        self._judge(hook, tried)

    def _judge(self, hook: CrmHook, tried: Try) -> None:
        subscription = self._subscription(hook)
        if valid(tried.status) or subscription is None:
            return
        moments = self._invalid[hook.subscription]
        moments.append(time.monotonic())
        while moments[0] < moments[-1] - INVALID_SECONDS:
            moments.popleft()
        if len(moments) > INVALID_MAX:
            subscription.disabled = True
            self.crm_state.subscriptions.save(subscription)

    def _subscription(self, hook: CrmHook) -> Subscription | None:
        found = self.crm_state.subscriptions.get(hook.subscription)
        return found if found is not None and not found.disabled else None


def valid(status: int) -> bool:
    """Whether Kommo counts this answer as a success."""
    return 100 <= status <= 299


def wait_seconds(tries: list[Try]) -> float | None:
    """Seconds until the next try; None if there is none."""
    if not tries or len(tries) > len(WAITS):
        return None
    last = tries[-1].status
    # Two more tries after every failure; the last two only after a time-out or an error of the receiver's.
    due = not valid(last) if len(tries) <= 2 else last == TIMED_OUT or 500 <= last <= 599
    return WAITS[len(tries) - 1] if due else None


def form(content: dict[str, object]) -> str:
    """The content as PHP builds a query: `talk[add][0][id]=1`, flags 1 and 0, null an empty string."""
    return urlencode([pair for key, value in content.items() for pair in _pairs(key, value)])


def _pairs(key: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _pairs(f"{key}[{name}]", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _pairs(f"{key}[{index}]", inner)
    elif isinstance(value, bool):
        yield key, str(int(value))
    else:
        yield key, "" if value is None else str(value)
