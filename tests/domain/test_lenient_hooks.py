"""A signed hook that can be understood becomes its command, whatever the fields hold that nobody needs."""

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kommo.chats import hooks, lenient
from app.kommo.chats.hook_schema import Hook
from app.kommo.chats.hooks import HookRefused, Why
from domain import commands as c
from domain import events as e
from tests.support.ids import ACCOUNT, SCOPE

Json = dict[str, Any]
TIME = 1_795_334_400
LINK = "https://files.example.com/x.jpg"
MESSAGES: dict[str, Json] = {
    "text": {"text": "Hello"},
    "picture": {"media": LINK},
    "file": {"media": LINK, "text": "See"},
    "sticker": {"sticker_id": "s-1"},
    "location": {"location": {"lon": 1.5, "lat": 2}},
    "contact": {"contact": {"name": "Ann", "phone": "+1555"}},
}
# Fields that a message of any of these types does without.
SPARE = [
    *("thumbnail", "file_name", "file_size", "media_duration", "media_group_id", "callback_data", "markup"),
    *("template", "tag", "reply_to", "forwards", "post", "shared_post", "unheard_of"),
]
OF_TYPES = ("text", "media", "sticker_id", "location", "contact")
OUTER = ("sender", "receiver", "source", "timestamp", "msec_timestamp", "unheard_of")
EMPTY: tuple[Any, ...] = (None, [], {}, "", 0, False)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def hook(kind: str = "text", **changed: Any) -> Json:
    message = {"id": "k-1", "type": kind, **MESSAGES.get(kind, {}), **changed}
    outer = {
        "receiver": {"id": "r-1", "client_id": "u-1", "phone": "+15550100"},
        "sender": {"id": "maria"},
        "conversation": {"id": "chat-1", "client_id": "conv-1"},
        "timestamp": TIME,
        "msec_timestamp": TIME * 1000 + 980,
        "message": message,
    }
    return {"account_id": ACCOUNT, "time": TIME, "message": outer}


def read(hook: Json | bytes) -> c.Send:
    body = hook if isinstance(hook, bytes) else json.dumps(hook).encode()
    command = hooks.command(SCOPE, body)
    assert isinstance(command, c.Send)
    return command


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_a_valid_hook_changed_in_fields_that_nobody_needs_is_taken(kind: str, data: st.DataObject) -> None:
    """The law: whatever stands in them, the message is the same by its id, its type and what it says."""
    changed = hook(kind)
    needless = [name for name in OF_TYPES if name not in MESSAGES[kind]]
    for name in data.draw(st.sets(st.sampled_from([*SPARE, *needless]), min_size=1)):
        changed["message"]["message"][name] = data.draw(anything)
    for name in data.draw(st.sets(st.sampled_from(OUTER))):
        changed["message"][name] = data.draw(anything)
    changed["time"] = data.draw(anything)
    send = read(changed)
    assert (send.own_id, send.content.type, send.ends[0].ends.chat_id) == ("k-1", kind, "chat-1")
    plain = read(hook(kind)).content
    for name in MESSAGES[kind]:
        assert getattr(send.content, name) == getattr(plain, name)
    assert msgspec.json.decode(e.encode(send.content), type=e.Content) == send.content


@pytest.mark.parametrize("empty", EMPTY, ids=repr)
@pytest.mark.parametrize(
    "name",
    ["location", "contact", "forwards", "post", "shared_post", "markup", "template", "reply_to", "media"],
)
def test_an_object_may_be_written_as_nothing(name: str, empty: object) -> None:
    changed: Json = {"text": "Hi", name: empty}
    content = read(hook(**changed)).content
    assert content == e.Content(type="text", text="Hi", conversation_id="conv-1")


@pytest.mark.parametrize("empty", EMPTY, ids=repr)
@pytest.mark.parametrize("name", ["sender", "receiver", "source"])
def test_a_person_or_a_source_may_be_written_as_nothing(name: str, empty: object) -> None:
    changed = hook()
    changed["message"][name] = empty
    send = read(changed)
    people = {"sender": send.sender.id, "receiver": send.receiver.id if send.receiver else None}
    assert {**people, "source": send.source}[name] is None


