"""Nobody makes one message, or one unknown name, a burden for the others."""

import asyncio
import json
import time

import pytest

from app import clock
from app.access.account_limits import COUNTED_SECONDS, REQUEST_BYTES, WORK_BYTES, AccountLimits, OverLimit
from app.config.settings import load_settings
from app.messengers import webhook
from app.servers.servers import Servers
from domain.facts import WAITING_MAX
from tests.support.ids import ACCOUNT, MESSENGER_SECRET, OTHER_ACCOUNT
from tests.support.service import Answer, Served, about, refused, sent, serving, wrote


async def post(service: Served, content: object) -> Answer:
    """Actions in a request of its own id, because what comes with one id is recorded once."""
    body = json.dumps(content).encode()
    headers = webhook.signed(MESSENGER_SECRET, clock.new_id(clock.now_ms()), body)
    return await service.request("POST", "/messengers/acme", data=body, headers=headers)


async def test_edits_of_one_unknown_id_are_bounded_and_then_quickly_applied(service: Served) -> None:
    """40 posts of 500 edits of an unknown id made the next small action take 4.7 s."""
    taken, left_out = 0, 0
    for number in range(4):
        edits = [
            about("message.edited", "unknown", message={"type": "text", "text": f"edit {number} {n}"})
            for n in range(500)
        ]
        answer = await post(service, edits)
        assert answer.status == 200, answer
        for result in answer.body["results"]:
            if "error" not in result:
                taken += 1
                continue
            left_out += 1
            assert (result["error"]["status"], result["error"]["title"]) == (429, "Too many")
            assert result["error"]["retry_after"] == 3600
            assert "send the message first" in result["error"]["detail"]
    assert (taken, left_out) == (WAITING_MAX, 2_000 - WAITING_MAX)
    alone = await post(service, about("message.edited", "unknown", message={"type": "text", "text": "more"}))
    assert (alone.status, alone.headers["Retry-After"]) == (429, "3600")
    listed = await service.get("/v1/waiting", limit=1000, at_least=await service.head())
    assert (len(listed["items"]), listed["next"]) == (WAITING_MAX, None)
    first = listed["items"][0]
    assert (first["type"], first["by"], first["channel"]) == ("message.edited", "messenger", "acme")
    page = await service.get("/v1/waiting", message=first["message"], channel="acme", limit=60)
    rest = await service.get("/v1/waiting", account_id=ACCOUNT, limit=60, cursor=page["next"])
    assert page["items"] + rest["items"] == listed["items"]
    start = time.perf_counter()
    answer = await post(service, sent(1, message_id="unknown"))
    assert answer.status == 200
    assert time.perf_counter() - start < 2
    message = await service.get(
        f"/v1/messages/{answer.body['results'][0]['id']}", at_least=answer.headers["Ledger-Position"]
    )
    assert message["text"] == f"edit 0 {WAITING_MAX - 1}"
    assert (await service.get("/v1/waiting"))["items"] == []
    assert (await service.ask("GET", "/v1/waiting?message=no-id")).status == 400


async def test_conflicts_are_answered_and_only_the_first_are_recorded(service: Served) -> None:
    head = await service.head()
    messages = [sent(n, message_id="contested") for n in range(150)]
    answer = await post(service, messages)
    assert [one.get("error", {}).get("status") for one in answer.body["results"]] == [None] + [409] * 149
    noticed = [one for one in await service.since(head) if one["type"] == "conflict.noticed"]
    assert len(noticed) == 100


LOW = {
    "CHATLEDGER_ACCOUNT_RATE": "5",
    "CHATLEDGER_ACCOUNT_BYTES": "20000",
    "CHATLEDGER_ACCOUNT_OPEN": "100",
}


