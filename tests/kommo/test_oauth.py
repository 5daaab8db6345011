"""An account's consent: asked for, kept sealed, good for one account, ended by whoever may end it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from app.kommo.crm.client import ATTEMPTS_MAX
from app.kommo.crm.oauth import STATE_SECONDS, StateRefused, States, crm_url_of, disabled_signature
from app.servers.servers import Servers
from tests.support.crm_service import HERE, Office, office_of
from tests.support.ids import ACCOUNT, CLIENT, CLIENT_SECRET, CRM_ID, MASTER_BYTES, OTHER_ACCOUNT
from tests.support.service import Answer

VECTOR = "7043be2568d31fa59599a47411fbd3e427288254b5e75d8f75a04850fe3db624"


@pytest_asyncio.fixture(scope="module")
async def office(servers: Servers) -> AsyncIterator[Office]:
    async with office_of(servers) as one:
        assert (await one.register()).status == 201
        yield one


def test_the_disabled_call_is_signed_as_published() -> None:
    made = disabled_signature("client-secret", "11111111-2222-3333-4444-555555555555", "12345678")
    assert made == VECTOR


def test_a_state_is_read_by_every_process_with_our_master_key() -> None:
    state = States(MASTER_BYTES).read(States(MASTER_BYTES).make(ACCOUNT, 1000.0), 1000.0)
    assert (state.account, state.expires) == (ACCOUNT, 1000 + STATE_SECONDS)


def test_a_state_lasts_twenty_minutes() -> None:
    made = States(MASTER_BYTES).make(ACCOUNT, 1000.0)
    assert States(MASTER_BYTES).read(made, 1000.0 + STATE_SECONDS - 1).account == ACCOUNT
    with pytest.raises(StateRefused):
        States(MASTER_BYTES).read(made, 1000.0 + STATE_SECONDS)


def test_a_state_of_another_master_key_is_refused() -> None:
    with pytest.raises(StateRefused):
        States(MASTER_BYTES).read(States(bytes(32)).make(ACCOUNT, 1000.0), 1000.0)


@given(place=st.integers(0, 10_000), letter=st.sampled_from("Az09-_=é "))
def test_a_state_that_was_touched_is_refused(place: int, letter: str) -> None:
    made = States(MASTER_BYTES).make(ACCOUNT, 1000.0)
    place %= len(made)
    touched = made[:place] + letter + made[place + 1 :]
    if touched != made and place < len(made) - 1:  # Of the last letter some bits are not used.
        with pytest.raises(StateRefused):
            States(MASTER_BYTES).read(touched, 1000.0)


@given(st.text(max_size=600))
def test_a_state_may_be_anything(text: str) -> None:
    with pytest.raises(StateRefused):
        States(MASTER_BYTES).read(text, 1000.0)


@pytest.mark.parametrize(
    ("referer", "configured", "found"),
    [
        ("acme.kommo.com", None, "https://acme.kommo.com"),
        ("acme.amocrm.ru", None, "https://acme.amocrm.ru"),
        ("ACME.amocrm.com", None, "https://acme.amocrm.com"),
        ("https://acme.kommo.com", None, "https://acme.kommo.com"),
        ("kommo.com", None, None),
        ("evil-kommo.com", None, None),
        ("acme.kommo.com.evil.example", None, None),
        ("evil.example/acme.kommo.com", None, None),
        ("evil.example#.kommo.com", None, None),
        ("user@acme.kommo.com", None, None),
        ("acme.kommo.com:8080", None, None),
        ("acme.kommo.com\n", None, "https://acme.kommo.com"),
        ("", None, None),
        (None, None, None),
        (None, "https://acme.kommo.com/", "https://acme.kommo.com"),
        ("acme.kommo.com", "https://acme.kommo.com", "https://acme.kommo.com"),
        # The account may have moved since the file was written; whose the code is, Kommo says.
        ("other.kommo.com", "https://acme.kommo.com", "https://other.kommo.com"),
        ("evil.example", "https://acme.kommo.com", None),
        ("a.b.kommo.com", None, None),
        (".kommo.com", None, None),
        ("-a.kommo.com", None, None),
        ("127.0.0.1:8090", None, None),
        ("127.0.0.1:9", "http://127.0.0.1:9", "http://127.0.0.1:9"),
    ],
)
def test_a_code_goes_only_to_the_accounts_own_address_or_to_kommos(
    referer: str | None, configured: str | None, found: str | None
) -> None:
    assert crm_url_of(referer, configured) == found


@pytest.mark.parametrize(
    ("referer", "found"),
    [
        ("127.0.0.1:8090", "http://127.0.0.1:8090"),
        ("http://127.0.0.1:8090", "http://127.0.0.1:8090"),
        ("a.127.0.0.1:8090", None),
        ("127.0.0.1", None),
        ("127.0.0.1:80901", None),
        ("acme.crm.test", "https://acme.crm.test"),
        ("acme.kommo.com", None),
    ],
)
def test_a_code_goes_to_the_domains_that_the_file_lists(referer: str, found: str | None) -> None:
    assert crm_url_of(referer, None, ("127.0.0.1:8090", "crm.test")) == found


async def test_consent_is_asked_for_at_kommo_and_kept(office: Office) -> None:
    told = (await office.ask("POST", f"{HERE}/authorize")).body
    assert told["url"].startswith(f"{office.sandbox.url}/oauth?client_id={CLIENT}&state=")
    assert "mode=popup" in told["url"]
    head = await office.head()
    answer = await office.led_back()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    [event] = await office.since(head)
    assert (event["type"], event["account"]) == ("account.authorized", ACCOUNT)
    shown = await office.account()
    assert (shown["state"], shown["crm_id"], shown["advice"]) == ("authorized", CRM_ID, None)


@pytest.mark.parametrize(("decision", "status"), [("allow", 200), ("refuse", 403)])
async def test_kommos_page_leads_back_to_us(office: Office, decision: str, status: int) -> None:
    told = (await office.ask("POST", f"{HERE}/authorize")).body
    async with office.client.get(told["url"]) as page:
        assert page.status == 200
    form = {"client_id": CLIENT, "account_id": ACCOUNT, "decision": decision}
    form["state"] = parse_qs(urlsplit(told["url"]).query)["state"][0]
    async with office.client.post(
        f"{office.sandbox.url}/oauth", data=form
    ) as answer:  # Follows where it leads.
        assert (answer.status, answer.url.path) == (status, "/oauth/callback")


async def test_tokens_are_sealed_at_rest_and_in_no_log(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await office.consent()
    async with await psycopg.AsyncConnection.connect(office.database_url) as link:
        rows = await (
            await link.execute("SELECT t::text, encode(sealed, 'escape') FROM ledger.tokens t")
        ).fetchall()
    kept = str(rows)
    for token in office.sandbox.crm_state.tokens:
        assert token.id not in kept
        assert token.id not in caplog.text
    assert CLIENT_SECRET not in kept + caplog.text


async def test_a_state_is_good_once(office: Office) -> None:
    state = await office.state()
    assert (await office.led_back(state)).status == 200
    again = await office.led_back(state)
    assert (again.status, "used already" in again.body["detail"]) == (400, True)


async def test_consent_for_another_account_is_refused_and_nothing_is_kept(office: Office) -> None:
    head, before = await office.head(), await office.account(OTHER_ACCOUNT)
    answer = await office.led_back(await office.state(OTHER_ACCOUNT), of=ACCOUNT)
    assert answer.status == 403
    assert "nothing is kept" in answer.body["detail"]
    assert await office.head() == head
    assert await office.account(OTHER_ACCOUNT) == before
    assert before["state"] == "none"


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"code": "made-up"}, "code"),
        ({"code": ""}, "missing"),
        ({"state": "made-up"}, "state"),
        ({"referer": "evil.example"}, "referer"),
        ({"client_id": ACCOUNT}, "client_id"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_does_not_fit_is_refused(office: Office, changed: dict[str, str], word: str) -> None:
    head = await office.head()
    answer = await office.led_back(**changed)
    assert answer.status == 400
    assert word in answer.body["detail"]
    assert await office.head() == head


async def test_a_refusal_in_kommo_is_told(office: Office) -> None:
    query = {"error": "access_denied", "state": await office.state()}
    answer = await office.request("GET", "/oauth/callback", params=query)
    assert (answer.status, "refused" in answer.body["detail"]) == (403, True)


async def test_a_browser_is_shown_what_went_wrong_as_a_page(office: Office) -> None:
    headers = {"Accept": "text/html,*/*"}
    answer = await office.request("GET", "/oauth/callback", params={"state": "made-up"}, headers=headers)
    assert (answer.status, answer.headers["Content-Type"]) == (400, "text/html; charset=utf-8")
    assert b"egin again with POST" in answer.raw


async def test_an_account_id_that_is_none_is_refused(office: Office) -> None:
    answer = await office.ask("POST", "/v1/accounts/acme/authorize")
    assert (answer.status, "UUID" in answer.body["detail"]) == (400, True)


@pytest.mark.parametrize("action", ["500", "drop", "html"])
async def test_kommo_out_of_reach_is_told_and_a_new_attempt_succeeds(office: Office, action: str) -> None:
    await office.fault("crm.token", action)
    answer = await office.led_back()
    assert (answer.status, "nothing is kept" in answer.body["detail"]) == (502, True)
    await office.consent()


async def test_a_disabled_integration_is_disconnected_and_forgotten(office: Office) -> None:
    await office.consent()
    assert (await office.connect()).status in (200, 201)
    head = await office.head()
    await office.fault("kommo.disconnect", "500")
    told = await office.order("/crm/disable", {"account_id": ACCOUNT})
    assert told["status"] == 200
    [fault] = office.sandbox.faults.faults  # Kommo has disconnected it already, and is not asked to.
    assert fault.seen == 0
    office.sandbox.faults.clear()
    events = await office.since(head)
    assert [(e["type"], e["by"]) for e in events] == [
        ("account.withdrawn", "kommo"),
        ("channel.disconnected", "kommo"),
    ]
    shown = await office.account()
    assert (shown["state"], "authorize" in shown["advice"]) == ("withdrawn", True)
    users = await office.ask("GET", f"{HERE}/users")
    assert (users.status, "disabled" in users.body["detail"]) == (409, True)


async def test_who_consents_again_is_connected_again(office: Office) -> None:
    await office.consent()
    assert (await office.connect()).status in (200, 201)
    assert (await office.order("/crm/disable", {"account_id": ACCOUNT}))["status"] == 200
    head = await office.head()
    await office.consent()
    told = [(event["type"], event["by"]) for event in await office.since(head)]
    assert set(told) == {("account.authorized", "operator"), ("channel.connected", "system")}


async def test_what_an_operator_disconnected_stays_so_after_a_new_consent(office: Office) -> None:
    await office.consent()
    assert (await office.connect()).status in (200, 201)
    assert (await office.ask("DELETE", f"/v1/channels/acme/connections/{ACCOUNT}")).status == 204
    head = await office.head()
    await office.consent()
    assert [event["type"] for event in await office.since(head)] == ["account.authorized"]


async def disabled(office: Office, client: str = CLIENT) -> Answer:
    """Kommo's call, or a repeat of it by somebody who has seen it."""
    signature = disabled_signature(CLIENT_SECRET, client, str(CRM_ID))
    query = {"account_id": str(CRM_ID), "client_uuid": client, "signature": signature}
    return await office.request("GET", "/oauth/disabled", params=query)


