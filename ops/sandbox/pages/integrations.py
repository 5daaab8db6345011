"""Kommo's pages about integrations: an account's list of them, their windows, and the developer's upload."""

from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from litestar import Response, Router, get, post
from litestar.datastructures import UploadFile
from msgspec import Meta, Struct, ValidationError, convert

from ops.sandbox.api.accounts import User, users_of
from ops.sandbox.api.crm import faulty
from ops.sandbox.config import CrmAccount, OAuthClient
from ops.sandbox.errors import Impossible
from ops.sandbox.pages.consent import redirect_of
from ops.sandbox.pages.forms import HEADERS, POLICY, TEMPLATES, Short
from ops.sandbox.responses import Call, json, same_origin, sandbox_of
from ops.sandbox.state.crm import Archive
from ops.sandbox.widget import installs
from ops.sandbox.widget.archive import ARCHIVE_BYTES_MAX, Refused, manifest_of, text_at, texts_of
from ops.sandbox.widget.tokens import claims_of, one_time
from ops.sandbox.world import World

LANGUAGES = ("en", "es", "pt", "ru")
AREAS = {"settings": "Settings", "lead_sources": "Lead sources", "advanced_settings": "Its own page"}
UPLOAD_BYTES_MAX = ARCHIVE_BYTES_MAX + 64 * 1024  # The form around the file.
TYPES = {
    "js": "text/javascript",
    "json": "application/json",
    "png": "image/png",
    "css": "text/css",
    "svg": "image/svg+xml",
}
# A widget calls its own server and frames its pages; its texts and styles are its own affair.
WINDOW_POLICY = POLICY.replace("connect-src 'self'", "connect-src 'self' http: https:").replace(
    "style-src 'self'", "style-src 'self' 'unsafe-inline'; frame-src http: https:"
)
# A form must come with its origin, which a browser keeps to itself under `no-referrer`.
OWN = HEADERS | {"Referrer-Policy": "same-origin"}


class Seen(Struct, frozen=True):
    """Who looks: a user of an account, and the language of his Kommo."""

    account: CrmAccount
    user: User
    language: str

    @property
    def query(self) -> str:
        """The same in the address of a page."""
        told = {"account": self.account.amojo_id, "user": str(self.user.number), "lang": self.language}
        return urlencode(told)


class Pressed(Struct):
    """A button of a card, by the user who pressed it."""

    client: Short
    account: Short
    user: Annotated[str, Meta(pattern="^[0-9]{1,12}$")]
    lang: Literal["en", "es", "pt", "ru"] = "en"


@get("/integrations")
async def integrations(request: Call) -> Response[str]:
    """The integrations of an account, as one of its users sees them."""
    return _page(request, _seen(request, dict(request.query_params)))


@post("/integrations/install", status_code=200)
async def install(request: Call) -> Response[str]:
    """The administrator presses "Install": Kommo calls the redirect URL."""
    seen, client = await _pressed(request)
    told = await installs.install(sandbox_of(request), seen.account, client, request.headers.get("host", ""))
    return _page(request, seen, said=f"Installed. The integration {_answered(told)}.")


@post("/integrations/uninstall", status_code=200)
async def uninstall(request: Call) -> Response[str]:
    """The administrator presses "Uninstall": tokens end, and the integration is told."""
    seen, client = await _pressed(request)
    sandbox = sandbox_of(request)
    told = await installs.uninstall(sandbox, seen.account, client, sandbox.config.disabled_url)
    how = _answered(told) if "url" in told else "was not told: the sandbox has no --disabled-url"
    return _page(request, seen, said=f"Uninstalled. The integration {how}.")


@post("/integrations/upload", status_code=200, request_max_body_size=UPLOAD_BYTES_MAX)
async def upload(request: Call) -> Response[str]:
    """The developer uploads the archive of a widget; what is wrong with it is told."""
    form = await request.form()
    file, fields = (
        form.get("archive"),
        {name: str(form.get(name, "")) for name in ("client", "account", "lang")},
    )
    seen = _seen(request, fields | {"user": str(form.get("user", ""))})
    client = sandbox_of(request).consent.client(fields["client"])
    if not isinstance(file, UploadFile):
        raise Impossible(400, "archive: choose a file")
    try:
        taken = installs.upload(sandbox_of(request), client, await file.read())
    except Refused as refused:
        return _page(request, seen, faults=refused.faults, status=422)
    return _page(request, seen, said=f"The widget was uploaded: version {installs.version_of(taken)}.")


@get("/integrations/window")
async def window(request: Call) -> Response[str]:
    """The integration's window or page, which runs the script of its widget."""
    sandbox, seen = sandbox_of(request), _seen(request, dict(request.query_params))
    client = sandbox.consent.client(request.query_params.get("client", ""))
    area = request.query_params.get("area", "settings")
    widget = installs.archive_of(sandbox, client)
    if area not in AREAS or area not in _areas(widget):
        raise Impossible(404, f"area: the widget has {', '.join(sorted(_areas(widget)))}")
    text = TEMPLATES.get_template("window.html").render(
        side="home",
        seen=seen,
        client=client,
        area=area,
        code=installs.code_of(widget),
        version=installs.version_of(widget),
        texts=texts_of(widget.files, seen.language),
        name=_words(widget, seen.language)["name"],
        is_installed=sandbox.consent.is_installed(seen.account, client),
    )
    return Response(text, media_type="text/html", headers=OWN | {"Content-Security-Policy": WINDOW_POLICY})


