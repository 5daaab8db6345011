"""What Kommo's CRM tells becomes events once, wherever its chat is known; what is told badly does no harm."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import aiohttp
import nats
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app import clock
from app.channels.directory import Channel, Connection, Secrets
from app.database import names
from app.kommo.crm import contact_links, hooks, php_form
from app.kommo.crm.php_form import DEPTH_MAX, PAIRS_MAX, BadForm, Tree
from domain import commands as c
from domain import events as e
from domain import ids
from domain.ids import KOMMO
from ops.sandbox import OAuthClient
from tests.support.ids import ACCOUNT, AS_ADMIN, CHANNEL, MASTER_BYTES, SCOPE
from tests.support.system import Story, chat, until

pytestmark = pytest.mark.story(oauth=(OAuthClient("client", "secret", "http://127.0.0.1:9/"),))

GOLDEN = Path(__file__).parents[1] / "golden" / "crm"
CHAT = "6cbab3d5-c4c1-46ff-b710-ad59ad10805f"
UID = "98fb033cefde74f5de1a5d3980a2a2d1"
TALK = {
    "talk_id": 1170, "changed": 1795334400, "chat_id": CHAT, "contact_id": 4215, "entity_id": None,
    "entity_type": None, "is_in_work": True, "is_read": False, "rate": None, "origin": "amo.ext.acme",
}  # fmt: skip
LEAD = {"uid": UID, "chat_id": CHAT, "contact_id": 4215, "lead_id": None, "user_id": None}
READ: dict[str, tuple[Any, dict[str, Any]]] = {
    "talk.add": (True, TALK),
    "talk.answered": (False, TALK | {"changed": 1795334460, "is_read": True}),
    "talk.closed": (
        False,
        TALK
        | {"changed": 1795334520, "is_read": True, "is_in_work": False, "rate": 5}
        | {"entity_id": 77, "entity_type": "lead"},
    ),
    "lead.added": ("received", LEAD),
    "lead.updated": ("received", LEAD),
    "lead.accepted": ("accepted", LEAD | {"lead_id": 77, "user_id": 501}),
    "lead.declined": ("declined", LEAD | {"lead_id": 77, "user_id": 501}),
    "lead.linked": ("linked", LEAD | {"lead_id": 78, "contact_id": 4216, "user_id": 501}),
}
REVIEW = {
    "template_id": 5, "kind": "waba", "name": "Welcome", "changed": 1795334400,
    "reviews": [e.Review(id=9, source_id=11, status="review")],
}  # fmt: skip
CHANNELS = {
    "acme": Channel(
        "acme", CHANNEL, "webhook", "http://127.0.0.1:9", None, Secrets("k", "m"),
        {ACCOUNT: Connection(SCOPE, "Acme", False, "")},
    )
}  # fmt: skip


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.txt").read_bytes()


def body(kind: str, action: str = "add", **fields: str | int) -> bytes:
    """A form about one talk or lead."""
    return urlencode({f"{kind}[{action}][0][{name}]": value for name, value in fields.items()}).encode()


class Crm:
    """The CRM of the story's account, in the hands of the test."""

    def __init__(self, story: Story) -> None:
        self.story, self.url = story, story.url + hooks.hook_path(MASTER_BYTES, ACCOUNT)

    async def tell(self, told: bytes, *, url: str = "", **headers: str) -> int:
        async with self.story.client.post(url or self.url, data=told, headers=headers) as answer:
            assert answer.status == 200 or (await answer.json())["detail"]
            return answer.status

    async def since(self, head: int, **filters: Any) -> list[dict[str, Any]]:
        """What is recorded of talks, leads and links after a position."""
        found = await self.story.events(after=head, **filters)
        return [
            event
            for event in found
            if event["type"].startswith(("talk.", "lead.", "conversation.linked", "template."))
        ]

    async def chat(self) -> tuple[str, str]:
        """A chat that both sides know: the messenger's name of it, and Kommo's."""
        name = chat()
        await self.story.customer(name)
        await self.story.arrived(name)
        told = await self.story.manager(name)
        return name, str(told["chat_id"])

    async def shown(self, name: str) -> tuple[int | None, int | None]:
        """The contact and the lead of a conversation."""
        head = await self.story.head()
        found = await self.story.api("GET", f"/v1/conversations?conversation_id={name}&at_least={head}")
        [one] = found["items"]
        return one["contact_id"], one["lead_id"]


