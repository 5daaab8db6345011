"""What Kommo says of an account is kept and refreshed, and an account that moves is followed."""

import json
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http_client import Answer
from app.kommo.crm.account import described
from app.kommo.crm.oauth import moved_to
from app.operations.installation import SYSTEM
from tests.support.crm_service import HERE, Office
from tests.support.ids import ACCOUNT

PROFILE = {
    "name": "Acme GmbH",
    "time_zone": "Europe/Berlin",
    "currency": "EUR",
    "country": "DE",
    "language": "de",
    "plan": "advanced",
}


async def describe(office: Office, **profile: str) -> None:
    await office.order("/crm/account", {"account_id": ACCOUNT} | profile)


async def test_what_kommo_says_of_an_account_is_kept_and_refreshed(office: Office) -> None:
    await describe(office, **PROFILE)
    await office.install()
    shown = await office.account()
    assert {name: shown[name] for name in PROFILE} == PROFILE
    await describe(office, **PROFILE | {"name": "Acme AG", "language": "", "plan": ""})
    await office.settle()
    shown = await office.account()
    assert (shown["name"], shown["plan"]) == ("Acme AG", None)
    assert shown["language"] == "en"  # That of the user who installed it.


def moved_address(office: Office) -> str:
    """The sandbox under its other name."""
    return f"localhost:{urlsplit(office.sandbox.url).port}"


async def test_an_account_that_moved_is_followed_and_its_address_is_kept(office: Office) -> None:
    await office.install()
    await describe(office, host=moved_address(office), subdomain="acme-new")
    head = await office.head()
    assert (await office.ask("GET", f"{HERE}/users")).status == 200
    shown = await office.account()
    assert shown["crm_url"] == f"http://{moved_address(office)}"
    [event] = await office.since(head)
    assert (event["type"], event["by"], event["crm_url"]) == ("account.moved", "kommo", shown["crm_url"])
    assert (await office.ask("GET", f"{HERE}/users")).status == 200
    assert await office.types(head) == ["account.moved"]
    await office.settle()
    assert (await office.account())["subdomain"] == "acme-new"


async def test_an_account_that_moved_is_followed_by_a_refresh(office: Office) -> None:
    await office.install()
    await describe(office, host=moved_address(office))
    await office.order("/crm/expire", {"account_id": ACCOUNT})
    head = await office.head()
    assert (await office.ask("GET", f"{HERE}/users")).status == 200
    assert await office.types(head) == ["account.moved"]
    assert (await office.account())["crm_url"] == f"http://{moved_address(office)}"


async def test_an_account_that_moved_may_be_installed_again(office: Office) -> None:
    await office.install()
    await describe(office, host=moved_address(office))
    assert (await office.install()).status == 200
    assert (await office.account())["crm_url"] == f"http://{moved_address(office)}"


@pytest.mark.parametrize("host", ["127.0.0.1:9", "evil.example", "acme.kommo.com.evil.example"])
async def test_nobody_leads_us_out_of_the_allowed_domains(office: Office, host: str) -> None:
    await office.install()
    before = (await office.account())["crm_url"]
    await describe(office, host=host)
    head = await office.head()
    answer = await office.ask("GET", f"{HERE}/users")
    assert (answer.status, "301" in answer.body["detail"]) == (502, True)
    assert (await office.head(), (await office.account())["crm_url"]) == (head, before)


async def test_the_file_wins_once_its_address_is_another(office: Office) -> None:
    await office.install()
    tokens, head = office.run.services.tokens, await office.head()
    for url in ("http://localhost:9", "http://localhost:9", office.sandbox.url):
        await tokens.adopt({ACCOUNT: url})
        assert (await office.account())["crm_url"] == url
    told = [(event["type"], event["by"]) for event in await office.since(head)]
    assert told == [("account.moved", SYSTEM)] * 2
    await describe(office, host=moved_address(office))
    assert (await office.ask("GET", f"{HERE}/users")).status == 200
    await tokens.adopt({ACCOUNT: office.sandbox.url})  # The file still has what it had.
    assert (await office.account())["crm_url"] == f"http://{moved_address(office)}"


@pytest.mark.parametrize(
    ("status", "location", "found"),
    [
        (301, "https://new.kommo.com/api/v4/account", "https://new.kommo.com"),
        (308, "https://NEW.kommo.com/api/v4/account", "https://new.kommo.com"),
        (301, "http://new.kommo.com/api/v4/account", None),
        (301, "https://kommo.com/", None),
        (301, "https://user@new.kommo.com/", None),
        (301, "https://new.kommo.com:444/", None),
        (301, "https://new.kommo.com.evil.example/", None),
        (301, "/api/v4/account", None),
        (301, "https://[", None),
        (301, "", None),
        (200, "https://new.kommo.com/", None),
        (303, "https://new.kommo.com/", None),
    ],
)
def test_a_redirect_counts_within_the_domains_only(status: int, location: str, found: str | None) -> None:
    assert moved_to(Answer(status, "", 0.0, b"", location), ("kommo.com",)) == found


@given(st.binary(max_size=300))
def test_an_account_may_be_described_by_anything(body: bytes) -> None:
    assert described(Answer(200, "application/json", 0.0, body)) is None


FIELDS = st.sampled_from(["name", "language", "plan", "_embedded", "current_user_id"])
TIMES = st.dictionaries(st.just("timezone"), st.text() | st.integers())
VALUES = st.none() | st.integers(0, 2**60) | st.text() | st.lists(st.text())


@given(st.dictionaries(FIELDS, VALUES | st.dictionaries(st.just("datetime_settings"), TIMES | VALUES)))
def test_an_account_is_known_by_its_two_ids_alone(more: dict[str, object]) -> None:
    body = json.dumps({"id": 1, "amojo_id": ACCOUNT.upper()} | more).encode()
    found = described(Answer(200, "application/json", 0.0, body))
    assert found is not None
    assert (found.id, found.amojo_id) == (1, ACCOUNT)
