"""How a route reaches the process that serves it, and who asks."""

from typing import Any, TypeAlias, cast

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State

from app.access.proxies import client_of
from app.operations.services import Services

Call: TypeAlias = Request[Any, Any, State]
Connection: TypeAlias = ASGIConnection[Any, Any, Any, Any]


def services_of(request: Call) -> Services:
    """The services of the application that serves a request."""
    return cast("Services", request.app.state.services)


def address_of(request: Connection) -> str:
    """The address of the client, behind a trusted proxy as that reports it."""
    return client_of(cast("Services", request.app.state.services).proxies, request.scope)


def is_https(request: Call) -> bool:
    """Whether browsers reach us over https: by the public URL, or as a trusted proxy reports."""
    services = services_of(request)
    peer = request.client.host if request.client else ""
    public = (services.settings.public_url or "").lower()
    return public.startswith("https://") or services.proxies.is_https(peer, request.scope["headers"])
