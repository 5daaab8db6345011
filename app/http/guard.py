"""DOC"""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from app.operations.services import Services
from app.problems import ProblemError


def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Only with the admin's bearer key."""
    services: Services = connection.app.state.services
    kind, _space, key = connection.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not services.is_admin(key.strip()):
        raise ProblemError(
            401, "give the admin key: Authorization: Bearer KEY (it is in the data folder, admin.key)"
        )
