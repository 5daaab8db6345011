"""The shape of the code is kept: who may import whom, how long things may be, what is never done."""

import ast
import re
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = {"pyproject.toml", "README.md", "app", "domain", "projections", "tests", "ops"}
FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 60
FOLDER_FILES_MAX = 15

# Which of our folders a folder may import. What is pure also names its packages, and does nothing impure.
ARROWS = {
    "domain": {"domain"},
    "projections": {"projections", "domain"},
    "app": {"app", "projections", "domain"},
    "ops": {"ops", "app", "projections", "domain"},
    "ops/sandbox": {"ops"},
    "tests": {"tests", "ops", "app", "projections", "domain"},
}

# The rooms of app from the top of the house to its ground: a room imports its own files and rooms below it.
# The longest prefix counts, and `app` is what lies in no room. `http/api` is above `http/webhooks` because an
# operator lists the refused hooks; `http/settings` is on top, for it uses the console's words; `config` is
# above `messengers`, whose kinds a --config file names, and `messengers` above `channels`, which they serve.
ROOMS = [
    *("app/__main__.py", "app/cli", "app/doctor", "app/service"),
    "app/http/settings",
    *("app/http/console", "app/http/api", "app/http/webhooks", "app/http/openapi", "app/http"),
    *(
        "app/operations/settings",
        "app/operations",
        "app/history",
        "app/delivery",
        "app/kommo/chats",
        "app/kommo/crm",
        "app/kommo",
    ),
    *("app/access", "app/servers", "app/config", "app/messengers", "app/channels"),
    *("app/views", "app/ledger", "app/stream", "app/database", "app"),
]
# A name that operators have written down, and the room that it stands for.
ALIASES = {"app/recorder.py": "app/ledger"}
PURE = {"domain", "projections"}
PURE_PACKAGES = {"msgspec"}
IMPURE_MODULES = {
    *(
        "asyncio",
        "concurrent",
        "ctypes",
        "fcntl",
        "glob",
        "http",
        "importlib",
        "io",
        "logging",
        "mmap",
        "multiprocessing",
    ),
    *(
        "os",
        "pathlib",
        "random",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "socketserver",
        "sqlite3",
    ),
    *("ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request", "warnings"),
}
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "uuid7", "open", "print", "input", "getenv"}

# Who may catch everything, and why. Passing it on (`raise` as the last word) is always allowed.
CATCHES_ALL: dict[str, str] = {
    "app/ledger/batch.py": "a command that cannot be decided fails alone, not the batch with it",
    "app/ledger/writer.py": "a command whose past cannot be read fails alone, not the writer with it",
    "app/views/retry.py": "an event that its view still cannot take stays parked",
    "app/views/parking.py": "an event that one view cannot take is parked for that view alone",
}
READS_ENVIRONMENT = {
    "app/config/settings.py": "the one place that reads settings",
    "tests/config/test_servers.py": "children get an environment",
    "ops/benches/service.py": "the services that are measured get an environment",
}

PATHS = sorted(
    path
    for folder in ("app", "domain", "projections", "ops", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "ops/docs").rglob("*.md"))]
