"""latency: from what was accepted on one side to the call of the other, both ways, at 200 a second."""

import asyncio
import time
from statistics import median

import aiohttp
import msgspec

from app import clock
from app.config.settings import load_settings
from app.messengers import webhook
from app.service.service import Running, running
from domain import ids
from ops.benches import samples, service
from ops.benches.measure import Figure, new_database, percentile, private_servers, say

ROUNDS = 5
SECONDS = 10
RATE = 200
CHATS = 200
SETTLE_SECONDS = 2.0
P50_MS, P99_MS, TIMES = 20.0, 100.0, 5.0


async def latency() -> list[Figure]:
    """Medians of the rounds' p50 and p99, for hooks and for actions; the baseline is the commit's p50."""
    rounds: dict[str, list[tuple[float, float, float]]] = {"hook": [], "action": []}
    async with private_servers() as (where, folder):
        url = await new_database(where, "latency")
        async with service.process("ops.benches.processes.strangers") as (_, strangers):
            given = service.environment(where, url, folder, strangers)
            settings = load_settings(environment=given)
            async with running(settings) as run, aiohttp.ClientSession() as session:
                await service.register(run.url or "", f"{strangers}/messenger")
                driver = _Driver(session, run, strangers)
                await driver.round("hook", 2)
                await driver.round("action", 2)
                for number in range(ROUNDS):
                    for kind, found in rounds.items():
                        p50, p99, commit = await driver.round(kind, SECONDS)
                        found.append((p50, p99, commit))
                        say(
                            f"latency {kind} {number + 1}: p50 {p50:.1f} p99 {p99:.1f} commit {commit:.1f} ms"
                        )
    return [figure for kind, found in rounds.items() for figure in _figures(kind, found)]


def _figures(kind: str, found: list[tuple[float, float, float]]) -> list[Figure]:
    p50 = round(median(each[0] for each in found), 2)
    p99 = round(median(each[1] for each in found), 2)
    commit = round(median(each[2] for each in found), 2)
    ratio = round(median(each[0] / each[2] for each in found), 2)
    good = p50 <= P50_MS and ratio <= TIMES
    return [
        Figure(f"latency {kind} p50", p50, "ms", commit, ratio, "<= 20 ms and 5 times the commit", good),
        Figure(f"latency {kind} p99", p99, "ms", None, None, "<= 100 ms", p99 <= P99_MS),
    ]


class _Driver:
    def __init__(self, session: aiohttp.ClientSession, run: Running, strangers: str) -> None:
        self._session = session
        self._run = run
        self._strangers = strangers

    async def round(self, kind: str, seconds: int) -> tuple[float, float, float]:
        """The p50 and p99 from accepted to called, and the p50 of the commits, all in milliseconds."""
        commits = self._run.services.ledger.commits
        commits.clear()
        accepted: dict[str, int] = {}
        send = self._hook if kind == "hook" else self._action
        start = time.perf_counter()
        tasks = []
        for number in range(seconds * RATE):
            await asyncio.sleep(max(0.0, start + number / RATE - time.perf_counter()))
            tasks.append(asyncio.create_task(send(number % CHATS, accepted)))
        await asyncio.gather(*tasks)
        commit = percentile(list(commits), 0.5) * 1000
        await asyncio.sleep(SETTLE_SECONDS)
        async with self._session.get(f"{self._strangers}/arrived") as answer:
            arrived = dict(msgspec.json.decode(await answer.read(), type=list[tuple[str, int]]))
        missing = accepted.keys() - arrived.keys()
        if missing:
            raise RuntimeError(f"{len(missing)} of {len(accepted)} have not arrived")
        times = [(arrived[name] - moment) / 1e6 for name, moment in accepted.items()]
        return percentile(times, 0.5), percentile(times, 0.99), commit

    async def _hook(self, chat: int, accepted: dict[str, int]) -> None:
        body, signature = samples.hook(chat)
        url = f"{self._run.url}/kommo/{samples.LINK.scope_id}"
        async with self._session.post(url, data=body, headers={"X-Signature": signature}) as answer:
            now = time.monotonic_ns()
            answer.raise_for_status()
        own_id = msgspec.json.decode(body)["message"]["message"]["id"]
        accepted[ids.message_id(samples.LINK, ids.KOMMO, own_id)] = now

    async def _action(self, chat: int, accepted: dict[str, int]) -> None:
        now = clock.now_ms()
        command = samples.send(f"conv-{chat}", now)
        action = {
            "type": "message.sent",
            "conversation_id": f"conv-{chat}",
            "message_id": command.own_id,
            "at": clock.text(now),
            "sender": {"id": f"u-{chat}", "name": "Ann Example"},
            "message": {"type": "text", "text": command.content.text},
        }
        body = msgspec.json.encode(action)
        headers = webhook.signed(samples.MESSENGER_SECRET, command.id, body)
        async with self._session.post(
            f"{self._run.url}/messengers/bench", data=body, headers=headers
        ) as answer:
            moment = time.monotonic_ns()
            answer.raise_for_status()
        accepted[command.stream] = moment
