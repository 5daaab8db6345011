"""Writing first: whatever comes in which order, both sides end with one chat, and nothing is refused."""

import asyncio
from collections import defaultdict, deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.delivery.prepare import as_of
from domain import commands as c
from domain import events as e
from domain import ids
from domain.state import Chat
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import (
    ANN,
    Ledger,
    Now,
    accept,
    customer,
    end,
    manager,
    operator,
    text,
)
from tests.support.system import Story, until

pytestmark = pytest.mark.story(echo=True)

CHAT, NAME, PERSON = "chat-w", "conv-w", "r-1"
STEPS = ("manager", "repeat", "answer", "reply", "operator", "push", "push-last")
steps = st.lists(st.sampled_from(STEPS), max_size=40)
laws = settings(deadline=None, max_examples=300)


class Kommo:
    """Chats and people as Kommo binds them; it refuses what would bind one of them twice."""

    def __init__(self) -> None:
        self.chats: dict[str, str | None] = {CHAT: None}
        self.people: dict[str, str | None] = {PERSON: None}

    def take(self, event: e.MessageSent | e.MessageMirrored, conversation_id: str) -> None:
        party = event.receiver or event.sender
        self._bind(self.people, party.id or "", party.ref_id)
        self._bind(self.chats, conversation_id, event.content.chat_id)

    @staticmethod
    def _bind(known: dict[str, str | None], own: str, ref: str | None) -> None:
        found = next((name for name, bound in known.items() if bound == own), None)
        if ref is None:
            known.setdefault(found or f"new-{own}", own)
            return
        assert ref in known, "Kommo does not know it"
        assert found in (None, ref), "our name is bound to another"
        assert known[ref] in (None, own), "it is bound to another name"
        known[ref] = own


class World:
    """A manager who writes first, the customer, an operator, and what is on its way to Kommo.

    Events to Kommo go in the order of their conversation; of conversations that are not one yet, in any.
    """

    def __init__(self) -> None:
        self.n = 0
        self.ledger, self.kommo = Ledger(), Kommo()
        self.hooks: list[c.Send] = []
        self.unanswered: deque[str] = deque()
        self.lanes: dict[str, deque[e.MessageSent | e.MessageMirrored]] = defaultdict(deque)
        self.first = ""

    def give(self, command: c.AnyCommand) -> None:
        for event in self.ledger.record(command).events:
            if isinstance(event, e.MessageSent | e.MessageMirrored) and event.push == "kommo":
                self.lanes[event.conversation or ""].append(event)
            elif isinstance(event, e.MessageSent):
                self.unanswered.append(event.stream)

    def step(self, name: str) -> None:
        self.n += 1
        getattr(self, name.replace("-", "_"))()

    def manager(self) -> None:
        hook = manager(self.n, f"k-{self.n}", chat=CHAT, own_chat=self.kommo.chats[CHAT])
        self.hooks.append(hook)
        self.give(hook)

    def repeat(self) -> None:
        for hook in self.hooks[-2:]:
            self.give(replace(hook, id=Now(self.n).stamp("kommo")["id"]))

    def answer(self) -> None:
        if self.unanswered:
            self.first = self.first or "answer"
            self.give(accept(self.n, self.unanswered.popleft(), "messenger", f"x-{self.n}", NAME))

    def reply(self) -> None:
        self.first = self.first or "reply"
        self.give(customer(self.n, f"m-{self.n}", chat=NAME))

    def operator(self) -> None:
        root = self.ledger.root(end("kommo", CHAT).stream)
        chat = self.ledger.states[root]
        assert isinstance(chat, Chat)
        content = text("Hi", conversation_id=chat.conversation_id)
        ends = (c.End("messenger", root, e.Ends()),)
        self.give(operator(self.n, f"o-{self.n}", ends=ends, content=content, receiver=ANN))

    def push(self, last: bool = False) -> None:
        """Kommo is told what waits longest in a conversation, once the messenger's name of that is known."""
        lanes = [lane for lane in self.lanes.values() if lane]
        if not lanes:
            return
        event = lanes[-1 if last else 0][0]
        chat = self.ledger.states[self.ledger.root(event.conversation or "")]
        assert isinstance(chat, Chat)
        if isinstance(event, e.MessageMirrored):
            event = as_of(event, chat)
        if event.content.conversation_id:
            lanes[-1 if last else 0].popleft()
            self.kommo.take(event, event.content.conversation_id)

    def push_last(self) -> None:
        self.push(last=True)

    def end(self) -> None:
        """Everybody answers, and everything arrives."""
        while self.unanswered:
            self.step("answer")
        while any(self.lanes.values()):
            self.step("push")


