"""What an integrator writes down in one TOML file: the OAuth app, accounts, channels and their messengers.

It stands in the file given by `--config`, beside the settings CHATLEDGER_…; all of it may be left out, for
channels and connections can be made through the API as well.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from app.settings import BadSettings, is_table, read_file

ChannelName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
Secret = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[!-~]+$")]
Url = Annotated[str, Meta(pattern=r"^https?://[^\s/]", max_length=4096)]
Rate = Annotated[float, Meta(gt=0, le=10_000)]


class KommoSide(Struct, frozen=True):
    """A channel as Kommo's support hands it out."""

    channel_id: Uuid
    secret: Secret
    bot_id: Uuid | None = None


class MessengerSide(Struct, frozen=True):
    """Where the messenger takes our calls, and the Standard Webhooks secret (`whsec_…`) of both sides."""

    kind: Literal["webhook"]
    url: Url
    secret: Secret


class OAuthApp(Struct, frozen=True, forbid_unknown_fields=True):
    """The integration as Kommo's developer pages show it. `redirect_url` ends in `/oauth/callback`."""

    client_id: Uuid
    client_secret: Secret
    redirect_url: Url
    authorize_url: Url = "https://www.kommo.com/oauth"

    def __repr__(self) -> str:
        """Without the secret."""
        return f"OAuthApp({self.client_id})"


class Account(Struct, frozen=True, forbid_unknown_fields=True):
    """A Kommo account: its amojo id, and the address of its CRM."""

    account_id: Uuid
    crm_url: Url


class Connected(Struct, frozen=True, forbid_unknown_fields=True):
    """An account that a channel shall be connected to."""

    account_id: Uuid
    title: Annotated[str, Meta(max_length=255)] = ""


class Channel(Struct, frozen=True, forbid_unknown_fields=True):
    """A channel, its messenger, and the accounts it shall be connected to."""

    name: ChannelName
    kommo: KommoSide
    messenger: MessengerSide
    connections: tuple[Connected, ...] = ()


class Budgets(Struct, frozen=True, forbid_unknown_fields=True):
    """Calls a second that one account's Kommo takes from all our processes together.

    The CRM's is documented; that of the Chats API is not, so it begins here and adapts to what Kommo answers.
    """

    crm_per_second: Rate = 7
    chats_per_second: Rate = 500


class Setup(Struct, frozen=True, forbid_unknown_fields=True):
    """The tables of the file."""

    oauth: OAuthApp | None = None
    accounts: tuple[Account, ...] = ()
    channels: tuple[Channel, ...] = ()
    budgets: Budgets = Budgets()


def load_setup(config: Path | None) -> Setup:
    """The tables of the file, in lower case; nothing without a file. Raises BadSettings."""
    if config is None:
        return Setup()
    tables = {name: value for name, value in read_file(config).items() if is_table(name, value)}
    try:
        return msgspec.convert(tables, Setup)
    except msgspec.ValidationError as error:
        raise BadSettings(f"{config}: {error}") from None
