"""The page in its reader's language: Kommo says which, else the browser does; English for all others.

The catalogues are .po files beside this module, read as they are when a language is first asked for, so that
nothing has to be compiled before a start. English is what the sources say.
"""

from functools import cache
from gettext import NullTranslations
from importlib.resources import files
from io import BytesIO

from babel.core import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import Translations

from app.http.request import Call

LANGUAGES = ("en", "es", "pt", "ru")
ACCEPTED_MAX = 20  # Chosen: no browser names more languages.


@cache
def translations(language: str) -> NullTranslations:
    """The catalogue of a language."""
    if language == "en":
        return NullTranslations()
    compiled = BytesIO()
    with (files(__package__) / f"locale/{language}.po").open("rb") as source:
        write_mo(compiled, read_po(source, locale=language))
    compiled.seek(0)
    return Translations(compiled)


def language_of(request: Call) -> str:
    """The language that the address names as `lang`, else the first of the browser's that there is."""
    named = request.query_params.get("lang", "")
    accepted = request.headers.get("accept-language", "").split(",")[:ACCEPTED_MAX]
    wanted = [one.partition(";")[0].strip() for one in (named, *accepted)]
    return negotiate_locale([one.split("-")[0].split("_")[0] for one in wanted], LANGUAGES) or "en"
