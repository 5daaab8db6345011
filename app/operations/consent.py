"""An account's administrator lets us into its CRM, and an integration that is disabled there shuts us out.

The first trusts only our signature on the state that comes back. The second trusts Kommo's signature and,
since that is the same for ever, Kommo's own refusal of the account's token.
"""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256

import msgspec
from msgspec import Struct

from app import clock
from app.http_client import Unreached
from app.kommo.crm import installs
from app.kommo.crm.account import Described, Facts
from app.kommo.crm.oauth import (
    STATE_SECONDS,
    AppRefused,
    OAuth,
    Pair,
    PlanRefused,
    State,
    StateRefused,
    TokenRefused,
    crm_url_of,
    disabled_signature,
)
from app.kommo.crm.tokens import AUTHORIZED
from app.ledger.writer import LedgerFull, LedgerUnavailable
from app.operations import crm, installation, startup
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

AGAIN = "begin again with POST /v1/accounts/{account_id}/authorize, or in Kommo"
CORRECT = "correct the table [oauth] of the configuration"
DISABLED = "the integration was disabled in Kommo"
PATIENCE_SECONDS = 5  # Chosen: as long as Kommo waits for a hook; what was asked goes on without the caller.
BROWSER = "browser:"
DIGITS_MAX = 18  # What a PostgreSQL bigint holds, whatever the digits are.


class NoIntegration(StateConflict):
    """The configuration names no integration of ours."""

    MESSAGE = "the configuration has no table [oauth]: give client_id, client_secret and redirect_url there"


class NoInstallation(StateConflict):
    """Accounts may not install the integration by themselves."""

    MESSAGE = "the configuration has no table [install]: give the channels there that an account gets"


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
    """The query with which Kommo leads an administrator back to us; `browser` is the cookie of `/install`."""

    code: str | None
    state: str | None
    referer: str | None
    client_id: str | None
    error: str | None
    from_widget: bool = False
    browser: str | None = None


def authorize_url(services: Services, account_id: str) -> tuple[str, str]:
    """Where an administrator consents, and until when, as RFC 3339. Raises InvalidInput, NoIntegration."""
    now = clock.now_ms()
    state = services.states.make(known_account(account_id), now / 1000)
    return _oauth(services).authorize_url(state), clock.text(now + STATE_SECONDS * 1000)


def install_url(services: Services, browser: str) -> str:
    """Where an administrator of any account consents, who comes back with this browser.

    Raises NoIntegration, NoInstallation.
    """
    oauth = _oauth(services)
    if services.setup.install is None:
        raise NoInstallation
    return oauth.authorize_url(services.states.make(_name_of(browser), clock.now_ms() / 1000))


async def complete(services: Services, answer: Return) -> str:
    """Exchange the code for tokens, keep them, and give the account what [install] says; returns its id.

    The same answer again changes nothing. Raises NoIntegration, AccessDenied, InvalidInput, KommoFailed,
    LedgerBusy, NotYet.
    """
    oauth = _oauth(services)
    if answer.error:
        raise AccessDenied(f"Kommo says that consent was refused; {AGAIN}")
    digest = _digest(answer)
    if account := await services.tokens.account_of(digest):
        return account
    state = _asked(services, oauth, answer)
    async with _place(services), services.attempts.turn("answer", digest.hex()):
        if account := await services.tokens.account_of(digest):  # The same answer came twice at once.
            return account
        account = await _take(services, oauth, answer, state, digest)
    services.endings.forget(account)
    await startup.bring_back(services, account)
    await installation.carry_out(services, account)
    return account


async def _take(services: Services, oauth: OAuth, answer: Return, state: State | None, digest: bytes) -> str:
    """Exchange the code, make sure whose the tokens are, and keep them; returns the account."""
    named = state.account if state and not _is_browser(state) else None
    crm_url = crm_url_of(answer.referer, _configured_url(services, named), oauth.app.domains)
    if crm_url is None:
        raise InvalidInput(
            "referer is not an address of Kommo's: give the account's crm_url in the configuration, or list"
            " its domain in [oauth] domains"
        )
    if state and not await services.tokens.use_state(state):
        raise InvalidInput(f"the state was used already: {AGAIN}")
    owner, pair = await _exchange(oauth, crm_url, answer.code or "", named)
    account, facts = owner.amojo_id, owner.facts
    steps = _steps(services, facts, needed=named is None)
    async with installation.turn(services, account):
        try:
            await services.tokens.save(
                account,
                owner.id,
                crm_url,
                pair,
                answer=digest,
                configured=_configured_url(services, account),
                beside=partial(installs.begin, account=account, facts=facts, steps=steps),
            )
        except (LedgerFull, LedgerUnavailable):
            raise LedgerBusy(AGAIN) from None
    return account


