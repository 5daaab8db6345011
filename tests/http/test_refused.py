"""A refused hook is kept within limits, shown, and taken up after a fix: in order, and once."""

import asyncio
import base64
import json
import time
from typing import Any
from uuid import uuid4

import pytest

from app.config.settings import BadSettings, load_settings
from app.kommo import refused
from app.kommo.crm.hooks import hook_path
from app.metrics import REFUSED
from domain.facts import WAITING_MAX
from tests.support.ids import ACCOUNT, ADMIN_KEY, SCOPE_ID
from tests.support.processes import run_command
from tests.support.service import Answer, Served, wrote

OTHER_SCOPE = "another_scope"


def old(name: str, hours: int = 30) -> dict[str, Any]:
    """A hook that was captured and comes again much later."""
    return wrote(name) | {"time": int(time.time()) - hours * 3600}


async def kept(service: Served) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await service.get("/v1/refused", order="asc", limit=1000))["items"]
    return items


async def retry(service: Served, id_: str) -> Answer:
    return await service.ask("POST", f"/v1/refused/{id_}/retry")


async def names(service: Served, head: int) -> list[str]:
    return [event["own_id"] for event in await service.since(head) if event["type"] == "message.sent"]


async def clear(service: Served) -> None:
    async with service.run.services.pool.connection() as db:
        await db.execute("DELETE FROM ledger.refused")


@pytest.fixture(autouse=True)
async def empty(service: Served) -> None:
    await clear(service)


async def test_the_command_takes_up_everything_in_order_and_reports_the_rest(service: Served) -> None:
    head = await service.head()
    for number in range(5):
        assert (await service.hook(old(f"cli-{number}"))).status == 200
    assert (await service.hook(b"{")).status == 400
    assert await names(service, head) == []
    arguments = ("refused", "retry", "--url", service.url)
    first, last, bad = (await kept(service))[1]["id"], (await kept(service))[3]["id"], uuid4()
    done = await run_command(*arguments, last, str(bad), first, CHATLEDGER_ADMIN_KEY=ADMIN_KEY)
    assert (done.code, await names(service, head)) == (1, ["k-cli-1", "k-cli-3"])
    assert f"{bad}: no refused hook has this id" in done.out
    done = await run_command(*arguments, CHATLEDGER_ADMIN_KEY=ADMIN_KEY)
    assert (done.code, done.out.count("recorded, at position")) == (1, 3)
    assert await names(service, head) == [f"k-cli-{number}" for number in (1, 3, 0, 2, 4)]
    [left] = await kept(service)
    assert base64.b64decode(left["body"]) == b"{"


async def test_a_hook_is_taken_up_once_however_many_try(service: Served) -> None:
    head = await service.head()
    assert (await service.hook(old("once"))).status == 200
    [one] = await kept(service)
    answers = await asyncio.gather(*(retry(service, one["id"]) for _ in range(3)))
    assert sorted(answer.status for answer in answers) == [200, 404, 404]
    [done] = [answer for answer in answers if answer.status == 200]
    assert await names(service, head) == ["k-once"]
    assert done.body == {"id": one["id"], "position": await service.head(), "duplicate": False}
    assert done.headers["Ledger-Position"] == str(done.body["position"])


async def test_what_still_cannot_be_read_stays_and_says_why(service: Served) -> None:
    head = await service.head()
    assert (await service.hook(wrote("x", message={"id": ""}))).status == 400
    [one] = await kept(service)
    answer = await retry(service, one["id"])
    assert (answer.status, await service.head()) == (422, head)
    assert "message.message.id" in answer.body["detail"]
    assert [each["id"] for each in await kept(service)] == [one["id"]]
    assert (await retry(service, "nonsense")).status == 404


async def test_a_hook_of_another_account_is_never_taken_up(service: Served) -> None:
    head = await service.head()
    assert (await service.hook(wrote("theirs") | {"account_id": str(uuid4())})).status == 403
    [one] = await kept(service)
    assert one["why"] == "account"
    assert (await retry(service, one["id"])).status == 422
    assert await service.head() == head


async def test_a_hook_of_a_scope_that_is_not_connected_waits(service: Served) -> None:
    pool = service.run.services.pool
    id_ = await refused.keep(pool, OTHER_SCOPE, "odd", b"{}", why="unreadable", what="a hook")
    assert (await retry(service, id_)).status == 409
    assert len(await kept(service)) == 1