@laws
@given(order=steps)
def test_whatever_the_order_the_ledger_has_one_chat_and_kommo_refuses_nothing(order: list[str]) -> None:
    world = World()
    for name in ("manager", *order, "reply"):
        world.step(name)
    world.end()
    sent = [event for event in world.ledger.events if isinstance(event, e.MessageSent)]
    assert len({world.ledger.root(event.conversation or "") for event in sent}) == 1
    assert len(world.kommo.chats) == (1 if world.first == "answer" else len(world.kommo.chats))
    assert len(world.kommo.chats) <= 2
    assert NAME in world.kommo.chats.values()


@laws
@given(order=steps, replies=st.integers(1, 4))
def test_replies_to_a_chat_that_the_messenger_has_named_bind_it_once(order: list[str], replies: int) -> None:
    world = World()
    for name in ("manager", "answer", *["reply"] * replies, *order):
        world.step(name)
    world.end()
    assert (world.kommo.chats, world.kommo.people) == ({CHAT: NAME}, {PERSON: ANN.id})
    bound = [one for one in world.ledger.events if isinstance(one, e.ConversationBound)]
    root = world.ledger.root(end("kommo", CHAT).stream)
    assert [one.stream for one in bound] == [root, end("messenger", NAME).stream]


# Through the whole service.


async def first(story: Story, phone: str) -> tuple[dict[str, Any], Any]:
    """A manager writes first; what he was told, and the push that the messenger has answered."""
    order = {"phone": phone, "receiver": {"name": "Ann", "phone": phone}, "message": {"text": "Hi"}}
    told = await story.order("POST", "/manager/messages?wait=1", order)
    ours = ids.message_id(SCOPE, "kommo", told["id"])
    pushes = story.sandbox.messenger_state.pushes
    [push] = await until(lambda: [one for one in pushes.values() if one.id == ours])
    await story.until_recorded(ours, "message.accepted")
    return told, push


def reply(name: str, own: str, person: str) -> dict[str, Any]:
    return {
        "type": "message.sent",
        "conversation_id": name,
        "message_id": own,
        "sender": {"id": person, "name": "Ann"},
        "message": {"type": "text", "text": own},
    }


async def test_two_replies_at_once_bind_one_chat_and_one_person(story: Story) -> None:
    told, push = await first(story, "+15550201")
    name, person = push.conversation_id, str(push.answer["receiver_id"])
    actions = [reply(name, f"{name}-{n}", person) for n in range(2)]
    assert [status for status, _ in await asyncio.gather(*map(story.tell, actions))] == [200, 200]
    found = await story.arrived(name, 2)
    chat = story.sandbox.chat_state.chats[told["chat_id"]]
    assert {one.chat_id for one in found} == {told["chat_id"]}
    assert (chat.client_id, story.sandbox.chat_state.people[chat.client].client_id) == (name, person)
    assert len([one for one in story.sandbox.chat_state.chats.values() if one.client_id == name]) == 1


async def test_an_operator_may_answer_in_a_chat_that_kommo_began(story: Story) -> None:
    told, push = await first(story, "+15550202")
    ours = ids.message_id(SCOPE, "kommo", told["id"])
    conversation = (await story.shown(ours))["conversation"]
    receiver = {"id": str(push.answer["receiver_id"]), "name": "Ann"}
    body = {"message_id": "o-202", "message": {"type": "text", "text": "Hi"}, "receiver": receiver}
    await story.api("POST", f"/v1/conversations/{conversation}/messages", body)
    mine = ids.message_id(SCOPE, "operator", "o-202")
    await story.until_recorded(mine, "message.accepted", 2)
    [copy] = [one for one in story.sandbox.chat_state.messages.values() if one.client_id == mine]
    chat = story.sandbox.chat_state.chats[told["chat_id"]]
    assert (copy.chat_id, chat.client_id) == (told["chat_id"], push.conversation_id)
    assert story.sandbox.chat_state.people[chat.client].client_id == receiver["id"]


async def test_a_copy_waits_for_the_messengers_name_of_the_chat(story: Story) -> None:
    await story.fault("messenger.hook.message", "503", times=2)
    order = {"phone": "+15550203", "message": {"type": "text", "text": "Hi"}}
    told = await story.order("POST", "/manager/messages?wait=1", order)
    ours = ids.message_id(SCOPE, "kommo", told["id"])
    conversation = (await story.shown(ours))["conversation"]
    receiver = {"id": "u-203", "name": "Ann", "phone": "+15550203"}
    body = {"message_id": "o-203", "message": {"type": "text", "text": "Hi"}, "receiver": receiver}
    await story.api("POST", f"/v1/conversations/{conversation}/messages", body)
    mine = ids.message_id(SCOPE, "operator", "o-203")
    await story.until_recorded(mine, "message.accepted", 2)
    [copy] = [one for one in story.sandbox.chat_state.messages.values() if one.client_id == mine]
    assert copy.chat_id == told["chat_id"]
    assert "the messenger has not named the chat yet" in {
        one["reason"] for one in await story.until_recorded(mine, "delivery.deferred")
    }
