"""The tables of the --config file: the OAuth app, accounts, channels and their messengers.

The tables stand beside the settings CHATLEDGER_… and may all be left out, because channels and connections
can be made through the API as well. Any text may be `env:NAME`, the value of that variable, so that the file
holds no secret. All errors are reported at once, each with its place in the file.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, inspect

from app.config.settings import BadSettings, Settings, from_environment, is_table, read_file
from app.limits import is_weak
from app.messengers.contract import URL_PATTERN
from app.messengers.kinds import KINDS
from domain.parts import WAIT_FOR_MESSENGER, ChannelOptions, MessageIds

# The patterns have `(?!\n)`, because `$` alone accepts a line end.
ChannelName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$(?!\n)")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$(?!\n)")]
Secret = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[!-~]+$(?!\n)")]
Url = Annotated[str, Meta(pattern=URL_PATTERN, max_length=4096)]
# msgspec refuses any other kind, and `/schema` lists these.
if TYPE_CHECKING:
    Kind: TypeAlias = str
else:
    Kind = Literal[tuple(KINDS)]
Wait = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,4})[smhd]$(?!\n)")]
RATE_MAX = 10_000  # Chosen: far above any limit of Kommo.
Rate = Annotated[float, Meta(gt=0, le=RATE_MAX)]
RATE_HINT = f"give calls a second, over 0 and at most {RATE_MAX}"

# A domain of Kommo's, below which each account has one label; with a port, an address as it is.
Domain = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?(:[0-9]{1,5})?$(?!\n)")]
Subdomain = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,63}$(?!\n)")]

KOMMO_DOMAINS = ("kommo.com", "amocrm.ru", "amocrm.com")
CALLBACK = "/oauth/callback"
GUESSABLE_APP = "it holds less than 128 bits: give it as the integration's page in Kommo shows it"
GUESSABLE = "it holds less than 128 bits: give the 40 characters that Kommo's support sent you"
UUID_HINT = "give 36 characters like 52e591f7-c98f-4255-8495-827210138c81"
HINTS = {
    "accounts": "write a table [[accounts]] for each",
    "channels": "write a table [[channels]] for each",
    "connections": 'write a list like [{ account_id = "…", title = "…" }]',
    "name": "give 1 to 64 of the letters a to z, digits and hyphens",
    "channel_id": f"{UUID_HINT}, as Kommo's support sent it",
    "account_id": f"{UUID_HINT}: the account's amojo_id, from GET /api/v4/account?with=amojo_id",
    "bot_id": f"{UUID_HINT}, as Kommo's support sent it",
    "client_id": f"{UUID_HINT}, as the integration's page in Kommo shows it",
    "client_secret": "give it as the integration's page in Kommo shows it, at most 255 characters",
    "secret": "give printable characters without spaces, at most 255",
    "kind": "give " + " or ".join(f'"{kind}"' for kind in KINDS),
    "url": "give an http or https URL of at most 4096 characters",
    "crm_url": "give the address of the account's CRM, like https://acme.kommo.com",
    "redirect_url": f"give CHATLEDGER_PUBLIC_URL and {CALLBACK}, as on the integration's page in Kommo",
    "authorize_url": "give an http or https URL of at most 4096 characters, or leave it out",
    "wait_for_messenger": 'give a whole number from 0 to 99999 with s, m, h or d behind it, like "15m"',
    "title": "give at most 255 characters",
    "is_time_window_disabled": "give true or false, or leave it out",
    "domains": 'give a list like ["kommo.com"], each in lower case, or leave it out',
    "install": 'write one table [install] with channels = ["…"]',
    "install.channels": 'give a list like ["acme"], of one channel at least',
    "allow": 'give "any", or a list of subdomains in lower case like ["acme"]',
    "webhooks": "give true or false, or leave it out",
    "pipeline_id": "give the pipeline's number in the account's CRM, or leave it out",
    "message_ids": 'give "per channel" or "per conversation"',
    "default_account": f"{UUID_HINT}, or leave it out",
    "crm_per_second": RATE_HINT,
    "chats_per_second": RATE_HINT,
}
MISSING = re.compile(r"missing required field `(\w+)`")


class KommoSide(Struct, frozen=True):
    """The ids and the secret of a channel, as Kommo's support sends them."""

    channel_id: Uuid
    secret: Secret
    bot_id: Uuid | None = None

    def __repr__(self) -> str:
        """Without the secret."""
        return f"KommoSide({self.channel_id})"


class MessengerSide(Struct, frozen=True):
    """The address that we call the messenger at, and the Standard Webhooks secret of both directions."""

    kind: Kind
    url: Url
    secret: Secret

    def __repr__(self) -> str:
        """Without the secret."""
        return f"MessengerSide({self.url})"


