"""The file: what is right is read, and all that is wrong is told with its place and what to do."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.config.example import EXAMPLE
from app.config.file import DefaultSource, Install, Setup, check_together, load_setup
from app.config.settings import BadSettings, load_settings
from domain.parts import ChannelOptions
from tests.support.ids import ACCOUNT, CHANNEL_SECRET

ENVIRONMENT = {
    "HOME": "/",
    "ACME_CHANNEL_SECRET": "f2d7f8704eff95087ed45b23ba99c0b5aac8278e",
    "ACME_MESSENGER_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "KOMMO_CLIENT_SECRET": "hush" * 16,
}


def written(folder: Path, text: str) -> Path:
    path = folder / "chatledger.toml"
    path.write_text(text)
    return path


def loaded(folder: Path, text: str) -> Setup:
    return load_setup(written(folder, text), ENVIRONMENT)


def example(old: str = "", new: str = "") -> str:
    """The example with something else in it."""
    assert old in EXAMPLE
    return EXAMPLE.replace(old, new, 1)


def test_the_example_is_complete_and_loads(tmp_path: Path) -> None:
    path = written(tmp_path, EXAMPLE)
    setup = load_setup(path, ENVIRONMENT)
    check_together(load_settings(path, environment=ENVIRONMENT), setup)
    [channel], [account] = setup.channels, setup.accounts
    assert (channel.name, channel.kommo.secret) == ("acme", ENVIRONMENT["ACME_CHANNEL_SECRET"])
    assert channel.messenger.secret == ENVIRONMENT["ACME_MESSENGER_SECRET"]
    assert [one.account_id for one in channel.connections] == [account.account_id] == [ACCOUNT]
    assert setup.oauth
    assert setup.oauth.client_secret == "hush" * 16


def test_the_example_with_every_line_in_use_names_every_setting(tmp_path: Path) -> None:
    own = "authorize_url|is_time_window_disabled|default_account|domains|webhooks"
    text = re.sub(rf"^# (CHATLEDGER_\w+ =|(?:{own}) =)", r"\1", EXAMPLE, flags=re.MULTILINE)
    path = written(tmp_path, text)
    setup = load_setup(path, ENVIRONMENT)
    assert setup.oauth
    assert setup.oauth.domains == ("kommo.com", "amocrm.ru", "amocrm.com")
    assert setup.install == Install(("acme",), "Acme chat", DefaultSource("Acme"), webhooks=False)
    assert load_settings(path, environment=ENVIRONMENT).database_url


def test_a_channel_says_how_its_messenger_speaks(tmp_path: Path) -> None:
    text = example('message_ids = "per channel"', 'message_ids = "per conversation"')
    text = text.replace("# default_account", "default_account").replace(ACCOUNT, ACCOUNT.upper())
    (channel,) = loaded(tmp_path, text).channels
    assert channel.options == ChannelOptions("per conversation", ACCOUNT)


def test_a_secret_read_from_a_file_is_taken_without_its_line_end(tmp_path: Path) -> None:
    setup = load_setup(
        written(tmp_path, EXAMPLE), ENVIRONMENT | {"ACME_CHANNEL_SECRET": f"{CHANNEL_SECRET}\n"}
    )
    assert setup.channels[0].kommo.secret == CHANNEL_SECRET


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chatledger.toml"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.encode())
    assert load_setup(path, ENVIRONMENT).channels
    assert load_settings(path, environment=ENVIRONMENT).public_url == "https://chat.example.com"


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_told_so(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "chatledger.toml"
    path.write_bytes("# é\n".encode(encoding))
    with pytest.raises(BadSettings, match="is not UTF-8"):
        load_setup(path, ENVIRONMENT)


def test_an_address_in_capitals_is_one(tmp_path: Path) -> None:
    setup = loaded(tmp_path, example("https://messenger.example.com", "HTTPS://MESSENGER.example.com"))
    assert setup.channels[0].messenger.url == "HTTPS://MESSENGER.example.com/chatledger"


def test_without_a_file_there_is_nothing() -> None:
    assert load_setup(None) == Setup()


def test_ids_are_in_lower_case_and_addresses_without_a_slash_at_the_end(tmp_path: Path) -> None:
    text = example().replace(ACCOUNT, ACCOUNT.upper()).replace("344a5002-f8ca", "344A5002-F8CA")
    setup = loaded(tmp_path, text.replace("https://acme.kommo.com", "https://acme.kommo.com/"))
    assert setup.accounts[0].account_id == setup.channels[0].connections[0].account_id == ACCOUNT
    assert setup.channels[0].kommo.channel_id.startswith("344a5002-f8ca")
    assert setup.accounts[0].crm_url == "https://acme.kommo.com"


WRONG: dict[str, tuple[tuple[str, str], str]] = {
    "an unknown table": (("[budgets]", "[budget]"), "budget is not known: did you mean budgets"),
    "an unknown key": (("bot_id", "bot"), "channels[0].kommo.bot is not known: did you mean bot_id"),
    "an unknown key of a connection": (
        ("title =", "titel ="),
        "channels[0].connections[0].titel is not known: did you mean title",
    ),
    "an unknown key that is like no other": (
        ("crm_per_second", "x"),
        "budgets.x is not known: there are crm_per_second, chats_per_second",
    ),
    "a missing key": (
        ('name = "acme"', ""),
        "channels[0].name: give 1 to 64 of the letters a to z, digits and hyphens",
    ),
    "a name with a line's end": (('"acme"', '"acme\\n"'), "channels[0].name: give 1 to 64 of the letters"),
    "an id with a line's end": (
        (f'account_id = "{ACCOUNT}"', f'account_id = "{ACCOUNT}\\n"'),
        "account_id: give 36 characters like",
    ),
    "a secret with a line's end": (
        ('"env:ACME_CHANNEL_SECRET"', '"hush\\n"'),
        "channels[0].kommo.secret: give printable characters without spaces",
    ),
    "a shouted name": (('"acme"', '"ACME"'), "channels[0].name: give 1 to 64 of the letters"),
    "an id that is none": (("344a5002-", ""), "channels[0].kommo.channel_id: give 36 characters like"),
    "a kind that nobody has": (('"webhook"', '"pigeon"'), 'channels[0].messenger.kind: give "webhook"'),
    "message ids of no kind": (
        ('"per channel"', '"per chat"'),
        'channels[0].message_ids: give "per channel" or "per conversation"',
    ),
    "a URL that is none": (
        ('"https://messenger', '"ftp://messenger'),
        "channels[0].messenger.url: give an http or https URL",
    ),
    "a secret of no kind": (
        ('"env:ACME_MESSENGER_SECRET"', '"whsec_%%"'),
        "channels[0].messenger.secret: give a Standard Webhooks secret",
    ),
    "an empty secret": (
        ('"env:ACME_MESSENGER_SECRET"', '"whsec_"'),
        "channels[0].messenger.secret: give a Standard Webhooks secret",
    ),
    "a secret that is not in the environment": (
        ("env:ACME_CHANNEL_SECRET", "env:ACME_CHANEL_SECRET"),
        "channels[0].kommo.secret: the environment has no ACME_CHANEL_SECRET: set it",
    ),
    "a callback that is not ours": (
        ("/oauth/callback", "/callback"),
        "oauth.redirect_url: give CHATLEDGER_PUBLIC_URL and /oauth/callback",
    ),
    "a domain that is an address": (
        ('# domains = ["kommo.com"', 'domains = ["https://kommo.com"'),
        'oauth.domains[0]: give a list like ["kommo.com"]',
    ),
    "a domain in capitals": (
        ('# domains = ["kommo.com"', 'domains = ["Kommo.com"'),
        'oauth.domains[0]: give a list like ["kommo.com"]',
    ),
    "no domain": (
        ('# domains = ["kommo.com", "amocrm.ru", "amocrm.com"]', "domains = []"),
        'oauth.domains: give a list like ["kommo.com"]',
    ),
    "nobody may install": (('allow = "any"', 'allow = "all"'), 'install.allow: give "any", or a list'),
    "a subdomain in capitals": (('allow = "any"', 'allow = ["Acme"]'), 'install.allow[0]: give "any"'),
    "nothing to install": (
        ('channels = ["acme"]', "channels = []"),
        'install.channels: give a list like ["acme"], of one channel at least',
    ),
    "a channel installed twice": (
        ('channels = ["acme"]', 'channels = ["acme", "acme"]'),
        "install.channels[1]: acme is in the file twice",
    ),
    "a pipeline that is none": (
        ('{ name = "Acme" }', '{ name = "Acme", pipeline_id = 0 }'),
        "install.source.pipeline_id: give the pipeline's number",
    ),
    "a budget of nothing": (
        ("= 7.0", "= 0"),
        "budgets.crm_per_second: give calls a second, over 0 and at most 10000",
    ),
    "a budget without bound": (
        ("= 500.0", "= 100_000"),
        "budgets.chats_per_second: give calls a second, over 0 and at most 10000",
    ),
    "a table where a list is wanted": (
        ("[[accounts]]", "[accounts]"),
        "accounts: write a table [[accounts]] for each",
    ),
    "a connection to nothing": (
        (f'account_id = "{ACCOUNT}"\ntitle', "title"),
        "connections[0].account_id: give",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_place_and_what_to_do(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    with pytest.raises(BadSettings, match=re.escape(message)):
        loaded(tmp_path, example(*change))


CHANNEL = EXAMPLE[EXAMPLE.index("[[channels]]") : EXAMPLE.index("# The integration")]
CONNECTION = EXAMPLE[EXAMPLE.index("[[channels.connections]]") : EXAMPLE.index("# The integration")]
LISTED = EXAMPLE[EXAMPLE.index("[[accounts]]") : EXAMPLE.index("# Calls a second")]


@pytest.mark.parametrize(
    ("more", "places"),
    [
        (CHANNEL, ["channels[1].name", "channels[1].kommo.channel_id"]),
        (LISTED, ["accounts[1].account_id"]),
    ],
    ids=["a channel", "an account"],
)
def test_what_is_in_the_file_twice_is_told(tmp_path: Path, more: str, places: list[str]) -> None:
    with pytest.raises(BadSettings) as told:
        loaded(tmp_path, EXAMPLE + "\n" + more)
    for place in places:
        assert f"{place}: " in str(told.value)
    assert str(told.value).count("is in the file twice") == len(places)


def test_an_account_is_connected_to_a_channel_once(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"channels\[0\]\.connections\[1\]\.account_id: .* twice"):
        loaded(tmp_path, EXAMPLE.replace(CONNECTION, CONNECTION + CONNECTION))


def test_an_account_may_be_connected_without_being_listed(tmp_path: Path) -> None:
    assert loaded(tmp_path, EXAMPLE.replace(LISTED, "")).accounts == ()


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = example().replace("bot_id", "bot").replace("/oauth/callback", "/x").replace("= 7.0", "= 9.5")
    text = text.replace("env:KOMMO_CLIENT_SECRET", "env:NOBODY")
    with pytest.raises(BadSettings) as told:
        loaded(tmp_path, text)
    assert [line.split(":")[0].split()[0] for line in str(told.value).split(": ", 1)[1].split("\n  ")] == [
        "channels[0].kommo.bot",
        "oauth.client_secret",
        "oauth.redirect_url",
    ]


def test_the_oauth_app_needs_to_know_where_we_are(tmp_path: Path) -> None:
    path = written(tmp_path, example("CHATLEDGER_PUBLIC_URL", "# CHATLEDGER_PUBLIC_URL"))
    with pytest.raises(BadSettings, match="CHATLEDGER_PUBLIC_URL is needed with"):
        check_together(load_settings(path, environment=ENVIRONMENT), load_setup(path, ENVIRONMENT))
    check_together(load_settings(path, environment=ENVIRONMENT), Setup())


def test_a_client_secret_that_can_be_guessed_is_refused_by_name(tmp_path: Path) -> None:
    """Whoever has it can tell us in Kommo's name that an integration was disabled."""
    with pytest.raises(BadSettings, match=r"oauth\.client_secret: it holds less than 128 bits"):
        loaded(tmp_path, example("env:KOMMO_CLIENT_SECRET", "app-secret"))


def test_no_secret_is_told_or_shown(tmp_path: Path) -> None:
    text = example('"acme"', '"ACME"').replace("env:ACME_CHANNEL_SECRET", "very secret")
    with pytest.raises(BadSettings) as told:
        loaded(tmp_path, text)
    assert "very secret" not in str(told.value)
    setup: Any = loaded(tmp_path, EXAMPLE)
    assert not any(hidden in repr(setup) for hidden in ENVIRONMENT.values() if len(hidden) > 1)
