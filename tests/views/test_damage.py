"""A damaged row of the ledger stops nothing but itself, in flight and at every start, until it is mended."""

import json
from typing import Any, cast

import psycopg

from app.config.settings import Settings
from app.servers.servers import Servers
from app.service.service import running
from domain import ids
from tests.support.console import System, browsing
from tests.support.ids import ADMIN_KEY, AS_ADMIN, MASTER_KEY, SCOPE
from tests.support.ledgers.stream_ledger import stored
from tests.support.processes import run_command
from tests.support.system import Story, chat, installed, until

CONCERNED = ("conversations", "messages", "deliveries", "events", "waiting")
GARBAGE = b'{"type":"message.sent","id":"\xff'


async def spoil(settings: Settings, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Change the ledger as only the owner of the database can."""
    url = settings.database_url or ""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
        await owner.execute("SET session_replication_role = replica")  # Without the trigger that forbids it.
        cursor = await owner.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description else []


async def insert_garbage(settings: Settings) -> int:
    ((position,),) = await spoil(
        settings,
        "INSERT INTO ledger.stored_events SELECT gen_random_uuid(), 1, 'message.sent', %s,"
        " max(notification_id) + 1 FROM ledger.stored_events RETURNING notification_id",
        GARBAGE,
    )
    return int(position)


async def parked(story: Story) -> set[tuple[str, int]]:
    status = await story.api("GET", "/v1/status")
    shown = {(one["view"], one["position"]) for one in status["projection"]["parked"]}
    assert {view["view"]: view["parked"] for view in status["views"]} == {
        view["view"]: sum(1 for name, _ in shown if name == view["view"]) for view in status["views"]
    }
    return shown


async def works(story: Story) -> None:
    """Both ways, with a conversation of its own."""
    name = chat()
    message = await story.customer(name)
    await story.arrived(name)
    await story.manager(name)
    await story.pushed(name)
    assert (await story.shown(message))["text"] == "Hello"


async def test_a_damaged_row_is_parked_and_everything_else_goes_on(servers: Servers) -> None:
    async with installed(servers) as (story, settings):
        async with running(settings) as run:
            await story.connect()
            await works(story)
            await story.settled()
            position = await insert_garbage(settings)
            await works(story)
            views = ("conversations", "messages", "deliveries", "events", "waiting")
            concerned = {(view, position) for view in views}
            assert await parked(story) == concerned
            assert await story.api("GET", f"/v1/events?after={position - 1}&limit=1") == {
                "items": [
                    {
                        "position": position,
                        "event": {
                            "type": "unreadable",
                            "base64": "eyJ0eXBlIjoibWVzc2FnZS5zZW50IiwiaWQiOiL/",
                        },
                    }
                ],
                "next": position,
            }
            async with story.client.get(f"{story.url}/metrics", headers=AS_ADMIN) as answer:
                assert 'chatledger_view_parked{view="messages"} 1.0' in await answer.text()
            relay = run.services.relay
            assert relay is not None
            await until(lambda: relay.position > position)
            assert (await stored(settings.nats_url or ""))[position] == GARBAGE
        async with running(settings):
            await works(story)
            assert await parked(story) == concerned
            environment = {
                "CHATLEDGER_DATABASE_URL": settings.database_url or "",
                "CHATLEDGER_NATS_URL": settings.nats_url or "",
                "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
                "CHATLEDGER_MASTER_KEY": MASTER_KEY,
            }
            still = await run_command("views", "retry", **environment)
            assert (still.code, len(still.out.splitlines())) == (1, len(CONCERNED)), still
            await mend(story, settings, position)
            left = await run_command("views", "retry", "messages", **environment)
            assert (left.code, left.out) == (0, "nothing is parked\n"), left
            assert await parked(story) == set()
            await works(story)
            unknown = await run_command("views", "retry", "nothing", **environment)
            assert (unknown.code, "give one of channels, conversations" in unknown.err) == (2, True)


async def mend(story: Story, settings: Settings, position: int) -> None:
    """Put an event in the place of the garbage that changes nothing."""
    ((state,),) = await spoil(
        settings,
        "SELECT state FROM ledger.stored_events WHERE topic = 'delivery.completed' OR topic = 'message.read'"
        " OR topic = 'message.accepted' ORDER BY notification_id LIMIT 1",
    )
    event = json.loads(state) | {"stream": ids.message_id(SCOPE, "messenger", "mended"), "version": 1}
    await spoil(
        settings,
        "UPDATE ledger.stored_events SET state = %s WHERE notification_id = %s",
        json.dumps(event).encode(),
        position,
    )


async def test_what_needs_a_damaged_past_fails_alone(servers: Servers) -> None:
    async with installed(servers) as (story, settings), running(settings) as story.run:
        await story.connect()
        name = chat()
        message = await story.customer(name, message_id="spoiled")
        await story.arrived(name)
        await story.settled()
        await spoil(
            settings,
            "UPDATE ledger.stored_events SET state = %s WHERE originator_id = %s",
            GARBAGE,
            message,
        )
        edit = {"type": "message.edited", "conversation_id": name, "message_id": "spoiled"}
        status, problem = await story.tell(edit | {"message": {"type": "text", "text": "Bye"}})
        assert status == 503, problem
        assert (await story.shown(message))["timeline"] == []
        conversation = ids.conversation_id(SCOPE, "messenger", name)
        async with browsing(cast("System", story)) as browser:
            await browser.sign_in()
            for path in (f"/messages/{message}", "/events", f"/conversations/{conversation}", "/status"):
                answer, _ = await browser.get(path)
                assert answer.status == 200, path
        await works(story)
