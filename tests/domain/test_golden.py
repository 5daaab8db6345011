"""What was ever recorded can be read for ever, byte for byte; every documented hook becomes what it did."""

import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec.structs import replace

from app import clock
from app.kommo.chats import hooks
from domain import commands as c
from domain import events as e
from tests.support.ids import GOLDEN_SCOPE
from tests.support.ledgers.decisions import Ledger

GOLDEN = Path(__file__).parents[1] / "golden"
EVENTS = sorted((GOLDEN / "events").glob("*.json"))
HOOKS = sorted((GOLDEN / "hooks").glob("*.hook.json"))
TAGS = {str(kind.__struct_config__.tag) for kind in get_args(e.AnyEvent)}
NOW_MS = 1_700_000_001_500  # Just after the times in the hooks.
ID = "018bcfe5-6800-7000-8000-000000000000"


def test_every_type_of_event_has_a_golden_file_and_keeps_its_tag() -> None:
    assert {path.stem for path in EVENTS} == TAGS


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_an_event_once_recorded_is_read_and_written_the_same_for_ever(path: Path) -> None:
    raw = path.read_bytes()
    event = e.decode(raw)
    assert e.tag(event) == path.stem
    assert e.encode(event) == raw


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_a_golden_event_was_complete_when_it_was_written(path: Path) -> None:
    raw = json.loads(path.read_bytes())
    known = {field.name for field in msgspec.structs.fields(type(e.decode(path.read_bytes())))}
    assert raw.keys() - {"type"} <= known
    assert {
        "id",
        "stream",
        "version",
        "channel",
        "account",
        "at",
        "recorded_at",
        "by",
        "schema",
    } <= raw.keys()


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_an_event_of_a_later_program_is_read_without_what_is_not_known(path: Path) -> None:
    raw = path.read_bytes()
    assert e.decode(raw[:-1] + b',"invented_later":{"a":[1]}}') == e.decode(raw)


def becomes(body: bytes) -> list[object]:
    """The events that a hook causes in an empty ledger, with what depends on the moment made fixed."""
    command = hooks.command(GOLDEN_SCOPE, body)
    fixed = {"id": ID, "now": clock.text(NOW_MS), "now_ms": NOW_MS}
    ledger = Ledger()
    if isinstance(command, c.React):
        known = hooks.command(GOLDEN_SCOPE, (GOLDEN / "hooks" / "text.hook.json").read_bytes())
        ledger.record(replace(known, **fixed))
    decided = ledger.record(replace(command, **fixed))
    return [json.loads(e.encode(event)) for event in decided.events]


@pytest.mark.parametrize("path", HOOKS, ids=lambda path: path.name.partition(".")[0])
def test_a_documented_hook_becomes_the_events_that_it_did(path: Path) -> None:
    expected = path.with_name(path.name.replace(".hook.", ".events."))
    assert becomes(path.read_bytes()) == json.loads(expected.read_bytes())


def test_every_documented_variant_of_a_hook_has_a_golden_file() -> None:
    found = {path.name.partition(".")[0] for path in HOOKS}
    assert {"text", "file", "video", "picture", "voice", "audio", "sticker", "empty-fields"} <= found
    assert {"buttons", "url-buttons", "list-message", "template", "media-group", "source"} <= found
    assert {"reply", "reply-to-ours", "forwards", "comment", "write-first", "php-empty-arrays"} <= found
    assert {"typing", "typing-user-beside", "reaction", "reaction-msgid", "unreact"} <= found
    assert {"reply-flat", "reaction-client-id", "comment-reply-to-ours", "typing-post"} <= found
