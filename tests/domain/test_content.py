"""A field of a message's content is declared once: every list of such fields follows from the table."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.kommo.chats.hook_schema import HookMessage
from app.messengers.contract import Message
from app.views.messages import Message as MessageShown
from domain.content import FIELDS, Way, names
from tests.support.processes import ENVIRONMENT, ROOT

TEMPLATE = ROOT / "app/http/console/templates/_body.html"
NEW = "    mood: Annotated[str | None, IN | OUT | Way.SHOWN] = None\n"
# Run where the table has one more line: a message with that field from either side, as far as it goes.
JOURNEY = """
import json
import sys
import msgspec
from app import clock
from app.kommo.chats import hooks, payloads
from app.messengers import checks, commands, webhook
from app.messengers.adapter import Push
from app.views.messages import Message
from domain import events as e
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import Ledger

action, hook = json.load(sys.stdin)

def sent(command):
    recorded = [e.encode(event) for event in Ledger().record(command).events]
    return next(event for event in map(e.decode, recorded) if isinstance(event, e.MessageSent))

def refusal(words):
    action["message"]["mood"] = words
    try:
        checks.parse_one(msgspec.json.encode(action))
    except checks.ActionRefused as error:
        return error.path

written = sent(commands.command(SCOPE, checks.parse_one(msgspec.json.encode(action))))
answered = sent(hooks.command(SCOPE, msgspec.json.encode(hook)))
print(json.dumps({
    "to Kommo": payloads.request(SCOPE.scope_id, written)[1]["payload"]["message"],
    "to the messenger": webhook.request(Push(answered))["message"],
    "shown": "mood" in Message.__struct_fields__,
    "refused": refusal("x" * 1025),
}))
"""


def fields(shape: type[Any]) -> set[str]:
    return set(shape.__struct_fields__)


def test_a_new_field_is_one_line_in_the_table(tmp_path: Path) -> None:
    for folder in ("app", "domain", "projections"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "domain" / "content.py"
    text, found = re.subn(r"(?m)^    forwarded: .*\n", rf"\g<0>{NEW}", table.read_text())
    assert found == 1
    table.write_text(text)
    now = "2026-11-22T08:00:00.000Z"
    action = {
        "type": "message.sent",
        "conversation_id": "conv-1",
        "message_id": "m-1",
        "at": now,
        "sender": {"id": "u-1", "name": "Ann"},
        "message": {"type": "text", "text": "Hello", "mood": "sunny"},
    }
    message = {"id": "k-1", "type": "text", "text": "Hi", "mood": "calm"}
    hook = {"message": {"conversation": {"id": "chat-1"}, "message": message}}
    done = subprocess.run(
        [sys.executable, "-c", JOURNEY],
        input=json.dumps([action, hook]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}:{ENVIRONMENT['PYTHONPATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "to Kommo": {"type": "text", "text": "Hello", "mood": "sunny"},
        "to the messenger": {"type": "text", "text": "Hi", "mood": "calm"},
        "shown": True,
        "refused": "$.message.mood",
    }


def test_a_shape_declares_no_field_that_does_not_travel_its_way() -> None:
    assert fields(Message) == set(names(Way.FROM_MESSENGER))
    assert fields(HookMessage) == {"id", "reply_to", *names(Way.FROM_KOMMO)}
    assert fields(MessageShown) & {field.name for field in FIELDS} == set(names(Way.SHOWN))


def test_the_console_has_markup_for_each_field_that_is_drawn_and_for_no_other() -> None:
    used = set(re.findall(r"\bm\.(\w+)", TEMPLATE.read_text()))
    assert used & {field.name for field in FIELDS} == set(names(Way.DRAWN)), TEMPLATE
    assert set(names(Way.DRAWN)) <= set(names(Way.SHOWN))
