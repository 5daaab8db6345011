"""The wheel installs one package and one command, and what is installed runs without the repository."""

import base64
import subprocess
import sys
import tomllib
import zipfile
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest

from ops.wheel import PACKAGES, build_sdist, build_wheel
from tests.support.processes import ENVIRONMENT, ROOT, Process, started

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INFO = f"chatledger-{PROJECT['version']}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an operator builds it; the last line of the output is its path."""
    folder = tmp_path_factory.mktemp("dist")
    command = [str(ROOT / "ops/build-wheel"), str(folder)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return Path(told.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages with the wheel and nothing else in it."""
    target = tmp_path_factory.mktemp("site-packages")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--target"]
    pip = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    subprocess.run([*command, str(target), str(wheel)], check=True, env=ENVIRONMENT | pip)
    return target


def test_it_takes_no_name_but_its_own(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} == {"chatledger", INFO, "bin"}
    ours = {path.name for path in (installed / "chatledger").iterdir()}
    assert ours - {"__pycache__"} == {"__init__.py", "__main__.py", *PACKAGES}
    assert [path.name for path in (installed / "bin").iterdir()] == ["chatledger"]


def test_it_holds_what_runs_and_not_what_only_the_repository_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        for line in packed.read(f"{INFO}/RECORD").decode().splitlines()[:-1]:
            path, digest, size = line.rsplit(",", 2)
            content = packed.read(path)
            encoded = base64.urlsafe_b64encode(sha256(content).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={encoded}", len(content))
        metadata = packed.read(f"{INFO}/METADATA").decode()
    for folder in ("app", "domain", "projections", "ops/sandbox"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        kept = [path for path in files if "__pycache__" not in path.parts]
        assert {f"chatledger/{path.relative_to(ROOT).as_posix()}" for path in kept} <= names
    assert not [name for name in names if "/benches/" in name or "/tests/" in name or "ops/docs" in name]
    assert [f"Requires-Dist: {one}" in metadata for one in PROJECT["dependencies"]].count(False) == 0
    assert "Operating System :: POSIX :: Linux" in metadata


def test_the_same_sources_make_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert (tmp_path / build_wheel(str(tmp_path))).read_bytes() == wheel.read_bytes()
    assert build_sdist(str(tmp_path)) == f"chatledger-{PROJECT['version']}.tar.gz"


def test_a_program_beside_it_keeps_its_own_names(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("WHOSE = 'theirs'")
    code = "import app, chatledger; print(app.WHOSE)"
    command = [sys.executable, "-S", "-c", code]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{installed}"}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert told.stdout == "theirs\n"


async def test_it_serves_from_an_empty_folder(installed: Path, data_folder: Path) -> None:
    empty = data_folder / "empty"
    empty.mkdir()
    paths = f"{installed}:{ENVIRONMENT['PYTHONPATH']}"
    settings = {"CHATLEDGER_DATA": str(data_folder / "data"), "CHATLEDGER_PORT": "0", "PYTHONPATH": paths}
    data_folder.chmod(0o711)  # noqa: ASYNC240 - PostgreSQL, as another user, must get to what is below
    process = Process(data_folder, "chatledger", "serve", **settings)
    process.folder, process.python = empty, [sys.executable, "-S"]  # So that the repository is on no path.
    async with started(process) as url, aiohttp.ClientSession() as session:
        for path in ("/readyz", "/docs/", "/login", "/schema"):
            async with session.get(url + path) as answer:
                assert answer.status == 200, (path, await answer.text())
        assert await process.end() == 0
    assert list(empty.iterdir()) == []