@pytest.fixture
def crm(story: Story) -> Crm:
    return Crm(story)


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# Reading.


@pytest.mark.parametrize("name", READ)
def test_a_documented_body_is_read_whole(name: str) -> None:
    [command], unread = hooks.commands(ACCOUNT, php_form.read(golden(name)), CHANNELS)
    assert isinstance(command, c.Talk | c.Lead)
    became = command.added if isinstance(command, c.Talk) else command.became
    assert (became, command.fields, unread) == (*READ[name], [])
    assert command.chats == ((SCOPE, ids.conversation_id(SCOPE, KOMMO, CHAT)),)
    assert (command.scope.account, command.scope.channel) == (ACCOUNT, "")


def test_a_templates_review_is_read_without_what_the_template_says() -> None:
    [command], unread = hooks.commands(ACCOUNT, php_form.read(golden("template.review")), CHANNELS)
    assert isinstance(command, c.Review)
    assert (command.fields, unread) == (REVIEW, [])
    assert command.stream == ids.template_stream(ACCOUNT, 5)


def test_a_reason_of_any_length_fits_an_event() -> None:
    many = {f"add[0][reviews][{n}][reject_reason]": "\x01" * 10_000 for n in range(20)}
    more = {f"add[0][reviews][{n}][id]": str(n + 1) for n in range(500)}
    tree = php_form.read(urlencode({"add[0][id]": "5", **many, **more}).encode())
    [command], _ = hooks.commands(ACCOUNT, tree, CHANNELS)
    assert isinstance(command, c.Review)
    assert len(e.encode(command.fields)) < e.EVENT_BYTES_MAX


def test_a_message_that_we_know_already_is_no_command() -> None:
    assert hooks.commands(ACCOUNT, php_form.read(golden("message.add")), CHANNELS) == ([], [])


def test_every_golden_body_is_read_by_a_test() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == READ.keys() | {"message.add", "template.review"}


def test_only_the_result_may_say_what_became_of_a_lead() -> None:
    tree = php_form.read(body("unsorted", "delete", uid="u", **{"decline_result][leads][0": "5"}))
    [command], _ = hooks.commands(ACCOUNT, tree, CHANNELS)
    assert isinstance(command, c.Lead)
    assert (command.became, command.fields["lead_id"]) == ("declined", 5)


@pytest.mark.parametrize(
    ("form", "tree"),
    [
        (b"a=1&a=2", {"a": "2"}),
        (b"a[b][c]=x+y%20z", {"a": {"b": {"c": "x y z"}}}),
        (b"a[]=1&a[]=2", {"a": {"0": "1", "1": "2"}}),
        (b"a=1&a[b]=2", {"a": {"b": "2"}}),
        (b"a[b=1&]c[=2&=3", {"a[b": "1", "]c[": "2"}),
        (b"a%5Bb%5D=%00%ff", {"a": {"b": "\ufffd\ufffd"}}),
        (b"&&a&", {"a": ""}),
        (b"", {}),
    ],
)
def test_brackets_are_read_as_php_reads_them(form: bytes, tree: Tree) -> None:
    assert php_form.read(form) == tree


@pytest.mark.parametrize(
    "form", [b"a" + b"[b]" * DEPTH_MAX + b"=1", b"a=1&" * (PAIRS_MAX + 1), b"a" + b"[b]" * 80_000 + b"=1"]
)
def test_a_form_beyond_the_bounds_is_refused_at_once(form: bytes) -> None:
    begin = time.monotonic()
    with pytest.raises(BadForm):
        php_form.read(form)
    assert time.monotonic() - begin < 0.5


NAMES = st.text(st.characters(exclude_characters="[]\0", exclude_categories=["Cs"]), min_size=1, max_size=5)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        TEXTS, lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=4), max_leaves=10
    ).filter(lambda tree: depth(tree) < DEPTH_MAX),
    max_size=5,
)


def depth(tree: Tree | str) -> int:
    return 1 + max(map(depth, tree.values())) if isinstance(tree, dict) else 0


