"""The site is built by Zensical from `ops/docs` and needs nothing but itself: no inline code, no other host.

The built site is committed, because `./ops/run` installs only what the service needs, and Zensical is 90 MB.
A test builds the site again and compares every byte, so the pages and the site never drift apart.

The service's Content-Security-Policy allows scripts and styles from files only. Zensical writes a few scripts
into each page: they move into files, in the same order and still blocking, so they run as before. And its
search makes a style element for its window: it becomes a constructed style sheet, which the policy allows.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "ops/docs"
SITE = ROOT / "app/http/site"
CONFIG = ROOT / "ops/site/zensical.toml"
# The service answers an unknown address itself, knows no address of its own to map, and has one look.
UNUSED = ("404.html", "sitemap.xml", "assets/images", "assets/stylesheets/classic")
INLINE = re.compile(r"<script>(.+?)</script>", re.S)
STYLE = re.compile(r'(\w+)\.appendChild\(\w+\("style",\{\},(\w+)\.toString\(\)\)\)')
CONSTRUCTED = r"\1.adoptedStyleSheets=[(s=>(s.replaceSync(\2.toString()),s))(new CSSStyleSheet)]"
PREFORMATTED = re.compile(r"(<pre.*?</pre>)", re.S)


class BuildFailed(Exception):
    """Zensical refuses a page, or is another than this file was written for."""


def replace(target: Path) -> None:
    """Build the site and put it in the place of `target`. Raises BuildFailed."""
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(built, target)


def build(folder: Path) -> Path:
    """Build the site inside `folder`, an empty one; returns where it is. Raises BuildFailed."""
    shutil.copytree(PAGES, folder / "docs")
    shutil.copy(CONFIG, folder / "zensical.toml")
    zensical = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "-f", "zensical.toml"]
    ran = subprocess.run(zensical, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if ran.returncode:
        raise BuildFailed(ran.stdout + ran.stderr)
    site = folder / "site"
    for name in UNUSED:
        path = site / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _style_search(next(site.glob("assets/javascripts/bundle.*.js")))
    for page in site.rglob("*.html"):
        page.write_text(_squeezed(_without_inline_scripts(page, site)))
    return site


def _style_search(bundle: Path) -> None:
    text, many = STYLE.subn(CONSTRUCTED, bundle.read_text())
    if many != 1:
        raise BuildFailed(f"{bundle.name} styles its search {many} times, not once: adapt STYLE")
    bundle.write_text(text)


def _without_inline_scripts(page: Path, site: Path) -> str:
    """The page with each inline script in a file that is named by its content."""
    up = "../" * (len(page.relative_to(site).parts) - 1)

    def moved(found: re.Match[str]) -> str:
        code = found[1].strip() + "\n"
        name = f"assets/javascripts/inline.{sha256(code.encode()).hexdigest()[:8]}.min.js"
        (site / name).write_text(code)
        return f'<script src="{up}{name}"></script>'

    return INLINE.sub(moved, page.read_text())


def _squeezed(text: str) -> str:
    """Without the empty lines and indents that the templates leave, which are half of a small page."""
    parts = PREFORMATTED.split(text)
    parts[::2] = [re.sub(r"\n\s+", "\n", part) for part in parts[::2]]
    return "".join(parts).strip() + "\n"