async def test_the_disabled_call_again_changes_nothing(office: Office) -> None:
    await office.consent()
    assert (await office.order("/crm/disable", {"account_id": ACCOUNT}))["status"] == 200
    head = await office.head()
    assert (await disabled(office)).status == 200
    assert await office.head() == head


async def test_a_replayed_call_ends_nothing_while_kommo_takes_our_token(office: Office) -> None:
    await office.consent()
    assert (await office.connect()).status in (200, 201)
    head = await office.head()
    answer = await disabled(office)
    assert (answer.status, "nothing is ended" in answer.body["detail"]) == (409, True)
    assert (await office.head(), (await office.account())["state"]) == (head, "authorized")


@pytest.mark.parametrize("action", ["500", "drop", "402"])
async def test_a_kommo_that_does_not_answer_the_question_ends_nothing(office: Office, action: str) -> None:
    await office.consent()
    assert (await office.connect()).status in (200, 201)
    head = await office.head()
    await office.fault("crm.account", action, times=None)
    assert (await disabled(office)).status == 502
    office.sandbox.faults.clear()
    assert (await office.head(), (await office.account())["state"]) == (head, "authorized")


async def test_kommo_is_asked_seldom_whoever_calls(office: Office) -> None:
    await office.consent()
    await office.fault("crm.account", "500", times=None)
    [fault] = office.sandbox.faults.faults
    answers = await asyncio.gather(*(disabled(office) for _ in range(10)))
    assert {answer.status for answer in answers} == {502}
    assert fault.seen <= ATTEMPTS_MAX
    office.sandbox.faults.clear()


