"""Builds the wheel: everything of ours lies in one package `chatledger`, and nothing else is installed.

This is the build backend that pyproject.toml names (PEP 517), so `pip install .` and `pip wheel .` make the
same wheel as `./ops/build-wheel`. Only Python is needed: a wheel is a zip file with a list of its files.
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

import base64
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "domain", "projections", "ops")
# What only the repository needs; the tests are no package of ours here.
LEFT_OUT = ("ops/benches/", "ops/docs/", "ops/site/", "ops/wheel.py", "ops/launcher.py")
OF_OPS = ("ops/sandbox/",)  # Of `ops` itself only Python files, and the sandbox's pages.
TAG = "py3-none-any"
EPOCH = (1980, 1, 1, 0, 0, 0)  # The same sources make the same bytes.
MODE = 0o644 << 16


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Write the wheel into a folder; returns its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = f"{project['name']}-{project['version']}"
    target = f"{name}-{TAG}.whl"
    records = []
    with zipfile.ZipFile(Path(wheel_directory) / target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in (*_files(), *_metadata(project, f"{name}.dist-info")):
            _write(wheel, path, content)
            digest = base64.urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
            records.append(f"{path},sha256={digest},{len(content)}\n")
        record = f"{name}.dist-info/RECORD"
        _write(wheel, record, "".join([*records, f"{record},,\n"]).encode())
    return target


def build_sdist(sdist_directory: str, config_settings: Mapping[str, Any] | None = None) -> str:
    """Write the sources into a folder as a tar file; returns its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = f"{project['name']}-{project['version']}"
    with tarfile.open(Path(sdist_directory) / f"{name}.tar.gz", "w:gz") as sources:
        for path in ("pyproject.toml", "README.md", *PACKAGES):
            sources.add(ROOT / path, f"{name}/{path}", filter=_without_caches)
    return f"{name}.tar.gz"


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def _files() -> Iterator[tuple[str, bytes]]:
    """Each file of the package: where it lies in the wheel, and its bytes."""
    yield "chatledger/__init__.py", b'"""chatledger: run `chatledger`, or `python -m chatledger`."""\n'
    yield "chatledger/__main__.py", (ROOT / "ops/launcher.py").read_bytes()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and _belongs(name):
                yield f"chatledger/{name}", path.read_bytes()


def _belongs(name: str) -> bool:
    if "__pycache__" in name or name.startswith(LEFT_OUT):
        return False
    return name.endswith(".py") or not name.startswith("ops/") or name.startswith(OF_OPS)


def _metadata(project: Mapping[str, Any], folder: str) -> Iterator[tuple[str, bytes]]:
    """The files that tell an installer what this is, what it needs, and which command it brings."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {project['version']}",
        f"Summary: {project['description']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Classifier: {one}" for one in project["classifiers"]),
        *(f"Requires-Dist: {one}" for one in project["dependencies"]),
        "Description-Content-Type: text/markdown",
    ]
    description = (ROOT / project["readme"]).read_text()
    yield f"{folder}/METADATA", "\n".join([*lines, "", description]).encode()
    generator = f"Wheel-Version: 1.0\nGenerator: chatledger\nRoot-Is-Purelib: true\nTag: {TAG}\n"
    yield f"{folder}/WHEEL", generator.encode()
    yield f"{folder}/entry_points.txt", b"[console_scripts]\nchatledger = chatledger.__main__:main\n"


def _write(wheel: zipfile.ZipFile, path: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(path, EPOCH)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, MODE
    wheel.writestr(entry, content)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    print(folder / build_wheel(str(folder)))
