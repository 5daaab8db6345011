"""Nothing under /v1, and no metrics, without the admin's bearer key."""

import hmac
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from app.operations.services import Services
from app.problems import ProblemError


def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let a request pass that carries the key; raises ProblemError (401)."""
    services: Services = connection.app.state.services
    kind, _space, key = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not is_admin_key(services, key.strip()):
        raise ProblemError(
            401, "give the admin key: Authorization: Bearer KEY (it is in the data folder, admin.key)"
        )


def is_admin_key(services: Services, key: str) -> bool:
    """Whether a key is the admin's, compared in constant time."""
    return hmac.compare_digest(key.encode(), services.keys.admin.encode())
