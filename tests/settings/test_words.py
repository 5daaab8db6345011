"""Every text of the settings page is there in every language, whole."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.extract import extract
from babel.messages.pofile import read_po

from app.http.settings.words import LANGUAGES, translations
from app.messengers.kinds import KINDS

FOLDER = Path(__file__).parents[2] / "app/http/settings"
METHODS = {".html": "jinja2", ".py": "python"}
PLACES = re.compile(r"%\(?\w*\)?s|\{\w*\}")


def texts() -> Iterator[str]:
    """What the page says, and what the kinds of messengers call their credentials."""
    for path in sorted(FOLDER.rglob("*")):
        if method := METHODS.get(path.suffix):
            with path.open("rb") as source:
                for _, text, *_ in extract(method, source, keywords={"_": None, "gettext": None}):
                    yield str(text)
    for kind in KINDS.values():
        for field in kind.credentials:
            yield field.label
            if field.hint:
                yield field.hint


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_catalogue_has_every_text_and_no_other(language: str) -> None:
    with (FOLDER / f"locale/{language}.po").open("rb") as source:
        catalogue = read_po(source, locale=language)
    messages = {str(one.id): one for one in catalogue if one.id}
    assert messages.keys() == set(texts())
    for text, message in messages.items():
        assert message.string, text
        assert not message.fuzzy, text
        assert PLACES.findall(str(message.string)) == PLACES.findall(text)
        assert text[-1] not in ".:…" or str(message.string)[-1] == text[-1], text
    assert not catalogue.obsolete


def test_there_is_a_catalogue_for_each_language_and_no_other() -> None:
    assert {path.stem for path in (FOLDER / "locale").iterdir()} == set(LANGUAGES) - {"en"}
    said = {translations(language).gettext("Sources") for language in LANGUAGES}
    assert said == {"Sources", "Fuentes", "Fontes", "Источники"}
