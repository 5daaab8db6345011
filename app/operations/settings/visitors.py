"""Who may open an account's settings page: a user of it, whom Kommo's one-time token names."""

from msgspec import Struct

from app.access import one_time_tokens
from app.access.one_time_tokens import Claims, TokenUnusable, origin_of
from app.access.settings_sessions import Visitor
from app.kommo.crm.tokens import Consent
from app.operations import crm
from app.operations.consent import DISABLED, NoIntegration
from app.operations.errors import AccessDenied, OperationError
from app.operations.services import Services

KNOWN = "SELECT account_id FROM ledger.tokens WHERE crm_url = %(url)s LIMIT 1"


class TokenRefused(AccessDenied):
    """A one-time token does not open the page."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the one-time token is refused: {reason}; open the settings in Kommo again")


class OriginRefused(AccessDenied):
    """A page of another site asks."""

    MESSAGE = "only pages of ours, and of the account itself, may sign in"


class _Account(Struct):
    account_id: str


async def sign_in(services: Services, token: str, origin: str | None, own: set[str]) -> tuple[Visitor, str]:
    """Who opens the page with a one-time token, and the origin of the account's address.

    `origin` is that of the page which asks, as its browser says; `own` are ours. Raises NoIntegration,
    TokenRefused, OriginRefused.
    """
    app = services.setup.oauth
    if app is None:
        raise NoIntegration
    try:
        claims = one_time_tokens.read(token, app)
    except TokenUnusable as error:
        raise TokenRefused(str(error)) from None
    consented = await _consent(services, claims)
    address = origin_of(consented.crm_url)
    if origin is not None and origin not in own | {address}:
        raise OriginRefused
    if not await one_time_tokens.use(services.pool, claims):
        raise TokenRefused("it was used already")
    return Visitor(consented.account_id, consented.crm_id, claims.user_id, claims.is_admin), address


async def is_open(services: Services, visitor: Visitor) -> bool:
    """Whether the integration is still installed in the account of a session."""
    consented = await services.tokens.of(visitor.account_id)
    return consented is not None and consented.crm_id == visitor.crm_id and not _is_over(consented)


async def is_known_address(services: Services, origin: str) -> bool:
    """Whether an account that let us in is at this origin."""
    return bool(await services.pool.fetch(_Account, KNOWN, {"url": origin}))


async def _consent(services: Services, claims: Claims) -> Consent:
    """The consent of the token's account, whose address its issuer is. Raises TokenRefused."""
    consented = await services.tokens.consent_of(claims.account_id)
    if consented is None or _is_over(consented):
        raise TokenRefused("the integration is not installed in this account")
    if origin_of(consented.crm_url) != origin_of(claims.iss):
        consented = await _moved(services, consented)
    if origin_of(consented.crm_url) != origin_of(claims.iss):
        raise TokenRefused("its issuer is not the account's address")
    return consented


async def _moved(services: Services, consented: Consent) -> Consent:
    """The consent once the CRM was called: an account that has another address now leads us there."""
    try:
        await crm.call(services, consented.account_id, "GET", "account")
    except OperationError:
        return consented
    return await services.tokens.of(consented.account_id) or consented


def _is_over(consented: Consent) -> bool:
    return consented.state == "withdrawn" and consented.reason == DISABLED