async def test_a_connection_without_a_consent_ends_only_if_kommo_does_not_know_it(office: Office) -> None:
    await office.consent()
    assert (await office.order("/crm/disable", {"account_id": ACCOUNT}))["status"] == 200
    assert (await office.connect()).status in (200, 201)
    office.run.services.endings.forget(ACCOUNT)
    head = await office.head()
    assert (await disabled(office)).status == 200
    assert await office.head() == head
    office.run.services.endings.forget(ACCOUNT)
    assert (await office.order("/crm/disable", {"account_id": ACCOUNT}))["status"] == 200
    assert [event["type"] for event in await office.since(head)] == ["channel.disconnected"]


async def test_kommo_may_write_our_id_in_capitals(office: Office) -> None:
    await office.consent()
    await office.order("/crm/revoke", {"account_id": ACCOUNT})
    assert (await disabled(office, CLIENT.upper())).status == 200
    assert (await office.account())["state"] == "withdrawn"


async def test_a_consent_is_kept_though_nothing_can_be_connected_again(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    rename = "ALTER TABLE views.{} RENAME TO {}"
    async with await psycopg.AsyncConnection.connect(office.database_url, autocommit=True) as link:
        await link.execute(rename.format("channels", "away").encode())
        try:
            answer = await office.led_back()
        finally:
            await link.execute(rename.format("away", "channels").encode())
    assert (answer.status, b"Connected" in answer.raw) == (200, True)
    assert "not connected again until the next start" in caplog.text
    assert (await office.account())["state"] == "authorized"


@pytest.mark.parametrize(
    ("number", "client", "secret", "status"),
    [
        (str(CRM_ID), CLIENT, "another", 403),
        (str(CRM_ID), ACCOUNT, CLIENT_SECRET, 403),
        ("", CLIENT, "", 403),
        ("12345678", CLIENT, CLIENT_SECRET, 404),
        ("acme", CLIENT, CLIENT_SECRET, 404),
        ("9" * 30, CLIENT, CLIENT_SECRET, 404),
    ],
)
async def test_a_disabled_call_that_is_not_kommos_ends_nothing(
    office: Office, number: str, client: str, secret: str, status: int
) -> None:
    await office.consent()
    head = await office.head()
    query = {"account_id": number, "client_uuid": client}
    query["signature"] = disabled_signature(secret, client, number)
    assert (await office.request("GET", "/oauth/disabled", params=query)).status == status
    assert (await office.head(), (await office.account())["state"]) == (head, "authorized")
