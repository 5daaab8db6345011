"""Samples: the same realistic messages, hooks and events for every figure."""

import hashlib
import hmac
import itertools
import os
import random
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg

from app import clock
from app.database.binary import take_columns
from app.database.packed import pack
from domain import commands as c
from domain import events as e
from domain import ids
from domain.decide import decide
from domain.draft import Snapshot
from domain.state import State
from projections.columns import blobs, longs, texts, uuids

CHANNEL_ID = "f62a0162-46a6-4a63-a5ff-0b1e2b1d1a01"
ACCOUNT = "52e591f7-c98f-4255-8495-827210138c81"
SECRET = "f2d7f8704eff95087ed45b23ba99c0b5aac8278e"  # noqa: S105  # Kommo's published sample
MANAGER = "0f8f1c5e-7f0a-4c52-9a43-3b1d0c7a1e01"
MESSENGER_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
ids.use_namespace(None)
LINK = ids.scope_of("bench", CHANNEL_ID, ACCOUNT)
WORDS = ("order", "arrived", "today", "just", "hoped", "thank", "you", "could", "also", "send", "the", "red")
RUN = os.urandom(4).hex()
PAGE = 5_000
HEAD = "SELECT coalesce(max(notification_id), 0) FROM ledger.stored_events"
INSERT = """INSERT INTO ledger.stored_events
 (originator_id, originator_version, topic, state, notification_id)
 SELECT * FROM unnest(%b::uuid[], %b::bigint[], %b::text[], %b::bytea[], %b::bigint[])"""

_number = itertools.count()


def text() -> str:
    """A message of four to sixteen words."""
    return " ".join(random.choices(WORDS, k=random.randint(4, 16)))


def send(conversation: str, now: int) -> c.Send:
    """A customer's message as the messenger webhook makes it a command."""
    own_id = f"m-{next(_number)}-{RUN}"
    stream = ids.conversation_id(LINK, ids.MESSENGER, conversation)
    return c.Send(
        **clock.stamp(LINK, stream, ids.MESSENGER, now=now),
        stream=ids.message_id(LINK, ids.MESSENGER, own_id),
        side="messenger",
        own_id=own_id,
        msec=now,
        ends=(c.End("messenger", stream, e.Ends(conversation_id=conversation)),),
        sender=e.Party(id=f"u-{conversation}", name="Ann Example", phone="+15550100"),
        content=e.Content(type="text", text=text(), conversation_id=conversation),
    )


def account(number: int) -> str:
    """The amojo id of one of many accounts; 0 is the bench's own."""
    return str(uuid.UUID(int=uuid.UUID(ACCOUNT).int ^ number))


def hook(conversation: int, account_id: str = ACCOUNT) -> tuple[bytes, str]:
    """A signed v2 hook: its body and X-Signature."""
    now = clock.now_ms()
    number = next(_number)
    chat = hashlib.md5(f"{conversation}".encode(), usedforsecurity=False).hexdigest()
    body = msgspec.json.encode(
        {
            "account_id": account_id,
            "time": now // 1000,
            "message": {
                "receiver": {"id": "r-1", "phone": "+15550100", "client_id": f"u-{conversation}"},
                "sender": {"id": MANAGER},
                "conversation": {"id": chat, "client_id": f"conv-{conversation}"},
                "timestamp": now // 1000,
                "msec_timestamp": now,
                "message": {"id": f"k-{number}-{RUN}", "type": "text", "text": text(), "markup": None,
                            "tag": "", "media": "", "thumbnail": "", "file_name": "", "file_size": 0},
            },
        }
    )  # fmt: skip
    return body, hmac.digest(SECRET.encode(), body, "sha1").hex()


