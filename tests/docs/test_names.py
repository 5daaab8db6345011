"""Whatever a page names exists: commands, options, settings, paths, metrics, events, messages and files."""

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from app.config.settings import HINTS
from domain.events import TAGS
from ops.main import cli
from ops.site.http import operations
from ops.site.structs import metrics
from tests.support.documents.pages import EVERY_PAGE, PAGES, ROOT, blocks, name

SHELLS = ("sh", "console")
SEPARATORS = {"|", "||", "&&", ";", "&", ">", "2>&1", "<"}
# Paths that are no route of the API: the console's, the documents' and the sandbox's Kommo.
PAGES_OF_THE_CONSOLE = {"/login", "/schema"}
ROUTE = re.compile(
    r"(?<![\w.}/-])/(?:v1|kommo|messengers|crm|oauth|healthz|readyz|metrics|schema)\b[\w{}$/.:-]*"
)
COMMAND = re.compile(r"(?:^|^\$ |[|&;(] ?)(?:chatledger|\./ops/run) (.*)")
SUFFIXES = ("_bucket", "_sum", "_count")
KINDS = "|".join(sorted({tag.partition(".")[0] for tag in TAGS.values()}))
CALLS = {"message.send", "message.text", "message.url", "messenger.url"}
every_page = pytest.mark.parametrize("page", EVERY_PAGE, ids=name)


def code_of(page: Path) -> Iterator[str]:
    """The code of a page: its fenced blocks, and what stands between backticks."""
    text = page.read_text()
    for block in blocks(page):
        yield block.text
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `chatledger` or `./ops/run` of every such command in a shell block."""
    for block in blocks(page):
        if block.kind not in SHELLS:
            continue
        for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
            found = COMMAND.search(line.partition("  #")[0])
            if found and not line.startswith(("ok ", "WRONG", " ")):
                words = shlex.split(found[1], comments=True)
                ends = (number for number, word in enumerate(words) if word in SEPARATORS)
                yield words[: next(ends, len(words))]


@every_page
def test_every_shell_block_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "sh":
            read = subprocess.run(
                ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
            )
            assert (read.returncode, read.stderr) == (0, ""), block.text


@every_page
def test_every_command_and_option_exists(page: Path) -> None:
    for words in commands(page):
        known: click.Command = cli
        rest = iter(words)
        for word in rest:
            if not word.startswith("-"):
                if isinstance(known, click.Group):
                    assert word in known.commands, words
                    known = known.commands[word]
                continue
            option = next((one for one in known.params if word.partition("=")[0] in one.opts), None)
            assert option is not None or word in ("--help", "--version"), (word, words)
            if isinstance(option, click.Option) and not option.is_flag and "=" not in word:
                next(rest)


@every_page
def test_every_command_in_a_sentence_exists(page: Path) -> None:
    shown = {block.text for block in blocks(page)}
    sentences = [code for code in code_of(page) if code not in shown]
    found = {match for code in sentences for match in re.findall(r"^chatledger ([a-z]+)", code)}
    assert found <= cli.commands.keys()


@every_page
def test_every_setting_exists(page: Path) -> None:
    assert set(re.findall(r"CHATLEDGER_[A-Z_]+[A-Z]", page.read_text())) <= HINTS.keys()


@every_page
def test_every_path_of_the_api_exists(page: Path) -> None:
    paths = {path for _, path, _ in operations()}
    routes = [re.sub(r"\{\w+\}", "[^/]+", path) for path in paths]
    for code in code_of(page):
        for path in ROUTE.findall(re.sub(r"https?://[^/\s]+", " ", code)):
            path = path.rstrip("/.:")
            prefixes = [one for one in paths if one.startswith(f"{path}/")]
            assert path in PAGES_OF_THE_CONSOLE or prefixes or any(re.fullmatch(one, path) for one in routes)


# PostgreSQL's roles are called alike; they are those of the composition.
ROLES, COMPOSED = re.compile(r"\bchatledger_[a-z]+\b"), ROOT / "ops/compose.yaml"


@every_page
def test_every_metric_exists(page: Path) -> None:
    known = set(re.findall(r"`(chatledger_\w+)`", metrics())) | set(ROLES.findall(COMPOSED.read_text()))
    for metric in re.findall(r"\bchatledger_[a-z]\w+", page.read_text()):
        assert metric in known or any(metric == one + suffix for one in known for suffix in SUFFIXES)


@every_page
def test_every_event_exists(page: Path) -> None:
    codes = [code for code in code_of(page) if "\n" not in code]
    named = {found for code in codes for found in re.findall(rf"^(?:{KINDS})\.(?!py$)[a-z_]+$", code)}
    assert named <= set(TAGS.values()) | CALLS


@every_page
def test_every_path_of_the_repository_exists(page: Path) -> None:
    for code in code_of(page):
        for path in re.findall(r"(?<![\w/.])\.?/?((?:app|domain|projections|ops|tests)/[\w./-]*\w)", code):
            assert (ROOT / path).exists() or path == "projections/days.py", path


def sentences() -> str:
    """Every text in the code of `app` and `ops`, and the set-up's, one after the other."""
    found = [(ROOT / "ops/setup.sh").read_text()]
    for folder in ("app", "ops"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(map(_literal, node.values)))
    return "\n".join(found)


def _literal(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "…"


@pytest.mark.parametrize("page", ["how-to/resume.md", "troubleshooting.md"])
def test_every_message_that_a_page_explains_is_one_that_chatledger_writes(page: str) -> None:
    text, said = (PAGES / page).read_text(), sentences()
    rows = re.findall(r"^\| (`.*?`) \|", text, re.M)
    messages = {one for row in rows for one in re.findall(r"(`+)(.*?)\1", row)}
    for _, message in messages - {("`", status) for status in ("sent", "accepted", "failed")}:
        for part in re.split(r" ?… ?|127\.0\.0\.1:8080", message):
            assert part in said, message


def test_the_glossary_is_in_order_and_has_each_word_once() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (PAGES / "glossary.md").read_text(), re.M)
    assert words == sorted(set(words), key=str.lower)
    needed = (
        "scope position stream alias lane parked deferred talk hook amojo mirror delivery attempt outcome"
    )
    assert set(needed.split()) <= set(words)