def pairs(tree: Tree, outer: str = "") -> list[str]:
    """As PHP writes it."""
    found = []
    for name, value in tree.items():
        key = f"{outer}[{name}]" if outer else name
        found += pairs(value, key) if isinstance(value, dict) else [f"{quote_plus(key)}={quote_plus(value)}"]
    return found


@given(TREES)
def test_what_php_writes_is_read_as_it_was(tree: Tree) -> None:
    assert php_form.read("&".join(pairs(tree)).encode()) == tree


PIECES = st.sampled_from(
    b"talk unsorted message add update delete [ ] [0] [talk_id] = & 1 -1 uid %00 % [chat_id] _result".split()
)
BODIES = st.lists(PIECES, max_size=40).map(b"".join) | st.binary(max_size=200)


@given(BODIES)
def test_whatever_comes_is_read_or_refused(form: bytes) -> None:
    with contextlib.suppress(BadForm):
        hooks.commands(ACCOUNT, php_form.read(form), CHANNELS)


@given(form=BODIES)
@example(form=b"talk[add][0][talk_id]=" + b"9" * 30)
@example(form=b"unsorted[delete][0][uid]=%00")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_comes_is_taken(crm: Crm, form: bytes) -> None:
    assert await crm.tell(form) == 200


# Through the whole service.


async def test_a_talk_tells_which_contact_and_lead_a_conversation_belongs_to(crm: Crm) -> None:
    name, chat_id = await crm.chat()
    head = await crm.story.head()
    told: dict[str, Any] = {"talk_id": 7001, "updated_at": 1795334400, "chat_id": chat_id, "contact_id": 4215}
    assert await crm.tell(body("talk", **told)) == 200
    added, linked = await crm.since(head)
    assert (added["type"], linked["type"]) == ("talk.added", "conversation.linked")
    assert (added["conversation"], added["channel"]) == (linked["conversation"], "acme")
    assert await crm.shown(name) == (4215, None)
    more = {"updated_at": 1795334500, "entity_id": 77, "entity_type": "lead"}
    await crm.tell(body("talk", "update", **(told | more)))
    assert await crm.shown(name) == (4215, 77)
    found = await crm.story.events(type="talk.updated", conversation=added["conversation"])
    assert [event["entity_id"] for event in found] == [77]


async def test_a_chat_told_of_before_it_is_known_is_linked_once_it_is(crm: Crm) -> None:
    name, kommo_id = chat(), "chat-not-known-yet"
    told: dict[str, Any] = {"talk_id": 7011, "chat_id": kommo_id}
    later = body("talk", "update", updated_at=1795334500, contact_id=4300, **told)
    await crm.tell(later)
    await crm.tell(body("talk", updated_at=1795334400, contact_id=4299, **told))
    await crm.story.customer(name)
    await crm.story.arrived(name)
    seconds = clock.now_ms() // 1000
    outgoing = {
        "conversation": {"id": kommo_id, "client_id": name},
        "message": {"id": f"k-{name}", "type": "text", "text": "Hi"},
        "timestamp": seconds,
    }
    assert await crm.story.hook({"account_id": ACCOUNT, "time": seconds, "message": outgoing}) == 200
    async with asyncio.timeout(10):
        while await crm.shown(name) != (4300, None):  # noqa: ASYNC110 - the service's own time
            await asyncio.sleep(0.1)
    head = await crm.story.head()
    await crm.tell(later)
    await asyncio.sleep(contact_links.LOOK_SECONDS * 1.5)
    assert await crm.since(head) == []


async def test_the_same_told_again_is_no_news_and_an_older_talk_changes_no_link(crm: Crm) -> None:
    name, chat_id = await crm.chat()
    old = body("talk", "update", talk_id=7002, updated_at=1795334400, chat_id=chat_id, contact_id=1)
    new = body("talk", "update", talk_id=7002, updated_at=1795334500, chat_id=chat_id, contact_id=2)
    assert await crm.tell(new) == 200
    head = await crm.story.head()
    assert [await crm.tell(new) for _ in range(3)] == [200] * 3
    assert await crm.since(head) == []
    assert await crm.tell(old) == 200
    assert types(await crm.since(head)) == ["talk.updated"]
    assert await crm.shown(name) == (2, None)


