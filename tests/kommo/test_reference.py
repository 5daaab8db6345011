"""Everything that Kommo's reference says and is ours to honour has a test, and that test speaks of it.

`reference.toml` is the table: a part of the reference, then rows `"word: what it says" = "file::function"`.
The word (of `a.b.c` the last part) must stand in the test, in what it calls or in what it is given; where a
test reads files, the row ends with ` @ file`: the word must stand in that file, and the test must read it.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

TESTS = Path(__file__).parents[1]
PARTS = {"1", "2.1", "2.2", "2.3", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8"} | {
    *("4", "4.1", "4.2", "4.3", "4.4", "4.5", "5.1", "5.2", "5.3", "5.4")
}
DEPTH_MAX = 5


class Row(NamedTuple):
    part: str
    word: str
    file: str
    function: str
    golden: str


def rows() -> Iterator[Row]:
    table = tomllib.loads((TESTS / "kommo/reference.toml").read_text())
    for part, given in table.items():
        for says, test in given.items():
            where, _, golden = test.partition(" @ ")
            file, _, function = where.partition("::")
            word = says.partition(":")[0].strip().rpartition(".")[2].removesuffix("[]")
            yield Row(part, word, file, function, golden)


ROWS = list(rows())


@cache
def definitions(file: str) -> dict[str, str]:
    """What a test file defines at its top, by name: its source; imported names: where from."""
    text = (TESTS / file).read_text()
    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found[node.name] = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
            if isinstance(node, ast.ClassDef):
                found |= {each.name: ast.get_source_segment(text, each) or "" for each in methods(node)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = ast.get_source_segment(text, node) or ""
    return found


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def imported(file: str) -> dict[str, str]:
    """Names that a test file takes from another of ours: from which."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse((TESTS / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            path = f"{node.module.removeprefix('tests.').replace('.', '/')}.py"
            if (TESTS / path).exists():
                found |= {alias.name: path for alias in node.names}
    return found


def told(file: str, name: str, seen: set[tuple[str, str]], depth: int = 0) -> Iterator[str]:
    """The source of a function or value, and of all of ours that it names."""
    if (file, name) in seen or depth > DEPTH_MAX:
        return
    seen.add((file, name))
    source = definitions(file).get(name)
    if source is None:
        if name in imported(file):
            yield from told(imported(file)[name], name, seen, depth)
        return
    yield source
    for other in sorted(set(re.findall(r"\b[A-Za-z_]\w*\b", source))):
        yield from told(file, other, seen, depth + 1)


@cache
def speaks(file: str, function: str) -> str:
    module_marks = definitions(file).get("pytestmark", "")
    return "\n".join([*told(file, function, set()), module_marks])


def test_no_part_of_the_reference_is_forgotten() -> None:
    assert {row.part.partition(" ")[0] for row in ROWS} == PARTS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.part.partition(' ')[0]} {row.word}")
def test_what_the_reference_says_has_a_test(row: Row) -> None:
    assert row.function.startswith("test_"), f"{row.part}: {row.word} has no test"
    assert row.function in definitions(row.file), f"{row.file} has no {row.function}"
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(row.word)}(?![A-Za-z0-9])")
    if row.golden:
        given = speaks(row.file, row.function)
        name = Path(row.golden).name.partition(".hook.")[0].removesuffix(".txt")
        assert "GOLDEN" in given
        assert f'"{name}"' in given or '.glob("*.hook' in given, f"{row.function} does not read {row.golden}"
        assert word.search(unquote((TESTS / row.golden).read_text())), (
            f"{row.golden} does not have {row.word}"
        )
    else:
        assert word.search(speaks(row.file, row.function)), f"{row.function} does not speak of {row.word}"
