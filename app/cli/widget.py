"""The archive that Kommo's developer page takes: the same file of settings makes the same bytes.

Kommo documents the files (https://developers.kommo.com/docs/structure-widget), the manifest
(https://developers.kommo.com/docs/manifest-json) and the logos with their sizes
(https://developers.kommo.com/docs/images).
"""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from app.config.file import Setup
from app.config.settings import BadSettings, Settings

SOURCES = files("app") / "widget"
LANGUAGES = ("en", "es", "pt", "ru")
LOGOS = ("logo.png", "logo_main.png", "logo_medium.png", "logo_min.png", "logo_small.png")
TITLE = "{title}"
EPOCH = (1980, 1, 1, 0, 0, 0)  # The oldest that a zip file knows.
MODE = 0o644 << 16


def write_widget(settings: Settings, setup: Setup, version: str, target: Path) -> None:
    """Write the archive of the integration that the file describes. Raises BadSettings, OSError."""
    if settings.public_url is None:
        raise BadSettings("CHATLEDGER_PUBLIC_URL is needed: the widget opens the settings page below it")
    if not _can_be_framed(settings.public_url):
        raise BadSettings("CHATLEDGER_PUBLIC_URL must be https: browsers frame nothing else in Kommo's page")
    if setup.install is None or setup.oauth is None:  # The file has no [install] without [oauth].
        raise BadSettings("[install] is needed: the widget installs what that table says")
    title = setup.install.title or setup.install.channels[0]
    target.write_bytes(archive(settings.public_url.rstrip("/"), setup.oauth.client_id, title, version))


def archive(public_url: str, client_id: str, title: str, version: str) -> bytes:
    """Returns the zip file; `version` is ours, of which Kommo takes the numbers."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for name, content in _content(public_url, client_id, title, version):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = MODE  # And not compressed: each zlib makes other bytes.
            target.writestr(entry, content)
    return packed.getvalue()


def _can_be_framed(url: str) -> bool:
    """Whether a browser shows a page at this address inside one of https; of http only this machine's."""
    parts = urlsplit(url)
    with suppress(ValueError):
        return parts.scheme == "https" or ip_address(parts.hostname or "").is_loopback
    return parts.hostname == "localhost"


def _content(public_url: str, client_id: str, title: str, version: str) -> Iterator[tuple[str, bytes]]:
    manifest = json.loads(_text("manifest.json"))
    manifest["widget"]["version"] = ".".join(version.split(".")[:3])
    manifest["widget"]["support"]["link"] = public_url
    yield "manifest.json", _json(manifest)
    yield "script.js", _script(public_url=public_url, client_id=client_id)
    for language in LANGUAGES:
        name = f"i18n/{language}.json"
        yield name, _json(_titled(json.loads(_text(name)), title))
    for logo in LOGOS:
        yield f"images/{logo}", (SOURCES / "images" / logo).read_bytes()


def _script(**constants: str) -> bytes:
    """Returns the script with its constants, each a literal of JavaScript, as every JSON text is."""
    text = _text("script.js")
    for name, value in constants.items():
        text = text.replace(f'"{{{name}}}"', json.dumps(value))
    return text.encode()


def _titled(value: object, title: str) -> object:
    """Returns the texts with the integration's title in its places."""
    if isinstance(value, dict):
        return {name: _titled(one, title) for name, one in value.items()}
    return value.replace(TITLE, title) if isinstance(value, str) else value


def _text(name: str) -> str:
    return SOURCES.joinpath(name).read_text("utf-8")


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"
