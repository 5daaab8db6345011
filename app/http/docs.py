"""The documents under /docs: the built site, open to everyone, under the same strict policy as every page."""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from litestar import Response, get
from litestar.params import FromPath
from litestar.response import Redirect

from app.http.security import HEADERS
from app.problems import ProblemError

HOME = "/docs/index.html"
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
ASSETS = "assets/"
FOREVER = "public, max-age=31536000, immutable"  # The names of assets change with their content.
SHORT = "public, max-age=300"  # A page may be five minutes old after an upgrade: chosen.


@cache
def site() -> dict[str, Traversable]:
    """Every file of the site by its path; nothing else can be asked for."""
    found: dict[str, Traversable] = {}
    folders = [("", files("app.http") / "site")]
    for prefix, folder in folders:  # Grows while it is read: folders within folders.
        for each in folder.iterdir():
            if each.is_dir():
                folders.append((f"{prefix}{each.name}/", each))
            elif PurePosixPath(each.name).suffix in MEDIA_TYPES:
                found[prefix + each.name] = each
    return found


@get("/docs", include_in_schema=False, sync_to_thread=False)
def home() -> Redirect:
    """The first page, by its full address, from which the links of the page lead on."""
    return Redirect(HOME, status_code=307)


@get("/docs/{path:path}", include_in_schema=False, sync_to_thread=True)
def document(path: FromPath[Path]) -> Response[bytes]:
    """A file of the site. Raises ProblemError (404)."""
    name = path.as_posix().lstrip("/")
    if (file := site().get(name)) is None:
        raise ProblemError(404, "no page has this address: the documents begin at /docs")
    headers = HEADERS | {"Cache-Control": FOREVER if name.startswith(ASSETS) else SHORT}
    return Response(file.read_bytes(), media_type=MEDIA_TYPES[Path(name).suffix], headers=headers)


routes = [home, document]
