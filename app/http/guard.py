"""Nothing under /v1, and no metrics, without the admin's bearer key; wrong keys are slowed down by source."""

import hmac

from litestar.handlers import BaseRouteHandler

from app.bad_requests import BAD_REQUESTS
from app.http.request import Connection, address_of
from app.operations.services import Services
from app.problems import ProblemError

NO_KEY = "give the admin key: Authorization: Bearer KEY (it is in the data folder, admin.key)"
TWO_KEYS = "there are several headers Authorization: send one"


async def guard(connection: Connection, _: BaseRouteHandler) -> None:
    """Let a request pass that carries the key; raises ProblemError (400, 401, 429)."""
    services: Services = connection.app.state.services
    given = connection.headers.getall("authorization", [])
    if len(given) > 1:
        raise ProblemError(400, TWO_KEYS)
    kind, _space, key = given[0].partition(" ") if given else ("", "", "")
    if kind.lower() == "bearer" and is_admin_key(services, key.strip()):
        return
    if key:
        address = address_of(connection)
        BAD_REQUESTS.count("wrong_key", address, "its key is wrong")
        if seconds := await services.tries.slow_down("key", address):
            detail = f"too many wrong keys from your address: wait {seconds} seconds, or give the right one"
            raise ProblemError(429, detail, retry_after=seconds)
    raise ProblemError(401, NO_KEY)


def is_admin_key(services: Services, key: str) -> bool:
    """Whether a key is the admin's, compared in constant time."""
    return hmac.compare_digest(key.encode(), services.keys.admin.encode())
