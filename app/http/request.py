"""How a route reaches the process that serves it."""

from typing import Any, TypeAlias, cast

from litestar import Request
from litestar.datastructures import State

from app.operations.services import Services

Call: TypeAlias = Request[Any, Any, State]


def services_of(request: Call) -> Services:
    """The services of the application that serves a request."""
    return cast("Services", request.app.state.services)
