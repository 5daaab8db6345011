"""The site is what the pages and the code say now, and is whole in itself."""

import filecmp
import re
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from ops.site import build, reference
from ops.wheel import build_wheel
from tests.support.documents.pages import PAGES, README, ROOT

AGAIN = "run ./ops/build-docs"
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
PAGE_PATHS = sorted(build.SITE.rglob("*.html"))


class Tags(HTMLParser):
    """What a page links to, what it loads, and where it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {found["id"] or ""} if "id" in found else set()
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if address := found.get(LOADED.get(tag, "")):
            self.loads.append(address)
        runs = tag == "script" and "src" not in found and found.get("type") != "application/json"
        self.inline += [tag] if runs or tag == "style" else []
        self.inline += [name for name in found if name == "style" or name.startswith("on")]


@cache
def tags(path: Path) -> Tags:
    return Tags(path.read_text())


def differences(one: Path, other: Path) -> Iterator[str]:
    """Files that only one folder has, or whose bytes differ."""
    names = {path.relative_to(top) for top in (one, other) for path in top.rglob("*") if path.is_file()}
    _, differ, missing = filecmp.cmpfiles(one, other, map(str, names), shallow=False)
    yield from [*differ, *missing]


def test_the_reference_pages_say_what_the_code_says() -> None:
    stale = [path for path, text in reference.pages().items() if (PAGES / path).read_text() != text]
    assert stale == [], AGAIN


def test_the_site_is_built_from_the_pages_as_they_are(tmp_path: Path) -> None:
    assert list(differences(build.build(tmp_path), build.SITE)) == [], AGAIN


def test_every_page_is_in_the_navigation_and_every_block_is_on_a_page() -> None:
    project = tomllib.loads(build.CONFIG.read_text())["project"]
    named = {path for entry in project["nav"] for one in entry.values() for path in _listed(one)}
    assert named == {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}
    text = "".join(path.read_text() for path in PAGES.rglob("*.md"))
    assert [block for block in reference.BLOCKS if f"<!-- generated: {block} -->" not in text] == []


def _listed(entry: str | list[str]) -> list[str]:
    return [entry] if isinstance(entry, str) else entry


@pytest.mark.parametrize("path", PAGE_PATHS, ids=lambda path: path.stem)
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    for link in tags(path).links:
        address, anchor = urldefrag(link)
        if urlsplit(address).scheme:
            assert address.startswith("https://"), link
            continue
        target = (path.parent / unquote(address)).resolve() if address else path
        assert target.is_file() or (target / "index.html").is_file(), link
        if anchor and target.is_file():
            assert unquote(anchor) in tags(target).anchors, link


@pytest.mark.parametrize("path", PAGE_PATHS, ids=lambda path: path.stem)
def test_a_page_runs_nothing_inline_and_loads_nothing_from_elsewhere(path: Path) -> None:
    found = tags(path)
    assert found.inline == []
    assert [address for address in found.loads if urlsplit(address).netloc] == []
    assert all((path.parent / address).resolve().is_file() for address in found.loads)


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#[^)]*)?\)", README.read_text())
    assert len(links) > 10
    assert [link for link in links if link and not (ROOT / link).exists()] == []


def test_a_wheel_carries_the_whole_site(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        packed = {ROOT / name.removeprefix("chatledger/") for name in wheel.namelist()}
    assert {path for path in build.SITE.rglob("*") if path.is_file()} <= packed