TYPES: dict[str, tuple[Json, Json]] = {
    "a number as the id": ({"id": 57}, {"own_id": "57"}),
    "a number as the text": ({"text": 7}, {"text": "7"}),
    "nought as the text": ({"text": 0}, {"text": "0"}),
    "a fraction as the text": ({"text": 7.5}, {"text": "7.5"}),
    "a text as a size": ({"file_size": "12.7"}, {"file_size": 12}),
    "a fraction as a size": ({"file_size": 12.7}, {"file_size": 12}),
    "a boolean as a size": ({"file_size": True}, {"file_size": None}),
    "a huge size": ({"file_size": 10**40}, {"file_size": None}),
    "a number as a tag": ({"tag": 9, "sticker_id": False}, {"tag": "9", "sticker_id": None}),
    "degrees as texts": (
        {"type": "location", "location": {"lon": "1.5", "lat": 2}},
        {"location": e.Location(1.5, 2.0)},
    ),
    "a phone as a number": (
        {"type": "contact", "contact": {"name": "Ann", "phone": 1555}},
        {"contact": e.Contact("Ann", "1555")},
    ),
    "an upper-case type": ({"type": "TEXT"}, {"type": "text", "raw": None}),
    "no type": ({"type": None}, {"type": "text"}),
    "a quote by a number": ({"reply_to": {"message": {"id": 8}}}, {"reply_to": e.Reply("8")}),
}


@pytest.mark.parametrize("name", TYPES)
def test_another_type_than_documented_is_read_as_it_is_meant(name: str) -> None:
    changed, wanted = TYPES[name]
    send = read(hook(**changed))
    found = {field: getattr(send, field, None) or getattr(send.content, field, None) for field in wanted}
    assert found == wanted


@pytest.mark.parametrize("time", [TIME + 0.25, str(TIME), f"{TIME}.25", f" {TIME} ", float(TIME)], ids=repr)
def test_a_time_may_be_a_fraction_or_a_text(time: object) -> None:
    changed = hook() | {"time": time}
    changed["message"] |= {"timestamp": time, "msec_timestamp": None}
    assert read(changed).msec == TIME * 1000
    changed["message"]["msec_timestamp"] = f"{TIME * 1000 + 7}.5"
    assert read(changed).msec == TIME * 1000 + 7


