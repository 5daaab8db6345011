"""Nobody makes one message, or one unknown name, a burden for the others."""

import json
import time

from app import clock
from app.messengers import webhook
from domain.facts import WAITING_MAX
from tests.support.ids import MESSENGER_SECRET
from tests.support.service import Answer, Served, about, sent


async def post(service: Served, content: object) -> Answer:
    """Actions in a request of its own id, because what comes with one id is recorded once."""
    body = json.dumps(content).encode()
    headers = webhook.signed(MESSENGER_SECRET, clock.new_id(clock.now_ms()), body)
    return await service.request("POST", "/messengers/acme", data=body, headers=headers)


async def test_edits_of_one_unknown_id_are_bounded_and_then_quickly_applied(service: Served) -> None:
    """40 posts of 500 edits of an unknown id made the next small action take 4.7 s."""
    taken, refused = 0, 0
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
            refused += 1
            assert (result["error"]["status"], result["error"]["title"]) == (429, "Too many")
            assert "send the message first" in result["error"]["detail"]
    assert (taken, refused) == (WAITING_MAX, 2_000 - WAITING_MAX)
    alone = await post(service, about("message.edited", "unknown", message={"type": "text", "text": "more"}))
    assert (alone.status, alone.headers["Retry-After"]) == (429, "3600")
    start = time.perf_counter()
    answer = await post(service, sent(1, message_id="unknown"))
    assert answer.status == 200
    assert time.perf_counter() - start < 2
    message = await service.get(
        f"/v1/messages/{answer.body['results'][0]['id']}", at_least=answer.headers["Ledger-Position"]
    )
    assert message["text"] == f"edit 0 {WAITING_MAX - 1}"


async def test_conflicts_are_answered_and_only_the_first_are_recorded(service: Served) -> None:
    head = await service.head()
    messages = [sent(n, message_id="contested") for n in range(150)]
    answer = await post(service, messages)
    assert [one.get("error", {}).get("status") for one in answer.body["results"]] == [None] + [409] * 149
    noticed = [one for one in await service.since(head) if one["type"] == "conflict.noticed"]
    assert len(noticed) == 100
