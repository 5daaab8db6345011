"""An archive is taken only if Kommo would take it; what is wrong with it is told all at once, by file.

Kommo's documents: https://developers.kommo.com/docs/structure-widget, …/manifest-json, …/widget-locations,
…/field-types and …/images. The sizes of pictures and files are theirs, the bounds of the archive ours.
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

ARCHIVE_BYTES_MAX = 5 * 1024 * 1024
UNPACKED_BYTES_MAX = 20 * 1024 * 1024
FILES_MAX = 500
LOGO_BYTES_MAX = 300 * 1024
LOGOS = {
    "images/logo.png": (130, 100),
    "images/logo_main.png": (400, 272),
    "images/logo_medium.png": (240, 84),
    "images/logo_min.png": (84, 84),
    "images/logo_small.png": (108, 108),
}
PIPELINE_LOGO = ("images/logo_dp.png", (174, 109))  # Only for a widget of the digital pipeline.
AREAS = {
    *("lcard", "ccard", "comcard", "cucard", "llist", "clist", "tlist", "culist", "settings", "everywhere"),
    *("advanced_settings", "card_sdk", "catalogs", "digital_pipeline", "lead_sources", "widget_page", "sms"),
    *("mobile_card", "salesbot_designer", "website_chat_button", "whatsapp_modal", "ai_agent"),
}
FIELD_TYPES = {"text", "pass", "users", "users_lp", "custom"}
TEXTS = ("name", "description", "short_description")
LANGUAGE = re.compile(r"^[a-z]{2}$")
NUMBERS = re.compile(r"^[0-9]{1,5}(\.[0-9]{1,5}){1,2}$")
LOCATION = re.compile(r"^([a-z_]+)(-[01])?$")
PNG = b"\x89PNG\r\n\x1a\n"

Json = dict[str, Any]


class Refused(Exception):
    """The archive is not one that Kommo takes; `faults` are sentences, each about a file."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def unpacked(content: bytes) -> dict[str, bytes]:
    """The files of an archive by their names, all of them as Kommo wants them. Raises Refused."""
    files = _read(content)
    faults = list(_faults(files))
    if faults:
        raise Refused(faults)
    return files


def manifest_of(files: dict[str, bytes]) -> Json:
    """The manifest of an archive that was taken."""
    found: Json = json.loads(files["manifest.json"])
    return found


def texts_of(files: dict[str, bytes], language: str) -> Json:
    """The texts in a language, or in the first that the widget has."""
    known = manifest_of(files)["widget"]["locale"]
    found: Json = json.loads(files[f"i18n/{language if language in known else known[0]}.json"])
    return found