@get("/integrations/files/{client_id:str}/{path:path}")
async def widget_file(request: Call) -> Response[bytes]:
    """A file of the widget, as Kommo serves it to its pages."""
    sandbox = sandbox_of(request)
    widget = installs.archive_of(sandbox, sandbox.consent.client(request.path_params["client_id"]))
    name = str(request.path_params["path"]).lstrip("/")
    kind = TYPES.get(name.rpartition(".")[2])
    if name not in widget.files or kind is None:
        raise Impossible(404, "the widget has no such file")
    return Response(widget.files[name], media_type=kind, headers=HEADERS)


@get("/ajax/v2/integrations/{client_id:str}/disposable_token")
async def disposable_token(request: Call) -> Response[bytes]:
    """A new one-time token for the user whose page asks; the page's address says who, in Kommo a session."""
    if fault := faulty(sandbox_of(request).faults.take("crm.one_time")):
        return fault
    page = urlsplit(request.headers.get("referer", "")).query
    sandbox, seen = sandbox_of(request), _seen(request, dict(parse_qsl(page)) | dict(request.query_params))
    client = sandbox.consent.client(request.path_params["client_id"])
    if not sandbox.consent.is_installed(seen.account, client):
        raise Impossible(403, "the integration is not installed in this account")
    claims = claims_of(
        client,
        seen.account,
        address=f"http://{request.headers.get('host', '')}",
        redirect_uri=redirect_of(client, ""),
        user_id=seen.user.number,
        is_admin=seen.user.is_admin,
    )
    return json(200, {"token": one_time(client, claims)})


ROUTER = Router(
    path="/",
    before_request=same_origin,
    route_handlers=[integrations, install, uninstall, upload, window, widget_file, disposable_token],
)


def _page(
    request: Call, seen: Seen, *, said: str = "", faults: list[str] | None = None, status: int = 200
) -> Response[str]:
    sandbox = sandbox_of(request)
    text = TEMPLATES.get_template("integrations.html").render(
        side="integrations",
        seen=seen,
        accounts=sandbox.consent.accounts(),
        users=users_of(sandbox.config),
        languages=LANGUAGES,
        cards=[_card(sandbox, seen, client) for client in sandbox.config.oauth],
        said=said,
        faults=faults or [],
    )
    return Response(text, status_code=status, media_type="text/html", headers=OWN)


def _card(sandbox: World, seen: Seen, client: OAuthClient) -> dict[str, object]:
    """What the list shows of an integration."""
    widget = sandbox.crm_state.archives.get(client.id)
    return {
        "client": client.id,
        "widget": widget is not None,
        "version": installs.version_of(widget) if widget else "",
        "words": _words(widget, seen.language) if widget else {"name": client.id},
        "areas": {one: AREAS[one] for one in AREAS if one in _areas(widget)} if widget else {},
        "is_installed": sandbox.consent.is_installed(seen.account, client),
    }


def _words(widget: Archive, language: str) -> dict[str, str]:
    """The widget's name and descriptions."""
    named, texts = manifest_of(widget.files)["widget"], texts_of(widget.files, language)
    return {name: text_at(texts, named[name]) for name in ("name", "short_description", "description")}


def _areas(widget: Archive) -> set[str]:
    return {one.partition("-")[0] for one in manifest_of(widget.files)["locations"]}


def _seen(request: Call, told: dict[str, str]) -> Seen:
    """Whose page it is: by default the first account's first user. Raises Impossible."""
    sandbox = sandbox_of(request)
    accounts = sandbox.consent.accounts()
    named = told.get("account", "")
    account = sandbox.consent.account(named) if named or len(accounts) < 2 else accounts[0]
    users = users_of(sandbox.config)
    user = next(
        (one for one in users if str(one.number) == told.get("user")), None if told.get("user") else users[0]
    )
    if user is None:
        raise Impossible(404, "user: no such user")
    language = told.get("lang", "")
    return Seen(account, user, language if language in LANGUAGES else "en")


async def _pressed(request: Call) -> tuple[Seen, OAuthClient]:
    """Whose button it was, which only administrators have. Raises Impossible."""
    try:
        order = convert(dict(await request.form()), Pressed)
    except ValidationError as error:
        raise Impossible(400, f"That does not fit: {error}") from error
    seen = _seen(request, {"account": order.account, "user": order.user, "lang": order.lang})
    if not seen.user.is_admin:
        raise Impossible(403, "only administrators install and uninstall")
    return seen, sandbox_of(request).consent.client(order.client)


def _answered(told: dict[str, object]) -> str:
    status = told.get("status")
    return f"answered {status}" if status is not None else f"did not answer ({told.get('error')})"
