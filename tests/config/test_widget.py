"""`chatledger widget` packs what Kommo's developer page takes, the same bytes from the same file."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.widget import LANGUAGES, archive
from ops.main import cli

FILE = """
CHATLEDGER_PUBLIC_URL = "https://chat.example.com/"
CHATLEDGER_DATA = "{data}"
[oauth]
client_id = "11111111-2222-3333-4444-555555555555"
client_secret = "f2d7f8704eff95087ed45b23ba99c0b5aac8278e"
redirect_url = "https://chat.example.com/oauth/callback"
[[channels]]
name = "acme"
[channels.kommo]
channel_id = "344a5002-f8ca-454d-af3d-396180102ac7"
secret = "f2d7f8704eff95087ed45b23ba99c0b5aac8278e"
[channels.messenger]
kind = "webhook"
url = "https://messenger.example.com"
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""
INSTALL = '[install]\nchannels = ["acme"]\ntitle = "Ann & \\"Co\\" </script>"\n'


def made(folder: Path, text: str) -> tuple[int, str, Path]:
    """The command's exit code, what it says, and the archive's path."""
    config, target = folder / "chatledger.toml", folder / "widget.zip"
    config.write_text(text.format(data=folder))
    done = CliRunner().invoke(cli, ["--config", str(config), "widget", str(target)])
    return done.exit_code, done.output, target


def opened(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def test_the_same_file_makes_the_same_archive(tmp_path: Path) -> None:
    code, said, target = made(tmp_path, FILE + INSTALL)
    first = target.read_bytes()
    assert (code, "upload it" in said) == (0, True)
    assert made(tmp_path, FILE + INSTALL)[2].read_bytes() == first


def test_title_and_address_are_those_of_the_file(tmp_path: Path) -> None:
    files = opened(made(tmp_path, FILE + INSTALL)[2].read_bytes())
    for language in LANGUAGES:
        texts = json.loads(files[f"i18n/{language}.json"])
        assert texts["widget"]["name"] == texts["advanced"]["title"] == 'Ann & "Co" </script>'
        assert texts["page"]["language"] == language
    assert b'var HOME = "https://chat.example.com";' in files["script.js"]
    assert b'var CLIENT = "11111111-2222-3333-4444-555555555555";' in files["script.js"]
    assert json.loads(files["manifest.json"])["widget"]["version"].replace(".", "").isdigit()


@pytest.mark.parametrize("place", ["title", "public_url", "client_id"])
def test_no_place_is_left_open(place: str) -> None:
    assert not [
        name
        for name, content in opened(archive("https://a.b", "c", "A", "1.2.3")).items()
        if f"{{{place}}}".encode() in content
    ]


def test_without_a_title_the_channel_gives_it(tmp_path: Path) -> None:
    files = opened(made(tmp_path, FILE + '[install]\nchannels = ["acme"]\n')[2].read_bytes())
    assert json.loads(files["i18n/ru.json"])["widget"]["name"] == "acme"


def test_without_install_it_says_what_is_needed(tmp_path: Path) -> None:
    code, said, target = made(tmp_path, FILE)
    assert (code, "[install] is needed" in said, target.exists()) == (2, True, False)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    made(tmp_path, FILE + INSTALL)
    config = str(tmp_path / "chatledger.toml")
    done = CliRunner().invoke(cli, ["--config", config, "widget", str(tmp_path / "no" / "widget.zip")])
    assert (done.exit_code, "No such file" in done.output) == (1, True)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://chat.example.com/", 2),
        ("http://192.0.2.1/", 2),
        ("http://127.0.0.1:8080", 0),
        ("http://localhost:8080", 0),
        ("http://[::1]:8080", 0),
    ],
)
def test_an_address_that_kommos_page_cannot_frame_is_told(tmp_path: Path, url: str, code: int) -> None:
    text = (FILE + INSTALL).replace("https://chat.example.com", url.rstrip("/"))
    found, said, target = made(tmp_path, text)
    assert (found, "must be https" in said, target.exists()) == (code, code == 2, code == 0)
