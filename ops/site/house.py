"""The rooms of `app/` from the code: what each is for, which modules it has, and which rooms it calls."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ops.site.build import ROOT
from ops.site.markdown import sentences, table


def rooms() -> str:
    """The rooms from the top floor to the ground: every room calls only rooms below it."""
    rows = [
        (f"`{name}/`", _docstring(ROOT / name / "__init__.py"), _called(name))
        for name in reversed(_ordered())
    ]
    return table(("room", "what it is for", "calls"), rows)


def modules() -> str:
    """Every module by its room."""
    parts = []
    for name in reversed(_ordered()):
        found = sorted(path for path in (ROOT / name).glob("*.py") if path.name != "__init__.py")
        rows = [(f"`{path.name}`", _docstring(path)) for path in found]
        if rows:
            parts.append(f"### {name}\n\n{table(('module', 'what it keeps true'), rows)}")
    return "\n\n".join(parts)


def _called(name: str) -> str:
    below = [one for one in reversed(_ordered()) if one in _calls()[name]]
    return ", ".join(one.removeprefix("app/") for one in below)


def _docstring(path: Path) -> str:
    """The first sentence, without the theory after it."""
    text = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else ""
    return sentences((text or "").partition("\n\n")[0])


# They stand beside the modules that everything uses, and themselves use what is above those.
FRONT_DOORS = ("app/__main__.py", "app/recorder.py")


@cache
def _calls() -> dict[str, set[str]]:
    """Each room of `app/` and the rooms that its modules import from."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "app").rglob("*.py")):
        if path.relative_to(ROOT).as_posix() in FRONT_DOORS:
            continue
        room = path.parent.relative_to(ROOT).as_posix()
        found.setdefault(room, set()).update(one for one in _imported(path) if one != room)
    return found


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "app":
            for alias in node.names:
                yield _room(node.module, alias.name)


def _room(module: str, name: str) -> str:
    """The folder of `from module import name`, where the name may be a module itself."""
    path = Path(*module.split("."))
    if (ROOT / path / f"{name}.py").exists():
        return path.as_posix()
    if (ROOT / path / name).is_dir():
        return (path / name).as_posix()
    return (path.parent if (ROOT / path).with_suffix(".py").exists() else path).as_posix()


@cache
def _ordered() -> list[str]:
    """The rooms from the ground up, each after all that it calls; rooms of one floor by their names."""
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in floors:
            floors[room] = 1 + max((floor(one) for one in _calls()[room]), default=0)
        return floors[room]

    return sorted(_calls(), key=lambda room: (floor(room), room))