async def test_repeats_at_the_same_time_are_one_event(crm: Crm) -> None:
    head = await crm.story.head()
    told = body("talk", talk_id=7003, updated_at=1795334400, contact_id=1)
    assert await asyncio.gather(*(crm.tell(told) for _ in range(20))) == [200] * 20
    assert types(await crm.since(head)) == ["talk.added"]


async def test_a_lead_is_received_and_accepted_and_its_conversation_linked(crm: Crm) -> None:
    name, chat_id = await crm.chat()
    head = await crm.story.head()
    for part in ("lead.added", "lead.accepted"):
        assert await crm.tell(golden(part).replace(CHAT.encode(), chat_id.encode())) == 200
    expected = ["lead.received", "conversation.linked", "lead.accepted", "conversation.linked"]
    assert types(await crm.since(head)) == expected
    assert await crm.shown(name) == (4215, 77)


async def test_a_declined_lead_links_nothing(crm: Crm) -> None:
    name, chat_id = await crm.chat()
    head = await crm.story.head()
    told = golden("lead.declined").replace(CHAT.encode(), chat_id.encode()).replace(UID.encode(), b"other")
    assert await crm.tell(told) == 200
    assert types(await crm.since(head)) == ["lead.declined"]
    assert await crm.shown(name) == (None, None)


async def test_the_talk_of_a_chat_that_nobody_knows_is_told_of_the_account(crm: Crm) -> None:
    head = await crm.story.head()
    await crm.tell(body("talk", talk_id=7004, updated_at=1, chat_id="elsewhere", contact_id=1))
    [event] = await crm.since(head, type="talk.added", account_id=ACCOUNT)
    assert (event["channel"], event.get("conversation")) == ("", None)
    assert crm.story.run
    client = await nats.connect(crm.story.run.services.settings.nats_url or "")
    subject = f"ledger.p00.{ACCOUNT}.-.talk_added"
    published = await client.jetstream().subscribe(subject, ordered_consumer=True)
    while json.loads((message := await published.next_msg(10)).data) != event:
        pass
    assert message.headers
    assert message.headers["ce-source"] == f"/accounts/{ACCOUNT}"
    await client.close()


async def test_who_follows_the_events_is_told_of_talks(crm: Crm) -> None:
    url, key = crm.story.url + "/v1/events", {**AS_ADMIN, "Accept": "text/event-stream"}
    query: dict[str, Any] = {"type": "talk.added", "after": await crm.story.head()}
    async with crm.story.client.get(url, params=query, headers=key) as stream:
        await crm.tell(body("talk", talk_id=7005, updated_at=1, contact_id=1))
        async with asyncio.timeout(10):
            lines = [line async for line in until_data(stream)]
    assert json.loads(lines[-1].removeprefix("data:"))["talk_id"] == 7005