async def test_a_webhook_of_the_crm_is_taken_up_too(service: Served) -> None:
    head, pool = await service.head(), service.run.services.pool
    form = b"talk[add][0][talk_id]=91&talk[add][0][created_at]=1795334400"
    id_ = await refused.keep(pool, f"crm:{ACCOUNT}", "odd", form, why="unreadable", what="a webhook")
    assert (await retry(service, id_)).status == 200
    assert [event["type"] for event in await service.since(head)] == ["talk.added"]
    path = hook_path(service.run.services.keys.master, ACCOUNT)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    bad = b"talk[add][0][talk_id]=x"
    assert (await service.request("POST", path, data=bad, headers=headers)).status == 200
    [one] = await kept(service)
    assert (await retry(service, one["id"])).status == 422


async def test_many_are_taken_up_at_once_and_reads_go_on(service: Served) -> None:
    pool = service.run.services.pool
    forms = [
        f"talk[add][0][talk_id]={n}&talk[add][0][chat_id]=c-{n}&talk[add][0][contact_id]=7"
        for n in range(1, 9)
    ]
    kept_ids = [
        await refused.keep(pool, f"crm:{ACCOUNT}", "odd", form.encode(), why="unreadable", what="a webhook")
        for form in forms
    ]
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(retry(service, id_) for id_ in kept_ids))
        assert {answer.status for answer in answers} == {200}
        assert await kept(service) == []


async def test_the_same_body_is_kept_once_and_counted(service: Served) -> None:
    for _ in range(3):
        assert (await service.hook(b'{"x":1}')).status == 400
    [one] = await kept(service)
    assert (one["times"], one["why"]) == (3, "unreadable")
    assert one["first_received_at"] < one["received_at"]


async def test_an_old_hook_whose_message_is_recorded_is_not_even_kept(service: Served) -> None:
    """Whoever captured hooks could drive what matters out of the store otherwise."""
    hook = wrote("known")
    assert (await service.hook(hook)).status == 200
    assert (await service.hook(hook | {"time": int(time.time()) - 90_000})).status == 200
    assert await kept(service) == []


async def test_they_are_counted_in_the_status_and_the_metrics_and_shown(service: Served) -> None:
    assert (await service.get("/v1/status"))["refused"] == 0
    assert (await service.hook(b'{"counted":1}')).status == 400
    assert (await service.hook(old("late one"))).status == 200
    assert (await service.get("/v1/status"))["refused"] == 2
    text = (await service.ask("GET", "/metrics")).raw.decode()
    assert "chatledger_kept_hooks 2.0" in text
    for why in ("unreadable", "late"):
        assert f'chatledger_refused_hooks_total{{why="{why}"}}' in text
    done = await run_command("status", "--url", service.url, CHATLEDGER_ADMIN_KEY=ADMIN_KEY)
    assert "refused   2" in done.out


async def test_a_page_has_a_cursor_in_both_orders(service: Served) -> None:
    for number in range(5):
        assert (await service.hook(json.dumps({"n": number}).encode())).status == 400
    for order in ("asc", "desc"):
        found, cursor = [], None
        while True:
            query: dict[str, str] = {"cursor": cursor} if cursor else {}
            page = await service.get("/v1/refused", order=order, limit=2, **query)
            found += [json.loads(base64.b64decode(one["body"]))["n"] for one in page["items"]]
            if (cursor := page["next"]) is None:
                break
        assert found == sorted(range(5), reverse=order == "desc")


FILL = """INSERT INTO ledger.refused (id, scope_id, first_at, received_at, reason, why, body)
 SELECT gen_random_uuid(), %s, moment, moment, 'filled', 'unreadable', convert_to(repeat('x', %s), 'UTF8')
 FROM (SELECT now() - make_interval(secs => n) AS moment FROM generate_series(1, %s) AS n) AS t"""
IN_SCOPE = "SELECT count(*) FROM ledger.refused WHERE scope_id = %s"