async def test_an_account_over_its_limits_is_told_so_and_the_others_go_on(servers: Servers) -> None:
    async with serving(servers, changed=LOW) as service:
        await service.register()
        for account in (ACCOUNT, OTHER_ACCOUNT):
            await service.connect(account=account)

        async def send(first: int, count: int, account: str = ACCOUNT) -> Answer:
            named = [sent(n, account_id=account) for n in range(first, first + count)]
            return await post(service, named)

        assert (await send(0, 60)).status == 200  # a second's worth, and what is overdrawn
        problem = await refused(service, await send(60, 1), 429, await service.head())
        assert problem["title"] == "Too many"
        assert "over 5 actions a second" in problem["detail"]
        assert int((await send(60, 1)).headers["Retry-After"]) in range(4, 12)
        assert (await send(0, 1, OTHER_ACCOUNT)).status == 200
        assert (await service.hook(wrote(1))).status == 200  # Kommo sends each hook once

        large = [sent(n, account_id=OTHER_ACCOUNT) | {"extra": "x" * 50_000} for n in range(100, 104)]
        assert (await post(service, large)).status == 200
        problem = await refused(service, await send(200, 1, OTHER_ACCOUNT), 429, await service.head())
        assert "over 20,000 bytes a second" in problem["detail"]


async def test_an_account_with_too_many_open_deliveries_waits(servers: Servers) -> None:
    async with serving(servers, changed={"CHATLEDGER_ACCOUNT_OPEN": "100"}) as service:
        await service.register()
        for account in (ACCOUNT, OTHER_ACCOUNT):
            await service.connect(account=account)
        assert (await post(service, [sent(n, account_id=ACCOUNT) for n in range(120)])).status == 200
        await service.get("/v1/conversations", at_least=await service.head())
        await asyncio.sleep(COUNTED_SECONDS)
        answer = await post(service, sent(200, account_id=ACCOUNT))
        assert (answer.status, answer.headers["Retry-After"]) == (429, "30")
        assert "100 may be" in answer.body["detail"]
        assert (await post(service, sent(1, account_id=OTHER_ACCOUNT))).status == 200


async def test_requests_of_a_channel_take_turns_while_others_are_at_work() -> None:
    limits, at_work, most = AccountLimits(load_settings(environment={"HOME": "/"})), 0, 0

    async def work(channel: str, size: int, *, shared: bool = True) -> None:
        nonlocal at_work, most
        async with limits.turn(channel, size, shared=shared):
            at_work += 1
            most = max(most, at_work)
            await asyncio.sleep(0)
            at_work -= 1

    await asyncio.gather(*(work("acme", 100_000) for _ in range(30)))
    assert (at_work, most) == (0, 1)
    await asyncio.gather(*(work("acme", 300) for _ in range(30)), work("other", 300))
    assert most <= WORK_BYTES // REQUEST_BYTES + 1
    most = 0
    await asyncio.gather(*(work("acme", 100_000, shared=False) for _ in range(30)))
    assert most == 30  # whoever is alone waits for nobody

    async with limits.turn("acme", 100_000, shared=True):
        waiting = [asyncio.ensure_future(work("acme", 1_000_000)) for _ in range(9)]
        await asyncio.sleep(0)
        with pytest.raises(OverLimit):
            await waiting[8]
        for each in waiting[:4]:
            each.cancel()
    outcomes = await asyncio.gather(*waiting[:8], return_exceptions=True)
    assert sum(isinstance(each, BaseException) for each in outcomes) == 4
    await work("acme", 100_000)


async def test_a_crowded_channel_rests_as_long_as_it_worked_while_others_are_at_work() -> None:
    limits, busy = AccountLimits(load_settings(environment={"HOME": "/"})), 0.0

    async def work(*, shared: bool) -> None:
        nonlocal busy
        async with limits.turn("acme", 100_000, shared=shared):
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            busy += time.perf_counter() - began

    began = time.perf_counter()
    await asyncio.gather(*(work(shared=True) for _ in range(10)))
    rested = time.perf_counter() - began - busy
    assert rested >= 0.8 * 9 / 10 * busy  # after each but the last
    busy, began = 0.0, time.perf_counter()
    await asyncio.gather(*(work(shared=False) for _ in range(10)))
    assert time.perf_counter() - began < busy / 2