async def until_data(stream: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in stream.content:
        yield line.decode()
        if line.startswith(b"data:"):
            return


async def test_a_review_of_a_template_is_recorded_once_and_again_when_it_stands_otherwise(crm: Crm) -> None:
    head, told = await crm.story.head(), golden("template.review")
    for _ in range(2):
        assert await crm.tell(told) == 200
    rejected = told.replace(b"%5Bstatus%5D=review", b"%5Bstatus%5D=rejected")
    assert await crm.tell(rejected.replace(b"reject_reason%5D=", b"reject_reason%5D=Too+loud")) == 200
    first, second = await crm.story.events(after=head, type="template.review")
    assert first["stream"] == ids.template_stream(ACCOUNT, 5)
    assert (first["account"], first["template_id"], first["kind"]) == (ACCOUNT, 5, "waba")
    assert first["reviews"] == [{"id": 9, "source_id": 11, "status": "review"}]
    [review] = second["reviews"]
    assert (review["status"], review["reject_reason"]) == ("rejected", "Too loud")
    assert "Hello" not in str(first)  # What the template says stays in Kommo.
    kept = (await crm.story.api("GET", "/v1/refused"))["items"]
    assert await crm.tell(b"add[0][name]=x") == 200
    more = (await crm.story.api("GET", "/v1/refused"))["items"]
    assert len(more) == len(kept) + 1


async def test_what_the_crm_tells_of_messages_and_others_adds_nothing(crm: Crm) -> None:
    head = await crm.story.head()
    assert await crm.tell(golden("message.add")) == 200
    assert await crm.tell(b"leads[status][0][id]=5&contacts[add][0][id]=6") == 200
    assert await crm.since(head) == []


async def test_a_wrong_key_is_no_path_of_ours(crm: Crm) -> None:
    told = body("talk", talk_id=1)
    for key in ("x", crm.url.rpartition("/")[2][:-1], crm.url.rpartition("/")[2].swapcase(), "%00", "ö"):
        assert await crm.tell(told, url=f"{crm.story.url}/crm/{ACCOUNT}/{key}") == 404
    other = hooks.hook_path(MASTER_BYTES, "another").rpartition("/")[2]
    assert await crm.tell(told, url=f"{crm.story.url}/crm/{ACCOUNT}/{other}") == 404


async def test_a_body_that_is_too_large_or_compressed_is_refused(crm: Crm) -> None:
    assert await crm.tell(b"a=" + b"x" * 256 * 1024) == 413
    assert await crm.tell(b"a=1", **{"Content-Encoding": "gzip"}) == 415


async def test_what_cannot_be_read_is_kept_and_the_rest_recorded(crm: Crm) -> None:
    head = await crm.story.head()
    bad = b"talk[add][0][chat_id]=x&talk[add][1][talk_id]=7006&talk[add][1][updated_at]=1"
    assert await crm.tell(bad) == 200
    assert await crm.tell(b"a=1&" * (PAIRS_MAX + 1)) == 200
    assert types(await crm.since(head)) == ["talk.added"]
    kept = (await crm.story.api("GET", "/v1/refused"))["items"]
    reasons = [one["reason"] for one in kept if one["scope_id"] == f"crm:{ACCOUNT}"]
    assert "talk[add]: talk_id must be a number" in reasons
    assert f"more than {PAIRS_MAX} fields" in reasons


async def test_while_the_ledger_cannot_commit_kommo_is_asked_within_2_s_to_come_again(crm: Crm) -> None:
    assert crm.story.run
    url = crm.story.run.services.settings.database_url or ""
    head, told = await crm.story.head(), body("talk", talk_id=7007, updated_at=1)
    async with await psycopg.AsyncConnection.connect(url) as other:
        await other.execute("SELECT pg_advisory_xact_lock(%s)", (names.APPEND_LOCK,))
        begin = time.monotonic()
        assert await crm.tell(told) == 503
        assert time.monotonic() - begin < 2.0
    assert await crm.tell(told) == 200
    assert types(await crm.since(head)) == ["talk.added"]


async def test_what_the_crm_of_the_sandbox_tells_links_its_chats(crm: Crm) -> None:
    story = crm.story
    code = (await story.order("POST", "/crm/authorize", {}))["code"]
    exchange = {"client_id": "client", "client_secret": "secret", "grant_type": "authorization_code"}
    exchange |= {"code": code, "redirect_uri": "http://127.0.0.1:9/"}
    _, tokens = await story.call("POST", f"{story.sandbox.url}/oauth2/access_token", exchange)
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    wanted = ["add_talk", "update_talk", "add_message", "add_unsorted", "delete_unsorted"]
    order = {"destination": crm.url, "settings": wanted}
    status, told = await story.call("POST", f"{story.sandbox.url}/api/v4/webhooks", order, headers=bearer)
    assert status == 201, told
    name, head = chat(), await story.head()
    await story.customer(name)
    await story.arrived(name)
    await story.manager(name)
    found = story.sandbox.crm_state.waiting(story.sandbox.chat_state.chat(SCOPE.scope_id, name).id)
    await until(
        lambda: story.sandbox.crm_hooks.sent and not any(h.waiting for h in story.sandbox.crm_hooks.sent)
    )
    await story.order("POST", "/crm/incoming?wait=1", {"uid": found.id, "action": "accept"})
    await until(lambda: not any(hook.waiting for hook in story.sandbox.crm_hooks.sent))
    assert {one.tries[-1].status for one in story.sandbox.crm_hooks.sent} == {200}
    assert {"talk.added", "lead.received", "lead.accepted"} <= set(types(await crm.since(head)))
    assert await crm.shown(name) == (found.contact_id, found.lead_id)
