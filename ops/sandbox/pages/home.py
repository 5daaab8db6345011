"""Three pages: what the sandbox is, the customer's chats, and the manager's inbox."""

from collections.abc import AsyncIterator
from importlib.resources import files

from litestar import Response, Router, get
from litestar.response import Stream

from ops.sandbox.errors import Impossible
from ops.sandbox.pages import crm_panel, customer, manager
from ops.sandbox.pages.forms import page
from ops.sandbox.responses import Call, same_origin, sandbox_of

STATIC = {
    "sandbox.css": ("text/css", files("ops.sandbox.pages") / "static/sandbox.css"),
    "sandbox.js": ("text/javascript", files("ops.sandbox.pages") / "static/sandbox.js"),
    "widget.js": ("text/javascript", files("ops.sandbox.pages") / "static/widget.js"),
    "htmx.min.js": ("text/javascript", files("js_lib_htmx") / "static/htmx/htmx.min.js"),
}


@get("/")
async def home(request: Call) -> Response[str]:
    """The home page."""
    sandbox = sandbox_of(request)
    active = [one for one in sandbox.chat_state.connections.values() if one.active]
    return page("home.html", side="home", connections=active, config=sandbox.config)


@get("/static/{name:str}", sync_to_thread=False)
def static(request: Call) -> Response[bytes]:
    """Our style and script, and htmx from its wheel."""
    found = STATIC.get(request.path_params["name"])
    if found is None:
        raise Impossible(404, "no such file")
    return Response(found[1].read_bytes(), media_type=found[0], headers={"Cache-Control": "max-age=60"})


@get("/{side:str}/events")
async def events(request: Call) -> Stream:
    """Changes as server-sent events."""
    side = request.path_params["side"]
    if side not in ("manager", "customer"):
        raise Impossible(404, "no such page")

    async def lines() -> AsyncIterator[bytes]:
        async for line in sandbox_of(request).feed.follow(side):
            yield line

    return Stream(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


ROUTER = Router(
    path="/",
    route_handlers=[home, static, events, *manager.ROUTES, *crm_panel.ROUTES, *customer.ROUTES],
    before_request=same_origin,
)