class OAuthApp(Struct, frozen=True, forbid_unknown_fields=True):
    """The integration as Kommo's developer pages show it. `redirect_url` ends in `/oauth/callback`.

    Only below these `domains` is an account's CRM called, unless the file names its address. One with a port
    is a whole address, which is called over http.
    """

    client_id: Uuid
    client_secret: Secret
    redirect_url: Url
    authorize_url: Url = "https://www.kommo.com/oauth"
    domains: Annotated[tuple[Domain, ...], Meta(min_length=1)] = KOMMO_DOMAINS

    def __repr__(self) -> str:
        """Without the secret."""
        return f"OAuthApp({self.client_id})"


class Account(Struct, frozen=True, forbid_unknown_fields=True):
    """A Kommo account: its amojo id, and the address of its CRM."""

    account_id: Uuid
    crm_url: Url


class Connected(Struct, frozen=True, forbid_unknown_fields=True):
    """An account that a channel is to be connected to.

    `is_time_window_disabled`: managers may write at any time, whatever the channel says; None leaves it as it
    is.
    """

    account_id: Uuid
    title: Annotated[str, Meta(max_length=255)] = ""
    is_time_window_disabled: bool | None = None


class Channel(Struct, frozen=True, forbid_unknown_fields=True):
    """A channel, its messenger, and the accounts that it is to be connected to.

    `message_ids`, `default_account` and `wait_for_messenger` are as in `domain.parts.ChannelOptions`.
    """

    name: ChannelName
    kommo: KommoSide
    messenger: MessengerSide
    connections: tuple[Connected, ...] = ()
    message_ids: MessageIds = "per channel"
    default_account: Uuid | None = None
    wait_for_messenger: Wait = WAIT_FOR_MESSENGER

    @property
    def options(self) -> ChannelOptions:
        """How its messenger speaks."""
        return ChannelOptions(self.message_ids, self.default_account, self.wait_for_messenger)


class Budgets(Struct, frozen=True, forbid_unknown_fields=True):
    """Calls a second that all our processes together may make to one account.

    Kommo documents the CRM's limit. It does not document that of the Chats API, so this rate is only the
    start and adapts to Kommo's answers. `ask_for_chats`: after the first message of a new conversation Kommo
    is asked for its chat, behind all other calls.
    """

    crm_per_second: Rate = 7
    chats_per_second: Rate = 500
    ask_for_chats: bool = True


class DefaultSource(Struct, frozen=True, forbid_unknown_fields=True):
    """The source that an account's chats come from unless a message names another one."""

    name: Annotated[str, Meta(min_length=1, max_length=255)]
    pipeline_id: Annotated[int, Meta(gt=0, le=2**53 - 1)] | None = None


class Install(Struct, frozen=True, forbid_unknown_fields=True):
    """What an account gets whose administrator installs the integration.

    `title` is its connections' name in Kommo; empty: the channel's name. `allow` are the subdomains of the
    accounts that may install it. `webhooks`: the CRM's webhooks are subscribed to.
    """

    channels: Annotated[tuple[ChannelName, ...], Meta(min_length=1)]
    title: Annotated[str, Meta(max_length=255)] = ""
    source: DefaultSource | None = None
    allow: Literal["any"] | tuple[Subdomain, ...] = "any"
    webhooks: bool = True

    def allows(self, subdomain: str) -> bool:
        """Whether the account with this subdomain may install the integration."""
        return self.allow == "any" or subdomain.lower() in self.allow


class Setup(Struct, frozen=True, forbid_unknown_fields=True):
    """The tables of the file."""

    oauth: OAuthApp | None = None
    install: Install | None = None
    accounts: tuple[Account, ...] = ()
    channels: tuple[Channel, ...] = ()
    budgets: Budgets = Budgets()


def load_setup(config: Path | None, environment: Mapping[str, str] | None = None) -> Setup:
    """Returns the tables of the file, with ids in lower case; empty without a file. Raises BadSettings."""
    if config is None:
        return Setup()
    tables = {name: value for name, value in read_file(config).items() if is_table(name, value)}
    wrong = list(_unknown(inspect.type_info(Setup), tables, ""))
    filled = _filled(tables, "", environment, wrong)
    try:
        setup = _lower(msgspec.convert(filled, Setup))
    except msgspec.ValidationError as error:
        if not wrong:
            wrong.append(_advice(str(error)))
    else:
        wrong += _contradictions(setup)
    if wrong:
        raise BadSettings(f"{config}: " + "\n  ".join(wrong))
    return setup


