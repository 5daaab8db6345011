"""An account's administrator lets us into its CRM, and an integration that is disabled there shuts us out.

The first trusts only our signature on the state that comes back. The second trusts Kommo's signature and,
since that is the same for ever, Kommo's own refusal of the account's token.
"""

import asyncio
import contextlib
import hmac
from functools import partial

from msgspec import Struct

from app import clock
from app.channels.directory import Channel, Connection
from app.http_client import Unreached
from app.kommo.chats.client import ask_scope
from app.kommo.chats.signature import Credentials
from app.kommo.crm.client import BudgetExhausted
from app.kommo.crm.oauth import (
    STATE_SECONDS,
    AppRefused,
    OAuth,
    Pair,
    State,
    StateRefused,
    TokenRefused,
    crm_url_of,
    disabled_signature,
)
from app.kommo.crm.tokens import AUTHORIZED, AppUnusable, Consent, NotAuthorized
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.operations import channels, startup
from app.operations.crm import known_account
from app.operations.errors import (
    AccessDenied,
    InvalidInput,
    KommoFailed,
    LedgerBusy,
    NotFound,
    NotYet,
    StateConflict,
)
from app.operations.services import Services
from app.vault import WrongMasterKey
from domain.ids import KOMMO

AGAIN = "begin again with POST /v1/accounts/{account_id}/authorize"
CORRECT = "correct the table [oauth] of the configuration"
DISABLED = "the integration was disabled in Kommo"
PATIENCE_SECONDS = 5  # Chosen: as long as Kommo waits for a hook; what was asked goes on without the caller.
DIGITS_MAX = 18  # What a PostgreSQL bigint holds, whatever the digits are.


class NoIntegration(StateConflict):
    """The configuration names no integration of ours."""

    MESSAGE = "the configuration has no table [oauth]: give client_id, client_secret and redirect_url there"


class SignatureMissing(AccessDenied):
    """Kommo did not sign the call."""

    MESSAGE = "the signature is missing or wrong: it is HMAC-SHA256 of client_uuid|account_id, in hex"


class NeverConsented(NotFound):
    """No account with this number ever consented."""

    MESSAGE = "no account with this number ever consented"


class StillAuthorized(StateConflict):
    """Kommo takes our token for the account, so the integration is not disabled there."""

    MESSAGE = "Kommo still takes our token for the account: nothing is ended"


class Return(Struct, frozen=True):
    """The query with which Kommo leads an administrator back to us."""

    code: str | None
    state: str | None
    referer: str | None
    client_id: str | None
    error: str | None


def authorize_url(services: Services, account_id: str) -> tuple[str, str]:
    """Where an administrator consents, and until when, as RFC 3339. Raises InvalidInput, NoIntegration."""
    now = clock.now_ms()
    state = services.states.make(known_account(account_id), now / 1000)
    return _oauth(services).authorize_url(state), clock.text(now + STATE_SECONDS * 1000)


async def complete(services: Services, answer: Return) -> str:
    """Exchange the code for tokens, make sure whose they are, and keep them; returns the account's id.

    Raises NoIntegration, AccessDenied, InvalidInput, KommoFailed, LedgerBusy.
    """
    oauth = _oauth(services)
    if answer.error:
        raise AccessDenied(f"Kommo says that consent was refused; {AGAIN}")
    if not answer.code or not answer.state:
        raise InvalidInput(f"code and state are missing: {AGAIN}")
    if answer.client_id and answer.client_id.lower() != oauth.app.client_id.lower():
        raise InvalidInput(f"client_id is not our integration's: {CORRECT}")
    state = _state(services, answer.state)
    crm_url = crm_url_of(answer.referer, _configured_url(services, state.account))
    if crm_url is None:
        raise InvalidInput("referer is not the account's address: give its crm_url in the configuration")
    if not await services.tokens.use_state(state):
        raise InvalidInput(f"the state was used already: {AGAIN}")
    crm_id, pair = await _exchange(oauth, crm_url, answer.code, state.account)
    try:
        await services.tokens.save(state.account, crm_id, crm_url, pair)
    except (LedgerFull, LedgerUnavailable):
        raise LedgerBusy(AGAIN) from None
    services.endings.forget(state.account)
    await startup.bring_back(services, state.account)
    return state.account