UNKNOWN: dict[str, tuple[Json, str]] = {
    "a text and a link": ({"text": "Look", "media": LINK}, f"Look\n{LINK}"),
    "a link alone": ({"text": "", "media": LINK}, LINK),
    "a link of another name": ({"text": "", "url": LINK}, LINK),
    "a media that is no link": ({"text": "Look", "media": {"a": 1}}, "Look"),
    "nothing": ({"text": []}, "[hologram]"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_type_is_a_text_with_its_link_and_kept_whole(name: str) -> None:
    changed, text = UNKNOWN[name]
    content = read(hook("hologram", **changed)).content
    assert (content.type, content.text, content.media) == ("text", text, None)
    assert content.raw == {"id": "k-1", "type": "hologram", **changed}


BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a cut emoji": (lambda body: body.replace(b"Hello", "👋".encode()[:3]), "\ufffd"),
    "a raw newline": (lambda body: body.replace(b"Hello", b"a\nb"), "a\nb"),
    "a raw tab": (lambda body: body.replace(b"Hello", b"a\tb"), "a\tb"),
    "a byte order mark": (lambda body: b"\xef\xbb\xbf" + body, "Hello"),
    "UTF-16": (lambda body: body.decode().encode("utf-16"), "Hello"),
    "a raw NUL": (lambda body: body.replace(b"Hello", b"a\0b"), "a\ufffdb"),
    "NaN": (lambda body: body.replace(b"980", b'980,"x":NaN'), "Hello"),
    "a number of a million digits": (lambda body: body.replace(b"980", b'980,"x":' + b"9" * 10**5), "Hello"),
    "an object nested so deep that it cannot be read": (
        lambda body: body.replace(b"980", b'980,"x":' + b"[" * 10**5 + b"]" * 10**5),
        "Hello",
    ),
    "all at once": (lambda body: b"\xef\xbb\xbf" + body.replace(b"Hello", b"\xff\n\t"), "\ufffd\n\t"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_clean_json_are_read_as_far_as_they_can_be(name: str) -> None:
    spoil, text = BYTES[name]
    assert read(spoil(json.dumps(hook()).encode())).content.text == text


def test_a_part_that_is_nested_too_deep_costs_only_itself() -> None:
    deep: object = 1
    for _ in range(66):
        deep = {"a": deep}
    content = read(hook(markup=deep, forwards={"messages": []})).content
    assert content.text == "Hello"
    assert content.forwards == {"messages": []}
    assert b"null" in e.encode(content)


def test_a_conversation_is_known_by_the_name_that_is_there() -> None:
    changed = hook()
    changed["message"]["conversation"] = {"id": None, "client_id": 7}
    assert [end.ends for end in read(changed).ends] == [e.Ends(conversation_id="7")]


def test_a_reaction_and_typing_are_read_likewise() -> None:
    conversation = {"id": 9, "client_id": None}
    reaction = {"type": "REACT", "message": {"id": 57, "sender": []}, "user": [], "emoji": "👍"}
    command = hooks.command(
        SCOPE,
        json.dumps(
            {"time": "x", "action": {"reaction": reaction | {"conversation": conversation}, "typing": []}}
        ).encode(),
    )
    assert isinstance(command, c.React)
    assert (command.emoji, command.removed, bool(command.streams)) == ("👍", False, True)
    typing = {"conversation": conversation, "user": {"id": 5}, "expired_at": f"{TIME}.5"}
    command = hooks.command(SCOPE, json.dumps({"message": [], "action": {"typing": typing}}).encode())
    assert isinstance(command, c.Type)
    assert command.sender.id == "5"


REFUSED: dict[str, tuple[object, Why]] = {
    "an array": ([], Why.UNREADABLE),
    "no id": (hook(id=0), Why.UNREADABLE),
    "an object as the text": (hook(text={"a": 1}), Why.UNREADABLE),
    "a picture's media as an object": (hook("picture", media={"url": LINK}), Why.UNREADABLE),
    "a location without degrees": (hook("location", location={"lon": 1}), Why.UNREADABLE),
    "another account": (hook() | {"account_id": ACCOUNT[:-1] + "0"}, Why.OTHER_ACCOUNT),
    "another account, and a wrong type": (hook(tag=1) | {"account_id": "other"}, Why.OTHER_ACCOUNT),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_counts_must_be_understood(name: str) -> None:
    body, why = REFUSED[name]
    with pytest.raises(HookRefused) as raised:
        hooks.command(SCOPE, json.dumps(body).encode())
    assert raised.value.why == why


@pytest.mark.parametrize("account", [ACCOUNT.upper(), None, "", 0, [], 29081], ids=repr)
def test_an_account_that_is_not_named_or_the_same_is_none_of_others(account: object) -> None:
    assert read(hook() | {"account_id": account}).own_id == "k-1"


def test_an_old_hook_is_refused_by_its_time_where_an_age_is_given() -> None:
    body = json.dumps(hook() | {"time": 1_700_000_000}).encode()
    with pytest.raises(HookRefused, match="hours old") as raised:
        hooks.command(SCOPE, body, age_seconds_max=60)
    assert raised.value.why == Why.LATE
    assert hooks.command(SCOPE, body).at


@pytest.mark.parametrize("kind", MESSAGES)
def test_both_ways_of_reading_agree_on_what_is_valid(kind: str) -> None:
    body = json.dumps(hook(kind)).encode()
    strict = msgspec.json.decode(body, type=Hook)
    assert strict.message
    assert lenient.read(body).message == strict.message


def test_a_text_that_never_ends_is_read_once_not_from_each_of_its_quotes() -> None:
    began = time.monotonic()
    with pytest.raises(HookRefused):
        read(b"[" * 3000 + b'"' + b'\\"' * 60_000)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("time", [10**400, -(10**400), 2**1023])
def test_a_time_beyond_all_numbers_costs_no_message(time: int) -> None:
    body = json.dumps(hook() | {"time": time}).encode()
    assert isinstance(hooks.command(SCOPE, body, age_seconds_max=86400), c.Send)