def check_together(settings: Settings, setup: Setup) -> None:
    """Check the settings that the tables require. Raises BadSettings."""
    if setup.oauth and not settings.public_url:
        raise BadSettings(
            "CHATLEDGER_PUBLIC_URL is needed with [oauth]: give the URL under which Kommo and the account's"
            " administrator reach this service, like https://chat.example.com"
        )


def _unknown(kind: inspect.Type, value: object, place: str) -> Iterator[str]:
    """Yield an error for each key that does not exist, with the key that was perhaps meant."""
    match kind, value:
        case inspect.StructType(fields=fields), dict():
            known = {field.encode_name: field.type for field in fields}
            for key, inner in value.items():
                if key in known:
                    yield from _unknown(known[key], inner, _inside(place, key))
                    continue
                near = difflib.get_close_matches(key, known, n=1)
                advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                yield f"{_inside(place, key)} is not known: {advice}"
        case inspect.VarTupleType(item_type=item), list():
            for number, inner in enumerate(value):
                yield from _unknown(item, inner, f"{place}[{number}]")
        case inspect.UnionType(types=types), _:
            for one in types:
                if isinstance(one, inspect.StructType):
                    yield from _unknown(one, value, place)


def _inside(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _filled(value: object, place: str, environment: Mapping[str, str] | None, wrong: list[str]) -> object:
    """Returns the tables with the values of `env:NAME`."""
    match value:
        case dict():
            return {key: _filled(one, _inside(place, key), environment, wrong) for key, one in value.items()}
        case list():
            return [_filled(one, f"{place}[{n}]", environment, wrong) for n, one in enumerate(value)]
        case str():
            try:
                return from_environment(value, environment)
            except BadSettings as error:
                wrong.append(f"{place}: {error}")
    return value


def _advice(error: str) -> str:
    """Returns msgspec's error as a place in the file and advice."""
    what, _, where = error.partition(" - at `$")
    place = where.rstrip("`").removeprefix(".")
    if found := MISSING.search(what):
        place = _inside(place, found[1])
        what = "it is missing"
    whole = re.sub(r"\[\d+\]$", "", place)
    return f"{place}: {HINTS.get(whole) or HINTS.get(whole.rpartition('.')[2]) or what}"


def _lower(setup: Setup) -> Setup:
    """Returns the tables with UUIDs in lower case, as Kommo writes them, and addresses without end slash."""
    replace = msgspec.structs.replace
    accounts = [
        replace(one, account_id=one.account_id.lower(), crm_url=one.crm_url.rstrip("/"))
        for one in setup.accounts
    ]
    channels = [
        replace(
            one,
            kommo=replace(
                one.kommo,
                channel_id=one.kommo.channel_id.lower(),
                bot_id=one.kommo.bot_id.lower() if one.kommo.bot_id else None,
            ),
            connections=tuple(replace(each, account_id=each.account_id.lower()) for each in one.connections),
            default_account=one.default_account.lower() if one.default_account else None,
        )
        for one in setup.channels
    ]
    return replace(setup, accounts=tuple(accounts), channels=tuple(channels))


def _contradictions(setup: Setup) -> Iterator[str]:
    """Yield an error for each broken rule that types cannot express."""
    if setup.oauth and not setup.oauth.redirect_url.endswith(CALLBACK):
        yield f"oauth.redirect_url: {HINTS['redirect_url']}"
    if setup.oauth and _is_guessable(setup.oauth.client_secret):
        yield f"oauth.client_secret: {GUESSABLE_APP}"
    if setup.install:
        if setup.oauth is None:
            yield "install: it needs the table [oauth], with the integration's client_id and client_secret"
        yield from _twice("install.channels[{}]", list(setup.install.channels))
    yield from _twice("accounts[{}].account_id", [one.account_id for one in setup.accounts])
    yield from _twice("channels[{}].name", [one.name for one in setup.channels])
    yield from _twice("channels[{}].kommo.channel_id", [one.kommo.channel_id for one in setup.channels])
    for number, channel in enumerate(setup.channels):
        place = f"channels[{number}]"
        yield from _twice(
            place + ".connections[{}].account_id", [one.account_id for one in channel.connections]
        )
        if _is_guessable(channel.kommo.secret):
            yield f"{place}.kommo.secret: {GUESSABLE}"
        for setting, advice in KINDS[channel.messenger.kind].faults(channel.messenger.secret):
            yield f"{place}.messenger.{setting}: {advice}"


def _is_guessable(secret: str) -> bool:
    """Whether a secret is weak; one that the environment lacks has been told already."""
    return is_weak(secret) and not secret.startswith("env:")


def _twice(place: str, values: list[str]) -> Iterator[str]:
    for number, value in enumerate(values):
        if value in values[:number]:
            yield f"{place.format(number)}: {value} is in the file twice: keep one of them"