def _steps(services: Services, facts: Facts, *, needed: bool) -> list[str]:
    """What has to be done for an account. Raises AccessDenied if it is `needed` and not for this account."""
    install = services.setup.install
    if install and install.allows(facts.subdomain or ""):
        return installation.steps_of(install)
    if needed:
        raise AccessDenied(
            f"the account {facts.subdomain} may not install this: its subdomain is not allowed"
        )
    return []


@contextlib.asynccontextmanager
async def _place(services: Services) -> AsyncIterator[None]:
    """One of few places, because strangers can ask for this work. Raises NotYet."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await services.arrivals.acquire()
    except TimeoutError:
        raise NotYet("too many install at the same moment: load this page again", PATIENCE_SECONDS) from None
    try:
        yield
    finally:
        services.arrivals.release()


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
    if consent.ended and not await installation.connections(services, consent.account_id):
        return
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await services.endings.run(consent.account_id, partial(_end, services, consent.account_id))
    except TimeoutError:
        raise NotYet("Kommo is asked about it in a moment: call again", PATIENCE_SECONDS) from None


async def _end(services: Services, account: str) -> None:
    async with installation.turn(services, account):
        consent = await services.tokens.of(account)
        if consent and consent.state == AUTHORIZED:
            if await crm.ask_account(services, account):
                raise StillAuthorized
            for _, connection in await installation.connections(services, account):
                await installation.drop(services, connection)
            try:
                await services.tokens.withdraw(account, DISABLED)
            except (LedgerFull, LedgerUnavailable):
                raise LedgerBusy("call again") from None
        await installation.settle_end(services, account)


def _oauth(services: Services) -> OAuth:
    if services.oauth is None:
        raise NoIntegration
    return services.oauth


def _asked(services: Services, oauth: OAuth, answer: Return) -> State | None:
    """The state that the answer belongs to; None if the administrator began in Kommo, where there is none.

    Raises InvalidInput.
    """
    is_ours = answer.client_id is None or answer.client_id.lower() == oauth.app.client_id.lower()
    if not is_ours:
        raise InvalidInput(f"client_id is not our integration's: {CORRECT}")
    if not answer.code:
        raise InvalidInput(f"code and state are missing: {AGAIN}")
    if answer.state:
        return _state(services, answer)
    if not answer.from_widget:
        raise InvalidInput(f"the state is missing: {AGAIN}")
    if services.setup.install is None:
        raise InvalidInput(f"the account was not asked for: {NoInstallation.MESSAGE}")
    return None


def _state(services: Services, answer: Return) -> State:
    try:
        state = services.states.read(answer.state or "", clock.now_ms() / 1000)
    except StateRefused:
        raise InvalidInput(f"the state is not ours, or is older than 20 minutes: {AGAIN}") from None
    if _is_browser(state) and state.account != _name_of(answer.browser or ""):
        raise InvalidInput("the state is another browser's: begin again at /install, in this browser")
    return state


def _is_browser(state: State) -> bool:
    return state.account.startswith(BROWSER)


def _name_of(browser: str) -> str:
    """What stands in a state for the browser with this cookie."""
    return BROWSER + sha256(browser.encode()).hexdigest()


def _digest(answer: Return) -> bytes:
    """What the answer of Kommo is remembered by, which holds a code."""
    return sha256(msgspec.json.encode((answer.code, answer.state, answer.referer))).digest()


def _configured_url(services: Services, account: str | None) -> str | None:
    accounts = services.setup.accounts
    return next((each.crm_url for each in accounts if each.account_id.lower() == account), None)


async def _exchange(oauth: OAuth, crm_url: str, code: str, account: str | None) -> tuple[Described, Pair]:
    """The account that the code is for, and its tokens. Raises InvalidInput, AccessDenied, KommoFailed.

    `account`: it has to be this one.
    """
    try:
        pair = await oauth.exchange(crm_url, code)
        owner = await oauth.who_am_i(crm_url, pair)
    except TokenRefused as error:
        reason = f"Kommo does not take the code ({error.reason}): {AGAIN}"
        raise InvalidInput(reason, text=error.answer) from None
    except AppRefused as error:
        reason = f"Kommo does not know our integration ({error.reason}): {CORRECT}"
        raise KommoFailed(reason, text=error.answer) from None
    except PlanRefused as error:
        reason = f"{installation.PLAN}, so nothing is kept: choose another plan, then install again"
        raise KommoFailed(reason, text=error.answer) from None
    except Unreached as error:
        raise KommoFailed(f"Kommo could not be reached ({error.reason}), nothing is kept: {AGAIN}") from None
    if account and owner.amojo_id != account:
        raise AccessDenied(
            f"the consent is for account {owner.amojo_id}, not for {account}; nothing is kept: {AGAIN}"
        )
    return owner, pair
