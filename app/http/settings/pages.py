"""The page and its parts from templates, and the headers by which Kommo's pages alone may frame it."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files

from babel.dates import format_datetime
from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Response

from app.config.file import KOMMO_DOMAINS
from app.http.console import formatting
from app.http.request import Call, services_of
from app.http.security import HEADERS
from app.http.settings.words import language_of, translations
from app.operations.services import Services
from app.views.conversations import Conversation

ASSETS = {"settings.css": "text/css", "settings.js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self' {frames}"
)
TICKS = {"accepted": "✓", "delivered": "✓✓", "read": "✓✓", "failed": "!"}


@cache
def environment(language: str) -> Environment:
    """The templates in a language."""
    found = Environment(
        loader=PackageLoader("app.http.settings"),
        autoescape=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.i18n"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.install_gettext_translations(translations(language))  # type: ignore[attr-defined]  # the extension's
    found.filters["moment"] = lambda text: _moment(text, language)
    found.filters["snippet"] = lambda one: _snippet(one, language)
    found.filters["reason"] = formatting.reason
    found.globals |= {"TICKS": TICKS, "asset": asset_url, "language": language}
    return found


@cache
def asset(name: str) -> tuple[bytes, str]:
    """A static file and its version."""
    content = (files("app.http.settings") / "static" / name).read_bytes()
    return content, sha256(content).hexdigest()[:12]


def asset_url(name: str) -> str:
    """The address of a static file, which changes whenever the file does."""
    return f"/settings/static/{name}?v={asset(name)[1]}"


def domains(services: Services) -> tuple[str, ...]:
    """The domains whose pages may frame ours and hand it a token."""
    return services.setup.oauth.domains if services.setup.oauth else KOMMO_DOMAINS


def page(request: Call, template: str, values: Mapping[str, object]) -> Response[str]:
    """The page, or a part of it."""
    services, language = services_of(request), language_of(request)
    text = environment(language).get_template(template).render(**values)
    frames = " ".join(f"http://{one}" if ":" in one else f"https://*.{one}" for one in domains(services))
    headers = HEADERS | {"Content-Security-Policy": POLICY.format(frames=frames), "Vary": "Accept-Language"}
    return Response(text, media_type="text/html", headers=headers)


def _moment(text: str, language: str) -> str:
    """A time of ours, in UTC, as the language writes it."""
    return format_datetime(datetime.fromisoformat(text), "short", locale=language) + " UTC"


def _snippet(one: Conversation, language: str) -> str:
    """The latest message of a conversation, in one line."""
    last, gettext = one.last, translations(language).gettext
    if last is None:
        return ""
    if last.deleted:
        return gettext("Message deleted")
    return (last.text or "")[:160] or f"[{last.type}]"
