"""Ten thousand wrong keys and signatures: counted, answered, and neither log, memory nor others suffer."""

import asyncio
import time

import pytest
from prometheus_client import REGISTRY

from app.access.tries import SOURCES_MAX
from app.config.key_text import make_secret
from tests.support.service import Served, wrote

WRONG, CONNECTIONS = 10_000, 50
MANY = 2 * SOURCES_MAX


def counted(kind: str) -> float:
    return REGISTRY.get_sample_value("chatledger_bad_requests_total", {"kind": kind}) or 0.0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("sources", ["one", "many"])
async def test_ten_thousand_wrong_keys_harm_nobody(
    service: Served, caplog: pytest.LogCaptureFixture, sources: str
) -> None:
    wrong = WRONG if sources == "one" else MANY
    left, statuses, slowest = iter(range(wrong)), set(), 0.0
    before = counted("wrong_key")
    caplog.clear()
    start = time.monotonic()

    async def guess() -> None:
        for number in left:
            address = "203.0.113.77" if sources == "one" else f"2001:db8:{number:x}::1"
            key = make_secret() if number % 2 else "wrong"
            answer = await service.ask("GET", "/v1/status", key=key, headers={"X-Forwarded-For": address})
            statuses.add(answer.status)

    guessing = [asyncio.create_task(guess()) for _ in range(CONNECTIONS)]
    while not all(one.done() for one in guessing):
        asked = time.monotonic()
        right = await service.ask("GET", "/v1/conversations", headers={"X-Forwarded-For": "203.0.113.77"})
        assert right.status == 200
        slowest = max(slowest, time.monotonic() - asked)
        await asyncio.sleep(0.1)
    await asyncio.gather(*guessing)
    seconds = time.monotonic() - start
    assert statuses == ({401, 429} if sources == "one" else {401})
    assert counted("wrong_key") - before == wrong
    lines = [one for one in caplog.records if "wrong_key" in one.getMessage()]
    assert 1 <= len(lines) <= seconds + 2
    assert service.run.services.tries.sources <= SOURCES_MAX
    assert slowest < 2
    await service.run.services.access_log.flush()
    found = (await service.get("/v1/access", key="", limit=10))["items"]
    assert found == []


@pytest.mark.timeout(180)
async def test_ten_thousand_wrong_signatures_harm_nobody(
    service: Served, caplog: pytest.LogCaptureFixture
) -> None:
    left, statuses = iter(range(WRONG)), set()
    before = counted("wrong_signature")
    caplog.clear()
    start = time.monotonic()

    async def forge() -> None:
        for number in left:
            answer = await service.hook(
                wrote(number), signature="0" * 40, headers={"X-Forwarded-For": "203.0.113.78"}
            )
            statuses.add(answer.status)

    await asyncio.gather(*(forge() for _ in range(CONNECTIONS)))
    assert statuses == {403, 429}
    assert counted("wrong_signature") - before == WRONG
    lines = [one for one in caplog.records if "wrong_signature" in one.getMessage()]
    assert 1 <= len(lines) <= time.monotonic() - start + 2
    right = await service.hook(wrote("right"), headers={"X-Forwarded-For": "203.0.113.78"})
    assert right.status == 200