def text_at(texts: Json, key: str) -> str:
    """The text that the manifest names by its place, like `widget.name`; empty if there is none."""
    found: object = texts
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def _read(content: bytes) -> dict[str, bytes]:
    if len(content) > ARCHIVE_BYTES_MAX:
        raise Refused([f"the archive: more than {ARCHIVE_BYTES_MAX} bytes"])
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            entries = [one for one in packed.infolist() if not one.is_dir()]
            if len(entries) > FILES_MAX or sum(one.file_size for one in entries) > UNPACKED_BYTES_MAX:
                raise Refused(["the archive: too much is in it"])
            return {one.filename: packed.read(one) for one in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise Refused([f"the archive: is no zip file that can be read ({error})"]) from error


def _faults(files: dict[str, bytes]) -> Iterator[str]:
    for name in files:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            yield f"{name}: leads out of the archive"
    if "manifest.json" not in files:
        inside = next((one for one in files if one.endswith("/manifest.json")), "")
        yield "manifest.json: is missing" + (f"; pack what is in the folder of {inside}" if inside else "")
        return
    manifest = _object(files, "manifest.json")
    if isinstance(manifest, str):
        yield manifest
        return
    yield from _of_widget(manifest.get("widget"))
    yield from _of_locations(manifest.get("locations"))
    yield from _of_advanced(manifest)
    yield from _of_settings(manifest.get("settings"))
    yield from _of_texts(files, manifest)
    yield from _of_script(files)
    for name, size in _logos(manifest):
        yield from _of_logo(files, name, size)


def _of_widget(widget: object) -> Iterator[str]:
    if not isinstance(widget, dict):
        yield "manifest.json: `widget` must be an object"
        return
    for name in TEXTS:
        if not isinstance(widget.get(name), str) or not widget[name]:
            yield f"manifest.json: `widget.{name}` must be the place of a text, like widget.{name}"
    if not isinstance(widget.get("version"), str) or not NUMBERS.match(widget["version"]):
        yield "manifest.json: `widget.version` must be numbers like 1.0.1"
    if widget.get("interface_version") != 2:
        yield "manifest.json: `widget.interface_version` must be 2"
    for name in ("init_once", "installation"):
        if not isinstance(widget.get(name), bool):
            yield f"manifest.json: `widget.{name}` must be true or false"
    if not _languages(widget):
        yield "manifest.json: `widget.locale` must be a list of languages like en"
    support = widget.get("support")
    if not isinstance(support, dict) or not (support.get("link") or support.get("email")):
        yield "manifest.json: `widget.support` must have a link or an email"


def _of_locations(locations: object) -> Iterator[str]:
    if not isinstance(locations, list) or not locations:
        yield "manifest.json: `locations` must be a list with one area or more"
        return
    for one in locations:
        found = LOCATION.match(one) if isinstance(one, str) else None
        if found is None or found[1] not in AREAS:
            yield f"manifest.json: `locations` has {one!r}, which is no area of Kommo's"


def _of_advanced(manifest: Json) -> Iterator[str]:
    advanced = manifest.get("advanced")
    title = advanced.get("title") if isinstance(advanced, dict) else None
    if "advanced_settings" in _areas(manifest) and (not isinstance(title, str) or not title):
        yield "manifest.json: `advanced.title` must be the place of a text: its page is among the locations"


def _of_settings(settings: object) -> Iterator[str]:
    if not isinstance(settings, dict):
        yield "manifest.json: `settings` must be an object"
        return
    for name, field in settings.items():
        if not isinstance(field, dict) or field.get("type") not in FIELD_TYPES:
            yield f"manifest.json: `settings.{name}.type` must be one of {', '.join(sorted(FIELD_TYPES))}"
        elif not isinstance(field.get("required"), bool):
            yield f"manifest.json: `settings.{name}.required` must be true or false"


def _of_texts(files: dict[str, bytes], manifest: Json) -> Iterator[str]:
    """Every place that the manifest names must have a text in every language."""
    for language in _languages(manifest.get("widget")):
        texts = _object(files, f"i18n/{language}.json")
        if isinstance(texts, str):
            yield texts
            continue
        for key in _places(manifest):
            if not text_at(texts, key):
                yield f"i18n/{language}.json: has no text at {key}, which the manifest names"


def _places(manifest: Json) -> Iterator[str]:
    widget, settings = manifest.get("widget"), manifest.get("settings")
    named = [widget.get(name) for name in TEXTS] if isinstance(widget, dict) else []
    if isinstance(settings, dict):
        named += [field.get("name") for field in settings.values() if isinstance(field, dict)]
    if "advanced_settings" in _areas(manifest):
        advanced = manifest.get("advanced")
        named += [advanced.get("title")] if isinstance(advanced, dict) else []
    yield from (one for one in named if isinstance(one, str) and one)


def _of_script(files: dict[str, bytes]) -> Iterator[str]:
    if "define(" not in files.get("script.js", b"define(").decode(errors="replace"):
        yield "script.js: is no module: it must call define()"


def _logos(manifest: Json) -> Iterator[tuple[str, tuple[int, int]]]:
    yield from LOGOS.items()
    if "digital_pipeline" in _areas(manifest):
        yield PIPELINE_LOGO


def _of_logo(files: dict[str, bytes], name: str, size: tuple[int, int]) -> Iterator[str]:
    content = files.get(name)
    if content is None:
        yield f"{name}: is missing"
        return
    if len(content) > LOGO_BYTES_MAX:
        yield f"{name}: has more than 300 KB"
    if not content.startswith(PNG) or len(content) < 24:
        yield f"{name}: is no PNG"
        return
    found = (int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big"))
    if found != size:
        yield f"{name}: is {found[0]}x{found[1]}, and must be {size[0]}x{size[1]}"


def _areas(manifest: Json) -> set[str]:
    locations = manifest.get("locations")
    listed = locations if isinstance(locations, list) else []
    return {one.partition("-")[0] for one in listed if isinstance(one, str)}


def _languages(widget: object) -> list[str]:
    listed = widget.get("locale") if isinstance(widget, dict) else None
    if not isinstance(listed, list) or not all(
        isinstance(one, str) and LANGUAGE.match(one) for one in listed
    ):
        return []
    return listed


def _object(files: dict[str, bytes], name: str) -> Json | str:
    """A JSON object, or what is wrong with it."""
    if name not in files:
        return f"{name}: is missing"
    try:
        found = json.loads(files[name])
    except ValueError as error:
        return f"{name}: is not JSON ({error})"
    return found if isinstance(found, dict) else f"{name}: must be a JSON object"
