"""The settings page: a shell that anyone may load, and its parts, each for a session of the account.

A change answers the part of the page that it changed, with a word of what was done.
"""

from collections.abc import Mapping

from litestar import Response, Router, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from app.http.guard import READ
from app.http.request import Call, services_of
from app.http.settings import session
from app.http.settings.pages import ASSETS, asset, domains, page
from app.http.settings.session import only_visitor, visitor_of
from app.http.settings.words import LANGUAGES, language_of, translations
from app.operations import channels, deliveries
from app.operations.services import views_reach
from app.operations.settings import credentials
from app.operations.settings import page as settings
from app.problems import ProblemError

HERE = "/settings/accounts/{account_id:str}"
CHANNEL = HERE + "/channels/{channel:str}"
NAME_CHARACTERS_MAX = 255  # As many as Kommo takes.
CACHE = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def _(text: str) -> str:
    """Mark a text for the catalogues; `_said` translates it."""
    return text


@get("/settings", include_in_schema=False)
async def shell(request: Call) -> Response[str]:
    """The page without any content: its script signs in with Kommo's token, then asks for the parts.

    Outside of Kommo a session that is still good goes on. In Kommo's window nothing is taken from before: who
    looks may be somebody else.
    """
    framed = request.headers.get("sec-fetch-dest") == "iframe"
    visitor = None if framed else await only_visitor(request)
    services = services_of(request)
    values = {
        "account": visitor.account_id if visitor else "",
        "csrf": services.settings_sessions.form_token(visitor) if visitor else "",
        "domains": " ".join(domains(services)),
        "languages": LANGUAGES,
    }
    return page(request, "page.html", values)


@get("/settings/static/{name:str}", include_in_schema=False, sync_to_thread=False)
def static(name: FromPath[str]) -> Response[bytes]:
    """The style sheet and the script; an address always has the same content."""
    if name not in ASSETS:
        raise ProblemError(404, "no such file")
    return Response(asset(name)[0], media_type=ASSETS[name], headers=CACHE)


@get(HERE, opt=READ)
async def account(request: Call) -> Response[str]:
    """Whether messages flow, and the messengers' credentials."""
    return await _account(request)


@get(HERE + "/live", opt=READ)
async def live(request: Call) -> Response[str]:
    """What is stuck, and the latest messages."""
    return await _live(request)


@get(HERE + "/crm", opt=READ)
async def of_crm(request: Call) -> Response[str]:
    """Sources and managers, as Kommo's CRM has them."""
    return await _crm(request)


@post(CHANNEL + "/connect", status_code=200)
async def connect(request: Call, channel: FromPath[str]) -> Response[str]:
    """Connect the channel, or connect it again."""
    services, mine = services_of(request), visitor_of(request).account_id
    found = await settings.channel_of(services, mine, channel)
    before = found.connections.get(mine)
    title = before.title if before else (services.setup.install.title if services.setup.install else "")
    await channels.connect(services, channel, mine, title or channel)
    return await _account(request, _("The channel is connected."))


@post(CHANNEL + "/disconnect", status_code=200)
async def disconnect(request: Call, channel: FromPath[str]) -> Response[str]:
    """Disconnect the channel; what is not delivered waits until it is connected again."""
    services, mine = services_of(request), visitor_of(request).account_id
    await settings.channel_of(services, mine, channel)
    await channels.disconnect(services, channel, mine)
    return await _account(request, _("The channel is disconnected."))


@post(CHANNEL + "/messenger", status_code=200)
async def messenger(request: Call, channel: FromPath[str]) -> Response[str]:
    """Try the messenger's credentials, and save them unless they are only checked."""
    services, mine = services_of(request), visitor_of(request).account_id
    found = await settings.channel_of(services, mine, channel)
    fields = await _fields(request)
    given = credentials.completed(services.messengers[found.kind], found.connections.get(mine), fields)
    only_check = fields.get("do") == "check"
    health = await (credentials.check if only_check else credentials.put)(services, channel, mine, given)
    said = _("The messenger accepts them.") if only_check else _("Saved. The messenger accepts them.")
    if health.health != credentials.OK:
        said = _("They could not be checked now.") if only_check else _("Saved, but not checked.")
    return await _account(request, said, health.name or (health.health if health.health != "ok" else ""))