def history(messages: int, per_chat: int = 100, *, replies: bool = True) -> Iterator[e.AnyEvent]:
    """Messages and their facts: sent, accepted, named; every other one is a reply, delivered and read."""
    states: dict[str, State] = {}
    now = clock.now_ms() - messages * 10
    for number in range(messages):
        if number % per_chat == 0:
            states.clear()
        now += 10
        yield from _life(states, f"chat-{number // per_chat}", now, outgoing=replies and number % 2 == 1)


def _life(states: dict[str, State], chat: str, now: int, *, outgoing: bool) -> Iterator[e.AnyEvent]:
    command = send(chat, now)
    if outgoing:
        command = msgspec.structs.replace(command, side="kommo", by="kommo", stream=_kommo(command.own_id))
    stamp = clock.stamp(LINK, command.lane, "kommo", now=now + 1)
    remote = f"r-{command.own_id}"
    side: e.Side = "messenger" if outgoing else "kommo"
    alias = ids.message_id(LINK, side, remote)
    steps: list[c.AnyCommand] = [
        command,
        c.Accept(**stamp, stream=command.stream, side=side, remote_id=remote, alias=alias),
    ]
    if outgoing:
        for status in ("delivered", "read"):
            stamp = clock.stamp(LINK, command.lane, "messenger", now=now + 2)
            steps.append(c.Confirm(**stamp, streams=(alias,), status=status))
            cause = ids.nth(stamp["id"], 0)
            stamp = clock.stamp(LINK, command.lane, "system", now=now + 3)
            steps.append(c.Complete(**stamp, stream=command.stream, cause=cause))
    for step in steps:
        decision = decide(step, Snapshot(states, {}))
        states.update(decision.states)
        yield from decision.events


def _kommo(own_id: str) -> str:
    return ids.message_id(LINK, ids.KOMMO, own_id)


def busy(own_id: str, facts: int, now: int) -> Iterator[e.AnyEvent]:
    """A customer's message with so many facts: a quarter reactions, the rest outcomes of deliveries."""
    command = msgspec.structs.replace(send(f"chat-{own_id}", now), own_id=own_id)
    stream = ids.message_id(LINK, ids.MESSENGER, own_id)
    decision = decide(msgspec.structs.replace(command, stream=stream), Snapshot({}, {}))
    yield from decision.events
    sent = decision.events[-1]
    for version in range(sent.version + 1, sent.version + facts + 1):
        base: dict[str, Any] = {
            "id": clock.new_id(now),
            "stream": stream,
            "version": version,
            "channel": sent.channel,
            "account": sent.account,
            "conversation": sent.conversation,
            "message": stream,
            "at": sent.at,
            "recorded_at": sent.recorded_at,
            "schema": e.SCHEMA,
        }
        if version % 4:
            yield e.DeliveryCompleted(**base, by="system", cause=clock.new_id(now))
        else:
            sender = e.Party(id=f"reader-{version}")
            yield e.ReactionAdded(**base, by=ids.MESSENGER, sender=sender, content=e.Ends(), emoji="👍")


async def fill(url: str, events: int) -> None:
    """Write so many events of history straight into an empty ledger."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await write(connection, itertools.islice(history(events), events))
        await connection.execute("VACUUM (ANALYZE) ledger.stored_events")


async def write(
    connection: psycopg.AsyncConnection[tuple[object, ...]],
    events: Iterator[e.AnyEvent],
    *,
    packed: bool = False,
) -> None:
    """Write events straight into a ledger, behind what it has; nobody else may write meanwhile."""
    stored = pack if packed else bytes
    take_columns(connection)
    ((position,),) = await (await connection.execute(HEAD)).fetchall()
    assert isinstance(position, int)
    while page := list(itertools.islice(events, PAGE)):
        numbers = list(range(position + 1, position + len(page) + 1))
        columns = (
            uuids([event.stream for event in page]),
            longs([event.version for event in page]),
            texts([e.tag(event) for event in page]),
            blobs([stored(e.encode(event)) for event in page]),
            longs(numbers),
        )
        await connection.execute(INSERT.encode(), columns)
        position += len(page)
