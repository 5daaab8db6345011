"""The forms of the pages, and rendering: always escaped, always under the security policy."""

from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Response
from msgspec import Meta, Struct, ValidationError, convert

from ops.sandbox.errors import Impossible
from ops.sandbox.pages.formatting import initial
from ops.sandbox.responses import Call

TEXT_MAX = 4000
EMOJI = ("👍", "❤️", "😂", "🙏")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: https: http:; "
    "media-src 'self' https: http:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
TEMPLATES = Environment(
    loader=PackageLoader("ops.sandbox.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

TEMPLATES.filters["initial"] = initial

Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Short = Annotated[str, Meta(max_length=255)]
Kind = Literal["picture", "file", "video", "voice", "audio"]
FormShape = TypeVar("FormShape", bound=Struct)


class Written(Struct, kw_only=True):
    """The composer: text, a link to media, or both; `editing` names the message that is changed."""

    chat: Short
    text: Text = ""
    media: Annotated[str, Meta(max_length=2000)] = ""
    kind: Kind = "picture"
    editing: Short = ""
    template: Annotated[str, Meta(pattern="^[0-9]{0,12}$")] = ""

    def message(self) -> dict[str, object]:
        """The message of the form; raises Impossible if there is nothing to send."""
        text, media = self.text.strip(), self.media.strip()
        if media and not media.startswith(("https://", "http://")):
            raise Impossible(400, "The link must begin with https:// or http://")
        if not text and not media:
            raise Impossible(400, "Write something first")
        if not media:
            return {"type": "text", "text": text}
        name = urlsplit(media).path.rpartition("/")[2] or self.kind
        told: dict[str, object] = {"type": self.kind, "media": media, "file_name": name}
        return told | {"text": text} if text else told


class NewCustomer(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=80)]
    phone: Annotated[str, Meta(max_length=40)] = ""


class First(Struct):
    phone: Annotated[str, Meta(pattern=r"^\+?[0-9 ()-]{3,40}$")]
    text: Annotated[str, Meta(min_length=1, max_length=TEXT_MAX)]
    name: Short = ""


class Picked(Struct):
    id: Short
    emoji: Annotated[str, Meta(max_length=16)] = ""


class Opened(Struct):
    chat: Short


class Chosen(Struct):
    who: Short


def page(template: str, **shown: object) -> Response[str]:
    """A page or a piece of one, escaped, under the policy."""
    text = TEMPLATES.get_template(template).render(emoji=EMOJI, **shown)
    return Response(text, media_type="text/html", headers=HEADERS)


def go(href: str) -> Response[None]:
    """Redirect to another page."""
    return Response(None, status_code=204, headers={"HX-Redirect": href})


async def form(request: Call, shape: type[FormShape]) -> FormShape:
    """The form in its shape; raises Impossible (400)."""
    fields = await request.form()
    try:
        return convert(dict(fields), shape)
    except ValidationError as error:
        raise Impossible(400, f"That does not fit: {error}") from error
