"""How an account is described, and where its CRM is: at another address it answers 301."""

from urllib.parse import urlunsplit

from litestar import Response

from ops.sandbox.responses import Call, sandbox_of
from ops.sandbox.state.crm import Profile


def profile_of(request: Call, account: str) -> Profile:
    """The profile of an account, as ordered or the usual one."""
    return sandbox_of(request).crm_state.profiles.get(account) or Profile(id=account)


def elsewhere(request: Call, account: str) -> Response[bytes] | None:
    """The redirect to where the account's CRM is; None if it is here."""
    host = profile_of(request, account).host
    if not host or request.headers.get("host", "") == host:
        return None
    url = urlunsplit(("http", host, request.url.path, request.url.query, ""))
    return Response(b"", status_code=301, headers={"Location": url})
