"""Files to import, and how they are sent: lines of NDJSON over HTTP, as the command does."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from io import BytesIO
from typing import Any, NamedTuple

from app import clock
from ops.sandbox.state.chats import Message as KommoMessage
from tests.support.ids import AS_ADMIN, SCOPE
from tests.support.system import Story

BEGIN_MS = 1_700_000_000_000
HEADERS = {**AS_ADMIN, "Content-Type": "application/x-ndjson"}
Json = dict[str, Any]
Line = Json | str


class Answer(NamedTuple):
    """The lines of progress and the report; or, with another status than 200, the problem."""

    status: int
    progress: list[Json]
    report: Json


def line(conversation: str, number: int, **changed: Any) -> Json:
    """A customer's message, a second after the one with the number before; None leaves a field out."""
    told = {
        "type": "message.sent",
        "direction": "in",
        "conversation_id": conversation,
        "message_id": f"{conversation}-{number}",
        "at": clock.text(BEGIN_MS + number * 1000),
        "sender": {"id": f"u-{conversation}", "name": "Ann"},
        "message": {"type": "text", "text": f"{conversation} {number}"},
    }
    return {name: value for name, value in (told | changed).items() if value is not None}


def outgoing(conversation: str, number: int, **changed: Any) -> Json:
    """What the business wrote to the customer."""
    customer = {"id": f"u-{conversation}", "name": "Ann"}
    told = {"direction": "out", "sender": {"id": "phone", "name": "Shop"}, "receiver": customer}
    return line(conversation, number, **(told | changed))


def ndjson(lines: Iterable[Line]) -> bytes:
    """The file; what is given as text goes in as it is."""
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines).encode()


def mixed(conversations: Iterable[str], each: int) -> list[Json]:
    """So many messages of each conversation, in turn, every fourth written by the business."""
    names = list(conversations)
    return [(outgoing if number % 4 == 3 else line)(name, number) for number in range(each) for name in names]


async def imported(
    story: Story, body: bytes | AsyncIterator[bytes], *, headers: Mapping[str, str] = {}, **query: Any
) -> Answer:
    """Import, and hear it to the end."""
    url, place = f"{story.url}/v1/import", {"channel": "acme"} | query
    data = BytesIO(body) if isinstance(body, bytes) else body
    async with story.client.post(url, params=place, data=data, headers={**HEADERS, **headers}) as answer:
        if answer.status != 200:
            return Answer(answer.status, [], await answer.json(content_type=None))
        told = [json.loads(one) async for one in answer.content]
    assert [one.pop("type") for one in told] == [*["progress"] * (len(told) - 1), "report"]
    return Answer(200, told[:-1], told[-1])


async def report(story: Story, lines: Iterable[Line], **query: Any) -> Json:
    """The report of an import that must be answered."""
    answer = await imported(story, ndjson(lines), **query)
    assert answer.status == 200, answer
    return answer.report


def feed(story: Story, conversation: str) -> list[KommoMessage]:
    """A chat as Kommo shows it: by msec_timestamp."""
    crm = story.sandbox.chat_state
    found = crm.chat(SCOPE.scope_id, conversation)
    return sorted(crm.timelines[found.id], key=lambda one: one.msec_timestamp) if found else []


def texts(messages: Iterable[KommoMessage]) -> list[Any]:
    """What they say."""
    return [one.message["text"] for one in messages]
