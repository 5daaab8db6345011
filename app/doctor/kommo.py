"""Whether Kommo and the messengers take our calls and let us in, each with what to do if they do not."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import cast
from uuid import uuid4

import aiohttp
import msgspec
from msgspec import Struct

from app.channels.directory import Channel, Secrets
from app.config.file import CALLBACK, Account, Setup
from app.config.file import Channel as Named
from app.config.settings import Settings
from app.doctor.probe import Check, Heard, ProbeHttp, Unheard, hear
from app.kommo.chats.signature import sign
from app.messengers.adapter import Unfit
from app.messengers.kinds import KINDS
from domain import ids
from domain.ids import Scope

ORIGIN = "/v2/origin/custom/"
NAMED_MAX = 5


class Case(Struct, frozen=True):
    """A channel and an account: by the ledger (`recorded`: as connected), by the file (`named`), or both.

    `dropped`: the ledger has it as disconnected.
    """

    where: Scope
    secret: str
    recorded: bool = False
    dropped: bool = False
    named: bool = False

    @property
    def name(self) -> str:
        """As people are told."""
        return f"channel {self.where.channel}, account {self.where.account}"

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Case({self.name})"


class Known(Struct, frozen=True):
    """Who is to be called: accounts, and the messengers of channels."""

    cases: list[Case]
    channels: list[Channel]


def known(setup: Setup, registered: Mapping[str, Channel]) -> Known:
    """What the file and the ledger name; where they differ, the file counts, as it does at a start."""
    found: dict[tuple[str, str], Case] = {}
    channels = dict(registered)
    for name, channel in registered.items():
        for account, one in channel.connections.items():
            secret = channel.secrets.kommo
            found[name, account] = Case(one.scope, secret, recorded=one.connected, dropped=not one.connected)
    for named in setup.channels:
        channels[named.name] = _as_registered(named)
        for connection in named.connections:
            account = connection.account_id
            where = Scope(named.name, account, ids.scope_id_of(named.kommo.channel_id, account), b"")
            before = found.get((named.name, connection.account_id), Case(where, ""))
            if before.where.namespace != where.namespace:  # The file names another channel of Kommo.
                before = msgspec.structs.replace(before, where=where)
            found[named.name, connection.account_id] = msgspec.structs.replace(
                before, secret=named.kommo.secret, named=True
            )
    return Known([found[key] for key in sorted(found)], list(channels.values()))


def _as_registered(named: Named) -> Channel:
    """A channel of the file as a start registers it."""
    kommo, messenger = named.kommo, named.messenger
    secrets = Secrets(kommo.secret, messenger.secret)
    side = (messenger.kind, messenger.url, kommo.bot_id, secrets)
    return Channel(named.name, kommo.channel_id, *side, options=named.options)


class Strangers:
    """Calls them as the service does."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings, self._session = settings, session

    async def _signed(
        self, case: Case, method: str, path: str, payload: dict[str, str] | None = None
    ) -> Heard:
        """A call of the Chats API; `path` follows `/v2/origin/custom/`. Raises Unheard."""
        body = msgspec.json.encode(payload) if payload else b""
        base = self._settings.kommo_url
        prefix = "/" + base.split("://", 1)[1].partition("/")[2]
        signed = f"{prefix.rstrip('/')}{ORIGIN}{path.partition('?')[0]}"
        headers = sign(case.secret, method, signed, body, format_datetime(datetime.now(UTC)))
        return await hear(self._session, method, f"{base}{ORIGIN}{path}", body=body, headers=headers)

    async def messenger(self, channel: Channel) -> list[Check]:
        """What the channel's kind of messenger finds."""
        messenger, name = KINDS[channel.kind](ProbeHttp(self._session)), f"messenger of {channel.name}"
        try:
            return [Check(name, True, await messenger.check(channel))]
        except Unfit as error:
            return [Check(name, False, error.says, error.todo)]

    async def account(self, case: Case) -> list[Check]:
        """A signed call that changes nothing, and if Kommo does not know the scope, an attempt to connect."""
        path = f"{case.where.scope_id}/chats/{uuid4()}/history?offset=0&limit=1"
        heard = await self._signed(case, "GET", path)
        if heard.status in (200, 204):
            says = "connected, and Kommo takes our signature"
            if not case.recorded:
                says += (
                    "; the ledger has it as disconnected" if case.dropped else "; the next start records it"
                )
            return [Check(case.name, True, says)]
        if heard.status == 403:
            says = "Kommo does not take our signature (403): the channel's secret is wrong, or the clock"
            return [
                Check(case.name, False, says, "give the secret as Kommo's support sent it; set the clock")
            ]
        if heard.status == 404:
            return [await self._connectable(case)]
        says = f"Kommo answers HTTP {heard.status} to a signed call"
        return [Check(case.name, False, says, "ask again in some minutes; then ask Kommo's support")]

    async def _connectable(self, case: Case) -> Check:
        """Connect, as a start would, to learn why it is not connected.

        What was not recorded is undone, unless the service runs: it may have connected it at the same time.
        """
        account, channel_id = case.where.account, case.where.scope_id.partition("_")[0]
        if case.dropped:
            todo = (
                f"POST /v1/channels/{case.where.channel}/connections connects it again" if case.named else ""
            )
            return Check(case.name, True, "disconnected, as the ledger has it", todo)
        order = {"account_id": account, "title": case.where.channel, "hook_api_version": "v2"}
        heard = await self._signed(case, "POST", f"{channel_id}/connect", order)
        if heard.status == 403:
            says = "the channel is private, and this account is not on its list (403)"
            todo = "ask Kommo's support to add the account to the channel; if it is there, check the secret"
            return Check(case.name, False, says, todo)
        if heard.status == 404:
            says = f"Kommo has no channel {channel_id} (404)"
            return Check(case.name, False, says, "give the channel_id as Kommo's support sent it")
        if heard.status != 200:
            says = f"Kommo does not know the scope, and answers HTTP {heard.status} to connecting it"
            return Check(case.name, False, says, "check account_id: it is the account's amojo_id")
        if case.recorded:
            says = "Kommo had dropped the connection, as a reinstallation does; it is made again now"
            todo = (
                f"POST /v1/deliveries/resume?channel={case.where.channel} takes up what was parked meanwhile"
            )
            return Check(case.name, True, says, todo)
        if await self._serving():
            says = "it was not connected, and can be: Kommo has it as connected now; a start records that"
            todo = "if the file was changed after the service was started, start it again"
            return Check(case.name, True, says, todo)
        await self._signed(case, "DELETE", f"{channel_id}/disconnect", {"account_id": account})
        return Check(case.name, True, "not connected yet; it can be, and the next start does it")

    async def _serving(self) -> bool:
        """Whether a service answers at our port."""
        try:
            heard = await hear(self._session, "GET", f"{service_url(self._settings)}/healthz")
        except Unheard:
            return False
        return heard.json().get("status") == "ok"

    async def app(self, setup: Setup) -> list[Check]:
        """What the file says of the OAuth app."""
        public, oauth = self._settings.public_url, setup.oauth
        if oauth is None:
            return []
        wanted = f"{(public or '').rstrip('/')}{CALLBACK}"
        if oauth.redirect_url != wanted:
            says = f"redirect_url is not {wanted}: who consents is sent elsewhere"
            return [
                Check("oauth", False, says, "give that in the file and on the integration's page in Kommo")
            ]
        return [Check("oauth", True, f"who consents comes back to {wanted}")]

    async def crm(
        self, account: Account, key: str, hooks_path: str, sources: Mapping[str, set[str]]
    ) -> list[Check]:
        """Whether the account lets us into its CRM now, asked through the service, which keeps the tokens.

        `key` and `hooks_path`: empty if they are not at hand.
        """
        name, path = f"crm of account {account.account_id}", f"/v1/accounts/{account.account_id}"
        try:
            listed = await self._service("/v1/accounts", key)
        except Unheard as error:
            return [Check(name, False, f"the service is not there to ask: {error.says}", "start it")]
        if listed.status != 200:
            says = f"the service answers HTTP {listed.status}: {listed.json().get('detail')}"
            return [Check(name, False, says, "give the same admin key and data folder as the service has")]
        shown = next((one for one in _items(listed) if one.get("account_id") == account.account_id), {})
        if (state := shown.get("state")) != "authorized":
            todo = f"POST {path}/authorize, and open the link it gives as the account's administrator"
            says = "the consent was withdrawn" if state == "withdrawn" else "it has never let us into its CRM"
            return [Check(name, False, says, todo)]
        if (there := shown.get("crm_url")) != account.crm_url:
            says = f"the file has crm_url {account.crm_url}, and it consented as {there}"
            return [Check(name, False, says, "mend crm_url in the file")]
        hooks = await self._service(f"{path}/webhooks", key)
        if hooks.status != 200:
            detail = str(hooks.json().get("detail") or f"HTTP {hooks.status}")
            return [Check(name, False, detail, f"mend that, else POST {path}/authorize anew")]
        found = self._subscribed(name, account.account_id, hooks_path, _items(hooks))
        return [found, *await self._sources(account, key, sources.get(account.account_id, set()))]

    def _subscribed(self, name: str, account: str, path: str, hooks: Iterable[Mapping[str, object]]) -> Check:
        """Whether one of the CRM's subscriptions leads to us, and is in use."""
        public = (self._settings.public_url or "").rstrip("/")
        todo = f"POST /v1/accounts/{account}/webhooks subscribes to talks and incoming leads"
        near = [hook for hook in hooks if str(hook.get("destination")).startswith(f"{public}/crm/{account}/")]
        if not near:
            return Check(name, True, "it lets us in; its webhooks do not come to us", todo)
        ours = [hook for hook in near if hook.get("destination") == public + path]
        if path and not ours:
            says = "its webhooks come to an old address, or to one that another master key made: refused"
            return Check(name, False, says, f"{todo}, at the right one; end the other in Kommo")
        if all(hook.get("disabled") for hook in ours or near):
            says = (
                "Kommo has disabled the subscription of its webhooks, as it does when too many are not taken"
            )
            todo = f"look at the check of the public url; then POST /v1/accounts/{account}/webhooks"
            return Check(name, False, says, f"{todo}, or turn it on in Kommo")
        return Check(name, True, "it lets us in, and its webhooks come to us")

    async def _sources(self, account: Account, key: str, used: set[str]) -> list[Check]:
        """Those that messages name are there; what names another one is taken for the default source's."""
        path = f"/v1/accounts/{account.account_id}/sources"
        heard = await self._service(path, key) if used else None
        if heard is None or heard.status != 200:
            return []
        name = f"sources of account {account.account_id}"
        missing = sorted(used - {str(one.get("external_id")) for one in _items(heard)})
        if not missing:
            return [Check(name, True, "Kommo has all that messages named lately")]
        says = f"messages name sources that Kommo does not have: {', '.join(missing[:NAMED_MAX])}"
        return [Check(name, False, says, f"POST {path} creates them; or mend source.external_id")]

    async def _service(self, path: str, key: str) -> Heard:
        headers = {"Authorization": f"Bearer {key}"}
        return await hear(self._session, "GET", f"{service_url(self._settings)}{path}", headers=headers)


def _items(heard: Heard) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", heard.json().get("items") or [])


def service_url(settings: Settings) -> str:
    """Where the service of these settings is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