@pytest.mark.parametrize(
    ("size", "number", "stay"),
    [(10, refused.KEPT_MAX, refused.KEPT_MAX), (4 * 1024 * 1024, 9, 8)],
    ids=["number", "bytes"],
)
async def test_a_scope_keeps_no_more_than_its_share(
    service: Served, size: int, number: int, stay: int
) -> None:
    async with service.run.services.pool.connection() as db:
        await db.execute(FILL, (SCOPE_ID, size, number))
        await db.execute(FILL, (OTHER_SCOPE, size, number))
        assert (await service.hook(old("replayed"))).status == 200
        assert (await service.hook(b'{"over":1}')).status == 400
        for scope, left in ((SCOPE_ID, stay + 1), (OTHER_SCOPE, number)):
            assert await (await db.execute(IN_SCOPE, (scope,))).fetchone() == (left,)
    latest = (await service.get("/v1/refused", limit=1))["items"][0]
    assert base64.b64decode(latest["body"]) == b'{"over":1}'


async def test_after_a_month_they_are_dropped(service: Served) -> None:
    assert (await service.hook(b'{"aged":1}')).status == 400
    assert (await service.hook(b'{"young":1}')).status == 400
    days = refused.KEPT_DAYS
    async with service.run.services.pool.connection() as db:
        aged = "UPDATE ledger.refused SET received_at = now() - make_interval(days => %s) WHERE body = %s"
        await db.execute(aged, (days, b'{"aged":1}'))
        await db.execute(aged, (days - 1, b'{"young":1}'))
    await refused.drop_aged(service.run.services.pool)
    assert [base64.b64decode(one["body"]) for one in await kept(service)] == [b'{"young":1}']


def test_the_age_is_a_setting() -> None:
    for text, seconds in (("90s", 90), ("15m", 900), ("24h", 86_400), ("2d", 172_800)):
        settings = load_settings(environment={"HOME": "/tmp", "CHATLEDGER_HOOK_MAX_AGE": text})
        assert settings.hook_age_seconds_max == seconds
    with pytest.raises(BadSettings, match="like 24h"):
        load_settings(environment={"HOME": "/tmp", "CHATLEDGER_HOOK_MAX_AGE": "a day"})


async def test_a_hook_that_is_old_and_unreadable_is_kept_too(service: Served) -> None:
    head = await service.head()
    hook = old("old-odd") | {"message": wrote("x", message={"id": ""})["message"]}
    assert (await service.hook(hook)).status == 200
    [one] = await kept(service)
    assert (one["why"], await service.head()) == ("late", head)


async def test_who_repeats_a_hook_neither_moves_it_to_what_may_be_dropped_nor_fills_the_log(
    service: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook that Kommo sent and we refused comes again when it is old: it stays what it was."""
    pool, body = service.run.services.pool, json.dumps(old("was-large")).encode()
    first = await refused.keep(pool, SCOPE_ID, "too large", body, why="large", what="a hook")
    for _ in range(5):
        assert (await service.hook(body)).status == 200
    [one] = await kept(service)
    assert (one["id"], one["why"], one["reason"], one["times"]) == (first, "large", "too large", 6)
    assert len([1 for line in caplog.messages if first in line]) == 1


async def test_a_hook_about_a_full_message_does_not_keep_the_next_one_waiting(service: Served) -> None:
    reaction = {"type": "react", "conversation": {"id": "chat-1"}, "message": {"id": "k-full"}, "emoji": "x"}
    body = {"account_id": ACCOUNT, "time": int(time.time())}
    reactions = [reaction | {"user": {"id": f"u-{n}"}} for n in range(WAITING_MAX + 1)]
    hooks = [service.hook(body | {"action": {"reaction": each}}) for each in reactions]
    assert [answer.status for answer in await asyncio.gather(*hooks)].count(400) == 1
    head = await service.head()
    assert (await service.hook(old("after-it"))).status == 200
    full, _ = await kept(service)
    assert (full["why"], (await retry(service, full["id"])).status) == ("too many", 422)
    done = await run_command("refused", "retry", "--url", service.url, CHATLEDGER_ADMIN_KEY=ADMIN_KEY)
    assert (done.code, await names(service, head)) == (1, ["k-after-it"])


def counted(why: str) -> float:
    """How many hooks were refused and kept, as Prometheus is told."""
    return float(REFUSED.labels(why)._value.get())


async def test_a_hook_that_is_refused_again_is_counted_once(service: Served) -> None:
    body, before = b'{"repeated": "and no hook"}', counted("unreadable")
    for _ in range(3):
        assert (await service.hook(body)).status == 400
    assert counted("unreadable") == before + 1
    await clear(service)