@post(CHANNEL + "/test", status_code=200)
async def test(request: Call, channel: FromPath[str]) -> Response[str]:
    """A message as if a customer had written it."""
    text = _translated(request, _("This is a test message. If you can read it in Kommo, messages arrive."))
    await settings.send_test(services_of(request), visitor_of(request).account_id, channel, text)
    return await _live(request, _("A test message is on its way to Kommo."))


@post(HERE + "/retry", status_code=200)
async def retry(request: Call) -> Response[str]:
    """Try everything of the account again that is stuck."""
    services, mine = services_of(request), visitor_of(request).account_id
    count, last = await deliveries.resume(services, ("parked", "failed"), account_id=mine)
    await views_reach(services, last)
    return await _live(request, _("Tried again:"), str(count))


@post(HERE + "/sources", status_code=200)
async def add_source(request: Call) -> Response[str]:
    """A new source."""
    fields = await _fields(request)
    await settings.add_source(
        services_of(request), visitor_of(request).account_id, _name(fields), _pipeline(fields)
    )
    return await _crm(request, _("The source is added."))


@post(HERE + "/sources/{source_id:int}", status_code=200)
async def change_source(request: Call, source_id: FromPath[int]) -> Response[str]:
    """Rename a source, make it the default, give it another pipeline, or delete it."""
    services, mine, fields = services_of(request), visitor_of(request).account_id, await _fields(request)
    if fields.get("do") == "delete":
        await settings.delete_source(services, mine, source_id)
        return await _crm(request, _("The source is deleted."))
    if fields.get("do") == "default":
        await settings.change_source(services, mine, source_id, default=True)
        return await _crm(request, _("This source is the default now."))
    pipeline = _pipeline(fields)
    changed: dict[str, object] = {"name": _name(fields)} | ({"pipeline_id": pipeline} if pipeline else {})
    await settings.change_source(services, mine, source_id, **changed)
    return await _crm(request, _("The source is changed."))


async def _account(request: Call, said: str = "", detail: str = "") -> Response[str]:
    services, visitor = services_of(request), visitor_of(request)
    found = await settings.account(services, visitor.account_id)
    lost = found.state == "withdrawn"
    values = {
        "account": found,
        "channels": await settings.channel_states(services, visitor.account_id),
        "consent_url": await settings.consent_url(services, visitor.account_id)
        if lost and visitor.is_admin
        else "",
    }
    return page(request, "_account.html", values | _common(request, said, detail))


async def _live(request: Call, said: str = "", detail: str = "") -> Response[str]:
    found = await settings.live(services_of(request), visitor_of(request).account_id)
    return page(request, "_live.html", {"live": found} | _common(request, said, detail))


async def _crm(request: Call, said: str = "") -> Response[str]:
    found = await settings.of_crm(services_of(request), visitor_of(request).account_id)
    return page(request, "_crm.html", {"crm": found} | _common(request, said))


def _common(request: Call, said: str, detail: str = "") -> dict[str, object]:
    visitor = visitor_of(request)
    return {
        "here": f"/settings/accounts/{visitor.account_id}",
        "may": visitor.is_admin,
        "said": _translated(request, said) if said else "",
        "said_detail": detail,
    }


def _translated(request: Call, text: str) -> str:
    return translations(language_of(request)).gettext(text)


async def _fields(request: Call) -> Mapping[str, str]:
    form = await request.form()
    return {name: value for name, value in form.items() if isinstance(value, str)}


def _name(fields: Mapping[str, str]) -> str:
    """A source's name; raises ProblemError if it is none."""
    name = fields.get("name", "").strip()
    if not name or len(name) > NAME_CHARACTERS_MAX:
        raise ProblemError(400, f"name: give 1 to {NAME_CHARACTERS_MAX} characters")
    return name


def _pipeline(fields: Mapping[str, str]) -> int | None:
    """The number of a pipeline; None for that of Kommo's choice. Raises ProblemError if it is no number."""
    text = fields.get("pipeline_id", "").strip()
    if text and not (text.isascii() and text.isdecimal() and len(text) <= 15 and int(text)):
        raise ProblemError(400, "pipeline_id: give the pipeline's number in Kommo, or leave it empty")
    return int(text) if text else None


PARTS = [account, live, of_crm, connect, disconnect, messenger, test, retry, add_source, change_source]
ROUTER = Router("/", route_handlers=PARTS, guards=[session.guard], include_in_schema=False)
routes: list[HTTPRouteHandler | Router] = [shell, static, *session.routes, ROUTER]