async def end(services: Services, crm_id: str, client_uuid: str, signature: str) -> None:
    """End an account's connections and withdraw its tokens, once Kommo confirms that we are disabled there.

    The signature is the same for ever, so whoever has seen a call can repeat it: only Kommo's refusal of the
    account's token counts. It is asked at most once in 10 s, whoever calls. `crm_id` is the CRM's
    number of the account. Raises NoIntegration, SignatureMissing, NeverConsented, StillAuthorized,
    KommoFailed, NotYet.
    """
    app = _oauth(services).app
    right = disabled_signature(app.client_secret, client_uuid, crm_id)
    signed = hmac.compare_digest(right.encode(), signature.lower().encode())
    if not signed or client_uuid.lower() != app.client_id.lower():
        raise SignatureMissing
    is_number = crm_id.isascii() and crm_id.isdigit() and len(crm_id) <= DIGITS_MAX
    consent = await services.tokens.consent_of(int(crm_id)) if is_number else None
    if consent is None:
        raise NeverConsented
    if consent.state != AUTHORIZED and not await _connections(services, consent.account_id):
        return
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await services.endings.run(consent.account_id, partial(_end, services, consent))
    except TimeoutError:
        raise NotYet("Kommo is asked about it in a moment: call again", PATIENCE_SECONDS) from None


async def _end(services: Services, consent: Consent) -> None:
    account = consent.account_id
    had_token = consent.state == AUTHORIZED
    if had_token and not await _is_refused(services, account):
        raise StillAuthorized
    for channel, connection in await _connections(services, account):
        if had_token or await _is_lost(services, channel, connection):
            await _drop(services, connection)
    try:
        await services.tokens.withdraw(account, DISABLED)
    except (LedgerFull, LedgerUnavailable):
        raise LedgerBusy("call again") from None


async def _connections(services: Services, account: str) -> list[tuple[Channel, Connection]]:
    """The account's connections in force."""
    found = [(one, one.connections.get(account)) for one in (await services.channels.all()).values()]
    return [(channel, connection) for channel, connection in found if connection and connection.connected]


async def _is_refused(services: Services, account: str) -> bool:
    """Whether Kommo refuses our tokens for the account. Raises KommoFailed, NotYet if it does not say."""
    try:
        answer = await services.crm.call(account, "GET", "/api/v4/account")
    except AppUnusable as error:
        raise KommoFailed(str(error), text=error.answer) from None
    except WrongMasterKey as error:
        raise KommoFailed(str(error)) from None
    except NotAuthorized:
        return True
    except (LedgerFull, LedgerUnavailable):
        raise LedgerBusy("call again") from None
    except BudgetExhausted as error:
        raise NotYet(f"{error.reason}: call again", PATIENCE_SECONDS) from None
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason}); nothing is ended") from None
    if answer.html or not 200 <= answer.status < 300:
        raise KommoFailed(f"Kommo answered HTTP {answer.status} to our token; nothing is ended", answer)
    return False


async def _is_lost(services: Services, channel: Channel, connection: Connection) -> bool:
    """Whether Kommo no longer knows a connection, where no token is left to ask with. Raises KommoFailed."""
    credentials = Credentials(channel.channel_id, channel.secrets.kommo)
    try:
        answer = await ask_scope(services.kommo, credentials, connection.scope.scope_id)
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason})") from None
    return answer.status == 404 and not answer.html


async def _drop(services: Services, connection: Connection) -> None:
    with contextlib.suppress(NotFound):  # Another process was first.
        await channels.record_disconnected(services, connection, by=KOMMO)


def _oauth(services: Services) -> OAuth:
    if services.oauth is None:
        raise NoIntegration
    return services.oauth


def _state(services: Services, text: str) -> State:
    try:
        return services.states.read(text, clock.now_ms() / 1000)
    except StateRefused:
        raise InvalidInput(f"the state is not ours, or is older than 20 minutes: {AGAIN}") from None


def _configured_url(services: Services, account: str) -> str | None:
    accounts = services.setup.accounts
    return next((each.crm_url for each in accounts if each.account_id.lower() == account), None)


async def _exchange(oauth: OAuth, crm_url: str, code: str, account: str) -> tuple[int, Pair]:
    """The account's number in the CRM, and its tokens. Raises InvalidInput, AccessDenied, KommoFailed."""
    try:
        pair = await oauth.exchange(crm_url, code)
        owner = await oauth.who_am_i(crm_url, pair)
    except TokenRefused as error:
        reason = f"Kommo does not take the code ({error.reason}): {AGAIN}"
        raise InvalidInput(reason, text=error.answer) from None
    except AppRefused as error:
        reason = f"Kommo does not know our integration ({error.reason}): {CORRECT}"
        raise KommoFailed(reason, text=error.answer) from None
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason}), nothing is kept: {AGAIN}") from None
    if owner.amojo_id.lower() != account:
        raise AccessDenied(
            f"the consent is for account {owner.amojo_id}, not for {account}; nothing is kept: {AGAIN}"
        )
    return owner.id, pair
