"""The same outside id always gives the same name; without the ledger's secret nobody can make it."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import ids
from tests.support.ids import ACCOUNT, CHANNEL, SCOPE
from tests.support.processes import ENVIRONMENT, ROOT

# Made by chatledger 0.2.1, whose names have no secret.
PUBLIC = {
    "message": "8d74efe1-75f2-5187-b077-55828d4430b3",
    "within": "c3168ae4-dc24-57bc-a16d-fcc90860b95d",
    "claimed": "df4c441e-81eb-5de7-b440-637c45db8bfc",
    "conversation": "8a28cb2d-0a80-5aa2-8fb1-23e446510d94",
    "typing": "2a301a55-5e2d-5582-9d01-8399b9caaa6b",
    "channel": "9ec14795-ed30-5bed-90dd-a9c4a2f639f3",
    "connection": "992b3420-de3b-5f03-aae2-6f781d4c1fa9",
    "account": "33b78232-65db-5b0c-a46d-103bfd3e0e6c",
    "talk": "f1878171-1777-5610-a77c-48548e287aad",
    "lead": "0b0178e6-c5a5-5fe7-bcf8-8a2fefae5d1b",
    "template": "0bab6572-c4d4-5080-aff4-fc669f5996aa",
}
# The same with the secret b"k" * 32: fixed for ever too, for a ledger keeps its secret.
KEYED = {
    "message": "6c711a56-5828-5b1a-b739-9896fffc0a75",
    "within": "332fde26-3e8a-536c-ba18-36651b7f20f1",
    "claimed": "19b56f87-abd5-5a39-a27b-d9ef5ba0e0c9",
    "conversation": "518d6aeb-ee5a-5afd-90d7-efb032d6f30d",
    "typing": "562d87e4-21eb-5e4c-aa49-8be8f8a3bcb1",
    "channel": "1ace66f4-ac92-5d68-8778-0bdcf63c9f04",
    "connection": "b7527daa-ffb4-54cb-a9b3-db3a4744490a",
    "account": "864147dd-7284-54b7-8c65-c735edb2ed28",
    "talk": "cfcc9794-5fc3-526b-a1b7-0dad24f6bf63",
    "lead": "0e585d9b-4f8e-59f9-a9e8-c3b80269cb21",
    "template": "4638d55c-64e1-5e1f-a566-124b8f3c1d8d",
}
NAMES = f"""
import json
from domain import ids
def names():
    scope = ids.scope_of("acme", "{CHANNEL}", "{ACCOUNT}")
    return {{
        "message": ids.message_id(scope, "messenger", "m-1"),
        "within": ids.message_id_within(scope, "conv-1", "messenger", "m-1"),
        "claimed": ids.claimed_id(scope, "messenger", "00000000-0000-4000-8000-000000000000"),
        "conversation": ids.conversation_id(scope, "messenger", "+15550100"),
        "typing": ids.typing_id(scope, "c", "u-1", 1_700_000_000_000),
        "channel": ids.channel_stream("acme"),
        "connection": ids.connection_stream(scope),
        "account": ids.account_stream("{ACCOUNT}"),
        "talk": ids.talk_stream("a", 7),
        "lead": ids.lead_stream("a", "u-1"),
        "template": ids.template_stream("a", 7),
    }}
"""


def run(code: str) -> Any:
    """What a process of its own prints: a process makes the names of one ledger."""
    command = [sys.executable, "-c", NAMES + code]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    return json.loads(told.stdout)


def names_with(secret: bytes | None) -> dict[str, str]:
    found: dict[str, str] = run(f"ids.use_namespace({secret!r}); print(json.dumps(names()))")
    return found


def test_a_ledger_from_before_the_secret_keeps_every_name() -> None:
    assert names_with(None) == PUBLIC


def test_a_ledger_with_a_secret_keeps_every_name_too() -> None:
    assert names_with(b"k" * 32) == KEYED


def test_every_kind_of_name_depends_on_the_secret() -> None:
    """None is alike with two secrets, or with none: no function was forgotten."""
    one, two = names_with(b"1" * 32), names_with(b"2" * 32)
    for kind in PUBLIC:
        assert len({PUBLIC[kind], KEYED[kind], one[kind], two[kind]}) == 4, kind


@given(st.text(min_size=1), st.sampled_from(["kommo", "messenger"]))
def test_a_name_is_made_of_its_namespace_which_the_secret_hides(own_id: str, side: str) -> None:
    """Who knows all but the namespace of 128 bits makes another name of the same id."""
    guessed = ids.Scope("acme", ACCOUNT, SCOPE.scope_id, bytes(16))
    for make in (ids.message_id, ids.conversation_id):
        assert make(guessed, side, own_id) != make(SCOPE, side, own_id) == make(SCOPE, side, own_id)


def test_no_name_is_made_before_it_is_known_whose() -> None:
    code = """
refused = 0
for make in (ids.channel_stream, ids.account_stream, lambda name: ids.scope_of(name, "c", "a")):
    try:
        make("acme")
    except ids.NamespaceUnset:
        refused += 1
print(refused)
"""
    assert run(code) == 3


def test_a_process_makes_the_names_of_one_ledger_only() -> None:
    ids.use_namespace(None)  # The same again changes nothing.
    with pytest.raises(ids.OtherNamespace):
        ids.use_namespace(b"another ledger's secret")
    assert not ids.are_keyed()
