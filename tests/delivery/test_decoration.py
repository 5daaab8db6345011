"""What a message can do without never costs the message: it goes again without it, and the event says so."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.kommo.chats.payloads import request
from app.outcome import Done, Refused, Retry
from domain import events as e
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import MARIA, customer, manager
from tests.support.system import Story, chat
from tests.support.virtual import loop
from tests.support.virtual.simulation import Simulation

ANN = e.Party(
    id="u-1",
    name="Ann",
    avatar="https://a.example/a.jpg",
    profile_link="https://a.example/ann",
    phone="+1555",
)
DECORATED: dict[str, Any] = {
    "sender": ANN,
    "source": "shop",
    "reply": e.Reply("m-0", quoted={"type": "text", "text": "?"}),
}
FIELDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "reply_to": lambda payload: "reply_to" in payload,
    "source": lambda payload: "source" in payload,
    "sender.avatar": lambda payload: "avatar" in payload["sender"],
    "sender.profile_link": lambda payload: "profile_link" in payload["sender"],
    "sender.profile": lambda payload: "profile" in payload["sender"],
}


def payload_of(event: Any) -> dict[str, Any]:
    payload: Any = request(SCOPE.scope_id, event)[1]["payload"]
    return dict(payload)


def refusing(sim: Simulation, faulty: set[str], text: str = "invalid") -> None:
    """A Kommo that refuses some parts of a message."""

    def script(event: Any) -> Any:
        if any(has(payload_of(event)) for name, has in FIELDS.items() if name in faulty):
            return Refused(400, 905, text)
        return sim.kommo.take(event)

    sim.kommo.script = script


def then(answers: Iterator[Any], taking: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A side that gives these answers, and takes all after them."""
    return lambda event: next(answers, None) or taking(event)


def accepted(sim: Simulation) -> list[e.MessageAccepted]:
    return [one for one in sim.events(e.MessageAccepted) if isinstance(one, e.MessageAccepted)]


@pytest.mark.parametrize("part", FIELDS)
def test_one_part_is_left_out_and_the_others_stay(part: str) -> None:
    async def main() -> None:
        sim = Simulation()
        refusing(sim, {part})
        sim.ledger.give(customer(1, **DECORATED))
        await sim.idle()
        [one] = accepted(sim)
        assert (one.left_out, sim.events(e.MessageFailed)) == ([part], [])
        last = payload_of(sim.kommo.calls[-1].event)
        assert last["message"]["text"] == "Hello"
        assert [name for name, has in FIELDS.items() if not has(last)] == [part]
        assert last["sender"]["name"] == "Ann"

    loop.run(main)


@pytest.mark.parametrize("text", ["source: does not exist", "Source not found"])
def test_the_part_that_the_answer_means_is_left_out_first(text: str) -> None:
    async def main() -> None:
        sim = Simulation()
        refusing(sim, {"source"}, text)
        sim.ledger.give(customer(1, **DECORATED))
        await sim.idle()
        assert (len(sim.kommo.calls), accepted(sim)[0].left_out) == (2, ["source"])

    loop.run(main)


def test_several_faulty_parts_are_left_out_together() -> None:
    async def main() -> None:
        sim = Simulation()
        refusing(sim, {"source", "sender.avatar"})
        sim.ledger.give(customer(1, **DECORATED))
        await sim.idle()
        assert sorted(accepted(sim)[0].left_out) == sorted(FIELDS)
        assert len(sim.kommo.calls) == len(FIELDS) + 2

    loop.run(main)


def test_a_name_is_left_out_only_if_the_answer_means_it() -> None:
    async def main(text: str) -> tuple[int, int]:
        sim = Simulation()
        answers = iter([Refused(400, 905, text)])
        sim.kommo.script = then(answers, sim.kommo.take)
        sim.ledger.give(customer(1))
        await sim.idle()
        return len(accepted(sim)), len(sim.kommo.calls)

    assert loop.run(lambda: main("sender.name: is too long")) == (1, 2)
    assert loop.run(lambda: main("message.text: is too long")) == (0, 1)


def test_what_is_refused_without_all_of_it_has_failed() -> None:
    async def main() -> None:
        sim = Simulation()
        sim.kommo.script = lambda event: Refused(400, 905, "message.text: is too long")
        sim.ledger.give(customer(1, **DECORATED))
        await sim.idle()
        [failed] = sim.events(e.MessageFailed)
        assert isinstance(failed, e.MessageFailed)
        assert (failed.text, len(sim.kommo.calls)) == ("message.text: is too long", len(FIELDS) + 2)

    loop.run(main)


def test_what_was_left_out_stays_so_while_kommo_is_busy() -> None:
    async def main() -> None:
        sim = Simulation()
        answers = iter([Refused(400, 905, "source"), Retry("HTTP 503"), Retry("HTTP 503")])
        sim.kommo.script = then(answers, sim.kommo.take)
        sim.ledger.give(customer(1, **DECORATED))
        await sim.idle()
        shown = ["source" in payload_of(call.event) for call in sim.kommo.calls]
        assert (shown, accepted(sim)[0].left_out) == ([True, False, False, False], ["source"])

    loop.run(main)


def test_a_messenger_gets_it_without_too_unless_it_says_why() -> None:
    async def main(refused: Refused) -> tuple[list[list[str]], int]:
        sim = Simulation()
        answers = iter([refused])
        sim.messenger.script = then(answers, lambda push: Done(f"x-{push.event.id}"))
        thumbnail = e.Content(
            type="picture",
            media="https://a.example/a",
            thumbnail="https://a.example/t",
            conversation_id="conv-1",
        )
        sim.ledger.give(manager(1, content=thumbnail, sender=MARIA))
        await sim.idle()
        return [one.left_out for one in accepted(sim)], len(sim.messenger.calls)

    assert loop.run(lambda: main(Refused(422, 905, "HTTP 422"))) == ([["thumbnail"]], 2)
    assert loop.run(lambda: main(Refused(422, 904, "not a user", sure=True))) == ([], 1)


async def test_a_reply_that_kommo_refuses_does_not_cost_the_message(story: Story) -> None:
    name = chat()
    first = await story.customer(name)
    await story.arrived(name)
    body = {"title": "reply_to.message: is in another chat"}
    await story.fault("kommo.new_message", "400", conversation_id=name, body=body)
    action = {
        "type": "message.sent",
        "conversation_id": name,
        "message_id": f"{name}-2",
        "sender": {"id": f"u-{name}", "name": "Ann"},
        "message": {"type": "text", "text": "again"},
        "reply_to": {"message_id": (await story.shown(first))["remote"]["messenger"]},
    }
    status, told = await story.tell(action)
    assert status == 200, told
    assert [one.message["text"] for one in await story.arrived(name, 2)] == ["Hello", "again"]
    [accepted] = await story.until_recorded(told["results"][0]["id"], "message.accepted")
    assert accepted["left_out"] == ["reply_to"]