SHOWN = {"projections/days.py"}  # What a guide tells its reader to write.
every_file = pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
pure_file = pytest.mark.parametrize(
    "path",
    [path for path in PATHS if path.relative_to(ROOT).parts[0] in PURE],
    ids=lambda path: str(path.relative_to(ROOT)),
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def folder(path: Path) -> str:
    return max((one for one in ARROWS if name(path).startswith(one + "/")), key=len)


def floor(path: Path) -> int:
    """How far down a file of app stands."""
    prefixes = [one for one in ROOMS if name(path) == one or name(path).startswith(one + "/")]
    return ROOMS.index(ALIASES.get(name(path)) or max(prefixes, key=len))


def module(path: Path) -> str:
    """A file's name when it is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> set[str]:
    """Modules by their full names, wherever in the file they are imported."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*path.relative_to(ROOT).parts[: -node.level], *filter(None, [base])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


MODULES = {module(path): path for path in PATHS}


def imported_files(path: Path) -> set[Path]:
    """Our files that a file needs. `from package import module` needs the module, not the package."""
    found = {one for one in imports(path) if one in MODULES}
    packages = {one for one in found if any(other.startswith(one + ".") for other in found)}
    return {MODULES[one] for one in found - packages} - {path}


def test_nothing_else_is_at_the_top() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {one for one in found if not one.endswith(".egg-info") and one != "__pycache__"} == TOP


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_says_each_thing_once_and_names_what_is_there(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^##+ .*", text, re.M)
    assert headings == list(dict.fromkeys(headings))
    named = re.findall(r"`((?:app|domain|projections|ops|tests)/[\w./-]*)`", text)
    assert named or path.name != "README.md"
    assert [one for one in named if not (ROOT / one).exists() and one not in SHOWN] == []


@every_file
def test_imports_point_inward(path: Path) -> None:
    ours = {one.partition(".")[0] for one in imports(path)} & {one for one in ARROWS if "/" not in one}
    assert ours <= ARROWS[folder(path)]


@every_file
def test_arrows_point_downwards(path: Path) -> None:
    if name(path).startswith("app/"):
        ours = {one for one in imported_files(path) if name(one).startswith("app/")}
        assert {name(one) for one in ours if floor(one) < floor(path)} == set()


def test_every_room_is_there() -> None:
    assert [one for one in ROOMS if not (ROOT / one).exists()] == []
    rooms = {name(path.parent) for path in PATHS if name(path).startswith("app/")}
    assert rooms <= set(ROOMS)


def test_no_imports_go_in_a_circle() -> None:
    """Takes away the files that need no other until none is left; what remains is a circle or needs one."""
    left = {path: imported_files(path) for path in PATHS}
    while ready := {path for path, needed in left.items() if not needed & left.keys()}:
        for path in ready:
            del left[path]
    assert sorted(map(name, left)) == []


def test_no_folder_is_crowded() -> None:
    files = Counter(name(path.parent) for path in PATHS if path.name != "__init__.py")
    assert {one: count for one, count in files.items() if count > FOLDER_FILES_MAX} == {}


@every_file
def test_tests_share_only_what_is_in_support(path: Path) -> None:
    shared = [one for one in imports(path) if one == "tests" or one.startswith("tests.")]
    assert [one for one in shared if not one.startswith("tests.support")] == []
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes(path))


@pure_file
def test_what_is_pure_does_nothing(path: Path) -> None:
    found = imports(path)
    assert not found & IMPURE_MODULES
    assert not {one.partition(".")[0] for one in found} & IMPURE_MODULES
    packages = {one.partition(".")[0] for one in found} - sys.stdlib_module_names - ARROWS.keys()
    assert packages <= PURE_PACKAGES
    calls = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
    called = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    assert not called & IMPURE_CALLS


@every_file
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < FILE_LINES_MAX
    long = {
        node.name: lines
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert not long


@every_file
def test_a_module_says_what_it_keeps_true(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@every_file
def test_errors_are_not_swallowed(path: Path) -> None:
    wide = [
        node.lineno
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler) and catches_all(node.type) and not passes_on(node)
    ]
    assert not wide or name(path) in CATCHES_ALL, f"lines {wide}"


def catches_all(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(one is None or getattr(one, "id", "") in {"Exception", "BaseException"} for one in kinds)


def passes_on(node: ast.ExceptHandler) -> bool:
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@every_file
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    reads = any(
        isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} for node in nodes(path)
    )
    assert not reads or name(path) in READS_ENVIRONMENT or not name(path).startswith("app/")


@every_file
def test_nothing_is_mocked_or_left_for_later(path: Path) -> None:
    assert not {one for one in imports(path) if "mock" in one}
    arguments = {node.arg for node in nodes(path) if isinstance(node, ast.arg)}
    assert not arguments & {"monkeypatch", "mocker"}
    assert not re.search(r"#.*\b(TO" + r"DO|FIX" + r"ME)\b", path.read_text())


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_the_locks_hold_every_dependency_and_no_place(lock: str) -> None:
    text = (ROOT / "ops" / lock).read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"]["dev"] if "dev" in lock else [])
    for requirement in wanted:
        package, *_ = re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)
        assert re.search(rf"^{re.escape(package.lower())}==", text, re.MULTILINE), (
            f"run ./ops/lock: {package}"
        )
    assert "://" not in text
    assert text.count("==") <= text.count("--hash=sha256:")
